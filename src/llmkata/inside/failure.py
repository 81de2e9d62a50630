"""A learner's exception as plain data: type, known bases, message, and the learner's own frames only."""

from __future__ import annotations

import traceback
from typing import Any

from .objects import known_bases

_MESSAGE_CAP = 4000


def describe(error: BaseException, filename: str, label: str) -> dict[str, Any]:
    """-> {"type", "bases", "message", "frames": [[line, function, text], ...]}; innermost frame last."""
    frames = []
    if isinstance(error, SyntaxError) and error.filename == filename:
        frames.append([error.lineno or 0, "", (error.text or "").rstrip()[:200]])
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == filename:
            frames.append([frame.lineno or 0, frame.name, (frame.line or "")[:200]])
    try:
        message = str(error)
    except BaseException:  # noqa: BLE001 - a learner's __str__ may do anything
        message = "(its message could not be read)"
    if len(message) > _MESSAGE_CAP:
        message = message[:_MESSAGE_CAP] + f" [... {len(message) - _MESSAGE_CAP} more characters]"
    return {
        "type": type(error).__name__,
        "bases": known_bases(type(error)),
        "message": message,
        "frames": frames[-12:] if len(frames) <= 12 else frames[:3] + frames[-9:],
        "label": label,
    }
