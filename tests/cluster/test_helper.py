"""The process beside a Dask worker: what it says when it cannot grade, and when it ends."""

from __future__ import annotations

import os

import msgspec
import pytest

pytest.importorskip("distributed")

from llmkata.cluster import helper
from llmkata.cluster.helper import Hello, Reply
from llmkata.cluster.lots import Work
from llmkata.cluster.pipe import Gone
from llmkata.cluster.service import LotLost, Service
from llmkata.course import load_course
from llmkata.grading.isolation import TooLittleIsolation
from llmkata.outside import process

from ..grading.two import RIGHT, write_course


def test_a_machine_without_a_sandbox_does_not_take_part(tmp_path, monkeypatch):
    write_course(tmp_path)
    real = process.start_process
    poor = ["userns", "netns", "ipcns", "pidns", "mountns", "landlock", "privileges"]
    monkeypatch.setattr(process, "start_process", lambda profile, policy: real(profile, policy | {"disable": poor}))
    with pytest.raises(TooLittleIsolation, match="files: landlock"):
        helper._ready(tmp_path, "sandbox")
    assert helper._ready(tmp_path, "process").title == "Two"  # the instructor's explicit word


def test_a_system_that_cannot_fork_does_not_take_part(tmp_path, monkeypatch):
    monkeypatch.setattr(helper, "CAN_FORK", False)
    with pytest.raises(RuntimeError, match="workers must run on Linux"):
        helper._ready(write_course(tmp_path), "process")


def test_why_there_is_none_is_told_each_time(tmp_path):
    service = Service(tmp_path / "nothing", "process", 1)
    for _ in range(2):
        assert "no such file" in service.ready()
    with pytest.raises(LotLost, match="no such file"):
        service.grade(msgspec.msgpack.encode(Work(None, [])))


@pytest.fixture
def talk(monkeypatch):
    """``talk(course, requests...)``: what the main loop replies in this process, until nobody asks any more."""

    def run(root, *requests, idle=60.0):
        ask, asked = os.pipe()
        replies, reply = os.pipe()
        for message in requests:
            os.write(asked, len(message).to_bytes(8, "big") + message)
        if idle:
            os.close(asked)
        monkeypatch.setattr(helper, "IDLE_SECONDS", idle)
        monkeypatch.setattr(helper, "_pipes", lambda: (ask, reply))
        monkeypatch.setattr(helper.signal, "signal", lambda *_: None)
        helper.main(str(root), "process", "1")
        os.close(reply)
        with open(replies, "rb") as file:
            said = file.read()
        found = []
        while said:
            size = int.from_bytes(said[:8], "big")
            found.append(said[8:8 + size])
            said = said[8 + size:]
        return found

    return run


def test_it_ends_when_nobody_asks_any_more(tmp_path, talk):
    hello, = talk(write_course(tmp_path))
    assert msgspec.msgpack.decode(hello, type=Hello) == Hello("")


def test_it_ends_when_it_has_nothing_to_do_for_long(tmp_path, talk):
    assert len(talk(write_course(tmp_path), idle=0.0)) == 1


def test_a_lot_that_cannot_be_graded_is_told_and_the_next_one_is(tmp_path, talk, monkeypatch):
    from llmkata.grading import executor

    answers = iter([OSError("no space")])

    def fails_once(*args, **given):
        for error in answers:
            raise error
        return grade_many(*args, **given)

    grade_many = executor.grade_many
    monkeypatch.setattr(executor, "grade_many", fails_once)
    work = msgspec.msgpack.encode(Work(3, [("module1/double", RIGHT["double"].encode())]))
    _, first, second = talk(write_course(tmp_path), work, work, idle=0.0)
    assert msgspec.msgpack.decode(first, type=Reply) == Reply([], "OSError: no space")
    reply = msgspec.msgpack.decode(second, type=Reply)
    assert not reply.fault and b'"learner":"0"' in reply.records[0] and b'"seed":3' in reply.records[0]


def test_it_stops_in_the_middle_of_a_lot_when_the_worker_has_gone(tmp_path):
    ask, asked = os.pipe()
    course = load_course(write_course(tmp_path))
    work = Work(None, [("module1/double", RIGHT["double"].encode()), ("module1/square", RIGHT["square"].encode())])
    assert len(helper._graded(course, work, "process", 1, ask).records) == 2
    os.close(asked)
    with pytest.raises(Gone):
        helper._graded(course, work, "process", 1, ask)
    os.close(ask)
