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
        raise NotImplementedError("task 1: check the bounds, add up the widths")

    def encode(self, config: Mapping[str, Any]) -> Tensor:
        """The configuration as a point (dim,) of the unit cube. `config` has a value in range for every parameter."""
        raise NotImplementedError("task 1: one coordinate for a number, one-hot for a choice")

    def decode(self, u: Tensor) -> dict:
        """The configuration nearest to u (dim,): coordinates are clipped to [0, 1], an Int is the integer whose encoding
        is nearest, a Categorical the choice of the largest coordinate. Values are Python floats, ints and the choices
        themselves; floats never leave [low, high]. The constraint plays no part."""
        raise NotImplementedError("task 1: nearest value of each parameter")

    def canonical(self, U: Tensor) -> Tensor:
        """encode(decode(u)) for each row u of U (n, dim)."""
        raise NotImplementedError("task 1: what the objective will see of each row")

    def sample(self, n: int, rng: np.random.Generator) -> list[dict]:
        """n random configurations that meet the constraint, spread evenly over the encoded scale of each parameter
        (repetitions allowed). Raises RuntimeError where next to nothing meets the constraint: many thousand draws in a
        row were refused."""
        raise NotImplementedError("task 1: draw until n are feasible")


# --- task 2: the Gaussian process -------------------------------------------------------------------------------------

SQRT5 = math.sqrt(5.0)


def matern52(X: Tensor, Z: Tensor, lengthscales: Tensor, outputscale: Tensor | float) -> Tensor:
    """Matern-5/2 kernel with a lengthscale for each coordinate: X (n, d), Z (m, d), lengthscales (d,) -> (n, m).

        k(x, z) = outputscale (1 + sqrt(5) r + 5/3 r^2) exp(-sqrt(5) r),   r^2 = sum_k ((x_k - z_k)/l_k)^2

    Differentiable by autograd, with finite gradients where rows coincide (r = 0) as well.
    """
    raise NotImplementedError("task 2: scaled distances, the polynomial, the exponential")


class GaussianProcess:
    """A zero-mean Gaussian process: y = f + e, f ~ GP(0, matern52), e ~ N(0, noise).

    lengthscales (d,), outputscale the variance of f, noise the variance of e: the only term on the diagonal, no jitter
    besides. y is taken as it is: standardising is the optimizer's business.
    """

    def __init__(self, lengthscales: Tensor, outputscale: float, noise: float) -> None:
        self.lengthscales, self.outputscale, self.noise = lengthscales, outputscale, noise

    def fit(self, X: Tensor, y: Tensor) -> GaussianProcess:
        """Condition on X (n, d), y (n,), n >= 1, in place of what was there before; returns self."""
        raise NotImplementedError("task 2: factorise K + noise I once, solve for alpha")

    def predict(self, Z: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean (m,) and standard deviation (m,) of f at Z (m, d), not of y: noise is not added. The variance
        is floored at 1e-12, so std >= 1e-6. Needs fit first."""
        raise NotImplementedError("task 2: mean, and the diagonal of the posterior covariance")

    def log_marginal_likelihood(self) -> float:
        """log N(y; 0, K + noise I), with its constant -n/2 log(2 pi)."""
        raise NotImplementedError("task 2: fit, complexity, constant")


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
    raise NotImplementedError("task 3: value and gradient from one factorisation")


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
    raise NotImplementedError("task 3: climb from several starts, keep the best")


# --- task 4: expected improvement -------------------------------------------------------------------------------------


def expected_improvement(mean: Tensor, std: Tensor, best: float, xi: float = 0.0) -> Tensor:
    """E max(best - xi - f, 0) for f ~ N(mean, std^2), element by element (minimisation): mean, std (m,) -> (m,).

    With z = (best - xi - mean)/std it is std (phi(z) + z Phi(z)); where std = 0 it is max(best - xi - mean, 0).
    """
    raise NotImplementedError("task 4: closed form, and its limit at std = 0")


def log_expected_improvement(mean: Tensor, std: Tensor, best: float, xi: float = 0.0) -> Tensor:
    """log of `expected_improvement`, finite and with a finite, non-zero gradient (autograd) for std > 0 and every z from
    -1e5 to 1e5, where EI itself underflows to 0. Where std = 0 it is log max(best - xi - mean, 0), perhaps -inf."""
    raise NotImplementedError("task 4: log std + log h(z), h(z) = phi(z) + z Phi(z), in the tail by erfcx")


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
        4y + 256 in place of y changes nothing. Points of the same ask are pending: before the next is chosen, each is
        added to the data with the posterior mean as its loss, which `best` of log-EI then counts as reached (kriging
        believer); hyperparameters stay.

        Raises RuntimeError "exhausted" where a finite space (no Float, at most 100,000 configurations) has fewer than n
        feasible configurations left.
        """
        raise NotImplementedError("task 5: initial design, fit, maximise log-EI; task 6: believers")

    def tell(self, config: Mapping[str, Any], value: float) -> None:
        """Record the loss of a configuration; nan or inf means that the run diverged.

        Numbers outside [low, high] are clipped. Raises KeyError for an unknown or a missing parameter, ValueError for
        an unknown choice; nothing is recorded then.
        """
        raise NotImplementedError("task 5: check the keys, clip, record")

    @property
    def best(self) -> tuple[dict, float]:
        """The configuration of the smallest finite loss told, and that loss. Raises ValueError where there is none."""
        raise NotImplementedError("task 5: smallest finite loss")

    def state_dict(self) -> dict:
        """Settings and history as what json.dumps(..., allow_nan=False) takes: losses that are not finite as strings,
        choices by their place in `choices`."""
        raise NotImplementedError("task 7: settings and history as plain data")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what `state_dict` was taken from (over an equal space): the same asks from here on."""
        raise NotImplementedError("task 7: the way back")


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
    raise NotImplementedError("task 5: ask, evaluate, tell")


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
    raise NotImplementedError("task 8: running minima, medians, wins, calls")


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
