"""Budgets: measured where the learner's code was not, held against a limit that was computed.

Raises BudgetExceeded (a Mismatch) when a limit is missed, NotJudged when nothing can be said.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from llmkata.outside.bench import Bench, BenchRefused
from llmkata.outside.link import Link, Measured, Meter, Recording
from llmkata.outside.remote import Remote
from llmkata.outside.submission import Submission
from llmkata.records import Measure, Spot, Trust

from .compare import GraderFault, Mismatch, kind, same
from .context import current

#: Bytes by which the high-water mark read from outside may exceed what the instrument inside saw (pages, arenas).
_OUTSIDE_SLACK = 512 << 10
#: Units of counts of matrix products, and the share of ``at_most`` below which one is not believed unless a floor is given.
_PRODUCTS, _UNSTATED_FLOOR = ("FLOP", "calls"), 0.25
#: Relative deviation at which a sequential test of CPU time is sure (design: +-15 %), and its error rates.
_DELTA, _ALPHA, _MAX_PAIRS, _MIN_PAIRS = math.log(1.15), 1e-4, 60, 6


class BudgetExceeded(Mismatch):
    """A measured number missed its limit; ``measure`` holds both."""

    def __init__(self, summary: str, measure: Measure, **kw: Any) -> None:
        super().__init__(summary, **kw)
        self.measure = measure


class NotJudged(Exception):
    """Nothing can be said here (no such device, a test that stayed inconclusive). Costs no points."""


class Metric(float):
    """A measured number that remembers where it was taken and where it was spent."""

    trust: Trust
    spots: list[Spot]

    def __new__(cls, value: float, trust: Trust, spots: Sequence[Spot] = ()) -> Metric:
        self = super().__new__(cls, value)
        self.trust, self.spots = trust, list(spots)
        return self


class Run:
    """Counts of one replayed program, whole or by segment."""

    def __init__(self, counts: dict[str, Any], segments: dict[str, Any], trust: Trust) -> None:
        self._counts, self._segments, self._trust = counts, segments, trust

    def __getitem__(self, segment: str) -> Run:
        if segment not in self._segments:
            raise GraderFault(f"the scenario has no segment {segment!r}")
        return Run(self._segments[segment], {}, self._trust)

    def _metric(self, name: str) -> Metric:
        ranked = sorted((s for s in self._counts["spots"] if s.get(name)), key=lambda s: -s[name])
        return Metric(self._counts[name], self._trust,
                      [Spot(s["op"], s[name], s["line"] or None) for s in ranked[:5]])

    @property
    def flops(self) -> Metric:
        """Floating-point operations of matrix products (2mnk)."""
        return self._metric("flops")

    @property
    def matmul_calls(self) -> Metric:
        """Number of matrix products."""
        return self._metric("matmul_calls")

    @property
    def pointwise(self) -> Metric:
        """Elements processed by every other arithmetic operator (the larger of inputs and outputs)."""
        return self._metric("pointwise")

    @property
    def bytes_moved(self) -> Metric:
        """Bytes written by copies, concatenations, gathers and embeddings, and by arithmetic that spreads an expanded tensor."""
        return self._metric("bytes_moved")

    @property
    def peak_bytes(self) -> Metric:
        """Largest sum of live storages beyond the inputs, in bytes; inputs that are written to count."""
        return self._metric("peak_bytes")

    @property
    def allocated_bytes(self) -> Metric:
        """Bytes allocated beyond the inputs, freed ones included."""
        return self._metric("allocated_bytes")


class Budget:
    """The fixture ``budget``. ``kept`` is a link to the submission for programs to be recorded and calls to be measured,
    ``fresh`` makes one to a fresh worker, ``other`` one for a file of ours; ``bench`` runs recorded programs."""

    def __init__(self, kept: Link, fresh: Callable[[], Link], other: Callable[[str], Link], bench: Bench, seed: int) -> None:
        self._kept, self._fresh, self._other, self._bench, self._seed = kept, fresh, other, bench, seed

    def close(self) -> None:
        """End the kept worker."""
        self._kept.close()

    @contextlib.contextmanager
    def _worker(self) -> Iterator[Link]:
        """The kept link. What is left in its worker from before helps nobody: values kept from it are constants to the
        bench, which has other inputs. After a failure the next use gets a fresh worker."""
        if self._kept not in current().fresh:
            current().fresh.append(self._kept)
            self._kept.begin_check(self._seed)
        try:
            yield self._kept
        except BaseException:
            self._kept.abandon()
            raise

    # -- replayed --------------------------------------------------------------------------------------------------

    def replay(self, scenario: Callable[..., Any], *inputs: Any, expect: Callable[..., Any] | None,
               tol: float | None = None, measure: Sequence[str] = ()) -> Run:
        """Record ``scenario(s, *inputs)`` in a worker kept for budgets, run the program on fresh values in the bench, compare
        what the scenario returns with ``expect(*fresh_inputs)``, and return the counts taken there.

        Floating tensors of ``inputs`` get fresh values; ids, masks, lengths and constant tensors stay, and where nothing
        else is handed in the counts are the learner's own word. The scenario returns what the
        submission returned, untouched (nested tuples, lists, dicts). ``tol``: atol and rtol of the comparison
        (default: that of the dtype). ``measure``: ("temporaries",) lets the peak include what operators allocate inside.
        """
        import torch

        from llmkata.bench.fresh import fresh as fresh_values

        with self._worker() as link:
            link.begin_recording()
            returned = scenario(Submission(link), *inputs)
            program, recording = link.end_recording()
        generator = torch.Generator().manual_seed(self._seed & 0x7FFFFFFF)
        leaves: dict[bytes, Any] = {}
        memo: dict[int, Any] = {}
        new_inputs = [_map(x, lambda t: leaves.setdefault(_digest(t), fresh_values(t, generator, memo))) for x in inputs]

        def new(t: Any) -> Any:
            """Of what the scenario sent: an input or a copy of one by its values, a view of one by its storage."""
            if (digest := _digest(t)) in leaves:
                return _laid_out(leaves[digest], t)
            return fresh_values(t, generator, memo) if t.untyped_storage()._cdata in memo else t

        values = {str(i): new(t) for i, t in enumerate(recording.sent)}
        try:
            answer = self._bench.run(program, values, ["counts", *measure])
        except BenchRefused as e:
            raise Mismatch(f"The work cannot be counted: {e}.") from None
        link.banned.extend(_banned(answer["names"], link.forbid))
        current().flags.extend(_contradictions(recording, answer))
        if answer["timeline"] != recording.timeline:
            current().flags.append("the recorded program tells another order of events than the grader saw")
            raise Mismatch("The work cannot be counted: the recorded program does not follow the calls that were made.")
        if expect is not None:
            if len(answer["outputs"]) != len(recording.received):
                raise Mismatch("The work cannot be counted: the tensors of the answer cannot be followed. Return them in "
                               "plain tuples, lists and dicts.")
            numbers = {id(t): i for i, t in enumerate(recording.received)}
            replayed = _map(_plain(returned), lambda t: answer["outputs"][_number(numbers, t)])
            self._compare(replayed, expect(*new_inputs), tol, answer)
        # On the values it was recorded with, any program that returns the answer computes it.
        other = any(_digest(new) != old for old, new in leaves.items())
        return Run(answer["total"], answer["segments"], Trust.replayed if other and expect is not None else Trust.self_reported)

    def _compare(self, replayed: Any, want: Any, tol: float | None, answer: dict[str, Any]) -> None:
        try:
            same(replayed, want, dtype=None, **({} if tol is None else {"atol": tol, "rtol": tol}))
        except Mismatch as e:
            lines = sorted({c["line"] for c in (*answer["constants"], *answer["reads"]) if c["line"]})
            where = f" Values left or entered torch at line {', '.join(map(str, lines[:5]))}." if lines else ""
            raise Mismatch("Run again on fresh inputs, the torch operators that were counted do not compute the answer."
                           f"{where} Do all the work on the tensors that were passed in.", expected=e.expected,
                           got=e.got, index=e.index, ratio=e.ratio) from None

    # -- measured calls --------------------------------------------------------------------------------------------

    def peak_bytes(self, scenario: Callable[[Any], Any]) -> Metric:
        """Peak bytes above the level at entry of the calls that ``scenario(s)`` makes (the largest).

        The larger of what tracemalloc saw inside and what the high-water mark shows from outside beyond a slack of
        512 KiB: bytes hidden from tracemalloc count.
        """
        first, calls = self._measured(scenario, "traced_peak")
        outside = [c.peak_bytes for c in calls if c.peak_bytes is not None]
        value = max(c.reading for c in (*first, *calls))
        if not outside:
            return Metric(value, Trust.self_reported)
        return Metric(max(value, max(outside) - _OUTSIDE_SLACK), Trust.outside)

    def steps(self, scenario: Callable[[Any], Any]) -> Metric:
        """Bytecode instructions executed in the learner's frames. Self-reported: for exponents and ratios only."""
        return Metric(sum(c.reading for c in self._measured(scenario, "steps")[0]), Trust.self_reported)

    def _measured(self, scenario: Callable[[Any], Any], instrument: str | None) -> tuple[list[Measured], list[Measured]]:
        """Run the scenario twice: the first run touches code and tables for the first time, which the high-water mark
        would show; the second is what the outside figures are taken from."""
        with self._worker() as link:
            runs: tuple[list[Measured], list[Measured]] = ([], [])
            for calls in runs:
                link.meter = Meter(instrument, calls)
                scenario(Submission(link))
                if not calls:
                    raise GraderFault("the scenario called nothing")
            link.meter = None
            return runs

    # -- limits ----------------------------------------------------------------------------------------------------

    def require(self, name: str, value: float, *, at_most: float | None = None, at_least: float | None = None,
                reference: float | None = None, unit: str = "FLOP", trust: str | None = None,
                series: Sequence[tuple[float, float]] = (), floor: bool = True) -> None:
        """Hold ``value`` against its limits. ``at_least`` is the physical floor: below it something was not counted,
        which is for staff to look at, not credit. With ``floor=False`` it is a goal instead (a ratio to reach). Replayed
        counts of matrix products (units FLOP and calls) have a floor of a quarter of ``at_most`` where none is given:
        products spelt out elementwise are none to the counter. What is no finite number (an answer of the submission's may
        be used) fails: no record could hold it."""
        if not all(map(math.isfinite, (value, *(y for _, y in series)))):
            context = current()
            context.compared += 1
            raise Mismatch(f"{name} is {value}: that is no measure.", got=str(value))
        source = Trust(trust) if trust else getattr(value, "trust", Trust.self_reported)
        if at_least is None and at_most and source is Trust.replayed and unit in _PRODUCTS:
            at_least = _UNSTATED_FLOOR * at_most
        over = at_most is not None and not value <= at_most
        under = at_least is not None and not value >= at_least
        measure = Measure(name, float(value), unit, at_most, at_least, reference, source, not (over or under),
                          getattr(value, "spots", []), [(float(a), float(b)) for a, b in series])
        context = current()
        context.compared += 1
        context.measures.append(measure)
        if over:
            factor = f" ({value / at_most:.3g} times the limit)" if at_most else ""
            raise BudgetExceeded(f"{name}: {quantity(value, unit)}, at most {quantity(at_most, unit)}{factor}.", measure,
                                 expected=f"at most {quantity(at_most, unit)}", got=quantity(value, unit),
                                 ratio=value / at_most if at_most else math.inf)
        if under and not floor:
            raise BudgetExceeded(f"{name}: {quantity(value, unit)}, it must be at least {quantity(at_least, unit)}.", measure,
                                 expected=f"at least {quantity(at_least, unit)}", got=quantity(value, unit),
                                 ratio=at_least / value if value else math.inf)
        if under:
            context.flags.append(f"{name} is {quantity(value, unit)}, below the floor of {quantity(at_least, unit)}")
            raise BudgetExceeded(f"{name}: {quantity(value, unit)}, but at least {quantity(at_least, unit)} are needed to "
                                 "compute this: part of the work was not seen. Your instructor will look at it.", measure,
                                 expected=f"at least {quantity(at_least, unit)}", got=quantity(value, unit),
                                 ratio=at_least / value if value else math.inf)

    def growth(self, name: str, sizes: Sequence[float], values: Sequence[float], *, exponent_at_most: float,
               at_most: Sequence[float] | None = None, unit: str = "", reference: float | None = None) -> float:
        """Fit ``values ~ sizes**e`` by least squares on logarithms; hold e and, with ``at_most``, each value."""
        if len(sizes) < 3 or len(sizes) != len(values):
            raise GraderFault("growth needs at least three sizes")
        trust = getattr(values[0], "trust", Trust.self_reported)
        for size, value, limit in zip(sizes, values, at_most or ()):
            self.require(f"{name} at {size:g}", value, at_most=limit, unit=unit, trust=trust)
        exponent = float(np.polyfit(np.log(sizes), np.log(np.maximum(np.asarray(values, float), 1e-12)), 1)[0])
        self.require(f"{name}: growth exponent", exponent, at_most=exponent_at_most, reference=reference, unit="exponent",
                     trust=trust, series=list(zip(sizes, values)))
        return exponent

    # -- the clock, as the last resort -----------------------------------------------------------------------------

    def cpu_ratio(self, name: str, *, candidate: Callable[[Any, int], Any], baseline: Callable[[Any, int], Any],
                  baseline_file: str, at_least: float, validate: Callable[[int, Any], None] | None = None,
                  reference: float | None = None) -> None:
        """CPU time of ``baseline(r, i)`` (a file of ours) over ``candidate(s, i)``, i a fresh number for fresh inputs.

        Both in workers, their clocks read from outside, pairs interleaved; a sequential test of the log-ratios (error rates
        of 1e-4 at 15 % from the threshold, 60 pairs at most). ``validate(i, answer)`` checks each timed
        answer. Raises NotJudged when the test stays inconclusive or there is no outside clock. Noise is what the
        baseline shows: a submission whose own time varies at will does not keep the test from ending.
        """
        ours, theirs = self._other(baseline_file), self._fresh()
        current().fresh.append(theirs)
        try:
            if theirs.transport == "loopback":
                raise NotJudged("CPU time is compared only across the process boundary (./kata check)")
            ratios: list[float] = []
            baselines: list[float] = []
            proxies = {link: Submission(link) for link in (ours, theirs)}
            for i in range(_MAX_PAIRS + 1):
                order = (theirs, ours) if i % 2 else (ours, theirs)
                seconds = {}
                for link in order:
                    link.meter = Meter(None)
                    scenario = candidate if link is theirs else baseline
                    answer = scenario(proxies[link], i)
                    if not link.meter.calls:
                        raise GraderFault("the scenario called nothing")
                    seconds[link] = sum(c.cpu_seconds or 0.0 for c in link.meter.calls)
                    if link is theirs and validate is not None:
                        validate(i, answer)
                if i == 0:
                    continue  # the first pair warms both
                ratios.append(math.log(max(seconds[ours], 1e-6) / max(seconds[theirs], 1e-6)))
                baselines.append(math.log(max(seconds[ours], 1e-6)))
                noise = math.sqrt(2) * float(np.std(baselines, ddof=1)) if i > 1 else math.inf
                verdict = _sequential(ratios, math.log(at_least), noise)
                if verdict is not None:
                    self.require(name, Metric(math.exp(float(np.median(ratios))) if verdict else
                                              min(math.exp(float(np.median(ratios))), at_least * 0.999), Trust.outside),
                                 at_least=at_least, reference=reference, unit="times", floor=False)
                    return
            raise NotJudged(f"{name}: after {_MAX_PAIRS} pairs the measurement is still too close to {at_least:g} to say")
        finally:
            ours.close()
            theirs.close()


