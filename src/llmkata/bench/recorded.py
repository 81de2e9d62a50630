"""A recorded program as it comes from the learner's process: bytes that the trusted side passes on unread."""

from __future__ import annotations

from typing import Any

from llmkata.wire import UNTRUSTED, WireError, decode

from .replay import run
from .structure import ProgramError


def run_recorded(data: bytes, inputs: dict[str, Any], measure: list[str]) -> dict[str, Any]:
    """``replay.run`` of an encoded program; the result has the operators' names too (``names``).

    Raises ProgramError (or what ``run`` raises) for bytes that are no program.
    """
    try:
        program = decode(data, limits=UNTRUSTED)
    except WireError as e:
        raise ProgramError(f"what was recorded is no program ({e})") from None
    answer = run(program, inputs, measure=measure)
    return answer | {"names": [str(name) for name in program["operators"]]}
