"""Pairs of submissions that are suspiciously alike, for staff: a reason to look, never a verdict.

copydetect reduces a source to its tokens, with names and comments gone, and fingerprints it by winnowing (Schleimer,
Wilkerson and Aiken, SIGMOD 2003); what the stub has too is not compared. The sources are hostile and the fingerprints
hang on the hash seed of the process, so this is done in a process of its own, with a deadline and a fixed seed. The rules
that take a source apart need time that grows with the square of some texts, blank lines for one: each source has a limit,
and one beyond it is left out and told.
"""

from __future__ import annotations

import hashlib
import heapq
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import combinations
from typing import TYPE_CHECKING, Any

import msgspec

from llmkata.records.pairs import Pair, Side

if TYPE_CHECKING:
    from llmkata.course import Course
    from llmkata.grading.intake import Submission

#: Matches shorter than this many characters of reduced code are noise; any of ``_SURE`` characters is found.
_NOISE, _SURE = 35, 45
#: A pair is shown from this share of common code on, and from this much of it (characters of reduced code). Complete
#: solutions written independently for this course have up to 17 % in common.
SHARE, COMMON = 0.4, 200
#: Pairs compared in full, those with most fingerprints in common: where a whole class hands in one answer, more tell
#: no more.
_MOST = 1000
#: Seconds for the submissions of one exercise.
_SECONDS = 900.0
#: What one source may have of characters, and cost of processor time: a hundred times what an answer takes. Those that are
#: left out may cost so much together, from then on a tenth each, so that they cannot use up the time of all.
_CHARACTERS, _READING, _WASTED = 400_000, 10.0, 100.0


class SimilarityFault(RuntimeError):
    """Similarity cannot be computed; the message says why and what to do."""


class LeftOut(msgspec.Struct, frozen=True):
    """A submission that was not compared."""

    exercise: str
    learner: str
    why: str


class Likeness(msgspec.Struct, frozen=True):
    """Pairs, the most alike first, and what was not compared."""

    pairs: list[Pair]
    left_out: list[LeftOut]


class _Question(msgspec.Struct):
    stub: str
    sources: dict[str, str]
    apart: list[tuple[str, str]] = []


class _Answer(msgspec.Struct):
    pairs: list[tuple[Side, Side]] = []
    #: Learner -> why.
    left_out: dict[str, str] = {}


class _TooSlow(Exception):
    """A source that takes more than its time to read."""


def similar(
    sources: Mapping[str, str], stub: str, groups: Mapping[str, str] | None = None, *, exercise: str = ""
) -> Likeness:
    """The pairs among ``sources`` (learner -> Python source), and the sources that no one can afford to read.

    Args:
        sources: what was handed in for one exercise.
        stub: what was given out; code of it is nobody's own.
        groups: learner -> group; members of one group hand in the same work and are not a pair.
        exercise: written into the pairs.

    Raises:
        SimilarityFault: copydetect is not installed, or the sources take too much time.
    """
    of = groups or {}
    members: dict[str, list[str]] = {}
    for learner in sources:
        if of.get(learner):
            members.setdefault(of[learner], []).append(learner)
    apart = [pair for group in members.values() for pair in combinations(sorted(group), 2)]
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "llmkata.grading.similarity"],
            input=msgspec.json.encode(_Question(stub, dict(sources), apart)), capture_output=True, timeout=_SECONDS,
            env=os.environ | {"PYTHONHASHSEED": "0", "MPLBACKEND": "agg"}, check=False,
        )
    except subprocess.TimeoutExpired:
        raise SimilarityFault(f"{exercise}: comparing the submissions takes more than {_SECONDS:.0f} s") from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        if said and said[-1].startswith("ModuleNotFoundError"):
            raise SimilarityFault("similarity needs copydetect: pip install 'llmkata[instructor]'")
        raise SimilarityFault(f"{exercise}: comparing the submissions failed: {said[-1] if said else 'no message'}")
    found = msgspec.json.decode(done.stdout, type=_Answer)
    left_out = [LeftOut(exercise, learner, why) for learner, why in found.left_out.items()]
    return Likeness([Pair(exercise, *pair) for pair in found.pairs], left_out)


def similar_submissions(
    submissions: Iterable[Submission], course: Course, groups: Mapping[str, str] | None = None,
    told: Callable[[str], None] = lambda exercise: None,
) -> Likeness:
    """:func:`similar` over every exercise that at least two began; ``told`` hears of each exercise before."""
    from llmkata.authoring.stub import is_stub, pristine_stub

    by_exercise: dict[str, dict[str, bytes]] = {}
    for s in submissions:
        if s.source is not None and not is_stub(course.exercise(s.exercise_id), s.source):
            by_exercise.setdefault(s.exercise_id, {})[s.learner] = s.source
    several = [(name, handed_in) for name, handed_in in by_exercise.items() if len(handed_in) > 1]

    def of_one(name: str, handed_in: Mapping[str, bytes]) -> Likeness:
        told(name)
        texts = {learner: source.decode("utf-8", "replace") for learner, source in handed_in.items()}
        found = similar(texts, pristine_stub(course.exercise(name)) or "", groups, exercise=name)
        pairs = [Pair(name, *(_signed(side, handed_in) for side in (pair.left, pair.right))) for pair in found.pairs]
        return Likeness(pairs, found.left_out)

    # Each exercise is a process of its own, which threads wait for.
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        found = list(pool.map(of_one, *zip(*several, strict=True))) if several else []
    pairs = [pair for one in found for pair in one.pairs]
    return Likeness(sorted(pairs, key=lambda pair: -pair.share), [left for one in found for left in one.left_out])


