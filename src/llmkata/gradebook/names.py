"""The names of one learner in texts: found as whole words, and taken out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

#: Shorter names stand in every text, as "a" or "Bo" do: they are only looked for where names stand.
SHORTEST = 3


class Names:
    """The id of a learner, and the other names that mean the same person: name, address, accounts, numbers.

    Letters and digits beside a name make it another word, so ``ann`` is found in ``ann_340934`` and ``(ann)`` and not in
    ``annotation``. Case, the order of first and last, and what parts the words of a name do not matter (``Berg, Ann``,
    ``ann_berg``, ``bergann``).
    """

    def __init__(self, learner: str, others: Iterable[str] = ()) -> None:
        self.learner = learner
        #: The longest first: an address goes before the account in it.
        self.all = tuple(sorted({name.strip() for name in (learner, *others)} - {""}, key=lambda n: (-len(n), n)))
        self._every = _pattern(self.all)
        self._telling = _pattern([name for name in self.all if len(name) >= SHORTEST])

    def __str__(self) -> str:
        others = ", ".join(name for name in self.all if name != self.learner)
        return f"{self.learner} ({others})" if others else self.learner

    def named(self, text: str) -> bool:
        """Whether a free text has one of the names, the very short ones left aside."""
        return self._telling is not None and self._telling.search(text) is not None

    def taken_out(self, text: str, instead: str, *, short: bool = False) -> str:
        """The text with ``instead`` in place of the names; ``short``: of the very short ones too."""
        pattern = self._every if short else self._telling
        return pattern.sub(lambda match: instead, text) if pattern else text

    def taken_out_of(self, value: Any, instead: str, *, short: bool = False) -> Any:
        """:meth:`taken_out` of all texts within lists, mappings (keys stay) and structures."""
        if isinstance(value, str):
            return self.taken_out(value, instead, short=short)
        if isinstance(value, list | tuple):
            return type(value)(self.taken_out_of(item, instead, short=short) for item in value)
        if isinstance(value, dict):
            return {key: self.taken_out_of(item, instead, short=short) for key, item in value.items()}
        if isinstance(value, msgspec.Struct):
            return type(value)(
                **{f: self.taken_out_of(getattr(value, f), instead, short=short) for f in value.__struct_fields__}
            )
        return value


def _pattern(names: Iterable[str]) -> re.Pattern[str] | None:
    found = [form for name in names for form in _forms(name)]
    if not found:
        return None
    return re.compile(rf"(?<![^\W_])(?:{'|'.join(found)})(?![^\W_])", re.IGNORECASE)


def _forms(name: str) -> Iterator[str]:
    """A name with its words in every turn: ``ann marie berg``, ``marie berg ann``, ``berg ann marie``."""
    words = [re.escape(word) for word in re.split(r"[\s,]+", name) if word]
    for turn in range(len(words)):
        yield r"[\W_]*".join(words[turn:] + words[:turn])
