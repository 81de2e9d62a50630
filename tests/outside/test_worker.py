"""Workers seen from outside: how they end, what they may take, what they measure."""

from __future__ import annotations

import gc
import time

import numpy as np
import pytest

from llmkata.outside.link import Meter
from llmkata.outside.process import Process, SpawnedProcess, TemplateFailed, template
from llmkata.outside.remote import RemoteError, WorkerGone
from llmkata.wire import Kind, WireError, decode, encode

from .conftest import on_linux

pytestmark = on_linux

DEATHS = {
    "os._exit(0)": ("ended by itself", "died"),
    "os._exit(137)": ("ended by itself", "died"),
    "ctypes.string_at(0)": ("segmentation fault", "died"),
}


@pytest.mark.parametrize("code", DEATHS)
def test_how_it_died(links, code):
    cause, kind = DEATHS[code]
    s = links(f"import ctypes, os\ndef f(): {code}\ndef g(): return 1")
    with pytest.raises(WorkerGone, match=cause) as e:
        s.f()
    assert e.value.kind == kind and s.link.process is None and s.link.cpu_seconds > 0
    assert s.g() == 1  # a new worker


@pytest.mark.parametrize("code", DEATHS)
def test_how_it_died_at_import(links, code):
    with pytest.raises(WorkerGone, match=DEATHS[code][0]):
        links(f"import ctypes, os\n{code}").link.open()


def test_killed_from_outside(links):
    import os

    s = links("def f():\n    while True: pass")
    s.link.open()
    os.kill(s.link.process.inner_pid, 9)
    with pytest.raises(WorkerGone, match="killed: it used more memory or time"):
        s.f()


def test_another_architectures_call_ends_it(links):
    """int 0x80 is no call of the table: the filter kills."""
    import platform

    if platform.machine() != "x86_64":
        pytest.skip("x86 only")
    s = links('''
        import ctypes, mmap
        def f():
            code = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            code.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20; int 0x80; ret
            address = ctypes.addressof(ctypes.c_char.from_buffer(code))
            return ctypes.CFUNCTYPE(ctypes.c_int)(address)()
    ''')
    s.link.open()
    if "seccomp" not in s.link.layers:
        pytest.skip("no seccomp here")
    with pytest.raises((WorkerGone, RemoteError)) as e:
        s.f()
    assert isinstance(e.value, RemoteError) or "sandbox" in e.value.cause


def test_the_deadline_is_in_time_of_its_own(links):
    s = links("def f():\n    while True: pass\ndef g(): return 1", request_seconds=0.3)
    with pytest.raises(WorkerGone, match="did not finish within 0.3 s") as e:
        s.f()
    assert e.value.kind == "late" and s.link.cpu_seconds >= 0.3
    with pytest.raises(WorkerGone, match="in an earlier check; `f` is not run again"):
        s.f()
    assert s.g() == 1 and s.link.wall.left < 60 - 0.3


def test_sleeping_is_late_too(links):
    s = links("import time\ndef f(): time.sleep(60)\ndef nap(): time.sleep(0.8)", request_seconds=0.25)
    began = time.monotonic()
    with pytest.raises(WorkerGone, match="did not finish"):
        s.f()
    assert 0.9 < time.monotonic() - began < 20
    left = s.link.wall.left
    s.nap()
    assert s.link.wall.left < left - 0.08  # and a nap is not free


def test_the_time_of_the_grader_does_not_count(links):
    s = links("def f(g): return g()", request_seconds=0.25)
    assert s.f(lambda: time.sleep(1.5)) is None


def test_a_function_handed_in_is_not_called_for_ever(links, monkeypatch):
    from llmkata.outside import worker

    monkeypatch.setattr(worker, "_MOST_CALLBACKS", 100)
    s = links("def f(g, n):\n    for _ in range(n): g()\n    return n")
    assert s.f(lambda: None, 100) == 100
    with pytest.raises(WorkerGone, match="more than 100 times"):
        s.f(lambda: None, 101)


def test_reading_a_large_answer_costs_its_own_time(links):
    s = links("def f(): return [[] for _ in range(200_000)]\ndef g(): return []")
    s.g()
    before = s.link.wall.left
    s.g()
    small, before = before - s.link.wall.left, s.link.wall.left
    assert len(s.f()) == 200_000
    assert before - s.link.wall.left > small + 0.1


