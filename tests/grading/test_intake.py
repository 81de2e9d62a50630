"""Intake: the layouts that are understood, and hostile folders, files, notebooks and encodings."""

from __future__ import annotations

import ast
import json
import os
import time
from pathlib import Path

import pytest

from llmkata.course import Course, load_course
from llmkata.grading import choose, opening
from llmkata.grading.folder import printable, read_bytes
from llmkata.grading.intake import IntakeError, Submission, read_class, read_file, read_submissions
from llmkata.grading.notebook import NotebookError, notebook_source, strip_magics
from llmkata.grading.source import Unreadable, python_source, syntax_faults
from llmkata.records import State, decode, encode

ROOT = Path(__file__).parents[2]
ATTENTION = "module2/self_attention"
CODE = b"def attention():\n    return 1\n"


@pytest.fixture(scope="module")
def course() -> Course:
    return load_course(ROOT)


@pytest.fixture
def hand_in(tmp_path: Path, course: Course):
    """Write files (path -> bytes) as one learner and return the submission for self-attention."""

    def write(files: dict[str, bytes]) -> Submission:
        folder = tmp_path / "class" / "ada"
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return take(tmp_path / "class", course)

    return write


def take(folder: Path, course: Course) -> Submission:
    return next(s for s in read_submissions(folder, course) if s.exercise_id == ATTENTION)


def notebook(*cells: str, **more: object) -> bytes:
    code = [{"cell_type": "code", "source": c, "metadata": {}, "outputs": []} for c in cells]
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": code} | more).encode()


@pytest.mark.parametrize(
    "name",
    [
        "exercises/module2/self_attention/self_attention.py",
        "module2/self_attention.py",
        "module2/self_attention/self_attention.py",
        "self_attention.py",
        "ada-llm-course-main/exercises/module2/self_attention/self_attention.py",
    ],
)
def test_layouts(hand_in, name: str) -> None:
    got = hand_in({name: CODE})
    assert (got.learner, got.source, got.file, got.state) == ("ada", CODE, name, None)
    assert (got.ignored, got.notes, got.cause) == ([], [], "")


def test_a_placeholder_of_git_leaves_a_folder_empty(hand_in) -> None:
    got = hand_in({".gitkeep": b""})
    assert (got.state, got.ignored) == (State.missing, [])


def test_every_available_exercise_is_missing_from_an_empty_folder(tmp_path, course) -> None:
    (tmp_path / "bob").mkdir()
    found = read_submissions(tmp_path, course)
    assert [s.exercise_id for s in found] == [e.id for e in course.available]
    assert {s.state for s in found} == {State.missing}
    assert found[0].cause == "No matrix_calculus.py was handed in."


def test_learners_come_in_order_and_strays_are_told(tmp_path, course) -> None:
    for name in ("zoe", "ada", ".git", "__MACOSX"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "linked").symlink_to(tmp_path / "zoe")
    assert sorted({s.learner for s in read_submissions(tmp_path, course)}) == ["ada", "zoe"]
    assert read_class(tmp_path, course).strays == [".git", "linked", "notes.txt"]


def test_a_folder_that_is_no_class(tmp_path, course) -> None:
    with pytest.raises(IntakeError, match="does not exist"):
        read_submissions(tmp_path / "none", course)
    with pytest.raises(IntakeError, match="holds no folder"):
        read_submissions(tmp_path, course)
    (tmp_path / "module2").mkdir()
    with pytest.raises(IntakeError, match="folder of one learner"):
        read_submissions(tmp_path, course)


def test_files_that_could_run_code_or_forge_results_are_ignored_and_listed(hand_in) -> None:
    hostile = [
        "conftest.py",
        "pytest.ini",
        "sitecustomize.py",
        "module2/evil.pth",
        "helper.py",
        "results.json",
        "exercises/module2/self_attention/conftest.py",
    ]
    folders = {
        "__pycache__/self_attention.cpython-311.pyc": b"",
        "torch-9.dist-info/RECORD": b"",
        ".git/config": b"",
        "a/b/c.txt": b"",
    }
    got = hand_in({"module2/self_attention.py": CODE} | dict.fromkeys(hostile, b"x = 1") | folders)
    assert got.source == CODE
    assert set(got.ignored) == {
        ".git/", "__pycache__/", "a/", "conftest.py", "exercises/", "helper.py", "module2/evil.pth",
        "pytest.ini", "results.json", "sitecustomize.py", "torch-9.dist-info/",
    }  # fmt: skip


