"""Ten languages through one pipeline: normalise, identify, segment, tokenize, and compare what the same text costs.

Temperature-weighted mixtures: Conneau et al. 2020 (XLM-R). Premiums between languages: Petrov et al. 2023.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
import regex

if TYPE_CHECKING:
    import tokenizers
    from matplotlib.figure import Figure

LANGS = ("en", "de", "fr", "es", "ru", "zh", "ar", "tr", "hi", "fi")
GPT2_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

#: The scripts that script_profile tells apart, by their Unicode names.
SCRIPTS = (
    "Arabic", "Armenian", "Bengali", "Cyrillic", "Devanagari", "Ethiopic", "Georgian", "Greek", "Gujarati", "Gurmukhi",
    "Han", "Hangul", "Hebrew", "Hiragana", "Kannada", "Katakana", "Khmer", "Lao", "Latin", "Malayalam", "Myanmar",
    "Sinhala", "Tamil", "Telugu", "Thai", "Tibetan",
)  # fmt: skip
#: The scripts in which a language is written.
LANG_SCRIPTS = {lang: frozenset({"Latin"}) for lang in LANGS} | {
    "ru": frozenset({"Cyrillic"}),
    "zh": frozenset({"Han"}),
    "ar": frozenset({"Arabic"}),
    "hi": frozenset({"Devanagari"}),
}

#: Ends of sentences: the first three need white space after them, the others do not.
ASCII_ENDS = ".!?"
OTHER_ENDS = "…。！？؟।॥"
#: Quotes and brackets that belong to the sentence before them.
CLOSERS = "\"'”’»)]}」』）】》"
#: Languages that write ordinals as digits and a period: "am 3. Mai", "3. kerros", "3. kat".
ORDINAL_PERIOD = frozenset({"de", "tr", "fi"})

REASONS = ("short", "margin", "script", "duplicate")

Encoder = Callable[[list[str]], list[list[int]]]


@dataclass(frozen=True)
class Record:
    """What comes in: lang is None where it is not known."""

    id: str
    text: str
    lang: str | None = None


@dataclass(frozen=True)
class Processed:
    """What comes out: the normalised text, and what was found in it."""

    id: str
    text: str
    lang: str
    lang_logprob_margin: float
    scripts: dict[str, float]
    sentences: tuple[str, ...]
    n_words: int


@dataclass
class PipelineStats:
    """Counts of one run: seen = kept + sum of dropped; by_lang counts the kept records."""

    seen: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    by_lang: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class LangMetrics:
    """What one language costs with one tokenizer."""

    lang: str
    tokens: int
    fertility: float
    tokens_per_char: float
    bytes_per_token: float
    bytes_per_char: float
    parity: float
    continued_word_rate: float


@dataclass(frozen=True)
class TokenizerComparison:
    """One tokenizer: metrics by language; vocab_overlap by pairs (a, b), a before b in the order of the languages."""

    name: str
    metrics: dict[str, LangMetrics]
    gini: float
    worst: str
    vocab_overlap: dict[tuple[str, str], float]


# --- given: texts and libraries ---------------------------------------------------------------------------------------


def load_parallel(path: Path) -> dict[str, list[str]]:
    """Texts by language, in the order of the file: one object {"id": ..., "lang": ..., "text": ...} a line."""
    texts: dict[str, list[str]] = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        texts.setdefault(row["lang"], []).append(row["text"])
    return texts


def load_udhr_xml(folder: Path) -> dict[str, list[str]]:
    """Articles of the Universal Declaration of Human Rights by xml:lang, from the files of "UDHR in XML".

    One file a language; <article number="1"> holds <para> elements, which are joined by a line feed. Articles stand in
    the order of their numbers; their namespace does not matter.
    """
    texts = {}
    for path in sorted(Path(folder).glob("*.xml")):
        root = ElementTree.parse(path).getroot()
        articles = sorted(root.iterfind(".//{*}article"), key=lambda article: int(article.get("number", 0)))
        lang = root.get("{http://www.w3.org/XML/1998/namespace}lang", path.stem)
        texts[lang] = ["\n".join("".join(p.itertext()).strip() for p in a.iterfind("{*}para")) for a in articles]
    return texts


@functools.cache
def word_pipeline(lang: str) -> Callable:
    """spaCy's blank pipeline of a language, "xx" (any language) where spaCy has none, cached.

    Some languages need a package of their own (Japanese: sudachipy and its dictionary); spaCy names it where it is missing.
    """
    import spacy
    from spacy.util import get_lang_class

    try:
        get_lang_class(lang)
    except ImportError:
        lang = "xx"
    return spacy.blank(lang)


def words_by_language(processed: Iterable[Processed]) -> dict[str, int]:
    """Number of words of each language, one text at a time."""
    words: Counter[str] = Counter()
    for result in processed:
        words[result.lang] += result.n_words
        del result  # the text must not live on while the next one is made
    return dict(words)


def encoder_of(tokenizer: tokenizers.Tokenizer) -> Encoder:
    """The function that compare_tokenizers wants: a batch of texts to lists of ids, nothing added."""
    return lambda texts: [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]


# --- task 1: clean text -----------------------------------------------------------------------------------------------


def normalize(text: str) -> str:
    """Clean a text without changing what it says in any language. Steps, in this order:

    1. line breaks (CR LF, CR, VT, FF, NEL U+0085, U+2028, U+2029) become LF;
    2. removed: control characters (category Cc) except LF and TAB, U+FEFF, U+200B, U+00AD, and the directional controls
       U+200E, U+200F, U+202A to U+202E, U+2066 to U+2069. U+200C and U+200D, the joiners, stay: they are spelling;
    3. NFC;
    4. a run of spaces (category Zs) becomes one U+0020; a TAB stays as it is;
    5. each line loses spaces and TABs at both ends. Empty lines stay.

    Idempotent.
    """
    raise NotImplementedError("task 1: line breaks, invisible characters, NFC, spaces, ends of lines")


def script_profile(text: str) -> dict[str, float]:
    """Share of each script among the letters and marks (categories L and M) of the text, as it is.

    Scripts are those of the Unicode property Script (`regex`: \\p{Script=Greek}), by the names in SCRIPTS; any other
    script counts as "Other". Common and Inherited characters belong to no script and do not count. Scripts that do not
    occur are left out; the shares sum to 1; a text without a letter gives {}.
    """
    raise NotImplementedError("task 1: count letters and marks by script")


# --- task 2: which language? ------------------------------------------------------------------------------------------


class LanguageIdentifier:
    """Multinomial naive Bayes over character n-grams, with a uniform prior.

    With c_l(g) the count of n-gram g in the training texts of language l, N_l = Σ_g c_l(g), and V the number of distinct
    n-grams in the training texts of all languages,

        log P(g | l) = log (c_l(g) + alpha) - log (N_l + alpha V)
        log P(l | text) = Σ_g count(g in text) log P(g | l) - (logsumexp over the languages)

    where n-grams that no training text has are left out of the sum. An n-gram is a substring of n code points of the
    normalised text, n from n[0] to n[1] inclusive; nothing is padded or lower-cased.
    """

    def __init__(self, *, n: tuple[int, int] = (1, 3), alpha: float = 0.5) -> None:
        self.n = n
        self.alpha = alpha
        self.langs: list[str] | None = None

    def fit(self, texts: Sequence[str], langs: Sequence[str]) -> LanguageIdentifier:
        """Learn from texts and their languages (a second call starts anew) and return self.

        Raises ValueError if the two differ in length or are empty."""
        raise NotImplementedError("task 2: count n-grams by language, smooth over the shared vocabulary")

    def log_posteriors(self, text: str) -> dict[str, float]:
        """log P(language | text) for each language learnt; uniform where the text has no known n-gram.

        Its cost depends on the text and the number of languages, not on the number of n-grams learnt.

        Raises RuntimeError("not fitted") before fit."""
        raise NotImplementedError("task 2: sum the log-probabilities of the n-grams, normalise in log space")

    def predict(self, text: str) -> str:
        """The language of largest posterior; of equal ones the alphabetically first. RuntimeError before fit."""
        raise NotImplementedError("task 2: the best language")


# --- task 3: sentences and words --------------------------------------------------------------------------------------


def split_sentences(text: str, lang: str) -> list[str]:
    """Cut a text after each end of a sentence; pieces are stripped, empty ones dropped. No character but white space
    is lost.

    An end is a run of one or more characters of ASCII_ENDS and OTHER_ENDS together with the CLOSERS that follow it.
    - If the last character of the run is one of ASCII_ENDS, white space or the end of the text must follow (after the
      closers), or it is no end: 3.14, e.g.this. After such a run “ is a closer too (German: „Halt!“).
    - If it is one of OTHER_ENDS nothing need follow: 好。走吧。
    - In the languages of ORDINAL_PERIOD a run that is a single period right after a digit (str.isdigit) is no end,
      with closers after it or without: "am 3. Mai".
    Line feeds end nothing, and there is no list of abbreviations: "Dr. No" is cut.
    """
    raise NotImplementedError("task 3: runs of ends, closers, what must follow")


def split_words(text: str, lang: str) -> list[str]:
    """The texts of the tokens of word_pipeline(lang) (given), without punctuation and white space (is_punct, is_space).

    For Chinese the pipeline cuts each character, so figures per word are per character there."""
    raise NotImplementedError("task 3: spaCy's tokens")


# --- task 4: what the same text costs ---------------------------------------------------------------------------------


def gini(values: Sequence[float]) -> float:
    """Gini coefficient Σ_i Σ_j |x_i - x_j| / (2 n² mean): 0 for equal values, (n-1)/n if one has all; 0.0 if all are 0.

    Raises ValueError for no values or a negative one."""
    raise NotImplementedError("task 4: mean absolute difference over twice the mean")


def compare_tokenizers(
    encoders: Mapping[str, Encoder], parallel: Mapping[str, Sequence[str]], *, reference: str = "en"
) -> list[TokenizerComparison]:
    """What parallel texts cost in each language: one comparison for each encoder, in order.

    parallel[lang][i] says the same in every language; languages keep the order of the mapping. An encoder takes a batch
    of texts and returns their lists of ids; call it at most twice for each language. Of a language:
    - tokens: ids of all items; fertility: tokens / words (split_words of each item);
    - tokens_per_char, bytes_per_char: over code points, spaces included; bytes_per_token: UTF-8 bytes / tokens;
    - parity: mean over the items of tokens(lang) / tokens(reference), where each item of the reference has a token;
    - continued_word_rate: share of the words (repeats included) that take two ids or more as " " + word.
    Of a tokenizer: gini of the languages' tokens; worst: the language of highest parity (the first of equals);
    vocab_overlap: Jaccard index |A ∩ B| / |A ∪ B| of the sets of ids used on the items. A figure whose denominator is 0
    is 0.0.

    Raises ValueError that names the language, if reference is not in parallel, or a language has another number of items
    than the reference.
    """
    raise NotImplementedError("task 4: encode once, then count")


# --- task 5: a fairer tokenizer ---------------------------------------------------------------------------------------


def mark_aware_pattern() -> str:
    """GPT2_PATTERN with marks (\\p{M}: vowel signs, accents that stand alone) as part of words.

    A word with its marks is one pre-token, with the space before it; a text without marks is cut as by GPT2_PATTERN; the
    matches of any text, joined, are the text."""
    raise NotImplementedError("task 5: letters and marks together")


def mixing_weights(sizes: Mapping[str, int], alpha: float) -> dict[str, float]:
    """Weights p(lang) ∝ (size / sum of sizes) ** alpha that sum to 1, in the order of sizes.

    alpha = 1 keeps the shares of the data, alpha = 0 makes all languages equal; one of size 0 has weight 0 for any alpha.

    Raises ValueError for a negative size, or if none is positive."""
    raise NotImplementedError("task 5: powers, normalised")


def allocate(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers that sum to total, as close to the weights as can be: the method of largest remainders.

    Each language gets the floor of its quota total * weight / (sum of weights); what is left goes one each to the largest
    remainders, of equal ones to the alphabetically first. In the order of weights.

    Raises ValueError for a negative total or weight, or if no weight is positive."""
    raise NotImplementedError("task 5: floors, then the largest remainders")


