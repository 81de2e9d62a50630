"""A warm interpreter that forks workers: importing torch costs seconds, forking a process that has it milliseconds.

Started by exec of a fresh interpreter, it imports the libraries of its profile, warms what is slow the first time, and
then answers fork requests on a control socket. It runs no parallel region before a fork (a thread pool does not
survive one), never initialises CUDA, and never holds anything of a grader.
"""

from __future__ import annotations

import array
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys

#: What a profile imports on top of torch and NumPy, and warms.
PROFILES = ("base", "optim", "matplotlib", "transformers", "text", "numba")
#: Those whose workers may train. Others need not wait for what that imports, nor copy it.
_TRAIN = ("optim", "matplotlib", "transformers")


def warm(profile: str) -> None:
    """Import and touch what workers of ``profile`` use, so that each fork shares it. Raises ValueError for another."""
    if profile not in PROFILES:
        raise ValueError(f"no profile is called {profile!r}; there are {', '.join(PROFILES)}")
    import numpy
    import torch
    import torch.testing
    import torch.utils.flop_counter

    from llmkata.inside import sandbox, worker  # noqa: F401
    from llmkata.inside.rehearsal import rehearse

    torch.set_num_threads(1)
    x = torch.ones(2, 2, requires_grad=True)
    (x @ x).sum().backward()
    rehearse()
    if profile in _TRAIN:
        # An optimiser's first step imports torch._dynamo (1 s; in a sandboxed worker 2-4 s).
        torch.optim.AdamW([x]).step()
    if profile == "matplotlib":
        import io

        from matplotlib import pyplot

        figure, axes = pyplot.subplots()
        axes.imshow([[0.0, 1.0]])
        figure.savefig(io.BytesIO(), format="png")
        pyplot.close(figure)
    if profile == "text":
        import nltk.tokenize
        import spacy

        spacy.blank("en")("Warm.")
        nltk.tokenize.wordpunct_tokenize("Warm.")
    if profile == "numba":
        # No GPU is touched here: kernels run in Numba's simulator, which must be chosen before the import.
        os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
        import array_api_compat.numpy
        import array_api_compat.torch  # noqa: F401
        from numba import cuda

        cuda.jit(lambda out: None)[1, 1](numpy.zeros(1))
    if profile == "transformers":
        import transformers.models.gpt2.modeling_gpt2
        import transformers.models.llama.modeling_llama  # noqa: F401


def main(control_fd: int, profile: str) -> None:
    """Serve fork requests on the control socket, and on those attached later, until the first one closes; once retired,
    until the others have closed and its own workers are reaped."""
    from llmkata.inside.allocator import keep
    from llmkata.inside.pages import MANY, collapse
    from llmkata.inside.sandbox.privileges import close_to_others

    close_to_others(True)
    gc.disable()  # nothing of a library is garbage; looking for it takes a fifth of the time that importing does
    first = socket.socket(fileno=control_fd)
    warm(profile)
    keep()
    gc.collect()
    gc.freeze()
    gc.enable()
    first.send(b'{"ready": true}')
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    controls = {first.fileno(): _Control(first)}
    poll = select.poll()
    poll.register(first, select.POLLIN)
    asked = 0
    while True:
        for fd, _ in poll.poll():
            try:
                there, attached = _answer(controls[fd], controls)
            except OSError:  # whoever asked is gone
                there, attached = False, None
            asked += 1
            if asked == 2 * MANY:  # to fork, and to reap
                collapse()
            if attached is not None:
                controls[attached.fileno()] = _Control(attached)
                poll.register(attached, select.POLLIN)
            if not there:
                if controls[fd].socket is first:
                    return
                poll.unregister(fd)
                controls.pop(fd).close()
        own = controls[control_fd]
        if own.retired and len(controls) == 1 and not own.workers:
            return


class _Control:
    """A control socket, and the workers forked at its word that were not reaped yet: they end with it."""

    def __init__(self, control: socket.socket) -> None:
        self.socket = control
        self.workers: set[int] = set()
        self.retired = False

    def close(self) -> None:
        self.socket.close()
        for pid in self.workers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _answer(control: _Control, controls: dict[int, _Control]) -> tuple[bool, socket.socket | None]:
    """Do what is asked -> (whether somebody is still there, a control socket that was handed over)."""
    message, fds = _receive(control.socket)
    if not message:
        return False, None
    request = json.loads(message)
    if request["op"] == "attach":
        return True, socket.socket(fileno=fds[0])
    if request["op"] == "retire":
        control.retired, answer = True, {}
    elif request["op"] == "fork":
        answer = _fork(control, controls, fds, request["policy"])
    else:
        answer = _reap(control, request["pid"])
    control.socket.send(json.dumps(answer).encode())
    return True, None


def _fork(control: _Control, controls: dict[int, _Control], fds: list[int], policy: dict) -> dict:
    from llmkata.inside import sandbox

    pid = sandbox.fork(policy)
    if pid == 0:
        for c in controls.values():
            c.socket.close()
        _child(fds, policy)
    control.workers.add(pid)
    for fd in fds:
        os.close(fd)
    return {"pid": pid}


def _reap(control: _Control, pid: int) -> dict:
    control.workers.discard(pid)
    try:
        _, status, usage = os.wait4(pid, 0)
    except ChildProcessError:
        return {"status": None, "cpu": 0.0}
    return {"status": status, "cpu": usage.ru_utime + usage.ru_stime}


def _receive(control: socket.socket) -> tuple[bytes, list[int]]:
    message, ancillary, _, _ = control.recvmsg(1 << 16, socket.CMSG_SPACE(16))
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return message, list(fds)


def _child(fds: list[int], policy: dict) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        # What runs there is for the trusted side to say; nothing but ``inside`` is imported for a learner.
        importlib.import_module(policy.get("role", "llmkata.inside.worker")).serve(fds[0], fds[0], policy)
    except BaseException:  # noqa: BLE001 - a forked child must never return into the template's loop
        import traceback

        traceback.print_exc()
    finally:
        os._exit(4)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
