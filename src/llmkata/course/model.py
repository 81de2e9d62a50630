"""The course as the rest of the project sees it: plain frozen structures and the places of files."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from re import fullmatch
from typing import Any, Literal

import msgspec

from .by_hand import Criterion
from .faults import UnknownExercise
from .grading import Grading

Tier = Literal["core", "stretch"]


class Task(msgspec.Struct, frozen=True):
    """A numbered task of a brief. Core tasks make *passed*, all of them make *mastered*."""

    number: int
    title: str
    tier: Tier


class Hours(msgspec.Struct, frozen=True):
    """A learner's time, in hours: for the core tier alone, and for everything."""

    core: float
    total: float


class Exercise(msgspec.Struct, frozen=True, kw_only=True):
    """One exercise. ``id`` is ``module2/self_attention``, ``number`` is ``2.1``."""

    root: Path
    module: int
    number: str
    slug: str
    title: str
    mission: str
    difficulty: int
    hours: Hours
    prerequisites: tuple[str, ...]
    weight: float
    profile: Literal["base", "optim", "matplotlib", "transformers", "text", "numba"]
    #: Only the grants given; units: ``memory`` MiB, ``cpu`` and ``wall`` seconds, ``threads`` and ``processes`` counts.
    grants: dict[str, Any]
    components: tuple[str, ...]
    status: Literal["available", "planned"]
    tasks: tuple[Task, ...]
    #: Seconds that grading one submission may take.
    wall: float
    #: What is marked by hand.
    rubric: tuple[Criterion, ...] = ()

    @property
    def id(self) -> str:
        return f"module{self.module}/{self.slug}"

    @property
    def available(self) -> bool:
        return self.status == "available"

    def task(self, number: int) -> Task:
        """The task of that number; ``KeyError`` names the exercise and the tasks it has."""
        if 1 <= number <= len(self.tasks):
            return self.tasks[number - 1]
        raise KeyError(f"{self.id} has no task {number}: its tasks are 1 to {len(self.tasks)}")

    def criterion(self, name: str) -> Criterion:
        """The criterion of the rubric of that name; ``KeyError`` names the exercise and the criteria it has."""
        for criterion in self.rubric:
            if criterion.name == name:
                return criterion
        known = ", ".join(criterion.name for criterion in self.rubric) or "none"
        raise KeyError(f"{self.id} has no criterion {name!r} in its rubric: it has {known}")

    @property
    def folder(self) -> Path:
        return self.root / "exercises" / f"module{self.module}" / self.slug

    @property
    def stub(self) -> Path:
        return self.folder / f"{self.slug}.py"

    @property
    def brief(self) -> Path:
        return self.folder / "README.md"

    @property
    def visible_checks(self) -> Path:
        return self.folder / f"test_{self.slug}.py"

    @property
    def feedback(self) -> Path:
        return self.folder / "feedback.json"

    @property
    def solution(self) -> Path:
        return self.root / "solutions" / f"module{self.module}" / f"{self.slug}.py"

    @property
    def reference(self) -> Path:
        return self.root / "reference" / f"module{self.module}" / f"{self.slug}.py"

    @property
    def graders_dir(self) -> Path:
        return self.root / "graders" / f"module{self.module}" / self.slug


class Module(msgspec.Struct, frozen=True):
    number: int
    title: str
    objective: str
    exercises: tuple[Exercise, ...]


class Feedback(msgspec.Struct, frozen=True):
    """How much of a failure the learner reads, for visible and for hidden checks."""

    visible: str
    hidden: str
    #: When a learner's card tells of single hidden checks; otherwise it tells what their tasks came to.
    show_hidden: Literal["always", "after_deadline", "never"] = "always"


class Weights(msgspec.Struct, frozen=True):
    """What one point of each tier counts for in the course grade."""

    core: float
    stretch: float


class CI(msgspec.Struct, frozen=True):
    """What ``kata ci`` does with a result."""

    #: What fails a run: a core task that was begun, any task that was begun, or nothing.
    fail_on: Literal["core", "any", "never"] = "core"
    #: Judgements by hidden checks that a learner gets for an exercise within ``hours``; None: as many as they like.
    attempts: int | None = None
    hours: float = 24.0


class Hints(msgspec.Struct, frozen=True):
    """What hints cost on a learner's own card, in percent of the points an exercise is worth. By default nothing."""

    #: For each hint opened.
    price: float = 0.0
    #: Hints of an exercise that cost nothing.
    free: int = 0
    #: The most that the hints of an exercise cost.
    at_most: float = 100.0


class Policy(msgspec.Struct, frozen=True):
    isolation: Literal["process", "sandbox"]
    seed_env: str
    feedback: Feedback
    weights: Weights
    ci: CI = CI()
    grading: Grading = Grading()
    hints: Hints = Hints()


class Limits(msgspec.Struct, frozen=True):
    """Defaults: ``wall``, ``call``, ``cpu`` in seconds, ``memory`` in MiB, ``output`` and ``submission`` in KiB."""

    wall: float
    call: float
    cpu: float
    memory: int
    output: int
    submission: int


class Course(msgspec.Struct, frozen=True):
    root: Path
    title: str
    policy: Policy
    limits: Limits
    modules: tuple[Module, ...]

    @property
    def exercises(self) -> tuple[Exercise, ...]:
        """Every exercise, planned ones too, in course order."""
        return tuple(exercise for module in self.modules for exercise in module.exercises)

    @property
    def available(self) -> tuple[Exercise, ...]:
        return tuple(exercise for exercise in self.exercises if exercise.available)

    def narrowed(self, ids: Collection[str]) -> Course:
        """The course in which no other exercises than these count: the rest is treated as planned."""
        modules = tuple(
            msgspec.structs.replace(
                module,
                exercises=tuple(
                    e if e.id in ids else msgspec.structs.replace(e, status="planned") for e in module.exercises
                ),
            )
            for module in self.modules
        )
        return msgspec.structs.replace(self, modules=modules)

    def exercise(self, name: str | Path) -> Exercise:
        """Find an exercise by identifier, number, slug, or the path of its folder or of any file of it.

        Raises :class:`UnknownExercise`, with the nearest identifiers, where nothing answers to ``name``.
        """
        key = _key(str(name))
        for exercise in self.exercises:
            if key in (exercise.id, exercise.number, exercise.slug):
                return exercise
        raise UnknownExercise(str(name), self._nearest(key))

    def _nearest(self, key: str) -> list[str]:
        names = {exercise.slug: exercise.id for exercise in self.exercises}
        names |= {exercise.id: exercise.id for exercise in self.exercises}
        names |= {exercise.title.lower(): exercise.id for exercise in self.exercises}
        word = key.lower().replace("-", "_").replace(" ", "_")
        containing = [identifier for name, identifier in names.items() if len(word) >= 3 and word in name]
        close = [names[name] for name in get_close_matches(word, names, n=3, cutoff=0.6)]
        return list(dict.fromkeys(close + containing))[:3]


def _key(name: str) -> str:
    """``exercises/module2/self_attention/self_attention.py`` -> ``module2/self_attention``; other names as they are."""
    parts = PurePosixPath(name.strip().replace("\\", "/")).parts
    for place in range(len(parts) - 2, -1, -1):
        if fullmatch(r"module\d+", parts[place]):
            return f"{parts[place]}/{parts[place + 1].removesuffix('.py')}"
    return parts[-1].removesuffix(".py") if parts else ""
