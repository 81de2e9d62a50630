"""By matrices and regular expressions: a table of log-probabilities, str.split, generators chained to a pipeline."""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, combinations, cycle, islice, pairwise
from pathlib import Path
from unicodedata import normalize as normal_form
from xml.etree import ElementTree

import numpy as np
import regex
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

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


def words_by_language(processed):
    words = {}
    for result in processed:
        words[result.lang] = words.get(result.lang, 0) + result.n_words
    return words


@lru_cache(None)
def word_pipeline(lang):
    import spacy

    try:
        spacy.util.get_lang_class(lang)
    except ImportError:
        return spacy.blank("xx")
    return spacy.blank(lang)


# --- text -------------------------------------------------------------------------------------------------------------

SUBSTITUTIONS = [
    (re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]"), "\n"),
    (re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\ufeff\u200b\xad\u200e\u200f\u202a-\u202e\u2066-\u2069]"), ""),
]
SPACES = re.compile("[ \xa0\u1680\u2000-\u200a\u202f\u205f\u3000]+")
EDGES = re.compile("^[ \t]+|[ \t]+$", re.MULTILINE)


def normalize(text):
    for pattern, by in SUBSTITUTIONS:
        text = pattern.sub(by, text)
    return EDGES.sub("", SPACES.sub(" ", normal_form("NFC", text)))


LETTERS = r"[\p{L}\p{M}--\p{Script=Common}--\p{Script=Inherited}]"
BY_SCRIPT = "|".join(rf"(?P<{name}>[{LETTERS}&&\p{{Script={name}}}])" for name in SCRIPTS)
BY_SCRIPT = regex.compile(BY_SCRIPT + f"|(?P<Other>{LETTERS})", regex.V1)


def script_profile(text):
    counts = Counter(match.lastgroup for match in BY_SCRIPT.finditer(text))
    return {script: n / counts.total() for script, n in counts.items()}


# --- language ---------------------------------------------------------------------------------------------------------


class LanguageIdentifier:
    def __init__(self, *, n=(1, 3), alpha=0.5):
        self.n, self.alpha, self.rows = n, alpha, None

    def _count(self, text):
        text = normalize(text)
        found = Counter()
        for size in range(self.n[0], self.n[1] + 1):
            found.update(map("".join, zip(*(text[k:] for k in range(size)))))
        return found

    def fit(self, texts, langs):
        if not len(texts) == len(langs) > 0:
            raise ValueError("texts and languages must be as many, and not none")
        self.langs = sorted(set(langs))
        totals = {lang: Counter() for lang in self.langs}
        for text, lang in zip(texts, langs):
            totals[lang] += self._count(text)
        self.rows = {gram: i for i, gram in enumerate(set(chain(*totals.values())))}
        counts = np.full((len(self.rows), len(self.langs)), float(self.alpha))
        for j, lang in enumerate(self.langs):
            for gram, n in totals[lang].items():
                counts[self.rows[gram], j] += n
        self.table = np.log(counts / counts.sum(0)) if len(counts) else counts
        return self

    def log_posteriors(self, text):
        if self.rows is None:
            raise RuntimeError("not fitted")
        known = [(self.rows[gram], n) for gram, n in self._count(text).items() if gram in self.rows]
        index, counts = (np.array([pair[k] for pair in known], dtype=np.int64) for k in (0, 1))
        scores = counts @ self.table[index]
        return dict(zip(self.langs, (scores - np.logaddexp.reduce(scores)).tolist()))

    def predict(self, text):
        posteriors = self.log_posteriors(text)
        return self.langs[int(np.argmax([posteriors[lang] for lang in self.langs]))]


# --- segments ---------------------------------------------------------------------------------------------------------

CLOSING = re.escape(CLOSERS)
RUN = re.compile(rf"([{ASCII_ENDS}{OTHER_ENDS}]+)([{CLOSING}“]*)")


def cuts(text, lang):
    """Offsets after which a sentence ends."""
    for match in RUN.finditer(text):
        run, after = match.groups()
        if run[-1] in OTHER_ENDS:
            yield match.end(1) + len(after) - len(after.lstrip(CLOSERS))
        elif match.end() == len(text) or text[match.end()].isspace():
            before = text[: match.start()][-1:]
            if not (run == "." and before.isdigit() and lang in ORDINAL_PERIOD):
                yield match.end()


