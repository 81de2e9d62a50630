"""1.3 with a heap of pairs over linked symbols, and tables of edges for the words of a Unigram model."""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import regex

PAT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
PRETOKEN = regex.compile(PAT)


def bytes_to_unicode():
    shown = [b for b in range(256) if chr(b).isprintable() and not chr(b).isspace() and b != 0xAD]
    hidden = [b for b in range(256) if b not in shown]
    return dict(zip(shown + hidden, [chr(b) for b in shown] + [chr(256 + i) for i in range(len(hidden))]))


def special_pattern(tokens):
    """Longer tokens sort before their prefixes."""
    return re.compile("|".join(re.escape(t) for t in sorted(tokens, reverse=True)) or r"(?!)")


def count_pretokens(texts, special_tokens=()):
    pattern = special_pattern(special_tokens)
    counts = defaultdict(int)
    for text in texts:
        at = 0
        for border in itertools.chain(pattern.finditer(text), [None]):
            for match in PRETOKEN.finditer(text[at : border.start() if border else len(text)]):
                counts[match.group().encode("utf-8")] += 1
            at = border.end() if border else at
    return dict(counts)


@dataclass
class BPEModel:
    vocab: dict[int, bytes]
    merges: list[tuple[bytes, bytes]]
    special_tokens: tuple[str, ...]
    ranks: dict = field(init=False, repr=False)
    ids: dict = field(init=False, repr=False)

    def __post_init__(self):
        self.ranks = dict(zip(self.merges, range(len(self.merges))))
        self.ids = {token: 256 + len(self.merges) + i for i, token in enumerate(self.special_tokens)}
        self.pattern = special_pattern(self.special_tokens)
        self.memory = {}

    def bpe(self, piece):
        """Rank by rank: all occurrences of the lowest pair at once, which makes only pairs of higher rank."""
        if piece not in self.memory:
            symbols = [(bytes([b]), b) for b in piece.encode("utf-8")]
            while True:
                pairs = {(a[0], b[0]) for a, b in itertools.pairwise(symbols)} & self.ranks.keys()
                if not pairs:
                    break
                low = min(pairs, key=self.ranks.get)
                made, rest = [], iter(symbols)
                for symbol in rest:
                    if made and (made[-1][0], symbol[0]) == low and not made[-1][2:]:
                        made[-1] = (low[0] + low[1], 256 + self.ranks[low], "made")
                    else:
                        made.append(symbol)
                symbols = [m[:2] for m in made]
            if len(self.memory) > 5000:
                self.memory.clear()
            self.memory[piece] = [i for _, i in symbols]
        return self.memory[piece]

    def plain(self, text):
        return [i for piece in PRETOKEN.findall(text) for i in self.bpe(piece)]

    def encode(self, text):
        out, at = [], 0
        for match in self.pattern.finditer(text):
            out += [*self.plain(text[at : match.start()]), self.ids[match.group()]]
            at = match.end()
        return out + self.plain(text[at:])

    def encode_iterable(self, chunks):
        tail = ""
        for chunk in chunks:
            tail += chunk
            at, limit = 0, None
            while limit is None:
                limit = next(
                    (
                        i
                        for i in range(at, len(tail))
                        if any(s != tail[i:] and s.startswith(tail[i:]) for s in self.special_tokens)
                    ),
                    len(tail),
                )
                match = self.pattern.search(tail, at)
                if match and match.start() < limit:
                    yield from self.plain(tail[at : match.start()])
                    yield self.ids[match.group()]
                    at, limit = match.end(), None
            pieces = PRETOKEN.findall(tail[at:limit])
            for piece in pieces[:-2]:
                yield from self.bpe(piece)
                at += len(piece)
            tail = tail[at:]
        yield from self.encode(tail)

    def decode(self, ids):
        return b"".join(map(self.vocab.__getitem__, ids)).decode(errors="replace")


class Entry(tuple):
    """(count, pair) in a min-heap: the larger comes first."""

    def __lt__(self, other):
        return tuple(self) > tuple(other)