def train_shared(
    docs: Mapping[str, Sequence[str]],
    sizes: Mapping[str, int],
    *,
    alpha: float,
    total: int,
    vocab_size: int,
    pattern: str,
) -> tokenizers.Tokenizer:
    """One byte-level BPE for all languages, learnt on a mixture of their documents.

    The mixture: n documents of a language, n from allocate(total, mixing_weights(sizes, alpha)), its list from the start
    and over again as often as needed (the order of the languages does not matter). sizes says how
    much text of a language there is in the world, docs holds a sample.
    The tokenizer (package tokenizers): models.BPE(); pre-tokenizers Split(Regex(pattern), "isolated") and
    ByteLevel(add_prefix_space=False, use_regex=False); decoders.ByteLevel(); BpeTrainer(vocab_size=...,
    initial_alphabet=ByteLevel.alphabet(), show_progress=False) with its other settings as they are.

    Raises ValueError that names the language, if one that gets a document has none in docs.
    """
    raise NotImplementedError("task 5: the mixture, and a byte-level BPE over it")


# --- task 6: the pipeline ---------------------------------------------------------------------------------------------


class Pipeline:
    """Normalise, identify, test and segment records, one at a time.

    A record is dropped for the first of these reasons that applies:
    - "short": fewer than min_chars code points of normalised text;
    - "margin": best log-posterior minus second best below min_margin (a single learnt language: margin inf). A record
      that says its language keeps it, whatever the margin, and is not dropped for this reason;
    - "script": the script of largest share (the alphabetically first of equals) is none of LANG_SCRIPTS of its language;
      a text without letters and a language outside LANG_SCRIPTS pass;
    - "duplicate", if dedupe: the normalised text of an earlier record that passed the tests above is the same. What is
      remembered is a digest of the text, not the text.
    """

    stats: PipelineStats

    def __init__(
        self, identifier: LanguageIdentifier, *, min_chars: int = 10, min_margin: float = 2.0, dedupe: bool = True
    ) -> None:
        self.identifier = identifier
        self.min_chars = min_chars
        self.min_margin = min_margin
        self.dedupe = dedupe
        self.stats = PipelineStats()

    def run(self, records: Iterable[Record]) -> Iterator[Processed]:
        """Yield what is kept, in order, pulling no record before it is needed.

        The first next() starts anew: stats and remembered digests are those of this run. stats is right at each yield.
        lang_logprob_margin is that of the identifier, also where the record says its language."""
        raise NotImplementedError("task 6: a generator that tests, counts and yields")