def _signed(side: Side, handed_in: Mapping[str, bytes]) -> Side:
    return msgspec.structs.replace(side, sha=hashlib.sha256(handed_in[side.learner]).hexdigest())


def _compare(question: _Question) -> _Answer:
    """In the child: fingerprints of all, then every pair that shares enough of them."""
    given = _fingerprint(question.stub, window=1).hashes
    prints: dict[str, Any] = {}
    known: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    wasted = 0.0
    for learner, source in sorted(question.sources.items()):
        if source not in known:  # nearly all the time goes into reading sources
            began, most = time.process_time(), _READING if wasted < _WASTED else _READING / 10
            try:
                known[source] = _read(source, given, most)
            except _TooSlow:
                known[source] = f"takes more than {most:g} s to read"
                wasted += time.process_time() - began
        made = known[source]
        if isinstance(made, str):
            left_out[learner] = made
        elif made.token_coverage >= COMMON:
            prints[learner] = made
    apart = set(question.apart)
    candidates = (c for c in _alike({learner: made.hashes for learner, made in prints.items()}) if c[1:] not in apart)
    closest = heapq.nlargest(_MOST, candidates)
    compared = (_pair(one, prints[one], other, prints[other]) for _, one, other in closest)
    pairs = [pair for pair in compared if pair is not None]
    return _Answer(sorted(pairs, key=lambda pair: (-pair[0].share, pair[0].learner, pair[1].learner)), left_out)


def _read(source: str, given: set[int], seconds: float) -> Any:
    """The fingerprints of a source without those of the stub, or why it is left out. Raises _TooSlow beyond ``seconds`` of
    processor time, where the system has a timer for it.
    """
    from copydetect.utils import get_token_coverage

    if len(source) > _CHARACTERS:
        return f"is longer than {_CHARACTERS:,} characters"
    with _at_most(seconds):
        made = _fingerprint(source, window=_SURE - _NOISE + 1)
    # copydetect's own removal of given code goes wrong where a fingerprint occurs twice.
    made.hashes = made.hashes - given
    made.hash_idx = {key: places for key, places in made.hash_idx.items() if key in made.hashes}
    made.token_coverage = get_token_coverage(made.hash_idx, made.k, len(made.filtered_code))
    return made


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """A regular expression looks for signals while it searches, so a timer ends it in the middle."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def late(*_: object) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGPROF, late)
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _alike(prints: Mapping[str, set[int]]) -> Iterator[tuple[float, str, str]]:
    """(share, one, other) of the pairs, in order of ``prints``, where one has at least half of ``SHARE`` of its
    fingerprints in common with the other: cheap, and a share of the code is about that share of the fingerprints.

    Counted through an index from fingerprint to learners, so what only one has costs nothing.
    """
    import numpy as np
    from scipy.sparse import csr_array, triu

    if len(prints) < 2:
        return
    column: dict[int, int] = {}
    rows = [[column.setdefault(key, len(column)) for key in made] for made in prints.values()]
    sizes = np.array([len(row) for row in rows])
    has = csr_array(
        (np.ones(sizes.sum(), np.int32), np.concatenate(rows), np.concatenate([[0], sizes.cumsum()])),
        shape=(len(rows), len(column)),
    )  # fmt: skip
    common = triu(has @ has.T, k=1, format="coo")
    shares = common.data / np.minimum(sizes[common.row], sizes[common.col])
    names = list(prints)
    for place in np.flatnonzero(shares >= SHARE / 2):
        yield float(shares[place]), names[common.row[place]], names[common.col[place]]


def _pair(one: str, a: Any, other: str, b: Any) -> tuple[Side, Side] | None:
    from copydetect.detector import compare_files

    common, shares, slices = compare_files(a, b)
    if common < COMMON or max(shares) < SHARE:
        return None
    # A stretch of several fingerprints may reach over code of the stub, so a share can pass 1 by a little.
    sides = [
        Side(learner, min(1.0, float(share)), _lines(made.raw_code, found))
        for learner, share, made, found in zip((one, other), shares, (a, b), slices, strict=True)
    ]
    return (sides[0], sides[1]) if sides[0].share >= sides[1].share else (sides[1], sides[0])


def _fingerprint(source: str, window: int) -> Any:
    import numpy as np
    from copydetect.detector import CodeFingerprint

    # Pygments drops empty lines at the start and carriage returns, which would shift every place; a blank stays.
    lines = source.replace("\r\n", "\n").replace("\r", "\n")
    if lines.startswith("\n"):
        lines = " " + lines
    made = CodeFingerprint("submission.py", _NOISE, window, language="python", fp=io.StringIO(lines))
    # The offset it notes at the name of a class is not summed up, as all others are.
    made.offsets[:, 1] = np.maximum.accumulate(made.offsets[:, 1])
    return made


def _lines(source: str, slices: Any) -> list[tuple[int, int]]:
    """Character ranges (starts, ends) as ranges of lines, those that touch made one."""
    ranges: list[tuple[int, int]] = []
    for start, end in sorted(zip(*(map(int, row) for row in slices), strict=True)):
        first, last = source.count("\n", 0, start) + 1, source.count("\n", 0, max(start, end - 1)) + 1
        if ranges and first <= ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], max(last, ranges[-1][1]))
        else:
            ranges.append((first, last))
    return ranges


if __name__ == "__main__":
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=_Question)
    sys.stdout.buffer.write(msgspec.json.encode(_compare(asked)))
