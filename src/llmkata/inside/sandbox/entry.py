"""The order in which a process is confined.

Descriptors first, since they bypass everything else; namespaces and mounts while there is privilege to make them; then
the privilege goes; Landlock, the limits and the system call filter last, since each would deny the steps before it.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from dataclasses import replace

from . import descriptors, landlock, limits, mounts, namespaces, privileges, seccomp
from .paths import interpreter_files
from .policy import Entered, Policy

_UNAVAILABLE = (OSError, ValueError, AttributeError, ImportError)  # the last two: no such call on this system


class Entry:
    """One entry into the sandbox: the policy as far as it can be granted, and what stands so far."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.entered = Entered(pid=os.getpid())
        self.root = hasattr(os, "geteuid") and os.geteuid() == 0
        self.link: socket.socket | None = None  # to the reaper, where there is a pid namespace
        self.proc: int | None = None  # /proc as it was, for the step that needs it writable

    def run(self) -> Entered:
        parent = os.getppid()
        # What forks workers is closed to others; a worker is measured from outside, and its own /proc is not root's.
        privileges.close_to_others(False)
        self.layer("close_range", lambda: descriptors.close_all_but(self.kept_fds()))
        self.layer("session", descriptors.own_session)
        try:
            memory = limits.baseline()
        except OSError:
            memory = None
        if self.policy.isolation == "sandbox":
            self.namespaces()
            self.loopback()
            self.layer("privileges", self.privileges)
        self.server()
        if self.policy.parent_fd is not None:
            namespaces.tie_to(self.policy.parent_fd)
        elif self.link is not None:
            self.entered.pid = namespaces.tie_to_reaper(self.link)
        elif self.entered.has("session"):
            self.tie_to(parent)
        self.layer("landlock", self.landlock)
        self.layer("rlimit", lambda: limits.apply(self.policy, memory, tasks=self.tasks()))
        self.settle()
        self.layer("seccomp", self.seccomp)
        return self.entered

    def kept_fds(self) -> tuple[int, ...]:
        parent = self.policy.parent_fd
        return self.policy.keep_fds if parent is None else (*self.policy.keep_fds, parent)

    def layer(self, name: str, act: Callable[[], str | None]) -> bool:
        """Set up one layer; `act` returns None, or why the layer does not stand. Returns whether it does."""
        if name in self.policy.disable:
            reason = "switched off"
        elif not self.policy.wants(name):
            reason = f"isolation={self.policy.isolation}"
        else:
            try:
                reason = act()
            except _UNAVAILABLE as error:
                reason = str(error)
        if reason is None:
            self.entered.layers.append(name)
        else:
            self.entered.missing[name] = reason
        return reason is None

    def revoke(self, grant: str, nothing: object, reason: str) -> None:
        """Take back a grant that this host cannot give without opening more than it says."""
        self.policy = replace(self.policy, grants=replace(self.policy.grants, **{grant: nothing}))
        self.entered.missing[f"grant:{grant}"] = reason

    def namespaces(self) -> None:
        # An unprivileged process gets the others through a user namespace of its own. Root makes them directly, since
        # as another user it could not reach every path it has to bind, and takes a user namespace on leaving root.
        if not self.root:
            self.layer("userns", lambda: self.user_namespace("/proc"))
        for name in ("netns", "ipcns"):
            self.layer(name, lambda name=name: namespaces.unshare(name))
        self.layer("pidns", self.pid_namespace)
        if self.policy.grants.processes and not self.entered.has("pidns"):
            self.revoke("processes", 0, "needs pidns")
        self.layer("mountns", self.view)
        if self.policy.grants.exec and not self.entered.has("mountns") and not self.landlock_offered():
            self.revoke("exec", None, "needs mountns or landlock")

    def user_namespace(self, proc: str | int) -> None:
        fd = os.open(proc, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if isinstance(proc, str) else proc
        try:
            namespaces.own_user_namespace(fd)
        finally:
            os.close(fd)

    def pid_namespace(self) -> None:
        if self.policy.parent_fd is not None:
            self.entered.pid = namespaces.host_pid()
            return
        namespaces.unshare("pidns")
        self.link = namespaces.fork_into_pid_namespace()

    def view(self) -> None:
        namespaces.unshare("mountns")
        if self.root:
            self.proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        mounts.build_root(self.policy)

    def loopback(self) -> None:
        """Bring up ``lo``, in our own network namespace only: without one, sockets would reach the host's network."""
        for grant in ("loopback", "server"):
            if getattr(self.policy.grants, grant):
                try:
                    if not self.entered.has("netns"):
                        raise OSError("needs netns")
                    namespaces.loopback_up()
                except OSError as error:
                    self.revoke(grant, False, str(error))

    def server(self) -> None:
        if self.policy.grants.server:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
                listener.bind(("127.0.0.1", 0))
                listener.listen(128)
                self.entered.server_fd = listener.detach()

    def privileges(self) -> str | None:
        try:
            scratch = None if self.entered.has("mountns") else self.policy.scratch
            kept = privileges.leave_root(self.policy.read_paths, scratch)
        except OSError as error:
            kept = str(error)
        if self.root:
            self.layer("userns", lambda: self.user_namespace("/proc" if self.proc is None else self.proc))
        privileges.drop_capabilities()
        return kept and f"root without capabilities: {kept}"

    def settle(self) -> None:
        """Make scratch the place for everything that wants one; name the user, as no password file does."""
        scratch = self.policy.scratch
        os.chdir(scratch)
        tempfile.tempdir = None  # what the parent found
        os.environ |= {"TMPDIR": scratch, "HOME": scratch, "USER": "learner", "LOGNAME": "learner"}

    def tie_to(self, parent: int) -> None:
        try:
            descriptors.die_with_parent()
        except OSError:  # another system: the channel's end of file is what tells us
            return
        if os.getppid() != parent:
            os._exit(1)

    def landlock_offered(self) -> bool:
        try:
            return self.policy.wants("landlock") and landlock.abi() > 0
        except OSError:
            return False

    def landlock(self) -> None:
        privileges.no_new_privs()
        for what in landlock.restrict(self.policy, interpreter_files() if self.policy.grants.exec else ()):
            self.entered.missing[f"landlock:{what}"] = f"this kernel has Landlock ABI {landlock.abi()}"

    def tasks(self) -> int | None:
        """How many tasks our user namespace may hold, the reaper included; None where it is not our own."""
        if not self.entered.has("userns"):
            return None
        return (1 + self.policy.grants.processes) * (1 + self.policy.grants.threads) + (0 if self.root else 1)

    def seccomp(self) -> None:
        privileges.no_new_privs()
        signals = self.policy.grants.processes > 0
        seccomp.install(seccomp.Filter.of(self.policy.grants, signals=signals, pid=os.getpid()))
