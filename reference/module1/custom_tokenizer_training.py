"""Oracle of 1.3: a full recount for each merge, exact fractions, and all segmentations of a word, one by one."""

import itertools
import math
from collections import Counter
from fractions import Fraction

import regex

PAT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def parts(text, specials):
    """[is special, part], character by character: at each place the longest special token that stands there."""
    found, plain, i = [], "", 0
    while i < len(text):
        here = max((s for s in specials if text.startswith(s, i)), key=len, default="")
        if here:
            found += [(False, plain), (True, here)]
            plain = ""
        else:
            plain += text[i]
        i += len(here) or 1
    return [part for part in (*found, (False, plain)) if part[1]]


def count_pretokens(texts, specials=()):
    pieces = (
        m for text in texts for special, part in parts(text, specials) if not special for m in regex.findall(PAT, part)
    )
    return dict(Counter(piece.encode("utf-8") for piece in pieces))


def merged(symbols, a, b, ab):
    out = []
    for symbol in symbols:
        # The flag keeps an occurrence from being used twice: what a merge made is not part of another one.
        if out and out[-1] == (a, False) and symbol == b:
            out[-1] = (ab, True)
        else:
            out.append((symbol, False))
    return [symbol for symbol, _ in out]


def counted(words):
    pairs, single = Counter(), Counter()
    for symbols, n in words:
        for symbol in symbols:
            single[symbol] += n
        for pair in itertools.pairwise(symbols):
            pairs[pair] += n
    return pairs, single


def bpe_merges(counts, number):
    words = [([bytes([b]) for b in word], n) for word, n in counts.items()]
    merges = []
    for _ in range(number):
        pairs, _ = counted(words)
        if not pairs:
            break
        a, b = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append((a, b))
        words = [(merged(symbols, a, b, a + b), n) for symbols, n in words]
    return merges


def bpe_vocab(merges, specials):
    pieces = [bytes([b]) for b in range(256)] + [a + b for a, b in merges] + [s.encode("utf-8") for s in specials]
    return dict(enumerate(pieces))


def bpe_encode(text, merges, specials=()):
    ids = []
    for special, part in parts(text, specials):
        if special:
            ids.append(256 + len(merges) + list(specials).index(part))
            continue
        for piece in regex.findall(PAT, part):
            symbols = list(piece.encode("utf-8"))
            # Going once through the merges in the order learnt is right here, because a merge makes only pairs that
            # were learnt later.
            names = {b: bytes([b]) for b in range(256)}
            for i, (a, b) in enumerate(merges):
                names[256 + i] = a + b
                k = 0
                while k + 1 < len(symbols):
                    if names[symbols[k]] == a and names[symbols[k + 1]] == b:
                        symbols[k : k + 2] = [256 + i]
                    k += 1
            ids += symbols
    return ids


def wordpiece_vocab(counts, size, unk="[UNK]"):
    words = [([c if i == 0 else "##" + c for i, c in enumerate(word)], n) for word, n in counts.items()]
    vocab = [unk, *sorted(counted(words)[1])]
    while len(vocab) < size:
        pairs, single = counted(words)
        if not pairs:
            break
        order = sorted(pairs, key=lambda p: (-Fraction(pairs[p], single[p[0]] * single[p[1]]), -pairs[p], p))
        a, b = order[0]
        vocab.append(a + b[2:])
        words = [(merged(symbols, a, b, vocab[-1]), n) for symbols, n in words]
    return {piece: i for i, piece in enumerate(vocab)}


def wordpiece_encode(word, vocab, unk="[UNK]", max_chars=100):
    def rest(start):
        if start == len(word):
            return []
        for end in range(len(word), start, -1):
            piece = ("##" if start else "") + word[start:end]
            if piece in vocab:
                after = rest(end)
                return None if after is None else [piece, *after]
        return None

    pieces = rest(0) if len(word) <= max_chars else None
    return [unk] if pieces is None else pieces


