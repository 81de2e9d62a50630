"""Mistakes people make in 3.4, each as the code that it leads to, run in the namespace of the model answer: `original` is
what is replaced, `_scale`, `_unscale` and the rest are its helpers."""

# ruff: noqa: F811, F821 (functions of one name, names of the model answer)

from llmkata.checks import misconception

# --- the space --------------------------------------------------------------------------------------------------------


@misconception(
    "linear_lr",
    replaces="_scale",
    caught_by="test_space_roundtrip",
    feedback="Your encoding ignores log=True: between 1e-5 and 1e-1, 99 % of the evenly drawn learning rates are then above "
    "1e-3. Take the logarithm of value and bounds.",
)
def _scale(p, value):
    return (np.asarray(value, np.float64) - p.low) / (p.high - p.low)


@misconception(
    "round_after",
    replaces="Space.canonical",
    caught_by="test_space_roundtrip",
    feedback="canonical left integers and choices unrounded: the model sees a hundred different points where the objective "
    "sees one configuration. Give back encode(decode(u)).",
)
def canonical(self, U):
    return U.clamp(0.0, 1.0)


@misconception(
    "half_way_by_value",
    replaces="_unscale",
    caught_by="test_space_roundtrip",
    feedback="You rounded a logarithmic integer by its value. Nearest means nearest in the encoding: 1.45 lies above sqrt(2), "
    "so it is nearer to 2 than to 1.",
)
def _unscale(p, u):
    x = original(Float(p.low, p.high, p.log), u)
    return np.round(x) if isinstance(p, Int) else x


@misconception(
    "constraint_after_counting",
    replaces="Space.sample",
    caught_by="test_sample",
    feedback="You drew n configurations and dropped the infeasible ones: sample(n) gives n feasible ones. Draw until there "
    "are enough.",
)
def sample(self, n, rng):
    return [c for c in self.decode_rows(torch.from_numpy(rng.random((n, self.dim)))) if self.feasible(c)]


# --- the process ------------------------------------------------------------------------------------------------------


@misconception(
    "matern32",
    replaces="matern52",
    caught_by="test_matern",
    feedback="This is the kernel for nu = 3/2, (1 + sqrt(3) r) exp(-sqrt(3) r). For nu = 5/2 it is "
    "(1 + sqrt(5) r + 5/3 r^2) exp(-sqrt(5) r).",
)
def matern52(X, Z, lengthscales, outputscale):
    X, Z = X / lengthscales, Z / lengthscales
    square = ((X * X).sum(1)[:, None] + (Z * Z).sum(1) - 2.0 * (X @ Z.mT)).clamp_min(1e-30)
    r = math.sqrt(3.0) * square.sqrt()
    return outputscale * (1.0 + r) * (-r).exp()


@misconception(
    "squared_lengthscales",
    replaces="matern52",
    caught_by="test_matern",
    feedback="You divided squared distances by the lengthscale once. r^2 is the sum of ((x - z)/l)^2: l comes in squared.",
)
def matern52(X, Z, lengthscales, outputscale):
    return original(X, Z, lengthscales.sqrt(), outputscale)


@misconception(
    "variance_as_std",
    replaces="GaussianProcess.predict",
    caught_by="test_gp_predict",
    feedback="You returned the posterior variance as std. Without the root, exploration shrinks quadratically as data comes in.",
)
def predict(self, Z):
    mean, std = original(self, Z)
    return mean, std**2


@misconception(
    "noise_in_latent_std",
    replaces="GaussianProcess.predict",
    caught_by="test_gp_predict",
    feedback="Your std is that of an observation: the noise is in it. Expected improvement must not count measurement noise as "
    "possible progress; return the deviation of f.",
)
def predict(self, Z):
    mean, std = original(self, Z)
    return mean, (std**2 + self.noise).sqrt()


@misconception(
    "jitter_on_top",
    replaces="GaussianProcess.fit",
    caught_by="test_ill_conditioned",
    feedback="There is more than the noise on the diagonal of your K (a jitter of 1e-6?). The noise alone makes K positive "
    "definite here; more of it changes the predictions.",
)
def fit(self, X, y):
    K = matern52(X, X, self.lengthscales, self.outputscale)
    self.X, self.y = X, y
    self.L = torch.linalg.cholesky(K + (self.noise + 1e-6) * torch.eye(len(X), dtype=torch.float64))
    self.alpha = torch.cholesky_solve(y[:, None], self.L)[:, 0]
    return self


