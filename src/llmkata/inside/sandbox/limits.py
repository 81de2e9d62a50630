"""Resource limits of the process.

RLIMIT_DATA counts private writable memory, which is what a computation asks for. It does not count shared anonymous
memory or mappings that grow downwards; the system call filter refuses both, and RLIMIT_AS stands behind it, with room
for what libraries reserve and never touch.
"""

from __future__ import annotations

try:
    import resource
except ImportError:  # Windows; not imported later, since inside a new root it may not be found
    resource = None

from .policy import MIB, Policy

_RESERVED_PER_THREAD = 72 * MIB  # 8 MiB of stack and a 64 MiB malloc arena


def baseline() -> dict[str, int]:
    """VmData and VmSize of this process in bytes, from /proc. Raises OSError where there is no /proc."""
    with open("/proc/self/status") as file:
        rows = dict(line.split(":", 1) for line in file)
    return {key: int(rows[key].split()[0]) * 1024 for key in ("VmData", "VmSize")}


def apply(policy: Policy, base: dict[str, int], *, tasks: int | None) -> None:
    """Set the limits. `tasks` bounds the tasks of the user namespace; None where it is not our own. Raises OSError."""
    if resource is None:
        raise OSError("no resource limits on this system")
    memory = base["VmData"] + policy.memory_bytes
    space = base["VmSize"] + 4 * policy.memory_bytes + 1024 * MIB + policy.grants.threads * _RESERVED_PER_THREAD
    wanted = {"DATA": memory, "AS": space, "CPU": policy.cpu_seconds, "NOFILE": policy.max_files,
              "FSIZE": policy.file_size, "CORE": 0, "MEMLOCK": 0, "MSGQUEUE": 0, "NICE": 0, "RTPRIO": 0}
    if tasks is not None:
        # Both are counted per user and user namespace: in a foreign one they would be shared with other processes.
        wanted |= {"NPROC": tasks, "SIGPENDING": 1024}
    for name, value in wanted.items():
        which = getattr(resource, f"RLIMIT_{name}", None)
        if which is None:
            continue
        _, hard = resource.getrlimit(which)
        # Soft equals hard: a soft limit could be lifted again, and a namespace's first process ignores its signal.
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))
