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


def count_pretokens(texts: Iterable[str], special_tokens: Sequence[str] = ()) -> dict[bytes, int]:
    """How often each pre-token (PRETOKEN's matches, as UTF-8 bytes) occurs.

    Each text is split on the special tokens first (at each place the longest one that matches), which are dropped; no
    pre-token crosses one. texts may be a generator over more than fits in memory: hold one text at a time.
    """
    raise NotImplementedError("task 1: split on the special tokens, count the matches of PRETOKEN")


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

    def encode(self, text: str) -> list[int]:
        """Ids of a text: special tokens (the longest that matches) get theirs, each pre-token between them is merged.

        In a pre-token merge the adjacent pair that was learnt first, again and again, until none was learnt; the merge
        number i makes id 256 + i.
        """
        raise NotImplementedError("task 3: special tokens, pre-tokens, merges in the order learnt")

    def encode_iterable(self, chunks: Iterable[str]) -> Iterator[int]:
        """Exactly the ids of encode("".join(chunks)), lazily, however the text is cut (inside a special token too).

        May hold back only the last two pre-tokens (one is wrong: 'l may become 'll) and after them a suffix that could
        begin a special token. No special token is a prefix of another.
        """
        raise NotImplementedError("task 9: emit what no further text can change")

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; bytes that are no UTF-8 become U+FFFD (errors="replace")."""
        raise NotImplementedError("task 3: join the bytes, then decode once")


def train_bpe(counts: Mapping[bytes, int], vocab_size: int, special_tokens: Sequence[str] = ()) -> BPEModel:
    """Learn merges on pre-tokens with their counts until the vocabulary (bytes, merges, specials) has vocab_size ids.

    Each step merges the pair with the largest count: every adjacent position counts, weighted by the pre-token's count
    (aaa holds (a, a) twice, although merging it makes aa a). Ties go to the greatest pair, as pairs of byte strings.
    Stops early when no pair is left. Graded tables make no byte string in two ways.

    Raises ValueError if vocab_size < 256 + len(special_tokens).
    """
    raise NotImplementedError("task 2: merge the most frequent pair, again and again; task 8: few words")


# --- WordPiece --------------------------------------------------------------------------------------------------------


def pair_score(n_ab: int, n_a: int, n_b: int) -> Fraction:
    """WordPiece's criterion, exactly: n_ab / (n_a · n_b), how much likelier the pair is than its parts by chance."""
    raise NotImplementedError("task 4: an exact fraction")


@dataclass
class WordPieceModel:
    """vocab: piece -> id; a piece that does not begin a word is written with ## before it."""

    vocab: dict[str, int]
    unk: str = "[UNK]"

    def encode_word(self, word: str, *, max_chars: int = 100) -> list[str]:
        """Pieces of a non-empty word, the longest match first; [unk] if any part has none or len(word) > max_chars."""
        raise NotImplementedError("task 4: the longest piece that matches, from left to right")


def train_wordpiece(counts: Mapping[str, int], vocab_size: int, *, unk: str = "[UNK]") -> WordPieceModel:
    """Learn WordPiece merges; ids: unk is 0, then the alphabet, sorted, then the merged pieces in order.

    The alphabet holds the forms that occur: c for a first character, ##c for another one. Each round counts the symbols
    and the pairs (all adjacent positions, weighted by the word's count) again, merges the pair (a, b) with the largest
    pair_score, ties to the larger n_ab, then to the smaller pair, and appends a + b[2:]. An occurrence is used once,
    left to right. vocab_size counts everything; a smaller one than the alphabet needs means no merges. Stops early when
    no pair is left. Graded words hold no # and are not empty.
    """
    raise NotImplementedError("task 4: merge the pair of the largest score")


# --- Unigram ----------------------------------------------------------------------------------------------------------


def viterbi(
    word: str, logp: Mapping[str, float], max_piece: int, *, skip: str | None = None
) -> tuple[list[str] | None, float]:
    """The most probable segmentation into pieces of logp (at most max_piece long, not `skip`), and its log-probability.

    best(0) = 0, best(e) = max over s of best(s) + logp[word[s:e]]; ties keep the earlier start s (the longer last
    piece). No segmentation: (None, -inf). The empty word: ([], 0.0).
    """
    raise NotImplementedError("task 5: best score of each prefix, then back along the starts")


def forward_backward(word: str, logp: Mapping[str, float], max_piece: int) -> tuple[float, dict[str, float]]:
    """log of the probability of a word over all segmentations, and the expected count of each piece in it.

    α(e) = Σ_s α(s) p(word[s:e]), β(s) = Σ_e p(word[s:e]) β(e), Z = α(n); an occurrence s:e is used with probability
    α(s) p β(e) / Z. In logs: probabilities of e^-700 occur. Pieces that cannot be used may be left out or be 0.
    No segmentation: (-inf, {}).
    """
    raise NotImplementedError("task 6: α, β and the expected counts in the log domain")


def em_step(counts: Mapping[str, int], logp: Mapping[str, float], max_piece: int) -> tuple[float, dict[str, float]]:
    """One step of expectation maximisation: (log-likelihood of the words under the old logp, the new logp).

    E: expected counts of the pieces, weighted by the words' counts. M: pieces whose expected count is at most 1e-12 are
    dropped, but those of one character stay, with a count of at least 1e-12; the counts are divided by their sum.
    Graded words all have a segmentation.
    """
    raise NotImplementedError("task 6: expected counts, floor, normalise")


def prune(counts: Mapping[str, int], logp: Mapping[str, float], keep: int, max_piece: int) -> dict[str, float]:
    """Keep the single characters and the longer pieces with the largest losses, `keep` pieces in all.

    loss = (count of the piece in the Viterbi segmentations of all words) · (logp[piece] - score of the best
    segmentation of the piece without itself); 0 for a piece that is not used. Ties alphabetical: the first stay. The
    characters stay even if they are more than `keep`. The values of logp are not changed (no renormalising).
    """
    raise NotImplementedError("task 7: what the likelihood loses with each piece")


@dataclass
class UnigramModel:
    """logp: piece -> log-probability; its order is that of the ids. history: (pieces, log-likelihood) of each EM step,
    both of the logp that went into it."""

    logp: dict[str, float]
    max_piece: int
    history: list[tuple[int, float]]

    def encode_word(self, word: str) -> list[str]:
        """The most probable segmentation. Raises ValueError with the word (its repr) if there is none."""
        raise NotImplementedError("task 5: Viterbi")


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
    raise NotImplementedError("task 7: seeds, EM steps and prunes")


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
    raise NotImplementedError("task 10: the model part, in the frame")


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
