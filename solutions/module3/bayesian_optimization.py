"""Bayesian optimization of LLM configurations: search space, Gaussian process, expected improvement, the ask/tell loop.

Tensors are torch.float64. X (n, d) holds encoded configurations, one a row, y (n,) their losses; smaller is better.
Sources: Rasmussen and Williams (2006), chapters 2, 4 and 5; Frazier (2018); Ament et al. (2023) for log-EI.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shlex
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Objective = Callable[[dict], float]

# --- given: parameters ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Float:
    """A real parameter in [low, high]; with log=True its logarithm is what is searched evenly."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Int:
    """An integer parameter, low <= value <= high, both included."""

    low: int
    high: int
    log: bool = False


@dataclass(frozen=True)
class Categorical:
    """One of `choices` (at least one), in no order."""

    choices: tuple


Parameter = Float | Int | Categorical

# --- task 1: the search space -----------------------------------------------------------------------------------------


# BEGIN HIDDEN
def _scale(p: Float | Int, value):
    """Where the numeric value(s) lie in [low, high], on the parameter's scale: 0 at low, 1 at high."""
    value = np.asarray(value, np.float64)
    if p.log:
        return (np.log(value) - math.log(p.low)) / (math.log(p.high) - math.log(p.low))
    return (value - p.low) / (p.high - p.low)


def _unscale(p: Float | Int, u: np.ndarray) -> np.ndarray:
    """Values of the parameter at u, for integers the nearest one as seen from u. exp(log(high)) may exceed high."""
    if p.log:
        x = np.exp(math.log(p.low) + u * (math.log(p.high) - math.log(p.low)))
    else:
        x = p.low + u * (p.high - p.low)
    x = np.clip(x, p.low, p.high)
    if isinstance(p, Float):
        return x
    below = np.floor(x)
    above = np.clip(below + 1, p.low, p.high)
    # On a logarithmic scale the border between 1 and 2 lies at sqrt(2), not at 1.5.
    return np.where(_scale(p, above) - u < u - _scale(p, below), above, below)


def _values(p: Float | Int, u: np.ndarray) -> list:
    """What `_unscale` gives, as Python numbers."""
    return [(int if isinstance(p, Int) else float)(x) for x in _unscale(p, u)]


# END HIDDEN


class Space:
    """A box of named parameters and, perhaps, a constraint on whole configurations.

    The encoding has one coordinate for a Float or an Int (0 at low, 1 at high, linear or logarithmic) and
    len(choices) for a Categorical (one-hot), in the order of `params`; `dim` is their number.

    Raises ValueError with the parameter's name where low >= high, or where log is set and low <= 0.
    """

    dim: int

    def __init__(
        self,
        params: Mapping[str, Parameter],
        constraint: Callable[[dict], bool] | None = None,
    ) -> None:
        self.params = dict(params)
        self.constraint = constraint
        # BEGIN SOLUTION task 1: check the bounds, add up the widths
        self.slices: dict[str, slice] = {}
        start = 0
        for name, p in self.params.items():
            width = len(p.choices) if isinstance(p, Categorical) else 1
            if not isinstance(p, Categorical):
                if p.low >= p.high:
                    raise ValueError(f"{name}: low {p.low} must be less than high {p.high}")
                if p.log and p.low <= 0:
                    raise ValueError(f"{name}: a logarithmic scale needs low > 0, got {p.low}")
            self.slices[name] = slice(start, start + width)
            start += width
        self.dim = start
        # END SOLUTION

    def encode(self, config: Mapping[str, Any]) -> Tensor:
        """The configuration as a point (dim,) of the unit cube. `config` has a value in range for every parameter."""
        # BEGIN SOLUTION task 1: one coordinate for a number, one-hot for a choice
        u = np.zeros(self.dim)
        for name, p in self.params.items():
            where = self.slices[name]
            if isinstance(p, Categorical):
                u[where.start + p.choices.index(config[name])] = 1.0
            else:
                u[where] = _scale(p, config[name])
        return torch.from_numpy(u)
        # END SOLUTION

    def decode(self, u: Tensor) -> dict:
        """The configuration nearest to u (dim,): coordinates are clipped to [0, 1], an Int is the integer whose encoding
        is nearest, a Categorical the choice of the largest coordinate. Values are Python floats, ints and the choices
        themselves; floats never leave [low, high]. The constraint plays no part."""
        # BEGIN SOLUTION task 1: nearest value of each parameter
        return self.decode_rows(u[None])[0]
        # END SOLUTION

    def canonical(self, U: Tensor) -> Tensor:
        """encode(decode(u)) for each row u of U (n, dim)."""
        # BEGIN SOLUTION task 1: what the objective will see of each row
        rows = U.numpy()
        out = np.zeros((len(rows), self.dim))
        for name, p in self.params.items():
            where = self.slices[name]
            if isinstance(p, Categorical):
                out[np.arange(len(rows)), where.start + rows[:, where].argmax(1)] = 1.0
            else:
                out[:, where.start] = _scale(p, _unscale(p, rows[:, where.start]))
        return torch.from_numpy(out)
        # END SOLUTION

    def sample(self, n: int, rng: np.random.Generator) -> list[dict]:
        """n random configurations that meet the constraint, spread evenly over the encoded scale of each parameter
        (repetitions allowed). Raises RuntimeError where next to nothing meets the constraint."""
        # BEGIN SOLUTION task 1: draw until n are feasible
        found: list[dict] = []
        for _ in range(300):
            block = self.decode_rows(torch.from_numpy(rng.random((max(n, 64), self.dim))))
            found += [config for config in block if self.feasible(config)]
            if len(found) >= n:
                return found[:n]
        raise RuntimeError("no configurations found that meet the constraint")
        # END SOLUTION

    # BEGIN HIDDEN
    def feasible(self, config: dict) -> bool:
        return self.constraint is None or bool(self.constraint(config))

    def decode_rows(self, U: Tensor) -> list[dict]:
        rows = U.numpy()
        columns = []
        for name, p in self.params.items():
            where = self.slices[name]
            if isinstance(p, Categorical):
                columns.append([p.choices[i] for i in rows[:, where].argmax(1)])
            else:
                columns.append(_values(p, rows[:, where.start]))
        return [dict(zip(self.params, values)) for values in zip(*columns)]

    def size(self) -> float:
        """Number of configurations, the constraint apart."""
        sizes = {Float: lambda p: math.inf, Int: lambda p: p.high - p.low + 1, Categorical: lambda p: len(p.choices)}
        return math.prod(sizes[type(p)](p) for p in self.params.values())

    def all_configs(self) -> Iterable[dict]:
        values = [p.choices if isinstance(p, Categorical) else range(p.low, p.high + 1) for p in self.params.values()]
        return (dict(zip(self.params, row)) for row in itertools.product(*values))

    # END HIDDEN


