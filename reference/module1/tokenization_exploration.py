"""Oracle of 1.1: definitions recounted from scratch, offsets from the libraries themselves."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np


def merge(symbols, pair):
    """Leftmost occurrence first, by recursion on what follows."""
    out = list(symbols)
    i = 0
    while i + 1 < len(out):
        if (out[i], out[i + 1]) == tuple(pair):
            out[i : i + 2] = [out[i] + out[i + 1]]
        i += 1
    return out


def learn_bpe(word_counts, num_merges, end_of_word="</w>", min_count=2):
    """Every step recounts every pair in every word, replayed from the merges so far."""
    merges = []
    for _ in range(num_merges):
        counts = {}
        for word, count in word_counts.items():
            symbols = list(word)
            symbols[-1] += end_of_word
            for pair in merges:
                symbols = merge(symbols, pair)
            for i in range(len(symbols) - 1):
                pair = symbols[i], symbols[i + 1]
                counts[pair] = counts.get(pair, 0) + count
        best = max(((count, pair) for pair, count in counts.items()), default=(0, None))
        if best[1] is None or best[0] < min_count:
            break
        merges.append(best[1])
    return merges


def encode(symbols, ranks):
    """Scan for the lowest rank, merge the leftmost such place, scan again."""
    symbols = list(symbols)
    while True:
        ranked = [(ranks[p], i) for i, p in enumerate(itertools.pairwise(symbols)) if p in ranks]
        if not ranked:
            return symbols
        i = min(ranked)[1]
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]


def hf_encoder(merges, end_of_word="</w>"):
    """The BPE model of Hugging Face tokenizers with these merges: a function from a word to its pieces."""
    from tokenizers import models

    characters = sorted({c for pair in merges for c in "".join(pair).replace(end_of_word, "")} | set("abcdefgh"))
    pieces = [*characters, *(c + end_of_word for c in characters), *(a + b for a, b in merges)]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    model = models.BPE(vocab=vocab, merges=list(merges), end_of_word_suffix=end_of_word)
    return lambda word: [token.value for token in model.tokenize(word)]


def nltk_spans(text):
    from nltk.tokenize import NLTKWordTokenizer

    return list(NLTKWordTokenizer().span_tokenize(text))


@functools.cache
def pipeline(lang):
    import spacy

    return spacy.blank(lang)


def spacy_spans(text, lang="en"):
    return [(t.idx, t.idx + len(t)) for t in pipeline(lang)(text) if t.text.strip()]


def f1(a, b):
    """a, b: spans of each text. Precision and recall of boundaries marked with their text."""
    left, right = ({(n, x) for n, spans in enumerate(side) for span in spans for x in span} for side in (a, b))
    if not left and not right:
        return 1.0
    return 2 * len(left & right) / (len(left) + len(right))


def beta(stream):
    ends = sorted({2**k for k in range(30) if 2**k <= len(stream)} | ({len(stream)} - {0}))
    if len(ends) < 2:
        return 0.0
    return float(np.polyfit([math.log(n) for n in ends], [math.log(len(set(stream[:n]))) for n in ends], 1)[0])


def report(train, test, spans_of):
    """The figures of one tokenizer, given as a function from a text to its spans."""
    spans = [spans_of(text) for text in test]
    tokens = [text[i:j] for text, found in zip(test, spans) for i, j in found]
    stream = [text[i:j] for text in train for i, j in spans_of(text)]
    inside = [
        sum(i <= x < j for i, j in found) == 1
        for text, found in zip(test, spans)
        for x, c in enumerate(text)
        if not c.isspace()
    ]
    words = sum(len(text.split()) for text in test)
    return {
        "n_tokens": len(tokens),
        "n_types": len(set(tokens)),
        "fertility": len(tokens) / words if words else 0.0,
        "chars_per_token": len(inside) / len(tokens) if tokens else 0.0,
        "oov_rate": float(np.mean([t not in stream for t in tokens])) if tokens else 0.0,
        "coverage": float(np.mean(inside)) if inside else 1.0,
        "heaps_beta": beta(stream),
    }
