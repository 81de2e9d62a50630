"""``kata demo``: the example class from end to end, in the real sandbox, and everybody gets what they should.

What each learner stands for is told in examples/README.md. The class is graded once for all tests of this module.
"""

from __future__ import annotations

import csv
import html
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from llmkata.gradebook.standing import Standing, standing
from llmkata.records import CheckRecord, ExerciseRecord, Outcome, State, latest, read_records

ROOT = Path(__file__).parents[2]
KATA = [sys.executable, "-c", "from llmkata.cli.main import main; main()", "--course", str(ROOT)]
MATRICES, ATTENTION, CACHE = "module0/matrix_calculus", "module2/self_attention", "module6/kv_cache"
EXERCISES = (MATRICES, ATTENTION, CACHE)


@dataclass(frozen=True)
class Graded:
    """What ``kata demo`` left behind."""

    out: Path
    text: str
    records: dict[tuple[str, str], ExerciseRecord]

    def checks(self, learner: str, exercise: str) -> dict[str, CheckRecord]:
        """The checks of a submission by the name of their function."""
        return {c.id.rpartition("::")[2]: c for c in self.records[learner, exercise].checks}

    def named(self, learner: str, exercise: str) -> set[str]:
        """The misconceptions that its card names."""
        return {c.diagnosis.name for c in self.records[learner, exercise].checks if c.diagnosis}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Graded:
    folder = tmp_path_factory.mktemp("demo")
    env = {k: v for k, v in os.environ.items() if k != "KATA_SEED"} | {"COLUMNS": "120", "NO_COLOR": "1"}
    done = subprocess.run(
        [*KATA, "demo"], cwd=folder, env=env, check=False, capture_output=True, text=True, timeout=900
    )
    if "cannot keep submissions away" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr + done.stdout
    reading = read_records([folder / "demo" / "records.jsonl"])
    assert not reading.faults
    return Graded(folder / "demo", done.stdout, latest(reading.records))


def failed(checks: dict[str, CheckRecord]) -> dict[str, CheckRecord]:
    """Hidden checks that were judged and did not pass, other than those of tasks nobody touched."""
    return {
        name: c
        for name, c in checks.items()
        if c.visibility == "hidden" and c.outcome is Outcome.failed and not c.not_started
    }


# -- the class ---------------------------------------------------------------------------------------------------------

#: Learner -> exercise -> standing. What is not listed was not handed in.
CLASS = {
    "@zoe-keller": {ATTENTION: Standing.in_progress, CACHE: Standing.unreadable},
    "aisha-rahman": {ATTENTION: Standing.passed},
    "amara-okafor": dict.fromkeys(EXERCISES, Standing.mastered),
    "chloe-dubois": {ATTENTION: Standing.in_progress},
    "diego-fuentes": {MATRICES: Standing.in_progress},
    "fatima-alsayed": {MATRICES: Standing.in_progress},
    "francois-lemaire": {MATRICES: Standing.in_progress, CACHE: Standing.unreadable},
    "henrik-dahl": {},
    "ingrid-solberg": {MATRICES: Standing.unreadable},
    "jonas-virtanen": {MATRICES: Standing.not_started, ATTENTION: Standing.not_started},
    "kwame-mensah": {ATTENTION: Standing.in_progress},
    "lukas-brandt": dict.fromkeys(EXERCISES, Standing.mastered),
    "marcus-lee": {CACHE: Standing.in_progress},
    "mei-chen": {MATRICES: Standing.passed, ATTENTION: Standing.passed},
    "nina-petrov": {MATRICES: Standing.in_progress, ATTENTION: Standing.in_progress},
    "noah-becker": {MATRICES: Standing.in_progress, CACHE: Standing.in_progress},
    "olena-kovalenko": {CACHE: Standing.in_progress},
    "priya-nair": {CACHE: Standing.in_progress},
    "rafael-costa": {ATTENTION: Standing.passed},
    "sofia-marin": {ATTENTION: Standing.in_progress},
    "tomasz-zielinski": {ATTENTION: Standing.passed},
    "viktor-hale": {ATTENTION: Standing.in_progress},
    "yuki-tanaka": {ATTENTION: Standing.passed},
}


