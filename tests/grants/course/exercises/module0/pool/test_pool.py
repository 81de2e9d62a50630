from llmkata.checks import check, task


@task(1)
def test_is_there(submission):
    """The file can be imported."""
    check(submission is not None, "it can be imported")
