"""0.3 by ledgers and arrays: costs from lists of kernels, a vectorised chain, recorded marks, transposed tiles."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any, Literal

import array_api_compat
import numpy as np

# Numba decides between the GPU and its simulator when it is imported. Say NUMBA_ENABLE_CUDASIM yourself to choose.
if "NUMBA_ENABLE_CUDASIM" not in os.environ:
    os.environ["NUMBA_ENABLE_CUDASIM"] = "0" if os.path.exists("/dev/nvidiactl") else "1"
from numba import cuda, float32

#: Side of a thread block and of a shared tile.
TILE = 8


# --------------------------------------------------------------------------------------------------------------------
# Given: records.
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What an operation must do: arithmetic, and traffic with main memory."""

    flops: int
    bytes_read: int
    bytes_written: int

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return self.bytes_read + self.bytes_written

    @property
    def intensity(self) -> float:
        """FLOPs for each byte moved."""
        return self.flops / self.bytes


@dataclass(frozen=True)
class Machine:
    """What a machine can do: `peak_flops` in FLOP/s, `bandwidth` of main memory in byte/s."""

    name: str
    peak_flops: float
    bandwidth: float


@dataclass(frozen=True)
class Roof:
    """Where a cost stands under the roofline of a machine."""

    #: FLOP per byte of the operation, and of the machine's ridge point.
    intensity: float
    ridge: float
    #: FLOP/s that the machine can reach at this intensity.
    attainable_flops: float
    bound: Literal["compute", "memory"]
    #: No implementation on this machine is faster than this.
    min_seconds: float


@dataclass(frozen=True)
class Efficiency:
    """What a measured time amounts to."""

    #: FLOP/s and byte/s that were reached.
    achieved_flops: float
    achieved_bandwidth: float
    #: Percent of the machine's peak FLOP/s, and of the speed that the roofline allows.
    pct_peak: float
    pct_roof: float
    bound: str


@dataclass(frozen=True)
class Timing:
    """Seconds per call. `number` calls were made in each timed block."""

    number: int
    #: One value for each timed block.
    times: tuple[float, ...]
    median: float
    best: float
    #: (75 % quantile - 25 % quantile) / median, quantiles as by np.quantile; 0.0 if the median is 0.
    spread: float


@dataclass(frozen=True)
class Case:
    """An operation to be timed: `matmul`, `add` on two arrays, `softmax`, `layernorm` on one, `attention` on three."""

    name: str
    op: Literal["matmul", "add", "softmax", "layernorm", "attention"]
    shapes: tuple[tuple[int, ...], ...]
    #: NumPy's name, such as "float32".
    dtype: str


@dataclass(frozen=True)
class Row:
    """One case, measured. `efficiency` is that of the median."""

    case: Case
    cost: Cost
    timing: Timing
    roof: Roof
    efficiency: Efficiency


@dataclass(frozen=True)
class Backend:
    """An array library on a device."""

    name: str
    #: The library's namespace.
    xp: ModuleType
    #: NumPy array -> array on the device.
    asarray: Callable[[np.ndarray], Any]
    #: Array on the device -> NumPy array.
    to_numpy: Callable[[Any], np.ndarray]
    #: Returns when all work that was queued on the device is done.
    synchronize: Callable[[], None]
    device_name: str


class BackendUnavailable(RuntimeError):
    """A library or a device that is not there; the message says which."""


def validate(itemsize: int, *shapes: Sequence[int]) -> None:
    if itemsize < 1 or any(extent < 1 for shape in shapes for extent in shape):
        raise ValueError(f"empty or negative sizes: {itemsize}, {shapes}")


def total(kernels: Sequence[tuple[list[tuple[int, ...]], tuple[int, ...], int]], itemsize: int) -> Cost:
    """The cost of kernels: (shapes read, shape written, FLOPs for each element written)."""
    return Cost(
        sum(math.prod(out) * flops for _, out, flops in kernels),
        sum(math.prod(shape) for read, _, _ in kernels for shape in read) * itemsize,
        sum(math.prod(out) for _, out, _ in kernels) * itemsize,
    )


# --------------------------------------------------------------------------------------------------------------------
# Task 1: what operations cost.
# --------------------------------------------------------------------------------------------------------------------


