from llmkata.checks import points, same, task


@task(1)
@points(100)
def test_all_reduce(submission):
    """Both ranks hold the sum."""
    same(submission.all_reduce(3, 4), [7, 7])
