"""N5: local services, or file:// addresses, that hold the answer."""

import socket

import pytest

from llmkata.records import Outcome

from ..toy.harness import grade, named
from .acts import passes, reachable, right_only_if


@pytest.fixture
def acts(tmp_path):
    (tmp_path / "answers").write_text("48271")
    (tmp_path / "answers").chmod(0o644)
    reachable(tmp_path, 0o777)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket"))
        (tmp_path / "socket").chmod(0o777)
        unix.listen()
        yield [f"from urllib.request import urlopen\nreturn urlopen('file://{tmp_path}/answers').read() == b'48271'",
               f"import socket\nsocket.socket(socket.AF_UNIX).connect({str(tmp_path / 'socket')!r})"]


@pytest.mark.parametrize("which", [0, 1])
def test_they_are_not_there(acts, which, earns_nothing):
    earns_nothing(grade(right_only_if(acts[which]), only="test_magic"), "test_magic")
    off = ("seccomp",) if which else ()  # the file of a socket is out of reach by itself
    earns_nothing(grade(right_only_if(acts[which]), only="test_magic", disable=off), "test_magic")


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed


@pytest.mark.parametrize("which", [0, 1])
def test_without_isolation_they_are(acts, which):
    assert passes(right_only_if(acts[which]), isolation="process")
