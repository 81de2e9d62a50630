"""Four tokenizers behind one interface that keeps character offsets, and numbers that compare them.

BPE: Sennrich, Haddow, Birch 2016, "Neural Machine Translation of Rare Words with Subword Units", algorithm 1.
"""

from __future__ import annotations

import argparse
import functools
import heapq
import itertools
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SPLIT = r"\w+|[^\w\s]"


@dataclass(frozen=True)
class Token:
    """A piece of a text and where it stands: text == source[start:end]."""

    text: str
    start: int
    end: int


TokenizerFn = Callable[[str], list[Token]]


@dataclass(frozen=True)
class TokenizerReport:
    """One tokenizer in numbers, all about the test texts except heaps_beta (train)."""

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
    """rows by tokenizer name; boundary_f1 by pairs (a, b), a before b in the order of the mapping."""

    rows: dict[str, TokenizerReport]
    boundary_f1: dict[tuple[str, str], float]


# --- tokens with offsets ----------------------------------------------------------------------------------------------


def whitespace_tokenize(text: str) -> list[Token]:
    """The maximal runs of characters c with not c.isspace(), in order."""
    # BEGIN SOLUTION task 1: maximal runs of non-space characters
    return align(text, text.split())
    # END SOLUTION


def align(text: str, pieces: Sequence[str]) -> list[Token]:
    """Find where each piece stands in the text, left to right, skipping white space only.

    A token's text is what stands in the source. The pieces `` and '' may also stand for ", '' or `` there (Treebank
    tokenizers rewrite quotes). Text left over after the last piece is accepted. Graded inputs hold no empty piece.

    Raises ValueError with the piece (its repr) and the offset, if a piece is not what comes next; the offset is that
    of the first non-space character after the last placed piece.
    """
    # BEGIN SOLUTION task 1: place pieces left to right, skipping white space
    tokens, at = [], 0
    for piece in pieces:
        while at < len(text) and text[at].isspace():
            at += 1
        quotes = ('"', "''", "``") if piece in ("``", "''") else ()
        found = next((form for form in (piece, *quotes) if text.startswith(form, at)), None)
        if found is None:
            raise ValueError(f"piece {piece!r} is not what stands at offset {at}")
        tokens.append(Token(found, at, at + len(found)))
        at += len(found)
    return tokens
    # END SOLUTION


def nltk_tokenize(text: str) -> list[Token]:
    """NLTKWordTokenizer().tokenize (of nltk.tokenize), then align. Import nltk here: it takes a second."""
    # BEGIN SOLUTION task 2: NLTK's pieces, aligned
    from nltk.tokenize import NLTKWordTokenizer

    return align(text, NLTKWordTokenizer().tokenize(text))
    # END SOLUTION


@functools.cache
def load_spacy(model: str) -> Callable:
    """spacy.blank for a two-letter language code; otherwise spacy.load of a name or a folder, cached.

    Raises OSError that names the model and says how to get it, if it is not there."""
    import spacy

    if len(model) == 2:
        return spacy.blank(model)
    try:
        return spacy.load(model)
    except OSError as error:
        raise OSError(f"spaCy model {model!r} is not installed: python -m spacy download {model}") from error


def spacy_tokenize(text: str, lang: str = "en") -> list[Token]:
    """Tokens of load_spacy(lang) (given: a cached blank pipeline) at their token.idx, without white-space tokens."""
    # BEGIN SOLUTION task 2: spaCy's tokens and their offsets
    return [Token(t.text, t.idx, t.idx + len(t.text)) for t in load_spacy(lang)(text) if not t.is_space]
    # END SOLUTION


# --- byte pair encoding -----------------------------------------------------------------------------------------------


def merge_pair(symbols: Sequence[str], pair: tuple[str, str]) -> list[str]:
    """Join each occurrence of the pair of adjacent symbols, left to right; an occurrence is used once: aaa -> aa a."""
    # BEGIN SOLUTION task 3: one pass, left to right
    merged, i = [], 0
    while i < len(symbols):
        if tuple(symbols[i : i + 2]) == pair:
            merged.append(pair[0] + pair[1])
            i += 2
        else:
            merged.append(symbols[i])
            i += 1
    return merged
    # END SOLUTION


def learn_bpe(
    word_counts: Mapping[str, int], num_merges: int, *, end_of_word: str = "</w>", min_count: int = 2
) -> list[tuple[str, str]]:
    """Learn at most num_merges merges, in order.

    A word starts as its characters, end_of_word glued to the last. Each step merges the pair with the largest count
    (every adjacent position counts, weighted by the word's count: aaa holds (a, a) twice), ties to the
    lexicographically greatest pair. Stops early when the best count is below min_count or no pair is left.

    Raises ValueError("empty word") for an empty key.
    """
    # BEGIN SOLUTION task 3: count pairs, merge the best, repeat
    if "" in word_counts:
        raise ValueError("empty word")
    words = [([*word[:-1], word[-1] + end_of_word], count) for word, count in word_counts.items()]
    merges = []
    for _ in range(num_merges):
        counts: Counter[tuple[str, str]] = Counter()
        for symbols, count in words:
            for pair in itertools.pairwise(symbols):
                counts[pair] += count
        best = max(counts, key=lambda pair: (counts[pair], pair), default=None)
        if best is None or counts[best] < min_count:
            break
        merges.append(best)
        words = [(merge_pair(symbols, best), count) for symbols, count in words]
    return merges
    # END SOLUTION