@misconception(
    "broadcast_differences",
    replaces="matern52",
    caught_by="test_predict_bytes",
    matches="peak_bytes",
    feedback="You formed all differences as an (n, m, d) array. |x|^2 + |z|^2 - 2 x.z gives the distances with arrays of "
    "(n, m) alone.",
)
def matern52(X, Z, lengthscales, outputscale):
    square = (((X[:, None] - Z[None]) / lengthscales) ** 2).sum(-1).clamp_min(1e-30)
    r = SQRT5 * square.sqrt()
    return outputscale * (1.0 + r + r * r / 3.0) * (-r).exp()


# --- the likelihood ---------------------------------------------------------------------------------------------------


@misconception(
    "lml_missing_logdet",
    replaces="lml_and_grad",
    caught_by="test_lml_grad",
    feedback="Your likelihood has the data-fit term and lacks the complexity term -log det/2. Without it nothing stops the fit "
    "from explaining all by noise and scale.",
)
def lml_and_grad(log_params, X, y):
    value, grad = original(log_params, X, y)
    d = X.shape[1]
    theta = log_params.exp()
    K = matern52(X, X, theta[:d], theta[d]) + theta[d + 1] * torch.eye(len(X), dtype=torch.float64)
    return value + 0.5 * float(torch.logdet(K)), grad


@misconception(
    "grad_by_parameter",
    replaces="lml_and_grad",
    caught_by="test_lml_grad",
    feedback="Your gradient is by the parameters themselves. log_params holds logarithms: by the chain rule each entry is "
    "multiplied by its parameter.",
)
def lml_and_grad(log_params, X, y):
    value, grad = original(log_params, X, y)
    return value, grad / log_params.exp()


@misconception(
    "warm_start_ignored",
    replaces="fit_hyperparameters",
    caught_by="test_fit_hyperparameters",
    feedback="The fit came back worse than the warm start that it was given: with restarts=0 it is the only start.",
)
def fit_hyperparameters(X, y, *, seed, restarts=2, warm_start=None):
    if warm_start is None:
        return original(X, y, seed=seed, restarts=restarts)
    low, high = torch.tensor(hyper_bounds(X.shape[1]), dtype=torch.float64).T
    return low + 0.1 * (high - low)


# --- expected improvement ---------------------------------------------------------------------------------------------


@misconception(
    "ei_maximises",
    replaces="expected_improvement",
    caught_by="test_ei",
    feedback="Your improvement is mean - best: you search for the worst loss. Here smaller is better, so it is "
    "best - xi - mean.",
)
def expected_improvement(mean, std, best, xi=0.0):
    return original(-mean, std, -best, xi)


@misconception(
    "xi_added",
    replaces="expected_improvement",
    caught_by="test_ei",
    feedback="xi has the wrong sign: it asks for an improvement of more than xi, so the target is best - xi.",
)
def expected_improvement(mean, std, best, xi=0.0):
    return original(mean, std, best, -xi)


@misconception(
    "log_of_ei",
    replaces="log_expected_improvement",
    caught_by="test_log_ei_tail",
    feedback="You took the logarithm of EI plus a tiny number. From z = -39 down every candidate ties at that number, the "
    "gradient is 0, and the search is blind there.",
)
def log_expected_improvement(mean, std, best, xi=0.0):
    return (expected_improvement(mean, std, best, xi) + 1e-300).log()


# --- the loop ---------------------------------------------------------------------------------------------------------


@misconception(
    "no_standardise",
    replaces="BayesianOptimizer._model",
    caught_by="test_losses_are_standardised",
    feedback="The unit in which losses are told changes what you ask. The process has mean 0: standardise the losses before the "
    "fit, or your prior lies far from all of them.",
)
def _model(self, X, y):
    raw = [value for _, value in self.history if math.isfinite(value)]
    return original(self, X, y * (np.std(raw) or 1.0) + np.mean(raw))


@misconception(
    "drop_nan",
    replaces="BayesianOptimizer.ask",
    caught_by="test_diverged_runs",
    feedback="Diverged runs are missing from your fit, so the optimizer keeps returning to where training diverges. Let each "
    "count as the worst finite loss.",
)
def ask(self, n=1):
    runs = self.history
    finite = [run for run in runs if math.isfinite(run[1])]
    if len(finite) < 2:
        return original(self, n)
    model = self._model
    self._model = lambda X, y: model(*(t[torch.tensor([math.isfinite(v) for _, v in runs])] for t in (X, y)))
    picked = original(self, n)
    del self._model
    return picked


@misconception(
    "asked_twice",
    replaces="BayesianOptimizer._key",
    caught_by="test_integer_consistency",
    feedback="A configuration that was told already was asked again. Compare configurations with all that were told, and skip "
    "those; when none is left, raise RuntimeError.",
)
def _key(self, config):
    # No two configurations are ever the same one.
    return (*original(self, config), object())


