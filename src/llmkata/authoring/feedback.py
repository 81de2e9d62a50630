"""Makes ``feedback.json`` of an exercise by running every known mistake against the visible checks."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmkata.grading.provenance import tree_hash

#: To be raised where the requests of a check, or the answers, are written down otherwise than before.
_REQUESTS = 2


def made_from(exercise: Any) -> str:
    """What the file is made from: the form of requests, and a hash of checks, mistakes and model answer."""
    paths = (exercise.visible_checks, exercise.solution, *sorted(exercise.graders_dir.glob("*.py")))
    return f"{_REQUESTS}:{tree_hash(*(p for p in paths if p.exists()))}"


def is_made(exercise: Any) -> bool:
    """Whether the exercise has a ``feedback.json`` at all: it has known mistakes to tell of."""
    return (exercise.graders_dir / "misconceptions.py").exists() and exercise.visible_checks.exists()


def sync_all(course: Any, exercises: Iterable[Any], *, check: bool) -> int:
    """Write each ``feedback.json`` that is out of date, or with ``check`` only say so. Returns the exit status: 0 in
    step, 1 drift found by ``check``, 2 the visible checks cannot be run."""
    status = 0
    for exercise in exercises:
        if not is_made(exercise) or is_fresh(exercise):
            continue
        if check:
            print(f"{exercise.id}: feedback.json is out of step with checks and mistakes; run: kata sync {exercise.id}",
                  file=sys.stderr)
            status = max(status, 1)
            continue
        try:
            changed = write(course, exercise)
        except RuntimeError as error:
            print(f"{exercise.id}: {error}", file=sys.stderr)
            status = 2
        else:
            print(f"{exercise.id}: feedback.json written" + (f"\n{changed}" if changed else ""))
    return status


def is_fresh(exercise: Any) -> bool:
    """Whether ``feedback.json`` was made from the files as they are. Never imports torch."""
    try:
        return json.loads(exercise.feedback.read_text("utf-8"))["made_from"] == made_from(exercise)
    except (OSError, ValueError, KeyError):
        return False


def write(course: Any, exercise: Any) -> str:
    """Write ``feedback.json`` -> "" or how it changed (a unified diff of the mistakes' names by check)."""
    before = _overview(exercise.feedback)
    text = json.dumps(build(course, exercise), indent=1, ensure_ascii=False)
    exercise.feedback.write_text(text + "\n", "utf-8")
    return "\n".join(difflib.unified_diff(before, _overview(exercise.feedback), lineterm=""))


def build(course: Any, exercise: Any) -> dict[str, Any]:
    """The content of ``feedback.json`` (see ``checks.feedback``)."""
    from llmkata.checks import feedback
    from llmkata.checks.misconceptions import load

    mistakes = []
    for m in load(exercise.graders_dir / "misconceptions.py"):
        found = _wrong_answers(exercise, m)
        mistakes.append({"name": m.name, "feedback": m.feedback, "equivalent_to": m.equivalent_to, "answers": found})
    return {"schema": feedback.SCHEMA, "exercise": exercise.id, "made_from": made_from(exercise),
            "checks": _hints(exercise), "mistakes": mistakes}


def _wrong_answers(exercise: Any, mistake: Any) -> dict[str, list[list[str]]]:
    """Answers of the model answer with ``mistake`` in it to each visible check it fails."""
    from llmkata.checks import feedback
    from llmkata.grading.runner import check_files, run_pytest
    from llmkata.plugin.core import KataPlugin
    from llmkata.plugin.runs import ExerciseRun, Setting
    from llmkata.records import CheckRecord, Outcome

    out: dict[str, list[list[str]]] = {}
    run = ExerciseRun(exercise, Setting(), exercise.solution.read_bytes(), f"{exercise.slug}.py", mistake=mistake)

    def keep(record: CheckRecord) -> None:
        if record.outcome is Outcome.failed and run.link.transcript.complete:
            stored = feedback.answers(run.link.transcript.exchanges)
            if stored:
                out[record.id] = stored

    plugin = KataPlugin(lambda path: run, 0, on_record=keep, diagnosing=False)
    problem = run_pytest(check_files(exercise, True), exercise.root, plugin)
    if problem:
        raise RuntimeError(problem)
    return out


def _hints(exercise: Any) -> list[dict[str, Any]]:
    """Ids, titles, tasks and hints of all checks, hidden ones too: a hint holds no answer."""
    from llmkata.grading.runner import check_files, run_pytest
    from llmkata.plugin.core import KataPlugin
    from llmkata.plugin.runs import ExerciseRun, Setting

    run = ExerciseRun(exercise, Setting(), b"", exercise.slug)
    plugin = KataPlugin(lambda path: run, 0)
    problem = run_pytest(check_files(exercise, False), exercise.root, plugin, "--collect-only")
    if problem:
        raise RuntimeError(problem)
    return [{"id": c.id, "title": c.title, "task": c.task, "hints": c.hints} for c in plugin.checks()]


def _overview(path: Path) -> list[str]:
    try:
        mistakes = json.loads(path.read_text("utf-8"))["mistakes"]
    except (OSError, ValueError, KeyError):
        return []
    return [f"{m['name']}: {check}" for m in mistakes for check in sorted(m["answers"])]
