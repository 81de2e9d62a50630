"""Reading pages back: a small DOM by html.parser, and what every page must keep to."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise

#: Elements of HTML that have no end, and those of SVG that may close themselves.
VOID = {"meta", "link", "br", "img", "input", "hr"}
SELF_CLOSING = {"rect", "line", "circle", "path", "use", "polyline"}


@dataclass
class Node:
    tag: str
    attrs: dict[str, str | None]
    children: list[Node | str] = field(default_factory=list)

    def walk(self) -> Iterator[Node]:
        yield self
        for child in self.children:
            if isinstance(child, Node):
                yield from child.walk()

    def all(self, tag: str = "", cls: str = "") -> list[Node]:
        return [
            n for n in self.walk() if tag in ("", n.tag) and (not cls or cls in (n.attrs.get("class") or "").split())
        ]

    def text(self) -> str:
        return " ".join("".join(c if isinstance(c, str) else f" {c.text()} " for c in self.children).split())


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("root", {})
        self.stack = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = self._add(tag, attrs)
        if tag not in VOID:
            self.stack.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SELF_CLOSING, f"<{tag}/> closes nothing"
        self._add(tag, attrs)

    def _add(self, tag: str, attrs: list[tuple[str, str | None]]) -> Node:
        assert len(attrs) == len(dict(attrs)), f"attribute twice in <{tag} {attrs}>"
        node = Node(tag, dict(attrs))
        self.stack[-1].children.append(node)
        return node

    def handle_endtag(self, tag: str) -> None:
        assert self.stack[-1].tag == tag, f"</{tag}> closes <{self.stack[-1].tag}>"
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        self.stack[-1].children.append(data)


def parse(html: str) -> Node:
    """The page as a tree; fails on tags that do not match."""
    builder = _Builder()
    builder.feed(html)
    builder.close()
    assert len(builder.stack) == 1, f"never closed: {builder.stack[-1].tag}"
    return builder.root


def shape(node: Node) -> list[str]:
    """Every tag with the names of its attributes, in order: what markup there is, whatever the texts."""
    return [f"{n.tag} {sorted(n.attrs)}" for n in node.walk()]


def check_page(html: str) -> Node:
    """What every page keeps to: self-contained, inert, readable without eyes. Returns the tree."""
    page = parse(html)
    (root,) = page.all("html")
    assert root.attrs["lang"] == "en"
    assert page.all("title")[0].text()
    assert len(page.all("h1")) == 1
    assert len(page.all("main")) == 1

    _check_inert(page)
    _check_links(page)
    levels = [int(n.tag[1]) for n in page.walk() if re.fullmatch(r"h[1-6]", n.tag)]
    assert all(b - a <= 1 for a, b in pairwise(levels)), f"headings skip a level: {levels}"
    for svg in page.all("svg"):
        assert svg.attrs.get("aria-hidden") == "true" or svg.attrs.get("aria-label") or "overflow" in svg.attrs, (
            svg.attrs
        )
    labels = {n.attrs.get("for") for n in page.all("label")}
    assert all(n.attrs["id"] in labels for tag in ("input", "select") for n in page.all(tag))
    assert all(n.attrs.get("scope") in ("col", "row") for n in page.all("th"))
    assert all(n.text() for tag in ("a", "button", "summary") for n in page.all(tag)), "a control without a name"
    assert all(n.text() for n in page.all(cls="badge")), "a state told by colour alone"
    return page


def _check_inert(page: Node) -> None:
    allowed = {
        "html",
        "root",
        "head",
        "body",
        "meta",
        "title",
        "style",
        "script",
        "svg",
        "defs",
        "pattern",
        "rect",
        "line",
        "symbol",
        "path",
        "circle",
        "use",
        "polyline",
        "text",
        "a",
        "div",
        "header",
        "main",
        "nav",
        "article",
        "section",
        "footer",
        "p",
        "h1",
        "h2",
        "h3",
        "h4",
        "ol",
        "ul",
        "li",
        "dl",
        "dt",
        "dd",
        "pre",
        "code",
        "span",
        "small",
        "strong",
        "bdi",
        "br",
        "i",
        "details",
        "summary",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "button",
        "label",
        "input",
        "select",
        "option",
    }
    tags = {n.tag for n in page.walk()}
    assert tags <= allowed, tags - allowed
    for n in page.walk():
        for name, value in n.attrs.items():
            assert not name.startswith("on"), f"event handler {name}"
            assert name != "style", "inline style"
            assert not (value or "").lower().strip().startswith(("javascript:", "data:")), value
    (style,), (script,) = page.all("style"), page.all("script")
    assert script.attrs == {}
    assert set(re.findall(r"url\([^)]*\)|@import", "".join(map(str, style.children)))) <= {"url(#hatch)"}
    (policy,) = [n.attrs["content"] for n in page.all("meta") if n.attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    for directive, element in (("style-src", style), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256("".join(map(str, element.children)).encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy, f"{directive} does not admit what the page holds"


def _check_links(page: Node) -> None:
    ids = [n.attrs["id"] for n in page.walk() if "id" in n.attrs]
    assert len(ids) == len(set(ids)), "an id twice"
    for n in page.walk():
        assert "src" not in n.attrs
        target = n.attrs.get("href")
        if target is not None:
            if target.startswith("#"):
                assert target[1:] in ids, f"{target} leads nowhere"
            else:
                assert re.fullmatch(r"learners/[a-z0-9._%-]+\.html", target), target
        for name in ("aria-labelledby",):
            assert n.attrs.get(name) in (None, *ids)
