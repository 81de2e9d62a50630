"""Sum numbers in threads."""



def total(numbers: list[int]) -> int:
    """The sum, in four threads."""
    raise NotImplementedError("task 1: sum in four threads")