def test_one_wall_for_all_workers(links):
    s = links("def f():\n    while True: pass\ndef g():\n    while True: pass\ndef h(): return 1", request_seconds=0.3, wall_seconds=0.5)
    other = links("def h(): return 1")
    other.link.wall = s.link.wall
    for name in ("f", "g"):
        with pytest.raises(WorkerGone):
            getattr(s, name)()
    for who in (s, other):
        with pytest.raises(WorkerGone, match=r"limit of the whole exercise \(0.5 s\)"):
            who.h()


def test_memory_is_limited(links):
    s = links('''
        import numpy as np, torch
        kept = []
        def fits(): return float(np.ones(1 << 22).sum())
        def numpy(): return float(np.ones(1 << 26).sum())
        def torch_(): return torch.ones(1 << 26).sum()
        def python():
            while True: kept.append(bytearray(1 << 20))
    ''', policy={"memory_bytes": 100 << 20})
    assert s.fits() == 1 << 22
    for name in ("numpy", "torch_", "python"):
        with pytest.raises(WorkerGone, match="used up the 100 MiB of memory") as e:
            getattr(s, name)()
        assert e.value.kind == "memory"
    assert s.fits() == 1 << 22


def test_a_function_that_fills_the_memory_is_tried_with_other_inputs_for_a_while(links):
    s = links('''
        def f(n):
            kept = []
            while len(kept) < n: kept.append(bytearray(1 << 20))
            return len(kept)
    ''', policy={"memory_bytes": 100 << 20}, wall_seconds=1.0)
    with pytest.raises(WorkerGone, match="used up the 100 MiB"):
        s.f(10_000)
    assert s.f(3) == 3
    s.link.wall.filling["f"] = 0.126
    with pytest.raises(WorkerGone, match="used up the 100 MiB"):
        s.f(10_000)
    with pytest.raises(WorkerGone, match="`f` is not run again"):
        s.f(3)


def test_the_sandbox_stands(links):
    s = links('''
        import os, socket, sys
        def read(path): return open(path).read()
        def connect(): socket.create_connection(("127.0.0.1", 9), 1)
        def spawn(): os.fork()
        def look(): return sorted(os.listdir("/proc/self/fd")), dict(os.environ), sys.argv, os.getcwd()
    ''')
    s.link.open()
    assert {"close_range", "rlimit"} <= set(s.link.layers)
    for call in (lambda: s.read(__file__), s.connect, s.spawn):
        with pytest.raises(RemoteError) as e:
            call()
        assert e.value.is_a(OSError)
    _, environment, argv, cwd = s.look()
    assert argv == ["learner_0.py"] and not {"PYTEST_CURRENT_TEST", "PYTHONPATH", "VIRTUAL_ENV"} & set(environment)
    assert environment["OMP_NUM_THREADS"] == "1" and cwd == environment["HOME"] == environment["TMPDIR"]


def test_files_a_submission_wrote(links):
    s = links("def write():\n    open('x.bin', 'wb').write(bytes(range(9)))")
    s.write()
    assert s.read_file("x.bin") == bytes(range(9)) and s.read_file("x.bin", limit=2) == b"\0\1"
    with pytest.raises(RemoteError):
        s.read_file("/etc/hostname")


def test_frames_of_other_kinds_break_the_protocol(links):
    s = links("def f(): return 1")
    s.link.open()
    s.link._exchange = lambda request: (Kind.result, encode({"value": 1}))
    assert s.f() == 1
    for answer in (b"junk", encode(5), encode({}), encode({"value": 1, "printed": 5}), encode({"value": 1, "banned": [5]})):
        s.link._exchange = lambda request, answer=answer: (Kind.result, answer)
        with pytest.raises(WorkerGone, match="broke the protocol"):
            s.f()
    del s.link._exchange
    assert s.f() == 1


@pytest.mark.parametrize("error", [5, {}, {"type": "E"}, {"type": "E", "bases": [1], "message": "", "frames": []},
                                   {"type": "E", "bases": [], "message": "", "frames": [[1, 2]]},
                                   {"type": "E", "bases": [], "message": "", "frames": [[float("inf"), "f", "x"]]}])
def test_errors_without_their_parts(links, error):
    s = links("def f(): return 1")
    s.link.open()
    s.link._exchange = lambda request: (Kind.error, encode({"value": error}))
    with pytest.raises(WorkerGone, match="an error without its parts"):
        s.f()


