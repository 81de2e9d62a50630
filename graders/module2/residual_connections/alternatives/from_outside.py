"""An alternative: hooks observe the model from outside; lesions are batched; paths as a polynomial's coefficients."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

Kind = Literal["none", "plain", "scaled", "rezero"]


def branch_scale(kind, n_sublayers):
    match kind:
        case "none" | "plain":
            return 1.0
        case "scaled":
            return 1.0 / n_sublayers**0.5
        case "rezero":
            return 0.0
    raise ValueError(f"{kind} is not one of none, plain, scaled, rezero")


class ResidualWrapper(nn.Module):
    def __init__(self, branch, kind, n_sublayers):
        super().__init__()
        start = branch_scale(kind, n_sublayers)
        self.branch, self.kind = branch, kind
        self.scale = start
        self.register_parameter("gate", nn.Parameter(torch.zeros([])) if kind == "rezero" else None)

    def contribution(self, x):
        out = self.branch(x)
        if tuple(out.shape) != tuple(x.shape):
            raise ValueError("shape of the branch output: " + repr(tuple(out.shape)))
        if self.gate is not None:
            return self.gate * out
        return self.scale * out

    def forward(self, x):
        skip = 0.0 if self.kind == "none" else x
        return skip + self.contribution(x)


# --------------------------------------------------------------------------------------------------------------
# As given: a tiny language model of your wrappers, and its data
# --------------------------------------------------------------------------------------------------------------

VOCABULARY, CONTEXT = 16, 16


class RMSNorm(nn.Module):
    """Given: ``x / sqrt(mean(x²) + eps) · weight`` over the features."""

    def __init__(self, d: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d))

    def scale(self, x: Tensor) -> Tensor:
        """``1 / sqrt(mean(x²) + eps)``, (..., 1)."""
        return torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale(x) * self.weight


class CausalAttention(nn.Module):
    """Given: multi-head causal self-attention without biases."""

    def __init__(self, d: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv_proj = nn.Linear(d, 3 * d, bias=False)
        self.out_proj = nn.Linear(d, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for t in self.qkv_proj(x).chunk(3, dim=-1))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class TinyLM(nn.Module):
    """Given: ids (B, T), T <= 16, to logits (B, T, 16).

    ``embed(ids)`` gives the first stream; ``sublayers`` are ``2 · n_layers`` of your :class:`ResidualWrapper`,
    attention and MLP in turns, each branch with a norm of its own in front (``norm="rmsnorm"``) or none
    (``norm="none"``); ``final_norm`` (an :class:`RMSNorm`, or ``nn.Identity`` with ``norm="none"``) and ``unembed`` (a
    linear layer without bias, weight (16, d)) make logits of the last stream. There are no biases anywhere.
    """

    def __init__(
        self, kind: Kind, n_layers: int, norm: Literal["rmsnorm", "none"] = "rmsnorm", *, d: int = 32, n_heads: int = 2
    ) -> None:
        super().__init__()

        def make_norm() -> nn.Module:
            return RMSNorm(d) if norm == "rmsnorm" else nn.Identity()

        def wrap(*branch: nn.Module) -> ResidualWrapper:
            return ResidualWrapper(nn.Sequential(make_norm(), *branch), kind, 2 * n_layers)

        self.token = nn.Embedding(VOCABULARY, d)
        self.position = nn.Embedding(CONTEXT, d)
        sublayers = []
        for _ in range(n_layers):
            sublayers.append(wrap(CausalAttention(d, n_heads)))
            sublayers.append(wrap(nn.Linear(d, 4 * d, bias=False), nn.GELU(), nn.Linear(4 * d, d, bias=False)))
        self.sublayers = nn.ModuleList(sublayers)
        self.final_norm = make_norm()
        self.unembed = nn.Linear(d, VOCABULARY, bias=False)

    def embed(self, ids: Tensor) -> Tensor:
        return self.token(ids) + self.position.weight[: ids.shape[1]]

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for sublayer in self.sublayers:
            x = sublayer(x)
        return self.unembed(self.final_norm(x))


class AttentionOnly(nn.Module):
    """Given: one layer of single-head attention over all positions, without or with a skip: ``A x W`` or ``x + A x W``.

    A is a softmax of ``x Wq (x Wk)ᵀ / sqrt(d)``; the weights are normal with variance 1/d, drawn from ``seed``.
    """

    def __init__(self, d: int, skip: bool, seed: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.wq, self.wk, self.wv = (torch.randn(d, d, generator=generator, dtype=dtype) / d**0.5 for _ in range(3))
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        weights = ((x @ self.wq) @ (x @ self.wk).mT / x.shape[-1] ** 0.5).softmax(dim=-1)
        y = weights @ (x @ self.wv)
        return x + y if self.skip else y


def cross_entropy(model: TinyLM, ids: Tensor, targets: Tensor) -> Tensor:
    """Given: mean loss in nats of ``model(ids)`` against the targets (B, T)."""
    return F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())


@functools.cache
def markov_data(seed: int = 3) -> tuple[Tensor, Tensor]:
    """Given: sequences of 17 symbols of an order-1 Markov chain over 16 symbols, int64: 1 024 to train on, 256 to
    validate.

    The data of 2.4: each row of the transition matrix is a draw from Dirichlet(0.15). A model that knows only how often
    symbols occur reaches about 2.6 nats (:func:`unigram_entropy`), one that knows the chain about 1.45.
    """
    rng = np.random.default_rng(seed)
    cumulative = rng.dirichlet(np.full(VOCABULARY, 0.15), size=VOCABULARY).cumsum(axis=1)
    ids = np.empty((1280, CONTEXT + 1), dtype=np.int64)
    ids[:, 0] = rng.integers(VOCABULARY, size=len(ids))
    for t in range(CONTEXT):
        # The successor is the first symbol whose cumulative probability exceeds a uniform number.
        ids[:, t + 1] = (cumulative[ids[:, t]] < rng.random((len(ids), 1))).sum(axis=1).clip(max=VOCABULARY - 1)
    ids = torch.from_numpy(ids)
    return ids[:1024], ids[1024:]


def unigram_entropy() -> float:
    """Given: the loss in nats, on the validation targets, of a model that knows how often each of them occurs."""
    share = torch.bincount(markov_data()[1][:, 1:].flatten(), minlength=VOCABULARY).double()
    share = share[share > 0] / share.sum()
    return -(share * share.log()).sum().item()


def expected_variance(n_sublayers, alpha):
    variance = 1.0
    for _ in range(n_sublayers):
        variance += alpha * alpha * variance
    return variance


def measure_variance(n_sublayers, alpha, *, d=256, batch=64, seed=0):
    rng = torch.Generator()
    rng.manual_seed(seed)
    x = torch.randn((batch, d), generator=rng)
    sizes = [float(x.pow(2).mean())]
    for _ in range(n_sublayers):
        step = torch.randn((d, d), generator=rng).div(d**0.5)
        x = torch.addmm(x, x, step, alpha=alpha)
        sizes.append(float(x.pow(2).mean()))
    return [size / sizes[0] for size in sizes[1:]]


def rank_one_distance(x):
    away = (x - x.mean(-2, keepdim=True)).flatten(-2).norm(dim=-1)
    size = x.flatten(-2).norm(dim=-1)
    return torch.nan_to_num(away / size, nan=0.0)


def rank_profile(layers, x):
    outputs = itertools.accumulate(layers, lambda value, layer: layer(value).detach(), initial=x)
    return [float(rank_one_distance(y).mean()) for y in itertools.islice(outputs, 1, None)]


@dataclass(frozen=True)
class GradientProfile:
    """Gradients of the loss, by sublayer."""

    loss: float
    #: norm of the gradient with respect to the stream after each sublayer, over everything in it
    activation: tuple[float, ...]
    #: norm of all parameter gradients of each sublayer, as one vector (0 where it has none)
    parameter: tuple[float, ...]


def gradient_profile(model, ids, targets):
    found = {}

    def remember(n, _, __, out):
        out.register_hook(lambda grad: found.__setitem__(n, float(grad.norm())))

    hooks = [s.register_forward_hook(functools.partial(remember, n)) for n, s in enumerate(model.sublayers)]
    everything = list(model.parameters())
    before = [p.grad for p in everything]
    try:
        for p in everything:
            p.grad = None
        loss = F.cross_entropy(model(ids).transpose(1, 2), targets)
        loss.backward()
        vectors = [[p.grad.reshape(-1) for p in s.parameters() if p.grad is not None] for s in model.sublayers]
        parameter = [float(torch.cat(v).norm()) if v else 0.0 for v in vectors]
    finally:
        for hook in hooks:
            hook.remove()
        for p, grad in zip(everything, before):
            p.grad = grad
    return GradientProfile(loss.item(), tuple(found[n] for n in range(len(parameter))), tuple(parameter))


@dataclass(frozen=True)
class SweepRow:
    """One trained model."""

    kind: str
    depth: int
    seed: int
    val_loss: float
    #: norms of the gradient of the stream after the first and last sublayer, before training
    init_grad_first: float
    init_grad_last: float
    #: rank_one_distance of the last stream, averaged over the batch, before training
    init_rank: float


#: ``train_fn(kind, depth, seed)``, called with these three positions.
TrainFn = Callable[[str, int, int], SweepRow]


def train_tiny_lm(kind: Kind, depth: int, seed: int, steps: int = 80) -> SweepRow:
    """Given: a :class:`TinyLM` of ``depth`` blocks, measured with your instruments and then trained (Adam, lr 0.01,
    batches of 32). The same arguments give the same row."""
    train, val = markov_data()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TinyLM(kind, depth)
        profile = gradient_profile(model, train[:32, :-1], train[:32, 1:])
        rank = rank_profile([nn.Sequential(*model.sublayers)], model.embed(train[:32, :-1]))
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(steps):
            batch = train[torch.randint(len(train), (32,))]
            loss = cross_entropy(model, batch[:, :-1], batch[:, 1:])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        val_loss = cross_entropy(model, val[:, :-1], val[:, 1:]).item()
    return SweepRow(kind, depth, seed, val_loss, profile.activation[0], profile.activation[-1], rank[0])


def depth_sweep(kinds, depths, seeds, *, train_fn=train_tiny_lm):
    return [train_fn(*cell) for cell in itertools.product(kinds, depths, seeds)]


def trainable_depth(rows, threshold):
    result = {}
    for kind in {row.kind: None for row in rows}:
        own = [row for row in rows if row.kind == kind]
        failed = min((row.depth for row in own if not row.val_loss < threshold), default=float("inf"))
        result[kind] = max((row.depth for row in own if row.depth < failed), default=None)
    return result


def plot_depth_sweep(rows, path):
    figure = Figure()
    FigureCanvasAgg(figure)
    ax = figure.add_subplot(111)
    for kind in dict.fromkeys(row.kind for row in rows):
        depths = sorted({row.depth for row in rows if row.kind == kind})
        means = [np.mean([row.val_loss for row in rows if (row.kind, row.depth) == (kind, n)]) for n in depths]
        ax.semilogx(depths, means, "-o", base=2, label=kind)
    ends = ax.get_xlim()
    ax.plot(ends, [unigram_entropy()] * 2, "k:", label="unigram entropy")
    ax.legend()
    figure.savefig(path, format="png")
    return figure


def path_contributions(mats, x):
    coefficients = [x]  # of t^0, t^1, ... in the product of (I + t A) x
    for a in mats:
        moved = [(a @ c.T).T for c in coefficients]
        sums = [c + m for c, m in zip(coefficients[1:], moved[:-1])]
        coefficients = [coefficients[0], *sums, moved[-1]]
    return torch.stack(coefficients)


@dataclass(frozen=True)
class Decomposition:
    """The last stream as a sum."""

    #: "embed", "attn0", "mlp0", "attn1", ...
    names: tuple[str, ...]
    #: (1 + n_sublayers, B, T, d): the embedding, and what each sublayer added
    components: Tensor


def decompose_residual(model, ids):
    kinds = {sublayer.kind for sublayer in model.sublayers}
    if "none" in kinds:
        raise ValueError("no residual stream")
    streams = []
    hooks = [model.sublayers[0].register_forward_pre_hook(lambda _, args: streams.append(args[0]))]
    hooks += [s.register_forward_hook(lambda _, __, out: streams.append(out)) for s in model.sublayers]
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    differences = torch.diff(torch.stack(streams), dim=0)
    pairs = [(f"attn{n}", f"mlp{n}") for n in range(len(model.sublayers) // 2)]
    return Decomposition(("embed", *itertools.chain(*pairs)), torch.cat((streams[0][None], differences)))


def direct_logit_attribution(model, dec, token_ids):
    stream = dec.components.sum(0)
    if isinstance(model.final_norm, RMSNorm):
        frozen = model.final_norm.weight / (stream.pow(2).mean(-1, keepdim=True) + model.final_norm.eps).sqrt()
    else:
        frozen = torch.ones_like(stream)
    every = (dec.components * frozen) @ model.unembed.weight.T
    index = token_ids.expand(len(dec.components), *token_ids.shape)[..., None]
    return every.gather(-1, index)[..., 0].detach()


def lesion_study(model, ids, targets):
    """All lesioned streams travel together: after block l there are l + 1 of them, and the whole model's."""
    batch = len(ids)
    with torch.no_grad():
        streams = model.embed(ids)  # the whole model's, then one for each lesion so far
        for attention, mlp in zip(model.sublayers[::2], model.sublayers[1::2]):
            untouched = streams[:batch]
            streams = torch.cat((mlp(attention(streams)), untouched))
        logits = model.unembed(model.final_norm(streams)).unflatten(0, (-1, batch))
        losses = [F.cross_entropy(one.flatten(0, 1), targets.flatten()).item() for one in logits]
    return [loss - losses[0] for loss in losses[1:]]


