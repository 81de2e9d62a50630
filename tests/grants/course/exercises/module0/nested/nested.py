"""Run a script in another interpreter."""



def run(script: str) -> str:
    """What the script prints."""
    raise NotImplementedError("task 1: run it and read what it prints")