def test_texts_of_errors_are_bounded_and_can_be_stored(links):
    s = links("def f(): raise type('E' * 10_000, (Exception,), {})('\\ud800' + 'x' * 100_000)")
    with pytest.raises(RemoteError) as e:
        s.f()
    assert len(e.value.type_name) < 300 and len(e.value.message) < 5000
    str(e.value).encode("utf-8")


def test_names_that_are_none(links):
    s = links("def f(): return 1")
    for names in (5, {"functions": ["f"], "classes": [], "values": [1]}, {"functions": []}, []):
        s.link._exchange = lambda request, names=names: (Kind.result, encode({"value": names}))
        with pytest.raises(WorkerGone, match="broke the protocol"):
            s.link.open()


def test_a_dead_worker_is_told_of_at_the_next_request(links):
    """It answered, then ended: what comes next is a death, not a fault of ours."""
    s = links('''
        import os, signal
        def f():
            signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            return 1
        def g(): return 2
    ''')
    assert s.f() == 1
    time.sleep(0.4)
    with pytest.raises(WorkerGone, match="ended by itself"):
        s.g()


def test_proxies_of_a_dead_worker_release_nothing_of_the_next(links):
    s = links("import os\nclass A:\n    def who(self): return 'A'\ndef die(): os._exit(0)")
    old = s.A()
    with pytest.raises(WorkerGone):
        s.die()
    new = s.A()
    assert new._id == old._id
    del old
    gc.collect()
    assert new.who() == "A"


# ---- measured calls -----------------------------------------------------------------------------------------------


MEASURED = '''
    import numpy as np
    class Box:
        def fill(self, mib):
            a = np.ones(mib << 17)
            return float(a[0])
    def nothing(x): return x
    def work(n):
        total = 0
        for i in range(n): total += i
        return total
'''


def test_peaks_are_read_from_outside(links):
    s = links(MEASURED)
    s.link.meter = Meter("traced_peak")
    for _ in range(2):
        s.Box().fill(8)
        s.nothing(np.ones(1 << 17))
    last = s.link.meter.calls[-3:]
    assert [c.reading > 8e6 for c in last] == [False, True, False]
    assert last[1].peak_bytes == pytest.approx(8 << 20, rel=0.1) and last[2].peak_bytes < 1 << 20


def test_what_was_freed_before_hides_no_peak(links):
    """Workers keep what they free, for speed: it must be gone before memory is read from outside."""
    s = links('''
        import ctypes
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        libc.free.argtypes = [ctypes.c_void_p]
        def churn(mib):
            blocks = [libc.malloc(ctypes.c_size_t(1 << 20)) for _ in range(mib)]
            for b in blocks: ctypes.memset(b, 1, 1 << 20)
            for b in blocks: libc.free(b)
        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * 4096
    ''', policy={"disable": ["mountns", "landlock"]})
    before = s.resident()
    s.churn(24)
    assert s.resident() - before > 20 << 20
    for _ in range(2):
        s.link.meter = Meter("traced_peak")
        s.churn(8)
        assert s.link.meter.calls[-1].peak_bytes == pytest.approx(8 << 20, rel=0.1)
        s.link.meter = None
    assert s.resident() - before < 4 << 20


def test_bytes_that_tracemalloc_does_not_see_are_seen(links):
    s = links('''
        import mmap, ctypes
        def hidden(mib):
            m = mmap.mmap(-1, mib << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            for i in range(0, mib << 20, 4096): m[i] = 1
            return 1
        def malloc(mib):
            libc = ctypes.CDLL(None)
            libc.malloc.restype = ctypes.c_void_p
            p = libc.malloc(ctypes.c_size_t(mib << 20))
            ctypes.memset(p, 1, mib << 20)
            libc.free(ctypes.c_void_p(p))
            return 1
    ''')
    s.link.meter = Meter("traced_peak")
    for name in ("hidden", "malloc"):
        getattr(s, name)(8)
        call = s.link.meter.calls[-1]
        assert call.reading < 1e5 and call.peak_bytes == pytest.approx(8 << 20, rel=0.1)


