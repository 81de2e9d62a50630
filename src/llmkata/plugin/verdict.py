"""From what a check raised to what the learner reads: outcome, cause, evidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmkata.checks.budgets import NotJudged
from llmkata.checks.compare import GraderFault, Mismatch
from llmkata.checks.describe import describe_call
from llmkata.checks.symptoms import raised_symptom, symptom
from llmkata.outside.link import Link, storable
from llmkata.outside.process import TemplateFailed
from llmkata.outside.remote import MissingName, RemoteError, WorkerGone
from llmkata.records import NOT_STARTED, CheckRecord, Evidence, Outcome
from llmkata.wire import WireError

#: Beginnings of the causes of a check that was not judged because the grader went wrong.
_FAULTS = ("The grader", "This check compared nothing")


class Verdict:
    """Outcome, cause and evidence of one check; ``judged`` is False where its points do not count at all."""

    def __init__(self, outcome: Outcome, cause: str, evidence: Evidence | None = None, judged: bool = True) -> None:
        self.outcome, self.cause, self.judged = outcome, storable(cause), judged
        self.evidence = evidence and Evidence(*(storable(t) for t in (
            evidence.summary, evidence.call, evidence.expected, evidence.got, evidence.index)),
            frames=[storable(f) for f in evidence.frames])


def is_fault(record: CheckRecord) -> bool:
    """Whether a check was not judged because the grader went wrong."""
    return record.outcome is Outcome.not_judged and record.cause.startswith(_FAULTS)


def verdict(error: BaseException | None, links: Sequence[Link], compared: int, excuses: bool = True) -> Verdict:
    """The verdict on a check that raised ``error`` (or nothing) and asked the submission over ``links``.

    Once the submission has answered, whatever the check stumbles over is a failure: an answer of an odd form must not
    turn into "not judged", which costs nothing. ``excuses``: whether a GraderFault does (the model answer meets it, too).
    """
    link = next((k for k in links if k.transcript.last_call is not None), None)
    banned = [sentence for k in links for sentence in k.banned]
    if banned:
        return Verdict(Outcome.failed, banned[0], _evidence(banned[0], link))
    if error is None:
        if compared:
            return Verdict(Outcome.passed, "")
        if link is not None:
            text = "The answer holds nothing that could be compared."
            return Verdict(Outcome.failed, text, _evidence(text, link))
        return Verdict(Outcome.not_judged, "This check compared nothing: a fault of the grader.", judged=False)
    if isinstance(error, NotJudged):
        return Verdict(Outcome.not_judged, str(error), judged=False)
    if isinstance(error, TemplateFailed) or isinstance(error, GraderFault) and (excuses or link is None):
        return Verdict(Outcome.not_judged, f"The grader could not judge this: {error}", judged=False)
    if isinstance(error, WorkerGone):
        return Verdict(Outcome.failed, error.cause, _evidence(error.cause, link))
    if isinstance(error, MissingName):
        return Verdict(Outcome.failed, error.message + ".", Evidence(error.message))
    if isinstance(error, RemoteError):
        return _raised(error, link)
    if isinstance(error, Mismatch):
        raised = error.__cause__  # an error that was asked for, of another type or with other words
        evidence = _evidence(error.summary, link, expected=error.expected, got=error.got, index=error.index,
                             frames=raised.where() if isinstance(raised, RemoteError) else [])
        return Verdict(Outcome.failed, error.summary, evidence)
    if link is not None and isinstance(error, Exception):
        text = (f"The answer does not have the promised form, the check stumbled over it "
                f"({type(error).__name__}: {_first_line(error)}).")
        return Verdict(Outcome.failed, text, _evidence(text, link))
    if isinstance(error, WireError):
        return Verdict(Outcome.not_judged, f"The grader sent something that cannot cross: {error}", judged=False)
    return Verdict(Outcome.not_judged, f"The grader failed: {type(error).__name__}: {_first_line(error)}", judged=False)


def with_symptom(cause: str, error: BaseException | None) -> str:
    """The cause with a general sentence on what the error looks like, where there is one."""
    said = ""
    if isinstance(error, Mismatch) and error.pair is not None:
        said = symptom(*error.pair)
    elif isinstance(error, RemoteError):
        said = raised_symptom(error.message)
    return storable(f"{cause} {said}") if said else cause


def is_not_started(error: BaseException | None) -> bool:
    """Whether a check met a task of the stub that raises NotImplementedError("task n: ...")."""
    return (isinstance(error, RemoteError) and error.type_name == "NotImplementedError"
            and error.message.startswith("task "))


def _raised(error: RemoteError, link: Link | None) -> Verdict:
    if is_not_started(error):
        text = f"{NOT_STARTED}: {error.message}"
        return Verdict(Outcome.failed, text, Evidence(text, frames=error.where()[-1:]))
    where = f" at line {error.frames[-1][0]}" if error.frames else ""
    text = f"Your code raised {error.type_name}{where}: {error.message}" if error.message else \
        f"Your code raised {error.type_name}{where}."
    return Verdict(Outcome.failed, text, _evidence(text, link, frames=error.where()))


def _evidence(summary: str, link: Link | None, **more: Any) -> Evidence:
    call = ""
    if link is not None:
        last = link.transcript.last_call
        call = describe_call(last.what, last.args, last.kwargs)
    return Evidence(summary, call=call, **more)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]