def _sequential(ratios: Sequence[float], threshold: float, noise: float = math.inf) -> bool | None:
    """Whether the mean of log-ratios lies above the threshold, by ``_DELTA`` or more, True, or below by as much, False; None:
    not yet.

    The bounds are Wald's (1945), the evidence is the generalised likelihood ratio of the two for normal ratios whose spread
    is unknown: with the spread put in as measured, six pairs that agree by chance would be certain, and the test wrong 40
    times as often as asked. Of that spread no more counts than twice the variance of ``noise``, that of two measurements as
    noisy as the baseline's.
    """
    n = len(ratios)
    if n < _MIN_PAIRS:
        return None
    mean = float(np.mean(ratios)) - threshold
    squares = min(float(np.var(ratios)) * n, 2 * (n - 1) * noise**2)
    squares = max(squares, (n - 1) * 0.05**2)
    above, below = (squares + n * max(0.0, _DELTA - side * mean) ** 2 for side in (1, -1))
    evidence, bound = n / 2 * math.log(below / above), math.log((1 - _ALPHA) / _ALPHA)
    return True if evidence >= bound else False if evidence <= -bound else None


def quantity(value: float, unit: str) -> str:
    """``67.1 MFLOP``, ``1.20 MiB``, ``4 calls``, ``1.03`` for exponents."""
    if unit in ("B", "bytes"):
        for prefix, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
            if abs(value) >= size:
                return f"{value / size:.4g} {prefix}"
        return f"{value:.4g} B"
    if unit == "FLOP":
        for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
            if abs(value) >= size:
                return f"{value / size:.4g} {prefix}FLOP"
    return f"{value:.4g} {unit}".rstrip()


