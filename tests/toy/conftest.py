collect_ignore = ["exercises", "graders"]  # checks of a course of its own, run by the tests of the framework
