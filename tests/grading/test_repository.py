"""Learners' repositories: which commit is graded, and that nothing of them is run or leads elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from llmkata.authoring.stub import pristine_stub
from llmkata.course import Course, Extension, Grading, Late, load_course
from llmkata.grading import repository
from llmkata.grading.intake import read_class
from llmkata.grading.repository import RepositoryError, opened
from llmkata.grading.roster import read_roster
from llmkata.grading.submission import Submission
from llmkata.records import State

ROOT = Path(__file__).parents[2]
ATTENTION = "module2/self_attention"
FILE = "module2/self_attention.py"
DUE = datetime(2026, 10, 5, 22, 0, tzinfo=UTC)

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture(scope="module")
def course() -> Course:
    return load_course(ROOT)


def due(course: Course, **grading: object) -> Course:
    made = Grading("UTC", {2: DUE}, **grading)
    return msgspec.structs.replace(course, policy=msgspec.structs.replace(course.policy, grading=made))


class Clone:
    """A working copy with commits at chosen times."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.git("init", "-q", "-b", "main")

    def git(self, *words: str, at: datetime = DUE) -> str:
        stamp = at.isoformat()
        own = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_DATE": stamp, "GIT_COMMITTER_DATE": stamp}
        identity = ["-c", "user.name=a", "-c", "user.email=a@x.org", "-c", "protocol.file.allow=always"]
        done = subprocess.run(
            ["git", *identity, *words], cwd=self.folder, env=os.environ | own, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def commit(self, source: str, hours: float, file: str = FILE) -> str:
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "work", at=DUE + timedelta(hours=hours))
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def ada(tmp_path: Path) -> Clone:
    return Clone(tmp_path / "class" / "ada")


def take(clone: Clone, course: Course, **more: object) -> Submission:
    submissions = read_class(clone.folder.parent, course, **more).submissions
    return next(s for s in submissions if s.exercise_id == ATTENTION)


def test_the_last_commit_before_the_deadline_counts(ada: Clone, course: Course) -> None:
    early, _ = ada.commit("x = 1\n", -5), ada.commit("x = 2\n", -1)
    ada.commit("x = 3\n", 1)
    got = take(ada, due(course))
    assert (got.source, got.file, got.submitted_at) == (b"x = 2\n", FILE, "2026-10-05T21:00:00+00:00")
    assert got.notes[-1].endswith("of 2026-10-05 21:00 UTC, the last before the deadline; 1 later one not looked at")
    assert take(ada, course).source == b"x = 3\n", "without a deadline the newest"
    assert take(ada, due(course), at=early[:10]).source == b"x = 1\n"


def test_grace_and_extension_move_it(ada: Clone, course: Course, tmp_path: Path) -> None:
    ada.commit("x = 1\n", -1)
    ada.commit("x = 2\n", 1)
    assert take(ada, due(course, late=Late(10, 100, 59))).source == b"x = 1\n"
    assert take(ada, due(course, late=Late(10, 100, 60))).source == b"x = 2\n"
    assert take(ada, due(course, extensions={"ada": Extension(1)})).source == b"x = 2\n"
    assert take(ada, due(course, extensions={"bob": Extension(1)})).source == b"x = 1\n"


def test_what_was_begun_only_after_the_deadline_is_taken_and_late(ada: Clone, course: Course) -> None:
    stub = pristine_stub(course.exercise(ATTENTION))
    ada.commit(stub, -5)
    ada.commit("x = 3\n", 30)
    ada.commit("y = 1\n", 60, "notes.py")
    got = take(ada, due(course))
    assert (got.source, got.submitted_at) == (b"x = 3\n", "2026-10-07T04:00:00+00:00"), "when the file was changed"


def test_a_tag_or_a_branch_can_be_asked_for(ada: Clone, course: Course) -> None:
    ada.commit("x = 1\n", -5)
    ada.git("tag", "-a", "-m", "done", "submit")
    ada.git("branch", "side")
    ada.git("update-ref", "refs/remotes/origin/far", "HEAD")
    ada.commit("x = 2\n", -1)
    ada.git("pack-refs", "--all")
    for name in ("submit", "side", "far"):
        got = take(ada, due(course), at=name)
        assert got.source == b"x = 1\n"
        assert got.notes[-1].endswith(f"which {name} names")
    missing = take(ada, course, at="nothing")
    assert missing.state is State.unreadable
    assert missing.cause == "The repository of ada cannot be read: it has no tag, branch or commit 'nothing'."