def test_what_ships_with_an_exercise_is_not_listed(hand_in) -> None:
    folder = "exercises/module2/self_attention/"
    got = hand_in(
        {
            folder + n: CODE
            for n in ("self_attention.py", "test_self_attention.py", "README.md", "feedback.json", "mine.py")
        }
    )
    assert got.ignored == [folder + "mine.py"]


def test_what_a_released_repository_came_with_is_not_listed(hand_in) -> None:
    files = dict.fromkeys(("kata", "docs/learner.md", "vendor/llmkata.whl", ".kata-stubs/module2/self_attention.py"), b"")
    own = {"exercises/module2/self_attention/self_attention.py": CODE, "conftest.py": b"", "notes/docs/x.md": b""}
    got = hand_in(files | own | {".kata-release.json": b"{}"})
    assert (got.source, got.ignored) == (CODE, ["conftest.py", "notes/"])


def test_without_its_manifest_nothing_is_taken_for_a_release(hand_in) -> None:
    got = hand_in({"exercises/module2/self_attention/self_attention.py": CODE, "kata": b"", "vendor/llmkata.whl": b""})
    assert got.ignored == ["kata", "vendor/"]


def test_another_exercise_file_is_listed_there_only(tmp_path, course, hand_in) -> None:
    hand_in(
        {"module2/self_attention.py": CODE, "module0/matrix_calculus/x.py": CODE, "module0/matrix_calculus.py": CODE}
    )
    ignored = {s.exercise_id: s.ignored for s in read_submissions(tmp_path / "class", course)}
    assert ignored[ATTENTION] == []
    assert ignored["module0/matrix_calculus"] == ["module0/matrix_calculus/"]


def test_links_are_not_followed(tmp_path, course) -> None:
    secret = tmp_path / "secret.py"
    secret.write_bytes(CODE)
    ada = tmp_path / "class" / "ada"
    ada.mkdir(parents=True)
    (ada / "self_attention.py").symlink_to(secret)
    (ada / "module0").symlink_to(tmp_path)
    got = take(tmp_path / "class", course)
    assert (got.source, got.state) == (None, State.unreadable)
    assert "a link" in got.cause and "Hand in the file itself" in got.cause
    assert got.ignored == ["module0 (a link)"]
    (ada / "self_attention.py").unlink()
    (ada / "self_attention.py").write_bytes(CODE)
    assert take(tmp_path / "class", course).source == CODE


def test_a_linked_folder_lends_no_file(tmp_path, course) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "self_attention.py").write_bytes(CODE)
    (tmp_path / "class" / "ada").mkdir(parents=True)
    (tmp_path / "class" / "ada" / "module2").symlink_to(elsewhere)
    assert take(tmp_path / "class", course).state is State.missing


def test_a_folder_or_a_pipe_named_like_the_file(tmp_path, course) -> None:
    ada = tmp_path / "class" / "ada"
    (ada / "module2" / "self_attention.py").mkdir(parents=True)
    assert "is a folder" in take(tmp_path / "class", course).cause
    (ada / "module2" / "self_attention.py").rmdir()
    os.mkfifo(ada / "module2" / "self_attention.py")
    got = take(tmp_path / "class", course)
    assert got.state is State.unreadable and "not a plain file" in got.cause


def test_reading_takes_nothing_but_a_plain_file(tmp_path) -> None:
    (tmp_path / "plain").write_bytes(CODE)
    (tmp_path / "link").symlink_to(tmp_path / "plain")
    os.mkfifo(tmp_path / "pipe")
    assert read_bytes(tmp_path / "plain", 3) == CODE[:3]
    for name in ("link", "pipe"):
        with pytest.raises(OSError):
            read_bytes(tmp_path / name, 3)


