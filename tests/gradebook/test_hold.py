"""One run at a time in a folder, whatever became of the one before."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import msgspec
import pytest

from llmkata.gradebook.hold import LOCK, NOTE, FolderInUse, Holder, held

#: Has the folder, says so, and waits to be told to go on; with a child that outlives it where asked.
HOLDER = """\
import os, sys, time
from pathlib import Path
from llmkata.gradebook.hold import held

with held(Path(sys.argv[1]), "kata grade submissions/ --out report"):
    if sys.argv[2] == "fork":
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        print(child, flush=True)
    else:
        print("held", flush=True)
    sys.stdin.readline()
"""


def start(folder: Path, how: str = "alone") -> tuple[subprocess.Popen, str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return process, process.stdout.readline().strip()


def heard(folder: Path, patience: float = 0.0) -> list[Holder]:
    """Take the folder and let go; what was heard of an earlier run."""
    found: list[Holder] = []
    with held(folder, "kata report report/", left_behind=found.append, patience=patience):
        pass
    return found


def test_the_second_is_told_who_and_since_when_and_gets_it_afterwards(tmp_path: Path) -> None:
    process, _ = start(tmp_path / "report")
    try:
        with pytest.raises(FolderInUse) as refused, held(tmp_path / "report", "kata report report/"):
            pass
        said = str(refused.value)
        holder = refused.value.holder
        assert holder.pid == process.pid and holder.host == socket.gethostname()
        assert f"{tmp_path / 'report'} is in use: kata grade submissions/ --out report, begun 20" in said
        assert f"process {process.pid}" in said
        assert f"Wait until it has ended; if it hangs, 'kill {process.pid}' ends it" in said
    finally:
        process.communicate("\n")
    assert process.returncode == 0
    assert not heard(tmp_path / "report"), "it ended properly: nothing was left behind"
    assert not (tmp_path / "report" / NOTE).exists() and (tmp_path / "report" / LOCK).exists()


def test_who_waits_gets_it_when_it_is_free(tmp_path: Path) -> None:
    process, _ = start(tmp_path)
    process.stdin.write("\n")
    process.stdin.flush()
    with held(tmp_path, "kata ci", patience=60):
        pass
    assert process.wait() == 0


def test_a_run_that_was_killed_holds_up_nobody_and_is_told(tmp_path: Path) -> None:
    process, _ = start(tmp_path)
    process.kill()
    process.communicate()
    (left,) = heard(tmp_path)
    assert left.pid == process.pid and left.command == "kata grade submissions/ --out report"
    assert not heard(tmp_path), "told once"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_children_that_outlive_a_killed_run_do_not_keep_its_lock(tmp_path: Path) -> None:
    process, child = start(tmp_path, "fork")
    try:
        process.kill()
        process.wait()
        # The child lives for a minute; it lets go as soon as it is scheduled for the first time.
        assert len(heard(tmp_path, patience=20)) == 1
    finally:
        os.kill(int(child), signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("note", [b"", b'{"command": "kata', b'{"command":"k","pid":1,"host":"h","user":"u","since":"yesterday"}'])
def test_a_note_that_cannot_be_read_stops_nobody(tmp_path: Path, note: bytes) -> None:
    (tmp_path / NOTE).write_bytes(note)
    assert not heard(tmp_path)


def test_it_is_free_after_an_error_and_times_are_told(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), held(tmp_path, "kata report"):
        1 / 0  # noqa: B018
    assert not heard(tmp_path)
    now = datetime.now().astimezone().timestamp()
    for seconds, told in {30: "just now", 600: "10 min ago", 3 * 3600 + 60: "3 h ago"}.items():
        since = datetime.fromtimestamp(now - seconds).astimezone().isoformat()
        assert told in str(Holder("kata", 1, "elsewhere", "ann", since))
    other = FolderInUse(tmp_path, Holder("kata", 1, "elsewhere", "ann", since))
    assert "kill" not in str(other), "a process of another machine is not ours to end"
    assert "just begun" in str(FolderInUse(tmp_path, None))
    assert msgspec.json.decode(msgspec.json.encode(other.holder), type=Holder) == other.holder
