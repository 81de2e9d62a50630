"""Mixed precision from bit patterns, one flat buffer of gradients, and a table of rules for autocast."""

from __future__ import annotations

import argparse
import bisect
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

# --- given ------------------------------------------------------------------------------------------------------------


def _callables(names: str) -> frozenset[Callable]:
    """All functions and methods that torch has under these names."""
    places = (torch, torch.Tensor, F, torch.linalg)
    return frozenset(getattr(place, name) for name in names.split() for place in places if hasattr(place, name))


#: Matrix products: fast in half precision, and accurate enough since they add up in float32.
LOW_PRECISION_OPS = _callables(
    "__matmul__ __rmatmul__ matmul mm bmm mv addmm addmv addbmm baddbmm addr multi_dot chain_matmul einsum linear"
    " conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d prelu scaled_dot_product_attention"
)
#: Sums, exponentials, powers, losses: they overflow, cancel or lose digits in half precision.
FP32_OPS = _callables(
    "softmax log_softmax softmin layer_norm group_norm rms_norm exp expm1 log log10 log1p log2 pow __pow__ __rpow__"
    " rsqrt reciprocal __rtruediv__ __rdiv__ sum prod cumsum cumprod norm vector_norm normalize renorm dist cdist pdist"
    " cosine_similarity acos asin cosh sinh tan erfinv softplus cross_entropy nll_loss mse_loss l1_loss smooth_l1_loss"
    " huber_loss kl_div binary_cross_entropy_with_logits cosine_embedding_loss hinge_embedding_loss margin_ranking_loss"
    " multilabel_margin_loss multi_margin_loss soft_margin_loss triplet_margin_loss poisson_nll_loss"
)
#: Operations of several tensors that need one dtype for all.
PROMOTE_OPS = _callables("addcdiv addcmul atan2 bilinear cat stack cross dot vdot grid_sample index_put scatter_add tensordot")


def iter_grads(optimizer: Optimizer) -> Iterator[Tensor]:
    """The gradients of the optimizer's parameters; those without one are left out. Gradients are dense."""
    return (p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None)


@dataclass(frozen=True)
class ScaleStats:
    """What a scale does to gradients: fractions (0..1) of their non-zero elements."""

    scale: float
    zeroed: float
    subnormal: float
    overflow: float


@dataclass(frozen=True)
class StepReport:
    """What `amp_step` did; `scale` is the one used in this step, before `update`."""

    loss: float
    grad_norm: float
    skipped: bool
    scale: float


# --- task 1: what half precision does to gradients --------------------------------------------------------------------


@torch.no_grad()
def scale_report(
    grads: Iterable[Tensor], scales: Sequence[float], dtype: torch.dtype = torch.float16
) -> list[ScaleStats]:
    """For each scale s: how many of the numbers s·g are lost when they are rounded to `dtype`.

    Args:
        grads: gradients of any shapes, of any mix of float dtypes; also empty or non-contiguous. Read once, not changed.
        scales: positive numbers; the product is taken in float32 or better and rounded to `dtype`.

    Returns:
        One ScaleStats per scale, in order; the fractions are over all tensors together, of their non-zero elements:
        `zeroed` become 0, `subnormal` lie below the smallest normal number without being 0, `overflow` become
        infinite (elements that are inf or NaN already count here). All 0.0 where there is no non-zero element.
    """
    # A float is sign, exponent, fraction: exponent 0 is zero or subnormal, an exponent of ones is inf or NaN.
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    fraction_bits = -int(math.log2(torch.finfo(dtype).eps))
    ones = 2 ** (8 * dtype.itemsize - 1 - fraction_bits) - 1
    tensors = [g.flatten() if g.dtype == torch.float64 else g.flatten().float() for g in grads]
    tensors = [t[t != 0] for t in tensors]
    total = max(1, sum(t.numel() for t in tensors))
    report = []
    for scale in scales:
        counts = [0, 0, 0]
        for t in tensors:
            bits = (t * scale).to(dtype).view(integer)
            exponent, fraction = bits >> fraction_bits & ones, bits & (2**fraction_bits - 1)
            counts[0] += int(((exponent == 0) & (fraction == 0)).sum())
            counts[1] += int(((exponent == 0) & (fraction != 0)).sum())
            counts[2] += int((exponent == ones).sum())
        report.append(ScaleStats(float(scale), *(n / total for n in counts)))
    return report


