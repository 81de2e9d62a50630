"""What a learner's process may do (`Policy`), and what came of it (`Entered`)."""

from __future__ import annotations

import functools
import math
import os
from dataclasses import dataclass, field, fields

from .paths import default_read_paths

LAYERS = ("close_range", "session", "userns", "mountns", "netns", "ipcns", "pidns",
          "privileges", "landlock", "rlimit", "seccomp")
PROCESS_LAYERS = ("close_range", "session", "rlimit")  # all that isolation="process" sets up

MIB = 2**20


@dataclass(frozen=True)
class Grants:
    """What an exercise may do beyond plain computation. Everything is off by default.

    threads: how many threads may live beside the first.  processes: how many child processes may live at once.
    exec: "python" lets it execute the interpreter it runs under, and nothing else.
    loopback: IPv4 sockets, and asking for the interfaces, in a network namespace of its own with nothing but ``lo``.
    server: a listening loopback socket, made before the learner's code, for the trusted side to serve behind.
    """

    threads: int = 0
    processes: int = 0
    exec: str | None = None
    loopback: bool = False
    server: bool = False

    def __post_init__(self) -> None:
        if self.exec not in (None, "python"):
            raise ValueError(f"grant exec: expected 'python', got {self.exec!r}")
        for name, most in (("threads", 4096), ("processes", 64)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"grant {name}: expected 0 to {most}, got {getattr(self, name)!r}")


@functools.cache  # the libraries' paths are resolved in the template, not in each of its forks
def _resolved(path: str) -> str:
    return os.path.realpath(path)


@dataclass(frozen=True)
class Policy:
    """Limits and permissions of one learner's process. Sizes are in bytes, times in seconds.

    read_paths: files and directories that may be read, the libraries included.
    scratch: an existing directory, the only writable place; where mount namespaces are allowed it is a fresh tmpfs of
    `scratch_bytes` and `scratch_files`, else the directory itself.
    keep_fds: descriptors that stay open (the channel); all others are closed, 0 to 2 become /dev/null unless kept.
    memory_bytes: private writable memory above what the process has on entering.
    isolation: "sandbox", or "process" (descriptors, session and limits only).
    disable: names of `LAYERS` to leave out, for negative controls.
    parent_fd: a descriptor of the process that forked this one, where it made this one the first of a pid namespace of
    its own (`fork`); None where entering does that.
    """

    read_paths: tuple[str, ...]
    scratch: str
    keep_fds: tuple[int, ...] = ()
    memory_bytes: int = 1024 * MIB
    cpu_seconds: int = 60
    file_size: int = 64 * MIB
    max_files: int = 256
    scratch_bytes: int = 64 * MIB
    scratch_files: int = 4096
    grants: Grants = field(default_factory=Grants)
    isolation: str = "sandbox"
    disable: frozenset[str] = frozenset()
    parent_fd: int | None = None

    def __post_init__(self) -> None:
        if self.isolation not in ("sandbox", "process"):
            raise ValueError(f"isolation: expected 'sandbox' or 'process', got {self.isolation!r}")
        if unknown := self.disable - set(LAYERS):
            raise ValueError(f"disable: no such layer: {', '.join(sorted(unknown))}")
        scratch = os.path.realpath(self.scratch)
        for path in map(_resolved, self.read_paths):
            # The new root is assembled on top of the scratch directory: neither may contain the other.
            if scratch == path or scratch.startswith(path + os.sep) or path.startswith(scratch + os.sep):
                raise ValueError(f"scratch {self.scratch} and read path {path} contain one another")

    @classmethod
    def from_dict(cls, d: dict) -> Policy:
        """Build from plain data. Raises ValueError on an unknown key, grant or layer.

        ``read_paths`` is added to `default_read_paths`. ``grants`` is an exercise's grants as course.yaml has them:
        ``memory`` (MiB) and ``cpu`` stand for `memory_bytes` and `cpu_seconds`; ``env`` and ``wall`` are the caller's.
        ``role``, which tells the template what to run, is passed over.
        """
        own = {key: value for key, value in d.items() if key != "role"}
        grants = {key: value for key, value in (own.pop("grants", None) or {}).items() if key not in ("env", "wall")}
        if "memory" in grants:
            own["memory_bytes"] = grants.pop("memory") * MIB
        if "cpu" in grants:
            own["cpu_seconds"] = math.ceil(grants.pop("cpu"))
        known, known_grants = ({f.name for f in fields(c)} for c in (cls, Grants))
        if unknown := (set(own) - known) | (set(grants) - known_grants):
            raise ValueError(f"sandbox policy: unknown: {', '.join(sorted(unknown))}")
        return cls(**{**own, "read_paths": (*default_read_paths(), *own.get("read_paths", ())),
                      "keep_fds": tuple(own.get("keep_fds", ())), "grants": Grants(**grants),
                      "disable": frozenset(own.get("disable", ()))})

    def wants(self, layer: str) -> bool:
        """Whether this policy asks for `layer`."""
        return layer not in self.disable and (self.isolation == "sandbox" or layer in PROCESS_LAYERS)


@dataclass
class Entered:
    """The sandbox as it stands.

    layers: those in force, in the order they were set up.
    missing: name to reason, of a layer that does not stand, of a grant that could not be given (``grant:<name>``), of
    what this kernel's Landlock leaves open (``landlock:<what>``).
    pid: this process as the host sees it (inside a pid namespace ``os.getpid()`` is 1).
    server_fd: the listening socket of the `server` grant, to be passed out and closed before the learner's code.
    """

    layers: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    pid: int = 0
    server_fd: int | None = None

    def has(self, layer: str) -> bool:
        """Whether `layer` is in force."""
        return layer in self.layers
