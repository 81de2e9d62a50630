"""The launcher, run for real on a tiny project: real venv, real pip, one small wheel in place of torch."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
import zipfile
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAUNCHER = ROOT / "kata"
posix = pytest.mark.skipif(os.name == "nt", reason="uses POSIX signals and scripts")

COMMAND_LINE = """
import json, sys
print(json.dumps({"args": sys.argv[1:], "python": sys.executable, "prefix": sys.prefix}))
sys.exit(7 if "fail" in sys.argv else 0)
"""
FAKE_PYTEST = """
import json, os, sys
print(json.dumps({"args": sys.argv[1:], "threads": os.environ.get("OMP_NUM_THREADS")}))
print("==== 2 passed, 1 skipped in 0.01s ====")
print("something that speaks late")
sys.exit(3)
"""
#: An in-tree build backend. Where HOLD names a folder it reports there that it has begun, and waits to be released.
BACKEND = """
import os, pathlib, time, zipfile
def get_requires_for_build_editable(config_settings=None): return []
def prepare_metadata_for_build_editable(folder, config_settings=None):
    info = pathlib.Path(folder, "llmkata-0.dist-info"); info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: llmkata\\nVersion: 0\\n")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    return info.name
def build_editable(folder, config_settings=None, metadata_directory=None):
    hold = os.environ.get("HOLD")
    if hold:
        pathlib.Path(hold, "begun").touch()
        deadline = time.monotonic() + 300
        while not pathlib.Path(hold, "release").exists() and time.monotonic() < deadline: time.sleep(0.02)
    name = "llmkata-0-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(folder, name), "w") as wheel:
        wheel.writestr("llmkata.pth", str(pathlib.Path("src").resolve()))
        wheel.writestr("llmkata-0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: llmkata\\nVersion: 0\\n")
        wheel.writestr("llmkata-0.dist-info/WHEEL",
                       "Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("llmkata-0.dist-info/RECORD", "")
    return name
"""


def launcher_module():
    """The launcher as a module of its own, so that its parts can be tried."""
    loader = SourceFileLoader("kata_launcher", str(LAUNCHER))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def add_wheel(folder: Path, name: str, files: dict[str, str]) -> None:
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


PINS = "# pins\nfakepytest==1.0\n"


class Clone:
    """A tiny project beside a folder of wheels, started through the real launcher."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "clone with space"
        self.wheels = folder / "wheels"
        self.wheels.mkdir(parents=True)
        package = self.root / "src" / "llmkata" / "cli"
        package.mkdir(parents=True)
        (package.parent / "__init__.py").touch()
        (package / "__init__.py").touch()
        (package / "main.py").write_text(COMMAND_LINE)
        (self.root / "backend.py").write_text(BACKEND)
        (self.root / "pyproject.toml").write_text(
            '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
            '[project]\nname = "llmkata"\nversion = "0"\n'
        )
        self.lock = self.root / "requirements.lock"
        self.lock.write_text(PINS)
        shutil.copy(LAUNCHER, self.root / "kata")
        add_wheel(self.wheels, "fakepytest", {"pytest/__init__.py": "", "pytest/__main__.py": FAKE_PYTEST})

    @property
    def stamp(self) -> Path:
        return self.root / ".venv" / "kata-stamp"

    @property
    def log(self) -> Path:
        return self.root / ".kata" / "setup.log"

    def start(self, *args: str, **environment: str) -> subprocess.Popen[str]:
        # A test run has pip configuration of its own; only the folder of wheels may be asked here.
        env = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "KATA_", "PYTEST"))}
        env |= {"KATA_WHEELS": str(self.wheels), "PIP_CONFIG_FILE": os.devnull} | environment
        return subprocess.Popen(
            [sys.executable, str(self.root / "kata"), *args], env=env, cwd=self.root, text=True, encoding="utf-8",
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )

    def run(self, *args: str, **environment: str) -> tuple[int, str, str]:
        process = self.start(*args, **environment)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err