@misconception(
    "random_design",
    replaces="BayesianOptimizer._design",
    caught_by="test_initial_design",
    feedback="Your initial design is plain random: some eighth of a parameter holds two of the first eight points, another "
    "none. A scrambled Sobol sequence puts one into each.",
)
def _design(self, n, taken):
    picked = []
    configs = iter(self.space.sample(500, np.random.default_rng(self.seed)))
    while len(picked) < n:
        config = next(configs)
        if self._key(config) not in taken:
            taken.add(self._key(config))
            picked.append(config)
    return picked


@misconception(
    "best_may_be_nan",
    replaces="BayesianOptimizer.best",
    caught_by="test_tell",
    feedback="best must be the smallest finite loss, and a ValueError where there is none: min() over losses with NaN gives "
    "whatever came first.",
)
@property
def best(self):
    return min(self.history, key=lambda run: run[1])


@misconception(
    "no_believer",
    replaces="BayesianOptimizer._believe",
    caught_by="test_batch_ask",
    feedback="The points of a batch are neighbours: the model never heard of those that are pending. Add each with the "
    "posterior mean as its loss before the next is chosen.",
)
def _believe(self, gp, X, y, config):
    return X, y, gp


@misconception(
    "constraint_forgotten",
    replaces="BayesianOptimizer._best_candidate",
    caught_by="test_constraint",
    feedback="The model's part of ask offers configurations that break the constraint. Skip such candidates and take the best "
    "of those that meet it.",
)
def _best_candidate(self, gp, best, incumbent, rng, taken):
    free = Space(self.space.params)
    kept, self.space = self.space, free
    found = original(self, gp, best, incumbent, rng, taken)
    self.space = kept
    return found


@misconception(
    "seed_not_saved",
    replaces="BayesianOptimizer.load_state_dict",
    caught_by="test_resume",
    feedback="After a round trip the asks differ: not all that decides an ask is in the state. Seed, n_init and n_candidates "
    "belong to it, and replace what the constructor was given.",
)
def load_state_dict(self, state):
    seed, n_init, n_candidates = self.seed, self.n_init, self.n_candidates
    original(self, state)
    self.seed, self.n_init, self.n_candidates = seed, n_init, n_candidates


@misconception(
    "ties_won_twice",
    replaces="compare",
    caught_by="test_compare",
    feedback="Each of several methods that share the lowest loss of a seed won it in full: wins then add up to more than 1. "
    "Divide the seed among them.",
)
def compare(objective, space, n_trials, seeds, methods):
    found = original(objective, space, n_trials, seeds, methods)
    final = np.stack([found.curves[method][:, -1] for method in methods])
    shares = (final == final.min(axis=0)).mean(axis=1)
    return Comparison(found.curves, found.median_final, dict(zip(methods, shares.tolist())), found.evaluations)


# --- what the search costs, and what it finds -------------------------------------------------------------------------


@misconception(
    "evaluates_again",
    replaces="optimize",
    caught_by="test_evaluations",
    matches="calls",
    feedback="The objective was called once more than there are trials, to report the best configuration. Its loss is known: "
    "each call is a training run.",
)
def optimize(objective, space, n_trials, *, seed, method="gp"):
    history = original(objective, space, n_trials, seed=seed, method=method)
    objective(history[-1][0])
    return history


@misconception(
    "model_ignored",
    replaces="BayesianOptimizer._best_candidate",
    caught_by="test_known_bowls",
    feedback="Your asks look random, as if the model had no say. Score the candidates by log-EI of the fitted process and take "
    "the largest.",
)
def _best_candidate(self, gp, best, incumbent, rng, taken):
    return self._any_new(rng, taken)


@misconception(
    "exploration_only",
    replaces="log_expected_improvement",
    caught_by="test_known_bowls",
    feedback="Your search goes where the deviation is largest and never looks at the mean: it maps the space instead of "
    "descending in it.",
)
def log_expected_improvement(mean, std, best, xi=0.0):
    return std.log()


@misconception(
    "model_of_the_negative",
    replaces="BayesianOptimizer._model",
    caught_by="test_known_bowls",
    feedback="Your search climbs: the process was fitted to the negative losses while log-EI looks for small ones. Keep one sign "
    "throughout, smaller is better.",
)
def _model(self, X, y):
    return original(self, X, -y)


@misconception(
    "refit_per_candidate",
    replaces="BayesianOptimizer._best_candidate",
    caught_by="test_cholesky",
    matches="calls",
    feedback="The process is fitted again for each candidate. Factorise once, and predict all candidates in one call.",
)
def _best_candidate(self, gp, best, incumbent, rng, taken):
    for _ in range(self.n_candidates):
        gp.fit(gp.X, gp.y)
    return original(self, gp, best, incumbent, rng, taken)
