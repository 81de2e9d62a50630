"""Promised errors: raised, of the promised kind, with a message that names what is wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from llmkata.outside.remote import MissingName, RemoteError

from .compare import Mismatch
from .context import current


@contextlib.contextmanager
def expect_error(error: type[BaseException], *texts: str) -> Iterator[None]:
    """Passes when the block raises ``error`` (or a subclass) in the submission, its message holding each text.

    A stub's NotImplementedError is let through: it is "not started", not a wrong error.
    """
    current().compared += 1
    try:
        yield
    except MissingName:
        raise
    except RemoteError as e:
        if e.type_name == "NotImplementedError" and error is not NotImplementedError:
            raise
        if not e.is_a(error):
            raise Mismatch(f"This call must raise {error.__name__}, it raised {e.type_name}.", expected=error.__name__,
                           got=str(e)) from e
        missing = [t for t in texts if t not in e.message]
        if missing:
            raise Mismatch(f"The {error.__name__} must say {' and '.join(map(repr, missing))}.",
                           expected=f"{error.__name__} with {', '.join(map(repr, texts))}", got=str(e)) from e
    else:
        raise Mismatch(f"This call must raise {error.__name__}, it returned.", expected=error.__name__, got="no error")