def split_sentences(text, lang):
    at = [0, *cuts(text, lang), len(text)]
    pieces = (text[i:j].strip() for i, j in pairwise(at))
    return list(filter(None, pieces))


def split_words(text, lang):
    return [str(t) for t in word_pipeline(lang)(text) if not t.is_punct and not t.is_space]


# --- comparison -------------------------------------------------------------------------------------------------------


def gini(values):
    x = np.array(values, dtype=float)
    if x.size == 0 or (x < 0).any():
        raise ValueError("values: some, and none negative")
    if x.sum() == 0:
        return 0.0
    return float(np.abs(x[:, None] - x[None, :]).mean() / (2 * x.mean()))


def quotient(a, b):
    return float(a / b) if b else 0.0


def compare_tokenizers(encoders, parallel, *, reference="en"):
    sizes = {lang: len(texts) for lang, texts in parallel.items()}
    if reference not in sizes:
        raise ValueError(f"{reference} is not among the languages")
    for lang, n in sizes.items():
        if n != sizes[reference]:
            raise ValueError(f"unequal numbers of items: {lang} {n}, {reference} {sizes[reference]}")
    words = {lang: list(chain.from_iterable(split_words(t, lang) for t in texts)) for lang, texts in parallel.items()}
    return [one(name, encode, parallel, words, reference) for name, encode in encoders.items()]


def one(name, encode, parallel, words, reference):
    ids = {lang: encode(list(texts)) for lang, texts in parallel.items()}
    lengths = {lang: np.fromiter(map(len, found), dtype=np.int64) for lang, found in ids.items()}
    metrics = {}
    for lang, texts in parallel.items():
        tokens = int(lengths[lang].sum())
        chars, octets = (sum(f(t) for t in texts) for f in (len, lambda t: len(bytes(t, "utf-8"))))
        several = [len(x) > 1 for x in encode([f" {w}" for w in words[lang]])]
        metrics[lang] = LangMetrics(
            lang=lang,
            tokens=tokens,
            fertility=quotient(tokens, len(words[lang])),
            tokens_per_char=quotient(tokens, chars),
            bytes_per_token=quotient(octets, tokens),
            bytes_per_char=quotient(octets, chars),
            parity=float(np.mean(lengths[lang] / lengths[reference])) if len(texts) else 0.0,
            continued_word_rate=quotient(sum(several), len(several)),
        )
    used = {lang: frozenset(chain.from_iterable(found)) for lang, found in ids.items()}
    overlap = {}
    for a, b in combinations(used, 2):
        both = len(used[a] & used[b])
        overlap[a, b] = quotient(both, len(used[a]) + len(used[b]) - both)
    langs = list(metrics)
    worst = langs[int(np.argmax([metrics[lang].parity for lang in langs]))]
    return TokenizerComparison(name, metrics, gini([int(n.sum()) for n in lengths.values()]), worst, overlap)


# --- the shared tokenizer ---------------------------------------------------------------------------------------------


def mark_aware_pattern():
    words, other = r" ?\p{L}[\p{L}\p{M}]*", r" ?[^\s\p{L}\p{N}]+"
    return rf"'s|'t|'re|'ve|'m|'ll|'d|{words}| ?\p{{N}}+|{other}|\s+(?!\S)|\s+"


def mixing_weights(sizes, alpha):
    n = np.array(list(sizes.values()), dtype=float)
    if (n < 0).any() or not n.any():
        raise ValueError("sizes: none negative, one positive at least")
    powers = np.zeros_like(n)
    powers[n > 0] = (n[n > 0] / n.sum()) ** alpha
    return dict(zip(sizes, (powers / powers.sum()).tolist()))


def allocate(total, weights):
    names = sorted(weights)
    w = np.array([weights[name] for name in names], dtype=float)
    if total < 0 or (w < 0).any() or not w.any():
        raise ValueError("total and weights: none negative, one weight positive at least")
    quotas = total * w / w.sum()
    shares = np.floor(quotas).astype(int)
    order = np.argsort(shares - quotas, kind="stable")
    shares[order[: total - shares.sum()]] += 1
    found = dict(zip(names, shares.tolist()))
    return {name: found[name] for name in weights}


