"""A grant opens what it says, nothing beside it, and is taken back where it could not be given safely."""

from __future__ import annotations

import array
import http.client
import http.server
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading

from llmkata.inside.sandbox import landlock


class Silent(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass


def serve_and_ask():
    """An HTTP server in a thread, asked over a real socket by name."""
    server = http.server.HTTPServer(("127.0.0.1", 0), Silent)
    threading.Thread(target=server.handle_request, daemon=True).start()
    connection = http.client.HTTPConnection("localhost", server.server_port, timeout=5)
    connection.request("GET", "/")
    return connection.getresponse().status


LOOPBACK = {"loopback": True, "threads": 2}


def test_loopback(ground, needs, libraries):
    needs("netns")
    assert ground.run(serve_and_ask, grants=LOOPBACK).value == 501
    assert "not permitted" in ground.run(serve_and_ask, grants={"threads": 2}).error


def other_sockets():
    refused = []
    for family in (socket.AF_UNIX, socket.AF_INET6, socket.AF_PACKET, socket.AF_VSOCK):
        try:
            socket.socket(family, socket.SOCK_DGRAM).close()
        except PermissionError:
            refused.append(family)
    return len(refused)


def connect(address):
    with socket.socket() as s:
        s.settimeout(5)
        s.connect(tuple(address))


def test_loopback_is_not_this_machines(ground, needs):
    needs("netns")
    assert ground.run(other_sockets, grants=LOOPBACK).value == 4
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert "refused" in ground.run(connect, server.getsockname(), grants=LOOPBACK).error
    assert "unreachable" in ground.run(connect, ("192.0.2.1", 80), grants=LOOPBACK).error


def test_loopback_is_taken_back_without_a_network_namespace(ground):
    trial = ground.run(lambda: socket.socket().close(), grants=LOOPBACK, disable=["netns"])
    assert trial.entered.missing["grant:loopback"] == "needs netns"
    assert "not permitted" in trial.error


def test_a_server_of_the_trusted_side_is_reached_through_a_socket_passed_out(ground, needs):
    needs("netns")
    ours, theirs = socket.socketpair()
    descriptor = theirs.fileno()

    def act():
        # The listener is the lowest free descriptor above the channel's; the worker knows it from `Entered.server_fd`.
        listener = next(fd for fd in range(3, 64) if fd not in (descriptor,) and listens(fd))
        with socket.socket(fileno=listener) as s, socket.socket(fileno=descriptor) as channel:
            address = s.getsockname()
            channel.sendmsg([b"listener"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener]))])
        with socket.socket() as s:
            s.connect(address)
            s.sendall(b"question")
            return s.recv(100).decode()

    pid, channel = ground.start(act, grants={"server": True}, keep=(descriptor,))
    theirs.close()
    _, fds, _, _ = socket.recv_fds(ours, 100, 1)
    with socket.socket(fileno=fds[0]) as server:
        connection, _ = server.accept()
        with connection:
            assert connection.recv(100) == b"question"
            connection.sendall(b"answer")
    with channel.makefile() as said:
        assert '"server": "needs' not in said.readline()
        assert '"value": "answer"' in said.readline()
    os.waitpid(pid, 0)
    channel.close()
    ours.close()


def listens(fd):
    try:
        with socket.socket(fileno=os.dup(fd)) as s:
            return bool(s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False


def square(x):
    return x * x


def pool_of_two():
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(square, range(5))


def test_processes(ground, needs, libraries):
    needs("pidns", "mountns")
    grants = {"processes": 2, "threads": 4}
    assert ground.run(pool_of_two, grants=grants).value == [0, 1, 4, 9, 16]
    assert ground.run(pool_of_two, grants={"threads": 4}).error is not None


def bomb():
    children = []
    try:
        while len(children) < 50:
            pid = os.fork()
            if pid == 0:
                signal.pause()
            children.append(pid)
    except OSError:
        pass
    return len(children)


def test_processes_are_counted(ground, needs):
    needs("pidns", "userns", "privileges")
    assert ground.run(bomb, grants={"processes": 3}).value == 3


def test_processes_are_taken_back_without_a_pid_namespace(ground):
    trial = ground.run(bomb, grants={"processes": 3}, disable=["pidns"])
    assert trial.entered.missing["grant:processes"] == "needs pidns" and trial.value == 0


def run_python():
    command = [sys.executable, "-I", "-c", "print(6 * 7)"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def run_shell():
    return subprocess.run(["/bin/sh", "-c", "echo shell"], capture_output=True, text=True, check=True).stdout.strip()


def run_own():
    with open("own", "w") as file:
        file.write("#!/bin/sh\n")
    os.execv("own", ["own"])


def test_exec_python(ground, needs, libraries):
    needs("pidns", "mountns")
    grants = {"exec": "python", "processes": 1, "threads": 2}
    assert ground.run(run_python, grants=grants).value == "42"
    assert ground.run(run_python, grants={"processes": 1, "threads": 2}).error is not None


def test_exec_is_for_python_alone(ground, needs):
    grants = {"exec": "python", "processes": 1, "threads": 2}
    needs("pidns", "mountns")
    assert ground.run(run_shell, grants=grants).error is not None
    assert "ermission denied" in ground.run(run_own, grants=grants).error
    # Landlock alone, where /bin is in sight.
    assert "ermission denied" in ground.run(run_shell, grants=grants, disable=["mountns"]).error
    assert ground.run(run_shell, grants=grants, disable=["mountns", "landlock"]).error is not None, "the grant is gone"
    assert ground.run(run_shell, grants=grants, disable=["mountns", "landlock", "seccomp"]).value == "shell"


def test_exec_is_taken_back_without_mountns_and_landlock(ground, monkeypatch):
    def absent():
        raise OSError("no Landlock")

    monkeypatch.setattr(landlock, "abi", absent)
    trial = ground.run(run_own, grants={"exec": "python"}, disable=["mountns"])
    assert trial.entered.missing["grant:exec"] == "needs mountns or landlock"
    assert "not permitted" in trial.error


def test_threads(ground):
    def act():
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
        return "ran"

    assert ground.run(act, grants={"threads": 1}).value == "ran"
    assert "can't start new thread" in ground.run(act).error