def test_bare_shallow_and_detached_clones(ada: Clone, course: Course, tmp_path: Path) -> None:
    ada.commit("x = 1\n", -5)
    ada.commit("x = 2\n", -1)
    url = ada.folder.as_uri()
    for name, words in {"bob.git": ("--bare",), "cyd": ("--depth=1",), "dan": ("--no-checkout",)}.items():
        ada.git("clone", "-q", *words, url, str(ada.folder.parent / name))
    subprocess.run(["git", "checkout", "-q", "--detach", "HEAD~1"], cwd=ada.folder.parent / "dan", check=True)
    got = {s.learner: s for s in read_class(ada.folder.parent, due(course)).submissions if s.exercise_id == ATTENTION}
    assert {name: s.source for name, s in got.items()} == {
        "ada": b"x = 2\n", "bob": b"x = 2\n", "cyd": b"x = 2\n", "dan": b"x = 1\n",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["a\nb", "a b", '"a', "#a", "a:b", "ä"])
def test_folders_of_any_name(tmp_path: Path, course: Course, name: str) -> None:
    odd = Clone(tmp_path / "class" / name)
    odd.commit("x = 1\n", -1)
    assert take(odd, course).source == b"x = 1\n"


def test_hashes_of_the_new_kind(tmp_path: Path, course: Course) -> None:
    (tmp_path / "class" / "new").mkdir(parents=True)
    new = Clone.__new__(Clone)
    new.folder = tmp_path / "class" / "new"
    new.git("init", "-q", "-b", "main", "--object-format=sha256")
    assert len(new.commit("x = 1\n", -1)) == 64
    assert take(new, course).source == b"x = 1\n"


def test_the_commit_counts_and_not_what_lies_beside_it(ada: Clone, course: Course) -> None:
    ada.commit("x = 1\n", -1)
    (ada.folder / FILE).write_text("x = 'not committed'\n")
    assert take(ada, course).source == b"x = 1\n"


def test_an_archive_of_a_working_copy_is_what_lies_there(ada: Clone, course: Course, tmp_path: Path) -> None:
    ada.commit("x = 1\n", -1)
    (ada.folder / FILE).write_text("x = 'handed in'\n")
    shutil.make_archive(str(tmp_path / "zips" / "ada"), "zip", ada.folder)
    (got,) = (s for s in read_class(tmp_path / "zips", course).submissions if s.exercise_id == ATTENTION)
    assert got.source == b"x = 'handed in'\n"
    assert ".git/" in got.ignored


def test_one_repository_that_cannot_be_read_stops_nobody(ada: Clone, course: Course) -> None:
    ada.commit("x = 1\n", -1)
    Clone(ada.folder.parent / "empty")
    torn = Clone(ada.folder.parent / "torn")
    torn.commit("x = 2\n", -1)
    for blob in (torn.folder / ".git" / "objects").glob("??/*"):
        blob.chmod(0o644)
        blob.write_bytes(b"torn")
    (ada.folder.parent / "linked").mkdir()
    (ada.folder.parent / "linked" / ".git").write_text(f"gitdir: {ada.folder / '.git'}\n")
    got = {s.learner: s for s in read_class(ada.folder.parent, course).submissions if s.exercise_id == ATTENTION}
    assert got["ada"].source == b"x = 1\n"
    assert {name: got[name].state for name in ("empty", "torn", "linked")} == {
        "empty": State.missing, "torn": State.unreadable, "linked": State.unreadable,
    }  # fmt: skip
    assert got["empty"].cause == "Nothing was committed to the repository of empty."
    assert "damaged clone" in got["torn"].cause
    assert "leads elsewhere" in got["linked"].cause