def test_everybody_stands_where_they_should(demo: Graded) -> None:
    got = {
        learner: {e: standing(demo.records[learner, e]) for e in EXERCISES}
        for learner in {who for who, _ in demo.records}
    }
    want = {learner: dict.fromkeys(EXERCISES, Standing.missing) | given for learner, given in CLASS.items()}
    assert got == want


def test_nothing_was_judged_halfway(demo: Graded) -> None:
    for record in demo.records.values():
        assert record.state is not State.infrastructure, record.cause
        if record.state is State.graded:
            assert record.max_points == 100, (record.learner, record.exercise)
            assert {"landlock", "seccomp", "close_range"} <= set(record.provenance.layers)
        for check in record.checks:
            assert (check.points == check.max_points) if check.outcome is Outcome.passed else check.points == 0
            assert check.cause or check.outcome is Outcome.passed, check.id


@pytest.mark.parametrize("learner", ["amara-okafor", "lukas-brandt"])
@pytest.mark.parametrize("exercise", EXERCISES)
def test_a_right_answer_earns_every_point_in_any_style(demo: Graded, learner: str, exercise: str) -> None:
    assert demo.records[learner, exercise].points == 100
    assert demo.named(learner, exercise) == set()


@pytest.mark.parametrize(
    ("learner", "exercise", "mistakes"),
    [
        ("sofia-marin", ATTENTION, {"inverted_mask", "entropy_in_bits"}),
        ("tomasz-zielinski", ATTENTION, {"forgot_rescale", "merge_by_average"}),
        ("@zoe-keller", ATTENTION, {"finite_fill"}),
        ("diego-fuentes", MATRICES, {"causal_top_left", "model_forgets_broadcasting"}),
        ("fatima-alsayed", MATRICES, {"unbroadcast_sums_leading_only", "softmax_vjp_elementwise"}),
        ("noah-becker", MATRICES, {"loop_over_the_batch", "materialised_broadcast"}),
        ("noah-becker", CACHE, {"projects_every_token"}),
        ("priya-nair", CACHE, {"cat_cache", "padding_only_in_prefill"}),
    ],
)
def test_the_mistake_is_named(demo: Graded, learner: str, exercise: str, mistakes: set[str]) -> None:
    assert mistakes <= demo.named(learner, exercise)
    (card,) = (demo.out / "learners").glob(f"{learner.strip('@')}*.html")
    page = html.unescape(re.sub(r"</?code>", "`", card.read_text("utf-8")))
    told = {c.diagnosis.name: c.diagnosis.feedback for c in demo.records[learner, exercise].checks if c.diagnosis}
    assert all(told[name] in page for name in mistakes)


#: Mistakes that a first version makes and nobody need make: what costs too much where a stretch task asks for less.
COSTLY = {"loop_over_the_batch", "sums_a_batch_of_gradients", "layer_materialises", "materialised_broadcast",
          "new_scores_for_each_step"}


@pytest.mark.parametrize(
    ("learner", "exercise"),
    [("mei-chen", MATRICES), ("mei-chen", ATTENTION), ("francois-lemaire", MATRICES), ("aisha-rahman", ATTENTION),
     ("rafael-costa", ATTENTION), ("yuki-tanaka", ATTENTION), ("chloe-dubois", ATTENTION), ("kwame-mensah", ATTENTION),
     ("viktor-hale", ATTENTION), ("nina-petrov", MATRICES), ("nina-petrov", ATTENTION), ("marcus-lee", CACHE),
     ("olena-kovalenko", CACHE)],
)  # fmt: skip
def test_no_mistake_is_named_that_nobody_made(demo: Graded, learner: str, exercise: str) -> None:
    assert demo.named(learner, exercise) <= COSTLY


def test_core_only(demo: Graded) -> None:
    for exercise in (MATRICES, ATTENTION):
        checks = demo.checks("mei-chen", exercise).values()
        assert all(c.outcome is Outcome.passed for c in checks if c.tier == "core")
        assert any(c.not_started for c in checks if c.tier == "stretch")