# --- task 2: the Gaussian process -------------------------------------------------------------------------------------

SQRT5 = math.sqrt(5.0)


def matern52(X: Tensor, Z: Tensor, lengthscales: Tensor, outputscale: Tensor | float) -> Tensor:
    """Matern-5/2 kernel with a lengthscale for each coordinate: X (n, d), Z (m, d), lengthscales (d,) -> (n, m).

        k(x, z) = outputscale (1 + sqrt(5) r + 5/3 r^2) exp(-sqrt(5) r),   r^2 = sum_k ((x_k - z_k)/l_k)^2

    Differentiable by autograd, with finite gradients where rows coincide (r = 0) as well.
    """
    # BEGIN SOLUTION task 2: scaled distances, the polynomial, the exponential
    X, Z = X / lengthscales, Z / lengthscales
    # |x - z|^2 = |x|^2 + |z|^2 - 2 x.z needs no array of shape (n, m, d). The clamp keeps rounding from making it
    # negative, and the slope of sqrt at 0 from becoming infinite.
    square = ((X * X).sum(1)[:, None] + (Z * Z).sum(1) - 2.0 * (X @ Z.mT)).clamp_min(1e-30)
    r = SQRT5 * square.sqrt()
    return outputscale * (1.0 + r + r * r / 3.0) * (-r).exp()
    # END SOLUTION


