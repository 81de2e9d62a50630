"""What of the sandbox this host offers, found out by entering it once in a trial process."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

_USERNS = ("allow unprivileged user namespaces: sysctl user.max_user_namespaces above 0; where AppArmor restricts them "
           "(Ubuntu 23.10 and later) sysctl kernel.apparmor_restrict_unprivileged_userns=0; in Docker run with "
           "--security-opt seccomp=unconfined --security-opt apparmor=unconfined; or grade as root")
_LINUX = "grade on Linux, on x86-64 or aarch64"

#: Layer: what it stops, how to get it where it is missing. In the order of `llmkata.inside.sandbox.LAYERS`.
_LAYERS = {
    "close_range": ("reading or writing through descriptors inherited from the grader", _LINUX),
    "session": ("input to the grader's terminal; the grader being killed first when memory runs out",
                "grade on Linux or macOS"),
    "netns": ("every network connection, to this machine too", _USERNS),
    "ipcns": ("shared memory, semaphores and message queues of other processes", _USERNS),
    "pidns": ("seeing or signalling other processes; processes that outlive the check", _USERNS),
    "mountns": ("names, sizes and contents of all files but libraries; filling the disk", _USERNS),
    "userns": ("privileges outside; more tasks than granted", _USERNS),
    "privileges": ("acting as root, regaining privileges by executing a file",
                   "grade as an ordinary user, or make the libraries readable for other users"),
    "landlock": ("opening any file off the allow-list, writing outside scratch, TCP, signals to others",
                 "Linux 5.13 or later with landlock in CONFIG_LSM (boot with lsm=landlock,...); 6.12 for all of it"),
    "rlimit": ("memory, processor time, files and file sizes beyond the exercise's limits", "grade on Linux or macOS"),
    "seccomp": ("system calls a computation does not need: sockets, fork, exec, ptrace, memfd, io_uring, ...", _LINUX),
}

#: Grant of course.yaml: what an exercise may do with it.
_GRANTS = {
    "processes": "start child processes",
    "exec": "execute the Python interpreter",
    "loopback": "open sockets on a loopback interface of its own",
    "server": "talk to a server of the grader",
}


@dataclass(frozen=True)
class LayerStatus:
    """One layer of the sandbox, or one grant (``grant:<name>``), on this host.

    name; available: it stands.  stops: what it keeps learner code from (for a grant: what it permits).
    why_missing: the system's reason, "" where available.  how_to_get: what to do about it.
    """

    name: str
    available: bool
    stops: str
    why_missing: str
    how_to_get: str


def probe_host(timeout: float = 30.0) -> list[LayerStatus]:
    """Every layer, every grant, and what this kernel's Landlock leaves open.

    Starts an interpreter that forks a trial process, which enters the sandbox. `timeout` in seconds; a trial that fails
    or does not end leaves every layer unavailable, with what it printed as the reason.
    """
    command = [sys.executable, "-I", "-m", "llmkata.inside.sandbox"]
    try:
        run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout,
                             check=False)
        stands = json.loads(run.stdout)
    except subprocess.TimeoutExpired:
        return _nothing(f"the trial did not end within {timeout:g} s")
    except ValueError:
        return _nothing(run.stderr.strip()[-500:] or f"the trial ended with status {run.returncode} and no answer")
    return _statuses(stands["layers"], stands["missing"])


def _nothing(reason: str) -> list[LayerStatus]:
    return _statuses([], dict.fromkeys(_LAYERS, reason))


def _statuses(layers: list[str], missing: dict[str, str]) -> list[LayerStatus]:
    rows = [LayerStatus(name, name in layers, stops, missing.get(name, ""), "" if name in layers else how)
            for name, (stops, how) in _LAYERS.items()]
    for name, permits in _GRANTS.items():
        # A trial without its layers says nothing about grants: none can be given safely.
        reason = missing.get(f"grant:{name}", "" if "seccomp" in layers else "needs the layers above")
        how = reason and "make the layer it needs available"
        rows.append(LayerStatus(f"grant:{name}", not reason, f"permits: {permits}", reason, how))
    for name, reason in missing.items():
        if name.startswith("landlock:"):
            what = name.removeprefix("landlock:")
            rows.append(LayerStatus(name, False, what, reason, "a later Linux (6.12 has all of Landlock)"))
    return rows
