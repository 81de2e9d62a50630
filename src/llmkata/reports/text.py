"""Texts of strangers made harmless, and numbers made readable.

Names, outputs and messages come from submissions. HTML escaping is the templates' job (autoescape); here go control
characters, which would act on a terminal, and whatever a spreadsheet or Markdown would take for an instruction.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata

# Escape sequences whole (CSI, OSC and the other strings, two-character ones), so that no "[31m" stays behind.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
# C0 (but tab and newline), DEL, C1; marks that turn or hide text; surrogates and what Unicode calls no character.
_CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"
    r"\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\ufffe\uffff]"
    r"|[\U000e0000-\U000e0fff]"
)
_BREAKS = re.compile(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]")


def plain(text: str) -> str:
    """``text`` without anything that acts on a terminal: control characters and escape sequences are gone.

    Newlines and tabs stay; every kind of line break becomes a newline. Bidirectional overrides and invisible
    characters go too: they make a line read as what it is not.
    """
    return _CONTROLS.sub("", _ESCAPES.sub("", _BREAKS.sub("\n", text)))


def line(text: str, limit: int = 0) -> str:
    """:func:`plain` on one line, runs of white space as one space; cut to ``limit`` characters where given."""
    flat = " ".join(plain(text).split())
    return flat[: limit - 1].rstrip() + "…" if 0 < limit < len(flat) else flat


def csv_cell(value: object) -> object:
    """A cell that no spreadsheet takes for a formula: a text that starts with = + - @ (or white space and one of these)
    gets a leading quote. Numbers are handed through. Source: OWASP, CSV Injection.
    """
    if not isinstance(value, str):
        return value
    # What a tab or a return at the start could hide is at the start once they are gone.
    flat = line(value)
    return "'" + flat if flat[:1] in _FORMULA_STARTS else flat


_FORMULA_STARTS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")

_MARKDOWN = re.compile(r"[\\`*_{}\[\]|~#$]")


def markdown(text: str) -> str:
    """``text`` on one line, shown as it is by a Markdown reader: no markup, no HTML, no link, no list of its own.

    Only what stands between backticks stays code, as everywhere in these pages.
    """
    flat = line(text)
    # Adjacent backticks could pair otherwise than we read them, and a table ends its cells inside code too.
    pieces = [(flat, False)] if "``" in flat else parts(flat)
    escaped = "".join(_piece(piece, code) for piece, code in pieces)
    return re.sub(r"^(\d+)([.)])(?=\s|$)|^([-+=])", lambda m: f"{m[1]}\\{m[2]}" if m[1] else f"\\{m[3]}", escaped)


def _piece(text: str, code: bool) -> str:
    if code and "|" not in text:
        return f"`{text}`"
    return _escape(f"`{text}`" if code else text)


def _escape(text: str) -> str:
    escaped = _MARKDOWN.sub(r"\\\g<0>", text)
    escaped = escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    escaped = re.sub(r"(?i)\b(https?|ftp):(?=//)", r"\1\\:", escaped)
    return re.sub(r"(?i)\bwww(?=\.)", "\\g<0>\u2060", escaped)


def fence(text: str) -> str:
    """A fenced Markdown code block that its content cannot close."""
    body = plain(text).rstrip("\n")
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", body)), default=0))
    return f"{ticks}text\n{body}\n{ticks}"


def parts(text: str) -> list[tuple[str, bool]]:
    """``text`` split at backticks: (piece, whether it is code). An unpaired backtick stays as it is.

    >>> parts("the rows of `weights` sum to 1")
    [('the rows of ', False), ('weights', True), (' sum to 1', False)]
    """
    pieces = re.split(r"`([^`\n]+)`", text)
    return [(piece, bool(i % 2)) for i, piece in enumerate(pieces) if piece]


def slug(name: str) -> str:
    """A file name for a learner: readable, different for different names on every file system, never a path.

    Anything but lower-case letters, digits, ``-``, ``_`` and single inner dots is spelt otherwise, and then a digest
    of the whole name is added, as it is to names that look as if they had one.
    """
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    short = re.sub(r"[^a-z0-9._-]+", "-", ascii_name)
    short = re.sub(r"\.{2,}", ".", short).strip("-.")[:60].rstrip("-.") or "learner"
    if short == name and not re.search(r"-[0-9a-f]{10}$", short) and short.split(".")[0] not in _WINDOWS_DEVICES:
        return short
    return f"{short}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:10]}"


_WINDOWS_DEVICES = {"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(10)}


def points(value: float) -> str:
    """Points as people write them: at most two decimals, none where they are zero.

    >>> points(21.0), points(7.5), points(2 / 3)
    ('21', '7.5', '0.67')
    """
    return f"{value:.2f}".rstrip("0").rstrip(".") if value != int(value) else f"{int(value)}"


def percent(value: float | None) -> str:
    """A share in 0..100 for people; never rounded up to 100, nor down to 0."""
    if value is None:
        return "–"
    if 0 < value < 0.1:
        return "<0.1 %"
    if 99.9 < value < 100:
        return "99.9 %"
    text = f"{value:.1f}".removesuffix(".0")
    return f"{text} %"


def whole(value: float) -> str:
    """A share in percent as a whole number, with the same care: nothing below 100 is 100, only 0 is 0. With extra credit
    it may be above 100.
    """
    return "<1" if 0 < value < 1 else f"{min(round(value), 99) if value < 100 else round(value)}"


_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")
_DECIMAL = ("", "k", "M", "G", "T", "P")


def amount(value: float, unit: str = "") -> str:
    """A measured number with its unit: bytes in binary steps, FLOP and the like in decimal ones, seconds down to µs.

    >>> amount(1_060_000, "FLOP"), amount(65536, "bytes"), amount(0.0021, "s"), amount(48, "calls")
    ('1.06 MFLOP', '64 KiB', '2.1 ms', '48 calls')
    """
    if not math.isfinite(value):
        return f"{value} {unit}".rstrip()
    if unit in ("B", "byte", "bytes"):
        step = _step(abs(value), 1024.0, len(_BINARY))
        return f"{_figure(value / 1024.0**step)} {_BINARY[step]}"
    if unit == "exponent":
        return f"exponent {_figure(value)}"
    if unit == "s" and value != 0:
        for scale, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if abs(value) >= scale or name == "µs":
                return f"{_figure(value / scale)} {name}"
    if unit.upper().startswith("FLOP"):
        step = _step(abs(value), 1000.0, len(_DECIMAL))
        return f"{_figure(value / 1000.0**step)} {_DECIMAL[step]}{unit}"
    return f"{_figure(value)} {unit}".rstrip()


def _step(value: float, base: float, count: int) -> int:
    step = 0
    while value >= base * 0.9995 and step < count - 1:
        value, step = value / base, step + 1
    return step


def _figure(value: float) -> str:
    """Three significant digits; whole numbers up to six digits whole, longer ones grouped by thin spaces."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.2e}"


def ratio(value: float) -> str:
    """A ratio for people: ``1.98×``, ``12×``, ``3 400×``."""
    return f"{_figure(round(value) if value >= 10 else value)}×"


def moment(stamp: str) -> str:
    """An ISO 8601 stamp to the minute, with its offset as it was written; other texts as they are."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d)(?::\d\d(?:[.,]\d+)?)?(Z|[+-]\d\d:?\d\d)?", stamp)
    if not match:
        return line(stamp)
    zone = {"Z": "UTC", "+00:00": "UTC"}.get(match[3] or "", match[3] or "")
    return f"{match[1]} {match[2]} {zone}".rstrip()
