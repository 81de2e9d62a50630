"""Where there is no Linux underneath, entering still closes descriptors, sets limits and says what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

PROGRAM = """
import json, os, sys, sysconfig
sysconfig.get_paths()  # reads this system's own description, before we claim to be on another one
sys.platform = "darwin"
from llmkata.inside.sandbox import Policy, enter
secret = os.open(sys.argv[1], os.O_RDONLY)
entered = enter(Policy.from_dict({"scratch": sys.argv[2], "keep_fds": [1, 2]}))
try:
    os.fstat(secret)
    closed = False
except OSError:
    closed = True
print(json.dumps([entered.layers, entered.missing, closed, os.getcwd()]))
"""


def test_a_system_without_the_kernel_interfaces(ground):
    run = subprocess.run([sys.executable, "-c", PROGRAM, ground.secret, ground.scratch], capture_output=True, text=True,
                         check=True)
    layers, missing, closed, folder = json.loads(run.stdout)
    assert layers == ["close_range", "session", "rlimit"] and closed
    assert {"netns", "mountns", "pidns", "privileges", "landlock", "seccomp"} <= set(missing)
    assert os.path.realpath(folder) == os.path.realpath(ground.scratch)
