"""The lines of a result for a system that knows one list of tests with scores: GitHub's reporter, Classroom 50.

Where hidden checks were run a line is a check and scores its points. Visible checks carry none, so where nothing else
was run (a learner's repository) a line is a task and scores 1 when every check of it passed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from llmkata.gradebook.standing import Standing
from llmkata.reports.by_hand import signed
from llmkata.reports.view import CheckCard, ExerciseCard, TaskCard, scorecard

if TYPE_CHECKING:
    from llmkata.course import Course, Exercise
    from llmkata.records import ExerciseRecord

#: When a result is a failure: a core task of a begun exercise failed, anything of it did, or never.
FailOn = Literal["core", "any", "never"]
Status = Literal["pass", "fail", "error"]
#: A frame of the learner's file: ``attention.py:41 in attention: scores = q @ k``.
_FRAME = re.compile(r"(?P<file>[^:\s]+\.py):(?P<line>\d+)\b")
#: How a cause begins that tells the line itself, also where the policy withholds the frames.
_RAISED = re.compile(r"Your code raised [\w.]{1,200} at line (\d{1,7})\b")


@dataclass(frozen=True)
class Item:
    """One line: a check, a task, or an exercise of which nothing can be told apart. All texts are plain, one line each,
    and no more than the course's feedback policy tells a learner.
    """

    exercise: str
    name: str
    status: Status
    score: float
    max_score: float
    tier: str
    #: Whether anything was tried. What was not is no failure.
    begun: bool
    message: str = ""
    #: Command that runs just this again.
    command: str = ""
    #: The learner's file within the repository, and the line that matters (0: not known).
    file: str = ""
    line: int = 0
    task: int = 0
    seconds: float = 0.0
    #: The check behind the line, where it is of one check.
    check: CheckCard | None = None


def items(
    records: Iterable[ExerciseRecord],
    course: Course,
    learner: str,
    *,
    exercises: Collection[str] | None = None,
    maxima: Mapping[str, float] | None = None,
    sources: Mapping[str, str] | None = None,
) -> list[Item]:
    """The lines of one learner over ``exercises`` (ids; by default all available ones), in the order of the course.

    ``sources``: exercise id -> text of the learner's file, to find the line a check is about where nothing was raised.
    ``maxima``: exercise id -> points to be had, for exercises without a graded record; without it an exercise that was
    not begun is worth no points where checks score (where tasks score, each task of it is worth 1).
    """
    records = [r for r in records if r.learner == learner]
    seconds = {(r.exercise, c.id): c.seconds for r in records for c in r.checks}
    cards = scorecard(learner, records, course).exercises
    by_points = any(card.max_points for card in cards) or bool(maxima)
    wanted = {e.id for e in course.available} if exercises is None else set(exercises)
    lines: list[Item] = []
    for card in cards:
        if card.id not in wanted:
            continue
        exercise = course.exercise(card.id)
        source = (sources or {}).get(card.id, "")
        if not card.tasks:
            worth = (maxima or {}).get(card.id, 0.0) if by_points else float(len(exercise.tasks))
            lines.append(_whole(card, exercise, worth))
            lines += _besides(card, exercise, 0.0, worth)
            continue
        for task in card.tasks:
            if by_points:
                lines += [_of_check(card, task, check, exercise, seconds, source) for check in task.checks]
            else:
                lines.append(_of_task(card, task, exercise, seconds, source))
        if by_points:
            earned = sum(check.points for task in card.tasks for check in task.checks)
            lines += _besides(card, exercise, earned, card.max_points)
    return lines


def verdict(lines: Iterable[Item], fail_on: FailOn = "core") -> Status:
    """What a result comes to. ``error``: nothing failed, but something could not be judged."""
    if fail_on == "never":
        return "pass"
    known = {item.status for item in lines if item.begun and (fail_on == "any" or item.tier == "core")}
    return "fail" if "fail" in known else "error" if "error" in known else "pass"


def merged(lines: Iterable[Item], *, by_task: bool) -> list[Item]:
    """One line for each task, or each exercise: scores added, passed where every part is, the first failure told."""
    groups: dict[tuple[str, int], list[Item]] = {}
    for item in lines:
        groups.setdefault((item.exercise, item.task if by_task else 0), []).append(item)
    return [_merged(group, by_task) for group in groups.values()]


def _merged(group: list[Item], by_task: bool) -> Item:
    ranked = sorted(group, key=lambda item: ("fail", "error", "pass").index(item.status))
    worst = next((item for item in ranked if item.begun), ranked[0])
    name = worst.name.partition(": ")[0]
    return replace(
        worst,
        name=name if by_task else name.partition(", task ")[0],
        task=worst.task if by_task else 0,
        score=sum(item.score for item in group),
        max_score=sum(item.max_score for item in group),
        begun=any(item.begun for item in group),
        check=None,
        seconds=sum(item.seconds for item in group),
    )


def own_line(frames: Iterable[str], file: str) -> int:
    """The innermost line of ``file`` (its base name) in frames; 0 where there is none."""
    base = file.rpartition("/")[2]
    lines = [int(m["line"]) for m in map(_FRAME.match, frames) if m and m["file"].rpartition("/")[2] == base]
    return lines[-1] if lines else 0


def check_line(check: CheckCard, file: str, source: str = "") -> int:
    """The learner's line a failed check is about: where it was raised, else where a missed budget was spent most, else
    where what was called is defined in ``source``; 0 where nothing tells.
    """
    raised = _RAISED.match(check.cause)
    found = int(raised[1]) if raised else own_line(check.evidence.frames, file) if check.evidence else 0
    spots = [s for m in check.measures if not m.ok for s in m.spots if s.line]
    return found or (max(spots, key=lambda s: s.value).line if spots else 0) or _defined(check, source)


def _defined(check: CheckCard, source: str) -> int:
    """The line of the function or class that the evidence says was called."""
    called = re.match(r"[A-Za-z_][\w.]*(?=\()", check.evidence.call) if check.evidence else None
    if not called:
        return 0
    name = re.escape(called[0].rpartition(".")[2])
    at = re.search(rf"^[ \t]*(?:async[ \t]+def|def|class)[ \t]+{name}\b", source, re.MULTILINE)
    return source.count("\n", 0, at.start()) + 1 if at else 0


def told(check: CheckCard) -> str:
    """Why a check did not pass, and the mistake where one was recognised, in one line; empty for a passed one."""
    if check.outcome == "passed":
        return ""
    parts = [check.cause, check.diagnosis.feedback if check.diagnosis else ""]
    parts += [f"Hint: {check.hints[0]}" if check.hints and not check.diagnosis else ""]
    return " ".join(part for part in parts if part)


def stub_path(exercise: Exercise) -> str:
    """The learner's file, within the repository."""
    return exercise.stub.relative_to(exercise.root).as_posix()


