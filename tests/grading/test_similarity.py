"""Who is found to have copied, and who is not."""

from __future__ import annotations

import ast
import builtins
import random
import signal
import time
from itertools import combinations
from pathlib import Path

import pytest

from llmkata.authoring.stub import cut_stub
from llmkata.course import load_course
from llmkata.grading import similarity
from llmkata.grading.intake import Submission
from llmkata.grading.similarity import SHARE, similar, similar_submissions
from llmkata.records import ExerciseRecord, State
from llmkata.records.pairs import Pair, read_pairs, write_pairs

pytest.importorskip("copydetect")

ROOT = Path(__file__).resolve().parents[2]
ANSWER = ROOT / "solutions/module2/self_attention.py"
OTHERS = sorted((ROOT / "graders/module2/self_attention/alternatives").glob("*.py"))
STUB = cut_stub(ANSWER.read_text(encoding="utf-8"))


#: The rules of the lexer look from every one of these lines to the last one.
SLOW = "x\n" + " \n" * 100_000


def pairs(*given, **more) -> list[Pair]:
    found = similar(*given, **more)
    assert not found.left_out
    return found.pairs


class Renamed(ast.NodeTransformer):
    """Every local name, argument and private function under another name; docstrings and comments gone."""

    def __init__(self, tree: ast.AST) -> None:
        stored = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        given = {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
        private = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name.startswith("_")}
        self.names = {name: f"thing_{i}" for i, name in enumerate(sorted(stored | given | private - {"__init__"}))
                      if not hasattr(builtins, name) and name != "self"}

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = self.names.get(node.id, node.id)
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.arg = self.names.get(node.arg, node.arg)
        return self.generic_visit(node)


def renamed(source: str) -> str:
    tree = ast.parse(source)
    made = ast.unparse(Renamed(tree).visit(tree))
    assert made.count("thing_") > 50
    return made


def test_a_copy_with_other_names_is_found_and_independent_work_is_not() -> None:
    answer = ANSWER.read_text(encoding="utf-8")
    assert len(OTHERS) >= 2
    class_ = {"ada": answer, "bob": renamed(answer), "cyd": STUB, "dan": STUB + "\n# mine\n"}
    class_ |= {path.stem: path.read_text(encoding="utf-8") for path in OTHERS}
    (pair,) = pairs(class_, STUB, exercise="module2/self_attention")
    assert {pair.left.learner, pair.right.learner} == {"ada", "bob"}
    assert pair.exercise == "module2/self_attention"
    assert pair.share > 0.7
    assert pairs(class_, STUB, {"ada": "g1", "bob": "g1", "cyd": "g2"}) == []
    assert len(pairs(class_, STUB, {"ada": "g1", "bob": "g2"})) == 1


def test_without_the_stub_taken_out_those_who_did_nothing_would_be_pairs() -> None:
    assert pairs({"ada": STUB, "bob": STUB}, STUB) == []
    assert len(pairs({"ada": STUB, "bob": STUB}, "")) == 1


OWN = """\
def {0}(values, limit):
    kept = []
    for position, value in enumerate(values):
        if value > limit and position % 2 == 0:
            kept.append((value - limit) * (position + 1))
        elif value < -limit:
            kept.extend([value ** 2, value // 3])
    while len(kept) > 10:
        kept.pop(len(kept) // 2)
    for low, high in zip(kept[:-1], kept[1:]):
        assert isinstance(low, int) or high is not None, (low, high)
    return sorted(kept, reverse=True)[:limit] if kept else None
"""
ELSE = """\
class Pile:
    def __init__(self):
        self.rows = dict()
    def put(self, key):
        try:
            self.rows[key] += 1
        except KeyError:
            self.rows[key] = 1
        finally:
            print(f"{key} of {sum(self.rows.values()):d}")
    @property
    def top(self):
        return max(self.rows, key=lambda name: self.rows[name])
"""


def test_the_lines_are_those_that_are_alike() -> None:
    one = "\n\n\r\n" + ELSE.replace("Pile", "AVeryLongNameOfAClass") + OWN.format("first")
    first = one.replace("\r\n", "\n").split("\n").index("def first(values, limit):") + 1
    other = OWN.format("second") + "import json\n" * 3 + "class Q:\n    '''Text.'''\n    data: dict[str, int] = {}\n"
    (pair,) = pairs({"ada": one, "bob": other}, "")
    sides = {side.learner: side for side in (pair.left, pair.right)}
    assert pair.left.learner == "bob", "who has less of their own comes first"
    ((start, end),) = sides["bob"].lines
    assert start <= 2
    assert 11 <= end <= 13
    ((start, end),) = sides["ada"].lines
    assert first - 1 <= start <= first + 1
    assert first + 10 <= end <= first + 12
    assert SHARE <= sides["ada"].share < sides["bob"].share <= 1


def test_what_cannot_be_python_stops_nobody() -> None:
    class_ = {"ada": OWN.format("a"), "bob": OWN.format("b"), "cyd": "", "dan": "\0'''(((\n", "eve": "é" * 5000}
    assert [(pair.left.learner, pair.right.learner) for pair in pairs(class_, "")] == [("ada", "bob")]


