"""Reading composed YAML nodes into typed values, so that every fault knows its line.

``yaml.load`` forgets where a value stood; ``yaml.compose`` keeps it. A *parser* is a function
``(reader, node, field) -> value`` that notes what is wrong in ``reader`` and returns :data:`BAD` in place of a value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from .faults import Fault, did_you_mean

Parser = Callable[["Reader", yaml.Node, str], Any]

#: Stands for a value that could not be read; the fault is already noted.
BAD: Any = object()
REQUIRED: Any = object()

_CONSTRUCT = yaml.constructor.SafeConstructor()
_TAG = "tag:yaml.org,2002:"
_TYPES = {"str": "a string", "int": "an integer", "float": "a number", "bool": "true or false", "null": "empty",
          "seq": "a list", "map": "a mapping", "timestamp": "a date"}


class Reader:
    """Faults of one file, as they are found."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.faults: list[Fault] = []

    def fault(self, node: yaml.Node, field: str, message: str) -> Any:
        self.faults.append(Fault(self.file, node.start_mark.line + 1, field, message))
        return BAD


def kind_of(node: yaml.Node) -> str:
    return node.tag.removeprefix(_TAG)


def mapping(fields: dict[str, tuple[Parser, Any]]) -> Parser:
    """A mapping with exactly these keys; each has a parser and a default (or :data:`REQUIRED`)."""

    def parse(reader: Reader, node: yaml.Node, field: str) -> Any:
        pairs = entries(reader, node, field)
        if pairs is BAD:
            return BAD
        values: dict[str, Any] = {}
        for key, (key_node, value_node) in pairs.items():
            if key in fields:
                values[key] = fields[key][0](reader, value_node, f"{field}.{key}".lstrip("."))
            else:
                reader.fault(key_node, field, f'unknown key "{key}"{did_you_mean(key, fields)}')
        for key, (_, default) in fields.items():
            if key not in values:
                if default is REQUIRED:
                    reader.fault(node, field, f'missing key "{key}"')
                values[key] = BAD if default is REQUIRED else default
        return values

    return parse


def entries(reader: Reader, node: yaml.Node, field: str) -> Any:
    """Key -> (key node, value node) of a mapping, or :data:`BAD`; a repeated key is a fault."""
    if not isinstance(node, yaml.MappingNode):
        return wrong(reader, node, field, "a mapping")
    pairs: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            wrong(reader, key_node, field, "a plain key")
        elif key_node.value in pairs:
            first = pairs[key_node.value][0].start_mark.line + 1
            reader.fault(key_node, field, f'key "{key_node.value}" stands here twice (first in line {first})')
        else:
            pairs[key_node.value] = (key_node, value_node)
    return pairs


def listing(item: Parser) -> Parser:
    """A list; unreadable items are left out of the tuple."""

    def parse(reader: Reader, node: yaml.Node, field: str) -> Any:
        if not isinstance(node, yaml.SequenceNode):
            return wrong(reader, node, field, "a list")
        values = [item(reader, child, f"{field}[{place}]") for place, child in enumerate(node.value)]
        return tuple(value for value in values if value is not BAD)

    return parse


def located(parser: Parser) -> Parser:
    """(value, node) in place of the value, for checks that need the line later."""

    def parse(reader: Reader, node: yaml.Node, field: str) -> Any:
        value = parser(reader, node, field)
        return BAD if value is BAD else (value, node)

    return parse


def text(reader: Reader, node: yaml.Node, field: str) -> Any:
    if kind_of(node) != "str":
        hint = f' (put it in quotes: "{node.value}")' if isinstance(node, yaml.ScalarNode) and node.value else ""
        return wrong(reader, node, field, "a string", hint)
    return node.value if node.value.strip() else reader.fault(node, field, "must not be empty")


def boolean(reader: Reader, node: yaml.Node, field: str) -> Any:
    if kind_of(node) != "bool":
        return wrong(reader, node, field, "true or false")
    return node.value.lower() in ("true", "yes", "on")


def integer(low: int, high: int | None = None) -> Parser:
    def parse(reader: Reader, node: yaml.Node, field: str) -> Any:
        if kind_of(node) != "int":
            return wrong(reader, node, field, "an integer")
        return _within(reader, node, field, _CONSTRUCT.construct_yaml_int(node), low, high)

    return parse


def number(low: float, high: float | None = None, *, open_end: bool = True) -> Parser:
    """A number above ``low`` (from ``low`` on unless ``open_end``)."""

    def parse(reader: Reader, node: yaml.Node, field: str) -> Any:
        if kind_of(node) == "int":
            value = float(_CONSTRUCT.construct_yaml_int(node))
        elif kind_of(node) == "float":
            value = _CONSTRUCT.construct_yaml_float(node)
        else:
            return wrong(reader, node, field, "a number")
        if open_end and value == low:
            return reader.fault(node, field, f"must be above {low:g}")
        return _within(reader, node, field, value, low, high)

    return parse


def choice(*known: str) -> Parser:
    def parse(reader: Reader, node: yaml.Node, field: str) -> Any:
        value = text(reader, node, field)
        if value is BAD or value in known:
            return value
        return reader.fault(node, field, f'"{value}" is not one of its values{did_you_mean(value, known)}')

    return parse


def wrong(reader: Reader, node: yaml.Node, field: str, want: str, hint: str = "") -> Any:
    got = _TYPES.get(kind_of(node), kind_of(node))
    return reader.fault(node, field, f"must be {want}, is {got}{hint}")


def _within(reader: Reader, node: yaml.Node, field: str, value: float, low: float, high: float | None) -> Any:
    if not value >= low:
        return reader.fault(node, field, f"must be at least {low:g}, is {value:g}")
    if high is not None and value > high:
        return reader.fault(node, field, f"must be at most {high:g}, is {value:g}")
    return value
