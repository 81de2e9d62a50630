"""Sum numbers in threads."""

from concurrent.futures import ThreadPoolExecutor


def total(numbers: list[int]) -> int:
    """The sum, in four threads."""
    # BEGIN SOLUTION task 1: sum in four threads
    with ThreadPoolExecutor(4) as pool:
        return sum(pool.map(int, numbers))
    # END SOLUTION