def cost_matmul(a_shape: tuple[int, ...], b_shape: tuple[int, ...], itemsize: int) -> Cost:
    """Cost of `a[..., n, k] · b[..., k, m]` with broadcast batch axes, ndim >= 2 each.

    2·N·n·k·m FLOPs for N batch elements of the result. Compulsory traffic: each operand is read once at its own size
    (a broadcast operand is not read again), the result is written once.

    Raises ValueError for a size or itemsize below 1, and for shapes that cannot be multiplied.
    """
    validate(itemsize, a_shape, b_shape)
    (n, k), (l, m) = a_shape[-2:], b_shape[-2:]
    if k != l:
        raise ValueError(f"{a_shape} @ {b_shape}: {k} is not {l}")
    out = (*np.broadcast_shapes(a_shape[:-2], b_shape[:-2]), n, m)
    return total([([a_shape, b_shape], out, 2 * k)], itemsize)


def cost_elementwise(in_shapes: Sequence[tuple[int, ...]], itemsize: int, flops_per_element: int = 1) -> Cost:
    """Cost of an elementwise operation on broadcast inputs: `flops_per_element` FLOPs per element of the result.

    Each input is read once at its own size, the result is written once. `()` is one element. `flops_per_element` may be
    0 (a copy).

    Raises ValueError for a size or itemsize below 1, and for shapes that do not broadcast.
    """
    validate(itemsize, *in_shapes)
    return total([(list(in_shapes), np.broadcast_shapes(*in_shapes), flops_per_element)], itemsize)


def cost_softmax(shape: tuple[int, ...], itemsize: int, *, fused: bool) -> Cost:
    """Cost of softmax along the last axis, N elements in R rows, ndim >= 1: 5 FLOPs per element, fused or not.

    `fused`: one kernel reads N and writes N elements. Otherwise five kernels, each reading its inputs from memory and
    writing its result there: row maximum (N -> R), subtract (N, R -> N), exp (N -> N), row sum (N -> R),
    divide (N, R -> N).

    Raises ValueError for a size or itemsize below 1.
    """
    validate(itemsize, shape)
    rows = (*shape[:-1], 1)
    n = shape[-1]
    if fused:
        kernels = [([shape], shape, 5)]
    else:
        kernels = [
            ([shape], rows, n),
            ([shape, rows], shape, 1),
            ([shape], shape, 1),
            ([shape], rows, n),
            ([shape, rows], shape, 1),
        ]
    return total(kernels, itemsize)


def cost_attention(B: int, H: int, T: int, S: int, d: int, itemsize: int, *, fused: bool) -> Cost:
    """Cost of softmax(q·kᵀ)·v for B·H heads, q [T, d], k and v [S, d] each: two products, and 5 FLOPs per score.

    The scale is not counted. `fused`: one kernel reads q, k and v and writes the result. Otherwise three kernels, a
    product, a fused softmax and a product, so the scores are written, read, written as weights, and read again.

    Raises ValueError for a size or itemsize below 1.
    """
    validate(itemsize, (B, H, T, S, d))
    q, kv, scores = (B, H, T, d), (B, H, S, d), (B, H, T, S)
    unfused = total([([q, kv], scores, 2 * d), ([scores], scores, 5), ([scores, kv], q, 2 * S)], itemsize)
    if not fused:
        return unfused
    saved = 2 * math.prod(scores) * itemsize
    return Cost(unfused.flops, unfused.bytes_read - saved, unfused.bytes_written - saved)


# --------------------------------------------------------------------------------------------------------------------
# Task 2: the order of a chain of products.
# --------------------------------------------------------------------------------------------------------------------


