"""The libraries that do what is to be built here."""

from llmkata.checks import Forbid

FORBID = Forbid(
    modules={
        "sklearn": "scikit-learn has a Gaussian process: write yours from the Cholesky factor, that is the exercise.",
        "optuna": "Optuna is the competitor: only the given tpe_search may call it.",
        "botorch": "BoTorch is what you are building: use torch.linalg and torch.special.",
        "gpytorch": "GPyTorch is what you are building: use torch.linalg and torch.special.",
        "skopt": "scikit-optimize is what you are building.",
    },
    allow_in=("tpe_search",),
)
