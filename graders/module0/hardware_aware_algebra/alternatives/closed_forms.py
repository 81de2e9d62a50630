"""0.3 by closed forms and recursion: a memoised chain, generators of blocks, clamped loads, one table of cases."""

from __future__ import annotations

import argparse
import functools
import importlib
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


def elements(shape: Sequence[int]) -> int:
    return math.prod(shape)


#: Operation: (what is called with the namespace and the inputs, what it costs).
OPS: dict[str, tuple[Callable, Callable]] = {
    "matmul": (lambda xp, x, y: xp.matmul(x, y), lambda shapes, size: cost_matmul(*shapes, size)),
    "add": (lambda xp, x, y: xp.add(x, y), lambda shapes, size: cost_elementwise(shapes, size)),
    "softmax": (lambda xp, x: softmax_xp(x), lambda shapes, size: cost_softmax(shapes[0], size, fused=True)),
    "layernorm": (lambda xp, x: layernorm_xp(x), lambda shapes, size: cost_elementwise(shapes, size, 7)),
    "attention": (
        lambda xp, *qkv: attention_xp(*qkv),
        lambda shapes, size: cost_attention(
            elements(shapes[0][:-2]), 1, shapes[0][-2], shapes[1][-2], shapes[0][-1], size, fused=True
        ),
    ),
}


# --------------------------------------------------------------------------------------------------------------------
# Task 1: what operations cost.
# --------------------------------------------------------------------------------------------------------------------


def cost_matmul(a_shape: tuple[int, ...], b_shape: tuple[int, ...], itemsize: int) -> Cost:
    """Cost of `a[..., n, k] · b[..., k, m]` with broadcast batch axes, ndim >= 2 each.

    2·N·n·k·m FLOPs for N batch elements of the result. Compulsory traffic: each operand is read once at its own size
    (a broadcast operand is not read again), the result is written once.

    Raises ValueError for a size or itemsize below 1, and for shapes that cannot be multiplied.
    """
    if min(*a_shape, *b_shape, itemsize) <= 0:
        raise ValueError(f"cost_matmul: every size must be at least 1: {a_shape}, {b_shape}, {itemsize}")
    *batch_a, n, k = a_shape
    *batch_b, inner, m = b_shape
    if inner != k:
        raise ValueError(f"cost_matmul: {a_shape} and {b_shape} do not fit")
    results = int(np.prod(np.broadcast_shapes(tuple(batch_a), tuple(batch_b)), dtype=object)) * n * m
    return Cost(
        flops=results * k * 2,
        bytes_read=itemsize * (elements(a_shape) + elements(b_shape)),
        bytes_written=itemsize * results,
    )


def cost_elementwise(in_shapes: Sequence[tuple[int, ...]], itemsize: int, flops_per_element: int = 1) -> Cost:
    """Cost of an elementwise operation on broadcast inputs: `flops_per_element` FLOPs per element of the result.

    Each input is read once at its own size, the result is written once. `()` is one element. `flops_per_element` may be
    0 (a copy).

    Raises ValueError for a size or itemsize below 1, and for shapes that do not broadcast.
    """
    if itemsize <= 0 or any(extent <= 0 for shape in in_shapes for extent in shape):
        raise ValueError(f"cost_elementwise: every size must be at least 1: {in_shapes}, {itemsize}")
    results = elements(np.broadcast_shapes(*map(tuple, in_shapes)))
    return Cost(results * flops_per_element, itemsize * sum(map(elements, in_shapes)), itemsize * results)


def cost_softmax(shape: tuple[int, ...], itemsize: int, *, fused: bool) -> Cost:
    """Cost of softmax along the last axis, N elements in R rows, ndim >= 1: 5 FLOPs per element, fused or not.

    `fused`: one kernel reads N and writes N elements. Otherwise five kernels, each reading its inputs from memory and
    writing its result there: row maximum (N -> R), subtract (N, R -> N), exp (N -> N), row sum (N -> R),
    divide (N, R -> N).

    Raises ValueError for a size or itemsize below 1.
    """
    if min(*shape, itemsize) <= 0:
        raise ValueError(f"cost_softmax: every size must be at least 1: {shape}, {itemsize}")
    x, row = elements(shape), elements(shape[:-1])
    kernels = [(x, x)] if fused else [(x, row), (x + row, x), (x, x), (x, row), (x + row, x)]
    return Cost(5 * x, itemsize * sum(r for r, _ in kernels), itemsize * sum(w for _, w in kernels))