def test_python_comes_before_a_notebook(hand_in) -> None:
    got = hand_in({"module2/self_attention.py": CODE, "module2/self_attention.ipynb": notebook("x = 1")})
    assert got.source == CODE
    assert got.notes == ["module2/self_attention.ipynb was not used: module2/self_attention.py comes first"]
    assert got.ignored == ["module2/self_attention.ipynb"]


def test_the_exercise_tree_comes_before_other_places(hand_in) -> None:
    tree = "exercises/module2/self_attention/self_attention.py"
    got = hand_in({tree: CODE, "old/self_attention.py": b"x = 1\n"})
    assert got.source == CODE
    assert got.notes == [f"{tree} was used, not old/self_attention.py"]


def test_two_flat_files_are_nobodys_guess(hand_in) -> None:
    got = hand_in({"a/self_attention.py": CODE, "b/self_attention.py": b"x = 1\n"})
    assert got.state is State.unreadable
    assert "a/self_attention.py and b/self_attention.py" in got.cause and "module2/self_attention.py" in got.cause
    same = hand_in({"b/self_attention.py": CODE})
    assert same.source == CODE


def test_the_untouched_stub_gives_way_to_work(hand_in, course) -> None:
    stub = course.exercise(ATTENTION).stub
    if not stub.is_file():
        pytest.skip("the stub is not there yet")
    got = hand_in({"exercises/module2/self_attention/self_attention.py": stub.read_bytes(), "self_attention.py": CODE})
    assert got.source == CODE


def test_solutions_of_a_whole_copy_of_the_course_are_no_submission(hand_in) -> None:
    assert hand_in({"solutions/module2/self_attention.py": CODE}).state is State.missing


@pytest.mark.parametrize(
    "name", ["Self_Attention.py", "self-attention (1).py", "module2/self_attention.py.txt", "self_attention_final.py"]
)
def test_a_similar_name_is_suggested(hand_in, name: str) -> None:
    got = hand_in({name: CODE})
    assert got.state is State.missing
    assert name in got.cause and "Rename it to self_attention.py" in got.cause


def test_hostile_names_can_be_shown_and_stored(tmp_path, course) -> None:
    folder = os.fsencode(tmp_path / "class") + b"/e\xffve\x1b[31m"
    os.makedirs(folder)
    for name in (b"x\x1b]0;pwn\x07.py", b"\xff\xfe.py", b"=cmd()\n.py"):
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(CODE)
    got = take(tmp_path / "class", course)
    assert got.learner == "e\\xffve\\x1b[31m"
    assert got.ignored == ["=cmd()\\n.py", "x\\x1b]0;pwn\\x07.py", "\\xff\\xfe.py"]
    assert decode(encode(got.record())) == got.record()


def test_too_many_files_and_too_deep(hand_in, monkeypatch) -> None:
    monkeypatch.setattr("llmkata.grading.folder.MAX_ENTRIES", 10)
    got = hand_in({f"junk/{n}.txt": b"" for n in range(50)})
    assert got.notes == ["more than 10 files were handed in; the rest was not looked at"]
    monkeypatch.undo()
    assert hand_in({"d/" * 20 + "self_attention.py": CODE}).state is State.missing


def test_many_files_of_the_name_are_not_all_opened(hand_in, monkeypatch) -> None:
    opened = []
    read = choose.read_bytes
    monkeypatch.setattr(choose, "read_bytes", lambda path, most: (opened.append(path), read(path, most))[1])
    files = {f"{n}/self_attention.py": b"x = %d\n" % n for n in range(100)} | {"z/module2/self_attention.py": CODE}
    got = hand_in(files)
    assert got.source == CODE and len(opened) <= 8


def test_a_long_list_of_ignored_files_is_cut(hand_in) -> None:
    got = hand_in({"self_attention.py": CODE} | {f"{n:03}.txt": b"" for n in range(100)})
    assert len(got.ignored) == 31 and got.ignored[-1] == "and 70 more"