def chain_flops(dims: Sequence[int], tree: Any) -> int:
    """FLOPs of a chain of products in the order that `tree` says.

    Matrix i (i = 0 ... n-1) is [dims[i], dims[i + 1]]. A tree is the number of a matrix, or a pair (left, right) of
    trees: ((0, 1), 2) multiplies matrices 0 and 1 first.

    Raises ValueError unless the leaves of `tree`, from left to right, are 0 ... n-1.
    """

    def walk(node: Any) -> tuple[list[int], int]:
        """(leaves, FLOPs)"""
        if isinstance(node, (tuple, list)):
            try:
                left, right = node
            except ValueError:
                raise ValueError(f"not a pair: {node}") from None
            (some, f), (others, g) = walk(left), walk(right)
            ends = (some[0], others[0], others[-1] + 1)
            if not 0 <= min(ends) <= max(ends) < len(dims):
                raise ValueError(f"no such matrices: {ends}")
            return some + others, f + g + 2 * math.prod(dims[e] for e in ends)
        return [node], 0

    leaves, flops = walk(tree)
    if leaves != list(range(len(dims) - 1)):
        raise ValueError(f"the leaves of {tree} are not 0 ... {len(dims) - 2}")
    return flops


def best_chain(dims: Sequence[int]) -> tuple[int, Any]:
    """The least FLOPs of a chain of products, and an order that needs no more: (FLOPs, tree as in `chain_flops`).

    Of splits that cost the same, that with the fewest matrices on the left is taken, at every node of the tree. One
    matrix costs nothing: (0, 0). Polynomial in the number of matrices.

    Raises ValueError for fewer than 2 dims.
    """
    n = len(dims) - 1
    if n < 1:
        raise ValueError("no matrices")
    d = np.array(dims, dtype=object)  # integers without bound
    cost = np.zeros((n, n), dtype=object)
    cut = np.zeros((n, n), dtype=int)
    for i in reversed(range(n)):
        for j in range(i + 1, n):
            options = cost[i, i:j] + cost[i + 1 : j + 1, j] + 2 * d[i] * d[i + 1 : j + 1] * d[j + 1]
            cut[i, j] = i + int(np.argmin(options))  # the first of equal ones
            cost[i, j] = options[cut[i, j] - i]

    def order(i: int, j: int) -> Any:
        if i == j:
            return i
        s = int(cut[i, j])
        return order(i, s), order(s + 1, j)

    return int(cost[0, -1]), order(0, n - 1)


# --------------------------------------------------------------------------------------------------------------------
# Task 3: time.
# --------------------------------------------------------------------------------------------------------------------


def benchmark(
    fn: Callable[[], object],
    *,
    synchronize: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
    warmup: int = 3,
    repeat: int = 7,
    min_time: float = 0.01,
    max_number: int = 1 << 20,
) -> Timing:
    """Seconds that a call of `fn` takes on a device which may run behind the host.

    1. Call `fn` `warmup` times, then `synchronize()` once.
    2. A timed block of `number` calls is: `synchronize()`; `t0 = clock()`; `number` times `fn()`; `synchronize()`;
       `t1 = clock()`. It says `(t1 - t0) / number`.
    3. Find `number`: run blocks of 1, 2, 4, ... calls until one lasts at least `min_time` seconds or has `max_number`
       calls. (If `max_number` is no power of two, the last `number` is `max_number`.) Their times are not used.
    4. Run `repeat` timed blocks of `number` calls.

    Nothing else calls `fn`, `synchronize` or `clock`. See `Timing` for what is returned.

    Raises ValueError if `repeat < 1` or `warmup < 0`.
    """
    if not (repeat >= 1 and warmup >= 0):
        raise ValueError("repeat >= 1 and warmup >= 0")

    def mark(calls: int) -> float:
        for _ in itertools.repeat(None, calls):
            fn()
        synchronize()
        return clock()

    def start() -> float:
        synchronize()
        return clock()

    for _ in itertools.repeat(None, warmup):
        fn()
    synchronize()
    for power in itertools.count():
        number = min(1 << power, max_number)
        begin = start()
        if mark(number) - begin >= min_time or number == max_number:
            break
    times = []
    for _ in range(repeat):
        begin = start()
        times.append((mark(number) - begin) / number)
    median = float(np.median(times))
    low, high = np.percentile(times, [25, 75])
    return Timing(number, tuple(times), median, min(times), float(high - low) / median if median else 0.0)


# --------------------------------------------------------------------------------------------------------------------
# Task 4: the roofline.
# --------------------------------------------------------------------------------------------------------------------


