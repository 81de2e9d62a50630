"""1.3 on integer ids: neighbours of each merge adjusted one by one, posteriors by pushing mass back, Python's logs."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import regex

PAT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
PRETOKEN = regex.compile(PAT)


def bytes_to_unicode():
    table, extra = {}, 256
    for b in range(256):
        if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174:
            table[b] = chr(b)
        else:
            table[b], extra = chr(extra), extra + 1
    return table


def cut(text, specials):
    """Alternating plain text and special tokens, by search."""
    at = 0
    while specials:
        hits = [(i, -len(s), s) for s in specials if (i := text.find(s, at)) >= 0]
        if not hits:
            break
        i, _, special = min(hits)
        yield text[at:i], special
        at = i + len(special)
    yield text[at:], None


def count_pretokens(texts, special_tokens=()):
    counts = {}
    for text in texts:
        for plain, _ in cut(text, special_tokens):
            for piece in PRETOKEN.findall(plain):
                key = piece.encode()
                counts[key] = counts.get(key, 0) + 1
    return counts


@dataclass
class BPEModel:
    vocab: dict[int, bytes]
    merges: list[tuple[bytes, bytes]]
    special_tokens: tuple[str, ...]
    ranks: dict = field(init=False, repr=False)
    ids: dict = field(init=False, repr=False)

    def __post_init__(self):
        self.ranks = {pair: i for i, pair in enumerate(self.merges)}
        first = 256 + len(self.merges)
        self.ids = {token: first + i for i, token in enumerate(self.special_tokens)}

    def word_ids(self, piece):
        symbols = [(bytes([b]), b) for b in piece.encode()]
        while True:
            best = min(
                (self.ranks[a[0], b[0]] for a, b in pairwise(symbols) if (a[0], b[0]) in self.ranks), default=None
            )
            if best is None:
                return [i for _, i in symbols]
            a, b = self.merges[best]
            for k, (left, right) in enumerate(pairwise(symbols)):
                if (left[0], right[0]) == (a, b):
                    symbols[k : k + 2] = [(a + b, 256 + best)]
                    break

    def encode(self, text):
        out = []
        for plain, special in cut(text, self.special_tokens):
            for piece in PRETOKEN.findall(plain):
                out.extend(self.word_ids(piece))
            if special is not None:
                out.append(self.ids[special])
        return out

    def begins(self, text, i):
        """Whether a special token that is not whole yet may begin at i."""
        return any(len(s) > len(text) - i and s.startswith(text[i:]) for s in self.special_tokens)

    def encode_iterable(self, chunks):
        text = ""
        for chunk in chunks:
            text += chunk
            start = i = 0
            while i < len(text) and not self.begins(text, i):
                special = next((s for s in self.special_tokens if text.startswith(s, i)), None)
                if special is not None:
                    yield from self.encode(text[start:i])
                    yield self.ids[special]
                    start = i = i + len(special)
                else:
                    i += 1
            spans = [m.span() for m in PRETOKEN.finditer(text[start:i])]
            for a, b in spans[:-2]:
                yield from self.word_ids(text[start + a : start + b])
                held = start + b
            text = text[held if len(spans) > 2 else start :]
        yield from self.encode(text)

    def decode(self, ids):
        data = bytearray()
        for i in ids:
            data += self.vocab[i]
        return bytes(data).decode("utf-8", "replace")


def train_bpe(counts, vocab_size, special_tokens=()):
    room = vocab_size - 256 - len(special_tokens)
    if room < 0:
        raise ValueError("vocab_size is too small")
    vocab = {b: bytes([b]) for b in range(256)}
    words = [(list(word), n) for word, n in counts.items()]
    pairs, where = {}, {}

    def add(pair, n, w):
        pairs[pair] = pairs.get(pair, 0) + n
        where.setdefault(pair, set()).add(w)

    for w, (symbols, n) in enumerate(words):
        for pair in pairwise(symbols):
            add(pair, n, w)
    merges = []
    while len(merges) < room:
        most = max(pairs.values(), default=0)
        if most == 0:
            break
        a, b = max((p for p, n in pairs.items() if n == most), key=lambda p: (vocab[p[0]], vocab[p[1]]))
        new = len(vocab)
        vocab[new] = vocab[a] + vocab[b]
        merges.append((vocab[a], vocab[b]))
        # `where` may name words that have lost the pair since; they are passed over without a change.
        for w in where.pop((a, b)):
            symbols, n = words[w]
            i = 0
            while i + 1 < len(symbols):
                if symbols[i] == a and symbols[i + 1] == b:
                    pairs[a, b] -= n
                    if i:
                        pairs[symbols[i - 1], a] -= n
                        add((symbols[i - 1], new), n, w)
                    if i + 2 < len(symbols):
                        pairs[b, symbols[i + 2]] -= n
                        add((new, symbols[i + 2]), n, w)
                    symbols[i : i + 2] = [new]
                i += 1
    for token in special_tokens:
        vocab[len(vocab)] = token.encode()
    return BPEModel(vocab, merges, tuple(special_tokens))


def pair_score(n_ab, n_a, n_b):
    return Fraction(n_ab) / n_a / n_b


@dataclass
class WordPieceModel:
    vocab: dict[str, int]
    unk: str = "[UNK]"

    def encode_word(self, word, *, max_chars=100):
        rest, pieces = word, []
        while rest and len(word) <= max_chars:
            end = len(rest)
            while end and rest[:end] not in self.vocab:
                end -= 1
            if end <= (2 if pieces else 0):
                return [self.unk]
            pieces.append(rest[:end])
            rest = "##" + rest[end:] if rest[end:] else ""
        return pieces or [self.unk]


def train_wordpiece(counts, vocab_size, *, unk="[UNK]"):
    words = {word: (word[:1], *("##" + c for c in word[1:])) for word in counts}
    vocab = {unk: 0}
    for symbol in sorted(set().union(*words.values())):
        vocab[symbol] = len(vocab)
    while len(vocab) < vocab_size:
        n_one, n_two = Counter(), Counter()
        for word, symbols in words.items():
            for i, symbol in enumerate(symbols):
                n_one[symbol] += counts[word]
                if i:
                    n_two[symbols[i - 1], symbol] += counts[word]
        best = None
        for a, b in sorted(n_two):
            rank = (pair_score(n_two[a, b], n_one[a], n_one[b]), n_two[a, b])
            if best is None or rank > best[0]:
                best = (rank, a, b)
        if best is None:
            break
        _, a, b = best
        new = a + b[2:]
        vocab[new] = len(vocab)
        for word, symbols in words.items():
            out = []
            for symbol in symbols:
                # An a before b is fused at once; the result cannot be an a of the same round unless it is longer.
                if out and out[-1] is not None and out[-1] == a and symbol == b:
                    out[-1:] = [new, None]
                else:
                    out.append(symbol)
            words[word] = tuple(s for s in out if s is not None)
    return WordPieceModel(vocab, unk)


def viterbi(word, logp, max_piece, *, skip=None):
    table = {0: (0.0, None)}
    for end in range(1, len(word) + 1):
        # max() keeps the first of equals: the earlier start.
        ways = [
            (table[start][0] + logp[word[start:end]], start)
            for start in range(max(0, end - max_piece), end)
            if start in table and word[start:end] in logp and word[start:end] != skip
        ]
        if ways:
            table[end] = max(ways, key=lambda way: way[0])
    if len(word) not in table:
        return None, -math.inf

    def pieces(end):
        while end:
            start = table[end][1]
            yield word[start:end]
            end = start

    return list(pieces(len(word)))[::-1], table[len(word)][0]


def add_logs(x, y):
    low, high = sorted((x, y))
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


def forward_backward(word, logp, max_piece):
    n = len(word)
    alpha = [0.0] + [-math.inf] * n
    for end in range(1, n + 1):
        for start in range(max(0, end - max_piece), end):
            if word[start:end] in logp:
                alpha[end] = add_logs(alpha[end], alpha[start] + logp[word[start:end]])
    if alpha[n] == -math.inf:
        return -math.inf, {}
    # The probability that a boundary lies at `end` flows back along the pieces that end there.
    mass, expected = [0.0] * n + [1.0], {}
    for end in range(n, 0, -1):
        for start in range(max(0, end - max_piece), end):
            piece = word[start:end]
            if mass[end] and piece in logp and alpha[end] > -math.inf:
                share = mass[end] * math.exp(alpha[start] + logp[piece] - alpha[end])
                mass[start] += share
                expected[piece] = expected.get(piece, 0.0) + share
    return alpha[n], expected


def em_step(counts, logp, max_piece):
    total, likelihood = {p: 0.0 for p in logp}, []
    for word, n in counts.items():
        score, expected = forward_backward(word, logp, max_piece)
        likelihood.append(n * score)
        for piece in expected:
            total[piece] += n * expected[piece]
    for piece in list(total):
        if len(piece) == 1:
            total[piece] = max(total[piece], 1e-12)
        elif total[piece] <= 1e-12:
            del total[piece]
    z = math.fsum(total.values())
    return math.fsum(likelihood), {p: math.log(c / z) for p, c in total.items()}


def prune(counts, logp, keep, max_piece):
    loss = {p: 0.0 for p in logp if len(p) > 1}
    for word, n in counts.items():
        for piece in viterbi(word, logp, max_piece)[0]:
            if piece in loss:
                loss[piece] += n
    for piece, n in loss.items():
        if n:
            loss[piece] = n * (logp[piece] - viterbi(piece, logp, max_piece, skip=piece)[1])
    worst_first = sorted(sorted(loss, reverse=True), key=loss.get)
    gone = set(worst_first[: max(0, min(len(loss), len(logp) - keep))])
    return {p: x for p, x in logp.items() if p not in gone}


@dataclass
class UnigramModel:
    logp: dict[str, float]
    max_piece: int
    history: list[tuple[int, float]]

    def encode_word(self, word):
        pieces = viterbi(word, self.logp, self.max_piece)[0]
        if pieces is not None:
            return pieces
        raise ValueError(f"no segmentation of {word!r}")


def train_unigram(counts, vocab_size, *, seed_size=1200, max_piece=6, shrink=0.75, em_iters=2):
    seen = {}
    for word, n in counts.items():
        for size in range(1, max_piece + 1):
            for start in range(len(word) - size + 1):
                piece = word[start : start + size]
                seen[piece] = seen.get(piece, 0) + n
    singles = {p: n for p, n in seen.items() if len(p) == 1}
    if vocab_size < len(singles):
        raise ValueError("vocab_size is smaller than the alphabet")
    others = sorted((p for p in seen if len(p) > 1 and seen[p] > 1), key=lambda p: (-seen[p] * len(p), p))
    start = singles | {p: seen[p] for p in others[: max(0, seed_size - len(singles))]}
    z = sum(start.values())
    logp, history = {p: math.log(n / z) for p, n in start.items()}, []
    while len(logp) > vocab_size:
        for _ in range(em_iters):
            before = len(logp)
            score, logp = em_step(counts, logp, max_piece)
            history.append((before, score))
        logp = prune(counts, logp, max(vocab_size, int(len(logp) * shrink)), max_piece)
    return UnigramModel(logp, max_piece, history)


def tokenizer_json(model: dict, *, pre_tokenizer: dict, decoder: dict | None, added: Mapping[str, int]) -> dict:
    """Given: the frame of a tokenizer.json around its "model" part. added: special tokens with their ids."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": token, **flags} for token, i in added.items()],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def bpe_part(model):
    spell = lambda piece: piece.decode("latin-1").translate(bytes_to_unicode())
    vocab = {spell(piece): i for i, piece in model.vocab.items() if i not in set(model.ids.values())}
    return {"type": "BPE", "vocab": vocab, "merges": [[spell(a), spell(b)] for a, b in model.merges]}


