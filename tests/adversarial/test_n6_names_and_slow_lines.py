"""N6: leak by name look-ups; keep the job alive by a connection that never ends."""

import socket

import pytest

from llmkata.records import Outcome

from ..toy.harness import grade, named
from .acts import passes, right_only_if


@pytest.fixture
def resolver():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        udp.settimeout(5)
        yield udp


def ask(resolver):
    """A look-up that carries something out, as a resolver would be asked."""
    port = resolver.getsockname()[1]
    return right_only_if("import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto("
                         f"b'hidden.example', ('127.0.0.1', {port}))")


def test_no_question_leaves(resolver, earns_nothing):
    earns_nothing(grade(ask(resolver), only="test_magic"), "test_magic")
    by_name = right_only_if("import socket\nsocket.getaddrinfo('example.org', 80)")
    earns_nothing(grade(by_name, only="test_magic"), "test_magic")
    resolver.setblocking(False)
    with pytest.raises(BlockingIOError):
        resolver.recv(99)


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed


def test_without_isolation_it_does(resolver):
    assert passes(ask(resolver), isolation="process")
    assert resolver.recv(99) == b"hidden.example"