class BiasedAttention(nn.Module):
    """Given: GPT-2's causal self-attention, with biases."""

    def __init__(self, d: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class GPT2(nn.Module):
    """Given: a GPT-2 from a local directory (``config.json``, ``model.safetensors``), with the attributes of TinyLM.

    ``embed``, ``sublayers`` (``2 · n_layer`` plain wrappers of yours, attention and MLP in turns), ``final_norm`` (a
    LayerNorm), ``unembed``. So :func:`lesion_study`, :func:`decompose_residual` and :func:`gradient_profile` take it
    as it is. (:func:`direct_logit_attribution` does not: a LayerNorm with a bias is no mere factor.) Reads the files
    without transformers.

    Raises ``ValueError`` for a model with another activation or other scores than GPT-2's.
    """

    def __init__(self, directory: str | Path) -> None:
        super().__init__()
        config = json.loads((Path(directory) / "config.json").read_text("utf-8"))
        if config.get("activation_function") != "gelu_new" or config.get("scale_attn_by_inverse_layer_idx"):
            raise ValueError(f"not a plain GPT-2: {config.get('activation_function')}")
        d, n_layers, eps = config["n_embd"], config["n_layer"], config["layer_norm_epsilon"]
        d_ff = config.get("n_inner") or 4 * d
        self.token = nn.Embedding(config["vocab_size"], d)
        self.position = nn.Embedding(config["n_positions"], d)
        sublayers = []
        for _ in range(n_layers):
            attention = [BiasedAttention(d, config["n_head"])]
            mlp = [nn.Linear(d, d_ff), nn.GELU(approximate="tanh"), nn.Linear(d_ff, d)]
            for branch in (attention, mlp):
                sublayers.append(ResidualWrapper(nn.Sequential(nn.LayerNorm(d, eps), *branch), "plain", 2 * n_layers))
        self.sublayers = nn.ModuleList(sublayers)
        self.final_norm = nn.LayerNorm(d, eps)
        self.unembed = nn.Linear(d, config["vocab_size"], bias=False)
        self._read(Path(directory) / "model.safetensors", n_layers)

    def _read(self, file: Path, n_layers: int) -> None:
        from safetensors.torch import load_file

        # The file of the released model has no prefix, and no unembedding: it is the embedding.
        theirs = {name.removeprefix("transformer."): t for name, t in load_file(file).items()}
        parts = {"ln_f": self.final_norm}
        for i in range(n_layers):
            attention, mlp = (sublayer.branch for sublayer in self.sublayers[2 * i : 2 * i + 2])
            parts |= {f"h.{i}.ln_1": attention[0], f"h.{i}.ln_2": mlp[0]}
            parts |= {f"h.{i}.attn.c_attn": attention[1].qkv, f"h.{i}.attn.c_proj": attention[1].out}
            parts |= {f"h.{i}.mlp.c_fc": mlp[1], f"h.{i}.mlp.c_proj": mlp[3]}
        with torch.no_grad():
            self.token.weight.copy_(theirs["wte.weight"])
            self.position.weight.copy_(theirs["wpe.weight"])
            self.unembed.weight.copy_(theirs.get("lm_head.weight", theirs["wte.weight"]))
            for name, part in parts.items():
                # GPT-2 keeps its matrices as (in, out), nn.Linear as (out, in); gains and biases have one dimension.
                weight = theirs[f"{name}.weight"]
                part.weight.copy_(weight.T if weight.dim() == 2 else weight)
                part.bias.copy_(theirs[f"{name}.bias"])

    def embed(self, ids: Tensor) -> Tensor:
        return self.token(ids) + self.position.weight[: ids.shape[1]]

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for sublayer in self.sublayers:
            x = sublayer(x)
        return self.unembed(self.final_norm(x))
