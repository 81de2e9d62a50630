"""All-reduce over two processes with gloo on the loopback interface."""

import socket
import subprocess
import sys

RANK = """
import os, sys
import torch, torch.distributed as dist
rank, port, value = map(int, sys.argv[1:])
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
x = torch.tensor([value])
dist.all_reduce(x)
print(int(x))
dist.destroy_process_group()
"""


def all_reduce(a: int, b: int) -> list[int]:
    """What each of two ranks holds after summing a and b."""
    raise NotImplementedError("task 1: start two ranks and let them add")
