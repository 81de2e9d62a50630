"""What belongs to a check."""

from __future__ import annotations

import ast

from llmkata.authoring.audit.source import checks, reached, text_of

SOURCE = '''\
import torch

LIMIT, OTHER = 3, 4
TABLE = {}
TABLE["a"] = 1


def helper(x):
    return x + LIMIT


class Machine:
    rule = helper


def unused():
    return OTHER


@decorated(Machine)
def test_a(submission):
    """First."""


def test_b(submission):
    """Second."""
'''


def test_a_check_reaches_its_helpers_through_others() -> None:
    tree = ast.parse(SOURCE)
    first, second = checks(tree)
    names = [getattr(node, "name", ast.unparse(node)) for node in reached(tree, first)]
    assert names == ["LIMIT, OTHER = (3, 4)", "helper", "Machine", "test_a"]
    assert reached(tree, second) == [second]


def test_the_text_holds_imports_loose_statements_and_decorators() -> None:
    text = text_of(SOURCE, "test_a")
    for part in ("import torch", 'TABLE["a"] = 1', "@decorated(Machine)\ndef test_a", "class Machine", "def helper"):
        assert part in text
    for part in ("unused", "test_b", "TABLE = {}"):
        assert part not in text
    assert text_of(SOURCE, "test_c") == 'import torch\nTABLE["a"] = 1'
