"""What must agree between the machines, and that it costs no import of torch to know."""

from __future__ import annotations

import subprocess
import sys

from llmkata.cluster.versions import differences, versions
from llmkata.grading.provenance import judging_hash


def test_framework_python_and_libraries():
    here = versions()
    assert here["llmkata"] == judging_hash()
    assert here["Python"] == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert here["torch"][0].isdigit() and "+" not in here["torch"] and here["hypothesis"] != "missing"
    assert "nbgrader" not in here  # of an extra


def test_differences_are_named():
    here = {"llmkata": "a", "torch": "2.13.0", "numpy": "2.4"}
    assert differences(here, dict(here)) == []
    assert differences(here, {"llmkata": "a", "torch": "2.12.0"}) == ["torch 2.12.0 there, 2.13.0 here",
                                                                    "numpy missing there, 2.4 here"]


def test_nothing_heavy_is_imported():
    code = "import sys; from llmkata.cluster.versions import versions; versions(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
