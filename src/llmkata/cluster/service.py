"""In a Dask worker: the plugin that holds the helper, and the functions that the client calls there."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO

import msgspec
from distributed import Worker, WorkerPlugin, get_worker

from .bundle import cached, unpack
from .helper import Hello, Reply
from .pipe import Gone, receive, send
from .versions import versions

#: Seconds that a helper has to end by itself.
_PATIENCE = 5.0


class LotLost(RuntimeError):
    """The helper did not grade a lot; the message says what became of it."""


class Inspection(msgspec.Struct):
    """What the client wants to know of a worker before it sends anything."""

    versions: dict[str, str]
    has_bundle: bool


class Service(WorkerPlugin):
    """The helper of one course on one worker: started by exec, again where it has ended, ended with the worker."""

    def __init__(self, root: Path, isolation: str, at_once: int) -> None:
        self._arguments = [str(root), isolation, str(at_once)]
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._printed: IO[bytes] | None = None

    def ready(self) -> str:
        """Have a helper that is warm -> why there is none, "" where there is one."""
        with self._lock:
            return self._started()

    def grade(self, work: bytes) -> list[bytes]:
        """Encoded records of a lot. Raises LotLost."""
        with self._lock:
            why = self._started()
            if why:
                raise LotLost(why)
            try:
                send(self._process.stdin.fileno(), work)
                reply = msgspec.msgpack.decode(self._receive(), type=Reply)
            except Gone:
                raise LotLost(self._ended()) from None
        if reply.fault:
            raise LotLost(reply.fault)
        return reply.records

    def teardown(self, worker: Worker) -> None:
        """Dask calls this when the worker ends; a lot in progress is lost."""
        process = self._process
        if process is not None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)
            process.kill()

    def _started(self) -> str:
        if self._process is not None and self._process.poll() is None:
            return ""
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        # What the worker knows of the cluster stays with it; the helper passes on no environment of its own anyway.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DASK_")}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-m", "llmkata.cluster.helper", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
        try:
            hello = msgspec.msgpack.decode(self._receive(), type=Hello)
        except Gone:
            return self._ended()
        if hello.why:
            self._process.wait()
        return hello.why

    def _receive(self) -> bytes:
        return receive(self._process.stdout.fileno(), alive=lambda: self._process.poll() is None)

    def _ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE)
        status = self._process.poll()
        how = f"by signal {-status} ({signal.strsignal(-status)})" if status and status < 0 else f"with status {status}"
        self._printed.seek(0)
        printed = self._printed.read()[-2000:].decode("utf-8", "replace").strip()
        return f"the process that grades beside the worker ended {how}" + (f":\n{printed}" if printed else "")


def service_name(digest: str, isolation: str, own: dict[str, str]) -> str:
    """Name of the plugin on a worker, and of the resource that tells Dask which workers may be sent lots: of a bundle,
    by programs of these versions.
    """
    return "llmkata-" + hashlib.sha256(f"{digest} {isolation} {sorted(own.items())}".encode()).hexdigest()[:16]


def inspect(digest: str) -> Inspection:
    """Called on a worker by the client."""
    return Inspection(versions(), cached(digest) is not None)


async def enlist(digest: str, data: bytes, isolation: str, dask_worker: Worker) -> str:
    """Called on a worker by the client: have the service -> why not, "" where the worker may now be sent lots.

    ``data``: the bundle, empty where :func:`inspect` says that it is there.
    """
    name = service_name(digest, isolation, versions())
    if name not in dask_worker.plugins:
        try:
            root = await asyncio.to_thread(unpack, digest, data)
        except (ValueError, OSError) as error:
            return str(error)
        if data:
            dask_worker.log_event("llmkata", {"unpacked": digest, "bytes": len(data)})
        if name not in dask_worker.plugins:  # unless another client was faster
            await dask_worker.plugin_add(Service(root, isolation, dask_worker.state.nthreads), name)
    why = await asyncio.to_thread(dask_worker.plugins[name].ready)
    if not why:
        # One lot at a time, of as many submissions as the worker has threads.
        await dask_worker.set_resources(**{name: 1})
    return why


def grade_lot(name: str, work: bytes) -> list[bytes]:
    """The task that Dask runs: encoded records of a lot. Raises LotLost."""
    return get_worker().plugins[name].grade(work)
