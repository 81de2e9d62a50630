"""What git is told of this machine when it looks at a learner's repository."""

from __future__ import annotations

import subprocess

from llmkata.grading import git


def test_no_configuration_of_the_person_is_read(tmp_path, monkeypatch):
    (tmp_path / ".gitconfig").write_text("[alias]\n\tmine = version\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    mine = ["git", "config", "--get", "alias.mine"]
    assert subprocess.run(mine, cwd=tmp_path, env=git.environment(["HOME"]), check=False, capture_output=True).returncode == 1
    monkeypatch.delenv("GIT_CONFIG_COUNT")
    assert subprocess.run(mine, cwd=tmp_path, check=False, capture_output=True).stdout == b"version\n"  # else it is


def test_only_what_is_asked_for_is_passed_on(monkeypatch):
    monkeypatch.setenv("SSH_AUTH_SOCK", "/agent")
    assert "SSH_AUTH_SOCK" not in git.environment() and git.environment(["SSH_AUTH_SOCK"])["SSH_AUTH_SOCK"] == "/agent"
