"""The table of attacks in docs/security.md, from attacks.yaml and the tests beside it.

``python tests/adversarial/table.py`` writes it; with ``--check`` it only says whether it is in step.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import yaml

HERE = Path(__file__).resolve().parent
DATA = HERE / "attacks.yaml"
PAGE = HERE.parents[1] / "docs" / "security.md"
BEGIN, END = "<!-- attacks: begin, written by tests/adversarial/table.py -->", "<!-- attacks: end -->"
#: How many attacks each group of the catalogue has.
SIZES = {"F": 14, "P": 11, "I": 11, "R": 37, "T": 14, "S": 10, "M": 11, "N": 6, "B": 10}
VERDICTS = ("defended", "not applicable", "residual", "open")


class Attack(NamedTuple):
    """A row: ``tests`` are the names of the files whose name begins with its id."""

    id: str
    title: str
    verdict: str
    why: str
    tests: tuple[str, ...]


def load(data: Path = DATA, suite: Path = HERE) -> tuple[dict[str, str], list[Attack]]:
    """-> (names of the groups by letter, all attacks in the order of the file)."""
    content = yaml.safe_load(data.read_text("utf-8"))
    attacks = [Attack(ident, row["title"], row["verdict"], row["why"],
                      tuple(p.name for p in sorted(suite.glob(f"test_{ident.lower()}_*.py"))))
               for ident, row in content["attacks"].items()]
    return content["groups"], attacks


def tests_of(path: Path) -> int:
    """How many test functions a file defines."""
    body = ast.parse(path.read_text("utf-8")).body
    return sum(isinstance(node, ast.FunctionDef) and node.name.startswith("test") for node in body)


def faults(groups: dict[str, str], attacks: list[Attack], suite: Path = HERE) -> list[str]:
    """Where rows and suite disagree, one sentence each."""
    expected = [f"{letter}{n}" for letter, size in SIZES.items() for n in range(1, size + 1)]
    found = [] if [a.id for a in attacks] == expected else ["the ids are not those of the catalogue, in its order"]
    found += [] if list(groups) == list(SIZES) else ["the groups are not those of the catalogue"]
    for a in attacks:
        tested = [name for name in a.tests if tests_of(suite / name)]
        if a.verdict not in VERDICTS:
            found.append(f"{a.id}: no such verdict: {a.verdict}")
        if a.verdict == "defended" and not tested:
            found.append(f"{a.id}: defended, but no test_{a.id.lower()}_*.py has a test")
        if a.verdict == "open" and a.tests:
            found.append(f"{a.id}: open, but there is {a.tests[0]}")
        if a.verdict != "open" and not a.why:
            found.append(f"{a.id}: {a.verdict}, but why?")
    known = {a.id.lower() for a in attacks}
    found += [f"{p.name}: no attack is called so" for p in sorted(suite.glob("test_*.py"))
              if (m := re.match(r"test_([a-z]\d+)_", p.name)) and m[1] not in known]
    return found


def table(groups: dict[str, str], attacks: list[Attack]) -> str:
    """The Markdown between the markers, both included."""
    counts = Counter(a.verdict for a in attacks)
    told = ", ".join(f"{counts[v]} {v}" for v in VERDICTS if counts[v])
    lines = [BEGIN, f"{len(attacks)} attacks: {told}.", ""]
    for letter, name in groups.items():
        lines += [f"**{name}**", "", "| | what is tried | verdict | why |", "|---|---|---|---|"]
        for a in (a for a in attacks if a.id[0] == letter):
            verdict = "not yet tested" if a.verdict == "open" else a.verdict
            if a.tests:
                verdict = f"[{verdict}](../tests/adversarial/{a.tests[0]})"
            lines.append(f"| {a.id} | {_cell(a.title)} | {verdict} | {_cell(a.why)} |")
        lines.append("")
    return "\n".join([*lines, END])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("__", "\\_\\_").replace("<", "&lt;")


def written(page: str, between: str) -> str:
    """The page with the table in place of what stands between the markers. ValueError where they are missing."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError("the page needs both markers once")
    return page[: page.index(BEGIN)] + between + page[page.index(END) + len(END) :]


def main(arguments: list[str]) -> int:
    """Write the table, or check that it is in step -> exit status."""
    groups, attacks = load()
    for fault in (found := faults(groups, attacks)):
        print(fault)
    old = PAGE.read_text("utf-8")
    new = written(old, table(groups, attacks))
    if "--check" in arguments:
        if old != new:
            print(f"{PAGE.name} is not in step: python tests/adversarial/table.py")
        return int(bool(found) or old != new)
    PAGE.write_text(new, "utf-8")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