@pytest.fixture
def clone(tmp_path):
    """Nothing set up."""
    return Clone(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    clone = Clone(tmp_path_factory.mktemp("shared"))
    clone.first = clone.run("hello")
    return clone


@pytest.fixture
def stale(shared):
    """An environment whose set-up has not finished: all is there but the stamp."""
    shared.lock.write_text(PINS)
    shared.stamp.unlink(missing_ok=True)
    return shared


@pytest.fixture
def ready(shared):
    """Set up and unchanged since."""
    if shared.lock.read_text() != PINS or not shared.stamp.exists():
        shared.lock.write_text(PINS)
        assert shared.run("x")[0] == 0
    return shared


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path.name} never came"
        time.sleep(0.02)


# First run and later runs


def test_first_run_sets_up_and_hands_over(shared):
    status, out, err = shared.first
    assert status == 0, err
    answer = json.loads(out)  # nothing of the set-up on stdout
    assert answer["args"] == ["hello"]
    assert Path(answer["prefix"]) == shared.root / ".venv"
    assert "Setting up .venv" in err and "packages: 1," in err
    wheel = shared.wheels / "fakepytest-1.0-py3-none-any.whl"
    assert re.search(rf"\[  1/1\] fakepytest 1\.0 +{wheel.stat().st_size} B\n", err), "the package and its size"
    assert shared.stamp.exists()


def test_second_run_starts_at_once(ready):
    before = ready.log.stat().st_mtime_ns
    status, out, err = ready.run("again")
    assert (status, err) == (0, "") and json.loads(out)["args"] == ["again"]
    assert ready.log.stat().st_mtime_ns == before, "pip ran although nothing had changed"


def test_ready_path_imports_nothing_heavy(ready):
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run([sys.executable, "-X", "importtime", str(ready.root / "kata"), "x"],
                          capture_output=True, text=True, env=env, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "hashlib" in imported, "the import log is empty"
    assert not imported & {"subprocess", "threading", "json", "tempfile", "argparse", "shutil"}


@pytest.mark.parametrize("args", [
    ["--help"], ["grade", "a folder", "--out", "ünïcode"], ["check", "--", "--wheels", "kept"],
    ["", "*", "$HOME", "'\""], [],
])
def test_arguments_pass_through_unchanged(ready, args):
    status, out, _ = ready.run(*args)
    assert status == 0 and json.loads(out)["args"] == args


def test_exit_status_is_that_of_the_command(ready):
    assert ready.run("fail")[0] == 7


def test_runs_from_any_directory(ready, tmp_path):
    done = subprocess.run([sys.executable, str(ready.root / "kata"), "here"], cwd=tmp_path, capture_output=True,
                          text=True, check=True)
    assert json.loads(done.stdout)["args"] == ["here"]


# The stamp


@pytest.mark.parametrize("name", ["requirements.lock", "pyproject.toml"])
def test_changed_pins_are_set_up_again(ready, name):
    file = ready.root / name
    file.write_text(file.read_text() + "# changed\n")
    status, _, err = ready.run("x")
    assert status == 0 and "Setting up" in err
    assert ready.run("x")[2] == ""


def test_new_pin_is_installed(ready):
    add_wheel(ready.wheels, "newcomer", {"newcomer.py": ""})
    ready.lock.write_text("fakepytest==1.0\nnewcomer==1.0\n")
    status, _, err = ready.run("x")
    assert status == 0 and "newcomer 1.0" in err and "fakepytest 1.0" not in err, "what is there is not fetched again"
    python = json.loads(ready.run("x")[1])["python"]
    assert subprocess.run([python, "-c", "import newcomer"], check=False).returncode == 0


def test_stamp_of_another_folder_does_not_count(ready):
    ready.stamp.write_text(ready.stamp.read_text().replace(str(ready.root), "/elsewhere"))
    assert "Setting up" in ready.run("x")[2]
    assert str(ready.root) in ready.stamp.read_text()


def test_missing_interpreter_is_rebuilt(clone):
    digest = hashlib.sha256(clone.lock.read_bytes() + (clone.root / "pyproject.toml").read_bytes()).hexdigest()
    (clone.root / ".venv").mkdir()
    clone.stamp.write_text(f"{digest}\n{clone.root}\n")  # right, but its interpreter is gone
    remains = clone.root / ".venv" / "remains"
    remains.touch()
    status, out, err = clone.run("x")
    assert status == 0 and "Setting up" in err and json.loads(out)["args"] == ["x"]
    assert not remains.exists()
    assert clone.stamp.read_text() == f"{digest}\n{clone.root}\n"


# Interruptions and failures


def test_environment_without_pip_is_completed(clone):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(clone.root / ".venv")], check=True)
    status, out, err = clone.run("x")
    assert status == 0, err
    assert json.loads(out)["args"] == ["x"]


