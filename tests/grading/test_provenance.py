"""What a verdict hangs on."""

from __future__ import annotations

import llmkata
from llmkata.grading import provenance


def test_pages_and_exports_judge_nothing(tmp_path, monkeypatch) -> None:
    package = tmp_path / "llmkata"
    for name in ("__init__.py", "checks/compare.py", "reports/page.css", "exports/csv.py", "cli/grade.py", "gradebook/book.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("# one\n")
    monkeypatch.setattr(llmkata, "__file__", str(package / "__init__.py"))

    def hashes() -> tuple[str, str]:
        provenance.judging_hash.cache_clear()
        return provenance.judging_hash(), provenance.tree_hash(package)

    before = hashes()
    for name in ("reports/page.css", "exports/csv.py", "cli/grade.py", "gradebook/book.py"):
        (package / name).write_text("# two\n")
    after = hashes()
    assert after[0] == before[0] and after[1] != before[1]
    for name in ("checks/compare.py", "__init__.py"):
        (package / name).write_text("# two\n")
        assert hashes()[0] not in (before[0], after[0])
        after = hashes()
    monkeypatch.undo()
    hashes()


def test_what_judges_does_not_import_what_tells() -> None:
    """Else a change there could change a verdict that is taken for known."""
    import ast
    from pathlib import Path

    package = Path(llmkata.__file__).parent
    told = tuple(f"llmkata.{name}" for name in provenance._TELLING)
    for folder in ("checks", "plugin", "outside", "inside", "wire", "bench", "records", "course"):
        for path in (package / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                assert not any(name.startswith(told) for name in names), path


def test_limits_and_tasks_are_of_the_key(tmp_path) -> None:
    import msgspec

    from llmkata.course import load_course

    from .two import write_course

    course = load_course(write_course(tmp_path))
    exercise = course.exercise("double")

    def key(course=course, exercise=exercise) -> str:
        return provenance.result_key(course, exercise, b"x = 1\n", 0, "sandbox")

    def limited(**limits) -> str:
        return key(course=msgspec.structs.replace(course, limits=msgspec.structs.replace(course.limits, **limits)))

    (task,) = exercise.tasks
    stretch = msgspec.structs.replace(exercise, tasks=(msgspec.structs.replace(task, tier="stretch"),))
    keys = {key(), limited(call=1.0), limited(cpu=1.0), limited(memory=1), limited(output=1), key(exercise=stretch)}
    assert len(keys) == 6
    assert limited(submission=1) == key()  # how much is read is no matter of what was read
    renamed = msgspec.structs.replace(exercise, tasks=(msgspec.structs.replace(task, title="Another"),))
    assert key(exercise=renamed) == key()
