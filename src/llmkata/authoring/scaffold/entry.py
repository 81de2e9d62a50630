"""The entry of a new exercise in course.yaml, written into the text: comments and order stay as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator

import yaml

TASKS = (("core", "Rows of length 1"), ("stretch", "Similarities"))


class CannotEdit(Exception):
    """course.yaml is not laid out so that a line can be added; ``text`` is what to put in by hand."""

    def __init__(self, message: str, text: str) -> None:
        super().__init__(message)
        self.text = text


def with_entry(source: str, module: int, slug: str, title: str) -> tuple[str, str, str]:
    """course.yaml with the exercise in it -> (new text, number of the exercise, as ``2.5``, its title).

    A planned entry of that slug becomes available and gets tasks; else a new one is put at the end of its module.
    Raises CannotEdit, also for a module that does not exist or an exercise that is already available.
    """
    for node in _modules(source):
        fields = _fields(node)
        if fields["number"].value == str(module):
            return _in_module(source, fields["exercises"], module, slug, title)
    raise CannotEdit(f"course.yaml has no module {module}; add it first", "")


def _in_module(source: str, exercises: yaml.SequenceNode, module: int, slug: str, title: str) -> tuple[str, str, str]:
    places = [0]
    for node in exercises.value:
        fields = _fields(node)
        places.append(int(fields["number"].value.split(".")[1]))
        if fields["slug"].value == slug:
            return _made_available(source, node, fields), fields["number"].value, fields["title"].value
    number = f"{module}.{max(places) + 1}"
    column = exercises.value[0].start_mark.column if exercises.value else 0
    text = _new(number, slug, title, max(column - 2, 0))
    if exercises.flow_style or not exercises.value or exercises.value[-1].flow_style:
        raise CannotEdit(f"the exercises of module {module} are not a list of blocks", text)
    at = _end(source, exercises.value[-1])
    return source[:at] + text + source[at:], number, title


def _made_available(source: str, node: yaml.MappingNode, fields: dict[str, yaml.Node]) -> str:
    status = fields["status"]
    pad = " " * node.value[0][0].start_mark.column
    tasks = "" if "tasks" in fields else f"{pad}tasks:\n" + "".join(_tasks(pad))
    if status.value != "planned":
        raise CannotEdit(f"{fields['number'].value} {fields['slug'].value} is already {status.value}", "")
    if node.flow_style:
        raise CannotEdit("the entry is not a block", tasks)
    at = _end(source, node)
    source = source[:at] + tasks + source[at:]
    return source[: status.start_mark.index] + "available" + source[status.end_mark.index :]


def _new(number: str, slug: str, title: str, indent: int) -> str:
    pad = " " * (indent + 2)
    lines = [f'{pad}number: "{number}"', f"{pad}slug: {slug}", f"{pad}title: {_quoted(title)}",
             f"{pad}mission: {_quoted('What the learner is asked to do, in one line.')}", f"{pad}difficulty: 1",
             f"{pad}hours: {{core: 1, total: 2}}", f"{pad}status: available", f"{pad}tasks:"]
    lines[0] = f"{' ' * indent}- {lines[0].strip()}"
    return "\n".join(lines) + "\n" + "".join(_tasks(pad))


def _tasks(pad: str) -> Iterator[str]:
    for number, (tier, title) in enumerate(TASKS, 1):
        yield f'{pad}  - {{number: {number}, tier: {tier}, title: "{title}"}}\n'


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _end(source: str, node: yaml.Node) -> int:
    """Offset behind the last line of a block, before blank lines and comments that belong to what follows."""
    lines = source[: node.end_mark.index].split("\n")
    while len(lines) > 1 and (not lines[-1].strip() or lines[-1].lstrip().startswith("#")):
        lines.pop()
    return min(len("\n".join(lines)) + 1, len(source))


def _modules(source: str) -> list[yaml.MappingNode]:
    return _fields(yaml.compose(source, Loader=yaml.SafeLoader))["modules"].value


def _fields(node: yaml.MappingNode) -> dict[str, yaml.Node]:
    return {key.value: value for key, value in node.value}