def train_bpe(counts, vocab_size, special_tokens=()):
    steps = vocab_size - 256 - len(special_tokens)
    if steps < 0:
        raise ValueError(f"{vocab_size} < 256 + {len(special_tokens)}")
    # All pre-tokens in one row, a None after each.
    row, weight = [], []
    for word, n in counts.items():
        row += [*(bytes([b]) for b in word), None]
        weight += [n] * (len(word) + 1)
    before, after = [i - 1 for i in range(len(row))], [i + 1 for i in range(len(row))]
    total, places = defaultdict(int), defaultdict(set)

    def pair_at(i):
        j = after[i] if i >= 0 else len(row)
        return None if j >= len(row) or row[i] is None or row[j] is None else (row[i], row[j])

    def change(i, sign, touched):
        pair = pair_at(i)
        if pair:
            total[pair] += sign * weight[i]
            (places[pair].add if sign > 0 else places[pair].discard)(i)
            touched.add(pair)

    start = set()
    for i in range(len(row)):
        change(i, 1, start)
    heap = [Entry((total[p], p)) for p in start]
    heapq.heapify(heap)
    merges = []
    while heap and len(merges) < steps:
        n, pair = heapq.heappop(heap)
        if n != total[pair] or not n:
            continue
        merges.append(pair)
        touched = set()
        for i in sorted(places[pair]):
            if pair_at(i) != pair or i not in places[pair]:
                continue
            j = after[i]
            for k in (before[i], i, j):
                change(k, -1, touched)
            row[i], row[j] = pair[0] + pair[1], None
            after[i] = after[j]
            before[after[j]] = i
            for k in (before[i], i):
                change(k, 1, touched)
        for p in touched:
            heapq.heappush(heap, Entry((total[p], p)))
    names = [bytes([b]) for b in range(256)] + [a + b for a, b in merges] + [t.encode() for t in special_tokens]
    return BPEModel({i: name for i, name in enumerate(names)}, merges, tuple(special_tokens))


def pair_score(n_ab, n_a, n_b):
    return Fraction(n_ab, n_a) / Fraction(n_b)


@dataclass
class WordPieceModel:
    vocab: dict[str, int]
    unk: str = "[UNK]"

    def encode_word(self, word, *, max_chars=100):
        def matches(start):
            ends = range(len(word), start, -1)
            return next(((e, p) for e in ends if (p := "##" * (start > 0) + word[start:e]) in self.vocab), (None, None))

        found, at = [], 0
        while at is not None and at < len(word):
            at, piece = matches(at)
            found.append(piece)
        return [self.unk] if at is None or len(word) > max_chars else found


def train_wordpiece(counts, vocab_size, *, unk="[UNK]"):
    table = [[[w[0]] + [f"##{c}" for c in w[1:]], n] for w, n in counts.items()]
    names = [unk] + sorted({s for symbols, _ in table for s in symbols})
    for _ in range(vocab_size - len(names)):
        ones, twos = Counter(), Counter()
        for symbols, n in table:
            for s in symbols:
                ones.update({s: n})
            for p in itertools.pairwise(symbols):
                twos.update({p: n})
        if not twos:
            break
        # Cross-multiplied comparison of exact integers would do too; Fraction says it plainly.
        a, b = min(twos, key=lambda p: (-pair_score(twos[p], ones[p[0]], ones[p[1]]), -twos[p], p))
        names.append(a + b.removeprefix("##"))
        for entry in table:
            left, out = list(reversed(entry[0])), []
            while left:
                s = left.pop()
                if s == a and left and left[-1] == b:
                    left.pop()
                    s = names[-1]
                out.append(s)
            entry[0] = out
    return WordPieceModel({s: i for i, s in enumerate(names)}, unk)


def edges(word, logp, max_piece):
    """For each end the (start, piece) of the pieces that end there, the earliest start first."""
    for end in range(1, len(word) + 1):
        yield end, [(s, word[s:end]) for s in range(max(0, end - max_piece), end) if word[s:end] in logp]


def viterbi(word, logp, max_piece, *, skip=None):
    paths = [(0.0, None)]
    for _, ways in edges(word, logp, max_piece):
        best, path = -math.inf, None
        for start, piece in ways:
            score, before = paths[start]
            if piece != skip and score + logp[piece] > best:
                best, path = score + logp[piece], (piece, before)
        paths.append((best, path))
    score, path = paths[-1]
    if score == -math.inf:
        return None, score
    pieces = []
    while path:
        pieces.insert(0, path[0])
        path = path[1]
    return pieces, score


def log_sum(terms):
    top = max(terms, default=-math.inf)
    return top + math.log(math.fsum(math.exp(t - top) for t in terms)) if top > -math.inf else top


