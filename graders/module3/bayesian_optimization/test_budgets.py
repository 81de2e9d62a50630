"""Budgets of 3.4: 8 points on the core tasks, 19 on the stretch tasks.

Training runs are what a search pays with, so regret is judged after a fixed number of them, counted here: the objective is
handed in. One run in ten of a correct optimizer misses the limit (on Hartmann's function it gets stuck far above), so no single
run decides: there are up to four, and the first that reaches the limit is the last. All four of a correct one miss it once in
10,000; shares of runs below are of 120 of the model answer and 3,000 of random search.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from llmkata.checks import check, hint, needs, points, probe, task

RUNS = 4


def regret(submission, params, surfaces, trials, seed, limit):
    """Of best loss found - minimum after `trials` evaluations, over surfaces (objective, minimum), the first that is at most
    `limit`, or else the smallest."""
    gaps = []
    for i, (objective, minimum) in enumerate(surfaces):
        values = []

        def counted(config, objective=objective, values=values):
            values.append(objective(config))
            return values[-1]

        submission.optimize(counted, submission.Space(params), trials, seed=(seed + i) % 2**31)
        check(len(values) == trials, "the objective is called n_trials times", got=len(values), want=trials)
        gaps.append(min(v for v in values if math.isfinite(v)) - minimum)
        if gaps[-1] <= limit:
            break
    return min(gaps)


@probe
def what_tpe_calls(module, seed):
    """(n_trials, seed) of the given `tpe_search` when method="tpe", which is replaced for a moment: it needs Optuna."""
    seen, given = [], module.tpe_search
    module.tpe_search = lambda objective, space, n_trials, *, seed: seen.append((n_trials, seed)) or []
    try:
        module.optimize(lambda config: 0.0, module.Space({"x": module.Float(0.0, 1.0)}), 3, seed=seed, method="tpe")
    except ImportError:
        return None
    finally:
        module.tpe_search = given
    return seen


@task(5)
@points(2)
@hint("One call per trial, and no other: nothing is evaluated again to report it.")
def test_evaluations(submission, budget):
    """`optimize` calls the objective n_trials times and returns what it was asked and answered."""
    calls = []

    def objective(config):
        calls.append((config, (config["x"] - 0.3) ** 2))
        return calls[-1][1]

    space = submission.Space({"x": submission.Float(0.0, 1.0)})
    for method, trials in (("gp", 10), ("random", 4)):
        calls.clear()
        history = submission.optimize(objective, space, trials, seed=1, method=method)
        # n_trials = 10 and 4.
        name = f"calls of the objective, method {method}"
        budget.require(name, len(calls), at_most=trials, at_least=trials, unit="calls", trust="handed in")
        check([tuple(run) for run in history] == calls, "the runs come back in order", got=history, want=calls)
    seen = submission.run(what_tpe_calls, 7)
    # None: another way to the given function, which met no Optuna.
    check(seen is None or seen == [(3, 7)], "method tpe calls tpe_search, with n_trials = 3, seed = 7", got=seen)


@probe
def factorisations(module, candidates):
    """Cholesky factorisations dispatched by one ask after ten runs."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counting(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += "cholesky" in func.name() and "solve" not in func.name() and "inverse" not in func.name()
            return func(*args, **(kwargs or {}))

    space = module.Space({"x": module.Float(0.0, 1.0), "y": module.Float(0.0, 1.0)})
    optimizer = module.BayesianOptimizer(space, seed=2, n_init=4, n_candidates=candidates)
    for config in optimizer.ask(10):
        optimizer.tell(config, (config["x"] - 0.3) ** 2 + config["y"])
    with Counting() as counting:
        optimizer.ask()
    return counting.count


@task(9)
@points(3)
@hint("Candidates are predicted by one fitted process, all at once; only the fit of the hyperparameters factorises again.")
def test_cholesky(submission, budget):
    """The number of factorisations in an ask has nothing to do with the number of candidates."""
    few, many = (submission.run(factorisations, candidates) for candidates in (100, 500))
    # 15 steps of L-BFGS-B with about 1.3 evaluations each, and the final fit: about 20. A refit per candidate: 500.
    budget.require("Cholesky factorisations per ask", many, at_most=150, at_least=1, reference=20, unit="calls")
    check(few == many, "the number depends on the number of candidates", got=(few, many))


@task(5)
@points(6)
@needs("test_evaluations")
@hint(
    "Plot the asks: do they gather in one of the three valleys, or still fill the square?",
    "Fit the hyperparameters in each ask (add log_prior), maximise log-EI over random candidates, then over ever smaller "
    "clouds around the best of them.",
)
def test_regret_branin(submission, reference, budget, seed):
    """25 evaluations of Branin's function come close to its minimum."""
    params = {"x": submission.Float(-5.0, 10.0), "y": submission.Float(0.0, 15.0)}
    surfaces = [(lambda c: reference.branin(c["x"], c["y"]), reference.BRANIN_MIN)] * RUNS
    # Single runs: median 0.016, 6 % above 0.1, worst 0.36; random search: median 1.4, 5 % below 0.1. The function ranges over 308.
    gap = regret(submission, params, surfaces, 25, seed, limit=0.1)
    budget.require("regret on Branin", gap, at_most=0.1, reference=0.02, unit="loss", trust="handed in")