class GaussianProcess:
    """A zero-mean Gaussian process: y = f + e, f ~ GP(0, matern52), e ~ N(0, noise).

    lengthscales (d,), outputscale the variance of f, noise the variance of e: the only term on the diagonal, no jitter
    besides. y is taken as it is: standardising is the optimizer's business.
    """

    def __init__(self, lengthscales: Tensor, outputscale: float, noise: float) -> None:
        self.lengthscales, self.outputscale, self.noise = lengthscales, outputscale, noise

    def fit(self, X: Tensor, y: Tensor) -> GaussianProcess:
        """Condition on X (n, d), y (n,), n >= 1, in place of what was there before; returns self."""
        # BEGIN SOLUTION task 2: factorise K + noise I once, solve for alpha
        K = matern52(X, X, self.lengthscales, self.outputscale)
        self.X, self.y = X, y
        self.L = torch.linalg.cholesky(K + self.noise * torch.eye(len(X), dtype=torch.float64))
        self.alpha = torch.cholesky_solve(y[:, None], self.L)[:, 0]
        return self
        # END SOLUTION

    def predict(self, Z: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean (m,) and standard deviation (m,) of f at Z (m, d), not of y: noise is not added. The variance
        is floored at 1e-12, so std >= 1e-6. Needs fit first."""
        # BEGIN SOLUTION task 2: mean, and the diagonal of the posterior covariance
        k = matern52(self.X, Z, self.lengthscales, self.outputscale)
        mean = self.alpha @ k
        # var = k(z, z) - k(z, X) (K + noise I)^-1 k(X, z) = outputscale - |L^-1 k(X, z)|^2
        v = torch.linalg.solve_triangular(self.L, k, upper=False)
        variance = self.outputscale - (v * v).sum(0)
        return mean, variance.clamp_min(1e-12).sqrt()
        # END SOLUTION

    def log_marginal_likelihood(self) -> float:
        """log N(y; 0, K + noise I), with its constant -n/2 log(2 pi)."""
        # BEGIN SOLUTION task 2: fit, complexity, constant
        fit = 0.5 * float(self.y @ self.alpha)
        half_logdet = float(self.L.diagonal().log().sum())
        return -fit - half_logdet - 0.5 * len(self.y) * math.log(2 * math.pi)
        # END SOLUTION


# --- task 3: hyperparameters ------------------------------------------------------------------------------------------

#: Where hyperparameters are searched: log of (low, high) for lengthscales, outputscale, noise.
LENGTHSCALE_BOUNDS = (math.log(0.02), math.log(20.0))
OUTPUTSCALE_BOUNDS = (math.log(1e-3), math.log(1e3))
NOISE_BOUNDS = (math.log(1e-6), math.log(1.0))


def hyper_bounds(d: int) -> list[tuple[float, float]]:
    """Bounds of log_params for d coordinates, (low, high) each."""
    return [LENGTHSCALE_BOUNDS] * d + [OUTPUTSCALE_BOUNDS, NOISE_BOUNDS]


def log_prior(log_params: Tensor) -> tuple[float, Tensor]:
    """A broad log-normal prior on (lengthscales (d,), outputscale, noise) and its gradient, up to a constant. With few
    observations the likelihood alone is over-confident; adding this to it makes the fit inside `ask` robust."""
    d = len(log_params) - 2
    mean = torch.tensor([math.log(0.4) + 0.5 * math.log(d)] * d + [0.0, math.log(1e-4)], dtype=torch.float64)
    std = torch.tensor([1.0] * d + [1.0, 2.0], dtype=torch.float64)
    z = (log_params - mean) / std
    return -0.5 * float(z @ z), -z / std


def lml_and_grad(log_params: Tensor, X: Tensor, y: Tensor) -> tuple[float, Tensor]:
    """Log marginal likelihood of X (n, d), y (n,) and its gradient (d + 2,) with respect to
    log_params = [log lengthscales (d), log outputscale, log noise]. No prior, y as it is."""
    # BEGIN SOLUTION task 3: value and gradient from one factorisation
    d = X.shape[1]
    theta = log_params.exp()
    lengthscales, outputscale, noise = theta[:d], theta[d], theta[d + 1]
    scaled = X / lengthscales
    square = (scaled[:, None] - scaled[None]) ** 2
    r = SQRT5 * square.sum(-1).sqrt()
    decay = outputscale * (-r).exp()
    K = (1.0 + r + r * r / 3.0) * decay
    L = torch.linalg.cholesky(K + noise * torch.eye(len(X), dtype=torch.float64))
    alpha = torch.cholesky_solve(y[:, None], L)[:, 0]
    value = -0.5 * (y @ alpha) - L.diagonal().log().sum() - 0.5 * len(y) * math.log(2 * math.pi)
    # d lml / dt = 1/2 tr(W dK/dt),  W = alpha alpha^T - (K + noise I)^-1.  tr(W A) = sum of W * A for symmetric A.
    W = torch.outer(alpha, alpha) - torch.cholesky_inverse(L)
    # dK / d log l_k = outputscale 5/3 (1 + sqrt(5) r) exp(-sqrt(5) r) (x_k - z_k)^2 / l_k^2: no division by r.
    by_lengthscale = (W * (5.0 / 3.0) * (1.0 + r) * decay).reshape(-1) @ square.reshape(-1, d)
    by_outputscale = (W * K).sum()
    by_noise = noise * W.diagonal().sum()
    return float(value), 0.5 * torch.cat([by_lengthscale, by_outputscale[None], by_noise[None]])
    # END SOLUTION


# BEGIN HIDDEN
def _climb(objective: Callable[[Tensor], tuple[float, Tensor]], start: Tensor, iterations: int) -> tuple[float, Tensor]:
    """Maximise inside the bounds by L-BFGS-B; (value, where)."""
    from scipy.optimize import minimize  # 0.3 s that only those pay who fit

    def negative(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, grad = objective(torch.from_numpy(x))
        return -value, -grad.numpy()

    bounds = hyper_bounds(len(start) - 2)
    low, high = np.array(bounds).T
    x0 = np.clip(start.numpy(), low, high)
    found = minimize(
        negative, x0, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": iterations, "maxfun": 2 * iterations}
    )
    return -float(found.fun), torch.from_numpy(found.x)


def _default_start(d: int) -> Tensor:
    return torch.tensor([math.log(0.5)] * d + [0.0, math.log(1e-3)], dtype=torch.float64)


# END HIDDEN


def fit_hyperparameters(
    X: Tensor,
    y: Tensor,
    *,
    seed: int,
    restarts: int = 2,
    warm_start: Tensor | None = None,
) -> Tensor:
    """log_params (d + 2,) that maximise the marginal likelihood of X (n, d), y (n,) inside `hyper_bounds(d)`.

    Climbs from `warm_start` (a default where None) and from `restarts` random points of the box drawn with `seed`, and
    keeps the best: never worse than `warm_start` itself. The same arguments give the same answer.
    """
    # BEGIN SOLUTION task 3: climb from several starts, keep the best
    d = X.shape[1]
    low, high = np.array(hyper_bounds(d)).T
    rng = np.random.default_rng(seed)
    starts = [_default_start(d) if warm_start is None else warm_start]
    starts += [torch.from_numpy(rng.uniform(low, high)) for _ in range(restarts)]
    climbs = [_climb(lambda p: lml_and_grad(p, X, y), start, 60) for start in starts]
    return max(climbs, key=lambda climb: climb[0])[1]
    # END SOLUTION


# --- task 4: expected improvement -------------------------------------------------------------------------------------


def expected_improvement(mean: Tensor, std: Tensor, best: float, xi: float = 0.0) -> Tensor:
    """E max(best - xi - f, 0) for f ~ N(mean, std^2), element by element (minimisation): mean, std (m,) -> (m,).

    With z = (best - xi - mean)/std it is std (phi(z) + z Phi(z)); where std = 0 it is max(best - xi - mean, 0).
    """
    # BEGIN SOLUTION task 4: closed form, and its limit at std = 0
    gain = best - xi - mean
    sure = std == 0
    z = gain / torch.where(sure, 1.0, std)
    density = (-0.5 * z * z).exp() / math.sqrt(2 * math.pi)
    return torch.where(sure, gain.clamp_min(0.0), std * density + gain * torch.special.ndtr(z))
    # END SOLUTION


def log_expected_improvement(mean: Tensor, std: Tensor, best: float, xi: float = 0.0) -> Tensor:
    """log of `expected_improvement`, finite and with a finite, non-zero gradient (autograd) for std > 0 and every z from
    -1e5 to 1e5, where EI itself underflows to 0. Where std = 0 it is log max(best - xi - mean, 0), perhaps -inf."""
    # BEGIN SOLUTION task 4: log std + log h(z), h(z) = phi(z) + z Phi(z), in the tail by erfcx
    gain = best - xi - mean
    sure = std == 0
    safe = torch.where(sure, 1.0, std)
    z = gain / safe
    # Phi(z) = phi(z) sqrt(pi/2) erfcx(-z/sqrt(2)), so h(z) = phi(z) (1 + z sqrt(pi/2) erfcx(-z/sqrt(2))): the factor that
    # underflows is taken out as a logarithm. Each branch sees only arguments that it can bear (gradients!).
    near = z > -1.0
    z_near = torch.where(near, z, 0.0)
    h = (-0.5 * z_near**2).exp() / math.sqrt(2 * math.pi) + z_near * torch.special.ndtr(z_near)
    # For z << 0 the bracket 1 - |z| sqrt(pi/2) erfcx(|z|/sqrt(2)) cancels; its series is 1/z^2 - 3/z^4 + ..., of which the
    # second term is 3e-6 of the first at -1e3, where log EI is half a million.
    far = z < -1e3
    z_mid = torch.where(near | far, -2.0, z)
    bracket = torch.log1p(z_mid * math.sqrt(math.pi / 2) * torch.special.erfcx(-z_mid / math.sqrt(2.0)))
    z_far = torch.where(far, z, -1e3)
    series = -2.0 * (-z_far).log()
    tail = -0.5 * torch.where(near, -1.0, z) ** 2 - 0.5 * math.log(2 * math.pi) + torch.where(far, series, bracket)
    limit = torch.where(sure, gain, 1.0).clamp_min(0.0).log()
    return torch.where(sure, limit, safe.log() + torch.where(near, h.log(), tail))
    # END SOLUTION


# --- tasks 5 to 7: the optimizer --------------------------------------------------------------------------------------


class BayesianOptimizer:
    """Ask for configurations, tell their losses.

    `ask` is a pure function of seed, settings and what was told, in that order: what was asked and not yet told is
    forgotten. The first n_init observations come from a scrambled Sobol sequence with one coordinate per parameter.
    """

    def __init__(self, space: Space, *, seed: int, n_init: int = 8, n_candidates: int = 1000) -> None:
        self.space = space
        self.seed, self.n_init, self.n_candidates = seed, n_init, n_candidates
        self.history: list[tuple[dict, float]] = []

    def ask(self, n: int = 1) -> list[dict]:
        """n different feasible configurations that were never told.

        While fewer than n_init runs were told, or fewer than 2 of them finite, they come from the initial design: the
        next points of the Sobol sequence that are feasible and not told yet. ask(4) after 6 of 8 gives 2 design points,
        then 2 of the model. Of the model: maximise log-EI over n_candidates random points and what local search you
        like, on canonical points. A diverged run (not finite) counts as the worst finite loss. Losses are standardised:
        4y + 256 in place of y changes nothing. Points of the same ask are pending: each is added to the data with the
        posterior mean as its loss, which `best` of log-EI then
        counts as reached, before the next is chosen (kriging believer); hyperparameters stay.

        Raises RuntimeError "exhausted" where a finite space (no Float, at most 100,000 configurations) has fewer than n
        feasible configurations left.
        """
        # BEGIN SOLUTION task 5: initial design, fit, maximise log-EI; task 6: believers
        taken = {self._key(config) for config, _ in self.history}
        values = np.array([value for _, value in self.history])
        finite = values[np.isfinite(values)]
        if self.space.size() <= self.n_candidates and len(self._left(taken)) < n:
            raise RuntimeError(f"exhausted: fewer than {n} configurations are left")
        from_design = n if len(finite) < 2 else min(n, max(self.n_init - len(values), 0))
        picked = self._design(from_design, taken) if from_design else []
        if len(picked) == n:
            return picked
        # The worst finite loss is bad enough to keep away, and no outlier that flattens the rest.
        y = np.where(np.isfinite(values), values, finite.max())
        y = torch.from_numpy((y - y.mean()) / (y.std() or 1.0))
        X = torch.stack([self.space.encode(config) for config, _ in self.history])
        gp = self._model(X, y)
        for config in picked:
            X, y, gp = self._believe(gp, X, y, config)
        while len(picked) < n:
            rng = np.random.default_rng([self.seed, len(values), len(picked)])
            # What is believed counts as reached: only what would be better still is an improvement.
            config = self._best_candidate(gp, float(y.min()), X[y.argmin()], rng, taken)
            taken.add(self._key(config))
            picked.append(config)
            if len(picked) < n:
                X, y, gp = self._believe(gp, X, y, config)
        return picked
        # END SOLUTION

    # BEGIN HIDDEN
    def _key(self, config: Mapping) -> tuple:
        """What tells configurations apart: values, and for choices their place."""
        return tuple(
            p.choices.index(config[name]) if isinstance(p, Categorical) else config[name]
            for name, p in self.space.params.items()
        )

    def _left(self, taken: set) -> list[dict]:
        """All feasible configurations of a finite space that are not taken."""
        return [c for c in self.space.all_configs() if self.space.feasible(c) and self._key(c) not in taken]

    def _design(self, n: int, taken: set) -> list[dict]:
        """The next n >= 1 points of the Sobol sequence that are feasible and new; they are added to `taken`."""
        params = self.space.params
        engine = torch.quasirandom.SobolEngine(len(params), scramble=True, seed=self.seed)
        picked: list[dict] = []
        for _ in range(64):
            columns = []
            for p, u in zip(params.values(), engine.draw(32, dtype=torch.float64).numpy().T):
                if isinstance(p, Categorical):
                    columns.append([p.choices[int(x * len(p.choices))] for x in u])
                else:
                    columns.append(_values(p, u))
            for row in zip(*columns):
                config = dict(zip(params, row))
                if self._key(config) not in taken and self.space.feasible(config):
                    taken.add(self._key(config))
                    picked.append(config)
                    if len(picked) == n:
                        return picked
        rng = np.random.default_rng([self.seed, len(taken)])
        while len(picked) < n:
            picked.append(self._any_new(rng, taken))
            taken.add(self._key(picked[-1]))
        return picked

    def _any_new(self, rng: np.random.Generator, taken: set) -> dict:
        if self.space.size() <= 1e5:
            left = self._left(taken)
            if not left:
                raise RuntimeError("exhausted: every configuration of the space was evaluated")
            return left[int(rng.integers(len(left)))]
        for config in self.space.sample(1000, rng):
            if self._key(config) not in taken:
                return config
        raise RuntimeError("exhausted: no new configuration was found")

    def _model(self, X: Tensor, y: Tensor) -> GaussianProcess:
        """A process with the hyperparameters of largest posterior density."""

        def posterior(p: Tensor) -> tuple[float, Tensor]:
            (value, grad), (prior, prior_grad) = lml_and_grad(p, X, y), log_prior(p)
            return value + prior, grad + prior_grad

        d = X.shape[1]
        theta = _climb(posterior, _default_start(d), 10)[1].exp()
        return GaussianProcess(theta[:d], float(theta[d]), float(theta[d + 1])).fit(X, y)

    def _believe(self, gp: GaussianProcess, X: Tensor, y: Tensor, config: dict) -> tuple[Tensor, Tensor, GaussianProcess]:
        """Data and process with `config` observed where the model expects it."""
        u = self.space.encode(config)[None]
        X, y = torch.cat([X, u]), torch.cat([y, gp.predict(u)[0]])
        return X, y, GaussianProcess(gp.lengthscales, gp.outputscale, gp.noise).fit(X, y)

    def _best_candidate(self, gp: GaussianProcess, best: float, incumbent: Tensor, rng, taken: set) -> dict:
        """The best new feasible point of a random cloud, then of ever smaller clouds around the best so far."""

        def first_new(U: Tensor, above: float) -> tuple[float, Tensor, dict] | None:
            """The candidate of largest log-EI above `above` that is new and feasible: so only few are ever decoded."""
            score = log_expected_improvement(*gp.predict(U), best)
            for i in score.argsort(descending=True).tolist():
                if not score[i] > above:
                    return None
                config = self.space.decode(U[i])
                if self._key(config) not in taken and self.space.feasible(config):
                    return float(score[i]), U[i], config
            return None

        if self.space.size() <= self.n_candidates:
            everything = torch.stack([self.space.encode(c) for c in self._left(taken)])
            return first_new(everything, -math.inf)[2]
        cloud = torch.from_numpy(rng.random((self.n_candidates, self.space.dim)))
        near = (incumbent + 0.1 * torch.from_numpy(rng.standard_normal((100, self.space.dim)))).clamp(0.0, 1.0)
        found = first_new(self.space.canonical(torch.cat([cloud, near])), -math.inf)
        if found is None:
            return self._any_new(rng, taken)
        for width in (0.1, 0.04, 0.015):
            step = width * torch.from_numpy(rng.standard_normal((100, self.space.dim)))
            # Move some coordinates only: where few matter, moving all at once hardly ever helps.
            step *= torch.from_numpy(rng.random((100, self.space.dim)) < 0.5)
            better = first_new(self.space.canonical((found[1] + step).clamp(0.0, 1.0)), found[0])
            found = better or found
        return found[2]

    # END HIDDEN

    def tell(self, config: Mapping[str, Any], value: float) -> None:
        """Record the loss of a configuration; nan or inf means that the run diverged.

        Numbers outside [low, high] are clipped. Raises KeyError for an unknown or a missing parameter, ValueError for
        an unknown choice; nothing is recorded then.
        """
        # BEGIN SOLUTION task 5: check the keys, clip, record
        for name in [*config, *self.space.params]:
            if name not in self.space.params or name not in config:
                raise KeyError(name)
        clean = {}
        for name, p in self.space.params.items():
            if isinstance(p, Categorical):
                if config[name] not in p.choices:
                    raise ValueError(f"{name}: {config[name]!r} is none of {p.choices}")
                clean[name] = config[name]
            else:
                clean[name] = (int if isinstance(p, Int) else float)(min(max(config[name], p.low), p.high))
        self.history.append((clean, float(value)))
        # END SOLUTION

    @property
    def best(self) -> tuple[dict, float]:
        """The configuration of the smallest finite loss told, and that loss. Raises ValueError where there is none."""
        # BEGIN SOLUTION task 5: smallest finite loss
        finite = [run for run in self.history if math.isfinite(run[1])]
        if not finite:
            raise ValueError("no finite loss was told yet")
        return min(finite, key=lambda run: run[1])
        # END SOLUTION

    def state_dict(self) -> dict:
        """Settings and history as what json.dumps(..., allow_nan=False) takes: losses that are not finite as strings,
        choices by their place in `choices`."""
        # BEGIN SOLUTION task 7: settings and history as plain data
        history = [
            [list(self._key(config)), value if math.isfinite(value) else str(value)] for config, value in self.history
        ]
        return {"seed": self.seed, "n_init": self.n_init, "n_candidates": self.n_candidates, "history": history}
        # END SOLUTION

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what `state_dict` was taken from (over an equal space): the same asks from here on."""
        # BEGIN SOLUTION task 7: the way back
        self.seed, self.n_init, self.n_candidates = state["seed"], state["n_init"], state["n_candidates"]
        self.history = []
        for key, value in state["history"]:
            items = zip(self.space.params.items(), key)
            config = {name: p.choices[v] if isinstance(p, Categorical) else v for (name, p), v in items}
            self.history.append((config, float(value)))
        # END SOLUTION


def optimize(
    objective: Objective,
    space: Space,
    n_trials: int,
    *,
    seed: int,
    method: Literal["gp", "random", "tpe"] = "gp",
) -> list[tuple[dict, float]]:
    """Exactly n_trials calls of `objective`, one at a time; (configuration, loss) of each in order. "random" and "tpe" are
    the given `random_search` and `tpe_search`; any other method raises ValueError."""
    # BEGIN SOLUTION task 5: ask, evaluate, tell
    if method == "random":
        return random_search(objective, space, n_trials, seed=seed)
    if method == "tpe":
        return tpe_search(objective, space, n_trials, seed=seed)
    if method != "gp":
        raise ValueError(f"method must be gp, random or tpe, got {method!r}")
    optimizer = BayesianOptimizer(space, seed=seed)
    for _ in range(n_trials):
        (config,) = optimizer.ask()
        optimizer.tell(config, objective(config))
    return optimizer.history
    # END SOLUTION


# --- task 8: an honest comparison -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """curves: running best per method, (seeds, trials) float64, inf before the first finite loss. median_final: median
    over seeds of the last column. wins: share of seeds on which the method's final value is the lowest, a tie shared
    equally. evaluations: calls of the objective, over all seeds."""

    curves: dict[str, np.ndarray]
    median_final: dict[str, float]
    wins: dict[str, float]
    evaluations: dict[str, int]


def compare(
    objective: Objective,
    space: Space,
    n_trials: int,
    seeds: Sequence[int],
    methods: Sequence[str],
) -> Comparison:
    """Run each method with each seed for n_trials evaluations. Losses that are not finite never are a best."""
    # BEGIN SOLUTION task 8: running minima, medians, wins, calls
    calls = dict.fromkeys(methods, 0)
    curves = {}
    for method in methods:

        def counted(config: dict, method: str = method) -> float:
            calls[method] += 1
            return objective(config)

        runs = [optimize(counted, space, n_trials, seed=seed, method=method) for seed in seeds]
        losses = np.array([[value for _, value in run] for run in runs], np.float64)
        curves[method] = np.minimum.accumulate(np.where(np.isfinite(losses), losses, np.inf), axis=1)
    final = np.stack([curves[method][:, -1] for method in methods])
    lowest = final == final.min(axis=0)
    shares = (lowest / lowest.sum(axis=0)).mean(axis=1)
    medians = np.median(final, axis=1)
    return Comparison(
        curves,
        {method: float(m) for method, m in zip(methods, medians)},
        {method: float(s) for method, s in zip(methods, shares)},
        calls,
    )
    # END SOLUTION


# --- given: the competitors -------------------------------------------------------------------------------------------


def random_search(objective: Objective, space: Space, n_trials: int, *, seed: int) -> list[tuple[dict, float]]:
    """n_trials random feasible configurations and their losses."""
    configs = space.sample(n_trials, np.random.default_rng(seed))
    return [(config, float(objective(config))) for config in configs]


def tpe_search(objective: Objective, space: Space, n_trials: int, *, seed: int) -> list[tuple[dict, float]]:
    """Optuna's tree-structured Parzen estimator. An infeasible proposal is told as failed and is no trial; after 50 in a
    row a random feasible configuration is taken. Needs optuna."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    rng = np.random.default_rng(seed)

    def distribution(p: Parameter) -> Any:
        if isinstance(p, Categorical):
            return optuna.distributions.CategoricalDistribution(p.choices)
        kind = optuna.distributions.IntDistribution if isinstance(p, Int) else optuna.distributions.FloatDistribution
        return kind(p.low, p.high, log=p.log)

    distributions = {name: distribution(p) for name, p in space.params.items()}
    history: list[tuple[dict, float]] = []
    refused = 0
    while len(history) < n_trials:
        if refused == 50:
            study.enqueue_trial(space.sample(1, rng)[0])
        trial = study.ask(distributions)
        config = dict(trial.params)
        if space.constraint is not None and not space.constraint(config):
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            refused += 1
            continue
        refused = 0
        history.append((config, float(objective(config))))
        if math.isfinite(history[-1][1]):
            study.tell(trial, history[-1][1])
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return history


def plot_comparison(comparison: Comparison, path: str | Path) -> None:
    """Write the median running best of each method as a PNG to `path`, and what was plotted to `<path>.json`:
    {method: {"curves": [[...]], "median": [...]}}, null where there is no finite loss yet."""
    from matplotlib import pyplot

    plain = {}
    figure, axes = pyplot.subplots()
    for method, curves in comparison.curves.items():
        median = np.median(curves, axis=0)
        axes.plot(np.arange(1, len(median) + 1), median, label=method)
        plain[method] = {"curves": _json_ready(curves), "median": _json_ready(median)}
    axes.set_xlabel("training runs")
    axes.set_ylabel("best loss so far")
    axes.legend()
    figure.savefig(path, format="png")
    pyplot.close(figure)
    Path(f"{path}.json").write_text(json.dumps(plain, allow_nan=False))


def _json_ready(values: np.ndarray) -> list:
    rows = values.tolist()
    return [_json_ready(np.asarray(row)) if isinstance(row, list) else row if math.isfinite(row) else None for row in rows]


# --- given: what is optimized -----------------------------------------------------------------------------------------


def estimate_memory_bytes(config: Mapping[str, Any], *, sequence: int = 1024, vocabulary: int = 32_000) -> int:
    """Bytes to train a decoder with `d_model`, `n_layers`, `n_heads` on one sequence: 16 a parameter (AdamW, mixed
    precision), and the activations of Korthikanti et al. (2022), n_layers sequence (34 d_model + 5 n_heads sequence)."""
    width, layers, heads = config["d_model"], config["n_layers"], config["n_heads"]
    parameters = 12 * layers * width**2 + vocabulary * width
    return 16 * parameters + layers * sequence * (34 * width + 5 * heads * sequence)


def llm_space(memory_cap: float = 4 * 2**30) -> Space:
    """Seven parameters of a training run that must fit into `memory_cap` bytes and whose heads divide the width."""
    params = {
        "lr": Float(1e-5, 3e-2, log=True),
        "batch_tokens": Int(2**13, 2**21, log=True),
        "warmup": Float(0.0, 0.3),
        "weight_decay": Float(0.0, 0.4),
        "n_layers": Int(4, 24),
        "d_model": Int(256, 1024, log=True),
        "n_heads": Categorical((1, 2, 4, 8)),
    }
    return Space(params, lambda c: c["d_model"] % c["n_heads"] == 0 and estimate_memory_bytes(c) <= memory_cap)


def llm_loss_surface(config: Mapping[str, Any]) -> float:
    """A stand-in for a training run of 1e18 FLOPs: the loss of Hoffmann et al. (2022), 1.69 + 406.4/N^0.34 + 410.7/D^0.28
    for N = 12 n_layers d_model^2 parameters and D = 1e18/(6 N) tokens, the learning rate of Kaplan et al. (2020), and
    penalties for what is off. nan where the learning rate is more than 8 times too large: the run diverges."""
    n = 12 * config["n_layers"] * config["d_model"] ** 2
    best_lr = 0.003239 - 0.0001395 * math.log(n)
    if config["lr"] > 8 * best_lr:
        return math.nan
    return (
        1.69
        + 406.4 / n**0.34
        + 410.7 / (1e18 / (6 * n)) ** 0.28
        + 0.05 * math.log(config["lr"] / best_lr) ** 2
        + 0.02 * math.log(config["batch_tokens"] / 2**17) ** 2
        + 1.5 * (config["warmup"] - 0.06) ** 2
        + 2.0 * (config["weight_decay"] - 0.1) ** 2
        + 0.02 * math.log(config["d_model"] / config["n_layers"] / 64) ** 2
    )


def tiny_space() -> Space:
    """What `train_tiny_llm` takes."""
    return Space({"lr": Float(1e-4, 1.0, log=True), "d_model": Categorical((16, 32)), "n_layers": Int(1, 2)})


def train_tiny_llm(config: Mapping[str, Any], steps: int = 30) -> float:
    """Train a LlamaForCausalLM (vocabulary 16, `d_model`, `n_layers`, AdamW at `lr`) on sequences that count upwards,
    and return the loss of the last step; nan where it diverged. Needs transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    width = config["d_model"]
    shape = LlamaConfig(
        vocab_size=16,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=config["n_layers"],
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"])
    loss = math.nan
    for _ in range(steps):
        ids = (torch.randint(16, (8, 1)) + torch.arange(12)) % 16
        output = model(input_ids=ids, labels=ids).loss
        loss = float(output.detach())
        if not math.isfinite(loss):
            return math.nan
        optimizer.zero_grad()
        output.backward()
        optimizer.step()
    return loss


# --- given: at real scale ---------------------------------------------------------------------------------------------


def run_trials(
    optimizer: BayesianOptimizer,
    evaluate: Callable[[list[dict]], list[float]],
    trials: int,
    *,
    parallel: int = 1,
    state: Path | None = None,
) -> None:
    """Ask for `parallel` configurations at a time, evaluate them together, tell, until `trials` are told. After each batch
    the state is replaced atomically in the file `state`; where it exists at the start, the search goes on from it."""
    if state is not None and state.exists():
        optimizer.load_state_dict(json.loads(state.read_text()))
    while len(optimizer.state_dict()["history"]) < trials:
        told = len(optimizer.state_dict()["history"])
        configs = optimizer.ask(min(parallel, trials - told))
        for config, value in zip(configs, evaluate(configs), strict=True):
            optimizer.tell(config, value)
        if state is not None:
            draft = state.with_suffix(".part")
            draft.write_text(json.dumps(optimizer.state_dict(), allow_nan=False))
            os.replace(draft, state)


def run_commands(template: str, configs: Sequence[Mapping[str, Any]]) -> list[float]:
    """Start one process per configuration, all at once, with {name} in the template replaced by its value; the last line
    that each prints is its loss. nan for an exit status other than 0 and for a last line that is no number."""
    words = [[word.format(**config) for word in shlex.split(template)] for config in configs]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in words]
    losses = []
    for process in running:
        out, _ = process.communicate()
        try:
            losses.append(float(out.strip().splitlines()[-1]) if process.returncode == 0 else math.nan)
        except (IndexError, ValueError):
            losses.append(math.nan)
    return losses


def space_from_yaml(text: str) -> Space:
    """A space without constraint from lines like `lr: {type: float, low: 1.0e-5, high: 1.0e-2, log: true}`, `type: int`
    and `{type: categorical, choices: [16, 32]}`."""
    import yaml

    params: dict[str, Parameter] = {}
    for name, entry in yaml.safe_load(text).items():
        kind = entry.pop("type")
        if kind == "categorical":
            params[name] = Categorical(tuple(entry["choices"]))
        else:
            params[name] = {"float": Float, "int": Int}[kind](**entry)
    return Space(params)


def main(argv: Sequence[str] | None = None) -> None:
    """Search from the command line; prints the best configuration as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--objective", choices=("surface", "train"), default="surface")
    parser.add_argument("--command", help='e.g. "torchrun train.py --lr {lr}"; needs --model-config')
    parser.add_argument("--model-config", type=Path, help="YAML file of the space")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path)
    options = parser.parse_args(argv)
    space = tiny_space() if options.objective == "train" else llm_space()
    if options.model_config is not None:
        space = space_from_yaml(options.model_config.read_text())
    objective = train_tiny_llm if options.objective == "train" else llm_loss_surface

    def evaluate(configs: list[dict]) -> list[float]:
        return run_commands(options.command, configs) if options.command else [objective(c) for c in configs]

    optimizer = BayesianOptimizer(space, seed=options.seed)
    run_trials(optimizer, evaluate, options.trials, parallel=options.parallel, state=options.state)
    config, loss = optimizer.best
    print(json.dumps({"config": config, "loss": loss}))


if __name__ == "__main__":
    main()
