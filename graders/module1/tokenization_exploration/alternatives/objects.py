"""In the style of objects: a linked list of nodes, words as objects, sums by numpy."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import combinations, pairwise

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


def cut(text, i, j):
    return Token(text[i:j], i, j)


def whitespace_tokenize(text):
    tokens, start = [], None
    for i, c in enumerate(text + " "):
        if c.isspace():
            if start is not None:
                tokens.append(cut(text, start, i))
            start = None
        elif start is None:
            start = i
    return tokens


def align(text, pieces):
    position, tokens = 0, []
    for piece in pieces:
        rest = text[position:].lstrip()
        position = len(text) - len(rest)
        options = {"``": ["``", "''", '"'], "''": ["''", "``", '"']}.get(piece, [piece])
        lengths = [len(o) for o in options if rest.startswith(o)]
        if not lengths:
            raise ValueError(f"{piece!r} expected at {position}")
        tokens.append(cut(text, position, position + lengths[0]))
        position += lengths[0]
    return tokens


def nltk_tokenize(text):
    from nltk.tokenize import NLTKWordTokenizer

    return align(text, NLTKWordTokenizer().tokenize(text))


@lru_cache
def load_spacy(model):
    import spacy

    if len(model) == 2:
        return spacy.blank(model)
    try:
        return spacy.load(model)
    except OSError as error:
        raise OSError(f"no pipeline {model}; try: spacy download {model}") from error


def spacy_tokenize(text, lang="en"):
    return align(text, [t.text for t in load_spacy(lang)(text) if t.text.strip()])


def merge_pair(symbols, pair):
    a, b = pair
    out = []
    pending = None  # a left half that waits for its right half
    for s in symbols:
        if pending is not None and s == b:
            out.append(a + b)
            pending = None
            continue
        if pending is not None:
            out.append(pending)
            pending = None
        if s == a:
            pending = s
        else:
            out.append(s)
    return out if pending is None else [*out, pending]


class Word:
    def __init__(self, text, count, mark):
        if not text:
            raise ValueError("empty word")
        self.symbols = list(text)
        self.symbols[-1] += mark
        self.count = count


def learn_bpe(word_counts, num_merges, *, end_of_word="</w>", min_count=2):
    """Counts are kept and corrected for the words that a merge touches."""
    words = [Word(text, count, end_of_word) for text, count in word_counts.items()]
    counts, where = defaultdict(int), defaultdict(set)

    def add(i, sign):
        for pair in pairwise(words[i].symbols):
            counts[pair] += sign * words[i].count
            where[pair].add(i)

    for i in range(len(words)):
        add(i, 1)
    merges = []
    while len(merges) < num_merges and counts:
        count, best = max((c, p) for p, c in counts.items())
        if count < min_count or count <= 0:
            break
        merges.append(best)
        for i in where.pop(best):
            add(i, -1)
            words[i].symbols = merge_pair(words[i].symbols, best)
            add(i, 1)
    return merges


class Node:
    __slots__ = ("alive", "next", "order", "prev", "text")

    def __init__(self, text, order):
        self.text, self.order, self.prev, self.next, self.alive = text, order, None, None, True


def bpe_encode(symbols, rank):
    nodes = [Node(s, i) for i, s in enumerate(symbols)]
    queue = []
    for i, (a, b) in enumerate(pairwise(nodes)):
        a.next, b.prev = b, a
        r = rank(a.text, b.text)
        if r is not None:
            queue.append((r, i, i + 1, a.text, b.text))
    heapify(queue)
    while queue:
        _, i, j, text_a, text_b = heappop(queue)
        a, b = nodes[i], nodes[j]
        if not (a.alive and b.alive and a.text == text_a and b.text == text_b):
            continue
        new = Node(text_a + text_b, len(nodes))
        nodes.append(new)
        nodes[i] = new  # the place in the text stays the order of the queue
        new.order = i
        a.alive = b.alive = False
        new.prev, new.next = a.prev, b.next
        for x, y in ((new.prev, new), (new, new.next)):
            if x is None or y is None:
                continue
            x.next, y.prev = y, x
            r = rank(x.text, y.text)
            if r is not None:
                heappush(queue, (r, x.order, y.order, x.text, y.text))
    out, node = [], nodes[0] if nodes else None
    while node is not None:
        out.append(node.text)
        node = node.next
    return out


class BPETokenizer:
    def __init__(self, merges, *, end_of_word="</w>", split=SPLIT):
        self.table = dict(zip(map(tuple, merges), range(len(merges))))
        self.mark, self.split = end_of_word, split

    def encode_word(self, word):
        return bpe_encode(Word(word, 1, self.mark).symbols, lambda *pair: self.table.get(pair))

    def __call__(self, text):
        tokens = []
        for m in re.finditer(self.split, text):
            if m.end() == m.start():
                continue
            *front, last = self.encode_word(m.group())
            ends = np.cumsum([m.start(), *map(len, front), len(last) - len(self.mark)]).tolist()
            tokens += [cut(text, i, j) for i, j in pairwise(ends) if j > i]
        return tokens

    def decode(self, pieces):
        out = ""
        for piece in pieces:
            out += piece[: -len(self.mark)] + " " if piece.endswith(self.mark) else piece
        return out.rstrip()


def boundary_f1(a, b):
    if len(a) != len(b):
        raise ValueError("not the same texts")
    sides = [[{t.start for t in text} | {t.end for t in text} for text in side] for side in (a, b)]
    both = sum(len(x & y) for x, y in zip(*sides))
    sizes = [sum(map(len, side)) for side in sides]
    if sum(sizes) == 0:
        return 1.0
    if both == 0:
        return 0.0
    precision, recall = both / sizes[0], both / sizes[1]
    return 2 * precision * recall / (precision + recall)


def heaps_beta(types):
    n, ends = 1, []
    while n < len(types):
        ends.append(n)
        n *= 2
    if types:
        ends.append(len(types))
    if len(ends) < 2:
        return 0.0
    x = np.log(ends)
    y = np.log([len(set(types[:e])) for e in ends])
    return float(np.linalg.lstsq(np.stack([x, np.ones_like(x)], 1), y, rcond=None)[0][0])


def compare(train, test, tokenizers):
    if len(test) == 0:
        raise ValueError("test is empty")
    names = list(tokenizers)
    seen = {n: [t.text for text in train for t in tokenizers[n](text)] for n in names}
    cuts = {n: [list(tokenizers[n](text)) for text in test] for n in names}
    space = [np.array([c.isspace() for c in text], dtype=bool) for text in test]
    ink = int(sum((~s).sum() for s in space))
    words = sum(len(whitespace_tokenize(text)) for text in test)
    rows = {}
    for n in names:
        texts = [t.text for tokens in cuts[n] for t in tokens]
        once = 0
        for s, tokens in zip(space, cuts[n]):
            depth = np.zeros(len(s), int)
            for t in tokens:
                depth[t.start : t.end] += 1
            once += int(((depth == 1) & ~s).sum())
        vocabulary = set(seen[n])
        unknown = len([t for t in texts if t not in vocabulary])
        ratio = lambda a, b, empty=0.0: a / b if b else empty
        rows[n] = TokenizerReport(
            n, len(texts), len(set(texts)), ratio(len(texts), words), ratio(ink, len(texts)),
            ratio(unknown, len(texts)), ratio(once, ink, 1.0), heaps_beta(seen[n]),
        )  # fmt: skip
    return Comparison(rows, {p: boundary_f1(cuts[p[0]], cuts[p[1]]) for p in combinations(names, 2)})


def format_table(comparison):
    """Given in the stub; any text that shows the rows will do."""
    return "\n".join(f"{name} {row}" for name, row in comparison.rows.items())
