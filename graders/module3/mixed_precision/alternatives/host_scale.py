"""Mixed precision with thresholds for counts, and a scale that lives on the host."""

from __future__ import annotations

import argparse
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
    magnitudes = [g.detach().double().abs().flatten() for g in grads]
    total = sum(int((m != 0).sum()) for m in magnitudes) or 1
    to_zero, to_subnormal, to_inf = rounding_limits(dtype)
    report = []
    for s in scales:
        zeroed = subnormal = overflow = 0
        for m in magnitudes:
            p = m * s
            zeroed += int(((m != 0) & (p <= to_zero)).sum())
            subnormal += int(((p > to_zero) & (p < to_subnormal)).sum())
            overflow += int((p >= to_inf).sum() + p.isnan().sum())
        report.append(ScaleStats(s, zeroed / total, subnormal / total, overflow / total))
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
    largest = 0.0
    for g in grads:
        for value in g.detach().abs().flatten().tolist():
            if not math.isfinite(value):
                raise ValueError("a gradient is non-finite")
            largest = max(largest, value)
    if not largest:
        return 2.0**24
    room, scale = torch.finfo(dtype).max / 2**margin_bits, 1.0
    while largest * scale <= room:
        scale *= 2
    while largest * scale > room:
        scale /= 2
    return scale


# --- task 2: the dynamic loss scaler ----------------------------------------------------------------------------------


