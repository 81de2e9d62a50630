"""Mount namespace and Landlock: libraries can be read, scratch written, and that is all."""

from __future__ import annotations

import errno
import os

import pytest

from llmkata.inside.sandbox import landlock, libc


def read(path):
    with open(path) as file:
        return file.read()


def write(path, text="x"):
    with open(path, "w") as file:
        return file.write(text)


def stat_size(path):
    return os.stat(path).st_size


# The mount namespace: what is off the list does not exist.


def test_mountns_hides_names_and_sizes(ground, needs):
    needs("mountns")
    assert "No such file" in ground.run(stat_size, str(ground.secret)).error


def test_control_landlock_alone_leaves_names_and_sizes(ground):
    trial = ground.run(stat_size, str(ground.secret), disable=["mountns"])
    assert trial.value == len("expected: 42")


def test_mountns_alone_keeps_files_away(ground, needs):
    needs("mountns")
    assert "No such file" in ground.run(read, str(ground.secret), disable=["landlock"]).error


def write_much():
    with open("big", "wb") as file:
        file.write(bytes(4 * 2**20))
    return os.path.getsize("big")


def make_many():
    for i in range(100):
        open(f"f{i}", "w").close()
    return 100


def test_mountns_caps_the_scratch_directory(ground, needs):
    needs("mountns")
    small = {"scratch_bytes": 2**20, "scratch_files": 50}
    assert "No space" in ground.run(write_much, **small).error
    assert "No space" in ground.run(make_many, **small).error


def test_control_without_mountns_scratch_has_no_cap(ground):
    small = {"scratch_bytes": 2**20, "scratch_files": 50, "disable": ["mountns"]}
    assert ground.run(write_much, **small).value == 4 * 2**20
    assert ground.run(make_many, **small).value == 100


def test_the_view_is_read_only_even_without_landlock(ground, needs):
    needs("mountns")
    off = {"disable": ["landlock", "privileges"]}
    assert "Read-only" in ground.run(write, "/usr/lib/planted.py", **off).error
    assert "Read-only" in ground.run(write, "/planted.txt", **off).error
    assert "Read-only" in ground.run(write, "/proc/self/oom_score_adj", "0", **off).error


def test_links_on_the_way_are_followed(ground, needs):
    needs("mountns")
    (ground.path / "components").mkdir()
    (ground.path / "components" / "text.txt").write_text("public")
    (ground.path / "by_link").symlink_to("components")
    assert ground.run(read, f"{ground.path}/by_link/text.txt", read_paths=[f"{ground.path}/by_link"]).value == "public"


def processes_seen():
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def test_proc_shows_no_other_process(ground, needs):
    needs("mountns", "pidns")
    assert ground.run(processes_seen, disable=["landlock"]).value == [1]


def test_without_a_new_proc_only_self_is_there(ground, needs, monkeypatch):
    needs("mountns")
    original = libc.syscall

    def no_proc(name, *args):
        if name == "mount" and args[2] == b"proc":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return original(name, *args)

    monkeypatch.setattr(libc, "syscall", no_proc)
    trial = ground.run(lambda: [os.listdir("/proc"), len(read("/proc/self/maps")) > 0], disable=["landlock"])
    assert trial.value == [["self"], True]


def test_mounts_are_hardened_without_mount_setattr(ground, needs, monkeypatch):
    needs("mountns")
    original = libc.syscall
    monkeypatch.setattr(libc, "syscall", lambda name, *a: original("none" if name == "mount_setattr" else name, *a))
    trial = ground.run(write, "/usr/lib/planted.py", disable=["landlock", "privileges"])
    assert "Read-only" in trial.error and trial.entered.has("mountns")


def test_a_failed_view_leaves_the_old_one(ground, monkeypatch):
    original = libc.syscall
    monkeypatch.setattr(libc, "syscall", lambda name, *a: original("none" if name == "pivot_root" else name, *a))
    trial = ground.run(lambda: [write("a.txt"), os.listdir(".")])
    assert "mountns" in trial.entered.missing
    assert trial.value == [1, ["a.txt"]]
    assert {"landlock", "seccomp", "rlimit"} <= set(trial.entered.layers)


# Landlock: what is off the list cannot be opened.


def test_landlock_alone_keeps_files_away(ground):
    off = {"disable": ["mountns"]}
    assert "Permission denied" in ground.run(read, str(ground.secret), **off).error
    assert "Permission denied" in ground.run(write, str(ground.secret), **off).error
    assert "Permission denied" in ground.run(lambda path: os.listdir(path), str(ground.path), **off).error
    assert "Permission denied" in ground.run(os.unlink, str(ground.secret), **off).error


def test_control_without_mountns_and_landlock_files_are_open(ground):
    off = {"disable": ["mountns", "landlock"]}
    assert ground.run(read, str(ground.secret), **off).value == "expected: 42"
    assert ground.run(write, str(ground.secret), "forged", **off).value == 6
    assert ground.secret.read_text() == "forged"


def test_landlock_keeps_a_process_from_undoing_its_score(ground):
    off = {"disable": ["mountns", "pidns"]}
    assert "Permission denied" in ground.run(write, "/proc/self/oom_score_adj", "1000", **off).error
    off = {"disable": ["mountns", "pidns", "landlock"]}
    assert ground.run(write, "/proc/self/oom_score_adj", "1000", **off).value == 4


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6])
def test_landlock_degrades_right_by_right(ground, monkeypatch, version):
    if landlock.abi() < version:
        pytest.skip(f"this kernel has ABI {landlock.abi()}")
    monkeypatch.setattr(landlock, "abi", lambda: version)
    trial = ground.run(read, str(ground.secret), disable=["mountns"])
    assert "Permission denied" in trial.error
    open_ = [name for name in trial.entered.missing if name.startswith("landlock:")]
    assert len(open_) == sum(version < since for since in (3, 4, 5, 6))
    assert ground.run(lambda: write("a.txt"), disable=["mountns"]).value == 1


def test_without_landlock_the_rest_stands(ground, monkeypatch):
    def absent():
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(landlock, "abi", absent)
    trial = ground.run(lambda: write("a.txt"))
    assert trial.value == 1
    assert "not supported" in trial.entered.missing["landlock"] and trial.entered.has("seccomp")


def test_what_must_be_readable_is(ground, libraries):
    def look():
        import wave  # noqa: F401 - not imported before, so read from the library now

        return [len(os.urandom(4)), len(read("/proc/self/status")) > 0, write("/dev/null"), os.cpu_count() > 0,
                os.path.realpath(os.getcwd())]

    assert ground.run(look).value == [4, True, 1, True, str(ground.scratch)]