def test_slow_but_right_loses_budgets_only(demo: Graded) -> None:
    for exercise in (MATRICES, CACHE):
        checks = failed(demo.checks("noah-becker", exercise))
        assert len(checks) >= 4
        assert {c.kind for c in checks.values()} == {"budget"}
    assert all(
        any(not m.ok for m in c.measures) for c in failed(demo.checks("noah-becker", MATRICES)).values()
    )


# -- what cannot be read -----------------------------------------------------------------------------------------------


def test_a_syntax_error_is_shown_with_its_line(demo: Graded) -> None:
    record = demo.records["ingrid-solberg", MATRICES]
    assert "line 207" in record.cause and "never closed" in record.cause
    assert "^" in record.evidence.got


def test_encodings(demo: Graded) -> None:
    assert demo.records["francois-lemaire", MATRICES].points == 50
    assert "as its coding line declares" in demo.records["francois-lemaire", MATRICES].notes[0]
    assert "not UTF-8: byte 0xe9 on line " in demo.records["francois-lemaire", CACHE].cause


def test_a_notebook_is_graded_and_its_magics_are_listed(demo: Graded) -> None:
    record = demo.records["aisha-rahman", ATTENTION]
    assert record.files == ["module2/self_attention.ipynb"]
    assert record.notes[0].startswith("notebook: dropped 6 magic lines (%matplotlib inline, ")


def test_an_empty_folder_and_a_file_of_another_name(demo: Graded) -> None:
    for exercise in EXERCISES:
        record = demo.records["henrik-dahl", exercise]
        assert (record.state, record.ignored) == (State.missing, [])
    assert "matrix_calculus (2).py: is that it?" in demo.records["kwame-mensah", MATRICES].cause


def test_renamed_arguments_and_a_missing_function(demo: Graded) -> None:
    checks = demo.checks("kwame-mensah", ATTENTION)
    assert "unexpected keyword argument 'mask'" in checks["test_empty_rows"].cause
    assert checks["test_merge_is_a_monoid"].cause == "self_attention.py does not define `merge_attention`."
    assert checks["test_half_precision"].outcome is Outcome.passed


# -- limits ------------------------------------------------------------------------------------------------------------


def test_the_loop_costs_its_own_learner_the_limit_once(demo: Graded) -> None:
    checks = demo.checks("yuki-tanaka", ATTENTION)
    late = [c for c in checks.values() if "did not finish" in c.cause]
    assert len(late) >= 3
    assert [c.id for c in late if "not run again" not in c.cause] == [checks["test_streaming_matches_reference"].id]
    assert demo.records["yuki-tanaka", ATTENTION].points == 69


def test_the_hog_costs_its_own_learner_the_checks_that_need_the_memory(demo: Graded) -> None:
    checks = demo.checks("olena-kovalenko", CACHE).values()
    full = [c for c in checks if "used up the 1,024 MiB" in c.cause]
    assert len(full) > 5 and any(c.outcome is Outcome.passed for c in checks)


def test_prints_are_cut_and_for_staff_only(demo: Graded) -> None:
    printed = [c.staff_output for c in demo.records["rafael-costa", ATTENTION].checks if c.staff_output]
    assert printed and max(map(len, printed)) < 2100 and any(text.endswith("[...]") for text in printed)
    assert demo.records["rafael-costa", ATTENTION].points == 60
    for suffix in ("html", "md", "json"):
        card = (demo.out / "learners" / f"rafael-costa.{suffix}").read_text("utf-8")
        assert "torch.Size([5, 6])" not in card and "empty rows:" not in card


# -- cheats ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("learner", "exercise", "passes"),
    [
        # What passes is code that was given: a check of arguments.
        ("viktor-hale", ATTENTION, {"test_errors"}),
        ("nina-petrov", ATTENTION, {"test_errors"}),
        ("nina-petrov", MATRICES, set()),
        ("marcus-lee", CACHE, set()),
    ],
)
def test_cheats_gain_nothing(demo: Graded, learner: str, exercise: str, passes: set[str]) -> None:
    checks = demo.checks(learner, exercise)
    assert {name for name, c in checks.items() if c.points} == passes


