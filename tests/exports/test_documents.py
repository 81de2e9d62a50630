"""JSON, XML and folders: each against the layout its consumer documents."""

from __future__ import annotations

import base64
import io
import json
import re
import unittest
import zipfile
from pathlib import Path
from xml.etree import ElementTree as ET

import jsonschema
import msgspec
import pytest
from gradescope_utils.autograder_utils.decorators import number, tags, visibility, weight
from gradescope_utils.autograder_utils.json_test_runner import JSONTestRunner

from llmkata.exports.formats import ExportError
from llmkata.records import Evidence, Outcome, State
from llmkata.reports.view import Scorecard

from ..reports.factory import KV_CACHE, MATRIX_CALCULUS, SELF_ATTENTION, check, in_progress, mastered, record
from .exporting import documents, exported, listed, view

DOCS = Path(__file__).parents[2] / "docs"

# Plain JSON


def test_plain_json_holds_scorecards():
    [told] = documents("json", view()).values()
    assert told["schema"] == "llmkata/class/v1"
    assert told["max_points"] == {MATRIX_CALCULUS: 20, SELF_ATTENTION: 43, KV_CACHE: 20}
    schema = json.loads((DOCS / "scorecard.schema.json").read_text())
    for card in told["scorecards"]:
        jsonschema.validate(card, schema)
    assert [msgspec.convert(card, Scorecard) for card in told["scorecards"]] == list(view().cards.values())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(told["scorecards"][0] | {"schema": "x"}, schema)


# Feedback


def test_a_folder_for_each_learner():
    files = exported("feedback", view())
    assert {path.rpartition("/")[2] for path in files} == {"scorecard.html", "scorecard.md", "scorecard.json"}
    assert len(files) == 4 * 3
    assert json.loads(files["ann/scorecard.json"])["learner"] == "ann"
    assert b"bob" not in files["ann/scorecard.html"]


def test_moodles_zip_is_named_as_moodle_asks(tmp_path):
    """mod/assign/feedback/file/importziplib.php cuts each part of a path at underscores, at most five pieces: the second
    is the participant's number, third and fourth name the plugin.
    """
    people = listed(tmp_path, "Identifier,Full name,Email address,Grade\nParticipant 12,Ann_M. O'Lee,ann@x.edu,\nParticipant 13,Zed,z@x.edu,\n")
    [content] = exported("moodle-feedback", view(), people).values()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        assert b"Matrix Calculus" in archive.read(names[0])
    found = set()
    for name in names:
        info = name.split("/")[0].split("_", 4)
        assert info[1:4] == ["12", "assignsubmission", "file"]
        found.add(name.split("/")[1])
    assert found == {"scorecard.html", "scorecard.md"}
    assert exported("moodle-feedback", view(), people)["moodle-feedback.zip"] == content, "the same results, the same file"


@pytest.mark.parametrize("text", ["id,name\nann,Ann\n", "Identifier,Full name,learner\nsomebody,Ann,ann\n"])
def test_without_moodles_numbers_there_is_no_zip(tmp_path, text):
    with pytest.raises(ExportError, match="grading worksheet|Identifier is 'somebody'"):
        exported("moodle-feedback", view(), listed(tmp_path, text))


# Gradescope: gradescope-autograders.readthedocs.io/en/latest/specs

VISIBILITY = {"enum": ["hidden", "after_due_date", "after_published", "visible"]}
FORMAT = {"enum": ["text", "html", "simple_format", "md", "ansi"]}
GRADESCOPE = {
    "type": "object", "additionalProperties": False, "required": ["tests"],
    "properties": {
        "score": {"type": "number"}, "execution_time": {"type": "number"}, "output": {"type": "string"},
        "output_format": FORMAT, "test_output_format": FORMAT, "test_name_format": FORMAT,
        "visibility": VISIBILITY, "stdout_visibility": VISIBILITY, "extra_data": {"type": "object"},
        "leaderboard": {"type": "array", "items": {"type": "object", "required": ["name", "value"]}},
        "tests": {"type": "array", "items": {
            "type": "object", "additionalProperties": False,
            "properties": {
                "score": {"type": "number"}, "max_score": {"type": "number"}, "status": {"enum": ["passed", "failed"]},
                "name": {"type": "string"}, "name_format": FORMAT, "number": {"type": "string"}, "output": {"type": "string"},
                "output_format": FORMAT, "tags": {"type": "array", "items": {"type": "string"}}, "visibility": VISIBILITY,
                "extra_data": {"type": "object"},
            }}},
    },
}  # fmt: skip


