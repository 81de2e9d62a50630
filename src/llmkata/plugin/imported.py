"""The learner's file is imported once; what goes wrong there is told once, and no check is blamed for it."""

from __future__ import annotations

from llmkata.outside.link import Link
from llmkata.outside.remote import RemoteError
from llmkata.records import CheckRecord, Evidence, Outcome

_FAILS = "Importing the file fails"


class Unimportable(Exception):
    """The learner's file cannot be imported: the one check that tells it fails with this."""

    def __init__(self, error: RemoteError) -> None:
        self.cause, self.evidence = import_failure(error)
        super().__init__(self.cause)
        self.__cause__ = error.__cause__


class Waiting(Exception):
    """A check that is not judged because the learner's file cannot be imported."""

    def __init__(self, label: str) -> None:
        super().__init__(f"{label} does not import")


def import_failure(error: RemoteError) -> tuple[str, Evidence]:
    """The cause a learner reads, and the lines of theirs that it came about on."""
    line = f" at line {error.frames[-1][0]}" if error.frames else ""
    cause = f"{_FAILS}{line}: {error}"
    return cause, Evidence(cause, frames=error.where())


def import_fault(link: Link) -> RemoteError | None:
    """What importing the submission behind ``link`` raises, if it raises."""
    try:
        link.open()
    except RemoteError as error:
        return error
    return None


def tells_of_import(record: CheckRecord) -> bool:
    """Whether a check failed because the file cannot be imported."""
    return record.outcome is Outcome.failed and record.cause.startswith(_FAILS)


def import_text(error: Unimportable, label: str, others: int) -> str:
    """What plain pytest shows of it: the line, a caret where the compiler pointed at one, and what follows from it."""
    lines = [f"{label} does not import, so nothing in it can be judged.", f"  {error.cause}"]
    lines += [f"    {frame}" for frame in error.evidence.frames]
    raised = error.__cause__
    if isinstance(raised, SyntaxError) and raised.offset and raised.text and error.evidence.frames:
        text = raised.text.rstrip()
        shown = error.evidence.frames[-1]
        at = len(shown) - len(text) + raised.offset - 1
        if shown.endswith(text) and at < len(shown) + 1:
            lines.insert(2 + len(error.evidence.frames), "    " + " " * at + "^")
    if others:
        lines.append(f"  {others} more check{'s wait' if others > 1 else ' waits'} for that.")
    return "\n".join(lines)
