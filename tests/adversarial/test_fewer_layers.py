"""Hosts with fewer layers: honest work earns the same, and what the other layers keep is still kept."""

import pytest

from llmkata.grading import isolation
from llmkata.grading.isolation import TooLittleIsolation
from llmkata.outside import process
from llmkata.records import Outcome, State

from ..toy.harness import COURSE, TOY, grade, named
from .acts import passes, right_only_if

NAMESPACES = ("userns", "netns", "ipcns", "pidns", "mountns")
HOSTS = {"no user namespaces": NAMESPACES, "no Landlock": ("landlock",), "no seccomp": ("seccomp",),
         "seccomp alone": (*NAMESPACES, "landlock", "privileges")}
READ = right_only_if(f"return bool(open({str(TOY.reference)!r}).read())")
CONNECT = right_only_if("import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 9))")


@pytest.mark.parametrize("host", HOSTS)
def test_honest_work_earns_the_same(host):
    record = grade(disable=HOSTS[host])
    assert record.state is State.graded and record.points == 21
    assert not set(HOSTS[host]) & set(record.provenance.layers)  # and the card tells which stood


@pytest.mark.parametrize("host", [h for h in HOSTS if h != "seccomp alone"])
def test_files_and_network_stay_out_of_reach(host):
    for act in (READ, CONNECT):
        assert named(grade(act, only="test_magic", disable=HOSTS[host]), "test_magic").outcome is Outcome.failed


def test_with_the_filter_alone_files_are_open_and_grading_does_not_start(monkeypatch):
    """The control of both: the files can be read there, so a class is refused before anything of it is run."""
    assert passes(READ, disable=HOSTS["seccomp alone"])
    real = process.start_process
    monkeypatch.setattr(process, "start_process",
                        lambda profile, policy: real(profile, policy | {"disable": list(HOSTS["seccomp alone"])}))
    with pytest.raises(TooLittleIsolation, match="files: landlock"):
        isolation.require(COURSE, "sandbox")
    isolation.require(COURSE, "process")  # the instructor's explicit word