def export_tokenizer_json(model, path):
    words = {"pre_tokenizer": {"type": "WhitespaceSplit"}, "decoder": None, "added": {}}
    match model:
        case BPEModel():
            how = {"pre_tokenizer": BYTE_LEVEL, "decoder": BYTE_LEVEL, "added": model.ids}
            content = tokenizer_json(bpe_part(model), **how)
        case WordPieceModel():
            part = {"type": "WordPiece", "unk_token": model.unk, "continuing_subword_prefix": "##"}
            content = tokenizer_json({**part, "max_input_chars_per_word": 100, "vocab": model.vocab}, **words)
        case UnigramModel():
            content = tokenizer_json({"type": "Unigram", "unk_id": None, "vocab": list(model.logp.items())}, **words)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file)


# --- given: the command line ------------------------------------------------------------------------------------------


def train_with_hf(algo: str, lines: Iterable[str], vocab_size: int, special_tokens: Sequence[str], path: Path) -> None:
    """The same training with Hugging Face tokenizers, for comparison; its rules for ties are others."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    models_of = {"bpe": models.BPE(), "wordpiece": models.WordPiece(unk_token="[UNK]"), "unigram": models.Unigram()}
    tokenizer = Tokenizer(models_of[algo])
    common = {"vocab_size": vocab_size, "show_progress": False}
    if algo == "bpe":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(special_tokens=list(special_tokens), initial_alphabet=alphabet, **common)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        if algo == "wordpiece":
            trainer = trainers.WordPieceTrainer(special_tokens=["[UNK]"], **common)
        else:
            trainer = trainers.UnigramTrainer(unk_token="<unk>", special_tokens=["<unk>"], **common)
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.save(str(path))


def main(argv: Sequence[str] | None = None) -> int:
    """Train on a text file, read line by line, and write tokenizer.json."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--algo", choices=("bpe", "wordpiece", "unigram"), default="bpe")
    parser.add_argument("--vocab-size", type=int, default=32000)
    parser.add_argument("--special", action="append", default=[], help="a special token (bpe); may be repeated")
    parser.add_argument("--trainer", choices=("own", "hf"), default="own")
    parser.add_argument("--output", type=Path, default=Path("tokenizer.json"))
    options = parser.parse_args(argv)
    size, specials = options.vocab_size, options.special
    with options.input.open(encoding="utf-8", newline="") as lines:
        if options.trainer == "hf":
            train_with_hf(options.algo, lines, size, specials, options.output)
        elif options.algo == "bpe":
            export_tokenizer_json(train_bpe(count_pretokens(lines, specials), size, specials), options.output)
        else:
            counts = Counter(word for line in lines for word in line.split())
            train = train_wordpiece if options.algo == "wordpiece" else train_unigram
            export_tokenizer_json(train(counts, size), options.output)
    print(f"{options.output}: {options.algo}, trained by {options.trainer}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