def train_shared(docs, sizes, *, alpha, total, vocab_size, pattern):
    shares = allocate(total, mixing_weights(sizes, alpha))
    for lang in shares:
        if shares[lang] and not docs.get(lang):
            raise ValueError(f"documents of {lang} are needed")
    bpe = Tokenizer(models.BPE())
    steps = [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    bpe.pre_tokenizer = pre_tokenizers.Sequence(steps)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(chain.from_iterable(islice(cycle(docs.get(x, ())), shares[x]) for x in shares), trainer)
    return bpe


# --- the pipeline -----------------------------------------------------------------------------------------------------


class Pipeline:
    """Each test is a generator of its own; they are chained."""

    def __init__(self, identifier, *, min_chars=10, min_margin=2.0, dedupe=True):
        self.identifier, self.min_chars, self.min_margin, self.dedupe = identifier, min_chars, min_margin, dedupe
        self.stats = PipelineStats()

    def run(self, records):
        self.stats = PipelineStats()
        stream = self._long(records)
        for test in (self._identified, self._scripted, self._unique):
            stream = test(stream)
        for found in stream:
            result = self._finish(*found)
            self.stats.kept += 1
            self.stats.by_lang[result.lang] = 1 + self.stats.by_lang.get(result.lang, 0)
            yield result

    def _drop(self, reason):
        self.stats.dropped[reason] = 1 + self.stats.dropped.get(reason, 0)

    def _long(self, records):
        for record in records:
            self.stats.seen += 1
            text = normalize(record.text)
            if len(text) >= self.min_chars:
                yield record, text
            else:
                self._drop("short")

    def _identified(self, stream):
        for record, text in stream:
            found = self.identifier.log_posteriors(text)
            values = sorted(found.values())
            margin = values[-1] - values[-2] if len(values) > 1 else float("inf")
            if record.lang is not None:
                yield record, text, record.lang, margin
            elif margin < self.min_margin:
                self._drop("margin")
            else:
                yield record, text, min(lang for lang in found if found[lang] == values[-1]), margin

    def _scripted(self, stream):
        for record, text, lang, margin in stream:
            scripts = script_profile(text)
            dominant = sorted(scripts.items(), key=lambda item: (-item[1], item[0]))[:1]
            if dominant and dominant[0][0] not in LANG_SCRIPTS.get(lang, {dominant[0][0]}):
                self._drop("script")
            else:
                yield record, text, lang, margin, scripts

    def _unique(self, stream):
        digests = set()
        for found in stream:
            digest = hashlib.md5(found[1].encode(), usedforsecurity=False).hexdigest()
            if self.dedupe and digest in digests:
                self._drop("duplicate")
            else:
                digests.add(digest)
                yield found

    def _finish(self, record, text, lang, margin, scripts):
        sentences = tuple(split_sentences(text, lang))
        return Processed(record.id, text, lang, margin, scripts, sentences, len(split_words(text, lang)))


def plot_parity(comparisons, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5))
    ax = figure.add_subplot()
    parity = np.array([[m.parity for m in c.metrics.values()] for c in comparisons])
    x = np.arange(parity.shape[1])
    for k, row in enumerate(parity):
        ax.bar(x + 0.8 * k / len(parity), row, 0.8 / len(parity), align="edge", label=comparisons[k].name)
    ax.set_xticks(x + 0.4, list(comparisons[0].metrics))
    ax.axhline(1, linestyle="--")
    ax.set(ylabel="parity")
    ax.legend()
    figure.savefig(path, format="png")
    return figure


# --- given: loaders, table, command line -------------------------------------------------------------------------------


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


def encoder_of(tokenizer):
    """The function that compare_tokenizers wants: a batch of texts to lists of ids, nothing added."""
    return lambda texts: [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]


def format_table(comparisons):
    """The comparisons as plain text."""
    lines = []
    for c in comparisons:
        lines.append(f"{c.name}: Gini {c.gini:.3f}, worst {c.worst}")
        lines.append(f"  {'':4}{'tokens':>8}{'parity':>8}{'fertility':>11}{'B/token':>9}{'B/char':>8}{'continued':>11}")
        for lang, m in c.metrics.items():
            lines.append(f"  {lang:4}{m.tokens:8}{m.parity:8.2f}{m.fertility:11.2f}{m.bytes_per_token:9.2f}"
                         f"{m.bytes_per_char:8.2f}{m.continued_word_rate:11.2f}")  # fmt: skip
    return "\n".join(lines)


def main(argv=None):
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