def cost_attention(B: int, H: int, T: int, S: int, d: int, itemsize: int, *, fused: bool) -> Cost:
    """Cost of softmax(q·kᵀ)·v for B·H heads, q [T, d], k and v [S, d] each: two products, and 5 FLOPs per score.

    The scale is not counted. `fused`: one kernel reads q, k and v and writes the result. Otherwise three kernels, a
    product, a fused softmax and a product, so the scores are written, read, written as weights, and read again.

    Raises ValueError for a size or itemsize below 1.
    """
    if min(B, H, T, S, d, itemsize) <= 0:
        raise ValueError(f"cost_attention: every size must be at least 1: {(B, H, T, S, d, itemsize)}")
    if fused:
        inputs = B * H * d * (T + 2 * S)
        return Cost(B * H * T * S * (4 * d + 5), inputs * itemsize, B * H * T * d * itemsize)
    parts = (
        cost_matmul((B * H, T, d), (B * H, d, S), itemsize),
        cost_softmax((B * H, T, S), itemsize, fused=True),
        cost_matmul((B * H, T, S), (B * H, S, d), itemsize),
    )
    return Cost(*(sum(getattr(p, name) for p in parts) for name in ("flops", "bytes_read", "bytes_written")))


# --------------------------------------------------------------------------------------------------------------------
# Task 2: the order of a chain of products.
# --------------------------------------------------------------------------------------------------------------------


def chain_flops(dims: Sequence[int], tree: Any) -> int:
    """FLOPs of a chain of products in the order that `tree` says.

    Matrix i (i = 0 ... n-1) is [dims[i], dims[i + 1]]. A tree is the number of a matrix, or a pair (left, right) of
    trees: ((0, 1), 2) multiplies matrices 0 and 1 first.

    Raises ValueError unless the leaves of `tree`, from left to right, are 0 ... n-1.
    """
    total = 0
    stack: list[tuple[Any, bool]] = [(tree, False)]
    shapes: list[tuple[int, int]] = []
    leaves: list[int] = []
    while stack:
        node, ready = stack.pop()
        if ready:
            (n, k), (_, m) = shapes[-2:]
            shapes[-2:] = [(n, m)]
            total += 2 * n * k * m
        elif isinstance(node, (tuple, list)):
            if len(node) != 2:
                raise ValueError(f"chain_flops: {node} is not a pair")
            stack += [(node, True), (node[1], False), (node[0], False)]
        else:
            if node != len(leaves) or node > len(dims) - 2:
                raise ValueError(f"chain_flops: matrix {node} stands in the place of {len(leaves)}")
            leaves.append(node)
            shapes.append((dims[node], dims[node + 1]))
    if len(leaves) != len(dims) - 1:
        raise ValueError(f"chain_flops: {len(leaves)} of {len(dims) - 1} matrices")
    return total


def best_chain(dims: Sequence[int]) -> tuple[int, Any]:
    """The least FLOPs of a chain of products, and an order that needs no more: (FLOPs, tree as in `chain_flops`).

    Of splits that cost the same, that with the fewest matrices on the left is taken, at every node of the tree. One
    matrix costs nothing: (0, 0). Polynomial in the number of matrices.

    Raises ValueError for fewer than 2 dims.
    """
    if len(dims) < 2:
        raise ValueError("best_chain: no matrix")

    @functools.cache
    def best(first: int, last: int) -> tuple[int, Any]:
        if last == first + 1:
            return 0, first
        winner = None
        for cut in range(first + 1, last):
            (f, left), (g, right) = best(first, cut), best(cut, last)
            flops = f + g + 2 * dims[first] * dims[cut] * dims[last]
            if winner is None or flops < winner[0]:
                winner = flops, (left, right)
        return winner

    return best(0, len(dims) - 1)


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
    if repeat < 1:
        raise ValueError("benchmark: repeat must be at least 1")
    if warmup < 0:
        raise ValueError("benchmark: warmup must not be negative")
    for _ in range(warmup):
        fn()
    synchronize()

    def blocks(number: int, how_many: int) -> list[float]:
        seconds = []
        for _ in range(how_many):
            synchronize()
            begin = clock()
            for _ in range(number):
                fn()
            synchronize()
            seconds.append(clock() - begin)
        return seconds

    number = 1
    while True:
        (seconds,) = blocks(number, 1)
        if seconds >= min_time or number >= max_number:
            break
        if 2 * number > max_number:
            number = max_number  # no power of two: no trial is needed any more
            break
        number *= 2
    times = np.array(blocks(number, repeat)) / number
    q25, median, q75 = np.quantile(times, [0.25, 0.5, 0.75])
    spread = (q75 - q25) / median if median > 0 else 0.0
    return Timing(number, tuple(times.tolist()), float(median), float(times.min()), float(spread))