@probe
def distances(module, cases):
    """For each (seed, points told, centre): how far from the centre of a bowl the ask lies."""
    out = []
    for seed, told, centre in cases:
        space = module.Space({f"x{i}": module.Float(0.0, 1.0) for i in range(len(centre))})
        optimizer = module.BayesianOptimizer(space, seed=seed, n_candidates=50)
        for point in told:
            optimizer.tell(dict(zip(space.params, point)), sum((x - c) ** 2 for x, c in zip(point, centre)))
        (config,) = optimizer.ask()
        out.append(sum((config[f"x{i}"] - c) ** 2 for i, c in enumerate(centre)) ** 0.5)
    return out


@task(9)
@points(2)
@needs("test_evaluations")
@hint(
    "Are the candidates scored by log-EI of the fitted process, smaller losses being better?",
    "Random candidates alone do not hit a bottom in four dimensions: search again near the best of them.",
)
def test_known_bowls(submission):
    """Where the bottom is known already, asks lie there: where log-EI is largest."""
    # Bowls in four dimensions, known at 40 points, 100 of them: 50 random candidates come to 0.07 to 0.16 of the bottom (10 % to
    # 90 %), clouds around the best of them to 0.015 to 0.047.
    cases = []
    for s in range(5):
        rng = np.random.default_rng(5 + s)
        centre = rng.uniform(0.3, 0.7, 4).tolist()
        cases.append((s, rng.random((40, 4)).tolist(), centre))
    found = submission.run(distances, cases)
    # One ask in twenty explores elsewhere, so the median of five counts.
    check(sorted(found)[2] <= 0.07, "known bowls: the asks lie at the bottom", got=found, want="a median of 0.07 or less")


@task(9)
@points(4)
@needs("test_evaluations")
@hint(
    "Six dimensions: a thousand random candidates do not hit the valley. Search again near the best of them, more than once.",
    "Without a prior on the hyperparameters eight points make an over-confident model.",
)
def test_regret_hartmann6(submission, reference, budget, seed):
    """32 evaluations of Hartmann's function of six variables come close to its minimum."""
    params = {f"x{i}": submission.Float(0.0, 1.0) for i in range(6)}
    surfaces = [(lambda c: reference.hartmann6([c[f"x{i}"] for i in range(6)]), reference.HARTMANN_MIN)] * RUNS
    # Single runs: median 0.2, 10 % above 0.6 (from 1 to 1.9); random search: median 1.8, 2 % below 0.6. The function ranges over
    # 3.3.
    gap = regret(submission, params, surfaces, 32, seed, limit=0.6)
    budget.require("regret on Hartmann-6", gap, at_most=0.6, reference=0.1, unit="loss", trust="handed in")


@task(9)
@points(6)
@needs("test_evaluations")
@hint(
    "Are integers and logarithms seen by the model as they are evaluated (canonical)? Do diverged runs keep it away from "
    "where they were?",
    "Look at the fitted lengthscales: in the encoding of the brief none of the six should end at a bound.",
)
def test_regret_llm(submission, reference, budget, seed, rng):
    """34 training runs of an LLM-shaped loss, its optimum shifted, find a configuration that is nearly the best."""
    params = {
        "lr": submission.Float(1e-5, 3e-2, True),
        "batch_tokens": submission.Int(2**13, 2**21, True),
        "warmup": submission.Float(0.0, 0.3),
        "weight_decay": submission.Float(0.0, 0.4),
        "n_layers": submission.Int(4, 24),
        "d_model": submission.Int(256, 1024, True),
    }
    shifts = rng.uniform(-1, 1, (RUNS, 5)) * [1.0, 1.0, 0.7, 0.05, 0.08]
    surfaces = [(surface, surface.minimum) for surface in map(reference.LlmSurface, shifts)]
    # Single runs: median 0.01, 10 % above 0.035, worst 0.12; random search: median 0.09, 7 % below 0.035.
    gap = regret(submission, params, surfaces, 34, seed, limit=0.035)
    budget.require("gap on the LLM surface", gap, at_most=0.035, reference=0.012, unit="loss", trust="handed in")


@task(9)
@points(4)
@needs("test_gp_predict")
@hint(
    "|x - z|^2 = |x|^2 + |z|^2 - 2 x.z: the array of all differences, (n, m, d), is not needed.",
    "Only the diagonal of the posterior covariance is asked for: (L^-1 k)^2 summed, never an (m, m) array.",
)
def test_predict_bytes(submission, reference, budget, torch_rng):
    """`predict` holds a few arrays of n m numbers, none of n m d or m m."""
    n, m, d = 64, 4096, 8
    X, Z = (torch.rand(k, d, generator=torch_rng, dtype=torch.float64) for k in (n, m))
    y = torch.randn(n, generator=torch_rng, dtype=torch.float64)
    lengthscales = torch.full((d,), 0.7, dtype=torch.float64)

    def expect(X, y, Z):
        return reference.predict(X, y, lengthscales, 1.3, 0.01, Z)

    def scenario(s, X, y, Z):
        gp = s.GaussianProcess(lengthscales, 1.3, 0.01)
        gp.fit(X, y)
        with s.segment("predict"):
            mean, std = gp.predict(Z)
        return mean, std

    run = budget.replay(scenario, X, y, Z, expect=expect, tol=1e-6)
    # One array n m of float64 is 64·4096·8 B = 2 MiB; limit 8 of them = 16.8 MB. The expanded square needs 5.1, the
    # differences (n, m, d) twice 8 = 16, a full covariance 2·4096/64 = 128 and more.
    array = 8 * n * m
    budget.require(
        "peak bytes of predict", run["predict"].peak_bytes, at_most=8 * array, at_least=array, reference=5.1 * array, unit="B"
    )
