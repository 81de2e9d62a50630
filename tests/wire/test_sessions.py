"""Sessions that were recorded and changed, 20,000 frames of them: read, or refused, and nothing else.

A million were put once by ``python -m tests.wire.sessions 1000000``; docs/security.md has the figures.
"""

import pytest

from . import sessions


@pytest.mark.parametrize("seed", range(4))
def test_a_changed_session_is_read_or_refused(seed):
    worst = sessions.run(5_000, seed)
    assert sum(worst.ends.values()) == 5_000
    assert worst.seconds < 1.0 and worst.grown < 200, worst
    # All ends are met: most changes break the protocol, some leave a value, an error, a refused or a sound program.
    assert worst.ends["protocol"] > 1_000 and min(worst.ends[e] for e in ("value", "error", "refused", "read")) > 5, worst


def test_unchanged_it_is_read():
    frames, programs = sessions.recorded()
    assert len(frames) > 20 and {f.kind.name for f in frames} == {"result", "error", "callback"}
    assert all(len(f.spans) > 2 for f in frames)
    sessions.parse(sessions.read_program(programs[0].body))