def test_a_source_that_stalls_the_lexer_is_left_out_and_told(monkeypatch) -> None:
    class_ = {"ada": OWN.format("a"), "bob": OWN.format("b"), "eve": SLOW, "fay": SLOW, "gil": SLOW + "y = 1\n"}
    class_ |= {"hal": "x = 1\n" * 100_000}
    monkeypatch.setattr(similarity, "_READING", 0.3)
    monkeypatch.setattr(similarity, "_WASTED", 0.2)
    read = []
    fingerprint = similarity._fingerprint
    monkeypatch.setattr(similarity, "_fingerprint", lambda source, window: read.append(source) or fingerprint(source, window))
    found = similarity._compare(similarity._Question("", class_, []))
    assert [{side.learner for side in pair} for pair in found.pairs] == [{"ada", "bob"}], "it stops nobody else"
    assert found.left_out == {
        "eve": "takes more than 0.3 s to read", "fay": "takes more than 0.3 s to read",
        "gil": "takes more than 0.03 s to read", "hal": "is longer than 400,000 characters",
    }, "two who hand in the same cost once, and from some time on each costs less"
    assert read.count(SLOW) == 1 and class_["hal"] not in read
    assert signal.getsignal(signal.SIGPROF) is signal.SIG_DFL and signal.getitimer(signal.ITIMER_PROF) == (0, 0)


def test_an_answer_is_read_in_a_hundredth_of_what_it_may_take() -> None:
    """So that nobody honest is left out, however slow the machine; and without a limit the other takes its time."""
    text = ANSWER.read_text(encoding="utf-8")
    began = time.process_time()
    similarity._fingerprint(text, 11)
    spent = time.process_time() - began
    assert spent < similarity._READING / 4 and len(text) < similarity._CHARACTERS / 8
    with pytest.raises(similarity._TooSlow), similarity._at_most(4 * spent):
        similarity._fingerprint(SLOW, 11)


def test_who_is_left_out_is_told_with_the_exercise() -> None:
    name = "module2/self_attention"
    handed_in = [Submission("ada", name, b"x = 1\n" * 100_000), Submission("bob", name, b"y = 1\n")]
    found = similar_submissions(handed_in, load_course(ROOT))
    assert found.pairs == [] and [(left.exercise, left.learner, left.why) for left in found.left_out] == [
        (name, "ada", "is longer than 400,000 characters")]
    stub = Submission("cyd", name, STUB.encode())
    assert similar_submissions([stub, handed_in[1]], load_course(ROOT)).left_out == [], "one alone has none to be like"


def test_the_index_finds_the_pairs_that_comparing_all_with_all_finds() -> None:
    draw = random.Random(7)
    pool = [draw.getrandbits(63) - 2**62 for _ in range(60)]
    prints = {f"l{i}": set(draw.sample(pool, draw.randrange(1, 40))) for i in range(40)}
    prints |= {"alone": {2**62 + 1}, "twin": set(prints["l0"])}
    wanted = {}
    for (one, a), (other, b) in combinations(prints.items(), 2):
        share = len(a & b) / min(len(a), len(b))
        if share >= SHARE / 2:
            wanted[one, other] = share
    assert 100 < len(wanted) < 41 * 42 // 2 - 100, "some are pairs and some are not"
    assert {(one, other): share for share, one, other in similarity._alike(prints)} == wanted
    assert wanted["l0", "twin"] == 1 and not any("alone" in pair for pair in wanted)
    assert list(similarity._alike({})) == list(similarity._alike({"ada": {1}})) == []


def test_a_class_of_500_reads_each_text_once_and_compares_in_full_only_what_is_alike(monkeypatch) -> None:
    draw = random.Random(3)
    class_ = {f"own{i}": f"DATA = {[draw.getrandbits(16) for _ in range(60)]}\n" for i in range(450)}
    class_ |= {f"alike{i}": OWN.format("same") for i in range(50)}
    read, compared = [], []
    fingerprint, pair = similarity._fingerprint, similarity._pair
    monkeypatch.setattr(similarity, "_fingerprint", lambda source, window: read.append(source) or fingerprint(source, window))
    monkeypatch.setattr(similarity, "_pair", lambda *given: compared.append(given[::2]) or pair(*given))
    found = similarity._compare(similarity._Question("", class_, [])).pairs
    assert len(class_) == 500 and len(read) == 450 + 1 + 1, "each text, and the stub"
    assert len(compared) == similarity._MOST < 50 * 49 / 2
    assert len(found) == len(compared) and all(side.learner.startswith("alike") for pair in found for side in pair)


def test_equal_questions_have_equal_answers() -> None:
    class_ = {f"l{i}": OWN.format("f") + ELSE[: 40 * i] for i in range(6)}
    assert similar(class_, "") == similar(class_, "")


def test_pairs_of_a_course_are_kept_until_one_hands_in_again(tmp_path: Path) -> None:
    course = load_course(ROOT)
    name = "module2/self_attention"
    answer = ANSWER.read_bytes()
    handed_in = [Submission("ada", name, answer), Submission("bob", name, renamed(answer.decode()).encode()),
                 Submission("cyd", name), Submission("ada", "module6/kv_cache", answer)]
    heard: list[str] = []
    found = similar_submissions(handed_in, course, told=heard.append).pairs
    assert heard == [name]
    (pair,) = found
    records = [ExerciseRecord(side.learner, name, State.graded, submission_sha=side.sha)
               for side in (pair.left, pair.right)]
    path = tmp_path / "similarity.json"
    assert read_pairs(path, records) is None
    write_pairs(path, found)
    assert read_pairs(path, records) == found
    records[0].submission_sha = "another"
    assert read_pairs(path, records) == []
