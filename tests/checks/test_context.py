"""Seeds of checks, and which links a check asked."""

from __future__ import annotations

import subprocess
import sys

from llmkata.checks.context import CheckContext, current, enter, seed_for
from llmkata.outside.loopback import LoopbackLink


def test_seeds_are_stable():
    assert seed_for(0, "module1/toy/test_a") == seed_for(0, "module1/toy/test_a") < 2**63
    assert len({seed_for(s, c) for s in (0, 1, -1) for c in ("a", "b", "1:a")}) == 9
    code = "from llmkata.checks.context import seed_for; print(seed_for(5, 'x'))"
    for hash_seed in ("1", "2"):
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                             env={"PYTHONHASHSEED": hash_seed}).stdout
        assert int(out) == seed_for(5, "x")


def test_links(running):
    main, one, two = (LoopbackLink(n, n, b"") for n in "abc")
    assert running.links == []
    running.fresh += [one, two]
    assert running.links == [two, one]
    running.link = main
    assert running.links == [two, one, main]
    assert current() is running and enter(CheckContext(None, 0)) is current()
