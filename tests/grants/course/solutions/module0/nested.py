"""Run a script in another interpreter."""

import subprocess
import sys


def run(script: str) -> str:
    """What the script prints."""
    # BEGIN SOLUTION task 1: run it and read what it prints
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    # END SOLUTION
