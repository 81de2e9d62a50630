"""The template environments: HTML escapes whatever is not a template's own text, and so does Markdown."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from typing import Any

import jinja2

from . import by_hand, figures, text
from .policy import LEVELS

_LOADER = jinja2.PackageLoader("llmkata.reports", "templates")


class Literal(str):
    """Markdown that a filter made: it is not escaped again."""

    __slots__ = ()


@cache
def html() -> jinja2.Environment:
    """Environment of the HTML pages: autoescape always on, a missing variable is an error."""
    env = jinja2.Environment(
        loader=_LOADER, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.filters.update(
        points=text.points, percent=text.percent, amount=text.amount, moment=text.moment, parts=text.parts,
        anchor=text.slug, flat=text.line, whole=text.whole,
        signed=by_hand.signed,
    )
    env.globals.update(bar=figures.bar, growth=figures.growth, feedback_levels=LEVELS)
    # The pages name the digests of their own style and script, and the browser runs nothing else.
    env.globals["digest"] = lambda name: digest(env.get_template(name).render())
    return env


@cache
def markdown() -> jinja2.Environment:
    """Environment of Markdown: every value is escaped unless a filter marked it as Markdown."""
    env = jinja2.Environment(
        loader=_LOADER, autoescape=False, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, finalize=_finalize,
    )
    env.filters.update(
        points=lambda value: Literal(text.points(value)), percent=lambda value: Literal(text.percent(value)),
        amount=lambda value, unit="": Literal(text.amount(value, text.markdown(unit))),
        fence=lambda value: Literal(text.fence(value)), moment=text.moment,
        signed=lambda value: Literal(by_hand.signed(value)),
    )
    env.globals.update(verdict=figures.verdict)
    return env


def compiled() -> None:
    """Compile all templates: those of pages written by forks of this process need not be, then."""
    for name in _LOADER.list_templates():
        (markdown() if name.endswith(".md") else html()).get_template(name)


def _finalize(value: Any) -> Any:
    return text.markdown(value) if isinstance(value, str) and not isinstance(value, Literal) else value


@cache
def digest(content: str) -> str:
    """The source expression of a Content-Security-Policy that admits exactly this inline text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
