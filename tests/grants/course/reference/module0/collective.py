"""The oracle is written out in the check."""