def _contradictions(recording: Recording, answer: dict[str, Any]) -> list[str]:
    """What the process of the submission took beyond anything that its recorded program explains, for staff: work that
    was hidden, or a program that is not what ran. Generous: writing a program down costs time and memory, too."""
    start, end = recording.gauges
    if start is None or end is None:
        return []
    total, operators = answer["total"], answer["operators"]
    found = []
    seconds, explained = end.cpu - start.cpu, 2 + 1e-3 * operators + total["flops"] / 2e8 + total["pointwise"] / 2e7
    if seconds > explained:
        found.append(f"while its program was recorded the submission computed for {seconds:.1f} s; the program explains "
                     f"{explained:.1f} s")
    if start.resident is not None and end.high is not None:
        grown = end.high - start.resident
        room = (64 << 20) + 4 * total["peak_bytes"] + 4 * recording.traffic + 4096 * operators
        if grown > room:
            found.append(f"while its program was recorded the submission grew by {quantity(grown, 'B')}; the program "
                         f"explains {quantity(room, 'B')}")
    return found


def _banned(operators: Sequence[str], forbid: dict[str, Any] | None) -> list[str]:
    """What the program dispatched although the exercise bans it: in the learner's process the guard can be switched off."""
    if not forbid:
        return []
    from llmkata.inside.forbid import Bans

    bans = Bans(forbid["functions"], forbid["operators"])
    return [sentence for name in operators if (sentence := bans.on(name))]


