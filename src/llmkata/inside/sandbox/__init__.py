"""The sandbox a learner's process enters before it runs anything of the learner.

`enter` sets up the layers one after the other. Each may be missing on a host; what stands, and why the others do not,
is in the `Entered` it returns. Nothing here imports more than the standard library.
"""

from __future__ import annotations

import os

from . import namespaces, seccomp, syscalls
from .entry import Entry
from .paths import default_read_paths
from .policy import LAYERS, Entered, Grants, Policy

__all__ = ["LAYERS", "Entered", "Grants", "Policy", "default_read_paths", "enter", "fork"]


def enter(policy: Policy) -> Entered:
    """Confine this process and all it will start; return what stands.

    To be called in a single-threaded process, freshly forked by a thread that outlives it: the process is killed when
    that thread ends. Where pid namespaces are allowed and `fork` made none the call forks: it returns in the child, and
    the caller's process stays behind as the child's reaper, with its exit status; killing either ends both. The working
    directory becomes the scratch directory.
    A layer the host refuses is reported in `Entered.missing`, never raised.
    """
    return Entry(policy).run()


def fork(policy: dict) -> int:
    """As ``os.fork``, for a child that enters by ``policy`` at once (plain data, see `Policy.from_dict`).

    Where the policy wants a pid namespace and root forks, the child is the first process of one, and entering need not
    fork again: each fork of a large process costs milliseconds. The child's ``policy`` then says so.
    """
    if policy.get("isolation", "sandbox") == "sandbox" and "pidns" not in policy.get("disable", ()):
        try:
            pid, parent = namespaces.fork_as_first()
        except (OSError, AttributeError):  # not allowed, or another system
            return os.fork()
        if pid == 0:
            policy["parent_fd"] = parent
        return pid
    return os.fork()


# Built once on import, so that the forks of a template find it.
Policy.from_dict({"scratch": "/nonexistent"})
if syscalls.supported():
    for _grants in (Grants(), Grants(threads=1)):
        seccomp.program(seccomp.Filter.of(_grants, signals=False, pid=1))
