collect_ignore = ["course"]  # a course of its own, graded by the tests here