def forward_backward(word, logp, max_piece):
    table = list(edges(word, logp, max_piece))
    alpha = [0.0]
    for _, ways in table:
        alpha.append(log_sum([alpha[s] + logp[p] for s, p in ways]))
    z = alpha[-1]
    if z == -math.inf:
        return z, {}
    incoming = defaultdict(list, {len(word): [0.0]})  # the terms of each beta
    found = defaultdict(list)
    for end, ways in reversed(table):
        beta = log_sum(incoming[end])
        for s, p in ways:
            incoming[s].append(logp[p] + beta)
            found[p].append(math.exp(alpha[s] + logp[p] + beta - z))
    return z, {p: math.fsum(terms) for p, terms in found.items()}


def em_step(counts, logp, max_piece):
    results = [(n, *forward_backward(word, logp, max_piece)) for word, n in counts.items()]
    sums = {p: [] for p in logp}
    for n, _, expected in results:
        for p, c in expected.items():
            sums[p].append(n * c)
    new = {}
    for p, terms in sums.items():
        c = math.fsum(terms)
        if c > 1e-12:
            new[p] = c
        elif len(p) == 1:
            new[p] = 1e-12
    whole = sum(new.values())
    return sum(n * z for n, z, _ in results), {p: math.log(c / whole) for p, c in new.items()}


def prune(counts, logp, keep, max_piece):
    usage = Counter(itertools.chain.from_iterable(viterbi(w, logp, max_piece)[0] * n for w, n in counts.items()))
    candidates = []
    for piece, score in logp.items():
        if len(piece) > 1:
            used = usage.get(piece)
            alternative = viterbi(piece, logp, max_piece, skip=piece)[1] if used else 0.0
            candidates.append((used * (score - alternative) if used else 0.0, piece))
    room = max(keep - (len(logp) - len(candidates)), 0)
    best = {piece for _, piece in heapq.nsmallest(room, ((-loss, piece) for loss, piece in candidates))}
    return {p: logp[p] for p in logp if len(p) == 1 or p in best}


@dataclass
class UnigramModel:
    logp: dict[str, float]
    max_piece: int
    history: list[tuple[int, float]]

    def encode_word(self, word):
        pieces, score = viterbi(word, self.logp, self.max_piece)
        if score == -math.inf:
            raise ValueError(f"cannot segment {word!r}")
        return pieces


def train_unigram(counts, vocab_size, *, seed_size=1200, max_piece=6, shrink=0.75, em_iters=2):
    tally = Counter()
    for word, n in counts.items():
        for i, j in itertools.combinations(range(len(word) + 1), 2):
            if j <= i + max_piece:
                tally[word[i:j]] += n
    alphabet = {p for p in tally if len(p) == 1}
    if len(alphabet) > vocab_size:
        raise ValueError(f"{len(alphabet)} characters do not fit into {vocab_size}")
    pool = [(-n * len(p), p) for p, n in tally.items() if n >= 2 and p not in alphabet]
    chosen = [*alphabet, *(p for _, p in heapq.nsmallest(max(0, seed_size - len(alphabet)), pool))]
    mass = sum(tally[p] for p in chosen)
    model = UnigramModel({p: math.log(tally[p] / mass) for p in chosen}, max_piece, [])
    while len(model.logp) > vocab_size:
        for _ in range(em_iters):
            size = len(model.logp)
            value, model.logp = em_step(counts, model.logp, max_piece)
            model.history.append((size, value))
        model.logp = prune(counts, model.logp, max(vocab_size, int(len(model.logp) * shrink)), max_piece)
    return model


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


def export_tokenizer_json(model, path):
    split, decoder, added = {"type": "WhitespaceSplit"}, None, {}
    if hasattr(model, "merges"):
        code = bytes_to_unicode()
        first_special = 256 + len(model.merges)
        names = {i: "".join(code[b] for b in piece) for i, piece in model.vocab.items() if i < first_special}
        merges = ["".join(code[b] for b in a) + " " + "".join(code[b] for b in b_) for a, b_ in model.merges]
        part = {"type": "BPE", "vocab": {name: i for i, name in names.items()}, "merges": merges}
        split = decoder = BYTE_LEVEL
        added = model.ids
    elif hasattr(model, "history"):
        part = {"type": "Unigram", "unk_id": None, "vocab": list(map(list, model.logp.items()))}
    else:
        part = {"type": "WordPiece", "unk_token": model.unk, "vocab": model.vocab}
        part |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    Path(path).write_text(json.dumps(tokenizer_json(part, pre_tokenizer=split, decoder=decoder, added=added)), "utf-8")


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