# --- task 7: the figure -----------------------------------------------------------------------------------------------


def plot_parity(comparisons: Sequence[TokenizerComparison], path: Path) -> Figure:
    """Grouped bars of the parities, saved to path as PNG whatever its suffix; returns the figure, which pyplot has closed.

    One axes; for each comparison one ax.bar labelled with its name, one bar a language (height: parity), in order; a tick at the
    middle of each group, labelled with the language, in the order of the metrics; bars do not overlap; the y label
    "parity"; a legend; a horizontal line at 1."""
    raise NotImplementedError("task 7: one ax.bar for each comparison")


# --- given: the table and the command line ----------------------------------------------------------------------------


def format_table(comparisons: Sequence[TokenizerComparison]) -> str:
    """The comparisons as plain text."""
    lines = []
    for c in comparisons:
        lines.append(f"{c.name}: Gini {c.gini:.3f}, worst {c.worst}")
        lines.append(f"  {'':4}{'tokens':>8}{'parity':>8}{'fertility':>11}{'B/token':>9}{'B/char':>8}{'continued':>11}")
        for lang, m in c.metrics.items():
            lines.append(f"  {lang:4}{m.tokens:8}{m.parity:8.2f}{m.fertility:11.2f}{m.bytes_per_token:9.2f}"
                         f"{m.bytes_per_char:8.2f}{m.continued_word_rate:11.2f}")  # fmt: skip
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare tokenizers on parallel texts: saved ones, or three that are trained on two thirds of the texts. Or send the
    texts of a file through the pipeline, with an identifier that learnt two thirds of them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--parallel", type=Path, help="JSONL with id, lang, text")
    source.add_argument("--udhr", type=Path, help="folder of UDHR in XML")
    parser.add_argument("--tokenizer", type=Path, action="append", help="tokenizer.json, or the folder that holds one")
    parser.add_argument("--pipeline", action="store_true", help="count what the pipeline keeps; compare nothing")
    parser.add_argument("--vocab-size", type=int, default=1500)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args(argv)
    texts = load_parallel(options.parallel) if options.parallel else load_udhr_xml(options.udhr)
    train = {lang: [text for i, text in enumerate(items, 1) if i % 3] for lang, items in texts.items()}
    if options.pipeline:
        pairs = [(text, lang) for lang, items in train.items() for text in items]
        pipeline = Pipeline(LanguageIdentifier().fit([t for t, _ in pairs], [lang for _, lang in pairs]))
        records = (Record(f"{lang}{i}", t) for lang, items in texts.items() for i, t in enumerate(items, 1))
        print("words:", words_by_language(pipeline.run(records)))
        print(pipeline.stats)
        return 0
    if options.tokenizer:
        from tokenizers import Tokenizer

        files = [path / "tokenizer.json" if path.is_dir() else path for path in options.tokenizer]
        encoders, test = {str(f): encoder_of(Tokenizer.from_file(str(f))) for f in files}, texts
    else:
        test = {lang: items[2::3] for lang, items in texts.items()}
        # The k-th language has a k-th of the data of the first, as Zipf would have it.
        sizes = {lang: 1000 // (k + 1) for k, lang in enumerate(train)}
        train_on = functools.partial(train_shared, docs=train, vocab_size=options.vocab_size, total=200)
        only_first = {lang: int(k == 0) for k, lang in enumerate(train)}
        encoders = {
            "first language only": encoder_of(train_on(sizes=only_first, alpha=1.0, pattern=GPT2_PATTERN)),
            "mixed, alpha 1": encoder_of(train_on(sizes=sizes, alpha=1.0, pattern=GPT2_PATTERN)),
            "mixed, alpha 0.3, marks": encoder_of(train_on(sizes=sizes, alpha=0.3, pattern=mark_aware_pattern())),
        }
    comparisons = compare_tokenizers(encoders, test, reference="en" if "en" in test else next(iter(test)))
    print(format_table(comparisons))
    if options.figure:
        plot_parity(comparisons, options.figure)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
