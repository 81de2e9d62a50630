from llmkata.checks import check, points, task


@task(1)
@points(100)
def test_total(submission):
    """The sum is right."""
    check(submission.total([1, 2, 3]) == 6, "the sum of 1, 2, 3 is 6")
