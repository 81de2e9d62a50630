from llmkata.checks import check, points, task


@task(1)
@points(100)
def test_run(submission):
    """The script's output comes back."""
    check(submission.run("print(6 * 7)") == "42\n", "the script prints 42")
