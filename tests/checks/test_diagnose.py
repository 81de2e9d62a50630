"""Which mistake is named, which is not, and that a diagnosis never costs more than its time."""

from __future__ import annotations

import math
import time

import pytest
import torch

from llmkata.checks import diagnose as module
from llmkata.checks.context import CheckContext, enter
from llmkata.checks.diagnose import diagnose
from llmkata.checks.misconceptions import Misconception
from llmkata.outside.loopback import LoopbackLink
from llmkata.outside.remote import RemoteError

pytestmark = pytest.mark.usefixtures("running")
ANSWER = "import torch\ndef scale(d): return d ** -0.5\ndef f(x): return x * scale(x.shape[-1])\ndef g(x): return x + 1\n" \
         "class Box:\n    def __init__(self, n): self.n = n\n    def get(self): return self.n * 2\ndef ask(fn, x): return fn(x) + 1\n"


def mistake(name: str, code: str, replaces: str = "f", **kw) -> Misconception:
    fields = {"matches": None, "equivalent_to": None} | kw
    return Misconception(name, (replaces,), "test", f"This is {name}.", source=code, bind={replaces: replaces.rpartition(".")[2]},
                         line=1, **fields)


BY_D = mistake("by_d", "def f(x): return x / x.shape[-1]")
UNSCALED = mistake("unscaled", "def f(x): return x")
ALSO_BY_D = mistake("also_by_d", "def f(x): return x * scale(x.shape[-1]) ** 2")
ZERO = mistake("zero", "def f(x): return x * 0")
RAISES = mistake("raises", "def f(x): raise ValueError('wrong shape')")
X = torch.tensor([1.0, 2.0, 3.0, 4.0])


def named(learner: str, *mistakes: Misconception, ask=lambda link: link.call(None, "f", (X,), {}),
          answer: str = ANSWER) -> str | None:
    link = LoopbackLink("learner", "learner.py", (answer + learner).encode())
    enter(CheckContext(link, 3))
    link.begin_check(3)
    try:
        ask(link)
    except RemoteError:
        pass

    def ours(m):
        made = LoopbackLink(f"ours_{m.name if m else 'right'}", "ours.py", answer.encode())
        if m:
            made.patch = {"source": m.source, "filename": f"<{m.name}>", "bind": m.bind}
        return made

    found = diagnose(link, mistakes, ours)
    assert found is None or found.feedback == f"This is {found.name}."
    return found and found.name


def test_the_one_that_gives_the_same_answers():
    assert named("def f(x): return x / 4", BY_D, UNSCALED, ZERO) == "by_d"
    assert named("def f(x): return x * 1.0", BY_D, UNSCALED, ZERO) == "unscaled"


def test_nearly_the_same_counts():
    assert named("def f(x): return x / 4 + 1e-6", BY_D, UNSCALED) == "by_d"
    assert named("def f(x): return x / 4 + 1e-3", BY_D, UNSCALED) is None


def test_none_of_them():
    assert named("def f(x): return x + 17", BY_D, UNSCALED, ZERO) is None
    assert named("", BY_D, UNSCALED, ZERO) is None  # the right answer
    assert named("def f(x): return x / 4") is None


def test_two_that_cannot_be_told_apart():
    assert named("def f(x): return x / 4", BY_D, ALSO_BY_D) is None
    same = mistake("also_by_d", ALSO_BY_D.source, equivalent_to="by_d")
    assert named("def f(x): return x / 4", BY_D, same) == "by_d"
    assert named("def f(x): return x / 4", same, BY_D) == "also_by_d"


def test_all_answers_must_agree():
    def two(link):
        link.call(None, "f", (X,), {})
        link.call(None, "f", (torch.ones(9),), {})

    assert named("def f(x): return x / 4", BY_D, ask=two) is None  # by 4, not by d
    assert named("def f(x): return x / x.shape[-1]", BY_D, ask=two) == "by_d"


def test_what_is_told_apart_nowhere_is_not_named():
    """On a single number scaling by d and by its root are the same."""
    assert named("def f(x): return x / x.shape[-1]", BY_D, ask=lambda link: link.call(None, "f", (torch.ones(1),), {})) is None


def test_errors_match_by_type_and_words():
    assert named("def f(x): raise ValueError('wrong shape')", RAISES, BY_D) == "raises"
    assert named("def f(x): raise TypeError('wrong shape')", RAISES) is None


def test_nan_matches_nan():
    nan = mistake("nan", "def f(x): return x * float('nan')")
    assert named("def f(x): return x * float('nan')", nan, ZERO) == "nan"


def test_what_nothing_reaches_explains_nothing():
    other = mistake("other", "def g(x): return x / x.shape[-1]", "g")
    assert named("def f(x): return x / 4", other, BY_D) == "by_d"


def test_those_by_measure_are_not_tried_by_answers():
    assert named("def f(x): return x / 4", mistake("by_d", BY_D.source, matches="flops")) is None


def test_objects_and_callbacks_take_part():
    doubled = mistake("doubled", "def get(self): return self.n * 4", "Box.get")
    assert named("def _get(self): return self.n * 4\nBox.get = _get", doubled,
                 ask=lambda link: link.call(link.call(None, "Box", (3,), {}), "get", (), {})) == "doubled"
    twice = mistake("twice", "def ask(fn, x): return fn(fn(x)) + 1", "ask")
    assert named("def ask(fn, x): return fn(fn(x)) + 1", twice, BY_D,
                 ask=lambda link: link.call(None, "ask", (lambda v: v * 3, 2), {})) == "twice"


def test_classes_that_earlier_checks_met_change_nothing():
    """Classes are numbered as they are met: the wrong implementation, which sees one check alone, numbers others."""
    doubled = mistake("doubled", "def get(self): return self.n * 4", "Box.get")

    def ask(link):
        other = link.call(None, "Other", (), {})
        assert other.value() == 1
        link.begin_check(3)
        box = link.call(None, "Box", (3,), {})
        box.get()
        link.call(None, "ask", (lambda v: v, 1), {})
        link.call(None, "unbox", (box,), {})

    more = "\nclass Other:\n    def value(self): return 1\n\ndef unbox(box): return box.n\n"
    wrong = "def _get(self): return self.n * 4\nBox.get = _get"
    assert named(wrong, doubled, ask=ask, answer=ANSWER + more) == "doubled"


def test_an_incomplete_transcript_names_nothing(monkeypatch):
    from llmkata.outside import transcript

    monkeypatch.setattr(transcript, "_CAP", 10)
    assert named("def f(x): return x / 4", BY_D) is None


@pytest.mark.parametrize("code", ["def f(x):\n    while True: pass", "def f(x):\n    while True:\n        try:\n            while True: pass\n"
                                  "        except Exception: pass"])
def test_a_mistake_without_end_is_given_up(monkeypatch, code):
    monkeypatch.setattr(module, "_ALLOWANCE", 0.3)
    began = time.monotonic()
    assert named("def f(x): return x / 4", mistake("endless", code)) is None
    assert time.monotonic() - began < 5
    import signal

    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert named("def f(x): return x / 4", BY_D) == "by_d"


def test_files_that_answers_write_are_nobodys(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writes = mistake("writes", "def f(x):\n    open('made.txt', 'w').write('x')\n    return x / 4")
    assert named("def f(x): return x / 4", writes) == "writes"
    assert list(tmp_path.iterdir()) == []


def test_choose():
    assert module.choose([]) is None and module.choose([BY_D]).name == "by_d" and module.choose([BY_D, ZERO]) is None
    assert math.isinf(module.distance(1.0, "x"))