def roofline(cost: Cost, m: Machine) -> Roof:
    """What machine `m` allows an operation of this cost.

    Arithmetic and traffic overlap, the slower one is what it takes: at least max(FLOPs / peak, bytes / bandwidth)
    seconds (also for 0 FLOPs), at most min(peak, intensity · bandwidth) FLOP/s. The ridge is the intensity
    peak / bandwidth, in FLOP per byte, at which both take the same time; "compute" from there on, "memory" below.
    """
    seconds = {"compute": cost.flops / m.peak_flops, "memory": cost.bytes / m.bandwidth}
    return Roof(
        intensity=cost.flops / cost.bytes,
        ridge=m.peak_flops / m.bandwidth,
        attainable_flops=m.peak_flops * min(1.0, cost.intensity * m.bandwidth / m.peak_flops),
        bound="compute" if cost.intensity >= m.peak_flops / m.bandwidth else "memory",
        min_seconds=max(seconds.values()),
    )


def efficiency(cost: Cost, seconds: float, m: Machine) -> Efficiency:
    """What `seconds` for this cost amount to on machine `m`: `pct_peak` is 100 · achieved FLOP/s / peak, `pct_roof` is
    100 · `min_seconds` / `seconds`, `bound` that of the roofline.

    Raises ValueError unless `seconds > 0`.
    """
    if not 0 < seconds:
        raise ValueError("no time at all")
    least = roofline(cost, m)
    flops, traffic = cost.flops / seconds, cost.bytes / seconds
    return Efficiency(flops, traffic, 100 * flops / m.peak_flops, 100 * least.min_seconds / seconds, least.bound)


# --------------------------------------------------------------------------------------------------------------------
# Task 5: operations for any array library. They name none: the namespace comes from the input.
# --------------------------------------------------------------------------------------------------------------------


def softmax_xp(x: Any) -> Any:
    """Softmax along the last axis of a floating array of any array-API library; same library, shape and dtype.

    Safe for entries of any size and for -inf. (Every row has a finite entry.)
    """
    xp = array_api_compat.array_namespace(x)
    top = xp.max(x, axis=-1)[..., None]
    e = xp.exp(x - top)
    return e * (1 / xp.sum(e, axis=-1)[..., None])


def layernorm_xp(x: Any, eps: float = 1e-5) -> Any:
    """(x - mean) / sqrt(var + eps) along the last axis, var divided by N, for any array-API library; same library,
    shape and dtype.
    """
    xp = array_api_compat.array_namespace(x)
    y = x - (xp.sum(x, axis=-1) / x.shape[-1])[..., None]
    return y * (xp.mean(xp.square(y), axis=-1) + eps)[..., None] ** -0.5


def attention_xp(q: Any, k: Any, v: Any) -> Any:
    """softmax(q·kᵀ / sqrt(d))·v for q [..., T, d], k [..., S, d], v [..., S, dv] of any array library -> [..., T, dv].

    Batch axes are equal. No mask. Same library and dtype.
    """
    xp = array_api_compat.array_namespace(q)
    scores = (q @ xp.permute_dims(k, (*range(k.ndim - 2), k.ndim - 1, k.ndim - 2))) / q.shape[-1] ** 0.5
    return softmax_xp(scores) @ v


# --------------------------------------------------------------------------------------------------------------------
# Task 6: a product on the GPU.
# --------------------------------------------------------------------------------------------------------------------


@cuda.jit
def matmul_naive_kernel(a, b, c):
    """Given, to compare with: every thread reads a row of `a` and a column of `b` from global memory: 2·k loads."""
    col, row = cuda.grid(2)
    if row < c.shape[0] and col < c.shape[1]:
        total = float32(0)
        for i in range(a.shape[1]):
            total += a[row, i] * b[i, col]
        c[row, col] = total


