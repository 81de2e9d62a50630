"""Mixed precision: loss scaling, casts per operation, float32 master weights.

Half precision halves the bytes of activations and runs on the fast units of a GPU, but its smallest number is 2^-24:
gradients below half of that are zero. Here stand the three cures, and the step that puts them in the right order.
"""

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
    # BEGIN SOLUTION task 1: round, then count zeros, subnormals and infinities
    values = torch.cat([torch.zeros(0), *(g.flatten() for g in grads)])  # float32, or better
    values = values[values != 0]
    total = max(values.numel(), 1)
    report = []
    for scale in scales:
        rounded = (values * scale).to(dtype).abs()
        counts = (
            rounded == 0,
            (rounded > 0) & (rounded < torch.finfo(dtype).smallest_normal),
            ~(rounded < math.inf),  # NaN is below nothing
        )
        report.append(ScaleStats(float(scale), *(int(c.sum()) / total for c in counts)))
    return report
    # END SOLUTION


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
    # BEGIN SOLUTION task 1: compare mantissas, subtract exponents
    largest = 0.0
    for g in grads:
        if not g.isfinite().all():
            raise ValueError("there are non-finite gradients: no scale makes them fit")
        largest = max(largest, float(g.abs().max()) if g.numel() else 0.0)
    if largest == 0:
        return 2.0**24
    # x = m·2^e with 1/2 <= m < 1, exactly: largest·2^k <= max  <=>  e_g + k < e_max, or = with m_g <= m_max.
    m_max, e_max = math.frexp(torch.finfo(dtype).max)
    m_g, e_g = math.frexp(largest)
    return math.ldexp(1.0, e_max - e_g - margin_bits - (m_g > m_max))
    # END SOLUTION


# --- task 2: the dynamic loss scaler ----------------------------------------------------------------------------------


# BEGIN HIDDEN
@dataclass
class Unscaled:
    """What is known of an optimizer since the last update: whether its gradients hold inf or NaN, and what was done."""

    found_inf: Tensor
    stepped: bool = False
    skipped: bool = False


