"""What an exercise bans, said to the learner where it happens.

torch is never patched: a function mode sees every torch call of this thread, whatever name it was reached by
(``F.scaled_dot_product_attention``, an alias, ``torch.ops.aten``...), and the learner's own ``import`` statements go
through a guard in the builtins of their module alone.
"""

from __future__ import annotations

import ast
import builtins
import fnmatch
import re
import sys
import unicodedata
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from torch.overrides import TorchFunctionMode


def _family(name: str) -> re.Pattern[str]:
    """The names by which torch knows a function: ``torch.nn.functional.scaled_dot_product_attention`` is also
    ``_scaled_dot_product_flash_attention_for_cpu``, ``softmax`` also ``softmax_`` and ``_log_softmax``."""
    words = map(re.escape, name.rsplit(".", 1)[-1].strip("_").split("_"))
    return re.compile(rf"(?:^|_){'_(?:[a-z0-9]+_)*'.join(words)}(?:_|$)")


class Bans:
    """Which names of torch's functions and operators an exercise bans."""

    def __init__(self, functions: dict[str, str], operators: dict[str, str]) -> None:
        self._functions = [(_family(name), _sentence(name, text)) for name, text in functions.items()]
        self._operators = [(pattern, _sentence(pattern, text)) for pattern, text in operators.items()]

    def on(self, name: str) -> str | None:
        """The sentence that teaches, for a banned name (``mm`` or ``mm.default``); None for others."""
        name = name.partition(".")[0]
        for family, sentence in self._functions:
            if family.search(name):
                return sentence
        return next((sentence for pattern, sentence in self._operators if fnmatch.fnmatch(name, pattern)), None)


def _sentence(name: str, text: str) -> str:
    return f"{name} is not allowed in this exercise. {text}"


def _dotted(node: ast.expr) -> str:
    """``torch.nn.Linear`` of the syntax tree of just that; "" where something else than a name is at its root."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


class BannedCall(Exception):
    """The exercise asks for this to be written by hand. The message teaches."""


class Guard(TorchFunctionMode):
    """Raises :class:`BannedCall` for banned functions, and remembers that it did (``violations``)."""

    def __init__(self, functions: dict[str, str], operators: dict[str, str], modules: dict[str, str],
                 allow_in: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.violations: list[str] = []
        self._modules, self._allow_in = modules, frozenset(allow_in)
        self._bans = Bans(functions, operators)
        #: Whether there is anything to see: a mode costs every torch call a detour through Python.
        self.watches = bool(functions or operators)
        self._seen: dict[Any, str | None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        hit = self._seen.get(func, False)
        if hit is False:
            hit = self._seen[func] = self._bans.on(getattr(func, "__name__", "") or str(func))
        if hit is not None:
            self._refuse(hit)
        return func(*args, **(kwargs or {}))

    def _refuse(self, sentence: str) -> None:
        self.violations.append(sentence)
        raise BannedCall(sentence)

    def read(self, text: str, filename: str) -> None:
        """Refuse a banned name within a module that stands in the source as an attribute: what torch does not dispatch
        (``torch.compile``) no mode sees. Raises SyntaxError as compiling it would."""
        text_of_names = unicodedata.normalize("NFKC", text)  # as Python reads identifiers
        within = [name for name in self._modules if "." in name and name.rpartition(".")[2] in text_of_names]
        if within:
            self._search(ast.parse(text, filename), within)

    def _search(self, tree: ast.AST, banned: list[str]) -> None:
        for node in ast.iter_child_nodes(tree):
            if isinstance(node, ast.FunctionDef) and node.name in self._allow_in:
                continue
            if isinstance(node, ast.Attribute) and (name := self._module(banned, _dotted(node))) is not None:
                self._refuse(f"Line {node.lineno}: {_sentence(name, self._modules[name])}")
            self._search(node, banned)

    @staticmethod
    def _module(banned: Iterable[str], *names: str) -> str | None:
        return next((m for m in banned if any(f"{name}.".startswith(f"{m}.") for name in names)), None)

    def fit_imports(self, module: ModuleType, label: str) -> None:
        """Give ``module`` builtins whose ``__import__`` refuses the banned modules (``allow_in``: given functions)."""
        if not self._modules:
            return
        real = builtins.__import__

        def guarded(name: str, *args: Any, **kwargs: Any) -> Any:
            fromlist = args[2] if len(args) > 2 else kwargs.get("fromlist")
            banned = self._module(self._modules, name, *(f"{name}.{part}" for part in fromlist or ()))
            if banned is not None:
                code = sys._getframe(1).f_code
                if code.co_filename == label and code.co_name not in self._allow_in:
                    self._refuse(_sentence(banned, self._modules[banned]))
            return real(name, *args, **kwargs)

        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": guarded}
