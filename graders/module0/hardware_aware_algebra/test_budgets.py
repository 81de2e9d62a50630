"""Budgets of 0.3: calls, interpreter steps, and what a kernel loads. The kernel's check of correctness stands here too:
it needs the same launcher.

The kernel runs in Numba's simulator with one change: the threads of a block take turns, each running to its next
barrier or its end before the next one begins. That is an order which a GPU may choose, it makes every missing barrier
show, and two runs are alike. Shared memory holds NaN at first, where a GPU has what was left there. Global arrays are
the grader's: every load and store of the budgets is a call of a function handed in, which is where they are counted;
the arrays do not exist beside the submission.
"""

from __future__ import annotations

import numpy as np

from llmkata.checks import check, expect_error, hint, needs, points, probe, same, task

EPS32 = 2.0**-23
TILE = 8


# -- task 2 -----------------------------------------------------------------------------------------------------------


@task(2)
@points(4)
@needs("test_best_chain")
@hint(
    "How many different sub-chains are there? Solve each of them once.",
    "A table over (first, last), filled by length; or functools.cache on the recursion.",
)
def test_chain_polynomial(submission, budget, rng):
    """Interpreter steps of `best_chain` grow like a power of the number of matrices: exponent at most 3.3."""
    # n(n² - 1)/6 splits: 20, 84, 220 for n = 5, 8, 11. Measured exponent 2.2 (3 for long chains). A recursion without a
    # table visits 3^(n-1) sub-chains: 81, 2 187, 59 049, an exponent of 8.
    sizes = (5, 8, 11)
    chains = [[int(x) for x in rng.integers(1, 50, n + 1)] for n in sizes]
    values = [budget.steps(lambda s, chain=chain: s.best_chain(chain)) for chain in chains]
    budget.growth("steps of best_chain", sizes, values, exponent_at_most=3.3, reference=2.3, unit="steps")


# -- task 3 -----------------------------------------------------------------------------------------------------------


@probe
def timed(module, fn, synchronize, clock, options):
    return module.benchmark(fn, synchronize=synchronize, clock=clock, **options).number


@task(3)
@points(6)
@needs("test_benchmark_virtual_device")
@hint(
    "Trials of 1, 2, 4, ... calls are fewer than 2 · number together. Use their times for nothing, and run none again.",
    "Wait at the two ends of a block, not after every call: waiting costs time too, and keeps the device idle.",
)
def test_harness_overhead(submission, budget):
    """A measurement makes the calls it needs: warm-up, trials that double, timed blocks; and waits at their ends
    only.
    """
    for warmup, repeat, number in ((3, 7, 8), (0, 3, 16)):
        seen = {"fn": 0, "synchronize": 0}

        def fn(seen=seen):
            seen["fn"] += 1

        def synchronize(seen=seen):
            seen["synchronize"] += 1

        def clock(seen=seen):
            return seen["fn"] * 1e-3

        options = {"warmup": warmup, "repeat": repeat, "min_time": 1e-3 * (number - 0.5)}
        got = submission.run(timed, fn, synchronize, clock, options)
        check(got == number, f"1 ms a call, {number - 0.5} ms a block", got=got, want=number)
        # Trials 1 + 2 + ... + number = 2 · number - 1 calls, log2(number) + 1 blocks; two waits a block, one more.
        exact = warmup + 2 * number - 1 + repeat * number
        what = f"warmup={warmup}, repeat={repeat}, number={number}"
        budget.require(f"calls of fn, {what}", seen["fn"], at_most=exact + 1, at_least=exact, reference=exact,
                       unit="calls", trust="handed in")  # fmt: skip
        waits = 2 * (number.bit_length() + repeat) + 1
        budget.require(f"calls of synchronize, {what}", seen["synchronize"], at_most=waits + 1, at_least=waits,
                       reference=waits, unit="calls", trust="handed in")  # fmt: skip


# -- task 6: the launcher ---------------------------------------------------------------------------------------------