# --------------------------------------------------------------------------------------------------------------------
# Task 4: the roofline.
# --------------------------------------------------------------------------------------------------------------------


def roofline(cost: Cost, m: Machine) -> Roof:
    """What machine `m` allows an operation of this cost.

    Arithmetic and traffic overlap, the slower one is what it takes: at least max(FLOPs / peak, bytes / bandwidth)
    seconds (also for 0 FLOPs), at most min(peak, intensity · bandwidth) FLOP/s. The ridge is the intensity
    peak / bandwidth, in FLOP per byte, at which both take the same time; "compute" from there on, "memory" below.
    """
    arithmetic, traffic = cost.flops / m.peak_flops, cost.bytes / m.bandwidth
    seconds = max(traffic, arithmetic)
    ridge = m.peak_flops / m.bandwidth
    bound = "memory" if cost.intensity < ridge else "compute"
    return Roof(cost.intensity, ridge, min(cost.intensity * m.bandwidth, m.peak_flops), bound, seconds)


def efficiency(cost: Cost, seconds: float, m: Machine) -> Efficiency:
    """What `seconds` for this cost amount to on machine `m`: `pct_peak` is 100 · achieved FLOP/s / peak, `pct_roof` is
    100 · `min_seconds` / `seconds`, `bound` that of the roofline.

    Raises ValueError unless `seconds > 0`.
    """
    if seconds <= 0:
        raise ValueError(f"efficiency: {seconds} seconds")
    roof, rate = roofline(cost, m), cost.flops / seconds
    return Efficiency(
        rate, cost.bytes / seconds, rate / m.peak_flops * 100, roof.min_seconds / seconds * 100, roof.bound
    )


# --------------------------------------------------------------------------------------------------------------------
# Task 5: operations for any array library. They name none: the namespace comes from the input.
# --------------------------------------------------------------------------------------------------------------------


def softmax_xp(x: Any) -> Any:
    """Softmax along the last axis of a floating array of any array-API library; same library, shape and dtype.

    Safe for entries of any size and for -inf. (Every row has a finite entry.)
    """
    xp = array_api_compat.array_namespace(x)
    shifted = x - xp.max(x, axis=-1, keepdims=True)
    return xp.exp(shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True)))


def layernorm_xp(x: Any, eps: float = 1e-5) -> Any:
    """(x - mean) / sqrt(var + eps) along the last axis, var divided by N, for any array-API library; same library,
    shape and dtype.
    """
    xp = array_api_compat.array_namespace(x)
    mean = xp.mean(x, axis=-1, keepdims=True)
    return (x - mean) / xp.sqrt(xp.var(x, axis=-1, keepdims=True, correction=0) + eps)


