"""Both workflows as GitHub reads them: its own parser, a schema, the reporter's names, and least rights."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from string import Template
from typing import Any

import jsonschema
import pytest
import yaml

import llmkata.authoring.release.contents as release
from llmkata.authoring.workflow import workflow

GITHUB = Path(__file__).parent / "github"
INSTRUCTOR = workflow()
LEARNER = Template((Path(release.__file__).parent / "learner/autograding.yml").read_text("utf-8")).substitute()
BOTH = pytest.mark.parametrize("text", [LEARNER, INSTRUCTOR], ids=["learner", "instructor"])
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="GitHub's parser of workflows needs node")


def read(text: str) -> dict[str, Any]:
    """As YAML 1.2 reads it, where ``on`` is no truth value."""
    told = yaml.safe_load(text)
    return {("on" if key is True else key): value for key, value in told.items()}


def parsed(text: str, folder: Path) -> dict[str, Any]:
    file = folder / "workflow.yml"
    file.write_text(text, "utf-8")
    done = subprocess.run(["node", GITHUB / "parse.mjs", file], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)[0]


def faults(text: str) -> list[str]:
    schema = json.loads((GITHUB / "workflow.schema.json").read_text("utf-8"))
    return [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(read(text))]


@needs_node
@BOTH
def test_githubs_parser_takes_it(text: str, tmp_path: Path) -> None:
    told = parsed(text, tmp_path)
    assert told["errors"] == []
    assert told["jobs"] == {name: len(job["steps"]) for name, job in read(text)["jobs"].items()}


@needs_node
@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        ("steps.kata.outputs", "stepz.kata.outputs", "stepz"),
        ("contents: read", "contents: reed", "reed"),
        ("timeout-minutes: 30", "timeout-minutez: 30", "timeout-minutez"),
        ("hashFiles(", "hashFile(", "hashFile"),
    ],
)
def test_githubs_parser_refuses_a_fault(before: str, after: str, word: str, tmp_path: Path) -> None:
    assert before in LEARNER
    assert any(word in error for error in parsed(LEARNER.replace(before, after), tmp_path)["errors"])


@BOTH
def test_the_schema_takes_it(text: str) -> None:
    assert faults(text) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [("contents: read", "contents: reed"), ("runs-on:", "run-on:"), ("- id: python\n", "- id: 3\n")],
)
def test_the_schema_refuses_a_fault(before: str, after: str) -> None:
    assert before in LEARNER
    assert faults(LEARNER.replace(before, after))


def test_the_reporter_finds_what_it_needs() -> None:
    """Source: README of classroom-resources/autograding-grading-reporter, its points 1 and 2, and src/main.js."""
    told = read(LEARNER)
    assert told["name"] == "Autograding Tests"
    assert list(told["jobs"]) == ["run-autograding-tests"]
    steps = told["jobs"]["run-autograding-tests"]["steps"]
    [reporter] = [s for s in steps if "autograding-grading-reporter" in s.get("uses", "")]
    runners = reporter["with"]["runners"].split(",")
    assert all(re.fullmatch("[a-zA-Z0-9]+", runner) for runner in runners)
    for runner in runners:
        assert reporter["env"][f"{runner.upper()}_RESULTS"] == f"${{{{ steps.{runner}.outputs.result }}}}"
        assert any(s.get("id") == runner and s["run"] == "./kata ci" for s in steps)


@BOTH
def test_least_rights(text: str) -> None:
    told = read(text)
    assert told["permissions"] == {"contents": "read"}
    assert "pull_request_target" not in told["on"]
    assert "workflow_run" not in told["on"]
    assert told["concurrency"]["group"]
    for job in told["jobs"].values():
        assert "permissions" not in job
        assert 0 < job["timeout-minutes"] <= 360
        for step in job["steps"]:
            # What an expression puts into a script is code: names of branches and titles are strangers' texts.
            assert "${{" not in step.get("run", "")
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def test_a_strangers_pull_request_gets_no_secret() -> None:
    assert "secrets." not in LEARNER
    assert "pull_request" in read(LEARNER)["on"]


@needs_node
@pytest.mark.parametrize(
    ("event", "told", "judged"),
    [
        ("push", {}, "true"),
        ("workflow_dispatch", {}, "true"),
        ("pull_request", {"head": "eve/work"}, "true"),
        ("pull_request", {"head": "class/ann"}, "false"),
        ("push", {"actor": "github-classroom[bot]"}, "false"),
    ],
)
def test_each_commit_is_judged_once(event: str, told: dict[str, str], judged: str) -> None:
    """A stranger's pull request is judged; one from a branch of the same repository was judged when it was pushed."""
    head = {"pull_request": {"head": {"repo": {"full_name": told["head"]}}}} if "head" in told else {}
    github = {"event_name": event, "repository": "class/ann", "actor": told.get("actor", "ann"), "event": head}
    condition = read(LEARNER)["jobs"]["run-autograding-tests"]["if"]
    command = ["node", GITHUB / "evaluate.mjs", condition, json.dumps({"github": github})]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == judged


def test_learners_cannot_start_the_instructors() -> None:
    assert set(read(INSTRUCTOR)["on"]) == {"schedule", "workflow_dispatch"}


def test_each_secret_is_in_one_step_and_learners_code_runs_beside_the_seed_alone() -> None:
    [job] = read(INSTRUCTOR)["jobs"].values()
    assert "secrets" not in json.dumps({k: v for k, v in job.items() if k != "steps"})
    where = {
        step["run"].split()[1]: set(re.findall(r"secrets\.(\w+)", json.dumps(step)))
        for step in job["steps"]
        if "secrets." in json.dumps(step)
    }
    assert where == {"collect": {"SUBMISSIONS_TOKEN"}, "grade": {"KATA_SEED"}, "report": {"KATA_SIGNING_KEY"}}


def test_the_environment_is_cached_under_what_it_is_made_from() -> None:
    launcher = (release.PROJECT / "kata").read_text("utf-8")
    assert 'PINNED = ("requirements.lock", "pyproject.toml")' in launcher
    for text, made_from in (
        (LEARNER, ("requirements.lock", "pyproject.toml", "vendor/*.whl")),
        (INSTRUCTOR, ("requirements.lock", "pyproject.toml")),
    ):
        [job] = read(text)["jobs"].values()
        [cache] = [s for s in job["steps"] if s.get("with", {}).get("path") == ".venv"]
        assert all(f"'{name}'" in cache["with"]["key"] for name in made_from)
        assert "restore-keys" not in cache["with"]  # part of an environment would be mended, not replaced
