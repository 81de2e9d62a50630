"""Probes travel by source alone: what would not run where only the source is, is refused where it is written."""

from __future__ import annotations

import math

import pytest

from llmkata.outside.probe import ProbeError, probe, probe_source

EXPECTED = 42


def runs(fn, *args):
    name, source = probe_source(fn)
    scope = {}
    exec(compile(source, "<probe>", "exec", dont_inherit=True), scope)  # noqa: S102
    return scope[name](*args)


def test_a_self_contained_function():
    @probe
    def look(module, n, *, scale=2):
        """A docstring."""
        import math as m

        def inner(x):
            return [m.sqrt(x) for _ in range(1)]

        class Local:
            value = 3

        return inner(n)[0] * scale + Local.value + len("ab")

    assert runs(look, None, 9.0) == 11.0
    assert look(None, 9.0) == 11.0  # and it is still a function here


def test_annotations_stay_here():
    from llmkata.outside.submission import Submission

    @probe
    def look(module: Submission, n: math.Nothing = 1, *rest: Submission) -> Submission:
        return n

    assert runs(look, None) == 1


def test_closing_over_the_grader():
    secret = 42
    with pytest.raises(ProbeError, match=r"test_probe.py:\d+ look: the probe closes over secret"):
        @probe
        def look(module):
            return secret


@pytest.mark.parametrize("kind", ["global", "nested", "default", "keyword default", "comprehension", "class body"])
def test_names_of_the_grader(kind):
    with pytest.raises(ProbeError, match="the probe uses (EXPECTED|math) of the grader"):
        if kind == "global":
            @probe
            def look(module):
                return EXPECTED
        elif kind == "nested":
            @probe
            def look(module):
                return (lambda: math.pi)()
        elif kind == "default":
            @probe
            def look(module, want=EXPECTED):
                return want
        elif kind == "keyword default":
            @probe
            def look(module, *, want=(1, EXPECTED)):
                return want
        elif kind == "comprehension":
            @probe
            def look(module):
                return [EXPECTED for _ in range(2)]
        else:
            @probe
            def look(module):
                class Inner:
                    value = EXPECTED
                return Inner.value


def test_what_is_not_marked():
    with pytest.raises(ProbeError, match="'test_what_is_not_marked' is no probe: mark it"):
        probe_source(test_what_is_not_marked)
    with pytest.raises(ProbeError, match="is no probe"):
        probe_source(5)
