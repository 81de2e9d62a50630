"""The scorecard as data: ``llmkata/scorecard/v1``. HTML, Markdown and JSON are written from these structures alone.

Building them applies the feedback policy and makes every text plain (no control characters), once for all formats.
``docs/scorecard.schema.json`` is made from them: see :mod:`.schema`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from llmkata.gradebook.counted import RUBRIC
from llmkata.gradebook.standing import Entry, Standing, entry, grade, task_done, total
from llmkata.policy import Grade
from llmkata.records import (
    CheckRecord,
    Diagnosis,
    Evidence,
    ExerciseRecord,
    Measure,
    Outcome,
    Provenance,
    State,
)

from .by_hand import HandCard, hand_card, voided
from .policy import Audience, Level, allowed, in_one, withheld
from .text import line, plain

if TYPE_CHECKING:
    from llmkata.course import Course, Exercise

SCHEMA = "llmkata/scorecard/v1"


class CheckCard(msgspec.Struct, forbid_unknown_fields=True):
    """One check, as far as the feedback policy lets its reader see."""

    id: Annotated[str, Meta(description="Unique within the exercise: file::function.")]
    name: Annotated[str, Meta(description="The function's name; `kata check EXERCISE --only NAME` reruns it.")]
    title: str
    visibility: Annotated[str, Meta(description="visible or hidden")]
    kind: Annotated[str, Meta(description="correctness or budget")]
    outcome: Outcome
    points: float
    max_points: float
    cause: Annotated[str, Meta(description="Why points were lost; never empty unless passed.")]
    diagnosis: Diagnosis | None
    evidence: Evidence | None
    hints: list[str]
    measures: list[Measure]
    flags: Annotated[list[str], Meta(description="For staff; empty on a learner's card.")]
    staff_output: Annotated[str, Meta(description="For staff; empty on a learner's card.")]
    voided: Annotated[str, Meta(description="What became of a check that was found wrong, and why; else empty.")] = ""


class TaskCard(msgspec.Struct, forbid_unknown_fields=True):
    """A numbered task of the brief with its checks, visible ones first."""

    number: int
    title: str
    tier: Annotated[str, Meta(description="core or stretch")]
    outcome: Annotated[Outcome, Meta(description="passed: every check that counts; failed: at least one failed.")]
    started: Annotated[bool, Meta(description="False where the task is still as it was given out.")]
    points: float
    max_points: float
    checks: list[CheckCard]


class AttemptCard(msgspec.Struct, forbid_unknown_fields=True):
    """One check of the exercise by its learner, from the first to the last."""

    graded_at: str
    standing: Standing
    points: float
    max_points: float
    tasks_done: int
    tasks_total: int
    failed: Annotated[str, Meta(description="Name of the first check that failed; empty where none did.")]


class ExerciseCard(msgspec.Struct, forbid_unknown_fields=True):
    """One exercise of the learner."""

    id: str
    number: Annotated[str, Meta(description="Place in the course, e.g. 2.1; empty for an exercise it does not have.")]
    title: str
    mission: str
    counted: Annotated[bool, Meta(description="Whether it counts in the total.")]
    weight: float
    standing: Standing
    points: float
    max_points: float
    percent: Annotated[
        float | None, Meta(description="Of the points, as it counts in the total; null where not judged.")
    ]
    tasks_done: int
    tasks_total: int
    cause: Annotated[str, Meta(description="Why there is nothing to grade; empty where the exercise was graded.")]
    evidence: Evidence | None
    next_check: Annotated[str, Meta(description="Id of the check to look at first; empty where none failed.")]
    tasks: list[TaskCard]
    files: list[str]
    ignored: list[str]
    notes: list[str]
    submitted_at: str
    graded_at: str
    provenance: Provenance | None
    history: Annotated[list[AttemptCard], Meta(description="All attempts, on a learner's own card; else empty.")] = []
    hints_opened: Annotated[dict[str, int], Meta(description="Name of a check -> levels of its hints opened.")] = {}
    hints_cost: Annotated[float, Meta(description="Percent of the points that the hints cost; percent is after it.")] = 0
    given_up: Annotated[str, Meta(description="When the solution was opened without passing; empty if never.")] = ""
    deduction: Annotated[float, Meta(description="Percent of the points taken off for lateness; percent is after it.")] = 0
    late: Annotated[str, Meta(description="How late it was handed in and what that costs; empty in time.")] = ""
    due: Annotated[str, Meta(description="The learner's deadline, extension included; empty where there is none.")] = ""
    extra: Annotated[bool, Meta(description="Whether it is extra credit: it comes on top of the total.")] = False
    dropped: Annotated[bool, Meta(description="Whether the total leaves it out, as one that costs it most.")] = False
    by_hand: Annotated[HandCard, Meta(description="What people put beside the checks.")] = msgspec.field(
        default_factory=HandCard
    )


class TotalCard(msgspec.Struct, forbid_unknown_fields=True):
    """The course total."""

    percent: Annotated[float | None, Meta(description="0..100: weighted mean of the exercises that count.")]
    weight: Annotated[float, Meta(description="Sum of the weights behind percent.")]
    pending: Annotated[float, Meta(description="Sum of the weights left out: the grader failed there.")]
    exercises: Annotated[int, Meta(description="Exercises that count.")]
    planned: Annotated[int, Meta(description="Exercises of the course that are not out yet and do not count.")]
    standings: Annotated[dict[str, int], Meta(description="Exercises that count, by standing.")]


class Scorecard(msgspec.Struct, forbid_unknown_fields=True):
    """A learner's scorecard. Every number comes from the records of the run."""

    schema: Annotated[str, Meta(pattern=f"^{SCHEMA}$")]
    course: str
    learner: str
    audience: Audience
    feedback: Annotated[Level, Meta(description="How much is told about failed hidden checks.")]
    graded_at: Annotated[str, Meta(description="The latest stamp of the records.")]
    total: TotalCard
    exercises: list[ExerciseCard]