def attention_xp(q: Any, k: Any, v: Any) -> Any:
    """softmax(q·kᵀ / sqrt(d))·v for q [..., T, d], k [..., S, d], v [..., S, dv] of any array library -> [..., T, dv].

    Batch axes are equal. No mask. Same library and dtype.
    """
    xp = array_api_compat.array_namespace(q, k, v)
    return xp.matmul(softmax_xp(xp.matmul(q / math.sqrt(q.shape[-1]), xp.matrix_transpose(k))), v)


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
    return (math.ceil(m / tile), math.ceil(n / tile)), (tile, tile)


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
    j, i = cuda.grid(2)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    n, k = a.shape
    m = b.shape[1]
    acc = float32(0.0)
    for step in range((k + TILE - 1) // TILE):
        # Indices are clamped, so every thread loads something; what lies outside is multiplied by 0.
        ka = step * TILE + tx
        kb = step * TILE + ty
        inside = float32(1.0) if ka < k else float32(0.0)
        a_tile[ty, tx] = a[min(i, n - 1), min(ka, k - 1)] * inside
        b_tile[ty, tx] = b[min(kb, k - 1), min(j, m - 1)]
        cuda.syncthreads()
        for s in range(TILE):
            acc += a_tile[ty, s] * b_tile[s, tx]
        cuda.syncthreads()
    if i < n and j < m:
        c[i, j] = acc


def matmul_gpu(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a[n, k] · b[k, m] by `matmul_tiled_kernel`, in float32 whatever the inputs are -> float32 [n, m]; zeros if k = 0.

    Raises ValueError unless both are matrices with equal inner size.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[-1] != b.shape[0]:
        raise ValueError(f"matmul_gpu: {a.shape} and {b.shape} are no matrices that fit")
    c = np.zeros((len(a), b.shape[1]), np.float32)
    if c.size and len(b):
        matmul_tiled_kernel[launch_config(*c.shape)](a.astype(np.float32), b.astype(np.float32), c)
    return c


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
    library = {"torch": "torch", "torch:cuda": "torch", "cupy": "cupy"}.get(name)
    if library is None:
        raise ValueError(f"get_backend: {name!r} is not numpy, torch, torch:cuda or cupy")
    try:
        module = importlib.import_module(library)
    except ModuleNotFoundError as error:
        raise BackendUnavailable(f"get_backend: no module {library}") from error
    if name == "torch":
        namespace = importlib.import_module("array_api_compat.torch")
        return Backend(name, namespace, module.from_numpy, module.Tensor.numpy, lambda: None, "CPU")
    if name == "torch:cuda":
        if not module.cuda.is_available():
            raise BackendUnavailable("get_backend: torch sees no CUDA device")
        namespace = importlib.import_module("array_api_compat.torch")
        return Backend(
            name, namespace, lambda x: module.from_numpy(x).to("cuda"), lambda x: x.to("cpu").numpy(),
            lambda: module.cuda.synchronize(), module.cuda.get_device_name(0),
        )  # fmt: skip
    if not module.cuda.is_available():
        raise BackendUnavailable("get_backend: CuPy sees no CUDA device")
    namespace = importlib.import_module("array_api_compat.cupy")
    return Backend(name, namespace, module.asarray, module.asnumpy, module.cuda.runtime.deviceSynchronize, "GPU")


def measure_machine(
    b: Backend, *, clock: Callable[[], float] = time.perf_counter, n: int = 512, stream_mib: int = 64
) -> Machine:
    """What this machine reaches, both from the best time that `benchmark` finds with this clock.

    `peak_flops` from the product of two n × n float32 matrices; `bandwidth` from a copy of `stream_mib` MiB, which
    reads and writes as many bytes.
    """

    def best(fn: Callable[[], object]) -> float:
        return benchmark(fn, synchronize=b.synchronize, clock=clock).best

    eye = b.asarray(np.eye(n, dtype=np.float32))
    block = b.asarray(np.full((stream_mib, 1 << 18), 0.5, np.float32))
    room = b.asarray(np.zeros((stream_mib, 1 << 18), np.float32))
    flops = 2 * n**3 / best(lambda: b.xp.matmul(eye, eye))
    bandwidth = 2 * stream_mib * (1 << 20) / best(lambda: room.__setitem__(slice(None), block))
    return Machine(b.device_name, flops, bandwidth)


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

    for case in cases:
        if case.op not in OPS:
            raise ValueError(f"run_suite: {case.op} is none of {', '.join(OPS)}")

    def measured(case: Case) -> Row:
        rng = np.random.default_rng(seed)
        drawn = [rng.standard_normal(shape) for shape in case.shapes]
        inputs = tuple(b.asarray(np.asarray(x, case.dtype)) for x in drawn)
        run, price = OPS[case.op]
        cost = price(case.shapes, np.dtype(case.dtype).itemsize)
        timing = benchmark(functools.partial(run, b.xp, *inputs), synchronize=b.synchronize, clock=clock)
        return Row(case, cost, timing, roofline(cost, m), efficiency(cost, timing.median, m))

    return list(map(measured, cases))


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