_STATUS: dict[str, Status] = {"passed": "pass", "failed": "fail", "not judged": "error"}


def _whole(card: ExerciseCard, exercise: Exercise, worth: float) -> Item:
    """An exercise without checks to tell apart: not begun, unreadable, or not judged (which counts nowhere)."""
    begun = card.standing not in (Standing.not_started, Standing.missing)
    lost = card.standing is Standing.infrastructure
    file = stub_path(exercise)
    return Item(
        card.id,
        f"{card.number} {card.title}: {card.standing.value}",
        "error" if lost else "fail",
        0.0,
        0.0 if lost else worth,
        "core",
        begun,
        message=card.cause,
        command=f"./kata check {card.id}",
        file=file,
        line=own_line(card.evidence.frames, file) if card.evidence else 0,
    )


def _besides(card: ExerciseCard, exercise: Exercise, earned: float, worth: float) -> list[Item]:
    """What counts beside the checks: a line for each criterion that was marked, and out of 0, so that a sum of the lines is
    what counts, one for what lateness costs and one for each adjustment. None of them is a failure, whatever it is.

    ``earned``, ``worth``: points of the checks, and points to be had.
    """
    name = f"{card.number} {card.title}"
    marks = [m for m in card.by_hand.rubric if m.points is not None]
    rows = [(f"{name}, by hand: {m.name}", m.points or 0.0, m.max_points, m.about) for m in marks]
    left = earned + sum(score for _, score, _, _ in rows)
    if card.deduction:
        taken = min(left, card.deduction / 100 * worth)
        rows.append((f"{name}, late", -taken, 0.0, card.late))
        left -= taken
    given = card.by_hand.points
    # No more is taken by hand than is there; without work they were given out of what was to be had then.
    counts = max(given, -left) if card.tasks or not worth else card.by_hand.percent / 100 * worth
    part = counts / given if given else 1.0
    rows += [(f"{name}, by hand: {signed(g.points)}", g.points * part, 0.0, g.reason) for g in card.by_hand.given]
    return [
        Item(card.id, said, "pass", round(score, 6), most, "core", True, message, file=stub_path(exercise))
        for said, score, most, message in rows
    ]


def _of_check(
    card: ExerciseCard,
    task: TaskCard,
    check: CheckCard,
    exercise: Exercise,
    seconds: Mapping[tuple[str, str], float],
    source: str,
) -> Item:
    excused = check.outcome == "not judged" and not check.max_points
    file = stub_path(exercise)
    return Item(
        card.id,
        f"{card.number} {card.title}, task {task.number}: {check.title}",
        "pass" if excused else _STATUS[check.outcome],
        check.points,
        check.max_points,
        task.tier,
        task.started,
        message=told(check),
        # Hidden checks told as one have no name that could be run.
        command=f"./kata check {card.id}" + ("" if check.id.startswith("hidden::") else f" --only {check.name}"),
        file=file,
        line=check_line(check, file, source),
        task=task.number,
        seconds=seconds.get((card.id, check.id), 0.0),
        check=check,
    )


def _of_task(
    card: ExerciseCard, task: TaskCard, exercise: Exercise, seconds: Mapping[tuple[str, str], float], source: str
) -> Item:
    failed = [c for c in task.checks if c.outcome == "failed"] or [c for c in task.checks if c.outcome != "passed"]
    file = stub_path(exercise)
    status = _STATUS[task.outcome]
    return Item(
        card.id,
        f"{card.number} {card.title}, task {task.number}: {task.title}",
        status,
        float(status == "pass"),
        1.0,
        task.tier,
        task.started,
        message=told(failed[0]) if status != "pass" and failed else "",
        command=f"./kata check {card.id}" + (f" --only {failed[0].name}" if failed else ""),
        file=file,
        line=check_line(failed[0], file, source) if failed else 0,
        task=task.number,
        seconds=sum(seconds.get((card.id, check.id), 0.0) for check in task.checks),
    )