@dataclass(frozen=True)
class Past:
    """What a learner's own folder knows beyond the records that stand."""

    #: Every record, in the order they were made.
    records: Sequence[ExerciseRecord] = ()
    #: Exercise id -> name of a check -> levels of its hints opened.
    hints: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    #: Exercise id -> when its solution was opened without passing.
    given_up: Mapping[str, str] = field(default_factory=dict)


def scorecard(
    learner: str, records: Iterable[ExerciseRecord], course: Course, *,
    feedback: Level | None = None, audience: Audience = "learner", past: Past | None = None,
    now: datetime | None = None,
) -> Scorecard:
    """The card of one learner from the records that stand (one per exercise; those of others are passed over).

    ``feedback`` is the level for hidden checks; by default the course's. Exercises the course has, in its order, come
    first; available ones without a record are "not started", planned ones without a record are left out. ``past``: what
    a learner's own card tells of how they got there. ``now``: whether a deadline has passed, where the course shows
    hidden checks only then; by default the present.
    """
    level: Level = feedback or course.policy.feedback.hidden
    levels = {"hidden": level, "visible": course.policy.feedback.visible}
    mine = {record.exercise: record for record in records if record.learner == learner}
    opened = {name: sum(levels.values()) for name, levels in past.hints.items()} if past is not None else {}
    entries = {name: entry(record) for name, record in mine.items()}
    known = {exercise.id: exercise for exercise in course.exercises}
    cards = [
        _exercise(
            exercise, mine.get(exercise.id), entries.get(exercise.id), learner, course, levels, audience,
            "" if audience == "staff" else withheld(course, exercise.module, learner, now or datetime.now(UTC)),
            opened.get(exercise.id, 0),
        )
        for exercise in course.exercises if exercise.available or exercise.id in mine
    ]
    cards += [
        _exercise(None, record, entries[name], learner, course, levels, audience, "")
        for name, record in mine.items() if name not in known
    ]
    for card in cards if past is not None else ():
        card.history = [_attempt(r) for r in past.records if r.learner == learner and line(r.exercise) == card.id]
        card.hints_opened = {line(name): level for name, level in past.hints.get(card.id, {}).items()}
        card.given_up = line(past.given_up.get(card.id, ""))
    reached = total(course, entries, hints_opened=opened)
    for card in cards:
        card.dropped = card.id in reached.dropped
    return Scorecard(
        schema=SCHEMA, course=line(course.title), learner=line(learner) or "(no name)",
        audience=audience, feedback=level,
        graded_at=max((record.graded_at for record in mine.values()), default=""),
        total=TotalCard(
            percent=reached.percent, weight=reached.weight, pending=reached.pending,
            exercises=len(course.available), planned=len(course.exercises) - len(course.available),
            standings={where.value: count for where, count in reached.standings.items()},
        ),
        exercises=cards,
    )


def _exercise(
    exercise: Exercise | None, record: ExerciseRecord | None, known: Entry | None, learner: str, course: Course,
    levels: dict[str, Level], audience: Audience, hiding: str, hints_opened: int = 0,
) -> ExerciseCard:
    """A card from what the course says about the exercise, what the record says, or both."""
    name = exercise.id if exercise else record.exercise if record else ""
    checks = [check for check in record.checks if check.kind != RUBRIC] if record else []
    tasks = _tasks(exercise, checks, levels, audience, hiding)
    for check in (check for task in tasks for check in task.checks):
        check.voided = voided(course, name, check.id)
    known = known or Entry(learner=learner, exercise=name, standing=Standing.not_started)
    made = grade(course, exercise, known, hints_opened) if exercise else Grade(known.fraction(course.policy.weights))
    graded = record is not None and record.state is State.graded
    return ExerciseCard(
        id=line(name), number=exercise.number if exercise else "", title=line(exercise.title if exercise else name),
        mission=line(exercise.mission) if exercise else "",
        counted=bool(exercise and exercise.available), weight=exercise.weight if exercise else 0.0,
        standing=known.standing, points=known.points, max_points=known.max_points,
        percent=None if made.counted is None else 100.0 * made.counted,
        tasks_done=known.tasks_done, tasks_total=max(known.tasks, len(tasks)),
        cause=line(record.cause) if record else "",
        evidence=_evidence(record.evidence) if record and record.evidence else None,
        next_check=_next_check(tasks) if graded else "",
        tasks=tasks if graded else [],
        files=_lines(record.files) if record else [], ignored=_lines(record.ignored) if record else [],
        notes=_lines(record.notes) if record else [],
        submitted_at=line(record.submitted_at) if record else "", graded_at=line(record.graded_at) if record else "",
        provenance=_provenance(record, audience) if record and record.provenance else None,
        deduction=100.0 * made.deduction, hints_cost=100.0 * made.hints, late=made.why if made.days_late else "", due=f"{made.due:%Y-%m-%d %H:%M %Z}" if made.due else "",
        extra=bool(exercise and exercise.slug in course.policy.grading.extra_credit.exercises),
        by_hand=hand_card(course, exercise, learner, made, graded, audience) if exercise else HandCard(),
    )


