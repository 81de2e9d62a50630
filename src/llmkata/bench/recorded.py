"""A recorded program as it comes from the learner's process: JSON that the trusted side passes on unread."""

from __future__ import annotations

import json
from typing import Any

from llmkata.wire import UNTRUSTED

from .replay import run
from .structure import ProgramError


def run_recorded(data: bytes, inputs: dict[str, Any], measure: list[str]) -> dict[str, Any]:
    """``replay.run`` of an encoded program; the result has the operators' names too (``names``).

    Raises ProgramError (or what ``run`` raises) for bytes that are no program.
    """
    program = read_program(data)
    answer = run(program, inputs, measure=measure)
    return answer | {"names": [str(name) for name in program["operators"]]}


def read_program(data: bytes) -> Any:
    """What ``data`` holds, whatever it is. Raises ProgramError where it is no JSON or holds too many values."""
    # Every value but the first stands behind one of these, so this bounds what is made of the text.
    if sum(map(data.count, (b",", b"[", b"{", b":"))) > 2 * UNTRUSTED.max_items:
        raise ProgramError(f"what was recorded is no program (more than {UNTRUSTED.max_items:,} values)")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as e:
        raise ProgramError(f"what was recorded is no program ({type(e).__name__})") from None
