"""Who may import whom. What is in a learner's process is small; what a command line needs first is without torch."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import llmkata

ROOT = Path(llmkata.__file__).parent
#: A package imports from lower levels only; from level 4 on those of a level may use each other.
LEVELS = {"wire": 0, "records": 0, "course": 0, "places": 0, "threads": 0, "forks": 0, "garbage": 0, "inside": 1, "policy": 1, "bench": 2, "outside": 2, "checks": 3,
          "plugin": 4, "gradebook": 4, "grading": 5, "reports": 5, "exports": 5, "authoring": 5, "watch": 5, "cluster": 5,
          "notebook": 6, "cli": 6}
#: All that may ever be in a process that runs learner code.
INSIDE = {"inside", "wire"}
THIRD_PARTY_INSIDE = {"torch", "numpy"}


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports anywhere, functions included."""
    names: set[str] = set()
    package = ["llmkata", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{module}.{a.name}" for a in node.names} if module == "llmkata" or not node.module else {module}
    return names


def packages() -> list[str]:
    return sorted(p.name for p in ROOT.iterdir() if (p / "__init__.py").exists())


@pytest.mark.parametrize("package", packages())
def test_imports_point_down(package):
    assert package in LEVELS, "a new package: give it a level"
    for path in (ROOT / package).rglob("*.py"):
        for name in imported(path):
            top, _, rest = name.partition(".")
            target = rest.split(".")[0]
            if top != "llmkata" or target == package or not target:
                continue
            same_level = LEVELS[target] == LEVELS[package] >= 4
            assert LEVELS[target] < LEVELS[package] or same_level, f"{path.relative_to(ROOT)} imports {name}"


def test_inside_imports_wire_torch_numpy_and_the_standard_library():
    for package in INSIDE:
        for path in (ROOT / package).rglob("*.py"):
            for name in imported(path):
                top, _, rest = name.partition(".")
                if top == "llmkata":
                    assert rest.split(".")[0] in INSIDE, f"{path.relative_to(ROOT)} imports {name}"
                elif top not in THIRD_PARTY_INSIDE and path.name != "template.py":
                    assert top in sys.stdlib_module_names, f"{path.relative_to(ROOT)} imports {name}"


def modules_after(code: str) -> set[str]:
    out = subprocess.run([sys.executable, "-c", f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"],
                         capture_output=True, text=True, check=True)
    return set(json.loads(out.stdout))


def test_a_process_of_a_learner_holds_nothing_else_of_ours():
    modules = modules_after("import llmkata.inside.worker, llmkata.inside.template\nllmkata.inside.template.warm('base')")
    ours = {m for m in modules if m.startswith("llmkata.")}
    assert {m.split(".")[1] for m in ours} == INSIDE
    assert not {m for m in modules if m.split(".")[0] in ("pytest", "hypothesis", "msgspec", "sqlalchemy")}


@pytest.mark.parametrize("module", ["llmkata", "llmkata.cli.main", "llmkata.course", "llmkata.records", "llmkata.reports",
                                    "llmkata.gradebook", "llmkata.grading.intake", "llmkata.plugin.entry"])
def test_torch_is_not_imported_before_it_is_needed(module):
    assert not {"torch", "transformers", "hypothesis"} & modules_after(f"import {module}")


def test_the_look_for_torch_finds_it():
    assert "torch" in modules_after("import llmkata.inside.session")
    assert imported(ROOT / "inside" / "worker.py") >= {"llmkata.wire", "llmkata.inside.session", "os"}