def launch_config(n: int, m: int, tile: int = TILE) -> tuple[tuple[int, int], tuple[int, int]]:
    """(grid, block) for a result [n, m], one thread per element, blocks of tile × tile threads.

    Both are (x, y). x runs along the columns: the grid is (blocks along m, blocks along n).
    """
    blocks = tuple((extent + tile - 1) // tile for extent in (m, n))
    return blocks, (tile,) * 2


@cuda.jit
def matmul_tiled_kernel(a, b, c):
    """c[n, m] = a[n, k] · b[k, m], float32, any sizes >= 1. Launched with `launch_config(n, m)`.

    A block of TILE × TILE threads computes such a piece of `c`, in steps along k. In each step every thread copies at
    most one element of `a` and at most one of `b` from global to shared memory, and the block computes from there.
    Global arrays are read as `a[i, j]`, within their bounds; each element of `c` is written once, as `c[i, j] =
    value`. Neighbouring threads (x) read neighbouring addresses.
    """
    # Shared arrays are told apart by the line they stand on: keep these two lines apart.
    a_tile = cuda.shared.array((TILE, TILE), float32)
    b_tile = cuda.shared.array((TILE, TILE), float32)
    # a_tile holds its tile transposed: a_tile[k, row].
    x = cuda.threadIdx.x
    y = cuda.threadIdx.y
    col0 = cuda.blockIdx.x * TILE
    row0 = cuda.blockIdx.y * TILE
    depth = a.shape[1]
    value = float32(0)
    k0 = 0
    while k0 < depth:
        in_a = row0 + y < a.shape[0] and k0 + x < depth
        in_b = k0 + y < depth and col0 + x < b.shape[1]
        a_tile[x, y] = a[row0 + y, k0 + x] if in_a else 0
        b_tile[y, x] = b[k0 + y, col0 + x] if in_b else 0
        cuda.syncthreads()
        # The last tile may be narrow: only what is there is multiplied.
        for s in range(min(TILE, depth - k0)):
            value += a_tile[s, y] * b_tile[s, x]
        k0 += TILE
        cuda.syncthreads()
    if row0 + y < c.shape[0] and col0 + x < c.shape[1]:
        c[row0 + y, col0 + x] = value


def matmul_gpu(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a[n, k] · b[k, m] by `matmul_tiled_kernel`, in float32 whatever the inputs are -> float32 [n, m]; zeros if k = 0.

    Raises ValueError unless both are matrices with equal inner size.
    """
    try:
        (n, k), (l, m) = a.shape, b.shape
    except ValueError:
        raise ValueError(f"matrices are needed, not {a.shape} and {b.shape}") from None
    if k != l:
        raise ValueError(f"{a.shape} and {b.shape} do not fit")
    out = np.zeros((n, m), dtype=np.float32)
    if n * k * m == 0:
        return out
    device = cuda.to_device(out)
    grid, block = launch_config(n, m)
    kernel = matmul_tiled_kernel[grid, block]
    kernel(cuda.to_device(np.array(a, np.float32)), cuda.to_device(np.array(b, np.float32)), device)
    cuda.synchronize()
    device.copy_to_host(out)
    return out


# --------------------------------------------------------------------------------------------------------------------
# Task 7: libraries, devices, and the suite.
# --------------------------------------------------------------------------------------------------------------------


def get_backend(name: Literal["numpy", "torch", "torch:cuda", "cupy"]) -> Backend:
    """The backend of that name. Libraries are imported when they are asked for.

    Raises BackendUnavailable if a module is missing (the message names it) or there is no GPU for "torch:cuda" or
    "cupy" (the message says "no CUDA device"), ValueError for another name.

    `synchronize` waits for the device: torch.cuda.synchronize(), cupy.cuda.Device().synchronize(). On a CPU there is
    nothing to wait for. `device_name` is any text.
    """
    if name == "numpy":  # given
        xp = array_api_compat.array_namespace(np.empty(0))
        return Backend("numpy", xp, np.asarray, np.asarray, lambda: None, "cpu")
    if name not in ("torch", "torch:cuda", "cupy"):
        raise ValueError(f"unknown backend {name}")
    if name == "cupy":
        try:
            import cupy as cp
        except ImportError as error:
            raise BackendUnavailable(f"cupy: {error}") from error
        try:
            there = cp.cuda.runtime.getDeviceCount() > 0
        except RuntimeError:  # CUDARuntimeError is one: the driver is missing, or too old
            there = False
        if not there:
            raise BackendUnavailable("cupy is installed, but there is no CUDA device")

        def wait() -> None:
            cp.cuda.get_current_stream().synchronize()

        return Backend("cupy", cp, cp.asarray, cp.asnumpy, wait, "CUDA device 0")
    try:
        import array_api_compat.torch as torch_xp
        import torch
    except ImportError as error:
        raise BackendUnavailable(f"torch: {error}") from error
    if name == "torch":
        return Backend("torch", torch_xp, torch.tensor, lambda t: t.detach().numpy(), lambda: None, "host")
    if torch.cuda.device_count() == 0 or not torch.cuda.is_available():
        raise BackendUnavailable("no CUDA device")
    return Backend(
        "torch:cuda", torch_xp, lambda x: torch.tensor(x).cuda(), lambda t: t.detach().cpu().numpy(),
        lambda: torch.cuda.synchronize(), "cuda",
    )  # fmt: skip


def measure_machine(
    b: Backend, *, clock: Callable[[], float] = time.perf_counter, n: int = 512, stream_mib: int = 64
) -> Machine:
    """What this machine reaches, both from the best time that `benchmark` finds with this clock.

    `peak_flops` from the product of two n × n float32 matrices; `bandwidth` from a copy of `stream_mib` MiB, which
    reads and writes as many bytes.
    """
    rng = np.random.default_rng(1)
    x, y = (b.asarray(rng.random((n, n), dtype=np.float32)) for _ in range(2))
    count = stream_mib * 1024 * 1024
    old, new = (b.asarray(np.zeros(count // 8, np.float64)) for _ in range(2))

    def stream() -> None:
        new[...] = old

    found = {}
    for name, fn in (("product", lambda: b.xp.matmul(x, y)), ("stream", stream)):
        found[name] = benchmark(fn, synchronize=b.synchronize, clock=clock).best
    return Machine(f"{b.name} ({b.device_name})", 2 * n * n * n / found["product"], 2 * count / found["stream"])


def run_suite(
    b: Backend, cases: Sequence[Case], m: Machine, *, clock: Callable[[], float] = time.perf_counter, seed: int = 0
) -> list[Row]:
    """Time the cases in order by `benchmark` (with this clock, its defaults otherwise) -> a `Row` for each.

    Inputs of a case: a fresh `np.random.default_rng(seed)` draws `standard_normal(shape)` for each of its shapes in
    order; they are cast to `case.dtype` and moved by `b.asarray`, before the clock is first read for that case.

    Costs are compulsory: `cost_matmul`; `cost_elementwise` for add; fused softmax; LayerNorm reads N and writes N
    elements and takes 7 FLOPs for each; fused attention, whose heads are the product of the leading axes of q.

    Raises ValueError naming the operation if a case has an unknown `op`.
    """

    names = ("matmul", "add", "softmax", "layernorm", "attention")
    unknown = [case.op for case in cases if case.op not in names]
    if unknown:
        raise ValueError(f"unknown operations: {', '.join(unknown)}")
    rows = []
    for case in cases:
        draws = np.random.default_rng(seed)
        x, *others = [b.asarray(draws.standard_normal(s).astype(np.dtype(case.dtype))) for s in case.shapes]
        size = np.dtype(case.dtype).itemsize
        shape = case.shapes[0]
        if case.op == "matmul":
            call, cost = (lambda x=x, o=others: b.xp.matmul(x, *o)), cost_matmul(*case.shapes, size)
        elif case.op == "add":
            call, cost = (lambda x=x, o=others: x + o[0]), cost_elementwise(case.shapes, size)
        elif case.op == "softmax":
            call, cost = (lambda x=x: softmax_xp(x)), cost_softmax(shape, size, fused=True)
        elif case.op == "layernorm":
            call, cost = (lambda x=x: layernorm_xp(x)), cost_elementwise([shape], size, flops_per_element=7)
        else:
            t, s, d = shape[-2], case.shapes[1][-2], shape[-1]
            call = lambda x=x, o=others: attention_xp(x, *o)
            cost = cost_attention(math.prod(shape[:-2]), 1, t, s, d, size, fused=True)
        timing = benchmark(call, synchronize=b.synchronize, clock=clock)
        rows.append(Row(case, cost, timing, roofline(cost, m), efficiency(cost, timing.median, m)))
    return rows


# --------------------------------------------------------------------------------------------------------------------
# Given: the figure and the command line.
# --------------------------------------------------------------------------------------------------------------------


def plot_roofline(rows: Sequence[Row], m: Machine, path: str) -> dict[str, list[Any]]:
    """Write the log-log roofline of `m` with a point for each row to `path` (PNG).

    Returns the points: {"x": intensities, "y": achieved FLOP/s, "labels": names of the cases}.
    """
    from matplotlib import pyplot

    points = {
        "x": [row.cost.intensity for row in rows],
        "y": [row.efficiency.achieved_flops for row in rows],
        "labels": [row.case.name for row in rows],
    }
    ridge = m.peak_flops / m.bandwidth
    low, high = min([ridge, *points["x"]]) / 4, max([ridge, *points["x"]]) * 4
    figure, axes = pyplot.subplots()
    axes.loglog([low, ridge, high], [low * m.bandwidth, m.peak_flops, m.peak_flops], color="black")
    for x, y, label in zip(points["x"], points["y"], points["labels"], strict=True):
        axes.plot(x, y, "o", label=label)
    axes.set(xlabel="FLOP per byte", ylabel="FLOP/s", title=m.name)
    axes.legend(fontsize="small")
    figure.savefig(path)
    pyplot.close(figure)
    return points


def suite_cases(sizes: Sequence[int], dtypes: Sequence[str]) -> list[Case]:
    """Products, softmax, LayerNorm and attention of these sizes, in these dtypes."""
    cases = []
    for dtype in dtypes:
        for n in sizes:
            cases.append(Case(f"matmul {n} {dtype}", "matmul", ((n, n), (n, n)), dtype))
            cases.append(Case(f"softmax {n} {dtype}", "softmax", ((n, n),), dtype))
            cases.append(Case(f"layernorm {n} {dtype}", "layernorm", ((n, n),), dtype))
        heads = (8, sizes[0], 64)
        cases.append(Case(f"attention {sizes[0]} {dtype}", "attention", (heads, heads, heads), dtype))
    return cases


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the machine, run the suite, print percent of roof, write roofline.json and roofline.png."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--backend", default="numpy", choices=["numpy", "torch", "torch:cuda", "cupy"])
    parser.add_argument("--sizes", type=int, nargs="+", help="sides of the matrices (default: 512 to 8192 on a GPU)")
    parser.add_argument("--out", default=".", help="folder for roofline.json and roofline.png")
    args = parser.parse_args(argv)
    backend = get_backend(args.backend)
    on_gpu = args.backend in ("torch:cuda", "cupy")
    sizes = args.sizes or ([512, 1024, 2048, 4096, 8192] if on_gpu else [128, 256, 512])
    machine = measure_machine(backend, n=4096 if on_gpu else 512, stream_mib=1024 if on_gpu else 64)
    # A CPU without float16 units takes minutes for a large product of halves.
    rows = run_suite(backend, suite_cases(sizes, ["float32", "float16"] if on_gpu else ["float32"]), machine)
    print(f"{machine.name}: {machine.peak_flops / 1e9:.1f} GFLOP/s, {machine.bandwidth / 1e9:.1f} GB/s")
    for row in rows:
        line = f"{row.case.name:<26} {row.timing.median * 1e6:>12.1f} us {row.efficiency.pct_roof:>7.1f} % of roof"
        if row.case.op == "attention":
            # attention_xp is unfused, row.cost that of a fused kernel: this is what its own traffic would allow.
            (*heads, t, d), (*_, s, _) = row.case.shapes[0], row.case.shapes[1]
            size = np.dtype(row.case.dtype).itemsize
            unfused = cost_attention(1, math.prod(heads), t, s, d, size, fused=False)
            line += f" ({efficiency(unfused, row.timing.median, machine).pct_roof:.1f} % of the unfused roof)"
        print(f"{line}  {row.efficiency.bound}")
    os.makedirs(args.out, exist_ok=True)
    with open(os.path.join(args.out, "roofline.json"), "w", encoding="utf-8") as file:
        json.dump({"machine": asdict(machine), "rows": [asdict(row) for row in rows]}, file, indent=1)
    plot_roofline(rows, machine, os.path.join(args.out, "roofline.png"))
    if on_gpu:
        rng = np.random.default_rng(0)
        a, b = (rng.standard_normal((1024, 1024)).astype(np.float32) for _ in range(2))
        print(f"matmul_gpu: largest error {np.abs(matmul_gpu(a, b) - a @ b).max():.2g}")


if __name__ == "__main__":
    main()
