"""Visible checks of 3.4 bayesian_optimization. They earn no points; what they ask for is in README.md."""

import json
import math

import numpy as np
import torch

from llmkata.checks import check, expect_error, hint, probe, same, task


def f64(x):
    return torch.as_tensor(np.asarray(x, np.float64))


def llm_space(submission):
    return submission.Space(
        {
            "lr": submission.Float(1e-4, 1e-2, True),
            "n_layers": submission.Int(1, 4, True),
            "act": submission.Categorical(("relu", "gelu", "silu")),
        }
    )


@task(1)
@hint("lr = 1e-3 lies half way between 1e-4 and 1e-2 on a logarithmic scale, and 2 half way between 1 and 4.")
def test_encode_by_hand(submission):
    """The worked example of the brief, there and back."""
    space = llm_space(submission)
    config = {"lr": 1e-3, "n_layers": 2, "act": "gelu"}
    check(space.dim == 5, "one coordinate each for lr and n_layers, three for act", got=space.dim, want=5)
    same(space.encode(config), f64([0.5, 0.5, 0, 1, 0]), atol=1e-12, what="encode")
    back = space.decode(f64([0.5, 0.45, 0.2, 0.9, 0.3]))
    check(abs(back["lr"] - 1e-3) < 1e-9, "decode gives lr", got=back["lr"], want=1e-3)
    check(back["n_layers"] == 2 and back["act"] == "gelu", "decode gives the nearest layers and act", got=back)
    # The border between 1 and 2 lies at u = log sqrt(2) / log 4 = 0.25.
    edge = [space.decode(f64([0.5, u, 1, 0, 0]))["n_layers"] for u in (0.24, 0.26)]
    check(edge == [1, 2], "u = 0.24 and 0.26 decode to 1 and 2 layers", got=edge, want=[1, 2])
    same(space.canonical(f64([[0.5, 0.45, 0.2, 0.9, 0.3]])), f64([[0.5, 0.5, 0, 1, 0]]), atol=1e-9, what="canonical")


@task(1)
@hint("The name of the parameter belongs into the message.")
def test_bad_bounds(submission):
    """A range that is empty is refused by name."""
    with expect_error(ValueError, "width"):
        submission.Space({"width": submission.Int(8, 8)})


@task(2)
@hint("exp(-sqrt(5)) = 0.106893 at distance 1: (1 + 2.236068 + 1.666667) 0.106893 = 0.523994.")
def test_matern_by_hand(submission):
    """k = 0.524 at a distance of one lengthscale, times the outputscale."""
    got = submission.matern52(f64([[0.0, 0.0]]), f64([[0.0, 0.0], [0.5, 0.0], [0.3, 1.6]]), f64([0.5, 2.0]), 2.0)
    # The third at r = sqrt(0.6^2 + 0.8^2) = 1.
    one = (1 + math.sqrt(5) + 5 / 3) * math.exp(-math.sqrt(5))
    same(got, f64([[2.0, 2 * one, 2 * one]]), atol=1e-9, what="kernel")


@task(2)
@hint("At the observation: mean = 1/(1 + noise) y, variance of f = 1 - 1/(1 + noise).")
def test_one_observation(submission):
    """One observation y = 3 with noise 0.5: mean 2 and variance 1/3 there, 0 and 1 far away."""
    gp = submission.GaussianProcess(f64([1.0]), 1.0, 0.5).fit(f64([[0.0]]), f64([3.0]))
    mean, std = gp.predict(f64([[0.0], [90.0]]))
    same(mean, f64([2.0, 0.0]), atol=1e-9, what="mean")
    same(std, f64([math.sqrt(1 / 3), 1.0]), atol=1e-9, what="std")


@task(2)
@hint("The covariance of (f(X), f(Z)) is one matrix: condition it as any joint Gaussian.")
def test_gp_against_plain_conditioning(submission, torch_rng):
    """Twelve observations: mean and std as from the joint covariance, by a general solver."""
    X, Z = (torch.rand(n, 2, generator=torch_rng, dtype=torch.float64) for n in (12, 5))
    y = torch.randn(12, generator=torch_rng, dtype=torch.float64)
    lengthscales = f64([0.4, 0.9])

    def k(A, B):
        r = math.sqrt(5) * ((A[:, None] - B) / lengthscales).square().sum(-1).sqrt()
        return 1.5 * (1 + r + r * r / 3) * (-r).exp()

    K = k(X, X) + 0.01 * torch.eye(12, dtype=torch.float64)
    mean, std = submission.GaussianProcess(lengthscales, 1.5, 0.01).fit(X, y).predict(Z)
    same(mean, k(Z, X) @ torch.linalg.solve(K, y), atol=1e-7, what="mean")
    same(std, (k(Z, Z) - k(Z, X) @ torch.linalg.solve(K, k(X, Z))).diagonal().sqrt(), atol=1e-7, what="std")