# END HIDDEN


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
        # BEGIN SOLUTION task 2: scale and count of clean steps, kept on the device
        self.growth_factor, self.backoff_factor = growth_factor, backoff_factor
        self.growth_interval, self.enabled = growth_interval, enabled
        self._scale = torch.tensor(init_scale, dtype=torch.float32)
        self._growth_tracker = torch.tensor(0, dtype=torch.int32)
        self._unscaled: dict[Optimizer, Unscaled] = {}
        # END SOLUTION

    # BEGIN HIDDEN
    def _move_to(self, device: torch.device) -> None:
        self._scale, self._growth_tracker = self._scale.to(device), self._growth_tracker.to(device)

    # END HIDDEN

    def scale(self, outputs: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """outputs · scale, differentiable; for a list or tuple a list (a tuple will do) of the products.

        Dtypes promote as with a 0-dim float32 tensor: a 0-dim float16 loss gives a float32 product.
        """
        # BEGIN SOLUTION task 2: multiply
        if not isinstance(outputs, Tensor):
            return [self.scale(output) for output in outputs]
        if not self.enabled:
            return outputs
        self._move_to(outputs.device)
        return outputs * self._scale
        # END SOLUTION

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
        # BEGIN SOLUTION task 2: one product and one flag for all gradients of a device
        if not self.enabled:
            return
        if optimizer in self._unscaled:
            stepped = self._unscaled[optimizer].stepped
            raise RuntimeError("unscale_ was called after step()" if stepped else "unscale_ has already been called")
        groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for grad in iter_grads(optimizer):
            if grad.dtype == torch.float16:
                raise ValueError("FP16 gradients cannot be unscaled: keep float32 master weights")
            if grad.numel():
                groups.setdefault((grad.device, grad.dtype), []).append(grad)
        if groups:
            self._move_to(next(iter(groups))[0])
        found_inf = torch.zeros_like(self._scale, dtype=torch.bool)
        inverse = self._scale.double().reciprocal().float()
        for (device, _), grads in groups.items():
            torch._foreach_mul_(grads, inverse.to(device))
            largest = torch.stack(torch._foreach_norm(grads, math.inf))  # max|g| of each; NaN where there is one
            found_inf = found_inf | ~largest.isfinite().all().to(found_inf.device)
        self._unscaled[optimizer] = Unscaled(found_inf)
        # END SOLUTION

    def step(self, optimizer: Optimizer) -> float | None:
        """`optimizer.step()` and its value, unless a gradient is inf or NaN: then the optimizer is not called; None.

        Unscales first if that was not done. Reads the device once.

        Raises:
            RuntimeError: a second call since the last `update`; the message holds "already been called".
        """
        # BEGIN SOLUTION task 2: unscale if need be, then step or skip
        if not self.enabled:
            return optimizer.step()
        if optimizer not in self._unscaled:
            self.unscale_(optimizer)
        record = self._unscaled[optimizer]
        if record.stepped:
            raise RuntimeError("step has already been called since the last update")
        record.stepped = True
        record.skipped = bool(record.found_inf)  # the one time that the host waits
        return None if record.skipped else optimizer.step()
        # END SOLUTION

    def update(self) -> None:
        """Grow, shrink or keep the scale, by what `unscale_` found since the last update. Reads no value.

        Raises:
            RuntimeError: nothing was unscaled since the last update; the message holds "No inf checks".
        """
        # BEGIN SOLUTION task 2: backoff, growth, and the count of clean steps
        if not self.enabled:
            return
        if not self._unscaled:
            raise RuntimeError("No inf checks were recorded since the last update")
        device = self._scale.device
        found_inf = torch.stack([r.found_inf.to(device) for r in self._unscaled.values()]).any()
        clean_steps = self._growth_tracker + 1
        due = clean_steps == self.growth_interval
        grown = self._scale * self.growth_factor
        kept = torch.where(due & grown.isfinite(), grown, self._scale)
        self._scale = torch.where(found_inf, self._scale * self.backoff_factor, kept)
        self._growth_tracker = torch.where(found_inf | due, 0, clean_steps).to(torch.int32)
        self._unscaled.clear()
        # END SOLUTION

    # BEGIN HIDDEN
    def skipped(self, optimizer: Optimizer) -> bool:
        """Whether the step of this optimizer since the last update was skipped."""
        return optimizer in self._unscaled and self._unscaled[optimizer].skipped

    # END HIDDEN

    def get_scale(self) -> float:
        """The current scale; 1.0 when not enabled."""
        # BEGIN SOLUTION task 2: read the scale
        return self._scale.item() if self.enabled else 1.0
        # END SOLUTION

    def state_dict(self) -> dict[str, Any]:
        """The keys and plain values of `torch.amp.GradScaler.state_dict()`; {} when not enabled.

        They are "scale" (float), "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker" (int: clean
        updates since the scale last changed).
        """
        # BEGIN SOLUTION task 2: plain numbers
        if not self.enabled:
            return {}
        return {
            "scale": self.get_scale(),
            "growth_factor": self.growth_factor,
            "backoff_factor": self.backoff_factor,
            "growth_interval": self.growth_interval,
            "_growth_tracker": int(self._growth_tracker),
        }
        # END SOLUTION

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict()`, of this class or of `torch.amp.GradScaler`. Nothing when not enabled."""
        # BEGIN SOLUTION task 2: the same numbers back
        if not self.enabled:
            return
        self.growth_factor, self.backoff_factor = state["growth_factor"], state["backoff_factor"]
        self.growth_interval = state["growth_interval"]
        self._scale = torch.full_like(self._scale, state["scale"])
        self._growth_tracker = torch.full_like(self._growth_tracker, state["_growth_tracker"])
        # END SOLUTION


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
    # BEGIN SOLUTION task 3: scale, backward, unscale, clip, step, update
    if not micro_batches:
        raise ValueError("micro_batches is empty")
    optimizer.zero_grad()
    losses = []
    with low_precision(dtype):
        for batch in micro_batches:
            loss = loss_fn(model, batch)
            # Scaled first: loss / n may be too small for a half-precision loss, the scaled one is a float32.
            (scaler.scale(loss) / len(micro_batches)).backward()
            losses.append(loss.detach().float())
    scale = scaler.get_scale()
    scaler.unscale_(optimizer)
    grads = list(iter_grads(optimizer))
    norm = nn.utils.get_total_norm(grads)
    if max_norm is not None and grads:
        torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    scaler.step(optimizer)
    skipped = scaler.skipped(optimizer)
    scaler.update()
    return StepReport(torch.stack(losses).mean().item(), norm.item(), skipped, scale)
    # END SOLUTION


# --- tasks 4 and 5: Autocast ------------------------------------------------------------------------------------------


# BEGIN HIDDEN
def is_castable(x: Any) -> bool:
    """Floating tensors but float64."""
    return isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64


def map_tensors(change: Callable[[Tensor], Tensor], arguments: Any) -> Any:
    """The arguments with each castable tensor in them changed, in lists, tuples and dicts too."""
    if is_castable(arguments):
        return change(arguments)
    if isinstance(arguments, dict):
        return {k: map_tensors(change, v) for k, v in arguments.items()}
    if type(arguments) in (list, tuple):
        return type(arguments)(map_tensors(change, a) for a in arguments)
    return arguments


# END HIDDEN


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

    # BEGIN HIDDEN
    _active: ClassVar[list[Autocast]] = []  # the regions we are in, innermost last
    #: Casts of the outermost region: leaf and cast, by the leaf's id, the dtype and the grad mode.
    _casts: ClassVar[dict[tuple[int, torch.dtype, bool], tuple[Tensor, Tensor]]] = {}

    # END HIDDEN

    def __init__(self, dtype: torch.dtype = torch.float16, *, enabled: bool = True, cache_weights: bool = True) -> None:
        # BEGIN SOLUTION task 4: remember
        super().__init__()
        self.dtype, self.enabled, self.cache_weights = dtype, enabled, cache_weights
        # END SOLUTION

    # BEGIN HIDDEN
    def __enter__(self) -> Self:
        Autocast._active.append(self)
        return super().__enter__()

    def __exit__(self, *exc: object) -> None:
        Autocast._active.pop()
        if not Autocast._active:
            Autocast._casts.clear()
        super().__exit__(*exc)

    # END HIDDEN

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Called by torch for each of its functions in the region: cast the arguments, then `func(*args, **kwargs)`."""
        # BEGIN SOLUTION task 4: look up the operation, cast its inputs
        kwargs = kwargs or {}
        # An outer region is asked as well, by the call below: it must not cast again.
        if self.enabled and Autocast._active[-1] is self:
            target = self._target(func, args, kwargs)
            if target is not None:
                args = map_tensors(lambda x: self._cast(x, target), args)
                kwargs = map_tensors(lambda x: self._cast(x, target), kwargs)
        return func(*args, **kwargs)
        # END SOLUTION

    # BEGIN HIDDEN
    @staticmethod
    def _is_explicit(args: tuple, kwargs: dict) -> bool:
        """Whether the caller chose a dtype or gave the output."""
        named = kwargs.get("dtype") is not None or kwargs.get("out") is not None
        return named or any(isinstance(a, torch.dtype) for a in args)

    def _target(self, func: Callable, args: tuple, kwargs: dict) -> torch.dtype | None:
        """The dtype in which this operation wants its inputs; None: as they are."""
        if self._is_explicit(args, kwargs):
            return None
        if func in LOW_PRECISION_OPS:
            return self.dtype
        if func in FP32_OPS:
            return torch.float32
        if func in PROMOTE_OPS:
            found: set[torch.dtype] = set()
            map_tensors(lambda x: found.add(x.dtype) or x, (args, kwargs))
            return torch.float32 if len(found) > 1 else None
        return None

    def _cast(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """x in dtype, recorded by autograd; a weight is cast once."""
        is_weight = x.dtype == torch.float32 and x.is_leaf and x.requires_grad
        if x.dtype == dtype or not (is_weight and self.cache_weights):
            return x.to(dtype)
        key = (id(x), dtype, torch.is_grad_enabled())
        if key not in Autocast._casts:
            Autocast._casts[key] = (x, x.to(dtype))  # x is kept, or another tensor might get its id
        return Autocast._casts[key][1]

    # END HIDDEN


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
        # BEGIN SOLUTION task 6: copies in float32, and their optimizer
        self.params = list(params)
        self.masters = [p.detach().to(torch.float32, copy=True).requires_grad_() for p in self.params]
        self.optimizer = make_optimizer(self.masters)
        self._collected = False
        # END SOLUTION

    def collect_grads(self) -> None:
        """`master.grad` = the parameter's gradient in float32 (None where it has none), ready to be unscaled.

        What was in `master.grad` is replaced.
        """
        # BEGIN SOLUTION task 6: gradients in float32
        for master, p in zip(self.masters, self.params, strict=True):
            master.grad = None if p.grad is None else p.grad.to(torch.float32, copy=True)
        self._collected = True
        # END SOLUTION

    def step(self, scaler: LossScaler | None = None) -> None:
        """`optimizer.step()`, or `scaler.step(optimizer)`; then every parameter is its master, rounded to its dtype.

        Collects the gradients first, unless `collect_grads` was called since the last `step` or `zero_grad`: then
        `master.grad` is used as it is (it may have been unscaled and clipped). `scaler.update()` is the caller's.
        """
        # BEGIN SOLUTION task 6: step on the masters, copy down
        if not self._collected:
            self.collect_grads()
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
        with torch.no_grad():
            for master, p in zip(self.masters, self.params, strict=True):
                p.copy_(master)
        self._collected = False
        # END SOLUTION

    def zero_grad(self) -> None:
        """No gradients, neither of the masters nor of the parameters (`.grad` is None)."""
        # BEGIN SOLUTION task 6: both
        for tensor in (*self.masters, *self.params):
            tensor.grad = None
        self._collected = False
        # END SOLUTION


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
