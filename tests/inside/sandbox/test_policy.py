"""The policy's plain form: what it accepts, what it refuses."""

from __future__ import annotations

import os

import pytest

from llmkata.inside.sandbox import Policy, default_read_paths
from llmkata.inside.sandbox.policy import MIB


def policy(tmp_path, **fields):
    return Policy.from_dict({"scratch": str(tmp_path), **fields})


def test_grants_as_the_course_writes_them(tmp_path):
    grants = {"threads": 64, "processes": 4, "loopback": True, "env": {"A": "b"}, "wall": 40}
    grants |= {"memory": 2048, "cpu": 1.5}
    p = policy(tmp_path, grants=grants, role="bench")
    assert (p.grants.threads, p.grants.processes, p.grants.loopback) == (64, 4, True)
    assert p.memory_bytes == 2048 * MIB and p.cpu_seconds == 2


@pytest.mark.parametrize(("fields", "message"), [
    ({"memmory_bytes": 1}, "memmory_bytes"),
    ({"grants": {"network": True}}, "network"),
    ({"grants": {"exec": "bash"}}, "exec"),
    ({"grants": {"processes": 1000}}, "processes"),
    ({"disable": ["secomp"]}, "secomp"),
    ({"isolation": "none"}, "isolation"),
])
def test_what_it_does_not_know_is_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        policy(tmp_path, **fields)


@pytest.mark.parametrize(("scratch", "read"), [("a", "a/b"), ("a/b", "a"), ("a", "a")])
def test_scratch_and_what_is_read_are_apart(tmp_path, scratch, read):
    (tmp_path / "a/b").mkdir(parents=True)
    with pytest.raises(ValueError, match="contain one another"):
        Policy.from_dict({"scratch": str(tmp_path / scratch), "read_paths": [str(tmp_path / read)]})


def test_default_paths_hold_the_libraries_and_nothing_of_the_course():
    paths = default_read_paths()

    def readable(path):
        return any(path == p or path.startswith(p + "/") for p in paths)

    import numpy

    from llmkata.inside import sandbox

    package = os.path.dirname(os.path.dirname(os.path.dirname(sandbox.__file__)))
    assert readable(os.path.dirname(os.__file__)) and readable(os.path.dirname(numpy.__file__))
    assert readable(f"{package}/inside") and readable(f"{package}/wire")
    if "site-packages" not in package:  # installed from a clone
        root = os.path.dirname(os.path.dirname(package))
        for private in ("graders", "solutions", "reference", "src/llmkata/checks", ".git"):
            assert not readable(f"{root}/{private}")
    for private in ("/etc/passwd", "/home", "/root", "/tmp", "/proc"):
        assert not readable(private)
