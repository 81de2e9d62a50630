"""Another answer to 3.4: plain functions, a process by eigenvectors, log-EI by a continued fraction, search among dicts.

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

# --- the search space: functions of a parameter and a value -----------------------------------------------------------


def width_of(p: Parameter) -> int:
    return len(p.choices) if isinstance(p, Categorical) else 1


def to_unit(p: Parameter, value) -> float:
    low, high = (math.log(p.low), math.log(p.high)) if p.log else (p.low, p.high)
    return ((math.log(value) if p.log else value) - low) / (high - low)


def from_unit(p: Parameter, u: float):
    u = min(1.0, max(0.0, u))
    if isinstance(p, Float):
        value = p.low * math.exp(u * math.log(p.high / p.low)) if p.log else (1 - u) * p.low + u * p.high
        return float(min(max(value, p.low), p.high))
    # Bisection for the first integer whose border to the next one lies above u.
    below, above = p.low, p.high
    while below < above:
        middle = (below + above) // 2
        if (to_unit(p, middle) + to_unit(p, middle + 1)) / 2 < u:
            below = middle + 1
        else:
            above = middle
    return int(below)


class Space:
    dim: int

    def __init__(
        self,
        params: Mapping[str, Parameter],
        constraint: Callable[[dict], bool] | None = None,
    ) -> None:
        self.params = dict(params)
        self.constraint = constraint or (lambda config: True)
        for name, p in self.params.items():
            if not isinstance(p, Categorical):
                if p.low >= p.high:
                    raise ValueError(f"parameter {name}: empty range")
                if p.log and p.low <= 0:
                    raise ValueError(f"parameter {name}: log of what is not positive")
        self.dim = sum(map(width_of, self.params.values()))

    def encode(self, config: Mapping[str, Any]) -> Tensor:
        u = torch.empty(self.dim, dtype=torch.float64)
        at = 0
        for name, p in self.params.items():
            if isinstance(p, Categorical):
                for choice in p.choices:
                    u[at] = 1.0 if choice == config[name] else 0.0
                    at += 1
            else:
                u[at] = to_unit(p, config[name])
                at += 1
        return u

    def decode(self, u: Tensor) -> dict:
        config, at = {}, 0
        for name, p in self.params.items():
            k = width_of(p)
            config[name] = p.choices[int(u[at : at + k].argmax())] if isinstance(p, Categorical) else from_unit(p, float(u[at]))
            at += k
        return config

    def canonical(self, U: Tensor) -> Tensor:
        rows = [self.encode(self.decode(row)) for row in U]
        return torch.stack(rows)

    def sample(self, n: int, rng: np.random.Generator) -> list[dict]:
        def draw(p):
            return p.choices[rng.integers(len(p.choices))] if isinstance(p, Categorical) else from_unit(p, rng.random())

        drawn = ({name: draw(p) for name, p in self.params.items()} for _ in range(2000 * max(n, 10)))
        found = list(itertools.islice(filter(self.constraint, drawn), n))
        if len(found) < n:
            raise RuntimeError("hardly anything is feasible")
        return found


# --- the process, by the eigenvectors of K ----------------------------------------------------------------------------


def matern52(X: Tensor, Z: Tensor, lengthscales: Tensor, outputscale: Tensor | float) -> Tensor:
    # One coordinate at a time: no array of (n, m, d), and differences that are exact where points coincide.
    square = torch.zeros(len(X), len(Z), dtype=torch.float64)
    for x, z, length in zip(X.unbind(1), Z.unbind(1), lengthscales):
        square = square + ((x[:, None] - z) / length) ** 2
    r = torch.where(square > 0, square, 1.0).sqrt() * (square > 0)
    return outputscale * torch.exp(-SQRT5 * r) * (1 + SQRT5 * r + 5 / 3 * square)


SQRT5 = math.sqrt(5)


class GaussianProcess:
    def __init__(self, lengthscales: Tensor, outputscale: float, noise: float) -> None:
        self.lengthscales, self.outputscale, self.noise = lengthscales, outputscale, noise

    def fit(self, X: Tensor, y: Tensor) -> GaussianProcess:
        self.X = X
        values, self.vectors = torch.linalg.eigh(matern52(X, X, self.lengthscales, self.outputscale))
        self.spectrum = values + self.noise
        self.turned = self.vectors.mT @ y
        return self

    def predict(self, Z: Tensor) -> tuple[Tensor, Tensor]:
        k = self.vectors.mT @ matern52(self.X, Z, self.lengthscales, self.outputscale)
        mean = (self.turned / self.spectrum) @ k
        variance = self.outputscale - (1 / self.spectrum) @ k.square_()
        return mean, variance.clamp(min=1e-12).sqrt()

    def log_marginal_likelihood(self) -> float:
        terms = self.turned**2 / self.spectrum + self.spectrum.log() + math.log(2 * math.pi)
        return -0.5 * float(terms.sum())


# --- hyperparameters, with explicit inverse ---------------------------------------------------------------------------

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
    *lengths, outputscale, noise = log_params.exp()
    n = len(y)
    parts = torch.stack([((x[:, None] - x) / length) ** 2 for x, length in zip(X.unbind(1), lengths)])
    square = parts.sum(0)
    r = square.sqrt()
    decay = torch.exp(-SQRT5 * r)
    K = outputscale * decay * (1 + SQRT5 * r + 5 / 3 * square)
    factor = torch.linalg.cholesky(K + noise * torch.eye(n, dtype=torch.float64))
    inverse = torch.cholesky_inverse(factor)
    alpha = inverse @ y
    value = -0.5 * float(y @ alpha) - float(factor.diagonal().log().sum()) - n / 2 * math.log(2 * math.pi)
    inner = 5 / 3 * outputscale * decay * (1 + SQRT5 * r)

    def directional(dK):
        return 0.5 * float(alpha @ dK @ alpha - (inverse * dK).sum())

    grad = [directional(inner * part) for part in parts]
    grad += [directional(K), 0.5 * float(noise * (alpha @ alpha - inverse.trace()))]
    return value, torch.tensor(grad, dtype=torch.float64)


def climb(function, start, iterations: int):
    from scipy.optimize import Bounds, minimize

    box = np.array(hyper_bounds(len(start) - 2))

    def loss(x):
        value, grad = function(torch.from_numpy(x.copy()))
        return -value, -np.asarray(grad)

    result = minimize(
        loss,
        np.minimum(np.maximum(np.array(start, float), box[:, 0]), box[:, 1]),
        jac=True,
        bounds=Bounds(*box.T),
        method="L-BFGS-B",
        options={"maxiter": iterations},
    )
    return torch.from_numpy(result.x), -result.fun


def fit_hyperparameters(
    X: Tensor,
    y: Tensor,
    *,
    seed: int,
    restarts: int = 2,
    warm_start: Tensor | None = None,
) -> Tensor:
    box = np.array(hyper_bounds(X.shape[1]))
    generator = np.random.Generator(np.random.Philox(seed))
    starts = [np.array([-0.5] * X.shape[1] + [0.5, -3.0]) if warm_start is None else warm_start.numpy()]
    starts.extend(box[:, 0] + (box[:, 1] - box[:, 0]) * generator.random((restarts, len(box))))
    results = [climb(lambda p: lml_and_grad(p, X, y), start, 100) for start in starts]
    results.sort(key=lambda result: -result[1])
    return results[0][0]


# --- expected improvement ---------------------------------------------------------------------------------------------


def phi(z: Tensor) -> Tensor:
    return torch.exp(-z * z / 2) * (2 * math.pi) ** -0.5


def expected_improvement(mean: Tensor, std: Tensor, best: float, xi: float = 0.0) -> Tensor:
    target = best - xi
    out = torch.clamp(target - mean, min=0.0)
    some = std > 0
    z = (target - mean[some]) / std[some]
    out = out.clone()
    out[some] = std[some] * (phi(z) + z * 0.5 * torch.erfc(-z / math.sqrt(2)))
    return out


def log_expected_improvement(mean: Tensor, std: Tensor, best: float, xi: float = 0.0) -> Tensor:
    target = best - xi
    out = torch.full_like(mean, -math.inf)
    sure = (std == 0) & (mean < target)
    out[sure] = (target - mean[sure]).log()
    z = (target - mean) / torch.where(std == 0, 1.0, std)
    close, far = (std > 0) & (z > -2), (std > 0) & (z <= -2)
    c = z[close]
    out[close] = std[close].log() + (phi(c) + c * 0.5 * torch.erfc(-c / math.sqrt(2))).log()
    # Mills' ratio of t = -z is 1/(t + 1/(t + 2/(t + 3/(t + ...)))), so 1 - t Mills = f/(t + f) with f = 1/(t + 2/(t + ...)).
    t = -z[far]
    f = torch.zeros_like(t)
    for k in range(80, 0, -1):
        f = k / (t + f)
    out[far] = std[far].log() - t * t / 2 - 0.5 * math.log(2 * math.pi) + f.log() - (t + f).log()
    return out


# --- the optimizer ----------------------------------------------------------------------------------------------------


class BayesianOptimizer:
    def __init__(self, space: Space, *, seed: int, n_init: int = 8, n_candidates: int = 1000) -> None:
        self.space, self.seed, self.n_init, self.n_candidates = space, seed, n_init, n_candidates
        self.told: list[tuple[dict, float]] = []

    def ask(self, n: int = 1) -> list[dict]:
        old = [config for config, _ in self.told]
        losses = [value for _, value in self.told]
        finite = [value for value in losses if math.isfinite(value)]
        unseen = self._unseen(old)
        if unseen is not None and len(unseen) < n:
            raise RuntimeError(f"exhausted: {len(unseen)} left, {n} asked for")
        new: list[dict] = []
        room = n if len(finite) < 2 else self.n_init - len(old)
        for config in self._sequence(unseen):
            if len(new) >= min(n, room):
                break
            if config not in old and config not in new and self.space.constraint(config):
                new.append(config)
        if len(new) == n:
            return new
        worst = max(finite)
        y = torch.tensor([value if math.isfinite(value) else worst for value in losses], dtype=torch.float64)
        y = y - y.mean()
        if float(y.abs().max()) > 0:
            y = y / y.square().mean().sqrt()
        X = torch.stack([self.space.encode(config) for config in old])

        def density(p):
            value, grad = lml_and_grad(p, X, y)
            prior, prior_grad = log_prior(p)
            return value + prior, grad + prior_grad

        start = [math.log(0.6)] * self.space.dim + [0.0, math.log(5e-4)]
        *lengths, outputscale, noise = climb(density, start, 14)[0].exp().tolist()
        gp = GaussianProcess(torch.tensor(lengths, dtype=torch.float64), outputscale, noise).fit(X, y)
        pending = list(new)
        while True:
            for config in pending:
                u = self.space.encode(config)[None]
                believed, _ = gp.predict(u)
                X, y = torch.cat([X, u]), torch.cat([y, believed])
                gp = gp.fit(X, y)
            if len(new) == n:
                return new
            pending = [self._next(gp, X, y, old + new, unseen)]
            new += pending

    def _unseen(self, old):
        """The feasible configurations that are left in a finite space, else None."""
        if any(isinstance(p, Float) for p in self.space.params.values()):
            return None
        values = [p.choices if isinstance(p, Categorical) else range(p.low, p.high + 1) for p in self.space.params.values()]
        if math.prod(len(v) for v in values) > 100_000:
            return None
        configs = (dict(zip(self.space.params, row)) for row in itertools.product(*values))
        return [config for config in configs if config not in old and self.space.constraint(config)]

    def _sequence(self, unseen):
        params = self.space.params
        sobol = torch.quasirandom.SobolEngine(len(params), scramble=True, seed=self.seed + 1)
        for _ in range(1024):
            config = {}
            for (name, p), u in zip(params.items(), sobol.draw(1, dtype=torch.float64)[0].tolist()):
                config[name] = p.choices[math.floor(u * len(p.choices))] if isinstance(p, Categorical) else from_unit(p, u)
            yield config
        yield from unseen or []

    def _next(self, gp, X, y, seen, unseen):
        floor = float(y.min())

        def rank(configs):
            """The best of the configurations with its log-EI."""
            mean, std = gp.predict(torch.stack([self.space.encode(config) for config in configs]))
            value, place = log_expected_improvement(mean, std, floor).max(0)
            return float(value), configs[int(place)]

        def open_(configs):
            return [c for c in configs if c not in seen and self.space.constraint(c)]

        if unseen is not None and len(unseen) <= self.n_candidates:
            return rank(open_(unseen))[1]
        rng = np.random.default_rng((self.seed, len(seen)))
        leader = self.space.decode(X[int(y.argmin())])
        pool = open_(self.space.sample(self.n_candidates, rng) + self._around(leader, 0.15, 80, rng))
        best = rank(pool or open_(unseen or self.space.sample(5000, rng)))
        for width in (0.1, 0.05, 0.025, 0.012):
            moved = open_(self._around(best[1], width, 70, rng))
            best = max([best, rank(moved)] if moved else [best], key=lambda found: found[0])
        return best[1]

    def _around(self, config, width, count, rng):
        """Copies of the configuration in which some parameters moved by about `width`, or to another choice."""
        names = list(self.space.params)
        out = []
        for _ in range(count):
            copy = dict(config)
            for name in rng.choice(names, size=1 + int(rng.integers(len(names))), replace=False):
                p = self.space.params[name]
                if isinstance(p, Categorical):
                    copy[name] = p.choices[rng.integers(len(p.choices))]
                else:
                    copy[name] = from_unit(p, to_unit(p, copy[name]) + width * rng.standard_normal())
            out.append(copy)
        return out

    def tell(self, config: Mapping[str, Any], value: float) -> None:
        params = self.space.params
        for name in config:
            if name not in params:
                raise KeyError(name)
        clean = {}
        for name, p in params.items():
            given = config[name]
            if isinstance(p, Categorical):
                clean[name] = p.choices[p.choices.index(given)]
            else:
                kind = float if isinstance(p, Float) else int
                clean[name] = kind(np.clip(given, p.low, p.high))
        self.told.append((clean, float(value)))

    @property
    def best(self) -> tuple[dict, float]:
        return min(((c, v) for c, v in self.told if math.isfinite(v)), key=lambda pair: pair[1])

    def state_dict(self) -> dict:
        def plain(config):
            return {n: p.choices.index(config[n]) if isinstance(p, Categorical) else config[n] for n, p in self.space.params.items()}

        history = [{"config": plain(config), "value": value.hex()} for config, value in self.told]
        return {"settings": [self.seed, self.n_init, self.n_candidates], "history": history}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seed, self.n_init, self.n_candidates = state["settings"]
        self.told = []
        for entry in state["history"]:
            config = {
                n: p.choices[entry["config"][n]] if isinstance(p, Categorical) else entry["config"][n]
                for n, p in self.space.params.items()
            }
            self.told.append((config, float.fromhex(entry["value"])))


def optimize(
    objective: Objective,
    space: Space,
    n_trials: int,
    *,
    seed: int,
    method: Literal["gp", "random", "tpe"] = "gp",
) -> list[tuple[dict, float]]:
    match method:
        case "random":
            return random_search(objective, space, n_trials, seed=seed)
        case "tpe":
            return tpe_search(objective, space, n_trials, seed=seed)
        case "gp":
            optimizer = BayesianOptimizer(space, seed=seed)
            for config in (optimizer.ask()[0] for _ in range(n_trials)):
                optimizer.tell(config, objective(config))
            return list(optimizer.told)
        case _:
            raise ValueError(f"no method {method}")


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
    def curve(history):
        losses = [value if math.isfinite(value) else math.inf for _, value in history]
        return list(itertools.accumulate(losses, min))

    count = {}
    curves = {}
    for method in methods:
        asked = []

        def watched(config, asked=asked):
            asked.append(config)
            return objective(config)

        curves[method] = np.array([curve(optimize(watched, space, n_trials, seed=s, method=method)) for s in seeds])
        count[method] = len(asked)
    best = np.min([c[:, -1] for c in curves.values()], axis=0)
    hits = {method: (c[:, -1] == best) * 1.0 for method, c in curves.items()}
    ties = sum(hits.values())
    wins = {method: float((h / ties).mean()) for method, h in hits.items()}
    return Comparison(curves, {m: float(np.median(c[:, -1])) for m, c in curves.items()}, wins, count)


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