def test_objects_of_another_repository_are_not_shown(ada: Clone, course: Course, tmp_path: Path) -> None:
    """The instructor's own repository, with the model answers in it."""
    secret = Clone(tmp_path / "secret")
    sha = secret.commit("x = 'the answer'\n", -1)
    objects = secret.folder / ".git" / "objects"
    eve = ada.folder.parent / "eve"
    shutil.copytree(secret.folder / ".git", eve / ".git")
    shutil.rmtree(eve / ".git" / "objects")
    (eve / ".git" / "objects" / "info").mkdir(parents=True)
    (eve / ".git" / "objects" / "info" / "alternates").write_text(f"{objects}\n")
    with pytest.raises(RepositoryError, match="borrows objects"), opened(eve):
        pass
    shutil.rmtree(eve / ".git" / "objects")
    (eve / ".git" / "objects").symlink_to(objects)
    with pytest.raises(RepositoryError, match="borrows objects"), opened(eve):
        pass
    (eve / ".git" / "objects").unlink()
    (eve / ".git" / "objects").mkdir()
    with opened(eve) as empty, pytest.raises(RepositoryError, match=f"no commit {sha[:12]}"):
        empty.head()
    with opened(secret.folder) as own:
        assert own.head().sha == sha, "which is there to be read"


def test_nothing_of_its_configuration_runs(ada: Clone, course: Course, tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    evil = tmp_path / "evil"
    evil.write_text(f"#!/bin/sh\ntouch '{marker}'\nexit 1\n")
    evil.chmod(0o755)
    ada.commit("x = 1\n", -2)
    ada.commit("*.py filter=evil diff=evil\n", -1, ".gitattributes")
    for key in (
        "core.fsmonitor", "core.pager", "core.sshCommand", "core.alternateRefsCommand", "gpg.program", "filter.evil.smudge",
        "filter.evil.process", "diff.evil.textconv", "diff.external", "core.editor", "remote.origin.uploadpack",
        "credential.helper", "core.gitProxy", "uploadpack.packObjectsHook",
    ):  # fmt: skip
        ada.git("config", key, str(evil))
    for key, value in {
        "log.showSignature": "true", "core.hooksPath": str(tmp_path), "remote.origin.url": str(tmp_path), "extensions.partialClone":
        "origin", "remote.origin.promisor": "true", "core.repositoryFormatVersion": "1", "include.path": str(evil),
    }.items():  # fmt: skip
        subprocess.run(["git", "config", "--file", str(ada.folder / ".git" / "config"), key, value], check=True)
    for hook in ("post-checkout", "reference-transaction", "post-index-change"):
        shutil.copy(evil, ada.folder / ".git" / "hooks" / hook)
    assert take(ada, course).source == b"x = 1\n"
    assert not marker.exists()
    done = subprocess.run(["git", "status"], cwd=ada.folder, capture_output=True, check=False)
    assert marker.exists() or done.returncode, "git itself would have run it, or refused"


def test_a_missing_object_is_not_fetched(ada: Clone, course: Course, tmp_path: Path) -> None:
    ada.commit("x = 1\n", -1)
    ada.git("config", "uploadpack.allowFilter", "true")
    partial = ada.folder.parent / "partial"
    ada.git("clone", "-q", "--no-checkout", "--filter=blob:none", ada.folder.as_uri(), str(partial))
    got = {s.learner: s for s in read_class(ada.folder.parent, course).submissions if s.exercise_id == ATTENTION}
    assert got["partial"].state is State.unreadable
    assert "partial or damaged clone" in got["partial"].cause
    assert subprocess.run(["git", "show", f"HEAD:{FILE}"], cwd=partial, capture_output=True, check=True).stdout == b"x = 1\n", (
        "git itself fetches it"
    )


def test_links_submodules_and_hidden_folders_of_a_commit(ada: Clone, course: Course, tmp_path: Path) -> None:
    ada.commit("x = 1\n", -2, ".venv/module2/self_attention.py")
    (ada.folder / "module2").mkdir()
    (ada.folder / FILE).symlink_to("/etc/passwd")
    ada.git("add", "-A")
    ada.git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},module0")
    ada.git("commit", "-q", "-m", "links")
    got = take(ada, course)
    assert got.state is State.unreadable
    assert "self_attention.py is a link" in got.cause
    assert set(got.ignored) >= {".venv/", "module0 (a submodule)"}


