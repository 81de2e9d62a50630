"""What a learner's process may do (`Policy`), and what came of it (`Entered`)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields

LAYERS = ("close_range", "session", "userns", "mountns", "netns", "ipcns", "pidns",
          "privileges", "landlock", "rlimit", "seccomp")
PROCESS_LAYERS = ("close_range", "session", "rlimit")  # all that isolation="process" sets up

MIB = 2**20


@dataclass(frozen=True)
class Grants:
    """What an exercise may do beyond plain computation. Everything is off by default.

    threads: start threads.  processes: how many child processes may live at once.
    exec: "python" lets it execute the interpreter it runs under, and nothing else.
    loopback: IPv4 sockets in a network namespace of its own, with nothing but ``lo`` in it.
    server: a listening loopback socket, made before the learner's code, for the trusted side to serve behind.
    """

    threads: bool = False
    processes: int = 0
    exec: str | None = None
    loopback: bool = False
    server: bool = False

    def __post_init__(self) -> None:
        if self.exec not in (None, "python"):
            raise ValueError(f"grant exec: expected 'python', got {self.exec!r}")
        if not 0 <= int(self.processes) <= 64:
            raise ValueError(f"grant processes: expected 0 to 64, got {self.processes!r}")


@dataclass(frozen=True)
class Policy:
    """Limits and permissions of one learner's process. Sizes are in bytes, times in seconds.

    read_paths: files and directories that may be read.  scratch: an existing directory, the only writable place; where
    mount namespaces are allowed it is a fresh tmpfs of `scratch_bytes` and `scratch_files`, else the directory itself.
    keep_fds: descriptors that stay open (the channel); all others are closed, 0 to 2 become /dev/null unless kept.
    memory_bytes: private writable memory above what the process has on entering.
    isolation: "full", or "process" (descriptors, session and limits only).
    disable: names of `LAYERS` to leave out, for negative controls.
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
    isolation: str = "full"
    disable: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.isolation not in ("full", "process"):
            raise ValueError(f"isolation: expected 'full' or 'process', got {self.isolation!r}")
        if unknown := self.disable - set(LAYERS):
            raise ValueError(f"disable: no such layer: {', '.join(sorted(unknown))}")
        scratch = os.path.realpath(self.scratch)
        for path in map(os.path.realpath, self.read_paths):
            # The new root is assembled on top of the scratch directory: neither may contain the other.
            if os.path.commonpath([scratch, path]) in (scratch, path):
                raise ValueError(f"scratch {self.scratch} and read path {path} contain one another")

    @classmethod
    def from_dict(cls, d: dict) -> Policy:
        """Build from plain data. Raises ValueError on an unknown key, grant or layer."""
        known = {f.name for f in fields(cls)}
        grants_known = {f.name for f in fields(Grants)}
        grants = d.get("grants") or {}
        if unknown := (set(d) - known) | (set(grants) - grants_known):
            raise ValueError(f"sandbox policy: unknown: {', '.join(sorted(unknown))}")
        return cls(**{**d, "read_paths": tuple(d["read_paths"]), "keep_fds": tuple(d.get("keep_fds", ())),
                      "grants": Grants(**grants), "disable": frozenset(d.get("disable", ()))})

    def wants(self, layer: str) -> bool:
        """Whether this policy asks for `layer`."""
        return layer not in self.disable and (self.isolation == "full" or layer in PROCESS_LAYERS)


@dataclass
class Entered:
    """The sandbox as it stands.

    layers: those in force, in the order they were set up.
    missing: to the reason, a layer that is not, ``grant:<name>`` for one that could not be given, ``landlock:<what>`` for
    what this kernel's Landlock leaves open.
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
