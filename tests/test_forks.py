"""Libraries that a fork imported are imported by the process it came from; nothing else is."""

from __future__ import annotations

import subprocess
import sys

from llmkata.forks import bring_in, new_libraries, with_libraries, without_libraries


def test_only_libraries_are_told_parents_first(tmp_path, monkeypatch):
    (tmp_path / "learners_own.py").write_text("x = 1\n")
    code = ("import sys; sys.path.insert(0, sys.argv[1]); from llmkata.forks import new_libraries; known = set(sys.modules); "
            "import learners_own, xml.dom.minidom; print(*new_libraries(known))")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    told = done.stdout.split()
    assert {"xml", "xml.dom", "xml.dom.minidom"} <= set(told) and "learners_own" not in told
    assert [told.index(n) for n in ("xml", "xml.dom", "xml.dom.minidom")] == sorted(map(told.index, ("xml", "xml.dom", "xml.dom.minidom")))


def test_libraries_of_a_user_or_of_another_environment_count(tmp_path):
    """Folders of installed packages lie outside of sys.prefix, too: pip install --user, a .pth file."""
    for folder in ("site-packages", "elsewhere"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"lies_in_{folder[:4]}.py").write_text("x = 1\n")
    code = ("import sys; sys.path += sys.argv[1:]; from llmkata.forks import new_libraries; known = set(sys.modules); "
            "import lies_in_site, lies_in_else; print(*new_libraries(known))")
    done = subprocess.run([sys.executable, "-c", code, *(str(tmp_path / f) for f in ("site-packages", "elsewhere"))],
                          capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["lies_in_site"]


def test_what_cannot_be_imported_is_let_be():
    import importlib.util

    name = next(n for n in ("sndhdr", "chunk", "nntplib", "this") if n not in sys.modules and importlib.util.find_spec(n))
    known = set(sys.modules)
    bring_in(["", "no_such_module_here", name])
    assert name in sys.modules and name in new_libraries(known)
    del sys.modules[name]


def test_what_is_said_arrives_with_and_without_libraries():
    known = set(sys.modules)
    assert without_libraries(with_libraries(b'{"a": 1}', known)) == b'{"a": 1}'
    said = with_libraries(b"{}", known - {"subprocess"})
    assert said == b"{}\nsubprocess" and without_libraries(said) == b"{}"