def rounding_limits(dtype: torch.dtype) -> tuple[float, float, float]:
    """Magnitudes up to the first become 0, below the second subnormal, from the third on infinite (ties to even)."""
    info = torch.finfo(dtype)
    step = info.smallest_normal * info.eps  # between neighbours below the smallest normal number
    top = 2.0 ** (math.frexp(info.max)[1] - 1) * info.eps  # between neighbours at the largest number
    return step / 2, info.smallest_normal - step / 2, info.max + top / 2


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
        self.value, self.clean, self.enabled = init_scale, 0, enabled
        self.rules = {"growth_factor": growth_factor, "backoff_factor": backoff_factor, "growth_interval": growth_interval}
        self.flags: dict[Optimizer, list[Tensor] | bool] = {}
        self.stepped: set[Optimizer] = set()

    def scale(self, outputs: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """outputs · scale, differentiable; for a list or tuple a list (a tuple will do) of the products.

        Dtypes promote as with a 0-dim float32 tensor: a 0-dim float16 loss gives a float32 product.
        """
        if isinstance(outputs, (list, tuple)):
            return [self.scale(o) for o in outputs]
        return outputs * torch.full((), self.value, device=outputs.device) if self.enabled else outputs

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
        if not self.enabled:
            return
        if optimizer in self.stepped:
            raise RuntimeError("unscale_ after step: update first")
        if optimizer in self.flags:
            raise RuntimeError("unscale_ has already been called for this optimizer")
        by_device: dict[torch.device, list[Tensor]] = {}
        for g in iter_grads(optimizer):
            if g.dtype == torch.float16:
                raise ValueError("FP16 gradients have no place in a scaler")
            by_device.setdefault(g.device, []).append(g)
        found = []
        for device, grads in by_device.items():
            flag, inverse = torch.zeros((), device=device), torch.full((), 1.0 / self.value, device=device)
            for dtype in {g.dtype for g in grads}:
                torch._amp_foreach_non_finite_check_and_unscale_([g for g in grads if g.dtype == dtype], flag, inverse)
            found.append(flag)
        self.flags[optimizer] = found

    def step(self, optimizer: Optimizer) -> float | None:
        """`optimizer.step()` and its value, unless a gradient is inf or NaN: then the optimizer is not called; None.

        Unscales first if that was not done. Reads the device once.

        Raises:
            RuntimeError: a second call since the last `update`; the message holds "already been called".
        """
        if self.enabled:
            if optimizer in self.stepped:
                raise RuntimeError("step has already been called")
            if optimizer not in self.flags:
                self.unscale_(optimizer)
            self.stepped.add(optimizer)
            if self._bad(optimizer):
                return None
        return optimizer.step()

    def update(self) -> None:
        """Grow, shrink or keep the scale, by what `unscale_` found since the last update. Reads no value.

        Raises:
            RuntimeError: nothing was unscaled since the last update; the message holds "No inf checks".
        """
        if not self.enabled:
            return
        if not self.flags:
            raise RuntimeError("No inf checks since the last update")
        rules = self.rules
        if any(list(map(self._bad, self.flags))):
            self.value, self.clean = self.value * rules["backoff_factor"], 0
        else:
            self.clean += 1
            if self.clean == rules["growth_interval"]:
                self.clean = 0
                if self.value * rules["growth_factor"] <= torch.finfo(torch.float32).max:
                    self.value *= rules["growth_factor"]
        self.flags, self.stepped = {}, set()

    def _bad(self, optimizer: Optimizer) -> bool:
        """Whether inf or NaN was found; asks the device the first time alone."""
        flags = self.flags[optimizer]
        if not isinstance(flags, bool):
            flags = self.flags[optimizer] = bool(flags) and bool(sum(f.to(flags[0].device) for f in flags) > 0)
        return flags

    def get_scale(self) -> float:
        """The current scale; 1.0 when not enabled."""
        return self.value if self.enabled else 1.0

    def state_dict(self) -> dict[str, Any]:
        """The keys and plain values of `torch.amp.GradScaler.state_dict()`; {} when not enabled.

        They are "scale" (float), "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker" (int: clean
        updates since the scale last changed).
        """
        return {"scale": self.value, **self.rules, "_growth_tracker": self.clean} if self.enabled else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict()`, of this class or of `torch.amp.GradScaler`. Nothing when not enabled."""
        if self.enabled:
            self.value, self.clean = float(state["scale"]), int(state["_growth_tracker"])
            self.rules = {k: state[k] for k in self.rules}


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
    if len(micro_batches) == 0:
        raise ValueError("no micro_batches")
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for p in params:
        p.grad = None
    total = 0.0
    with low_precision(dtype):
        for batch in micro_batches:
            loss = loss_fn(model, batch).float()
            total += loss.item()
            found = torch.autograd.grad(scaler.scale(loss / len(micro_batches)), params, allow_unused=True)
            for p, g in zip(params, found, strict=True):
                if g is not None:
                    p.grad = g.clone() if p.grad is None else p.grad + g
    scale = scaler.get_scale()
    scaler.unscale_(optimizer)
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in iter_grads(optimizer)))
    if max_norm is not None and norm > max_norm:
        for g in iter_grads(optimizer):
            g.mul_(max_norm / (norm + 1e-6))
    scaler.step(optimizer)
    skipped = scaler.enabled and scaler._bad(optimizer)
    scaler.update()
    return StepReport(total / len(micro_batches), norm, skipped, scale)


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

    _stack: ClassVar[list[Autocast]] = []

    def __enter__(self) -> Self:
        self._stack.append(self)
        if len(self._stack) == 1:
            self.kept: dict[Any, tuple[Tensor, Tensor]] = {}
        return super().__enter__()

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        self._stack.pop()
        if not self._stack:
            del self.kept

    def _to(self, x: Any, dtype: torch.dtype) -> Any:
        if type(x) in (list, tuple):
            return type(x)(self._to(y, dtype) for y in x)
        if not isinstance(x, Tensor) or x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            return x
        reusable = self.cache_weights and torch.is_grad_enabled() and x.is_leaf and x.requires_grad
        if not reusable or x.dtype != torch.float32 or dtype == torch.float32:
            return x.to(dtype)
        kept = self._stack[0].kept
        if (id(x), dtype) not in kept:
            kept[id(x), dtype] = x, x.to(dtype)
        return kept[id(x), dtype][1]

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Called by torch for each of its functions in the region: cast the arguments, then `func(*args, **kwargs)`."""
        kwargs = kwargs or {}
        values = (*args, *kwargs.values())
        explicit = kwargs.get("out") is not None or any(isinstance(v, torch.dtype) for v in values)
        if not self.enabled or explicit or self._stack[-1] is not self:
            return func(*args, **kwargs)
        wanted = self.dtype if func in LOW_PRECISION_OPS else torch.float32 if func in FP32_OPS else None
        if func in PROMOTE_OPS:
            flat = [t for v in values for t in (v if isinstance(v, (list, tuple)) else [v]) if isinstance(t, Tensor)]
            kinds = {t.dtype for t in flat} & {torch.float16, torch.bfloat16, torch.float32}
            wanted = torch.float32 if len(kinds) > 1 else None
        if wanted is not None:
            args, kwargs = self._to(tuple(args), wanted), {k: self._to(v, wanted) for k, v in kwargs.items()}
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
        self.pairs = [(p, p.detach().float().clone().requires_grad_()) for p in params]
        self.masters = [m for _, m in self.pairs]
        self.optimizer, self.ready = make_optimizer(self.masters), False

    def collect_grads(self) -> None:
        """`master.grad` = the parameter's gradient in float32 (None where it has none), ready to be unscaled.

        What was in `master.grad` is replaced.
        """
        for p, m in self.pairs:
            m.grad = p.grad.detach().float().clone() if p.grad is not None else None
        self.ready = True

    def step(self, scaler: LossScaler | None = None) -> None:
        """`optimizer.step()`, or `scaler.step(optimizer)`; then every parameter is its master, rounded to its dtype.

        Collects the gradients first, unless `collect_grads` was called since the last `step` or `zero_grad`: then
        `master.grad` is used as it is (it may have been unscaled and clipped). `scaler.update()` is the caller's.
        """
        if not self.ready:
            self.collect_grads()
        _ = scaler.step(self.optimizer) if scaler is not None else self.optimizer.step()
        for p, m in self.pairs:
            p.data.copy_(m.data)
        self.ready = False

    def zero_grad(self) -> None:
        """No gradients, neither of the masters nor of the parameters (`.grad` is None)."""
        for p, m in self.pairs:
            p.grad = m.grad = None
        self.ready = False


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