def _attempt(record: ExerciseRecord) -> AttemptCard:
    known = entry(record)
    failed = [check for check in record.checks if check.outcome is Outcome.failed]
    first = min(failed, key=lambda check: check.task, default=None)
    return AttemptCard(
        line(record.graded_at), known.standing, known.points, known.max_points, known.tasks_done, known.tasks,
        line(first.id).rpartition("::")[2] if first else "",
    )


def _provenance(record: ExerciseRecord, audience: Audience) -> Provenance:
    """A seed that is not the public one would give a learner the hidden inputs."""
    provenance = _clean(record.provenance, line)
    secret = audience == "learner" and provenance.seed != 0
    return msgspec.structs.replace(provenance, seed=None) if secret else provenance


def _tasks(
    exercise: Exercise | None, checks: list[CheckRecord], levels: dict[str, Level], audience: Audience, hiding: str
) -> list[TaskCard]:
    titles = {task.number: (task.title, task.tier) for task in exercise.tasks} if exercise else {}
    by_task: dict[int, list[CheckRecord]] = {number: [] for number in titles}
    for check in checks:
        by_task.setdefault(check.task, []).append(check)
    cards = []
    for number, group in sorted(by_task.items()):
        title, tier = titles.get(number, ("", group[0].tier if group else "core"))
        shown = [
            _check(allowed(check, levels.get(check.visibility, levels["hidden"]), audience))
            for check in sorted(in_one(group, number, hiding), key=lambda check: check.visibility != "visible")
        ]
        cards.append(TaskCard(
            number=number, title=line(title), tier=tier, outcome=_outcome(group), started=_started(group),
            points=sum(check.points for check in group), max_points=sum(check.max_points for check in group),
            checks=shown,
        ))
    return cards


def _outcome(checks: list[CheckRecord]) -> Outcome:
    if task_done(checks):
        return Outcome.passed
    failed = any(check.outcome is Outcome.failed for check in checks if not check.excused)
    return Outcome.failed if failed else Outcome.not_judged


def _started(checks: list[CheckRecord]) -> bool:
    """Whether any check that was judged came to something else than "not started"."""
    judged = [check for check in checks if check.outcome is not Outcome.not_judged]
    return not judged or not all(check.not_started for check in judged)


def _next_check(tasks: list[TaskCard]) -> str:
    """The first failed check; core tasks come first, and where a mistake was recognised it is the best start."""
    failed = [(task, check) for task in tasks for check in task.checks if check.outcome is Outcome.failed]
    failed.sort(key=lambda pair: (pair[0].tier != "core", pair[0].number, pair[1].diagnosis is None))
    return failed[0][1].id if failed else ""


def _check(check: CheckRecord) -> CheckCard:
    return CheckCard(
        id=line(check.id), name=line(check.id).rpartition("::")[2], title=line(check.title),
        visibility=check.visibility, kind=check.kind, outcome=check.outcome,
        points=check.points, max_points=check.max_points, cause=line(check.cause),
        diagnosis=_clean(check.diagnosis, line) if check.diagnosis else None,
        evidence=_evidence(check.evidence) if check.evidence else None,
        hints=_lines(check.hints), measures=[_clean(measure, line) for measure in check.measures],
        flags=_lines(check.flags), staff_output=plain(check.staff_output),
    )


def _evidence(evidence: Evidence) -> Evidence:
    shown = _clean(evidence, lambda text: plain(text).strip("\n"))
    return msgspec.structs.replace(shown, summary=line(shown.summary), frames=_lines(shown.frames))


def _lines(texts: Iterable[str]) -> list[str]:
    return [flat for flat in map(line, texts) if flat]


def _clean(value: Any, clean: Callable[[str], str]) -> Any:
    """A copy of a structure with every text in it made plain; closed lists (enums) stay."""
    if isinstance(value, msgspec.Struct):
        fields = msgspec.structs.asdict(value)
        return type(value)(**{name: _clean(field, clean) for name, field in fields.items()})
    if type(value) is str:
        return clean(value)
    if isinstance(value, dict):
        return {clean(key): _clean(item, clean) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_clean(item, clean) for item in value)
    return value