def segmentations(word, logp, max_piece, skip=None):
    """All segmentations of a word, each with its score."""
    n = len(word)
    for k in range(n):
        for cuts in itertools.combinations(range(1, n), k):
            pieces = [word[i:j] for i, j in itertools.pairwise((0, *cuts, n))]
            if all(p in logp and len(p) <= max_piece and p != skip for p in pieces):
                yield pieces, math.fsum(logp[p] for p in pieces)


def best_segmentation(word, logp, max_piece, skip=None):
    """The best segmentation; of equals the one whose last piece is longest, then the piece before it, ..."""
    order = lambda found: (found[1], [len(p) for p in reversed(found[0])])
    return max(segmentations(word, logp, max_piece, skip), key=order, default=(None, -math.inf))


def forward_backward(word, logp, max_piece):
    found = list(segmentations(word, logp, max_piece))
    if not found:
        return -math.inf, {}
    top = max(score for _, score in found)
    z = math.fsum(math.exp(score - top) for _, score in found)
    expected = {}
    for pieces, score in found:
        for piece in pieces:
            expected[piece] = expected.get(piece, 0.0) + math.exp(score - top) / z
    return top + math.log(z), expected


def em_step(counts, logp, max_piece):
    likelihood, total = 0.0, dict.fromkeys(logp, 0.0)
    for word, n in counts.items():
        log_z, expected = forward_backward(word, logp, max_piece)
        likelihood += n * log_z
        for piece, count in expected.items():
            total[piece] += n * count
    total = {p: max(c, 1e-12) for p, c in total.items() if len(p) == 1 or c > 1e-12}
    return likelihood, {p: math.log(c / math.fsum(total.values())) for p, c in total.items()}


def losses(counts, logp, max_piece):
    """(loss of each longer piece, by how much the best segmentations of the words beat those into other pieces)."""
    used, clear = Counter(), math.inf
    for word, n in counts.items():
        best, score = best_segmentation(word, logp, max_piece)
        others = (x for pieces, x in segmentations(word, logp, max_piece) if sorted(pieces) != sorted(best))
        clear = min(clear, score - max(others, default=-math.inf))
        for piece in best:
            used[piece] += n
    return {p: used[p] * (logp[p] - best_segmentation(p, logp, max_piece, p)[1]) if used[p] else 0.0
            for p in logp if len(p) > 1}, clear  # fmt: skip


def prune(counts, logp, keep, max_piece):
    """(what is kept, how clear it is: the margin of the last loss that is kept, or of a best segmentation)."""
    loss, clear = losses(counts, logp, max_piece)
    order = sorted(loss, key=lambda p: (-loss[p], p))
    room = max(0, keep - (len(logp) - len(loss)))
    # Two unused pieces tie exactly in any arithmetic.
    if 0 < room < len(order) and loss[order[room - 1]] != 0.0:
        clear = min(clear, loss[order[room - 1]] - loss[order[room]])
    return {p: logp[p] for p in logp if len(p) == 1 or p in order[:room]}, clear


def train_unigram(counts, size, seed_size=1200, max_piece=6, shrink=0.75, em_iters=2):
    """(logp, history, the smallest margin of the prunes)."""
    frequency = Counter()
    for word, n in counts.items():
        for i, j in itertools.combinations(range(len(word) + 1), 2):
            if j - i <= max_piece:
                frequency[word[i:j]] += n
    characters = [p for p in frequency if len(p) == 1]
    longer = sorted(
        (p for p in frequency if len(p) > 1 and frequency[p] >= 2), key=lambda p: (-frequency[p] * len(p), p)
    )
    seeds = characters + longer[: max(0, seed_size - len(characters))]
    logp = {p: math.log(frequency[p] / sum(frequency[q] for q in seeds)) for p in seeds}
    history, gap = [], math.inf
    while len(logp) > size:
        for _ in range(em_iters):
            before = len(logp)
            likelihood, logp = em_step(counts, logp, max_piece)
            history.append((before, likelihood))
        logp, clear = prune(counts, logp, max(size, int(shrink * len(logp))), max_piece)
        gap = min(gap, clear)
    return logp, history, gap
