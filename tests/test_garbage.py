"""Imports go without the cycle collector; it is as before afterwards, and walks none of what they left."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

_CODE = """
import contextlib, gc
from llmkata.garbage import uncollected
ran = []
gc.callbacks.append(lambda phase, info: ran.append(info["generation"]))
with {}:
    import decimal, email.message, http.server, unittest.mock, xml.dom.minidom
print(len(ran), gc.get_freeze_count() > 0, gc.isenabled())
"""


@pytest.mark.parametrize(("how", "collected"), [("uncollected()", False), ("contextlib.nullcontext()", True)])
def test_imports(how, collected):
    done = subprocess.run([sys.executable, "-c", _CODE.format(how)], capture_output=True, text=True, check=True)
    times, frozen, enabled = done.stdout.split()
    assert (int(times) > 0, frozen, enabled) == (collected, str(not collected), "True")


def test_a_collector_that_is_off_stays_off():
    code = "import gc; gc.disable()\nfrom llmkata.garbage import uncollected\nwith uncollected(): pass\nprint(gc.isenabled())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n" and gc.isenabled()


def test_it_is_set_aside_at_the_end_of_the_process_and_after_an_error():
    code = ("import atexit, gc\natexit.register(lambda: print(len(gc.get_objects())))\nfrom llmkata.garbage import uncollected\n"
            "try:\n    with uncollected(): raise ValueError\nexcept ValueError: pass\nkept = [[] for _ in range(5000)]")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 5000
