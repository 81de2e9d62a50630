"""In the style of small functions and regular expressions; the encoder keeps buckets of places by rank."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import combinations, pairwise
from math import log

import numpy as np

SPLIT = r"\w+|[^\w\s]"


@dataclass(frozen=True)
class Token:
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class TokenizerReport:
    name: str
    n_tokens: int
    n_types: int
    fertility: float
    chars_per_token: float
    oov_rate: float
    coverage: float
    heaps_beta: float


@dataclass(frozen=True)
class Comparison:
    rows: dict[str, TokenizerReport]
    boundary_f1: dict[tuple[str, str], float]


QUOTE = r"(?:``|\'\'|\")"


def whitespace_tokenize(text):
    return [Token(m.group(), *m.span()) for m in re.finditer(r"\S+", text)]


def align(text, pieces):
    spans, at = [], 0
    for piece in pieces:
        form = QUOTE if piece in ("``", "''") else re.escape(piece)
        at = re.compile(r"\s*").match(text, at).end()
        m = re.compile(form).match(text, at)
        if m is None:
            raise ValueError(f"cannot place {piece!r} at {at}")
        spans.append(m.span())
        at = m.end()
    return [Token(text[i:j], i, j) for i, j in spans]


def nltk_tokenize(text):
    import nltk.tokenize

    return align(text, nltk.tokenize.NLTKWordTokenizer().tokenize(text))


_pipelines = {}


def load_spacy(model):
    import spacy

    if model not in _pipelines:
        try:
            _pipelines[model] = spacy.blank(model) if len(model) == 2 else spacy.load(model)
        except OSError:
            raise OSError(f"{model} is missing: python -m spacy download {model}") from None
    return _pipelines[model]


def spacy_tokenize(text, lang="en"):
    return [Token(str(t), t.idx, t.idx + len(t)) for t in load_spacy(lang)(text) if not str(t).isspace()]


def merge_pair(symbols, pair):
    stack = []
    joined = False
    for s in symbols:
        if stack and not joined and (stack[-1], s) == tuple(pair):
            stack[-1] += s
            joined = True
        else:
            stack.append(s)
            joined = False
    return stack


def start(word, mark):
    if word == "":
        raise ValueError("empty word")
    return tuple(word[:-1]) + (word[-1] + mark,)


def learn_bpe(word_counts, num_merges, *, end_of_word="</w>", min_count=2):
    table = {start(w, end_of_word): n for w, n in word_counts.items()}
    merges = []
    for _ in range(num_merges):
        counts = Counter()
        for symbols, n in table.items():
            for pair in pairwise(symbols):
                counts[pair] += n
        ordered = sorted(counts, key=lambda p: (counts[p], p))
        if not ordered or counts[ordered[-1]] < min_count:
            return merges
        merges.append(ordered[-1])
        table = {tuple(merge_pair(symbols, ordered[-1])): n for symbols, n in table.items()}
    return merges


def bpe_encode(symbols, rank):
    # Two stacks of places: spans (i, j) into the joined text; ranks asked once for each pair of spans.
    text = "".join(symbols)
    stops = np.cumsum([0, *map(len, symbols)]).tolist()
    end_at = dict(pairwise(stops))  # start -> end of the symbol that starts there
    begin_at = {j: i for i, j in end_at.items()}
    live = {}

    def ask(i, j, k):
        r = rank(text[i:j], text[j:k])
        if r is not None:
            live[i, j, k] = True
            return r, i, j, k

    agenda = [hit for i, j in pairwise(pairwise(stops)) if (hit := ask(*i, j[1]))]
    heapify(agenda)
    while agenda:
        _, i, j, k = heappop(agenda)
        if end_at.get(i) != j or end_at.get(j) != k:
            continue
        del end_at[j]
        end_at[i], begin_at[k] = k, i
        for hit in (
            ask(begin_at[i], i, k) if i > 0 else None,
            ask(i, k, end_at[k]) if k < len(text) else None,
        ):
            if hit:
                heappush(agenda, hit)
    return [text[i : end_at[i]] for i in sorted(end_at)]


class BPETokenizer:
    def __init__(self, merges, *, end_of_word="</w>", split=SPLIT):
        self.order = {}
        for r, (a, b) in enumerate(merges):
            self.order.setdefault((a, b), r)
        self.end_of_word = end_of_word
        self.split = split

    def encode_word(self, word):
        return bpe_encode(start(word, self.end_of_word), lambda a, b: self.order.get((a, b)))

    def __call__(self, text):
        def tokens():
            for m in re.finditer(self.split, text):
                at = m.start()
                for piece in self.encode_word(m.group()) if m.group() else ():
                    stop = min(at + len(piece), m.end())
                    if stop > at:
                        yield Token(text[at:stop], at, stop)
                    at = stop

        return list(tokens())

    def decode(self, pieces):
        mark = re.escape(self.end_of_word)
        return "".join(re.sub(mark + r"\Z", " ", piece) for piece in pieces).rstrip()


def boundary_f1(a, b):
    hits = size = 0
    for x, y in zip(a, b, strict=True):
        seen = Counter({e for t in x for e in (t.start, t.end)})
        seen.update({e for t in y for e in (t.start, t.end)})
        hits += sum(2 for n in seen.values() if n == 2)
        size += seen.total()
    return hits / size if size else 1.0


def heaps_beta(types):
    first, growth = set(), []
    for t in types:
        first.add(t)
        growth.append(len(first))
    at = {2**k for k in range(60) if 2**k <= len(types)} | {len(types)}
    points = [(log(n), log(growth[n - 1])) for n in at if n]
    if len(points) < 2:
        return 0.0
    k = len(points)
    sx, sy = (sum(c) for c in zip(*points))
    sxx, sxy = sum(x * x for x, _ in points), sum(x * y for x, y in points)
    return (k * sxy - sx * sy) / (k * sxx - sx * sx)


def share(part, whole, otherwise=0.0):
    return part / whole if whole else otherwise


def compare(train, test, tokenizers):
    if not test:
        raise ValueError("nothing to test on")
    found = {name: ([f(x) for x in train], [f(x) for x in test]) for name, f in tokenizers.items()}
    ink = [(n, i) for n, text in enumerate(test) for i, c in enumerate(text) if not c.isspace()]

    def row(name):
        old, new = ([t.text for tokens in part for t in tokens] for part in found[name])
        depth = Counter(
            (n, i) for n, tokens in enumerate(found[name][1]) for t in tokens for i in range(t.start, t.end)
        )
        return TokenizerReport(
            name=name,
            n_tokens=len(new),
            n_types=len(Counter(new)),
            fertility=share(len(new), len(" ".join(test).split())),
            chars_per_token=share(len(ink), len(new)),
            oov_rate=share(len(new) - sum(map(set(old).__contains__, new)), len(new)),
            coverage=share(sum(depth[place] == 1 for place in ink), len(ink), 1.0),
            heaps_beta=heaps_beta(old),
        )

    pairs = {(a, b): boundary_f1(found[a][1], found[b][1]) for a, b in combinations(found, 2)}
    return Comparison({name: row(name) for name in found}, pairs)


def format_table(comparison):
    """Given in the stub; any text that shows the rows will do."""
    return "\n".join(f"{name} {row}" for name, row in comparison.rows.items())