def test_a_forged_frame_is_told_to_staff_once(demo: Graded) -> None:
    record = demo.records["marcus-lee", CACHE]
    assert [flag for c in record.checks for flag in c.flags] == [next(c.flags[0] for c in record.checks if c.flags)]
    assert "broke the protocol" in (demo.out / "index.html").read_text("utf-8")
    assert "read the file" not in (demo.out / "learners" / "marcus-lee.html").read_text("utf-8")


def test_work_where_nobody_counts_is_no_answer_to_a_budget(demo: Graded) -> None:
    checks = demo.checks("chloe-dubois", ATTENTION)
    assert checks["test_attention_matches_reference"].outcome is Outcome.passed
    assert checks["test_streaming_matches_reference"].outcome is Outcome.passed
    for name in ("test_flops_attention", "test_causal_blocks_skipped", "test_forward_peak"):
        assert "do not compute the answer" in checks[name].cause


def test_extras_play_no_part(demo: Graded) -> None:
    ignored = ["conftest.py", "module2/__pycache__/", "module2/notes.txt", "pytest.ini", "sitecustomize.py"]
    assert demo.records["@zoe-keller", ATTENTION].ignored == ignored
    # The planted .pyc holds an answer that would earn the core points.
    assert demo.records["@zoe-keller", ATTENTION].points == 16
    assert "is a link" in demo.records["@zoe-keller", CACHE].cause


# -- what was written --------------------------------------------------------------------------------------------------


def test_cards_in_three_formats_hold_what_the_records_hold(demo: Graded) -> None:
    schema = json.loads((ROOT / "docs" / "scorecard.schema.json").read_text("utf-8"))
    cards: dict[str, Any] = {}
    for path in sorted((demo.out / "learners").glob("*.json")):
        card = json.loads(path.read_bytes())
        jsonschema.validate(card, schema)
        cards[card["learner"]] = card
        assert f"# {card['learner']}" in path.with_suffix(".md").read_text("utf-8").replace("\\", "")
        assert "</html>" in path.with_suffix(".html").read_text("utf-8")
    assert sorted(cards) == sorted(CLASS)
    for learner, card in cards.items():
        assert [e["id"] for e in card["exercises"]] == list(EXERCISES)
        points = [demo.records[learner, e].points for e in EXERCISES]
        assert [e["points"] for e in card["exercises"]] == points
        assert card["total"]["percent"] == pytest.approx(sum(points) / len(points))


def test_markup_of_a_learner_stays_text(demo: Graded) -> None:
    (card,) = (demo.out / "learners").glob("*zoe-keller*.html")
    text = card.read_text("utf-8")
    assert "<script>document.title" not in text and "&lt;script&gt;document.title" in text
    for path in [*demo.out.glob("learners/*"), demo.out / "index.html", demo.out / "grades.csv"]:
        assert b"\x1b" not in path.read_bytes(), path.name


def test_class_page_grades_and_table(demo: Graded) -> None:
    page = (demo.out / "index.html").read_text("utf-8")
    assert all(f"<bdi>{learner}</bdi></a>" in page for learner in CLASS)
    assert all(name in page for name in ("inverted_mask", "cat_cache", "causal_top_left"))
    with (demo.out / "grades.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["learner"]: row for row in csv.DictReader(file)}
    # A name that begins with @ would be run by a spreadsheet.
    assert sorted(rows) == sorted({*CLASS, "'@zoe-keller"} - {"@zoe-keller"})
    assert (rows["amara-okafor"]["total_percent"], rows["henrik-dahl"]["total_percent"]) == ("100.0", "0.0")
    assert rows["mei-chen"][f"{ATTENTION} points"] == "60.0"
    assert "23 learners" in demo.text and "demo/index.html" in demo.text
    assert (demo.out / "gradebook.db").is_file()