@posix
def test_interrupted_set_up_goes_on(stale, tmp_path):
    process = stale.start("x", HOLD=str(tmp_path))
    wait_for(tmp_path / "begun", process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and out == "" and "goes on from here" in err
    assert not stale.stamp.exists()
    status, out, err = stale.run("x")
    assert status == 0 and json.loads(out)["args"] == ["x"]
    assert "fakepytest" not in err, "what was installed before the interruption is kept"


@posix
def test_second_of_two_first_runs_waits(stale, tmp_path):
    first = stale.start("first", HOLD=str(tmp_path))
    wait_for(tmp_path / "begun", first)
    second = stale.start("second")
    assert "waiting" in second.stderr.readline()
    time.sleep(0.3)
    assert second.poll() is None and not stale.stamp.exists()
    (tmp_path / "release").touch()
    for process, name in ((first, "first"), (second, "second")):
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0 and json.loads(out)["args"] == [name]
        assert ("Setting up" in err) == (name == "first"), "only one of them sets up"


@posix
def test_killed_launcher_leaves_the_lock_to_its_pip(stale, tmp_path):
    first = stale.start("first", HOLD=str(tmp_path))
    wait_for(tmp_path / "begun", first)
    first.kill()
    first.wait()
    second = stale.start("second")
    assert "waiting" in second.stderr.readline(), "two pips in one .venv"
    (tmp_path / "release").touch()
    out, _ = second.communicate(timeout=300)
    assert second.returncode == 0 and json.loads(out)["args"] == ["second"]


def test_failing_pip_shows_its_words_and_the_next_command(stale):
    stale.lock.write_text("fakepytest==1.0\nnowhere-to-be-found==9.9\n")
    status, out, err = stale.run("x")
    assert (status, out) == (2, "") and not stale.stamp.exists()
    assert "No matching distribution found for nowhere-to-be-found==9.9" in err
    assert "Next: " in err and "pip download -r requirements.lock -d DIR" in err and "setup.log" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("line", "expected"), [
    ("Downloading torch-2.13.0-cp311-none-linux.whl (191.2 MB)", ("torch", "2.13.0", "191.2 MB")),
    ("  Using cached typing_extensions-4.16.0-py3-none-any.whl (45 kB)", ("typing-extensions", "4.16.0", "45 kB")),
    ("  Downloading antlr4-4.9.3.tar.gz (117 kB)", ("antlr4", "4.9.3", "117 kB")),
    ("Processing /gone away/PyYAML-6.0-cp311.whl (from -r /a b/requirements.lock (line 2))", ("pyyaml", "6.0", "")),
    ("  Downloading torch-2.13.0-cp311-none-linux.whl.metadata (31 kB)", None), ("Collecting torch==2.13.0", None),
])
def test_what_pip_fetches_is_read_from_its_output(line, expected):
    assert launcher_module().fetched_package(line) == expected


@pytest.mark.parametrize(("marker", "holds"), [
    ("", True), (f' sys_platform == "{sys.platform}"', True), (' sys_platform == "elsewhere"', False),
    (' python_version < "3.99"', True), (' python_version < "3.10"', False), (' platform_machine == "x86_64"', True),
])
def test_packages_for_another_system_are_not_counted(marker, holds):
    assert launcher_module().applies(marker) is holds


