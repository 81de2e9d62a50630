"""JUnit XML, as Jenkins, GitLab and most others read it: a suite for each exercise, a case for each check.

Source: the schema of Jenkins's xUnit plugin (junit-10.xsd), which pytest's ``--junit-xml`` follows too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from llmkata.reports.text import points

from .layout import folder_of
from .wording import explained

if TYPE_CHECKING:
    from llmkata.course import Exercise

    from .items import Item
    from .people import People
    from .results import Results


def files(view: Results, people: People | None) -> Iterator[tuple[str, bytes]]:
    """``NAME/junit.xml`` for each learner."""
    for learner in view.cards:
        yield f"{folder_of(learner)}/junit.xml", document(view, learner)


def document(view: Results, learner: str) -> bytes:
    """The file of one learner. What could not be judged is an ``error`` where it carries points, else ``skipped``."""
    root = ET.Element("testsuites", name=view.course.title)
    for exercise in view.exercises:
        _suite(root, exercise, view.cards[learner].learner, view.lines(learner, exercise), view.card(learner, exercise).graded_at)
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def _suite(root: ET.Element, exercise: Exercise, learner: str, lines: list[Item], graded_at: str) -> None:
    kinds = [_kind(line) for line in lines]
    suite = ET.SubElement(
        root, "testsuite", name=f"{exercise.number} {exercise.title}", tests=str(len(lines)),
        failures=str(kinds.count("failure")), errors=str(kinds.count("error")), skipped=str(kinds.count("skipped")),
        time=f"{sum(line.seconds for line in lines):.3f}",
    )  # fmt: skip
    if graded_at:
        suite.set("timestamp", graded_at)
    about = ET.SubElement(suite, "properties")
    ET.SubElement(about, "property", name="learner", value=learner)
    ET.SubElement(about, "property", name="exercise", value=exercise.id)
    for line, kind in zip(lines, kinds, strict=True):
        _case(suite, line, kind)


def _case(suite: ET.Element, line: Item, kind: str) -> None:
    case = ET.SubElement(
        suite, "testcase", classname=line.exercise.replace("/", "."), name=line.check.name if line.check else line.name,
        time=f"{line.seconds:.3f}",
    )  # fmt: skip
    about = ET.SubElement(case, "properties")
    told = {"title": line.name, "points": points(line.score), "max_points": points(line.max_score)}
    if not line.check and kind == "passed":
        told["reason"] = line.message
    for name, value in told.items():
        ET.SubElement(about, "property", name=name, value=value)
    if kind == "passed":
        return
    outcome = ET.SubElement(case, kind, message=line.message or line.name)
    if kind != "skipped":
        outcome.set("type", line.check.outcome.value if line.check else "not graded")
        outcome.text = explained(line)


def _kind(line: Item) -> str:
    if line.check and line.check.outcome == "not judged" and not line.max_score:
        return "skipped"
    return {"pass": "passed", "fail": "failure" if line.begun else "skipped", "error": "error"}[line.status]
