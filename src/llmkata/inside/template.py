"""A warm interpreter that forks workers: importing torch costs seconds, forking a process that has it milliseconds.

Started by exec of a fresh interpreter, it imports the libraries of its profile, warms what is slow the first time, and
then answers fork requests on a control socket. It runs no parallel region before a fork (a thread pool does not
survive one), never initialises CUDA, and never holds anything of a grader.
"""

from __future__ import annotations

import array
import gc
import json
import os
import select
import signal
import socket
import sys

#: What a profile imports on top of torch and NumPy, and warms.
PROFILES = ("base", "matplotlib", "transformers")


def warm(profile: str) -> None:
    """Import and touch what workers of ``profile`` use, so that each fork shares it."""
    import numpy  # noqa: F401
    import torch
    import torch.testing  # noqa: F401  (0.6 s)
    import torch.utils.flop_counter  # noqa: F401

    from llmkata.bench import replay  # noqa: F401
    from llmkata.inside import sandbox, session, worker  # noqa: F401

    torch.set_num_threads(1)
    x = torch.ones(2, 2, requires_grad=True)
    (x @ x).sum().backward()
    # An optimiser's first step imports torch._dynamo (2-4 s).
    torch.optim.AdamW([x]).step()
    if profile == "matplotlib":
        import io

        from matplotlib import pyplot

        figure, axes = pyplot.subplots()
        axes.imshow([[0.0, 1.0]])
        figure.savefig(io.BytesIO(), format="png")
        pyplot.close(figure)
    if profile == "transformers":
        import transformers.models.gpt2.modeling_gpt2
        import transformers.models.llama.modeling_llama  # noqa: F401


def main(control_fd: int, profile: str) -> None:
    """Serve fork requests on the control socket, and on those attached later, until the first one closes."""
    first = socket.socket(fileno=control_fd)
    warm(profile)
    gc.collect()
    gc.freeze()
    first.send(b'{"ready": true}')
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    controls = {first.fileno(): first}
    poll = select.poll()
    poll.register(first, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            control = controls[fd]
            message, fds = _receive(control)
            if not message:
                if control is first:
                    return
                poll.unregister(fd)
                controls.pop(fd).close()
                continue
            request = json.loads(message)
            if request["op"] == "attach":
                control = socket.socket(fileno=fds[0])
                controls[fds[0]] = control
                poll.register(control, select.POLLIN)
            elif request["op"] == "fork":
                _fork(control, controls, fds, request["policy"])
            elif request["op"] == "reap":
                _reap(control, request["pid"])


def _fork(control: socket.socket, controls: dict[int, socket.socket], fds: list[int], policy: dict) -> None:
    pid = os.fork()
    if pid == 0:
        for c in controls.values():
            c.close()
        _child(fds, policy)
    for fd in fds:
        os.close(fd)
    control.send(json.dumps({"pid": pid}).encode())


def _reap(control: socket.socket, pid: int) -> None:
    try:
        _, status, usage = os.wait4(pid, 0)
        answer = {"status": status, "cpu": usage.ru_utime + usage.ru_stime}
    except ChildProcessError:
        answer = {"status": None, "cpu": 0.0}
    control.send(json.dumps(answer).encode())


def _receive(control: socket.socket) -> tuple[bytes, list[int]]:
    message, ancillary, _, _ = control.recvmsg(1 << 16, socket.CMSG_SPACE(16))
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return message, list(fds)


def _child(fds: list[int], policy: dict) -> None:
    if policy.get("role") == "bench":
        from llmkata.bench.process import serve
    else:
        from llmkata.inside.worker import serve

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        serve(fds[0], fds[0], policy)
    except BaseException:  # noqa: BLE001 - a forked child must never return into the template's loop
        import traceback

        traceback.print_exc()
    finally:
        os._exit(4)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
