"""The pages in a browser, where one is installed: they fit a phone, and their script works under their own policy."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from llmkata.gradebook import Gradebook
from llmkata.records import RecordFile
from llmkata.reports.site import write_card, write_report

from .factory import HOSTILE_NAMES, class_of, course, hostile, mastered, showcase, unreadable

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
    "--virtual-time-budget=4000",
    "--dump-dom",
]

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")


def ask(folder: Path, pages: list[tuple[str, int]], script: str, *, dark: bool = False) -> list:
    """What ``script`` (a JavaScript function of a window) answers for each page, shown at that width in pixels. ``dark``:
    to a person who prefers dark pages.
    """
    frames = "".join(
        f'<iframe width="{width}" height="800" srcdoc="{html.escape(page)}"></iframe>' for page, width in pages
    )
    outer = folder / "outer.html"
    outer.write_text(
        f"<!doctype html><body>{frames}<script>const ask = {script};\n"
        "onload = () => { document.body.textContent = 'ANSWER ' + JSON.stringify([...frames].map(ask)); };\n"
        "Object.defineProperty(window, 'frames', {value: [...document.querySelectorAll('iframe')].map((f) => f.contentWindow)});"
        "</script>",
        encoding="utf-8",
    )
    mode = ["--blink-settings=preferredColorScheme=0"] if dark else []
    command = [str(BROWSER), *FLAGS, *mode, f"--user-data-dir={folder / 'profile'}", outer.as_uri()]
    try:
        made = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("the browser does not answer here")
    found = re.search(r"ANSWER (.*)</body>", made.stdout)
    if found is None:
        pytest.skip(f"the browser does not run here: {made.stderr[-300:]}")
    return json.loads(html.unescape(found[1]))


def class_page(folder: Path) -> str:
    records = [*class_of(12), hostile("a" * 300)]
    file = RecordFile(folder / "run.jsonl")
    file.append(*records)
    with Gradebook.open() as book:
        book.rebuild([file.path])
        return write_report(folder / "out", course(), records, book).index.read_text(encoding="utf-8")


WIDTHS = """(w) => {
  for (const fold of w.document.querySelectorAll("details")) fold.open = true;
  return [w.innerWidth, w.document.documentElement.scrollWidth];
}"""


def test_no_page_scrolls_sideways_on_a_phone(tmp_path: Path) -> None:
    cards = [("ada", showcase("ada"))]
    cards += [(name, [hostile(name), mastered(name), unreadable(name)]) for name in HOSTILE_NAMES if len(name) > 20]
    texts = [
        write_card(tmp_path, name, records, course(), audience="staff").read_text(encoding="utf-8")
        for name, records in cards
    ]
    texts.append(class_page(tmp_path))
    broken = "<!doctype html><body><pre>" + "x" * 400
    *fitting, control = ask(
        tmp_path, [(text, width) for text in texts for width in (390, 320)] + [(broken, 390)], WIDTHS
    )
    assert all(wide <= narrow for narrow, wide in fitting), fitting
    assert control[1] > control[0], "the measure itself"


SORTING = """(w) => {
  const d = w.document, names = () => [...d.querySelectorAll("#heat tbody tr")].filter((r) => !r.hidden)
    .map((r) => [r.cells[0].textContent, Number(r.cells[1].dataset.key)]);
  const [learner, total] = d.querySelectorAll("#heat thead button"), seen = [];
  const click = (button) => { button.click(); seen.push([button.parentElement.getAttribute("aria-sort"), names()]); };
  click(total); click(total); click(learner);
  const field = d.querySelector("#search");
  field.value = "ADA"; field.dispatchEvent(new w.Event("input"));
  seen.push(["found", names()]);
  return seen;
}"""


def test_the_class_page_sorts_and_finds(tmp_path: Path) -> None:
    ((down, up, by_name, found),) = ask(tmp_path, [(class_page(tmp_path), 1200)], SORTING)
    totals = [total for _, total in down[1]]
    assert (down[0], up[0], by_name[0]) == ("descending", "ascending", "ascending")
    assert len(set(totals)) > 3
    assert totals == sorted(totals, reverse=True)
    assert [total for _, total in up[1]] == sorted(totals)
    names = [name for name, _ in by_name[1]]
    assert names == sorted(names, key=str.casefold)
    assert found[1]
    assert len(found[1]) < len(names)
    assert all("ada" in name.lower() for name, _ in found[1])


CONTRAST = """(w) => {
  const d = w.document;
  for (const fold of d.querySelectorAll("details")) fold.open = true;
  const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const behind = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      layers.push(parse(w.getComputedStyle(at).backgroundColor));
      if (layers.at(-1)[3] === 1) break;
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const light = (colour) => {
    const [r, g, b] = colour.slice(0, 3).map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (element) => {
    const style = w.getComputedStyle(element), back = behind(element);
    const text = over(parse(element.namespaceURI.includes("svg") ? style.fill : style.color), back);
    const [more, less] = [light(text), light(back)].sort((a, b) => b - a);
    return (more + 0.05) / (less + 0.05);
  };
  const worst = () => {
    const walker = d.createTreeWalker(d.body, NodeFilter.SHOW_TEXT);
    let found = [Infinity, ""], count = 0;
    while (walker.nextNode()) {
      const element = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
      if (!text || ["SCRIPT", "STYLE", "OPTION"].includes(element.tagName) || !element.getClientRects().length) continue;
      const got = ratio(element);
      count++;
      if (got < found[0]) found = [got, text.slice(0, 40)];
    }
    return [...found, count];
  };
  const shown = worst();
  d.querySelector("p").style.color = w.getComputedStyle(d.body).backgroundColor;
  return [...shown, worst()[0], w.matchMedia("(prefers-color-scheme: dark)").matches];
}"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_can_be_read(tmp_path: Path, dark: bool) -> None:
    """WCAG 2, level AA: a contrast of 4.5, for the class page and for a card with everything on it."""
    card = write_card(tmp_path, "ada", showcase("ada"), course(), audience="staff").read_text(encoding="utf-8")
    for name, page in (("class page", class_page(tmp_path)), ("card", card)):
        ((least, text, count, control, asked),) = ask(tmp_path, [(page, 1200)], CONTRAST, dark=dark)
        assert asked is dark and count > 50, name
        assert least >= 4.5, (name, text)
        assert control < 1.1, "a text in the colour of the page would be found"
