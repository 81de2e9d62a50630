"""Writes english_sample.txt from the English side of parallel.jsonl; checks that the ten languages are complete.

    python components/parallel_text/make.py            # writes english_sample.txt
    python components/parallel_text/make.py --check    # remakes it elsewhere and compares

Both texts were written for this course and stand under the project's licence. parallel.jsonl is the source and is
edited by hand: one object a line, {"id": 1, "lang": "en", "text": ...}, ids in order, all languages of an id together
in the order of LANGS; the paragraphs of one id say the same. english_sample.txt holds one paragraph a line:
"1. The town lies ...".
"""

from __future__ import annotations

import json
import sys
import unicodedata
from pathlib import Path

HERE = Path(__file__).parent
LANGS = ("en", "de", "fr", "es", "ru", "zh", "ar", "tr", "hi", "fi")


def english_sample() -> str:
    rows = [json.loads(line) for line in (HERE / "parallel.jsonl").read_text(encoding="utf-8").splitlines()]
    expected = [(1 + i // len(LANGS), LANGS[i % len(LANGS)]) for i in range(len(rows))]
    if [(row["id"], row["lang"]) for row in rows] != expected or len(rows) % len(LANGS):
        raise SystemExit("parallel.jsonl: ids or languages are missing or out of order")
    if any(row["text"] != unicodedata.normalize("NFC", row["text"]).strip() for row in rows):
        raise SystemExit("parallel.jsonl: a text is not in NFC, or has white space around it")
    return "".join(f"{row['id']}. {row['text']}\n" for row in rows if row["lang"] == "en")


if __name__ == "__main__":
    target = HERE / "english_sample.txt"
    if "--check" in sys.argv[1:]:
        if target.read_text(encoding="utf-8") != english_sample():
            raise SystemExit("english_sample.txt is not the English side of parallel.jsonl")
    else:
        target.write_text(english_sample(), encoding="utf-8")
