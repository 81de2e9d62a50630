"""No visible checks: the three assertions are hidden ones, in graders/, so that each is run once."""