def test_one_unreadable_folder_stops_nobody(tmp_path, course, monkeypatch) -> None:
    for name in ("ada", "bob"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "self_attention.py").write_bytes(CODE)
    walk = opening.walk

    def fail(folder):
        if folder.name == "ada":
            raise PermissionError(13, "Permission denied")
        return walk(folder)

    monkeypatch.setattr(opening, "walk", fail)
    found = {s.learner: s for s in read_submissions(tmp_path, course) if s.exercise_id == ATTENTION}
    assert found["ada"].state is State.unreadable and "Permission denied" in found["ada"].cause
    assert found["bob"].source == CODE


# --- encodings ------------------------------------------------------------


def test_utf8_with_and_without_byte_order_mark() -> None:
    text = "x = 'é'\n".encode()
    assert python_source(text) == (text, [])
    assert python_source(b"\xef\xbb\xbf" + text) == (text, [])
    assert python_source(b"\xef\xbb\xbf# coding: latin-1\n" + text) == (b"# coding: utf-8\n" + text, [])


def test_a_coding_line_is_honoured() -> None:
    source, notes = python_source("#!/usr/bin/python\n# -*- coding: cp1252 -*-\nx = 'é€'\n".encode("cp1252"))
    assert source == "#!/usr/bin/python\n# -*- coding: utf-8 -*-\nx = 'é€'\n".encode()
    assert notes == ["read as cp1252, as its coding line declares"]
    assert ast.literal_eval(ast.parse(source).body[0].value) == "é€"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("x = 'é'\n".encode("latin-1"), r"byte 0xe9 on line 1"),
        (b"a = 1\nx = '\xe9'\n", "on line 2"),
        ("x = 1\n".encode("utf-16"), "UTF-16"),
        ("x = 1\n".encode("utf-16-le"), "NUL bytes"),
        ("x = 1\n".encode("utf-32"), "UTF-16 or UTF-32"),
        (b"x = 1\0\n", "NUL bytes"),
        (b"# coding: no-such\nx = 1\n", "does not exist"),
        (b"# coding: punycode\nx = 1\n", "not accepted"),
        (b"# coding: utf-7\nx = 1\n", "not accepted"),
        (b"# coding: rot13\nx = 1\n", "not accepted"),
        ("# coding: ascii\nx = 'é'\n".encode(), "declares the encoding 'ascii'"),
    ],
)
def test_other_encodings_have_a_cause_and_a_next_step(data: bytes, says: str) -> None:
    with pytest.raises(Unreadable, match=says) as caught:
        python_source(data)
    assert "Save the file as UTF-8" in str(caught.value)


def test_wrong_encoding_is_unreadable_not_missing(hand_in) -> None:
    got = hand_in({"self_attention.py": "x = 1\n".encode("utf-16")})
    assert (got.state, got.file) == (State.unreadable, "self_attention.py")
    assert got.record().state is State.unreadable and "UTF-8" in got.record().cause


def test_too_large(hand_in) -> None:
    assert "1 MiB" in hand_in({"self_attention.py": b"#" * (1 << 20) + b"\n"}).cause
    assert "KiB" in hand_in({"self_attention.py": b"#" * (5 << 20)}).cause
    assert hand_in({"self_attention.py": b"#" * ((1 << 20) - 1) + b"\n"}).cause == ""


# --- syntax ------------------------------------------------------------


def test_a_syntax_error_shows_line_and_caret(hand_in) -> None:
    got = hand_in({"self_attention.py": b"import torch\n\ndef attention(q, k:\n    return q\n"})
    assert got.state is State.unreadable
    assert got.cause == "Python cannot read line 3: '(' was never closed. Until it is mended nothing in the file can be judged."
    assert got.evidence.summary == "SyntaxError on line 3: '(' was never closed"
    assert got.evidence.got == "def attention(q, k:\n             ^"
    assert got.evidence.index == "line 3, column 14"
    assert got.evidence.frames == ["self_attention.py:3: def attention(q, k:"]


