"""``kata replay``: a fresh input of the class a check failed on, as a small script to debug with."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from llmkata.cli.common import course_of, exercise_of, fail, prog, shown, state_dir

if TYPE_CHECKING:
    from llmkata.course import Course, Exercise

#: Seeds tried before a check is said to pass.
_TRIES = 5

_SCRIPT = '''"""{what}, as {check} called it when it failed (seed {seed})."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, {folder!r})
import {slug}

case = torch.load(Path(__file__).with_suffix(".pt"), weights_only=True)
{arrays}print({slug}.{what}(*case["args"], **case["kwargs"]))
'''

#: Arrays are stored as tensors; the script turns them back.
_ARRAYS = """as_array = lambda x: x.numpy() if isinstance(x, torch.Tensor) else x
case = {"args": [as_array(x) for x in case["args"]], "kwargs": {k: as_array(x) for k, x in case["kwargs"].items()}}
"""


def replay(
    context: typer.Context,
    exercise: Annotated[str, typer.Argument(help="For example module2/self_attention, or 2.1.", metavar="EXERCISE")],
    check: Annotated[str, typer.Argument(help="Name of a check, for example test_three_tokens.", metavar="CHECK")],
    seed: Annotated[int | None, typer.Option(help="Draw this input again.", metavar="S", min=1)] = None,
) -> None:
    """Make a fresh input of the class a check fails on, and a script that runs your code on it.

    Each call draws another input; '--seed' draws one again.

    Exit status: 0 a script was written; 1 the check passes on fresh inputs; 2 there is no such check, or its input
    cannot be written down.
    """
    course = course_of(context)
    found = exercise_of(course, exercise)
    failing = _failing_call(course, found, check, [seed] if seed else [secrets.randbelow(1 << 31) + 1 for _ in range(_TRIES)])
    if failing is None:
        typer.echo(f"{check} passes on fresh inputs.")
        raise typer.Exit(1)
    used, name, call = failing
    if call is None or "." in call.what or not _plain((call.args, call.kwargs)):
        fail(f"the input of {name} cannot be written down: it hands over objects of your own", f"{prog()} check {found.id} "
             f"--only {name}")
    import torch

    folder = state_dir(course) / "replay"
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / f"{found.slug}_{name}.py"
    torch.save({"args": _as_torch(call.args), "kwargs": _as_torch(call.kwargs)}, script.with_suffix(".pt"))
    script.write_text(_SCRIPT.format(what=call.what, check=name, seed=used, folder=str(found.folder),
                                     slug=found.slug, arrays=_ARRAYS if _has_arrays((call.args, call.kwargs)) else ""), "utf-8")
    typer.echo(f"{shown(script)}\nrun it {shown(Path(sys.executable))} {shown(script)}\n"
               f"again  {prog()} replay {found.id} {name} --seed {used}")


def _failing_call(course: Course, exercise: Exercise, check: str, seeds: Any) -> tuple[int, str, Any] | None:
    """-> (seed, check, its last call) of the first seed on which the check fails."""
    from llmkata.grading.runner import check_files, run_pytest
    from llmkata.plugin.core import KataPlugin
    from llmkata.plugin.runs import ExerciseRun, Setting
    from llmkata.records import CheckRecord, Outcome

    met: list[CheckRecord] = []
    for seed in seeds:
        run = ExerciseRun(exercise, Setting(seed=seed), exercise.stub.read_bytes(), str(exercise.stub))
        failed: list[tuple[str, Any]] = []

        def keep(record: CheckRecord, run: ExerciseRun = run, failed: list = failed) -> None:
            met.append(record)
            if record.outcome is Outcome.failed:
                failed.append((record.id.rpartition("::")[2], run.link.transcript.last_call))

        plugin = KataPlugin(lambda path, run=run: run, seed, only=check, on_record=keep, diagnosing=False)
        problem = run_pytest(check_files(exercise, False), exercise.root, plugin)
        if problem:
            fail(f"the checks cannot be run: {problem}")
        if not met:
            _no_such_check(course, exercise, check)
        if failed:
            return seed, *failed[0]
    return None


def _no_such_check(course: Course, exercise: Exercise, check: str) -> NoReturn:
    from llmkata.cli.hidden import has_hidden
    from llmkata.course.faults import did_you_mean
    from llmkata.grading.runner import collect

    names = list(dict.fromkeys(ident.rpartition("::")[2].partition("[")[0] for ident in collect(exercise)))
    near = did_you_mean("test_" + check.removeprefix("test_"), names)
    known = near or f"; its checks are {', '.join(names)}"
    elsewhere = "" if has_hidden(exercise) else " (hidden checks are with your instructor)"
    fail(f"{exercise.id} has no check {check!r}{known}{elsewhere}", f"{prog()} replay {exercise.id} NAME")


def _plain(tree: Any) -> bool:
    import numpy as np
    import torch

    if isinstance(tree, (tuple, list)):
        return all(map(_plain, tree))
    if isinstance(tree, dict):
        return all(map(_plain, tree.values()))
    return tree is None or isinstance(tree, (bool, int, float, str, torch.Tensor, np.ndarray, torch.dtype))


def _has_arrays(tree: Any) -> bool:
    import numpy as np

    if isinstance(tree, (tuple, list)):
        return any(map(_has_arrays, tree))
    if isinstance(tree, dict):
        return any(map(_has_arrays, tree.values()))
    return isinstance(tree, np.ndarray)


def _as_torch(tree: Any) -> Any:
    """Plain data as ``torch.load(weights_only=True)`` takes it: it knows tensors, not arrays."""
    import numpy as np
    import torch

    if isinstance(tree, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(map(_as_torch, tree))
    if isinstance(tree, dict):
        return {k: _as_torch(v) for k, v in tree.items()}
    return tree
