"""Fetch from the server the grader names."""

from urllib.request import urlopen


def fetch(url: str) -> str:
    """The body of ``url`` as text."""
    # BEGIN SOLUTION task 1: fetch and decode
    with urlopen(url, timeout=5) as answer:
        return answer.read().decode()
    # END SOLUTION