def bpe_encode(symbols: Sequence[str], rank: Callable[[str, str], int | None]) -> list[str]:
    """Merge the adjacent pair of lowest rank (leftmost on equal rank), again and again, until no pair has a rank.

    rank(left, right) is the position of the merge in the list, or None. Task 4 accepts any running time; task 6 asks
    for O(n log n) steps and at most 4 calls of rank per symbol.
    """
    # BEGIN SOLUTION task 4: the lowest-ranked pair first; task 6: a heap over a linked list
    parts: list[str | None] = list(symbols)  # parts[i] is None once symbol i is absorbed by one on its left
    n = len(parts)
    left, right = list(range(-1, n - 1)), list(range(1, n + 1))
    heap: list[tuple[int, int, str, str]] = []

    def offer(i: int, j: int) -> None:
        if i >= 0 and j < n and (r := rank(parts[i], parts[j])) is not None:
            heapq.heappush(heap, (r, i, parts[i], parts[j]))

    for i in range(n - 1):
        offer(i, i + 1)
    while heap:
        _, i, a, b = heapq.heappop(heap)
        j = right[i]
        # An entry is stale if one of its two symbols was absorbed or has grown since it was pushed.
        if j == n or parts[i] != a or parts[j] != b:
            continue
        parts[i], parts[j] = a + b, None
        right[i] = right[j]
        if right[j] < n:
            left[right[j]] = i
        offer(left[i], i)
        offer(i, right[i])
    return [part for part in parts if part is not None]
    # END SOLUTION


class BPETokenizer:
    """Byte pair encoding with a learnt list of merges: a text is split by the pattern, each match encoded alone."""

    def __init__(self, merges: Sequence[tuple[str, str]], *, end_of_word: str = "</w>", split: str = SPLIT) -> None:
        self.end_of_word = end_of_word
        self.ranks = {tuple(pair): r for r, pair in enumerate(merges)}
        self.pattern = re.compile(split)

    def encode_word(self, word: str) -> list[str]:
        """The pieces of one word, the last one with end_of_word. Raises ValueError("empty word")."""
        # BEGIN SOLUTION task 4: characters, the marker, bpe_encode
        if not word:
            raise ValueError("empty word")
        return bpe_encode([*word[:-1], word[-1] + self.end_of_word], lambda a, b: self.ranks.get((a, b)))
        # END SOLUTION

    def __call__(self, text: str) -> list[Token]:
        """Surface tokens: markers removed, tokens of length 0 and empty matches of the pattern dropped."""
        # BEGIN SOLUTION task 4: encode each match and keep count of the offset
        tokens = []
        for match in self.pattern.finditer(text):
            if not match[0]:
                continue
            at = match.start()
            pieces = self.encode_word(match[0])
            pieces[-1] = pieces[-1].removesuffix(self.end_of_word)
            for piece in filter(None, pieces):
                tokens.append(Token(piece, at, at + len(piece)))
                at += len(piece)
        return tokens
        # END SOLUTION

    def decode(self, pieces: Sequence[str]) -> str:
        """Join the pieces; a marker at the end of a piece becomes one space; the end is stripped (str.rstrip)."""
        # BEGIN SOLUTION task 4: markers become spaces
        mark = self.end_of_word
        return "".join(p.removesuffix(mark) + " " if p.endswith(mark) else p for p in pieces).rstrip()
        # END SOLUTION


# --- comparison -------------------------------------------------------------------------------------------------------


def boundary_f1(a: Sequence[Sequence[Token]], b: Sequence[Sequence[Token]]) -> float:
    """F1 of two tokenizations of the same texts, micro-averaged over the sets of start and end offsets of each text.

    2 Σ|A ∩ B| / (Σ|A| + Σ|B|); 1.0 if there is no boundary at all. Raises ValueError for lists of unequal length.
    """
    # BEGIN SOLUTION task 5: shared boundaries over all boundaries
    shared = total = 0
    for tokens_a, tokens_b in zip(a, b, strict=True):
        bounds_a, bounds_b = ({x for t in tokens for x in (t.start, t.end)} for tokens in (tokens_a, tokens_b))
        shared += len(bounds_a & bounds_b)
        total += len(bounds_a) + len(bounds_b)
    return 2 * shared / total if total else 1.0
    # END SOLUTION