@task(3)
@hint("Move one logarithm by 1e-5 to either side: (value above - value below)/2e-5 is the entry of the gradient.")
def test_gradient_by_differences(submission, torch_rng):
    """The gradient of the likelihood agrees with central differences; the value with one observation is by hand."""
    value, _ = submission.lml_and_grad(f64([0.0, 0.0, 0.0]), f64([[0.3]]), f64([2.0]))
    # y ~ N(0, 1 + 1): -1/2 (4/2 + log 2 + log 2 pi).
    same(f64(value), f64(-0.5 * (2 + math.log(2) + math.log(2 * math.pi))), atol=1e-9, what="value for y = 2")
    X = torch.rand(8, 2, generator=torch_rng, dtype=torch.float64)
    y = torch.randn(8, generator=torch_rng, dtype=torch.float64)
    at = f64([-0.5, 0.3, 0.2, -2.0])
    _, grad = submission.lml_and_grad(at, X, y)
    for i, step in enumerate(1e-5 * torch.eye(4, dtype=torch.float64)):
        slope = (submission.lml_and_grad(at + step, X, y)[0] - submission.lml_and_grad(at - step, X, y)[0]) / 2e-5
        same(grad[i], f64(slope), atol=1e-4, what=f"entry {i} of the gradient")


@task(4)
@hint("At z = 0 EI = std phi(0) = 0.398942 std. With std = 0 it is the gain, or nothing.")
def test_ei_by_hand(submission):
    """Three values of the brief."""
    got = submission.expected_improvement(f64([1.0, 0.0, 2.0]), f64([2.0, 0.0, 0.0]), 1.0)
    same(got, f64([2 / math.sqrt(2 * math.pi), 1.0, 0.0]), atol=1e-9, what="EI")


@task(4)
@hint("h(z) = phi(z)/z^2 (1 - 3/z^2 + 15/z^4 - ...) far out.")
def test_log_ei_where_ei_is_zero(submission):
    """At z = -40 EI is 0 in float64, its logarithm is -808.298."""
    got = submission.log_expected_improvement(f64([40.0]), f64([1.0]), 0.0)
    same(got, f64([-808.2985684]), atol=1e-5, what="log EI at z = -40")


@task(5)
@hint("ask looks at what was told and at nothing else.")
def test_a_short_run(submission):
    """On one parameter the asks gather around the minimum; print them to see it."""
    optimizer = submission.BayesianOptimizer(submission.Space({"x": submission.Float(0.0, 1.0)}), seed=0, n_init=4)
    asked = []
    for _ in range(12):
        (config,) = optimizer.ask()
        check(optimizer.ask() == [config], "asking twice gives the same")
        asked.append(config["x"])
        optimizer.tell(config, (config["x"] - 0.3) ** 2)
    print("asked:", [round(x, 3) for x in asked])
    check(optimizer.best[1] < 1e-3, "12 evaluations of a parabola find its minimum", got=optimizer.best)
    quarters = sorted(int(4 * x) for x in asked[:4])
    check(quarters == [0, 1, 2, 3], "the design has one point in each quarter", got=quarters)


@task(5)
@hint("An unknown parameter is a KeyError, and nothing is recorded.")
def test_tell_refuses(submission):
    """What is no configuration of the space is refused."""
    optimizer = submission.BayesianOptimizer(llm_space(submission), seed=0)
    with expect_error(KeyError):
        optimizer.tell({"lr": 1e-3, "n_layers": 2, "act": "gelu", "epochs": 3}, 1.0)
    with expect_error(ValueError):
        _ = optimizer.best


@task(6)
@hint("Different in themselves, and from what was told.")
def test_a_batch(submission):
    """ask(4) gives four different configurations."""
    optimizer = submission.BayesianOptimizer(llm_space(submission), seed=3, n_init=4)
    for i, config in enumerate(optimizer.ask(5)):
        optimizer.tell(config, float(i))
    batch = optimizer.ask(4)
    check(len({tuple(c.items()) for c in batch}) == 4, "four different configurations", got=batch)


