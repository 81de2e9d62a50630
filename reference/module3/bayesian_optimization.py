"""Oracles of 3.4: scikit-learn's Gaussian process, quadrature and 60-digit arithmetic for expected improvement, test
functions with known minima. Configurations are encoded one parameter at a time, in plain Python."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch


def encode(params: dict, config: dict) -> list[float]:
    """`params`: {name: ("float" | "int", low, high, log) or ("categorical", choices)}."""
    out: list[float] = []
    for name, (kind, *rest) in params.items():
        if kind == "categorical":
            out += [1.0 if choice == config[name] else 0.0 for choice in rest[0]]
        else:
            low, high, log = rest
            scale = math.log if log else float
            out.append((scale(config[name]) - scale(low)) / (scale(high) - scale(low)))
    return out


def decode(params: dict, u) -> dict:
    """By trying every integer."""
    out, at = {}, 0
    for name, (kind, *rest) in params.items():
        if kind == "categorical":
            part = list(u[at : at + len(rest[0])])
            out[name] = rest[0][part.index(max(part))]
            at += len(rest[0])
            continue
        low, high, log = rest
        x = min(max(float(u[at]), 0.0), 1.0)
        if kind == "int":
            one = {name: (kind, low, high, log)}
            out[name] = min(range(low, high + 1), key=lambda v: abs(encode(one, {name: v})[0] - x))
        else:
            out[name] = low * (high / low) ** x if log else low + x * (high - low)
        at += 1
    return out


def kernel(lengthscales, outputscale: float):
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern

    return ConstantKernel(outputscale) * Matern(length_scale=np.asarray(lengthscales), nu=2.5)


def matern52(X, Z, lengthscales, outputscale) -> torch.Tensor:
    return torch.from_numpy(kernel(lengthscales, float(outputscale))(np.asarray(X), np.asarray(Z)))


def regressor(X, y, lengthscales, outputscale: float, noise: float):
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import WhiteKernel

    both = kernel(lengthscales, outputscale) + WhiteKernel(noise)
    return GaussianProcessRegressor(both, alpha=0.0, optimizer=None).fit(np.asarray(X), np.asarray(y))


def predict(X, y, lengthscales, outputscale: float, noise: float, Z) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and latent standard deviation: WhiteKernel counts its noise into the variance of a prediction."""
    mean, std = regressor(X, y, lengthscales, outputscale, noise).predict(np.asarray(Z), return_std=True)
    variance = np.maximum(std**2 - noise, 1e-12)
    return torch.from_numpy(mean), torch.from_numpy(np.sqrt(variance))


def lml_and_grad(log_params, X, y) -> tuple[float, torch.Tensor]:
    d = X.shape[1]
    theta = np.exp(np.asarray(log_params))
    model = regressor(X, y, theta[:d], theta[d], theta[d + 1])
    value, grad = model.log_marginal_likelihood(model.kernel_.theta, eval_gradient=True)
    # scikit-learn's order is outputscale, lengthscales, noise.
    return float(value), torch.from_numpy(np.concatenate([grad[1 : d + 1], grad[:1], grad[-1:]]))


def expected_improvement(mean: float, std: float, best: float, xi: float) -> float:
    """The integral of max(best - xi - f, 0) over the density of f."""
    from scipy.integrate import quad

    gain = best - xi - mean
    if std == 0:
        return max(gain, 0.0)

    def integrand(t: float) -> float:
        return (gain - std * t) * math.exp(-0.5 * t * t) / math.sqrt(2 * math.pi)

    top = gain / std
    points = [p for p in (-3.0, 0.0, 3.0) if min(-40.0, top - 40.0) < p < top]
    return quad(integrand, min(-40.0, top - 40.0), top, points=points or None, epsabs=0, epsrel=1e-11, limit=500)[0]


def log_expected_improvement(z: float, std: float) -> tuple[float, float]:
    """log EI and its derivative by z, to 60 digits."""
    import mpmath

    with mpmath.workdps(60):
        z = mpmath.mpf(z)
        # Phi by erfc, whose tail mpmath knows; 60 digits survive the cancellation of 1/z^2 = 1e-10.
        cdf = mpmath.erfc(-z / mpmath.sqrt(2)) / 2
        h = mpmath.npdf(z) + z * cdf
        return float(mpmath.log(h) + mpmath.log(mpmath.mpf(std))), float(cdf / h)


# --- functions to optimize --------------------------------------------------------------------------------------------


def branin(x: float, y: float) -> float:
    """On [-5, 10] x [0, 15]; minimum 0.397887."""
    a = y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6
    return a**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10


BRANIN_MIN = 0.39788735772973816

HARTMANN_A = np.array(
    [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
)
HARTMANN_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)
HARTMANN_MIN = -3.3223680114155


def hartmann6(x) -> float:
    """On the unit cube of six dimensions."""
    inner = (HARTMANN_A * (np.asarray(x) - HARTMANN_P) ** 2).sum(1)
    return -float(np.array([1.0, 1.2, 3.0, 3.2]) @ np.exp(-inner))


class LlmSurface:
    """The loss of the brief, its optimum shifted: `shift` holds log factors of learning rate, batch and aspect ratio,
    and offsets of warm-up and weight decay."""

    def __init__(self, shift):
        self.lr, self.batch, self.aspect, self.warmup, self.decay = map(float, shift)

    def base(self, layers, width):
        n = 12.0 * layers * width**2
        tokens = 1e18 / (6 * n)
        aspect = np.log(width / layers / 64) - self.aspect
        return 1.69 + 406.4 * n**-0.34 + 410.7 * tokens**-0.28 + 0.02 * aspect**2

    def __call__(self, c: dict) -> float:
        off = math.log(c["lr"] / (0.003239 - 0.0001395 * math.log(12 * c["n_layers"] * c["d_model"] ** 2))) - self.lr
        if off > math.log(8):
            return math.nan
        penalty = 0.05 * off**2 + 0.02 * (math.log(c["batch_tokens"] / 2**17) - self.batch) ** 2
        penalty += 1.5 * (c["warmup"] - 0.06 - self.warmup) ** 2 + 2.0 * (c["weight_decay"] - 0.1 - self.decay) ** 2
        return float(self.base(c["n_layers"], c["d_model"]) + penalty)

    @functools.cached_property
    def minimum(self) -> float:
        """Every shape tried; the other penalties can be made zero (batch: to 1e-8)."""
        return float(self.base(np.arange(4, 25)[:, None], np.arange(256, 1025)[None]).min())