def _digest(t: Any) -> bytes:
    import torch

    # A copy: the one element of x[::2] counts as contiguous, and yet cannot be viewed as bytes.
    flat = t.detach().clone(memory_format=torch.contiguous_format).flatten()
    data = flat.view(torch.uint8).numpy().tobytes() if t.numel() else b""
    return hashlib.blake2b(data + str((tuple(t.shape), t.dtype)).encode(), digest_size=16).digest()


def _map(tree: Any, fn: Callable[[Any], Any]) -> Any:
    import torch

    if isinstance(tree, torch.Tensor):
        return fn(tree)
    if isinstance(tree, (tuple, list)):
        return type(tree)(_map(x, fn) for x in tree)
    if isinstance(tree, dict):
        return {k: _map(v, fn) for k, v in tree.items()}
    return tree


def _laid_out(values: Any, like: Any) -> Any:
    """``values`` with the strides of ``like``: the scenario may have sent a transposed view of an input."""
    if values.stride() == like.stride() or values.numel() == 0:
        return values
    import torch

    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype).copy_(values)


def _plain(tree: Any) -> Any:
    if isinstance(tree, Remote):
        raise Mismatch(f"The answer must be a tensor, or tensors in plain tuples, lists and dicts; it is {kind(tree)}.")
    return tree


def _number(numbers: dict[int, int], t: Any) -> int:
    try:
        return numbers[id(t)]
    except KeyError:
        raise GraderFault("a replayed scenario must return what the submission returned, untouched") from None
