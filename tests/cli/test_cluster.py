"""``--scheduler`` of ``kata grade`` and ``regrade``, and ``kata cluster``, as they are typed, without a cluster: what is asked of one, what is told."""

from __future__ import annotations

import socket
import sys
import threading
from contextlib import contextmanager

import pytest

pytest.importorskip("distributed")

from llmkata.cluster import client
from llmkata.grading.executor import grade_many

from ..grading.two import RIGHT, WRONG, hand_in, write_course

GRADE = ("grade", "class", "--out", "run", "--isolation", "process")


@pytest.fixture
def two(tmp_path, monkeypatch):
    """One learner, in the current folder."""
    write_course(tmp_path)
    hand_in(tmp_path / "class", "ann", **RIGHT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    return tmp_path


@pytest.fixture
def sent(monkeypatch):
    """What is sent to a cluster, which grades here."""
    lots = []

    class Here:
        def grade_many(self, submissions, **given):
            lots.append([(s.learner, s.exercise_id) for s in submissions])
            return grade_many(self.course, submissions, isolation=self.isolation, **given)

    @contextmanager
    def connected(course, scheduler, isolation, **_):
        here = Here()
        here.course, here.isolation = course, isolation
        yield here

    monkeypatch.setattr(client, "connected", connected)
    return lots


def test_only_what_is_not_graded_is_sent(kata, two, sent):
    assert kata(*GRADE).status == 0 and sent == []
    hand_in(two / "class", "bob", double=WRONG)
    said = kata(*GRADE, "--scheduler", "tcp://host:8786")
    assert said.status == 0 and "2 of them graded already" in said.out
    assert sent == [[("bob", "module1/double")]]
    # All is known by now: nobody is asked, wherever that is.
    said = kata(*GRADE, "--scheduler", "tcp://host:8786")
    assert said.status == 0 and len(sent) == 1
    assert (two / "run/sources").is_dir() and len((two / "run/records.jsonl").read_text().splitlines()) == 4


def test_only_what_is_graded_again_is_sent(kata, two, sent):
    assert kata(*GRADE).status == 0
    regrade = ("regrade", "run", "--isolation", "process", "--scheduler", "tcp://host:8786")
    said = kata(*regrade, "--changed")
    assert said.status == 0 and "nothing to grade again" in said.out and sent == []
    assert kata(*regrade, "square", "--dry-run").status == 0 and sent == []
    assert kata(*regrade, "square").status == 0 and sent == [[("ann", "module1/square")]]
    assert len((two / "run/records.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("address", ["host:8786", "tcp://host", "http://host:8786", "tcp://host:8786/x y"])
def test_what_is_no_address(kata, two, address):
    said = kata(*GRADE, "--scheduler", address)
    assert said.status == 2 and not (two / "run/records.jsonl").exists()
    assert said.err == (f"kata: --scheduler {address}: must be an address like tcp://host:8786\n"
                        f"Next: {said.err.split('Next: ')[1]}")
    assert "cluster --local 2" in said.err
    assert kata("regrade", "run", "--scheduler", address).err == said.err


def test_workers_are_for_this_machine(kata, two):
    said = kata(*GRADE, "--scheduler", "tcp://host:8786", "--workers", "3")
    assert said.status == 2 and said.err.endswith("Next: dask worker tcp://host:8786 --nthreads 3\n")
    assert kata("regrade", "run", "--scheduler", "tcp://host:8786", "--workers", "3").err == said.err


def test_nobody_answers(kata, two, monkeypatch):
    monkeypatch.setattr(client, "CONNECT_SECONDS", 0.3)
    with socket.socket() as taken:  # bound and not listening
        taken.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        said = kata(*GRADE, "--scheduler", address)
    assert said.status == 2 and f"kata: no Dask scheduler answers at {address}" in said.err
    assert "Next: " in said.err and "Traceback" not in said.err
    assert not (two / "run/records.jsonl").exists() and not (two / "run/sources").exists()


def test_somebody_else_answers(kata, two, monkeypatch):
    monkeypatch.setattr(client, "CONNECT_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                with peer:
                    peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        said = kata(*GRADE, "--scheduler", f"tcp://127.0.0.1:{server.getsockname()[1]}")
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert said.status == 2 and "no Dask scheduler answers at" in said.err and "Traceback" not in said.err


@pytest.mark.parametrize("words", [(*GRADE, "--scheduler", "tcp://host:8786"), ("cluster", "--local", "2")])
def test_without_dask(kata, two, monkeypatch, words):
    monkeypatch.setitem(sys.modules, "distributed", None)
    said = kata(*words)
    assert said.status == 2 and "a cluster needs Dask's distributed, which is not installed" in said.err
    assert "Next: pip install 'llmkata[cluster]' && " in said.err


def test_dask_is_not_imported_for_other_commands(kata, two, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert kata(*GRADE).status == 0
