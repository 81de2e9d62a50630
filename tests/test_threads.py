"""The commands run torch on one thread, whatever the machine has."""

from __future__ import annotations

import os
import subprocess
import sys


def test_one_thread():
    code = "from llmkata.threads import one_thread\none_thread()\nimport torch\nprint(torch.get_num_threads())"
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    before = code.replace("one_thread()\nimport", "import")
    told = [subprocess.run([sys.executable, "-c", c], env=environment | {"OMP_NUM_THREADS": "2"}, capture_output=True,
                           text=True, check=True).stdout for c in (code, before)]
    assert told == ["1\n", "2\n"]
