"""Mistakes people make in 0.3. Each replaces functions of the model answer, in whose namespace it runs."""

# ruff: noqa: F821
from __future__ import annotations

from llmkata.checks import misconception

# -- costs ------------------------------------------------------------------------------------------------------------


@misconception(
    "fma_is_one_flop",
    replaces="cost_matmul",
    caught_by="test_cost_matmul",
    feedback="You counted n·k·m operations. A multiply-add is two FLOPs, a multiplication and an addition: that is how "
    "peak FLOP/s are quoted, and how they must be counted to be compared.",
)
def fma_is_one_flop(a_shape, b_shape, itemsize):
    cost = original(a_shape, b_shape, itemsize)
    return Cost(cost.flops // 2, cost.bytes_read, cost.bytes_written)


@misconception(
    "broadcast_bytes",
    replaces="cost_matmul",
    caught_by="test_cost_matmul",
    feedback="You charged operands at the broadcast size. A matrix that serves the whole batch (stride 0) is read from "
    "memory once: charge each operand at its own shape.",
)
def broadcast_bytes(a_shape, b_shape, itemsize):
    cost = original(a_shape, b_shape, itemsize)
    batch = math.prod(np.broadcast_shapes(a_shape[:-2], b_shape[:-2]))
    (n, k), m = a_shape[-2:], b_shape[-1]
    return Cost(cost.flops, batch * (n * k + k * m) * itemsize, cost.bytes_written)


@misconception(
    "elements_not_bytes",
    replaces="cost_elementwise",
    caught_by="test_cost_elementwise_and_softmax",
    feedback="You counted elements where bytes are asked for: traffic is elements times itemsize.",
)
def elements_not_bytes(in_shapes, itemsize, flops_per_element=1):
    cost = original(in_shapes, itemsize, flops_per_element)
    return Cost(cost.flops, cost.bytes_read // itemsize, cost.bytes_written // itemsize)


@misconception(
    "unfused_forgets_rows",
    replaces="cost_softmax",
    caught_by="test_cost_elementwise_and_softmax",
    feedback="Your five kernels read and write the N elements, but not the R row values: the maximum and the sum of "
    "each row are written by one kernel and read by another.",
)
def unfused_forgets_rows(shape, itemsize, *, fused):
    cost = original(shape, itemsize, fused=fused)
    rows = 0 if fused else 2 * math.prod(shape[:-1]) * itemsize
    return Cost(cost.flops, cost.bytes_read - rows, cost.bytes_written - rows)


@misconception(
    "scores_move_once",
    replaces="cost_attention",
    caught_by="test_cost_attention",
    feedback="Your unfused attention writes the scores and reads them once. Softmax is a kernel of its own: it reads "
    "the scores and writes weights of the same size, which the second product reads.",
)
def scores_move_once(B, H, T, S, d, itemsize, *, fused):
    cost = original(B, H, T, S, d, itemsize, fused=fused)
    once = 0 if fused else B * H * T * S * itemsize
    return Cost(cost.flops, cost.bytes_read - once, cost.bytes_written - once)


# -- chains -----------------------------------------------------------------------------------------------------------


@misconception(
    "greedy_chain",
    replaces="best_chain",
    caught_by="test_best_chain",
    feedback="You multiply the cheapest neighbouring pair first. A cheap product can leave a large matrix behind: the "
    "cheapest order has to be searched for, over all splits of all sub-chains.",
)
def greedy_chain(dims):
    import itertools

    if len(dims) < 2:
        raise ValueError("a chain needs at least 2 dims")
    parts = [(i, dims[i], dims[i + 1]) for i in range(len(dims) - 1)]
    flops = 0
    while len(parts) > 1:
        costs = [2 * x[1] * x[2] * y[2] for x, y in itertools.pairwise(parts)]
        i = max(i for i, cost in enumerate(costs) if cost == min(costs))
        flops += costs[i]
        parts[i : i + 2] = [((parts[i][0], parts[i + 1][0]), parts[i][1], parts[i + 1][2])]
    return flops, parts[0][0]


@misconception(
    "last_split_at_ties",
    replaces="best_chain",
    caught_by="test_first_of_equal_orders",
    feedback="Of orders that cost the same you take the one with the largest left factor. The contract asks for the "
    "smallest split: replace the best so far only by one that is cheaper, not by one that is as cheap.",
)
def last_split_at_ties(dims):
    if len(dims) < 2:
        raise ValueError("a chain needs at least 2 dims")
    best = {(i, i): (0, i) for i in range(len(dims) - 1)}
    for length in range(2, len(dims)):
        for i in range(len(dims) - length):
            j = i + length - 1
            for s in range(i, j):
                (left, x), (right, y) = best[i, s], best[s + 1, j]
                cost = left + right + 2 * dims[i] * dims[s + 1] * dims[j + 1]
                if (i, j) not in best or cost <= best[i, j][0]:
                    best[i, j] = cost, (x, y)
    return best[0, len(dims) - 2]


@misconception(
    "chain_without_a_table",
    replaces="best_chain",
    caught_by="test_chain_polynomial",
    matches="steps",
    feedback="You solve the same sub-chains again and again: a recursion without a table visits 3^(n-1) of them, and "
    "there are only n(n+1)/2 different ones. Keep what you found.",
)
def chain_without_a_table(dims):
    if len(dims) < 2:
        raise ValueError("a chain needs at least 2 dims")

    def best(i, j):
        if i == j:
            return 0, i
        found = None
        for s in range(i, j):
            (left, x), (right, y) = best(i, s), best(s + 1, j)
            cost = left + right + 2 * dims[i] * dims[s + 1] * dims[j + 1]
            if found is None or cost < found[0]:
                found = cost, (x, y)
        return found

    return best(0, len(dims) - 2)


# -- time -------------------------------------------------------------------------------------------------------------


def run_benchmark(block, synchronize, warmup, repeat, min_time, max_number, fn):
    """The protocol around a block: number -> seconds."""
    if repeat < 1 or warmup < 0:
        raise ValueError("needs repeat >= 1 and warmup >= 0")
    for _ in range(warmup):
        fn()
    synchronize()
    number = 1
    while block(number) < min_time and number < max_number:
        number = min(2 * number, max_number)
    return number, [block(number) / number for _ in range(repeat)]


def summary(number, times):
    median = statistics.median(times)
    low, high = (float(x) for x in np.quantile(times, (0.25, 0.75)))
    return Timing(number, tuple(times), median, min(times), (high - low) / median if median else 0.0)


@misconception(
    "no_final_sync",
    replaces="benchmark",
    caught_by="test_benchmark_virtual_device",
    feedback="You read the clock before waiting for the device: you timed how long it takes to queue the work, not "
    "to do it. Synchronise, then read the clock.",
)
def no_final_sync(fn, *, synchronize, clock=time.perf_counter, warmup=3, repeat=7, min_time=0.01, max_number=1 << 20):
    def block(number):
        synchronize()
        t0 = clock()
        for _ in range(number):
            fn()
        seconds = clock() - t0
        synchronize()
        return seconds

    return summary(*run_benchmark(block, synchronize, warmup, repeat, min_time, max_number, fn))


@misconception(
    "no_initial_sync",
    replaces="benchmark",
    caught_by="test_benchmark_protocol",
    feedback="You read the clock without waiting for the device first: work that was queued before the block is "
    "charged to it. A timed block begins with synchronize().",
)
def no_initial_sync(fn, *, synchronize, clock=time.perf_counter, warmup=3, repeat=7, min_time=0.01, max_number=1 << 20):
    def block(number):
        t0 = clock()
        for _ in range(number):
            fn()
        synchronize()
        return clock() - t0

    return summary(*run_benchmark(block, synchronize, warmup, repeat, min_time, max_number, fn))


@misconception(
    "warmup_timed",
    replaces="benchmark",
    caught_by="test_benchmark_virtual_device",
    feedback="Your first block contains the first call, which pays for compilation and allocation. Warm-up calls come "
    "before all blocks, and the trial blocks come after them.",
)
def warmup_timed(fn, *, synchronize, clock=time.perf_counter, warmup=3, repeat=7, min_time=0.01, max_number=1 << 20):
    started = []

    def block(number):
        synchronize()
        t0 = clock()
        if not started:
            started.append(True)
            for _ in range(warmup):
                fn()
        for _ in range(number):
            fn()
        synchronize()
        return clock() - t0

    return summary(*run_benchmark(block, synchronize, min(warmup, 0), repeat, min_time, max_number, fn))


@misconception(
    "no_inner_loop",
    replaces="benchmark",
    caught_by="test_benchmark_virtual_device",
    feedback="You time one call at a time. A kernel that is shorter than a tick of the clock takes 0 ticks or 1: "
    "time a block of many calls and divide.",
)
def no_inner_loop(fn, *, synchronize, clock=time.perf_counter, warmup=3, repeat=7, min_time=0.01, max_number=1 << 20):
    def block(number):
        synchronize()
        t0 = clock()
        fn()
        synchronize()
        return clock() - t0

    return summary(*run_benchmark(block, synchronize, warmup, repeat, min_time, 1, fn))


@misconception(
    "mean_for_median",
    replaces="benchmark",
    caught_by="test_benchmark_virtual_device",
    feedback="You report the mean of the blocks as their median. One block in which the machine did something else "
    "moves a mean, and leaves a median where it is.",
)
def mean_for_median(fn, *, synchronize, clock=time.perf_counter, warmup=3, repeat=7, min_time=0.01, max_number=1 << 20):
    t = original(fn, synchronize=synchronize, clock=clock, warmup=warmup, repeat=repeat, min_time=min_time,
                 max_number=max_number)  # fmt: skip
    return Timing(t.number, t.times, statistics.fmean(t.times), t.best, t.spread)


@misconception(
    "trials_kept_as_warmup",
    replaces="benchmark",
    caught_by="test_benchmark_protocol",
    equivalent_to="warmup_timed",  # on a device whose first call is slow
    feedback="You begin to search for the number of calls at once and let the trials be the warm-up. The contract has "
    "`warmup` calls first, outside of any block, and one wait after them.",
)
def trials_kept_as_warmup(
    fn, *, synchronize, clock=time.perf_counter, warmup=3, repeat=7, min_time=0.01, max_number=1 << 20
):
    return original(fn, synchronize=synchronize, clock=clock, warmup=min(warmup, 0), repeat=repeat, min_time=min_time,
                    max_number=max_number)  # fmt: skip


@misconception(
    "waits_after_each_call",
    replaces="benchmark",
    caught_by="test_harness_overhead",
    matches="calls",
    feedback="You wait for the device after every call. Then it is idle while the next call is being launched, and "
    "you time launches that would be hidden: wait at the two ends of a block.",
)
def waits_after_each_call(
    fn, *, synchronize, clock=time.perf_counter, warmup=3, repeat=7, min_time=0.01, max_number=1 << 20
):
    def call():
        fn()
        synchronize()

    return original(call, synchronize=synchronize, clock=clock, warmup=warmup, repeat=repeat, min_time=min_time,
                    max_number=max_number)  # fmt: skip


# -- roofline ---------------------------------------------------------------------------------------------------------


@misconception(
    "roof_uses_sum",
    replaces="roofline",
    caught_by="test_roofline_and_efficiency",
    feedback="You added the time of the arithmetic to that of the traffic. They overlap: the slower of the two "
    "bounds you, max(FLOPs / peak, bytes / bandwidth).",
)
def roof_uses_sum(cost, m):
    r = original(cost, m)
    seconds = cost.flops / m.peak_flops + cost.bytes / m.bandwidth
    return Roof(r.intensity, r.ridge, r.attainable_flops, r.bound, seconds)


@misconception(
    "ridge_inverted",
    replaces="roofline",
    caught_by="test_roofline_and_efficiency",
    feedback="Your ridge is bandwidth / peak, in bytes per FLOP. The ridge is compared with an intensity, so it is "
    "in FLOP per byte: peak / bandwidth.",
)
def ridge_inverted(cost, m):
    r = original(cost, m)
    ridge = m.bandwidth / m.peak_flops
    return Roof(r.intensity, ridge, r.attainable_flops, "compute" if r.intensity >= ridge else "memory", r.min_seconds)


@misconception(
    "roof_is_inverted",
    replaces="efficiency",
    caught_by="test_roofline_and_efficiency",
    feedback="Your percent of roof grows with the time that was needed. It is what the roof allows over what was "
    "needed: 100 · min_seconds / seconds.",
)
def roof_is_inverted(cost, seconds, m):
    e = original(cost, seconds, m)
    return Efficiency(e.achieved_flops, e.achieved_bandwidth, e.pct_peak, 1e4 / e.pct_roof, e.bound)


# -- any library ------------------------------------------------------------------------------------------------------


@misconception(
    "numpy_by_name",
    replaces="softmax_xp",
    caught_by="test_xp_ops_run_on_three_libraries",
    feedback="You compute in NumPy whatever comes in: an array on a GPU would be copied to the host, and back, if it "
    "came back at all. Take the functions from array_api_compat.array_namespace(x).",
)
def numpy_by_name(x):
    x = np.asarray(x)
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@misconception(
    "softmax_overflows",
    replaces="softmax_xp",
    caught_by="test_xp_ops_run_on_three_libraries",
    feedback="exp of 10 000 is infinite, and inf / inf is NaN. Subtract the maximum of each row first: it changes "
    "nothing in the result.",
)
def softmax_overflows(x):
    xp = array_api_compat.array_namespace(x)
    with np.errstate(over="ignore", invalid="ignore"):
        weights = xp.exp(x)
        return weights / xp.sum(weights, axis=-1, keepdims=True)


@misconception(
    "unbiased_variance",
    replaces="layernorm_xp",
    caught_by="test_xp_ops_run_on_three_libraries",
    feedback="You divide the variance by N - 1. LayerNorm divides by N: it normalises the row it has, it does not "
    "estimate anything. (torch.var and its kin have N - 1 as their default.)",
)
def unbiased_variance(x, eps=1e-5):
    xp = array_api_compat.array_namespace(x)
    centred = x - xp.mean(x, axis=-1, keepdims=True)
    variance = xp.sum(centred * centred, axis=-1, keepdims=True) / (x.shape[-1] - 1)
    return centred / xp.sqrt(variance + eps)


@misconception(
    "attention_unscaled",
    replaces="attention_xp",
    caught_by="test_xp_ops_run_on_three_libraries",
    feedback="Your scores are not divided by sqrt(d).",
)
def attention_unscaled(q, k, v):
    xp = array_api_compat.array_namespace(q, k, v)
    return xp.matmul(softmax_xp(xp.matmul(q, xp.matrix_transpose(k))), v)


# -- the kernel -------------------------------------------------------------------------------------------------------


@misconception(
    "missing_first_barrier",
    replaces="matmul_tiled_kernel",
    caught_by="test_cuda_kernel_correct",
    feedback="Threads read a tile that others have not finished writing: a barrier (cuda.syncthreads) belongs between "
    "filling the tiles and using them.",
)
@cuda.jit
def missing_first_barrier(a, b, c):
    a_tile = cuda.shared.array((TILE, TILE), float32)
    b_tile = cuda.shared.array((TILE, TILE), float32)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    col, row = cuda.grid(2)
    total = float32(0)
    for start in range(0, a.shape[1], TILE):
        a_tile[ty, tx] = a[row, start + tx] if row < a.shape[0] and start + tx < a.shape[1] else float32(0)
        b_tile[ty, tx] = b[start + ty, col] if start + ty < b.shape[0] and col < b.shape[1] else float32(0)
        for i in range(TILE):
            total += a_tile[ty, i] * b_tile[i, tx]
        cuda.syncthreads()
    if row < c.shape[0] and col < c.shape[1]:
        c[row, col] = total


@misconception(
    "missing_second_barrier",
    replaces="matmul_tiled_kernel",
    caught_by="test_cuda_kernel_correct",
    feedback="A thread that is done with a tile overwrites it while others still read: a barrier (cuda.syncthreads) "
    "belongs at the end of each step too.",
)
@cuda.jit
def missing_second_barrier(a, b, c):
    a_tile = cuda.shared.array((TILE, TILE), float32)
    b_tile = cuda.shared.array((TILE, TILE), float32)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    col, row = cuda.grid(2)
    total = float32(0)
    for start in range(0, a.shape[1], TILE):
        a_tile[ty, tx] = a[row, start + tx] if row < a.shape[0] and start + tx < a.shape[1] else float32(0)
        b_tile[ty, tx] = b[start + ty, col] if start + ty < b.shape[0] and col < b.shape[1] else float32(0)
        cuda.syncthreads()
        for i in range(TILE):
            total += a_tile[ty, i] * b_tile[i, tx]
    if row < c.shape[0] and col < c.shape[1]:
        c[row, col] = total


@misconception(
    "early_return_guard",
    replaces="matmul_tiled_kernel",
    caught_by="test_cuda_kernel_correct",
    feedback="Threads outside of the matrix return at once. They are needed: each must load its element of the other "
    "tile, and reach the barriers that the rest of the block waits at. Guard the loads and the store instead.",
)
@cuda.jit
def early_return_guard(a, b, c):
    a_tile = cuda.shared.array((TILE, TILE), float32)
    b_tile = cuda.shared.array((TILE, TILE), float32)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    col, row = cuda.grid(2)
    if row >= c.shape[0] or col >= c.shape[1]:
        return
    total = float32(0)
    for start in range(0, a.shape[1], TILE):
        a_tile[ty, tx] = a[row, start + tx] if start + tx < a.shape[1] else float32(0)
        b_tile[ty, tx] = b[start + ty, col] if start + ty < b.shape[0] else float32(0)
        cuda.syncthreads()
        for i in range(TILE):
            total += a_tile[ty, i] * b_tile[i, tx]
        cuda.syncthreads()
    c[row, col] = total


@misconception(
    "tile_index_uses_global_id",
    replaces="matmul_tiled_kernel",
    caught_by="test_cuda_kernel_correct",
    feedback="You read a[row, start + col] and b[start + row, col]. Inside of a tile the index is the thread's "
    "(threadIdx), not the grid's: a[row, start + tx], b[start + ty, col].",
)
@cuda.jit
def tile_index_uses_global_id(a, b, c):
    a_tile = cuda.shared.array((TILE, TILE), float32)
    b_tile = cuda.shared.array((TILE, TILE), float32)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    col, row = cuda.grid(2)
    total = float32(0)
    for start in range(0, a.shape[1], TILE):
        a_tile[ty, tx] = a[row, start + col] if row < a.shape[0] and start + col < a.shape[1] else float32(0)
        b_tile[ty, tx] = b[start + row, col] if start + row < b.shape[0] and col < b.shape[1] else float32(0)
        cuda.syncthreads()
        for i in range(TILE):
            total += a_tile[ty, i] * b_tile[i, tx]
        cuda.syncthreads()
    if row < c.shape[0] and col < c.shape[1]:
        c[row, col] = total


@misconception(
    "naive_kernel",
    replaces="matmul_tiled_kernel",
    caught_by="test_global_loads",
    matches="loads",
    feedback="Every thread reads its whole row and column from global memory, so each element is read by TILE "
    "threads of a block. Copy tiles to shared memory, and let the inner loop read those.",
)
@cuda.jit
def naive_kernel(a, b, c):
    col, row = cuda.grid(2)
    if row < c.shape[0] and col < c.shape[1]:
        total = float32(0)
        for i in range(a.shape[1]):
            total += a[row, i] * b[i, col]
        c[row, col] = total


@misconception(
    "x_along_rows",
    replaces="matmul_tiled_kernel",
    caught_by="test_coalesced_sectors",
    matches="sectors",
    feedback="Your threadIdx.x runs along the rows. Neighbouring threads then read addresses a whole row apart, and "
    "each needs a sector of its own: x belongs into the last index.",
)
@cuda.jit
def x_along_rows(a, b, c):
    a_tile = cuda.shared.array((TILE, TILE), float32)
    b_tile = cuda.shared.array((TILE, TILE), float32)
    ty, tx = cuda.threadIdx.x, cuda.threadIdx.y
    row, col = cuda.blockIdx.y * TILE + ty, cuda.blockIdx.x * TILE + tx
    total = float32(0)
    for start in range(0, a.shape[1], TILE):
        a_tile[ty, tx] = a[row, start + tx] if row < a.shape[0] and start + tx < a.shape[1] else float32(0)
        b_tile[ty, tx] = b[start + ty, col] if start + ty < b.shape[0] and col < b.shape[1] else float32(0)
        cuda.syncthreads()
        for i in range(TILE):
            total += a_tile[ty, i] * b_tile[i, tx]
        cuda.syncthreads()
    if row < c.shape[0] and col < c.shape[1]:
        c[row, col] = total


# -- backends and the suite -------------------------------------------------------------------------------------------


@misconception(
    "gpu_does_not_wait",
    replaces="get_backend",
    caught_by="test_backends",
    feedback="Your CuPy backend does not wait for the device: all its timings are those of launches. synchronize must "
    "return only when the device is done.",
)
def gpu_does_not_wait(name):
    b = original(name)
    if name != "cupy":
        return b
    return Backend(b.name, b.xp, b.asarray, b.to_numpy, lambda: None, b.device_name)


@misconception(
    "best_for_median",
    replaces="run_suite",
    caught_by="test_run_suite_rows",
    feedback="Your efficiencies are those of the fastest block. The contract takes the median, which is what you can "
    "count on.",
)
def best_for_median(b, cases, m, *, clock=time.perf_counter, seed=0):
    rows = original(b, cases, m, clock=clock, seed=seed)
    return [Row(r.case, r.cost, r.timing, r.roof, efficiency(r.cost, r.timing.best, m)) for r in rows]


@misconception(
    "one_generator_for_all",
    replaces="run_suite",
    caught_by="test_run_suite_rows",
    feedback="You draw the inputs of all cases from one generator, so those of a case depend on the cases before it. "
    "Each case gets a fresh default_rng(seed).",
)
def one_generator_for_all(b, cases, m, *, clock=time.perf_counter, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for case in cases:
        if case.op not in ("matmul", "add", "softmax", "layernorm", "attention"):
            raise ValueError(f"unknown op {case.op!r}")
        drawn = [rng.standard_normal(shape).astype(case.dtype) for shape in case.shapes]
        moved = iter(drawn)
        theirs = Backend(
            b.name, b.xp, lambda x, moved=moved: b.asarray(next(moved)), b.to_numpy, b.synchronize, b.device_name
        )
        rows += original(theirs, [case], m, clock=clock, seed=seed)
    return rows


@misconception(
    "copy_counted_once",
    replaces="measure_machine",
    caught_by="test_real_cpu_sanity",
    feedback="A copy of x bytes moves 2x: it reads them and writes them. Your bandwidth is half of what the machine "
    "showed.",
)
def copy_counted_once(b, *, clock=time.perf_counter, n=512, stream_mib=64):
    m = original(b, clock=clock, n=n, stream_mib=stream_mib)
    return Machine(m.name, m.peak_flops, m.bandwidth / 2)