@torch.no_grad()
def pick_static_scale(grads: Iterable[Tensor], dtype: torch.dtype = torch.float16, margin_bits: int = 1) -> float:
    """The largest power of two s with max|g| · s · 2^margin_bits <= finfo(dtype).max.

    Args:
        grads: as in `scale_report`.
        margin_bits: how many doublings the largest gradient may still grow by.

    Returns:
        The scale; 2.0**24 where all gradients are zero, or there are none.

    Raises:
        ValueError: a gradient is inf or NaN; the message holds "non-finite".
    """
    largest = [float(g.abs().max()) for g in grads if g.numel() and not bool((g == 0).all())]
    if not all(map(math.isfinite, largest)):
        raise ValueError("non-finite gradients")
    if not largest:
        return 2.0**24
    exponents = range(-1000, 1000)
    fitting = bisect.bisect_right(
        exponents, torch.finfo(dtype).max / 2**margin_bits, key=lambda k: max(largest) * 2.0**k
    )
    return 2.0 ** exponents[fitting - 1]


# --- task 2: the dynamic loss scaler ----------------------------------------------------------------------------------


class LossScaler:
    """Multiplies the loss by a scale that grows while gradients stay finite and falls when they do not.

    One step: `scale(loss).backward()`, `unscale_(optimizer)` (once; `step` does it if you did not), `step(optimizer)`,
    `update()`. Several optimizers share a scale: each is unscaled and stepped, or skipped, by itself; then one
    `update`. Gradients may lie on any devices.

    The scale is a float32 value: it starts at `init_scale`; `update` multiplies it by `backoff_factor` if an inf or a
    NaN was found in any gradient unscaled since the last update, and by `growth_factor` after `growth_interval`
    consecutive updates without (unless that would make it infinite). Both start the count anew.

    With `enabled=False`: `scale` gives back what it got, `unscale_` and `update` do nothing, `step` is
    `optimizer.step()`, the scale is 1.0 and the state dict empty.
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        self.config = {
            "growth_factor": growth_factor, "backoff_factor": backoff_factor, "growth_interval": growth_interval
        }  # fmt: skip
        self.on = enabled
        self.factor, self.streak = torch.full((), init_scale), torch.zeros((), dtype=torch.int32)
        self.overflows: dict[int, Tensor] = {}
        self.done: set[int] = set()

    def scale(self, outputs: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """outputs · scale, differentiable; for a list or tuple a list (a tuple will do) of the products.

        Dtypes promote as with a 0-dim float32 tensor: a 0-dim float16 loss gives a float32 product.
        """
        if not self.on:
            return outputs if isinstance(outputs, Tensor) else list(outputs)
        if isinstance(outputs, Tensor):
            return outputs * self.factor.to(outputs.device)
        return [o * self.factor.to(o.device) for o in outputs]

    @torch.no_grad()
    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the optimizer's gradients by the scale, in place, and note whether one of them is inf or NaN.

        The host reads no value from the device. An optimizer without any gradient counts as finite.

        Raises:
            RuntimeError: a second call since the last `update` (message holds "already been called"), or one after
                `step` ("after step").
            ValueError: gradients in float16 ("FP16 gradients"): they belong to a half-precision model, whose float32
                masters are to be unscaled instead (`MasterWeights`).
        """
        if not self.on:
            return
        if id(optimizer) in self.done:
            raise RuntimeError("unscale_ comes before step, not after step")
        if id(optimizer) in self.overflows:
            raise RuntimeError("unscale_ has already been called since update")
        grads = list(iter_grads(optimizer))
        if any(g.dtype == torch.float16 for g in grads):
            raise ValueError("FP16 gradients")
        home = grads[0].device if grads else self.factor.device
        self.factor, self.streak = self.factor.to(home), self.streak.to(home)
        inverse = self.factor.double().reciprocal().float()
        overflow = torch.zeros((), dtype=torch.bool, device=home)
        for kind in {(g.device, g.dtype) for g in grads}:
            members = [g for g in grads if (g.device, g.dtype) == kind]
            flat = torch.cat([g.reshape(-1) for g in members]) * inverse.to(kind[0])
            pieces = flat.split([g.numel() for g in members])
            torch._foreach_copy_(members, [piece.view(g.shape) for piece, g in zip(pieces, members, strict=True)])
            # 0 times a finite number is 0, 0 times inf or NaN is NaN, and NaN spoils the sum.
            overflow = overflow | (flat * 0).sum().isnan().to(home)
        self.overflows[id(optimizer)] = overflow

    def step(self, optimizer: Optimizer) -> float | None:
        """`optimizer.step()` and its value, unless a gradient is inf or NaN: then the optimizer is not called; None.

        Unscales first if that was not done. Reads the device once.

        Raises:
            RuntimeError: a second call since the last `update`; the message holds "already been called".
        """
        if not self.on:
            return optimizer.step()
        if id(optimizer) in self.done:
            raise RuntimeError("step has already been called since update")
        if id(optimizer) not in self.overflows:
            self.unscale_(optimizer)
        self.done.add(id(optimizer))
        if self.overflows[id(optimizer)].item():
            return None
        return optimizer.step()

    def update(self) -> None:
        """Grow, shrink or keep the scale, by what `unscale_` found since the last update. Reads no value.

        Raises:
            RuntimeError: nothing was unscaled since the last update; the message holds "No inf checks".
        """
        if not self.on:
            return
        if not self.overflows:
            raise RuntimeError("No inf checks: unscale_ or step first")
        home = self.factor.device
        bad = sum(flag.to(home).int() for flag in self.overflows.values()) > 0
        streak = (self.streak + 1) * ~bad
        grow = streak == self.config["growth_interval"]
        grown = self.factor * torch.where(grow, self.config["growth_factor"], 1.0)
        grown = torch.where(grown.isinf(), self.factor, grown)
        self.factor = torch.where(bad, self.factor * self.config["backoff_factor"], grown)
        self.streak = streak * ~grow
        self.overflows, self.done = {}, set()

    def get_scale(self) -> float:
        """The current scale; 1.0 when not enabled."""
        return float(self.factor) if self.on else 1.0

    def state_dict(self) -> dict[str, Any]:
        """The keys and plain values of `torch.amp.GradScaler.state_dict()`; {} when not enabled.

        They are "scale" (float), "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker" (int: clean
        updates since the scale last changed).
        """
        if not self.on:
            return {}
        return {"scale": float(self.factor), "_growth_tracker": int(self.streak)} | self.config

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict()`, of this class or of `torch.amp.GradScaler`. Nothing when not enabled."""
        if not self.on:
            return
        self.config = {name: state[name] for name in self.config}
        self.factor.fill_(state["scale"])
        self.streak.fill_(state["_growth_tracker"])


# --- task 3: the training step ----------------------------------------------------------------------------------------


def low_precision(dtype: torch.dtype) -> AbstractContextManager:
    """Autocast(dtype); nothing at all for float32, so that task 3 can be done before tasks 4 and 5. Given."""
    return nullcontext() if dtype == torch.float32 else Autocast(dtype)


def amp_step(
    model: nn.Module,
    optimizer: Optimizer,
    scaler: LossScaler,
    micro_batches: Sequence[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    *,
    dtype: torch.dtype = torch.float16,
    max_norm: float | None = None,
) -> StepReport:
    """One optimizer step on the mean of the micro-batches' losses.

    In this order: gradients zeroed; forward and backward of each micro-batch, all in one `low_precision(dtype)` region
    and under one scale; one `unscale_`; the norm; clipping; one `step`; one `update`. The gradients of the step,
    unscaled and clipped, are left in `.grad`.

    Args:
        optimizer: over parameters of the model.
        loss_fn: (model, micro_batch) -> 0-dim loss; called once per micro-batch, in order.
        max_norm: all gradients of the optimizer are multiplied by min(1, max_norm / (norm + 1e-6)); None: no clipping.

    Returns:
        loss: the mean, unscaled. grad_norm: the 2-norm of all the optimizer's gradients, unscaled and before clipping;
        not finite where the step was skipped. skipped: whether the optimizer was not called. scale: the one used.

    Raises:
        ValueError: no micro-batches; the message holds "micro_batches".
    """
    n = len(micro_batches)
    if n < 1:
        raise ValueError("micro_batches: at least one")
    optimizer.zero_grad(set_to_none=True)
    mean = 0.0
    with low_precision(dtype):
        for batch in micro_batches:
            loss = loss_fn(model, batch)
            scaler.scale(loss.float() / n).backward()
            mean += float(loss.detach()) / n
    scaler.unscale_(optimizer)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    norm = float(nn.utils.clip_grad_norm_(params, math.inf if max_norm is None else max_norm))
    scale, calls = scaler.get_scale(), []
    hook = optimizer.register_step_post_hook(lambda *_: calls.append(1))
    try:
        scaler.step(optimizer)
    finally:
        hook.remove()
    scaler.update()
    return StepReport(mean, norm, not calls, scale)


# --- tasks 4 and 5: Autocast ------------------------------------------------------------------------------------------


class Autocast(TorchFunctionMode):
    """A region in which each torch operation gets its inputs in the dtype that suits it.

    * `LOW_PRECISION_OPS`: in `dtype`. `FP32_OPS`: in float32. `PROMOTE_OPS`: in float32 if their castable inputs have
      different dtypes, else as they are. All other operations run as they are.
    * Castable are tensors of float16, bfloat16 and float32, in lists, tuples and keyword arguments too; float64,
      integers and booleans never are. A call with an explicit `dtype` or `out` runs as it is.
    * Casts are recorded by autograd. They happen above it, so gradients arrive in the dtype of what was cast.
    * Only the innermost region acts: inside `Autocast(enabled=False)` nothing is cast, whatever stands around it.
    * With `cache_weights`, a leaf float32 tensor that requires grad is cast once per dtype, and the cast serves all
      later calls, forward and backward, of all regions within the outermost one; it is dropped when that ends. (So
      change weights between regions, not within.) A cast made without grad mode is never used where grad mode is on.

    Task 4 is `__init__` and `__torch_function__`; for task 5 override `__enter__` (it returns the region) and `__exit__`
    too, and call those of TorchFunctionMode there.

    Operations inside Python functions of torch that are in no table (`F.multi_head_attention_forward`) are not seen:
    torch switches a function mode off while one of its functions is handled.
    """

    def __init__(self, dtype: torch.dtype = torch.float16, *, enabled: bool = True, cache_weights: bool = True) -> None:
        super().__init__()
        self.dtype, self.enabled, self.cache_weights = dtype, enabled, cache_weights
        self._around: list[Autocast | None] = []

    _current: ClassVar[Autocast | None] = None  # the innermost region

    def __enter__(self) -> Self:
        outer = Autocast._current
        self._around.append(outer)
        self._kept: dict[int, tuple[Tensor, dict[Any, Tensor]]] = {} if outer is None else outer._kept
        Autocast._current = self
        return super().__enter__()

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        Autocast._current = self._around.pop()
        if Autocast._current is None:
            self._kept.clear()

    def _rule(self, func: Callable, tensors: list[Tensor]) -> torch.dtype | None:
        """The dtype for the inputs of func; None leaves them."""
        if func in LOW_PRECISION_OPS:
            return self.dtype
        if func in FP32_OPS or (func in PROMOTE_OPS and len({t.dtype for t in tensors}) > 1):
            return torch.float32
        return None

    def _in_dtype(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if not (self.cache_weights and x.is_leaf and x.requires_grad and x.dtype == torch.float32 != dtype):
            return x.to(dtype)
        _, casts = self._kept.setdefault(id(x), (x, {}))
        key = dtype, torch.is_grad_enabled()
        if key not in casts:
            casts[key] = x.to(dtype)
        return casts[key]

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Called by torch for each of its functions in the region: cast the arguments, then `func(*args, **kwargs)`."""
        kwargs = kwargs or {}
        chosen = kwargs.get("out") is not None or any(isinstance(v, torch.dtype) for v in (*args, *kwargs.values()))
        if self is not Autocast._current or not self.enabled or chosen:
            return func(*args, **kwargs)
        leaves, structure = tree_flatten((tuple(args), kwargs))
        castable = {torch.float16, torch.bfloat16, torch.float32}
        where = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.dtype in castable]
        wanted = self._rule(func, [leaves[i] for i in where])
        if wanted is None:
            return func(*args, **kwargs)
        for i in where:
            leaves[i] = self._in_dtype(leaves[i], wanted)
        args, kwargs = tree_unflatten(leaves, structure)
        return func(*args, **kwargs)


# --- task 6: master weights -------------------------------------------------------------------------------------------


class MasterWeights:
    """Float32 copies that the optimizer works on, for a model whose parameters are float16 or bfloat16.

    A float16 has 11 bits: at 1.0 an update below 2^-11 is rounded away. The master adds it up.

    Attributes:
        masters: one float32 tensor per parameter, in order, on its device, with the parameter's value; leaves that
            require grad. They, not the parameters, hold what was learned.
        optimizer: what `make_optimizer(masters)` made.
    """

    def __init__(self, params: Iterable[Parameter], make_optimizer: Callable[[list[Tensor]], Optimizer]) -> None:
        self.params = tuple(params)
        with torch.no_grad():
            self.masters = [torch.empty_like(p, dtype=torch.float32).copy_(p) for p in self.params]
        for m in self.masters:
            m.requires_grad_(True)
        self.optimizer = make_optimizer(self.masters)
        self._own_grads = False

    def collect_grads(self) -> None:
        """`master.grad` = the parameter's gradient in float32 (None where it has none), ready to be unscaled.

        What was in `master.grad` is replaced.
        """
        for i, p in enumerate(self.params):
            self.masters[i].grad = None
            if p.grad is not None:
                self.masters[i].grad = torch.empty_like(self.masters[i]).copy_(p.grad)
        self._own_grads = True

    def step(self, scaler: LossScaler | None = None) -> None:
        """`optimizer.step()`, or `scaler.step(optimizer)`; then every parameter is its master, rounded to its dtype.

        Collects the gradients first, unless `collect_grads` was called since the last `step` or `zero_grad`: then
        `master.grad` is used as it is (it may have been unscaled and clipped). `scaler.update()` is the caller's.
        """
        if not self._own_grads:
            self.collect_grads()
        (self.optimizer.step if scaler is None else lambda: scaler.step(self.optimizer))()
        with torch.no_grad():
            torch._foreach_copy_(list(self.params), self.masters)
        self._own_grads = False

    def zero_grad(self) -> None:
        """No gradients, neither of the masters nor of the parameters (`.grad` is None)."""
        for i, p in enumerate(self.params):
            p.grad, self.masters[i].grad = None, None
        self._own_grads = False


# --- the command line (given) -----------------------------------------------------------------------------------------


def small_regression(device: str) -> tuple[nn.Module, Callable[[], list[Any]], Callable[[nn.Module, Any], Tensor]]:
    """A network of two hidden layers, two micro-batches a step, and a loss whose gradients float16 cannot hold."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)).to(device)
    direction = torch.randn(16, 1, device=device)

    def batches() -> list[Any]:
        inputs = [torch.randn(32, 16, device=device) for _ in range(2)]
        return [(x, 1e-3 * torch.tanh(x @ direction)) for x in inputs]

    return model, batches, lambda model, batch: F.mse_loss(model(batch[0]), batch[1])


def causal_lm(folder: str, text: Path, device: str) -> tuple[nn.Module, Callable[[], list[Any]], Callable]:
    """A causal language model of a directory in the hub's layout; each line of the text is a micro-batch, 4 a step."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
    lines = [tokenizer.encode(line) for line in text.read_text("utf-8").splitlines() if line.strip()]
    passages = [torch.tensor([ids], device=device) for ids in lines if len(ids) > 1]
    if not passages:
        raise ValueError(f"{text} holds no passage of two tokens")
    at = 0

    def batches() -> list[Any]:
        nonlocal at
        chosen = [passages[(at + i) % len(passages)] for i in range(4)]
        at += 4
        return chosen

    return model, batches, lambda model, ids: model(input_ids=ids, labels=ids, use_cache=False).loss


def main(argv: Sequence[str] | None = None) -> int:
    """Train in mixed precision and write amp_run.json: lists "loss", "scale" and "skipped", one entry per step."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", help="directory of a causal LM in the hub's layout; without it a small network")
    parser.add_argument("--text", type=Path, help="with --model: a text, one passage a line")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, default=Path("amp_run.json"))
    args = parser.parse_args(argv)
    if args.model is not None and args.text is None:
        parser.error("--model needs --text")
    setting = small_regression(args.device) if args.model is None else causal_lm(args.model, args.text, args.device)
    model, batches, loss_fn = setting
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, eps=1e-12)
    # bfloat16 has the exponents of float32: nothing vanishes, nothing is to be scaled.
    scaler = LossScaler(init_scale=2.0**20, growth_interval=20, enabled=args.dtype == "float16")
    run: dict[str, list[Any]] = {"loss": [], "scale": [], "skipped": []}
    for _ in range(args.steps):
        report = amp_step(
            model, optimizer, scaler, batches(), loss_fn, dtype=getattr(torch, args.dtype), max_norm=1.0
        )
        for key, values in run.items():
            values.append(getattr(report, key))
    # NaN and inf are no JSON: they stand as null.
    run["loss"] = [x if math.isfinite(x) else None for x in run["loss"]]
    args.out.write_text(json.dumps(run), "utf-8")
    print(f"{args.steps} steps, loss {run['loss'][0]:.3g} -> {run['loss'][-1]:.3g}, {sum(run['skipped'])} skipped, "
          f"scale {run['scale'][-1]:g}")  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
