"""Another answer to 3.4: a codec per parameter, gradients by autograd, log-EI as a function with a derivative of its own.

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
from collections.abc import Callable, Mapping, Sequence
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

# --- the search space: one codec per parameter ------------------------------------------------------------------------


class _Number:
    width = 1

    def __init__(self, p):
        self.p = p
        self.kind = int if isinstance(p, Int) else float
        self.to = math.log if p.log else float
        self.a, self.b = self.to(p.low), self.to(p.high)

    def encode(self, value):
        return [(self.to(value) - self.a) / (self.b - self.a)]

    def decode(self, u):
        u = min(max(float(u[0]), 0.0), 1.0)
        x = self.a + u * (self.b - self.a)
        x = min(max(math.exp(x) if self.p.log else x, self.p.low), self.p.high)
        if self.kind is float:
            return float(x)
        around = {min(max(math.floor(x) + i, self.p.low), self.p.high) for i in (0, 1)}
        return min(sorted(around), key=lambda v: abs(self.encode(v)[0] - u))

    def clip(self, value):
        return self.kind(min(max(value, self.p.low), self.p.high))

    def store(self, value):
        return value

    load = store


class _Choice:
    def __init__(self, p):
        self.choices = p.choices
        self.width = len(p.choices)

    def encode(self, value):
        place = self.choices.index(value)
        return [float(i == place) for i in range(self.width)]

    def decode(self, u):
        u = [float(x) for x in u]
        return self.choices[u.index(max(u))]

    def clip(self, value):
        if value not in self.choices:
            raise ValueError(f"{value!r} is no choice")
        return value

    def store(self, value):
        return self.choices.index(value)

    def load(self, place):
        return self.choices[place]


class Space:
    dim: int

    def __init__(
        self,
        params: Mapping[str, Parameter],
        constraint: Callable[[dict], bool] | None = None,
    ) -> None:
        self.params, self.constraint = dict(params), constraint
        for name, p in self.params.items():
            if isinstance(p, Categorical):
                continue
            if not p.low < p.high or (p.log and not p.low > 0):
                raise ValueError(f"bad bounds of {name}")
        self.codecs = {n: _Choice(p) if isinstance(p, Categorical) else _Number(p) for n, p in self.params.items()}
        self.dim = sum(c.width for c in self.codecs.values())

    def encode(self, config: Mapping[str, Any]) -> Tensor:
        flat = [x for name, codec in self.codecs.items() for x in codec.encode(config[name])]
        return torch.tensor(flat, dtype=torch.float64)

    def decode(self, u: Tensor) -> dict:
        rest, out = u.tolist(), {}
        for name, codec in self.codecs.items():
            out[name], rest = codec.decode(rest[: codec.width]), rest[codec.width :]
        return out

    def canonical(self, U: Tensor) -> Tensor:
        return torch.stack([self.encode(self.decode(u)) for u in U]) if len(U) else U.clone()

    def sample(self, n: int, rng: np.random.Generator) -> list[dict]:
        out, misses = [], 0
        while len(out) < n:
            config = self.decode(torch.from_numpy(rng.random(self.dim)))
            if self.allows(config):
                out.append(config)
                misses = 0
            elif (misses := misses + 1) > 20_000:
                raise RuntimeError("the constraint leaves nothing")
        return out

    def allows(self, config):
        return True if self.constraint is None else bool(self.constraint(config))

    def listing(self):
        """All feasible configurations of a small finite space, or None."""
        if any(isinstance(p, Float) for p in self.params.values()):
            return None
        ranges = [p.choices if isinstance(p, Categorical) else range(p.low, p.high + 1) for p in self.params.values()]
        if math.prod(map(len, ranges)) > 100_000:
            return None
        return [c for row in itertools.product(*ranges) if self.allows(c := dict(zip(self.params, row)))]


# --- the process ------------------------------------------------------------------------------------------------------


def matern52(X: Tensor, Z: Tensor, lengthscales: Tensor, outputscale: Tensor | float) -> Tensor:
    t = 5**0.5 * torch.cdist(X / lengthscales, Z / lengthscales, compute_mode="donot_use_mm_for_euclid_dist")
    return outputscale * torch.exp(-t) * (t * (t / 3 + 1) + 1)


class GaussianProcess:
    def __init__(self, lengthscales: Tensor, outputscale: float, noise: float) -> None:
        self.lengthscales, self.outputscale, self.noise = lengthscales, outputscale, noise

    def fit(self, X: Tensor, y: Tensor) -> GaussianProcess:
        self.X, self.n = X, len(y)
        K = matern52(X, X, self.lengthscales, self.outputscale)
        K.diagonal().add_(self.noise)
        self.root = torch.linalg.cholesky(K)
        # Whitened observations: y^T (K + noise I)^-1 y = |w|^2.
        self.w = torch.linalg.solve_triangular(self.root, y[:, None], upper=False)
        return self

    def predict(self, Z: Tensor) -> tuple[Tensor, Tensor]:
        white = torch.linalg.solve_triangular(
            self.root, matern52(self.X, Z, self.lengthscales, self.outputscale), upper=False
        )
        mean = (white * self.w).sum(0)
        return mean, torch.sqrt(torch.clamp(self.outputscale - white.square().sum(0), min=1e-12))

    def log_marginal_likelihood(self) -> float:
        logdet = 2 * torch.log(torch.diagonal(self.root)).sum()
        return float(-0.5 * (self.w.square().sum() + logdet + self.n * math.log(2 * math.pi)))


# --- hyperparameters: the gradient by autograd ------------------------------------------------------------------------

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
    p = log_params.detach().clone().requires_grad_()
    d = X.shape[1]
    a, b = X[:, None], X[None]
    # cdist has no derivative by what both its arguments are divided by that survives r = 0; a shifted square root has.
    square = ((a - b) ** 2 * (-2 * p[:d]).exp()).sum(-1)
    t = torch.sqrt(5 * square + 1e-24)
    K = p[d].exp() * (1 + t + t**2 / 3) * torch.exp(-t)
    normal = torch.distributions.MultivariateNormal(
        torch.zeros_like(y), K + p[d + 1].exp() * torch.eye(len(y), dtype=torch.float64), validate_args=False
    )
    value = normal.log_prob(y)
    (grad,) = torch.autograd.grad(value, p)
    return float(value.detach()), grad


def _ascend(function, start, iterations):
    from scipy.optimize import fmin_l_bfgs_b

    def down(x):
        value, grad = function(torch.tensor(x))
        return -value, -grad.numpy()

    bounds = hyper_bounds(len(start) - 2)
    start = np.clip(np.asarray(start, float), *zip(*bounds))
    x, value, _ = fmin_l_bfgs_b(down, start, bounds=bounds, maxiter=iterations, maxfun=3 * iterations)
    return value, torch.tensor(x)


def fit_hyperparameters(
    X: Tensor,
    y: Tensor,
    *,
    seed: int,
    restarts: int = 2,
    warm_start: Tensor | None = None,
) -> Tensor:
    rng, bounds = np.random.default_rng(seed), hyper_bounds(X.shape[1])
    first = [-1.0] * X.shape[1] + [0.0, -4.0] if warm_start is None else warm_start.tolist()
    best = _ascend(lambda p: lml_and_grad(p, X, y), first, 80)
    for _ in range(restarts):
        other = _ascend(lambda p: lml_and_grad(p, X, y), [rng.uniform(*b) for b in bounds], 80)
        if other[0] < best[0]:
            best = other
    return best[1]


# --- expected improvement ---------------------------------------------------------------------------------------------


def expected_improvement(mean: Tensor, std: Tensor, best: float, xi: float = 0.0) -> Tensor:
    gain = (best - xi) - mean
    normal = torch.distributions.Normal(0.0, 1.0, validate_args=False)
    z = gain / std.clamp_min(1e-300)
    smooth = std * normal.log_prob(z).exp() + gain * normal.cdf(z)
    return torch.where(std > 0, smooth, gain.clamp_min(0))


class _LogH(torch.autograd.Function):
    """log(phi(z) + z Phi(z)), whose derivative is Phi/(phi + z Phi)."""

    @staticmethod
    def forward(ctx, z):
        log_phi = -0.5 * z * z - 0.5 * math.log(2 * math.pi)
        log_cdf = torch.special.log_ndtr(z)
        direct = torch.log(log_phi.exp() + z * log_cdf.exp())
        middle = log_phi + torch.log1p(z * torch.exp(log_cdf - log_phi))
        w = 1 / z**2
        tail = log_phi + torch.log(w * (1 - 3 * w * (1 - 5 * w * (1 - 7 * w * (1 - 9 * w)))))
        value = torch.where(z > -1, direct, torch.where(z > -30, middle, tail))
        ctx.save_for_backward(z, value, log_cdf)
        return value

    @staticmethod
    def backward(ctx, grad):
        z, value, log_cdf = ctx.saved_tensors
        # Phi(z)/h(z) = -z (1 + 2/z^2 - ...) far out, where the difference of two numbers of size z^2 / 2 is too coarse.
        slope = torch.where(z > -100, torch.exp(log_cdf - value), -z - 2 / z)
        return grad * slope


def log_expected_improvement(mean: Tensor, std: Tensor, best: float, xi: float = 0.0) -> Tensor:
    gain = (best - xi) - mean
    sure = ~(std > 0)
    scale = torch.where(sure, torch.ones_like(std), std)
    return torch.where(sure, torch.where(sure, gain, 1.0).clamp_min(0).log(), scale.log() + _LogH.apply(gain / scale))


# --- the optimizer ----------------------------------------------------------------------------------------------------


class BayesianOptimizer:
    def __init__(self, space: Space, *, seed: int, n_init: int = 8, n_candidates: int = 1000) -> None:
        self.space = space
        self._settings = {"seed": seed, "n_init": n_init, "n_candidates": n_candidates}
        self._runs = []

    def _identity(self, config):
        return tuple(codec.store(config[name]) for name, codec in self.space.codecs.items())

    def ask(self, n: int = 1) -> list[dict]:
        used = {self._identity(c) for c, _ in self._runs}
        everything = self.space.listing()
        if everything is not None:
            everything = [c for c in everything if self._identity(c) not in used]
            if len(everything) < n:
                raise RuntimeError("the space is exhausted")
        finite = [v for _, v in self._runs if math.isfinite(v)]
        batch, model = [], None
        while len(batch) < n:
            design = len(finite) < 2 or len(self._runs) + len(batch) < self._settings["n_init"]
            if design:
                config = self._sobol(used, everything)
            else:
                if model is None:
                    model = _Believer(self.space, self._runs, finite, batch)
                rng = np.random.default_rng([self._settings["seed"], 77, len(self._runs), len(batch)])
                config = self._search(model, rng, used, everything)
                model.believe(config)
            used.add(self._identity(config))
            if everything is not None:
                everything.remove(config)
            batch.append(config)
        return batch

    def _sobol(self, used, everything):
        from scipy.stats import qmc

        engine = qmc.Sobol(len(self.space.params), scramble=True, rng=self._settings["seed"])
        for _ in range(16):
            for row in engine.random(128):
                config = {}
                for (name, codec), u in zip(self.space.codecs.items(), row):
                    chosen = isinstance(codec, _Choice)
                    config[name] = codec.choices[int(u * codec.width)] if chosen else codec.decode([u])
                if self._identity(config) not in used and self.space.allows(config):
                    return config
        if everything:
            return everything[0]
        raise RuntimeError("exhausted: no new point in the sequence")

    def _search(self, model, rng, used, everything):
        if everything is not None and len(everything) <= self._settings["n_candidates"]:
            return everything[int(model.score(torch.stack([self.space.encode(c) for c in everything])).argmax())]
        d = self.space.dim
        U = rng.random((self._settings["n_candidates"], d))
        found = None
        for width in (0.2, 0.08, 0.04, 0.02, 0.008):
            found = self._take(model, self.space.canonical(torch.from_numpy(U)), used, found)
            centre = model.leader() if found is None else found[1]
            move = width * rng.standard_normal((80, d)) * (rng.random((80, d)) < max(0.4, 1.5 / d))
            U = np.clip(centre.numpy() + move, 0, 1)
        found = self._take(model, self.space.canonical(torch.from_numpy(U)), used, found)
        if found is not None:
            return found[2]
        if everything:
            return everything[int(rng.integers(len(everything)))]
        return next(c for c in self.space.sample(2000, rng) if self._identity(c) not in used)

    def _take(self, model, U, used, found):
        scores = model.score(U)
        for i in torch.argsort(-scores).tolist():
            if found is not None and scores[i] <= found[0]:
                break
            config = self.space.decode(U[i])
            if self._identity(config) not in used and self.space.allows(config):
                return scores[i], U[i], config
        return found

    def tell(self, config: Mapping[str, Any], value: float) -> None:
        odd = set(config) ^ set(self.space.params)
        if odd:
            raise KeyError(f"unknown or missing: {sorted(odd)}")
        self._runs.append(({name: codec.clip(config[name]) for name, codec in self.space.codecs.items()}, float(value)))

    @property
    def best(self) -> tuple[dict, float]:
        ranked = sorted((value, i) for i, (_, value) in enumerate(self._runs) if math.isfinite(value))
        if not ranked:
            raise ValueError("nothing finite was told")
        return self._runs[ranked[0][1]]

    def state_dict(self) -> dict:
        runs = [{"at": list(self._identity(c)), "loss": repr(v)} for c, v in self._runs]
        return {**self._settings, "history": runs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._settings = {name: state[name] for name in ("seed", "n_init", "n_candidates")}
        self._runs = []
        for run in state["history"]:
            config = {name: c.load(v) for (name, c), v in zip(self.space.codecs.items(), run["at"])}
            self._runs.append((config, float(run["loss"])))


class _Believer:
    """What an ask knows: told runs, standardised, and believed ones."""

    def __init__(self, space, runs, finite, pending):
        self.space = space
        losses = np.array([v if math.isfinite(v) else max(finite) for _, v in runs])
        spread = losses.std()
        self.X = torch.stack([space.encode(c) for c, _ in runs])
        self.y = torch.from_numpy((losses - losses.mean()) / (spread if spread > 0 else 1.0))

        def posterior(p):
            value, grad = lml_and_grad(p, self.X, self.y)
            prior, slope = log_prior(p)
            return value + prior, grad + slope

        d = space.dim
        _, p = _ascend(posterior, [math.log(0.5)] * d + [0.0, -7.0], 15)
        self.hyper = p[:d].exp(), float(p[d].exp()), float(p[d + 1].exp())
        self.gp = GaussianProcess(*self.hyper).fit(self.X, self.y)
        for config in pending:
            self.believe(config)

    def believe(self, config):
        u = self.space.encode(config)[None]
        self.y = torch.cat([self.y, self.gp.predict(u)[0]])
        self.X = torch.cat([self.X, u])
        self.gp = GaussianProcess(*self.hyper).fit(self.X, self.y)

    def leader(self):
        return self.X[int(self.y.argmin())]

    def score(self, U):
        return log_expected_improvement(*self.gp.predict(U), float(self.y.min()))


def optimize(
    objective: Objective,
    space: Space,
    n_trials: int,
    *,
    seed: int,
    method: Literal["gp", "random", "tpe"] = "gp",
) -> list[tuple[dict, float]]:
    given = {"random": random_search, "tpe": tpe_search}
    if method in given:
        return given[method](objective, space, n_trials, seed=seed)
    if method != "gp":
        raise ValueError(method)
    search, out = BayesianOptimizer(space, seed=seed), []
    while len(out) < n_trials:
        config = search.ask()[0]
        out.append((config, float(objective(config))))
        search.tell(*out[-1])
    return out


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
    curves = {m: np.full((len(seeds), n_trials), np.inf) for m in methods}
    evaluations = {m: 0 for m in methods}
    wins = {m: 0.0 for m in methods}
    for i, seed in enumerate(seeds):
        for m in methods:
            lowest = math.inf
            history = optimize(objective, space, n_trials, seed=seed, method=m)
            evaluations[m] += len(history)
            for j, (_, value) in enumerate(history):
                lowest = min(lowest, value if math.isfinite(value) else math.inf)
                curves[m][i, j] = lowest
        last = min(curves[m][i, -1] for m in methods)
        winners = [m for m in methods if curves[m][i, -1] == last]
        for m in winners:
            wins[m] += 1 / len(winners) / len(seeds)
    medians = {m: float(np.median(curves[m][:, -1])) for m in methods}
    return Comparison(curves, medians, wins, evaluations)


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
