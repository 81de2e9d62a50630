"""``kata new``: a complete small exercise to be overwritten piece by piece, and its entry in course.yaml."""
