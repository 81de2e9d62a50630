"""Hosts that offer less: system calls are taken away before the sandbox is entered, as an older kernel, a container's
profile or a cautious administrator does. What can still stand does, and what cannot is told."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys

import pytest

from llmkata.inside.sandbox import LAYERS, libc, privileges, syscalls

NAMESPACES = ("netns", "ipcns", "pidns", "mountns", "userns")
#: What is not there -> (system calls, the error they give, layers that then cannot stand).
HOSTS = {
    "no namespaces": (("unshare",), errno.EPERM, NAMESPACES),
    "a container's profile": (("unshare", "mount", "pivot_root", "umount2"), errno.EPERM, NAMESPACES),
    "no landlock": (("landlock_create_ruleset",), errno.ENOSYS, ("landlock",)),
    "landlock off at boot": (("landlock_create_ruleset",), errno.EOPNOTSUPP, ("landlock",)),
    "neither": (("unshare", "landlock_create_ruleset"), errno.EPERM, (*NAMESPACES, "landlock")),
    "Linux 5.8": (("close_range", "landlock_create_ruleset", "mount_setattr"), errno.ENOSYS, ("landlock",)),
    "no capset": (("capset",), errno.EPERM, ("privileges",)),
}


def take_away(names: tuple[str, ...], error: int) -> None:
    """Have the kernel answer these calls with ``error`` from now on, in this process and its children."""
    known = syscalls.numbers(syscalls.ALLOWED | syscalls.SETUP)
    numbers = [known[name] for name in names]
    code = struct.pack("HBBI", 0x20, 0, 0, 0)
    for number in numbers:
        code += struct.pack("HBBI", 0x15, 0, 1, number) + struct.pack("HBBI", 6, 0, 0, 0x00050000 | error)
    code += struct.pack("HBBI", 6, 0, 0, 0x7FFF0000)
    kept = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(kept)), 16)
    privileges.no_new_privs()
    libc.prctl(libc.PR_SET_SECCOMP, 2, ctypes.addressof(program))


def look(secret: str) -> dict[str, str]:
    """What becomes of reading, writing elsewhere, and asking for a socket; and that work goes on."""
    met = {}
    for name, act in (("read", lambda: open(secret).read()), ("write", lambda: open(secret, "a").write("x")),  # noqa: SIM115
                      ("socket", lambda: socket.socket()), ("fork", os.fork), ("scratch", lambda: open("a", "w").write("x"))):  # noqa: SIM115
        try:
            act()
            met[name] = "done"
        except OSError as e:
            met[name] = type(e).__name__
    return met


def of_place(ground) -> set[str]:
    """Layers that hang on where the interpreter lies: root stays root where others could not read it."""
    return {"privileges"} if ground.user == "root" else set()


@pytest.mark.parametrize("host", HOSTS)
def test_the_rest_stands(ground, host):
    names, error, lost = HOSTS[host]
    full = set(ground.run(lambda: None).entered.layers)
    trial = ground.run(look, str(ground.secret), before=lambda: take_away(names, error))
    assert (set(trial.entered.layers) ^ (full - set(lost))) <= of_place(ground)
    assert all(trial.entered.missing[name] for name in full & set(lost))
    if host == "neither":  # nothing keeps files: hidden grading refuses to start there
        assert trial.value == {"read": "done", "write": "done", "socket": "PermissionError", "fork": "PermissionError",
                               "scratch": "done"}
    else:
        assert "done" not in (trial.value.pop("read"), trial.value.pop("write"))
        assert trial.value == {"socket": "PermissionError", "fork": "PermissionError", "scratch": "done"}


def test_every_layer_stands_alone_or_falls_alone(ground):
    """Each is left out in turn, and no other hangs on it but by two rules: an unprivileged process has no namespace
    without a user namespace, and root takes one on leaving root."""
    full = set(ground.run(lambda: None).entered.layers)
    for name in LAYERS:
        layers = set(ground.run(lambda: None, disable=[name]).entered.layers)
        together = {"privileges": {"userns"}} if ground.user == "root" else {"userns": {*NAMESPACES}}
        fallen = {name} | together.get(name, set())
        assert layers ^ (full - fallen) <= of_place(ground), name


def test_no_library_for_filters_is_used(ground, monkeypatch):
    """libseccomp may be missing or broken: the filter is made and installed here."""
    for name in ("seccomp", "pyseccomp"):
        monkeypatch.setitem(sys.modules, name, None)
    loaded = ground.run(lambda: "libseccomp" in open("/proc/self/maps").read(), disable=["mountns", "landlock"])  # noqa: SIM115
    assert loaded.value is False and loaded.entered.has("seccomp")