def test_gradescope():
    found = documents("gradescope", view())
    for told in found.values():
        jsonschema.validate(told, GRADESCOPE)
    ann = found["ann/results.json"]
    assert ann["score"] == 40
    assert sum(t["score"] for t in ann["tests"]) == 40
    assert sum(t["max_score"] for t in ann["tests"]) == 83
    [missed] = [t for t in ann["tests"] if "for every shape" in t["name"]]
    assert (missed["status"], missed["number"], missed["tags"]) == ("failed", "2.1.1", [SELF_ATTENTION, "core"])
    assert "sqrt(d)" in missed["output"] and "Expected: shape (2, 3, 2)" in missed["output"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(ann | {"points": 1}, GRADESCOPE)


def test_where_the_grader_failed_gradescope_is_told_nothing_of_it():
    eve = documents("gradescope", view())["eve/results.json"]
    assert eve["score"] == 0
    assert not [t for t in eve["tests"] if t["tags"][0] == MATRIX_CALCULUS]
    assert "not judged" in eve["output"]


def test_gradescopes_own_runner_uses_the_same_names():
    class Tests(unittest.TestCase):
        @weight(2)
        @number("1.1")
        @tags("a")
        @visibility("visible")
        def test_it(self):
            """A check."""
            print("said")

    out = io.StringIO()
    JSONTestRunner(stream=out, visibility="visible", stdout_visibility="hidden").run(unittest.TestSuite([Tests("test_it")]))
    theirs, ours = json.loads(out.getvalue()), documents("gradescope", view())["ann/results.json"]
    assert set(theirs) <= set(ours)
    assert set(theirs["tests"][0]) <= set(ours["tests"][0])
    assert {k: type(v) for k, v in theirs["tests"][0].items() if k not in ("score", "max_score")} == {
        k: type(ours["tests"][0][k]) for k in theirs["tests"][0] if k not in ("score", "max_score")
    }


# exercism: exercism.org/docs/building/tooling/test-runners/interface

EXERCISM = {
    "type": "object", "additionalProperties": False, "required": ["version", "status"],
    "properties": {
        "version": {"const": 3}, "status": {"enum": ["pass", "fail", "error"]},
        "message": {"type": ["string", "null"], "maxLength": 65535},
        "tests": {"type": ["array", "null"], "items": {
            "type": "object", "additionalProperties": False, "required": ["name", "status", "test_code"],
            "properties": {
                "name": {"type": "string", "minLength": 1}, "status": {"enum": ["pass", "fail", "error"]},
                "message": {"type": "string", "maxLength": 65535}, "output": {"type": "string", "maxLength": 500},
                "test_code": {"type": "string"}, "task_id": {"type": "integer", "minimum": 1},
            }}},
    },
    "if": {"properties": {"status": {"const": "error"}}},
    "then": {"properties": {"message": {"type": "string", "minLength": 1}}, "required": ["message"]},
    "else": {"properties": {"message": {"type": "null"}, "tests": {"type": "array", "minItems": 1}}, "required": ["tests"]},
}  # fmt: skip


def test_exercism():
    found = documents("exercism", view())
    assert len(found) == 4 * 3
    for told in found.values():
        jsonschema.validate(told, EXERCISM)
    assert found[f"ann/{MATRIX_CALCULUS}/results.json"]["status"] == "pass"
    told = found[f"ann/{SELF_ATTENTION}/results.json"]
    assert told["status"] == "fail"
    assert [t["task_id"] for t in told["tests"]] == sorted(t["task_id"] for t in told["tests"])
    unreadable = found[f"ann/{KV_CACHE}/results.json"]
    assert (unreadable["status"], unreadable["tests"]) == ("error", None)
    assert unreadable["message"].startswith("The file has a syntax error in line 41")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(unreadable | {"message": None}, EXERCISM)


def test_exercism_shows_no_more_than_it_can():
    measures = in_progress("ann").checks[4].measures
    long = [check("test_a", 1, Outcome.failed, cause="x" * 70_000), check("test_b", 1, measures=measures * 30)]
    [told] = [d for p, d in documents("exercism", view([record("ann", checks=long)])).items() if SELF_ATTENTION in p]
    jsonschema.validate(told, EXERCISM)
    assert any(len(t.get("output", "")) == 500 for t in told["tests"])
    assert all(len(t.get("message", "").encode()) <= 65535 for t in told["tests"])


# PrairieLearn: prairielearn.readthedocs.io/en/latest/externalGrading

PRAIRIELEARN = {
    "type": "object", "additionalProperties": False, "required": ["score", "tests"],
    "properties": {
        "gradable": {"type": "boolean"}, "score": {"type": "number", "minimum": 0, "maximum": 1},
        "message": {"type": "string"}, "output": {"type": "string"}, "images": {"type": "array"},
        "format_errors": {"type": "array", "items": {"type": "string"}},
        "tests": {"type": "array", "items": {
            "type": "object", "additionalProperties": False, "required": ["name", "points", "max_points"],
            "properties": {
                "name": {"type": "string"}, "description": {"type": "string"}, "points": {"type": "number", "minimum": 0},
                "max_points": {"type": "number", "minimum": 0}, "message": {"type": "string"}, "output": {"type": "string"},
                "images": {"type": "array"},
            }}},
    },
    "if": {"properties": {"gradable": {"const": False}}}, "then": {"required": ["format_errors"]},
}  # fmt: skip


def test_prairielearn():
    found = documents("prairielearn", view())
    for told in found.values():
        jsonschema.validate(told, PRAIRIELEARN)
    assert found[f"ann/{SELF_ATTENTION}/results.json"]["score"] == pytest.approx(20 / 43)
    assert found[f"ann/{MATRIX_CALCULUS}/results.json"]["score"] == 1
    for lost in (f"ann/{KV_CACHE}", f"eve/{MATRIX_CALCULUS}"):
        assert found[f"{lost}/results.json"]["gradable"] is False
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found[f"ann/{SELF_ATTENTION}/results.json"] | {"score": 20}, PRAIRIELEARN)


