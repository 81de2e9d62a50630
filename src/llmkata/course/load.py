"""``course.yaml`` -> :class:`Course`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .by_hand import Criterion
from .faults import CourseError, Fault
from .grading import check_grading, make_grading
from .model import CI, Course, Exercise, Feedback, Hints, Hours, Limits, Module, Policy, Task, Weights
from .nodes import BAD, Reader
from .rules import check
from .schema import COURSE

FILE = "course.yaml"


def load_course(root: Path | str) -> Course:
    """Read and validate ``root/course.yaml``.

    Raises :class:`CourseError` holding every fault found, each with file, line and field: unknown key, wrong type,
    duplicate slug or number, unknown or circular prerequisite, unknown grant, task numbering, missing file.
    """
    path = Path(root) / FILE
    # Whole, since judging happens in folders of its own; faults name the file as it was given.
    root = Path(root).resolve()
    reader = Reader(str(path))
    raw = COURSE(reader, _compose(path), "")
    if raw is not BAD and raw["modules"] is not BAD:
        check(reader, raw["modules"], root)
        if raw["policy"] is not BAD and raw["policy"]["grading"] is not BAD:
            check_grading(reader, raw["policy"]["grading"], raw["modules"])
    if reader.faults:
        raise CourseError.of(reader.faults)
    limits = Limits(**raw["limits"])
    policy = raw["policy"]
    return Course(
        root=root, title=raw["title"], limits=limits,
        policy=Policy(
            policy["isolation"], policy["seed_env"], Feedback(**policy["feedback"]), Weights(**policy["weights"]),
            ci=CI(**policy["ci"]), grading=make_grading(policy["grading"]), hints=Hints(**policy["hints"]),
        ),
        modules=tuple(_module(module, root, limits) for module in raw["modules"]),
    )


def _compose(path: Path) -> yaml.Node:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=loader)
    except FileNotFoundError:
        raise CourseError(f"{path}: no such file; a course is a folder with a {FILE}") from None
    except (UnicodeDecodeError, yaml.reader.ReaderError) as error:
        raise CourseError.of([Fault(str(path), 1, "", f"is not UTF-8 text: {error}")]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise CourseError.of([Fault(str(path), mark.line + 1, "", f"not YAML: {error.problem}")]) from None
    if node is None:
        raise CourseError.of([Fault(str(path), 1, "", "is empty")])
    return node


def _module(raw: dict[str, Any], root: Path, limits: Limits) -> Module:
    position = raw["number"][0]
    return Module(
        position, raw["title"], raw["objective"],
        tuple(_exercise(exercise, position, root, limits) for exercise in raw["exercises"]),
    )


def _exercise(raw: dict[str, Any], module: int, root: Path, limits: Limits) -> Exercise:
    plain = {key: raw[key] for key in ("title", "mission", "difficulty", "weight", "profile")}
    return Exercise(
        **plain, root=root, module=module, number=raw["number"][0], slug=raw["slug"][0], status=raw["status"][0],
        grants=dict(raw["grants"]),
        hours=Hours(**raw["hours"][0]), prerequisites=tuple(name for name, _ in raw["prerequisites"]),
        components=tuple(name for name, _ in raw["components"]), tasks=tuple(Task(**task) for task, _ in raw["tasks"]),
        wall=raw["grants"].get("wall", limits.wall),
        rubric=tuple(Criterion(**criterion) for criterion, _ in raw["rubric"]),
    )
