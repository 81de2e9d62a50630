"""The files of a new exercise, from templates that make a small exercise which is clean as it stands."""

from __future__ import annotations

from pathlib import Path
from string import Template

from llmkata.authoring.stub import cut_stub

_TEMPLATES = Path(__file__).parent / "templates"


def files(exercise: str, number: str, title: str) -> dict[str, str]:
    """Path -> text of every file of ``moduleN/slug``, its stub too."""
    slug = exercise.partition("/")[2]
    graders = f"graders/{exercise}"
    places = {
        "README.md": f"exercises/{exercise}/README.md",
        "test_visible.py": f"exercises/{exercise}/test_{slug}.py",
        "solution.py": f"solutions/{exercise}.py",
        "reference.py": f"reference/{exercise}.py",
        "test_correctness.py": f"{graders}/test_correctness.py",
        "test_budgets.py": f"{graders}/test_budgets.py",
        "misconceptions.py": f"{graders}/misconceptions.py",
        "library.py": f"{graders}/alternatives/library.py",
        "reciprocal.py": f"{graders}/alternatives/reciprocal.py",
        "mutants.yaml": f"{graders}/mutants.yaml",
    }
    values = {"slug": slug, "number": number, "title": title, "exercise": exercise}
    made = {place: Template((_TEMPLATES / f"{name}.txt").read_text("utf-8")).substitute(values)
            for name, place in places.items()}
    made[f"exercises/{exercise}/{slug}.py"] = cut_stub(made[places["solution.py"]])
    return made