@pytest.mark.parametrize(("most", "bytes_at_once", "processes"), [(2, 1 << 20, 3), (200, 2 * len(CODE), 3), (200, 1 << 20, 1), (200, 1, 5)])
def test_syntax_errors_stay_with_their_learner(tmp_path, course, monkeypatch, most, bytes_at_once, processes) -> None:
    monkeypatch.setattr(choose, "_COMPILED_AT_ONCE", most)
    monkeypatch.setattr(choose, "_COMPILED_BYTES", bytes_at_once)
    asked: list[int] = []
    monkeypatch.setattr(choose, "syntax_faults", lambda s, n: asked.append(len(s)) or syntax_faults(s, n))
    for number, name in enumerate("abcde"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "self_attention.py").write_bytes(b"def f(:".ljust(len(CODE)) if number % 2 else CODE)
    found = {s.learner: s.state for s in read_submissions(tmp_path, course) if s.exercise_id == ATTENTION}
    assert found == {"a": None, "b": State.unreadable, "c": None, "d": State.unreadable, "e": None}
    assert len(asked) == processes and sum(asked) == 5


def test_errors_the_parser_alone_does_not_see() -> None:
    (fault,) = syntax_faults([b"return 1\n"], ["f.py"])
    assert "'return' outside function" in fault.cause


def test_a_long_line_is_cut_around_the_caret() -> None:
    (fault,) = syntax_faults([b"x = '" + b"a" * 500 + b"' ]\x1b" + b" " * 500 + b"\n"], ["f.py"])
    line, caret = fault.evidence.got.split("\n")
    assert len(line) <= 100 and line[len(caret) - 1] == "]"
    assert fault.evidence.got.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "source", [b"a" + b".b" * 200_000, b"not " * 200_000 + b"1", b"(" * 5_000, b"x=" + b"9" * 10_000]
)
def test_sources_that_overflow_the_compiler(source: bytes) -> None:
    (fault,) = syntax_faults([source], ["f.py"])
    assert fault is not None


def test_a_source_that_takes_the_compiler_too_long_costs_only_itself(monkeypatch) -> None:
    monkeypatch.setattr("llmkata.grading.source.COMPILE_SECONDS", 0.5)
    slow = b"f'" + b"{a}" * 150_000 + b"'\n"
    began = time.monotonic()
    late, fine = syntax_faults([slow, CODE], ["slow.py", "fine.py"])
    assert "to compile" in late.cause and fine is None
    assert time.monotonic() - began < 5


def test_compiling_runs_nothing(tmp_path) -> None:
    target = tmp_path / "ran"
    assert syntax_faults([f"open({str(target)!r}, 'w')\n".encode()], ["f.py"]) == [None]
    assert not target.exists()


# --- notebooks ------------------------------------------------------------


def test_code_cells_in_order_magics_dropped_and_listed(hand_in) -> None:
    data = json.loads(notebook("%matplotlib inline\nimport math\n!pip install x", "y = math.pi"))
    data["cells"].insert(1, {"cell_type": "markdown", "source": ["# Title\n", "text"], "metadata": {}})
    data["cells"][2]["source"] = ["y = (\n", "  math.pi)\n"]
    got = hand_in({"module2/self_attention.ipynb": json.dumps(data).encode()})
    assert got.source == b"# cell 1\npass\nimport math\npass\n\n\n# cell 3\ny = (\n  math.pi)\n"
    assert got.notes == ["notebook: dropped 2 magic lines (%matplotlib inline, !pip install x)"]


def test_future_imports_of_any_cell_come_first() -> None:
    cells = ["%matplotlib inline\nx = 1", "from __future__ import annotations, division\ny: T = 2",
             's = """\nfrom __future__ import this_is_text\n"""']  # fmt: skip
    text, _ = notebook_source(notebook(*cells))
    assert text.splitlines()[0] == "from __future__ import annotations, division"
    scope: dict = {}
    exec(compile(text, "nb", "exec", dont_inherit=True), scope)  # noqa: S102
    assert (scope["x"], scope["y"], scope["s"]) == (1, 2, "\nfrom __future__ import this_is_text\n")