@task(7)
@hint("json.dumps(..., allow_nan=False) refuses NaN: store what is not finite as a string.")
def test_state_is_json(submission):
    """State with a diverged run goes through JSON."""
    optimizer = submission.BayesianOptimizer(llm_space(submission), seed=3, n_init=4)
    for config, value in zip(optimizer.ask(5), (1.0, math.nan, 3.0, 2.0, math.inf)):
        optimizer.tell(config, value)
    state = json.loads(json.dumps(optimizer.state_dict(), allow_nan=False))
    other = submission.BayesianOptimizer(llm_space(submission), seed=0)
    other.load_state_dict(state)
    check(other.ask() == optimizer.ask(), "the same ask after a round trip")


@probe
def interrupted(module, cut, trials, seed):
    """What `run_trials` asks for in `trials` trials, broken off after `cut` and resumed by a new optimizer."""
    import pathlib
    import tempfile

    asked = []

    def evaluate(configs):
        asked.extend(configs)
        return [float("nan") if c["x"] > 0.8 else (c["x"] - 0.4) ** 2 for c in configs]

    with tempfile.TemporaryDirectory(dir=".") as folder:
        state = pathlib.Path(folder) / "run.json"
        for stop in (cut, trials):
            optimizer = module.BayesianOptimizer(module.Space({"x": module.Float(0.0, 1.0)}), seed=seed, n_init=4)
            module.run_trials(optimizer, evaluate, stop, parallel=2, state=state)
    return asked


@task(7)
@hint("Everything that decides an ask must be in the state file.")
def test_a_killed_search_goes_on(submission):
    """The path of --state: broken off after 6 of 10 trials and resumed, the search asks the same as in one go."""
    check(submission.run(interrupted, 6, 10, 1) == submission.run(interrupted, 10, 10, 1), "the same 10 configurations")


@probe
def train_twice(module):
    """`train_tiny_llm` at a sound learning rate and at one that is useless."""
    return [module.train_tiny_llm({"lr": lr, "d_model": 16, "n_layers": 1}, 12) for lr in (2e-2, 1e-5)]


@probe
def plotted(module, curves):
    """First bytes of the figure of a comparison, and its JSON."""
    import pathlib
    import tempfile

    import numpy as np

    last = {name: np.array(rows)[:, -1] for name, rows in curves.items()}
    comparison = module.Comparison(
        {name: np.array(rows) for name, rows in curves.items()},
        {name: float(np.median(x)) for name, x in last.items()},
        dict.fromkeys(curves, 0.5),
        dict.fromkeys(curves, 4),
    )
    with tempfile.TemporaryDirectory(dir=".") as folder:
        module.plot_comparison(comparison, f"{folder}/figure.png")
        png = pathlib.Path(folder, "figure.png").read_bytes()
        return png[:4], pathlib.Path(folder, "figure.png.json").read_text()


@task(8)
@hint("The given plot writes null where no run has been finite yet.")
def test_comparison_and_figure(submission):
    """Random search and yours on one objective; and the figure that comes of it."""
    space = submission.Space({"x": submission.Float(0.0, 1.0)})
    found = submission.compare(lambda c: abs(c["x"] - 0.5), space, 4, [0, 1], ["random", "gp"])
    check(abs(sum(found.wins.values()) - 1) < 1e-9, "shares of wins add up to 1", got=found.wins)
    falling = all((np.diff(c, axis=1) <= 0).all() and c.shape == (2, 4) for c in found.curves.values())
    check(falling, "running bests never rise, one row a seed", got=found.curves)
    head, text = submission.run(plotted, {"gp": [[math.inf, 2.0, 1.0], [3.0, 3.0, 0.5]]})
    check(head == b"\x89PNG", "a PNG was written", got=head)
    check(json.loads(text)["gp"]["curves"][0] == [None, 2.0, 1.0], "null before the first finite loss", got=text)


@task(9)
@hint("Given: if this fails, transformers is missing or the file was changed.")
def test_a_real_model(submission):
    """What the search is for: the loss of a tiny Llama depends on its learning rate; and the space of the command line
    gives configurations that fit."""
    space = submission.llm_space()
    for config in space.sample(20, np.random.default_rng(0)):
        fits = config["d_model"] % config["n_heads"] == 0 and submission.estimate_memory_bytes(config) <= 4 * 2**30
        check(fits, "a sample of llm_space breaks its constraint", got=config)
    good, bad = submission.run(train_twice)
    check(good < bad - 0.3, "2e-2 learns, 1e-5 does not", got=(good, bad))