def test_work_before_and_after_the_call_counts(links):
    """A lazy answer is computed where it is written, an eager one where the arguments are read."""
    s = links('''
        import enum, gc
        import numpy as np
        from llmkata.inside.session import Session
        class Lazy(enum.Enum):
            later = 1
            @property
            def value(self):
                a = np.ones(8 << 17)
                return sum(i for i in range(300_000)) + int(a[0])
        def lazy(): return Lazy.later
        session = next(o for o in gc.get_objects() if type(o) is Session)
        prepare = session._prepare
        def early(request):
            np.ones(8 << 17)
            sum(i for i in range(300_000))
            prepare(request)
        def eager(): return 1
        def arm():
            session._prepare = early
    ''')
    for name in ("lazy", "eager"):
        s.link.meter = Meter("traced_peak")
        getattr(s, name)()
        call = s.link.meter.calls[-1]
        assert call.reading < 1e5 and call.peak_bytes > 7 << 20 and call.cpu_seconds > 0.005
        s.link.meter = None
        s.arm()


def test_clock_and_steps(links):
    s = links(MEASURED)
    s.link.meter = Meter("steps")
    for n in (1000, 2000):
        s.work(n)
    a, b = (c.reading for c in s.link.meter.calls)
    assert b - a == pytest.approx(a, rel=0.1) and a > 1000
    s.link.meter = Meter(None)
    s.work(10), s.work(3_000_000)
    assert s.link.meter.calls[1].cpu_seconds > 20 * s.link.meter.calls[0].cpu_seconds


def test_only_calls_are_measured(links):
    s = links(MEASURED)
    s.link.meter = Meter(None)
    with pytest.raises(WireError, match="only calls"):
        s.vjp("nothing", (1,))
    with pytest.raises(WireError, match="no options"):
        s.call("nothing", 1, echo=True)


# ---- processes and templates --------------------------------------------------------------------------------------


def test_spawned_and_forked_are_the_same_worker(links, monkeypatch):
    from llmkata.outside import worker

    monkeypatch.setattr(worker, "start_process", SpawnedProcess)
    s = links("def f(x): return x + 1\ndef loop():\n    while True: pass\ndef die():\n    import os\n    os._exit(0)",
              request_seconds=0.4)
    assert s.f(1) == 2 and {"close_range", "rlimit"} <= set(s.link.layers)
    with pytest.raises(WorkerGone, match="did not finish"):
        s.loop()
    with pytest.raises(WorkerGone, match="ended by itself"):
        s.die()
    monkeypatch.setattr(SpawnedProcess, "tells_peak", False)  # as on other systems
    s.link.meter = Meter("traced_peak")
    s.f(1)
    assert s.link.meter.calls[0].peak_bytes is None and s.link.meter.calls[0].cpu_seconds >= 0


def test_an_import_that_fails_fails_again_in_the_same_words(links):
    s = links("raise ValueError('at import')")
    for _ in range(2):
        with pytest.raises(RemoteError, match="at import"):
            s.link.open()


def test_a_worker_that_cannot_start_says_why():
    with pytest.raises(TemplateFailed, match="(?s)did not start.*no such layer"):
        Process("base", {"disable": ["walls"]})


def test_scratch_is_gone_afterwards(links):
    import os

    process = Process("base", {})
    scratch = process._scratch
    assert os.path.isdir(scratch)
    first = process.kill()
    assert not os.path.exists(scratch) and process.kill() is first and first["status"] == 9


def test_layouts_of_answers(links):
    s = links("import torch\ndef f(): return torch.arange(6).reshape(2, 3).t()")
    got = s.f()
    assert got.stride() == (1, 3) and decode(encode(got)).tolist() == [[0, 3], [1, 4], [2, 5]]


def test_templates_are_shared():
    assert template("base") is template("base")


def test_prints_are_kept_up_to_the_courses_limit(links):
    s = links("def f(): print('x' * 50)", policy={"output": 20})
    s.f()
    assert s.link.printed == ["x" * 20 + "\n[... 31 more characters were printed and are not kept]"]


def test_the_limits_of_a_course_reach_its_workers():
    from llmkata.plugin.runs import ExerciseRun, Setting

    from ..toy.harness import COURSE, SOLUTION, TOY

    run = ExerciseRun(TOY, Setting("worker", limits=COURSE.limits), SOLUTION.encode(), "toy.py")
    assert run.policy()["output"] == run.link.print_cap == 64 << 10
    assert run.policy()["memory_bytes"] == 256 << 20
