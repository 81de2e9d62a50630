"""Hypothesis for graders: the same seed gives the same examples, a dead worker ends the search at once.

Data are drawn as small integers first (shapes, a seed) and built from them, so that the shrunk case can be read.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky, Unsatisfiable
from hypothesis.internal.conjecture import engine
from hypothesis.stateful import run_state_machine_as_test

from llmkata.wire import WireError, encode

from .compare import GraderFault, Mismatch
from .context import current

#: Shrinking stops after that many runs or seconds: the learner waits for it.
_SHRINK_RUNS, _SHRINK_SECONDS = 200, 2.0


def _settings(examples: int, **more: Any) -> settings:
    # derandomize is off in so many words: Hypothesis turns it on where the variable CI is set, and it ignores seeds.
    return settings(max_examples=examples, database=None, deadline=None, report_multiple_bugs=False, print_blob=False,
                    derandomize=False, phases=(Phase.generate, Phase.shrink),
                    suppress_health_check=list(HealthCheck), **more)


class _Allowance:
    """After the first failure, a bounded number of further runs; then only cases known to fail are run again."""

    def __init__(self) -> None:
        self._failing: set[bytes] = set()
        self._runs, self._since = 0, 0.0

    def skips(self, key: bytes) -> bool:
        """Whether to pass over a case (the shrinker takes it for one that does not fail)."""
        if not self._failing:
            return False
        self._runs += 1
        spent = self._runs > _SHRINK_RUNS or time.monotonic() - self._since > _SHRINK_SECONDS
        return spent and key not in self._failing

    def failed(self, key: bytes) -> None:
        """Remember a failing case."""
        if not self._failing:
            self._since = time.monotonic()
        self._failing.add(key)


def given(strategy: Any, *, examples: int = 50) -> Callable[[Callable], Callable]:
    """Run the check for ``examples`` drawn values of its parameter ``case``."""

    def decorate(fn: Callable) -> Callable:
        signature = inspect.signature(fn)
        if "case" not in signature.parameters:
            raise TypeError(f"{fn.__name__}: sk.given needs a parameter named 'case'")

        @functools.wraps(fn)
        def run(**fixtures: Any) -> None:
            context, allowance = current(), _Allowance()

            def body(case: Any) -> None:
                key = _digest(case)
                if allowance.skips(key):
                    return
                if context.link is not None:
                    context.link.transcript.begin_example()
                try:
                    fn(**fixtures, case=case)
                except Exception:
                    allowance.failed(key)
                    raise

            test = hypothesis.seed(context.seed)(_settings(examples)(hypothesis.given(case=strategy)(body)))
            _run(test)

        run.__signature__ = signature.replace(
            parameters=[p for name, p in signature.parameters.items() if name != "case"])
        del run.__wrapped__
        return run

    return decorate


def run_machine(machine: Callable[[Any], Any], *, submission: Any, steps: int = 30, examples: int = 20) -> None:
    """Run a Hypothesis state machine; ``machine(submission)`` makes one."""
    context = current()

    def make() -> Any:
        if context.link is not None:
            context.link.transcript.begin_example()
        return machine(submission)

    hypothesis.seed(context.seed)(make)
    with _bounded_shrinking():
        _run(lambda: run_state_machine_as_test(make, settings=_settings(examples, stateful_step_count=steps)))


@contextlib.contextmanager
def _bounded_shrinking() -> Iterator[None]:
    """Hypothesis shrinks a state machine for up to five minutes, and has no setting for it."""
    before = engine.MAX_SHRINKING_SECONDS
    engine.MAX_SHRINKING_SECONDS = _SHRINK_SECONDS
    try:
        yield
    finally:
        engine.MAX_SHRINKING_SECONDS = before


def _run(test: Callable[[], None]) -> None:
    try:
        test()
    except Flaky:
        raise Mismatch("The same input gave two different answers: something is kept from one call to the next.") from None
    except Unsatisfiable as e:
        raise GraderFault(f"the strategy found no example: {e}") from None


def _digest(case: Any) -> bytes:
    """The same for equal cases in every run (a pickle of a tensor is not)."""
    try:
        return hashlib.blake2b(encode(case), digest_size=16).digest()
    except WireError:
        return repr(case).encode()


def tensor(seed: int, shape: tuple[int, ...], dtype: Any = None, scale: float = 1.0) -> Any:
    """A normal tensor of ``shape`` (float64 unless ``dtype`` is given) from a drawn seed; entries are rounded to 1/64
    so that they are exact in float32 and can be read."""
    import torch

    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (torch.round(values * 64) / 64 * scale).to(dtype or torch.float64)


def array(seed: int, shape: tuple[int, ...], dtype: Any = "float64", scale: float = 1.0) -> np.ndarray:
    """The same as an ndarray."""
    values = np.random.default_rng(seed).standard_normal(shape)
    return (np.round(values * 64) / 64 * scale).astype(dtype)
