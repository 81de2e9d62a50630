"""Sum numbers in threads."""

from concurrent.futures import ThreadPoolExecutor


def total(numbers: list[int]) -> int:
    """The sum, in four threads."""
    raise NotImplementedError("task 1: sum in four threads")
