"""kata ci where graders are present: what it judges, what it writes, when it fails, how often it may be asked."""

from __future__ import annotations

import base64
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmkata.course import load_course
from llmkata.grading.worth import worth

TOY = Path(__file__).parents[1] / "toy"
STUB = "exercises/module1/toy/toy.py"
SOLUTION = (TOY / "solutions/module1/toy.py").read_text("utf-8")
#: Everything passes but the stretch task.
CORE_ONLY = SOLUTION + "\n\ndef row_sums(*args, **more):\n    raise RuntimeError('::warning::x')\n"
VARIABLES = (
    "GITHUB_ACTIONS",
    "GITHUB_OUTPUT",
    "GITHUB_STEP_SUMMARY",
    "SUBMISSION_TAG",
    "KATA_SIGNING_KEY",
    "KATA_SIGNING_KEY_FILE",
)


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A clone of the toy course, which is also the current folder; no variable of a runner is set."""
    root = tmp_path / "course"
    shutil.copytree(TOY, root, ignore=shutil.ignore_patterns("__pycache__", "conftest.py", "harness.py", ".kata"))
    monkeypatch.chdir(root)
    monkeypatch.setenv("COLUMNS", "100")
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    yield root
    # pytest keeps the checks it collected by their path within the course: every copy has the same.
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(root)):
            del sys.modules[name]


def result(course: Path) -> dict:
    return json.loads((course / ".kata/ci/result.json").read_text("utf-8"))


def test_an_untouched_clone_has_nothing_to_judge(course: Path, kata) -> None:
    done = kata("ci")
    assert (done.status, done.out.strip()) == (0, "Nothing was begun yet: nothing to judge.")
    assert not (course / ".kata/ci/records.jsonl").exists()
    assert (result(course)["max_score"], result(course)["status"]) == (21, "pass")


def test_without_a_runner_it_is_a_report_and_files(course: Path, kata) -> None:
    (course / STUB).write_text(SOLUTION)
    done = kata("ci")
    assert done.status == 0, done.out + done.err
    assert "::" not in done.out
    assert "Nothing that counts failed. 1 of 1 exercises begun; 21 of 21 points." in done.out
    told = result(course)
    assert (told["status"], told["max_score"], sum(t["score"] for t in told["tests"])) == ("pass", 21, 21)
    assert "| 1.1 | Toy operations | ★ mastered |" in (course / ".kata/ci/summary.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("words", "policy", "status"),
    [
        ((), "", 0),
        (("--fail-on", "any"), "", 1),
        ((), "  ci: {fail_on: any}\n", 1),
        (("--fail-on", "never"), "  ci: {fail_on: any}\n", 0),
    ],
)
def test_what_fails_a_run_is_policy(course: Path, kata, words: tuple, policy: str, status: int) -> None:
    text = (course / "course.yaml").read_text()
    assert "limits:" in text
    (course / "course.yaml").write_text(text.replace("limits:", f"{policy}limits:", 1))
    (course / STUB).write_text(CORE_ONLY)
    done = kata("ci", *words)
    assert done.status == status, done.out + done.err
    assert result(course)["status"] == ("fail" if status else "pass")
    assert any(t["status"] == "fail" for t in result(course)["tests"])


def test_a_core_task_that_fails_fails_the_run(course: Path, kata) -> None:
    (course / STUB).write_text(SOLUTION.replace("return x @ w", "return x @ w + 1"))
    assert kata("ci").status == 1
    assert kata("ci", "--fail-on", "never").status == 0


def test_under_actions(course: Path, kata, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (course / STUB).write_text(CORE_ONLY)
    for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    (tmp_path / "GITHUB_OUTPUT").write_text("before=1\n")
    done = kata("ci", "1.1")
    [error] = [line for line in done.out.splitlines() if line.startswith("::error ")]
    assert error.startswith(f"::error file={STUB},line=")
    assert "task 4" in error
    output = dict(line.split("=", 1) for line in (tmp_path / "GITHUB_OUTPUT").read_text().splitlines())
    assert (output["before"], output["status"]) == ("1", "pass")
    assert json.loads(base64.b64decode(output["result"])) == result(course)
    assert (tmp_path / "GITHUB_STEP_SUMMARY").read_text("utf-8") == (course / ".kata/ci/summary.md").read_text("utf-8")


def test_a_file_of_the_runner_that_cannot_be_written_is_told(
    course: Path, kata, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_OUTPUT", "/nowhere/output")
    done = kata("ci")
    assert done.status == 2
    assert "GITHUB_OUTPUT" in done.err


def test_classroom50_gets_its_file(course: Path, kata, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLASSROOM", "ASSIGNMENT", "SUBMISSION_TAG", "COMMIT_URL", "RELEASE_URL"):
        monkeypatch.setenv(name, name.lower())
    (course / STUB).write_text(SOLUTION)
    assert kata("ci").status == 0
    told = json.loads((course / "result.json").read_text("utf-8"))
    assert (told["schema"], told["score"], told["max-score"]) == ("classroom50/result/v1", 21, 21)
    monkeypatch.delenv("RELEASE_URL")
    assert "RELEASE_URL" in kata("ci").err


def test_attempts_are_counted_and_used_up(course: Path, kata) -> None:
    text = (course / "course.yaml").read_text()
    (course / "course.yaml").write_text(text.replace("limits:", "  ci: {attempts: 1, hours: 5}\nlimits:", 1))
    (course / STUB).write_text(CORE_ONLY)
    first = kata("ci")
    assert "Not judged again" not in first.out
    assert "Attempt 1 of 1 within 5 h; 1 in all." in first.out
    again = kata("ci")  # the same file is no attempt
    assert "Not judged again" not in again.out
    (course / STUB).write_text(SOLUTION)
    refused = kata("ci")
    assert "Not judged again: the attempts allowed (1 within 5 h) are used up" in refused.out
    assert "19 of 21 points" in refused.out  # the result that stands
    assert "21 of 21 points" in kata("ci", "--learner", "bob").out
    assert len((course / ".kata/ci/records.jsonl").read_text().splitlines()) == 3


def test_a_learners_folder_is_judged_by_the_courses_own_checks(course: Path, kata, tmp_path: Path) -> None:
    work = tmp_path / "ann"
    (work / STUB).parent.mkdir(parents=True)
    (work / STUB).write_text(CORE_ONLY)
    (work / "exercises/module1/toy/test_toy.py").write_text("def test_nothing(): ...\n")
    done = kata("ci", "--work", work.as_posix(), "--learner", "ann", "--out", (tmp_path / "ledger").as_posix())
    assert done.status == 0, done.out + done.err
    assert "19 of 21 points" in done.out
    assert json.loads((tmp_path / "ledger/records.jsonl").read_text())["learner"] == "ann"
    assert kata("ci", "--work", (tmp_path / "none").as_posix()).status == 2


def test_results_are_signed_where_a_key_is_set_and_verified(
    course: Path, kata, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsigned = kata("ci")
    assert "signatures" not in unsigned.out
    monkeypatch.setenv("KATA_SIGNING_KEY", "k" * 40)
    (course / STUB).write_text(SOLUTION)
    assert kata("ci").status == 0
    good = kata("verify", ".kata/ci/result.json", ".kata/ci/records.jsonl")
    assert (good.status, good.out.count("✓")) == (0, 2)
    text = (course / ".kata/ci/result.json").read_text()
    (course / ".kata/ci/result.json").write_text(text.replace('"max_score": 21', '"max_score": 22'))
    assert kata("verify", ".kata/ci/result.json").status == 1
    assert kata("verify", STUB).status == 1
    monkeypatch.setenv("KATA_SIGNING_KEY", "short")
    assert kata("verify", ".kata/ci/records.jsonl").status == 2
    monkeypatch.delenv("KATA_SIGNING_KEY")
    assert "KATA_SIGNING_KEY" in kata("verify", ".kata/ci/records.jsonl").err


def test_worth_is_what_the_solution_earns(course: Path) -> None:
    assert worth(load_course(course).exercise("toy")) == 21