def test_a_file_that_is_too_large_is_told(ada: Clone, course: Course) -> None:
    small = msgspec.structs.replace(course, limits=msgspec.structs.replace(course.limits, submission=1))
    ada.commit("# " + "x" * 2000 + "\n", -2)
    ada.commit("x = 1\n", -1, "exercises/module0/matrix_calculus/matrix_calculus.py")
    assert "larger than 1 KiB" in take(ada, small).cause
    submissions = read_class(ada.folder.parent, small).submissions
    assert next(s for s in submissions if s.exercise_id == "module0/matrix_calculus").source == b"x = 1\n"


def test_a_tree_of_more_files_than_there_can_be(ada: Clone, course: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten levels of ten times the same tree: ten thousand million files in eleven objects."""
    ada.commit("x = 1\n", -2)

    def tree(*rows: str) -> str:
        done = subprocess.run(["git", "mktree"], cwd=ada.folder, input="".join(f"{r}\n" for r in rows), text=True,
                              capture_output=True, check=True)
        return done.stdout.strip()

    blob = ada.git("rev-parse", f"HEAD:{FILE}")
    level = tree(*(f"100644 blob {blob}\tf{n}" for n in range(10)))
    for _ in range(9):
        level = tree(*(f"040000 tree {level}\td{n}" for n in range(10)))
    commit = ada.git("commit-tree", level, "-m", "bomb")
    ada.git("update-ref", "refs/heads/main", commit)
    monkeypatch.setattr(repository, "MAX_ENTRIES", 500)
    got = take(ada, course)
    assert got.state is State.missing
    assert "more than 500 files" in got.notes[0]


def test_times_that_go_backwards_are_told(ada: Clone, course: Course) -> None:
    ada.commit("x = 1\n", 5)
    ada.commit("x = 2\n", -3)
    got = take(ada, due(course))
    assert got.source == b"x = 2\n"
    assert "commit times go backwards: not all were set by a clock" in got.notes
    honest = Clone(ada.folder.parent / "bob")
    honest.commit("x = 1\n", -5)
    honest.commit("x = 2\n", -3)
    notes = [s.notes for s in read_class(ada.folder.parent, due(course)).submissions if s.learner == "bob" and s.file]
    assert notes
    assert not any("backwards" in note for found in notes for note in found)


def test_a_groups_repository_has_the_latest_deadline_of_its_members(ada: Clone, course: Course, tmp_path: Path) -> None:
    team = Clone(tmp_path / "teams" / "team7")
    team.commit("x = 1\n", -1)
    team.commit("x = 2\n", 20)
    (tmp_path / "roster.csv").write_text("id,group\nu1,team7\nu2,team7\n")
    roster = read_roster(tmp_path / "roster.csv")
    assert take(team, due(course, extensions={"u2": Extension(1)}), roster=roster).source == b"x = 2\n"
    got = take(team, due(course), roster=roster)
    assert (got.source, got.learner, got.mates) == (b"x = 1\n", "u1", ("u2",))


def test_a_forged_index_of_commits_changes_no_time(ada: Clone, course: Course) -> None:
    """A commit graph repeats the time of each commit, and git believes it without a look at the commit."""
    ada.commit("x = 1\n", 30)
    ada.git("commit-graph", "write", "--reachable")
    path = ada.folder / ".git" / "objects" / "info" / "commit-graph"
    data = bytearray(path.read_bytes())
    chunks = {
        bytes(data[at : at + 4]): int.from_bytes(data[at + 4 : at + 12], "big") for at in range(8, 8 + 12 * data[6], 12)
    }
    place = chunks[b"CDAT"] + 20 + 4 + 4 + 4  # after the tree, two parents and the upper half: the time
    forged = int((DUE - timedelta(days=9)).timestamp())
    data[place : place + 4] = forged.to_bytes(4, "big")
    path.chmod(0o644)
    path.write_bytes(bytes(data))
    assert ada.git("rev-list", "--timestamp", "HEAD").startswith(str(forged)), "git itself is taken in"
    got = take(ada, due(course))
    assert (got.source, got.submitted_at) == (b"x = 1\n", "2026-10-07T04:00:00+00:00")