def test_ticks_of_a_download_are_shown_and_not_logged():
    progress = launcher_module().Progress(1)
    assert progress.line("Progress 262144 of 9861060") is True
    assert progress.status == "  3% of 9.9 MB"
    assert progress.line("Progress reports are fine") is False


@pytest.mark.parametrize(("count", "text"), [
    (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (9_999, "10 kB"), (999_600, "1.0 MB"),
    (191_200_000, "191 MB"), (2_340_000_000, "2.3 GB"),
])
def test_sizes_are_readable(count, text):
    assert launcher_module().size(count) == text


@pytest.mark.parametrize(("said", "wheels", "expected"), [
    (["OSError: [Errno 28] No space left on device"], None, "free some disk space"),
    (["Temporary failure in name resolution"], None, "./kata --wheels DIR"),
    (["No matching distribution found for torch"], "/media/usb", "/media/usb is incomplete"),
    (["something new"], None, "run the same command again"),
])
def test_next_step_fits_the_failure(said, wheels, expected):
    assert expected in launcher_module().next_step(said, wheels)


def test_missing_folder_of_wheels_is_named(clone):
    status, _, err = clone.run("--wheels", "nowhere", "x")
    assert status == 2 and "nowhere: no such folder" in err and not (clone.root / ".venv").exists()


# Options


@pytest.mark.parametrize(("argv", "environment", "expected"), [
    (["start"], None, (["start"], None)),
    (["--wheels", "w", "start"], None, (["start"], "w")),
    (["start", "--wheels=w"], "env", (["start"], "w")),
    (["start"], "env", (["start"], "env")),
    (["start"], "", (["start"], None)),
    (["test", "--", "--wheels", "w"], None, (["test", "--", "--wheels", "w"], None)),
])
def test_wheels_option(argv, environment, expected):
    assert launcher_module().split_options(argv, environment) == expected


def test_variables_that_redirect_pip_are_dropped_and_others_honoured(stale):
    status, _, err = stale.run("x", PIP_TARGET=str(stale.root / "elsewhere"), PIP_USER="1", PIP_NO_INDEX="1",
                               PIP_FIND_LINKS=str(stale.wheels), KATA_WHEELS="")
    assert status == 0, err
    assert not (stale.root / "elsewhere").exists()


# Which Python


def test_readable_for_an_old_python():
    ast.parse(LAUNCHER.read_text(encoding="utf-8"), feature_version=(3, 6))
    with pytest.raises(SyntaxError):  # the parser does enforce the version
        ast.parse("match x:\n case 1: pass", feature_version=(3, 6))


def fake_python(folder: Path, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def run_as_old_python(clone: Clone, path: Path) -> subprocess.CompletedProcess[str]:
    """The launcher under an interpreter that says it is 3.9, with ``path`` as the PATH."""
    code = ("import runpy, sys; sys.version_info = (3, 9, 2, 'final', 0); "
            f"sys.argv = ['kata', 'a b', '--c']; runpy.run_path({str(clone.root / 'kata')!r}, run_name='__main__')")
    env = {"PATH": str(path), "KATA_WHEELS": str(clone.wheels), "PIP_CONFIG_FILE": os.devnull, "HOME": str(path)}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300,
                          check=False)


@posix
def test_old_python_starts_a_supported_one(stale, tmp_path):
    path = tmp_path / "bin"
    here = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for name in ("python3.11", "python3.12", "python3.13"):
        fake_python(path, name, "echo 'command not found' >&2; exit 127")  # a shim without a Python behind it
    fake_python(path, here, f'exec "{sys.executable}" "$@"')
    done = run_as_old_python(stale, path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["args"] == ["a b", "--c"]


@posix
def test_old_python_alone_says_what_to_install(clone, tmp_path):
    fake_python(tmp_path / "bin", "python3.12", "echo 3 10")  # a name is no proof
    done = run_as_old_python(clone, tmp_path / "bin")
    assert done.returncode == 2 and not (clone.root / ".venv").exists()
    for words in ("this is Python 3.9.2", "3.11, 3.12 or 3.13", "Next: install one"):
        assert words in done.stderr
    assert "Traceback" not in done.stderr


@posix
def test_once_set_up_the_age_of_the_starting_python_does_not_matter(ready, tmp_path):
    done = run_as_old_python(ready, tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout)["args"] == ["a b", "--c"]


@posix
def test_unsupported_environment_is_left_alone(clone):
    bin_ = clone.root / ".venv" / "bin"
    bin_.mkdir(parents=True)
    fake_python(bin_, "python", "echo 3 10")
    status, _, err = clone.run("x")
    assert status == 2 and ".venv holds Python 3.10" in err and "mv .venv old-venv" in err
    assert (bin_ / "python").read_text().endswith("echo 3 10\n")


# kata test


def test_test_runs_pytest_single_threaded_and_closes_with_its_line(ready):
    status, out, _ = ready.run("test")
    lines = out.strip().splitlines()
    answer = json.loads(lines[0])
    assert status == 3 and answer["threads"] == "1"
    *spread, tests = answer["args"]
    assert Path(tests) == ready.root / "tests" and spread[0] == "-n" and spread[2:] == ["--dist", "loadfile"]
    assert 1 <= int(spread[1]) <= 4
    assert lines[-2:] == ["something that speaks late", "==== 2 passed, 1 skipped in 0.01s ===="]


def test_test_takes_paths_and_options(ready):
    _, out, _ = ready.run("test", "backend.py::x", "-k", "name")
    assert json.loads(out.splitlines()[0])["args"] == [str(ready.root / "backend.py::x"), "-k", "name"]
    _, out, _ = ready.run("test", "-k", "name")
    assert json.loads(out.splitlines()[0])["args"] == [str(ready.root / "tests"), "-k", "name"]


@pytest.mark.parametrize(("line", "closing"), [
    ("============ 12 passed in 3.21s ============", True), ("1 failed, 2 passed, 1 warning in 61.0s (0:01:01)", True),
    ("======== no tests ran in 0.00s ========", True), ("12 passed the exam in 3 tries", False),
    ("short test summary", False),
])
def test_closing_line_is_recognised(line, closing):
    assert launcher_module().is_closing(line) is closing


# The real thing


def test_help_of_this_very_project():
    if not launcher_module().is_ready():
        pytest.skip("this clone was not set up by ./kata: a real set-up takes minutes")
    done = subprocess.run([sys.executable, str(LAUNCHER), "--help"], capture_output=True, text=True, timeout=300,
                          check=False)
    assert done.returncode == 0, done.stderr
    assert "grade" in done.stdout and "check" in done.stdout


# What is typed on Windows


def test_the_batch_file_hands_everything_to_the_launcher_beside_it():
    data = (Path(__file__).parents[1] / "kata.cmd").read_bytes()
    lines = data.decode("ascii").split("\r\n")
    assert b"\n" not in data.replace(b"\r\n", b"")  # cmd may misread a file with other line ends
    assert '%PYTHON% "%~dp0kata" %*' in lines and "exit /b %ERRORLEVEL%" in lines
    assert [line for line in lines if "PYTHON=" in line] == ['set "PYTHON=python"', 'where /q py && set "PYTHON=py -3"']


@pytest.mark.parametrize(("below", "posix", "windows"), [(".", "./kata", ".\\kata"), ("a/b", "../../kata", "..\\..\\kata")])
def test_commands_shown_can_be_pasted_on_either_system(tmp_path, monkeypatch, below, posix, windows):
    from llmkata.course import launcher

    (tmp_path / below).mkdir(parents=True, exist_ok=True)
    for name in ("kata", "course.yaml"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path / below)
    for system, told in (("posix", posix), ("nt", windows)):
        monkeypatch.setattr(launcher, "os", types.SimpleNamespace(name=system, path=os.path))
        assert launcher.launcher() == told