def heaps_beta(types: Sequence[str]) -> float:
    """Heaps' exponent of a stream of token texts (repeats included): types seen grow like tokens seen ** beta.

    Least-squares slope of log(types seen) on log(tokens seen) at 1, 2, 4, ... and the end, each point once; 0.0 for
    fewer than two points.
    """
    # BEGIN SOLUTION task 5: slope in log-log
    marks = {2**k for k in range(len(types).bit_length())} | {len(types)}
    seen: set[str] = set()
    points = []
    for n, text in enumerate(types, 1):
        seen.add(text)
        if n in marks:
            points.append((math.log(n), math.log(len(seen))))
    if len(points) < 2:
        return 0.0
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    # END SOLUTION


def compare(train: Sequence[str], test: Sequence[str], tokenizers: Mapping[str, TokenizerFn]) -> Comparison:
    """Compare tokenizers; each is called once per text (a text in both lists counts as two).

    n_tokens, n_types (distinct token texts), fertility = tokens / whitespace words, chars_per_token = non-space
    characters / tokens, oov_rate = share of tokens whose text is no token text of train, coverage = share of non-space
    characters that lie in exactly one token: of test. heaps_beta: of the stream of all train tokens.
    Keys of boundary_f1 (over test) are (a, b), a before b in the order of the mapping. Where a denominator is 0 the
    figure is 0.0, coverage 1.0.

    Raises ValueError if test is empty.
    """
    # BEGIN SOLUTION task 5: tokenize once, then count
    if not test:
        raise ValueError("no test texts")
    words = sum(len(text.split()) for text in test)
    characters = sum(not c.isspace() for text in test for c in text)
    rows, tested = {}, {}
    for name, tokenize in tokenizers.items():
        stream = [t.text for text in train for t in tokenize(text)]
        known = set(stream)
        tested[name] = [tokenize(text) for text in test]
        found = [t.text for tokens in tested[name] for t in tokens]
        covered = 0
        for text, tokens in zip(test, tested[name]):
            depth = Counter(i for t in tokens for i in range(t.start, t.end))
            covered += sum(depth[i] == 1 and not c.isspace() for i, c in enumerate(text))
        rows[name] = TokenizerReport(
            name=name,
            n_tokens=len(found),
            n_types=len(set(found)),
            fertility=len(found) / words if words else 0.0,
            chars_per_token=characters / len(found) if found else 0.0,
            oov_rate=sum(text not in known for text in found) / len(found) if found else 0.0,
            coverage=covered / characters if characters else 1.0,
            heaps_beta=heaps_beta(stream),
        )
    pairs = itertools.combinations(tokenizers, 2)
    return Comparison(rows, {(a, b): boundary_f1(tested[a], tested[b]) for a, b in pairs})
    # END SOLUTION


# --- given: the table and the command line ----------------------------------------------------------------------------


def format_table(comparison: Comparison) -> str:
    """The comparison as plain text."""
    lines = [f"{'':12}{'tokens':>8}{'types':>7}{'fertility':>11}{'chars':>7}{'oov':>7}{'coverage':>10}{'beta':>7}"]
    for name, r in comparison.rows.items():
        lines.append(
            f"{name:12}{r.n_tokens:8}{r.n_types:7}{r.fertility:11.3f}{r.chars_per_token:7.2f}{r.oov_rate:7.3f}"
            f"{r.coverage:10.3f}{r.heaps_beta:7.3f}"
        )
    return "\n".join([*lines, *(f"F1 {a} / {b}: {f1:.3f}" for (a, b), f1 in comparison.boundary_f1.items())])


def nltk_punkt_tokenize(text: str) -> list[Token]:
    """NLTK's word_tokenize, which cuts sentences first and needs the punkt data (main says so where it is missing)."""
    from nltk.tokenize import word_tokenize

    return align(text, word_tokenize(text))


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the four on the non-empty lines of a file; every third line is test, the others are train."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--spacy-model", default="en", help="language code, installed pipeline or folder")
    parser.add_argument("--nltk-punkt", action="store_true", help="word_tokenize with the punkt data")
    parser.add_argument("--merges", type=int, default=300)
    options = parser.parse_args(argv)
    lines = [line for line in options.corpus.read_text(encoding="utf-8").splitlines() if line.strip()]
    train, test = [x for i, x in enumerate(lines, 1) if i % 3], lines[2::3]
    merges = learn_bpe(Counter(w for text in train for w in re.findall(SPLIT, text)), options.merges)
    tokenizers = {
        "whitespace": whitespace_tokenize,
        "nltk": nltk_punkt_tokenize if options.nltk_punkt else nltk_tokenize,
        "spacy": functools.partial(spacy_tokenize, lang=options.spacy_model),
        "bpe": BPETokenizer(merges),
    }
    try:
        print(format_table(compare(train, test, tokenizers)))
    except (OSError, LookupError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
