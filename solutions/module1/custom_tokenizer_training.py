"""Training byte-level BPE, WordPiece and Unigram tokenizers from scratch, and exporting them to tokenizer.json.

BPE: Sennrich et al. 2016 on bytes, as in GPT-2 (Radford et al. 2019). WordPiece: Schuster and Nakajima 2012, with the
score and the matching of BERT. Unigram: Kudo 2018, "Subword Regularization".
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import regex

# GPT-2's pre-tokens: contractions, letters, numbers, other signs (each with at most one space before), white space.
PAT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
PRETOKEN = regex.compile(PAT)


def bytes_to_unicode() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte: itself where printable, otherwise chr(256), chr(257), ..."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {b: chr(b) for b in printable}
    others = (b for b in range(256) if b not in table)
    return table | {b: chr(256 + i) for i, b in enumerate(others)}


# BEGIN HIDDEN
def split_specials(text: str, special_tokens: Sequence[str]) -> list[tuple[bool, str]]:
    """(is it special, part) for the non-empty parts of a text, in order; the longer special token wins."""
    if not special_tokens:
        return [(False, text)] if text else []
    longest_first = sorted(special_tokens, key=len, reverse=True)
    parts = regex.split("(" + "|".join(map(regex.escape, longest_first)) + ")", text)
    return [(i % 2 == 1, part) for i, part in enumerate(parts) if part]


def merge(symbols: Sequence, pair: tuple, merged) -> list:
    """Replace each occurrence of a pair, left to right; an occurrence is used once."""
    out, i = [], 0
    while i < len(symbols):
        if i + 1 < len(symbols) and symbols[i] == pair[0] and symbols[i + 1] == pair[1]:
            out.append(merged)
            i += 2
        else:
            out.append(symbols[i])
            i += 1
    return out


# END HIDDEN


def count_pretokens(texts: Iterable[str], special_tokens: Sequence[str] = ()) -> dict[bytes, int]:
    """How often each pre-token (PRETOKEN's matches, as UTF-8 bytes) occurs.

    Each text is split on the special tokens first (at each place the longest one that matches), which are dropped; no
    pre-token crosses one. texts may be a generator over more than fits in memory: hold one text at a time.
    """
    # BEGIN SOLUTION task 1: split on the special tokens, count the matches of PRETOKEN
    counts: Counter[bytes] = Counter()
    for text in texts:
        for special, part in split_specials(text, special_tokens):
            if not special:
                counts.update(match[0].encode("utf-8") for match in PRETOKEN.finditer(part))
    return dict(counts)
    # END SOLUTION


# --- byte pair encoding -----------------------------------------------------------------------------------------------


@dataclass
class BPEModel:
    """vocab: id -> bytes (0..255 the single bytes, then one id a merge in order, then the special tokens as UTF-8).

    ranks, ids: derived here; the place of a merge in the list, and the id of each special token.
    """

    vocab: dict[int, bytes]
    merges: list[tuple[bytes, bytes]]
    special_tokens: tuple[str, ...]
    ranks: dict[tuple[bytes, bytes], int] = field(init=False, repr=False)
    ids: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.ranks = {pair: i for i, pair in enumerate(self.merges)}
        self.ids = {token: 256 + len(self.merges) + i for i, token in enumerate(self.special_tokens)}

    # BEGIN HIDDEN
    def encode_pretoken(self, pretoken: str) -> list[int]:
        """Merge the adjacent pair that was learnt first (the leftmost of equals) until none is left."""
        symbols = [bytes([b]) for b in pretoken.encode("utf-8")]
        ids = list(pretoken.encode("utf-8"))
        while len(symbols) > 1:
            ranked = [(self.ranks.get(pair, math.inf), i) for i, pair in enumerate(itertools.pairwise(symbols))]
            rank, i = min(ranked)
            if rank == math.inf:
                break
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
            ids[i : i + 2] = [256 + rank]
        return ids

    # END HIDDEN

    def encode(self, text: str) -> list[int]:
        """Ids of a text: special tokens (the longest that matches) get theirs, each pre-token between them is merged.

        In a pre-token merge the adjacent pair that was learnt first, again and again, until none was learnt; the merge
        number i makes id 256 + i.
        """
        # BEGIN SOLUTION task 3: special tokens, pre-tokens, merges in the order learnt
        ids: list[int] = []
        for special, part in split_specials(text, self.special_tokens):
            if special:
                ids.append(self.ids[part])
            else:
                for match in PRETOKEN.finditer(part):
                    ids += self.encode_pretoken(match[0])
        return ids
        # END SOLUTION

    def encode_iterable(self, chunks: Iterable[str]) -> Iterator[int]:
        """Exactly the ids of encode("".join(chunks)), lazily, however the text is cut (inside a special token too).

        May hold back only the last two pre-tokens (one is wrong: 'l may become 'll) and after them a suffix that could
        begin a special token. No special token is a prefix of another.
        """
        # BEGIN SOLUTION task 9: emit what no further text can change
        specials = self.special_tokens
        found = regex.compile("|".join(map(regex.escape, specials)) if specials else r"(?!)")
        longest = max(map(len, specials), default=1)

        def pending(buffer: str, done: int) -> int:
            """Where the first special token may have begun that the buffer does not hold whole."""
            for i in range(max(done, len(buffer) - longest + 1), len(buffer)):
                if any(len(s) > len(buffer) - i and s.startswith(buffer[i:]) for s in specials):
                    return i
            return len(buffer)

        buffer = ""
        for chunk in chunks:
            buffer, done = buffer + chunk, 0
            while (match := found.search(buffer, done)) and match.start() < pending(buffer, done):
                yield from self.encode(buffer[done : match.end()])
                done = match.end()
            pretokens = list(PRETOKEN.finditer(buffer[done : pending(buffer, done)]))
            for match in pretokens[:-2]:
                yield from self.encode_pretoken(match[0])
            buffer = buffer[done + (pretokens[-2:][0].start() if pretokens else 0) :]
        yield from self.encode(buffer)
        # END SOLUTION

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; bytes that are no UTF-8 become U+FFFD (errors="replace")."""
        # BEGIN SOLUTION task 3: join the bytes, then decode once
        return b"".join(self.vocab[i] for i in ids).decode("utf-8", errors="replace")
        # END SOLUTION


def train_bpe(counts: Mapping[bytes, int], vocab_size: int, special_tokens: Sequence[str] = ()) -> BPEModel:
    """Learn merges on pre-tokens with their counts until the vocabulary (bytes, merges, specials) has vocab_size ids.

    Each step merges the pair with the largest count: every adjacent position counts, weighted by the pre-token's count
    (aaa holds (a, a) twice, although merging it makes aa a). Ties go to the greatest pair, as pairs of byte strings.
    Stops early when no pair is left. Graded tables make no byte string in two ways.

    Raises ValueError if vocab_size < 256 + len(special_tokens).
    """
    # BEGIN SOLUTION task 2: merge the most frequent pair, again and again; task 8: few words
    num_merges = vocab_size - 256 - len(special_tokens)
    if num_merges < 0:
        raise ValueError(f"vocab_size {vocab_size} has no room for 256 bytes and {len(special_tokens)} special tokens")
    words = [[bytes([b]) for b in word] for word in counts]
    weights = list(counts.values())
    pair_counts: Counter[tuple[bytes, bytes]] = Counter()
    holders: defaultdict[tuple[bytes, bytes], set[int]] = defaultdict(set)  # pair -> words that hold it
    for w, symbols in enumerate(words):
        for pair in itertools.pairwise(symbols):
            pair_counts[pair] += weights[w]
            holders[pair].add(w)

    merges: list[tuple[bytes, bytes]] = []
    while len(merges) < num_merges and pair_counts:
        _, best = max(zip(pair_counts.values(), pair_counts))
        merges.append(best)
        for w in list(holders[best]):
            # A merge changes the pairs around it too: take the word's old pairs out, put its new ones in.
            for pair in itertools.pairwise(words[w]):
                pair_counts[pair] -= weights[w]
                holders[pair].discard(w)
                if not pair_counts[pair]:
                    del pair_counts[pair]
            words[w] = merge(words[w], best, best[0] + best[1])
            for pair in itertools.pairwise(words[w]):
                pair_counts[pair] += weights[w]
                holders[pair].add(w)

    pieces = [
        *(bytes([b]) for b in range(256)),
        *(a + b for a, b in merges),
        *(s.encode("utf-8") for s in special_tokens),
    ]
    return BPEModel(dict(enumerate(pieces)), merges, tuple(special_tokens))
    # END SOLUTION


# --- WordPiece --------------------------------------------------------------------------------------------------------


def pair_score(n_ab: int, n_a: int, n_b: int) -> Fraction:
    """WordPiece's criterion, exactly: n_ab / (n_a · n_b), how much likelier the pair is than its parts by chance."""
    # BEGIN SOLUTION task 4: an exact fraction
    return Fraction(n_ab, n_a * n_b)
    # END SOLUTION


@dataclass
class WordPieceModel:
    """vocab: piece -> id; a piece that does not begin a word is written with ## before it."""

    vocab: dict[str, int]
    unk: str = "[UNK]"

    def encode_word(self, word: str, *, max_chars: int = 100) -> list[str]:
        """Pieces of a non-empty word, the longest match first; [unk] if any part has none or len(word) > max_chars."""
        # BEGIN SOLUTION task 4: the longest piece that matches, from left to right
        if len(word) > max_chars:
            return [self.unk]
        pieces, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            end = next((e for e in range(len(word), start, -1) if prefix + word[start:e] in self.vocab), None)
            if end is None:
                return [self.unk]
            pieces.append(prefix + word[start:end])
            start = end
        return pieces
        # END SOLUTION


def train_wordpiece(counts: Mapping[str, int], vocab_size: int, *, unk: str = "[UNK]") -> WordPieceModel:
    """Learn WordPiece merges; ids: unk is 0, then the alphabet, sorted, then the merged pieces in order.

    The alphabet holds the forms that occur: c for a first character, ##c for another one. Each round counts the symbols
    and the pairs (all adjacent positions, weighted by the word's count) again, merges the pair (a, b) with the largest
    pair_score, ties to the larger n_ab, then to the smaller pair, and appends a + b[2:]. An occurrence is used once,
    left to right. vocab_size counts everything; a smaller one than the alphabet needs means no merges. Stops early when
    no pair is left. Graded words hold no # and are not empty.
    """
    # BEGIN SOLUTION task 4: merge the pair of the largest score
    words = [([word[0], *("##" + c for c in word[1:])], n) for word, n in counts.items()]
    vocab = [unk, *sorted({symbol for symbols, _ in words for symbol in symbols})]
    while len(vocab) < vocab_size:
        single: Counter[str] = Counter()
        pairs: Counter[tuple[str, str]] = Counter()
        for symbols, n in words:
            for symbol in symbols:
                single[symbol] += n
            for pair in itertools.pairwise(symbols):
                pairs[pair] += n
        if not pairs:
            break
        scores = {(a, b): (pair_score(n, single[a], single[b]), n) for (a, b), n in pairs.items()}
        top = max(scores.values())
        a, b = min(pair for pair, score in scores.items() if score == top)
        vocab.append(a + b[2:])
        words = [(merge(symbols, (a, b), a + b[2:]), n) for symbols, n in words]
    return WordPieceModel({piece: i for i, piece in enumerate(vocab)}, unk)
    # END SOLUTION


# --- Unigram ----------------------------------------------------------------------------------------------------------


def viterbi(
    word: str, logp: Mapping[str, float], max_piece: int, *, skip: str | None = None
) -> tuple[list[str] | None, float]:
    """The most probable segmentation into pieces of logp (at most max_piece long, not `skip`), and its log-probability.

    best(0) = 0, best(e) = max over s of best(s) + logp[word[s:e]]; ties keep the earlier start s (the longer last
    piece). No segmentation: (None, -inf). The empty word: ([], 0.0).
    """
    # BEGIN SOLUTION task 5: best score of each prefix, then back along the starts
    best, origin = [0.0] + [-math.inf] * len(word), [0] * (len(word) + 1)
    for end in range(1, len(word) + 1):
        for start in range(max(0, end - max_piece), end):
            piece = word[start:end]
            if piece in logp and piece != skip and (score := best[start] + logp[piece]) > best[end]:
                best[end], origin[end] = score, start
    if best[-1] == -math.inf:
        return None, -math.inf
    pieces, end = [], len(word)
    while end:
        pieces.append(word[origin[end] : end])
        end = origin[end]
    return pieces[::-1], best[-1]
    # END SOLUTION


# BEGIN HIDDEN
def logsumexp(values: Sequence[float]) -> float:
    """log Σ exp(x), about the largest x: no term overflows, and the largest does not underflow."""
    top = max(values, default=-math.inf)
    return top if top == -math.inf else top + math.log(sum(math.exp(x - top) for x in values))


# END HIDDEN


def forward_backward(word: str, logp: Mapping[str, float], max_piece: int) -> tuple[float, dict[str, float]]:
    """log of the probability of a word over all segmentations, and the expected count of each piece in it.

    α(e) = Σ_s α(s) p(word[s:e]), β(s) = Σ_e p(word[s:e]) β(e), Z = α(n); an occurrence s:e is used with probability
    α(s) p β(e) / Z. In logs: probabilities of e^-700 occur. Pieces that cannot be used may be left out or be 0.
    No segmentation: (-inf, {}).
    """
    # BEGIN SOLUTION task 6: α, β and the expected counts in the log domain
    n = len(word)
    spans = [
        (s, e, logp[word[s:e]]) for s in range(n) for e in range(s + 1, min(n, s + max_piece) + 1) if word[s:e] in logp
    ]
    into: list[list] = [[] for _ in range(n + 1)]
    out: list[list] = [[] for _ in range(n + 1)]
    for s, e, score in spans:
        into[e].append((s, score))
        out[s].append((e, score))
    alpha, beta = [0.0] * (n + 1), [0.0] * (n + 1)
    for e in range(1, n + 1):
        alpha[e] = logsumexp([alpha[s] + score for s, score in into[e]])
    for s in range(n - 1, -1, -1):
        beta[s] = logsumexp([score + beta[e] for e, score in out[s]])
    if alpha[n] == -math.inf:
        return -math.inf, {}
    expected: defaultdict[str, float] = defaultdict(float)
    for s, e, score in spans:
        expected[word[s:e]] += math.exp(alpha[s] + score + beta[e] - alpha[n])
    return alpha[n], dict(expected)
    # END SOLUTION


def em_step(counts: Mapping[str, int], logp: Mapping[str, float], max_piece: int) -> tuple[float, dict[str, float]]:
    """One step of expectation maximisation: (log-likelihood of the words under the old logp, the new logp).

    E: expected counts of the pieces, weighted by the words' counts. M: pieces whose expected count is at most 1e-12 are
    dropped, but those of one character stay, with a count of at least 1e-12; the counts are divided by their sum.
    Graded words all have a segmentation.
    """
    # BEGIN SOLUTION task 6: expected counts, floor, normalise
    likelihood, expected = 0.0, dict.fromkeys(logp, 0.0)
    for word, n in counts.items():
        log_z, found = forward_backward(word, logp, max_piece)
        likelihood += n * log_z
        for piece, count in found.items():
            expected[piece] += n * count
    kept = {p: max(c, 1e-12) for p, c in expected.items() if c > 1e-12 or len(p) == 1}
    log_total = math.log(math.fsum(kept.values()))
    return likelihood, {p: math.log(c) - log_total for p, c in kept.items()}
    # END SOLUTION


def prune(counts: Mapping[str, int], logp: Mapping[str, float], keep: int, max_piece: int) -> dict[str, float]:
    """Keep the single characters and the longer pieces with the largest losses, `keep` pieces in all.

    loss = (count of the piece in the Viterbi segmentations of all words) · (logp[piece] - score of the best
    segmentation of the piece without itself); 0 for a piece that is not used. Ties alphabetical: the first stay. The
    characters stay even if they are more than `keep`. The values of logp are not changed (no renormalising).
    """
    # BEGIN SOLUTION task 7: what the likelihood loses with each piece
    used: Counter[str] = Counter()
    for word, n in counts.items():
        for piece in viterbi(word, logp, max_piece)[0]:
            used[piece] += n

    def loss(piece: str) -> float:
        if not used[piece]:
            return 0.0
        return used[piece] * (logp[piece] - viterbi(piece, logp, max_piece, skip=piece)[1])

    characters = {p for p in logp if len(p) == 1}
    ranked = sorted((-loss(p), p) for p in logp if len(p) > 1)
    kept = characters | {p for _, p in ranked[: max(0, keep - len(characters))]}
    return {p: score for p, score in logp.items() if p in kept}
    # END SOLUTION


@dataclass
class UnigramModel:
    """logp: piece -> log-probability; its order is that of the ids. history: (pieces, log-likelihood) of each EM step,
    both of the logp that went into it."""

    logp: dict[str, float]
    max_piece: int
    history: list[tuple[int, float]]

    def encode_word(self, word: str) -> list[str]:
        """The most probable segmentation. Raises ValueError with the word (its repr) if there is none."""
        # BEGIN SOLUTION task 5: Viterbi
        pieces, _ = viterbi(word, self.logp, self.max_piece)
        if pieces is None:
            raise ValueError(f"{word!r} has no segmentation")
        return pieces
        # END SOLUTION


def train_unigram(
    counts: Mapping[str, int],
    vocab_size: int,
    *,
    seed_size: int = 1200,
    max_piece: int = 6,
    shrink: float = 0.75,
    em_iters: int = 2,
) -> UnigramModel:
    """Start from many substrings; while there are more than vocab_size, run em_iters EM steps, then prune.

    Seeds: all characters, and of the substrings (length 2 to max_piece, frequency at least 2) the
    seed_size - #characters with the largest frequency · length, ties alphabetical. Frequencies count every position,
    weighted by the word's count; the first probabilities are proportional to them. Each prune keeps
    max(vocab_size, int(len(logp) · shrink)) pieces. No EM step follows the last prune; with few seeds there is none at
    all. EM steps drop pieces too, so the result may be smaller than vocab_size.

    Raises ValueError if vocab_size is less than the number of distinct characters.
    """
    # BEGIN SOLUTION task 7: seeds, EM steps and prunes
    frequency: Counter[str] = Counter()
    for word, n in counts.items():
        for s in range(len(word)):
            for e in range(s + 1, min(len(word), s + max_piece) + 1):
                frequency[word[s:e]] += n
    characters = sorted(p for p in frequency if len(p) == 1)
    if vocab_size < len(characters):
        raise ValueError(f"vocab_size {vocab_size} is less than the {len(characters)} characters")
    longer = sorted((-f * len(p), p) for p, f in frequency.items() if len(p) > 1 and f >= 2)
    seeds = characters + [p for _, p in longer[: max(0, seed_size - len(characters))]]
    log_total = math.log(sum(frequency[p] for p in seeds)) if seeds else 0.0
    logp = {p: math.log(frequency[p]) - log_total for p in seeds}
    history = []
    while len(logp) > vocab_size:
        for _ in range(em_iters):
            size = len(logp)
            likelihood, logp = em_step(counts, logp, max_piece)
            history.append((size, likelihood))
        logp = prune(counts, logp, max(vocab_size, int(len(logp) * shrink)), max_piece)
    return UnigramModel(logp, max_piece, history)
    # END SOLUTION


# --- export -----------------------------------------------------------------------------------------------------------


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


def export_tokenizer_json(model: BPEModel | WordPieceModel | UnigramModel, path: Path) -> None:
    """Write a file that Tokenizer.from_file loads and that gives the model's ids.

    The "model" parts (the ids of Unigram pieces are their places in the list):
      {"type": "BPE", "vocab": {piece: id}, "merges": [[a, b], ...]}: each byte is written as bytes_to_unicode() says;
        the special tokens are no part of it but `added`; pre-tokenizer and decoder are BYTE_LEVEL;
      {"type": "WordPiece", "unk_token": ..., "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        "vocab": {piece: id}} and {"type": "Unigram", "unk_id": None, "vocab": [[piece, logp], ...]}: the pre-tokenizer
        is {"type": "WhitespaceSplit"}, there is no decoder.
    """
    # BEGIN SOLUTION task 10: the model part, in the frame
    if isinstance(model, BPEModel):
        table = bytes_to_unicode()

        def spell(piece: bytes) -> str:
            return "".join(table[b] for b in piece)

        part = {
            "type": "BPE",
            "vocab": {spell(model.vocab[i]): i for i in range(256 + len(model.merges))},
            "merges": [[spell(a), spell(b)] for a, b in model.merges],
        }
        content = tokenizer_json(part, pre_tokenizer=BYTE_LEVEL, decoder=BYTE_LEVEL, added=model.ids)
    else:
        if isinstance(model, WordPieceModel):
            part = {
                "type": "WordPiece",
                "unk_token": model.unk,
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
                "vocab": model.vocab,
            }
        else:
            part = {"type": "Unigram", "unk_id": None, "vocab": [[p, score] for p, score in model.logp.items()]}
        content = tokenizer_json(part, pre_tokenizer={"type": "WhitespaceSplit"}, decoder=None, added={})
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    # END SOLUTION


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