@pytest.mark.parametrize(
    ("cell", "code", "magics"),
    [
        ("x = (7\n  % 2)\n", "x = (7\n  % 2)\n", []),
        ('s = """\n%time\n!ls\n"""', 's = """\n%time\n!ls\n"""', []),
        ("s = '%d' \\\n  % 3", "s = '%d' \\\n  % 3", []),
        ("a = 1 # what?\nb = a != 2", "a = 1 # what?\nb = a != 2", []),
        ("if x:\n    !ls 'it\ny = 1", "if x:\n    pass\ny = 1", ["!ls 'it"]),
        ("files = !ls\nr = %timeit f()\nd['k'] = !pwd", "pass\npass\npass", ["files = !ls", "r = %timeit f()", "d['k'] = !pwd"]),
        ("?torch\ntorch.mm??\nx = 1", "pass\npass\nx = 1", ["?torch", "torch.mm??"]),
        ("%%bash\nrm -rf x\n", "", ["%%bash"]),
        ("%%writefile a.py\nx = 1\n", "", ["%%writefile a.py"]),
        ("%%time\n%load_ext x\ny = 1", "pass\ny = 1", ["%%time", "%load_ext x"]),
        ("\n%%capture out\ny = 1", "y = 1", ["%%capture out"]),
        ("%%", "", ["%%"]),
    ],
)  # fmt: skip
def test_what_is_a_magic(cell: str, code: str, magics: list[str]) -> None:
    assert strip_magics(cell) == (code, magics)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not valid JSON"),
        (b"[1, 2]", "not a Jupyter notebook"),
        (b'{"cells": []}', "not a Jupyter notebook"),
        (b'{"nbformat": 4, "cells": [{"cell_type": "code", "source": 7}]}', "not a Jupyter notebook"),
        (b'{"nbformat": 3, "worksheets": []}', "format before 4"),
        (b'{"nbformat": 4, "cells": []}', "no code cell"),
        (b'{"nbformat": 4, "metadata": {"language_info": {"name": "R"}}, "cells": []}', "not for Python"),
        (b'{"nbformat": 4, "x": ' + b"[" * 200_000 + b"]" * 200_000 + b', "cells": []}', "nested too deeply"),
        (b'{"nbformat": 4, "cells": [{"cell_type": "code", "source": "\xff"}]}', "not valid JSON"),
        (notebook(*["x = 1"] * 6_000), "cells, more than"),
        (notebook("#" * (1 << 20) + "#"), "MiB of code"),
        (notebook("%%bash\nls"), "no code cell"),
    ],
)
def test_what_is_no_notebook(data: bytes, says: str) -> None:
    with pytest.raises(NotebookError, match=says):
        notebook_source(data)


def test_half_a_character_in_a_notebook() -> None:
    with pytest.raises(Unreadable):
        python_source(b'{"nbformat": 4, "cells": [{"cell_type": "code", "source": "x = \'\\ud800\'"}]}', notebook=True)


def test_scanning_a_hostile_cell_takes_linear_time() -> None:
    began = time.monotonic()
    for cell in ("'\\" * 300_000, "x = '" + "\\'" * 300_000 + "\n%time", '"""' * 200_000, "(" * 600_000 + "\n!a"):
        strip_magics(cell)
    assert time.monotonic() - began < 5


# --- one file ------------------------------------------------------------


def test_a_named_file_may_have_any_name_and_be_a_link(tmp_path, course) -> None:
    (tmp_path / "mine.py").write_bytes(CODE)
    (tmp_path / "link.py").symlink_to(tmp_path / "mine.py")
    exercise = course.exercise(ATTENTION)
    assert read_file(tmp_path / "link.py", exercise, course).source == CODE
    (tmp_path / "nb.ipynb").write_bytes(notebook("x = 1"))
    assert read_file(tmp_path / "nb.ipynb", exercise, course).source == b"# cell 1\nx = 1\n"
    (tmp_path / "mine.py").write_bytes(b"def f(:\n")
    assert read_file(tmp_path / "mine.py", exercise, course).evidence.index.startswith("line 1")
    assert "cannot be opened" in read_file(tmp_path / "none.py", exercise, course).cause


def test_a_record_of_what_can_be_graded_is_refused(hand_in) -> None:
    with pytest.raises(ValueError, match="there to be graded"):
        hand_in({"self_attention.py": CODE}).record()


def test_printable() -> None:
    assert printable("é\u202e\x00\udcff") == "é\\u202e\\x00\\xff"