# JUnit XML: what Jenkins's xUnit plugin takes (junit-10.xsd)

SUITE = {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"}


def xml(of, learner: str = "ann") -> ET.Element:
    return ET.fromstring(exported("junit", of)[f"{learner}/junit.xml"])


def test_junit():
    root = xml(view())
    assert root.tag == "testsuites" and [s.get("name")[:3] for s in root] == ["0.1", "2.1", "6.1"]
    for suite in root:
        cases = suite.findall("testcase")
        assert set(suite.attrib) <= SUITE
        assert int(suite.get("tests")) == len(cases)
        for attribute, tag in {"failures": "failure", "errors": "error", "skipped": "skipped"}.items():
            assert int(suite.get(attribute)) == len([c for c in cases if c.find(tag) is not None]), attribute
        for case in cases:
            assert set(case.attrib) == {"classname", "name", "time"}
            assert case[0].tag == "properties"
            assert len([c for c in case if c.tag in ("failure", "error", "skipped")]) <= 1
    attention = {case.get("name"): case for case in root[1].iter("testcase")}
    failure = attention["test_attention_matches_reference"].find("failure")
    assert "Input: attention(q (2, 3, 4)" in failure.text
    assert attention["test_merge_is_a_monoid"].find("error") is not None
    assert attention["test_shapes"].find("failure") is None


def test_what_nobody_began_is_skipped_in_junit():
    root = xml(view([record("ann", checks=[check("test_a", 1, Outcome.failed, cause="not started: task 1: x")])]))
    assert root[1].get("skipped") == "1" and root[1].get("failures") == "0"


@pytest.mark.parametrize("text", ["]]>", "a & b < c", "\x00\x0b\ud800 x", "</failure><failure>", "ÄÖ 李 🎉"])
def test_any_output_makes_good_xml(text):
    failed = check("test_a", 1, Outcome.failed, cause=text, title=text, evidence=Evidence(text, call=text, got=text))
    found = xml(view([record("ann", checks=[failed])]))[1].find("testcase/failure")
    shown = re.sub(r"[\x00\x0b\ud800]", "", text).strip()
    assert shown in found.text and found.get("message").strip().startswith(shown)


# Classroom 50 and the reporter

COMMITS = "learner,classroom,assignment,submission,commit,release\nann,llm,m2,submit/2026-c0f,https://c,https://r\n"


def test_classroom50_by_a_list(tmp_path):
    found = documents("classroom50", view(), listed(tmp_path, COMMITS))
    assert list(found) == ["ann/result.json"]
    [told] = found.values()
    assert (told["classroom"], told["submission"], told["review"]) == ("llm", "submit/2026-c0f", "https://c")
    assert (told["score"], told["max-score"], told["datetime"]) == (40, 83, "2026-03-04T10:22:33Z")


def test_classroom50_by_its_environment(monkeypatch):
    for name in ("CLASSROOM", "ASSIGNMENT", "SUBMISSION_TAG", "COMMIT_URL", "RELEASE_URL"):
        monkeypatch.setenv(name, name.lower())
    [told] = documents("classroom50", view(learners=["ann"])).values()
    assert told["commit"] == "commit_url"
    with pytest.raises(ExportError, match="which commit"):
        documents("classroom50", view())
    monkeypatch.delenv("RELEASE_URL")
    with pytest.raises(ExportError, match="RELEASE_URL"):
        documents("classroom50", view(learners=["ann"]))


def test_classroom50_needs_to_be_told(tmp_path, monkeypatch):
    monkeypatch.delenv("SUBMISSION_TAG", raising=False)
    with pytest.raises(ExportError, match="which commit"):
        documents("classroom50", view(learners=["ann"]))
    with pytest.raises(ExportError, match="needs columns"):
        documents("classroom50", view(), listed(tmp_path, "learner\nann\n"))


def test_the_reporters_result_twice():
    files = exported("github", view([mastered("ann"), in_progress("ann")]))
    plain = json.loads(files["ann/result.json"])
    assert json.loads(base64.b64decode(files["ann/result.txt"], validate=True)) == plain
    assert (plain["status"], sum(t["score"] for t in plain["tests"]), plain["max_score"]) == ("fail", 40, 63)


def test_nothing_is_written_of_a_learner_without_an_answer():
    none = view([record("ann", KV_CACHE, State.missing, cause="No kv_cache.py was handed in.")])
    assert documents("exercism", none)[f"ann/{KV_CACHE}/results.json"]["message"] == "No kv_cache.py was handed in."