@probe
def run_kernel(module, a, b, load, store):
    """Launch matmul_tiled_kernel on a result [n, m], the threads of a block one after the other.

    a, b: arrays; or shapes, and then `load(name, i, j)` and `store(i, j, value)` are the memory. -> (result or None,
    blocks in which some threads ended while others waited, [name, i, j, block, thread] of each load of arrays).
    """
    import operator
    import sys
    import threading

    import numpy
    from numba.cuda.simulator import kernel, kernelapi

    profile = sys.getprofile()  # what watches the caller watches its threads
    log, diverged = [], 0

    class Thread(kernel.BlockThread):
        ended = False

        def run(self):
            self.turn.acquire()
            sys.setprofile(profile)
            try:
                super().run()
            finally:
                sys.setprofile(None)
                self.ended = True
                self.given_back.release()

        def syncthreads(self):
            self.given_back.release()
            self.turn.acquire()
            if self.abort:
                raise RuntimeError("another thread failed")

    class Block(kernel.BlockManager):
        def run(self, grid_point, *args):
            nonlocal diverged
            for shared in kernel._get_kernel_context().shared._allocations.values():
                shared[...] = numpy.nan
            given_back, threads = threading.Lock(), []
            given_back.acquire()
            for point in numpy.ndindex(*self._block_dim):
                thread = Thread(lambda: self._f(*args), self, grid_point, point, False)
                thread.turn, thread.given_back = threading.Lock(), given_back
                thread.turn.acquire()
                thread.start()
                threads.append(thread)
            # x is the fastest index of a warp.
            live = threads = sorted(threads, key=lambda t: t.thread_id)
            while live:
                for thread in live:
                    thread.turn.release()
                    given_back.acquire()
                    if thread.exception:
                        for other in (t for t in live if not t.ended):
                            other.abort = True
                            other.turn.release()
                            given_back.acquire()
                        raise thread.exception[0].with_traceback(thread.exception[1])
                waiting = [t for t in live if not t.ended]
                diverged += 0 < len(waiting) < len(live)
                live = waiting

    class NaNs:
        """NumPy, with new arrays of NaN."""

        def __getattr__(self, name):
            return getattr(numpy, name)

        def empty(self, shape, dtype):
            return numpy.full(shape, numpy.nan, dtype)

    class Global:
        """A matrix in global memory."""

        def __init__(self, name, values):
            self.name, self.values = name, values
            self.shape = tuple(values) if load else values.shape
            self.ndim, self.dtype = 2, numpy.dtype("float32")

        def place(self, index):
            place = tuple(operator.index(i) for i in index)
            if len(place) != 2 or not all(0 <= i < n for i, n in zip(place, self.shape)):
                raise IndexError(f"{self.name}[{', '.join(map(str, place))}] lies outside of {self.shape}")
            return place

        def __getitem__(self, index):
            i, j = self.place(index)
            if load:
                return numpy.float32(load(self.name, i, j))
            thread = threading.current_thread()
            log.append([self.name, i, j, list(thread.blockIdx), thread.thread_id])
            return self.values[i, j]

        def __setitem__(self, index, value):
            i, j = self.place(index)
            if load:
                store(i, j, float(value))
            else:
                self.values[i, j] = value

    n, m = (a[0], b[1]) if load else (a.shape[0], b.shape[1])
    result = (n, m) if load else numpy.full((n, m), numpy.nan, numpy.float32)
    tile = 8
    before = kernel.BlockManager, kernelapi.np
    kernel.BlockManager, kernelapi.np = Block, NaNs()
    try:
        grid = (-(-m // tile), -(-n // tile))
        module.matmul_tiled_kernel[grid, (tile, tile)](Global("a", a), Global("b", b), Global("c", result))
    finally:
        kernel.BlockManager, kernelapi.np = before
    return None if load else result, diverged, log


# -- task 6: correctness ----------------------------------------------------------------------------------------------


@task(6)
@points(8)
@hint(
    "All threads of a block must reach every barrier: a thread outside of the matrix loads zeros and goes on.",
    "Two barriers in each step: one between writing the tiles and reading them, one between reading them and the next "
    "writing.",
    "a_tile[ty, tx] = a[row, start + tx]: a tile's column is the thread's, moved by the step. Zeros beyond the edge "
    "of k.",
)
def test_cuda_kernel_correct(submission, rng):
    """The tiled kernel multiplies matrices of any size, whatever order the threads of a block run in."""
    for n, m, tile, want in (
        (16, 16, 8, ((2, 2), (8, 8))),
        (9, 17, 8, ((3, 2), (8, 8))),
        (1, 5, 4, ((2, 1), (4, 4))),
        (33, 32, 16, ((2, 3), (16, 16))),
    ):
        got = submission.launch_config(n, m, tile)
        got = tuple(map(tuple, got))
        check(got == want, f"launch_config({n}, {m}, {tile}): (grid, block), x along the columns", got=got, want=want)
    check(
        tuple(map(tuple, submission.launch_config(9, 8))) == ((1, 2), (8, 8)), "launch_config(9, 8) has tiles of TILE"
    )
    for n, k, m in ((8, 16, 8), (1, 1, 1), (10, 12, 9), (3, 5, 17)):
        a, b = rng.standard_normal((n, k)).astype("float32"), rng.standard_normal((k, m)).astype("float32")
        got, diverged, _ = submission.run(run_kernel, a, b, None, None)
        # k products and k sums, each rounded by half an eps at most; 4 k leaves room for any order and for fused ones.
        tol = 4 * k * EPS32 * float(np.abs(a).max() * np.abs(b).max())
        same(got, (a.astype(float) @ b.astype(float)).astype("float32"), atol=tol, rtol=0,
             what=f"kernel on ({n}, {k}, {m})")  # fmt: skip
        check(diverged == 0, f"({n}, {k}, {m}): all threads of a block must reach the same barriers",
              got=f"in {diverged} places some had ended")  # fmt: skip
    a, b = rng.standard_normal((3, 5)), rng.standard_normal((5, 2))
    same(submission.matmul_gpu(a, b), (a @ b).astype("float32"), atol=2e-5, what="matmul_gpu of float64 matrices")
    same(submission.matmul_gpu(a[:, :0], b[:0]), np.zeros((3, 2), "float32"), atol=0, what="matmul_gpu with k = 0")
    for x, y in ((a, b[:4]), (a[0], b)):
        with expect_error(ValueError):
            submission.matmul_gpu(x, y)


# -- task 6: budgets --------------------------------------------------------------------------------------------------


class Memory:
    """Global memory: counts what is read and written."""

    def __init__(self, a, b):
        self.arrays, self.loads, self.stores = {"a": a, "b": b}, 0, 0
        self.c = np.full((a.shape[0], b.shape[1]), np.nan, "float32")

    def load(self, name, i, j):
        self.loads += 1
        if name == "c":
            return float(self.c[i, j])
        return float(self.arrays[name][i, j])

    def store(self, i, j, value):
        self.stores += 1
        self.c[i, j] = value


@task(6)
@points(11)
@needs("test_cuda_kernel_correct")
@hint(
    "Only the copies into the tiles may read a and b. The inner loop reads the tiles.",
    "Sum in a local variable and write c once, at the end: `c[row, col] += ...` reads and writes it in every step.",
)
def test_global_loads(submission, budget, rng):
    """Each thread loads at most one element of a and one of b in a step, and each result is stored once."""
    for (n, k, m), limit, floor in (
        # 2 blocks · 2 steps · 128 = 512. The naive kernel loads 2·n·m·k = 4096.
        ((8, 16, 16), 512, 512),
        # 4 blocks of 2 steps: 4 · 2 · 128 = 1024 if threads at the edges load too; what lies inside of the matrices is
        # n·k = 120 of a for each of 2 columns of blocks and k·m = 90 of b for each of 2 rows: 420. Naive: 2160.
        ((12, 10, 9), 1024, 420),
    ):
        a, b = rng.standard_normal((n, k)).astype("float32"), rng.standard_normal((k, m)).astype("float32")
        memory = Memory(a, b)
        submission.run(run_kernel, a.shape, b.shape, memory.load, memory.store)
        same(
            memory.c,
            (a.astype(float) @ b.astype(float)).astype("float32"),
            atol=1e-4,
            what=f"kernel on ({n}, {k}, {m})",
        )
        name = f"({n}, {k}, {m})"
        budget.require(f"global loads, {name}", memory.loads, at_most=limit, at_least=floor, reference=floor,
                       unit="loads", trust="handed in")  # fmt: skip
        budget.require(f"global stores, {name}", memory.stores, at_most=n * m, at_least=n * m, reference=n * m,
                       unit="stores", trust="handed in")  # fmt: skip


def sectors(log, widths):
    """Distinct 32-byte sectors of each warp-wide load, summed: the i-th loads of an array by the 32 threads of a
    warp.
    """
    ordinal, touched = {}, {}
    for name, i, j, block, thread in log:
        key = (name, tuple(block), thread)
        ordinal[key] = ordinal.get(key, -1) + 1
        warp = (name, tuple(block), thread // 32, ordinal[key])
        touched.setdefault(warp, set()).add((i * widths[name] + j) * 4 // 32)
    return sum(map(len, touched.values()))


@task(6)
@points(6)
@needs("test_cuda_kernel_correct")
@hint(
    "Threads 0, 1, 2, ... of a warp differ in threadIdx.x. Which index of a[i, j] must x be in for neighbours in "
    "memory?",
    "x belongs into the last index, of a, of b and of c.",
)
def test_coalesced_sectors(submission, budget, rng):
    """Neighbouring threads read neighbouring addresses: no warp-wide load touches more 32-byte sectors than it must."""
    a, b = rng.standard_normal((8, 16)).astype("float32"), rng.standard_normal((16, 8)).astype("float32")
    result, _, log = submission.run(run_kernel, a, b, None, None)
    same(result, (a.astype(float) @ b.astype(float)).astype("float32"), atol=1e-4, what="kernel on (8, 16, 8)")
    # A warp is 4 rows of 8 threads; 8 neighbours are 32 bytes, so a load of a or of b touches 4 sectors.
    # 2 warps · 2 steps · (4 + 4) = 32; with x along the rows, 8 rows each: 64; the naive kernel: 2 · 16 · (4 + 1) =
    # 160.
    found = sectors(log, {"a": 16, "b": 8, "c": 8})
    budget.require("32-byte sectors, (8, 16, 8)", found, at_most=40, at_least=32, reference=32, unit="sectors")
