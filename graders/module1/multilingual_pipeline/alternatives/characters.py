"""In plain Python: one character at a time, dictionaries of floats, a scanner for sentences, one batch for all languages."""

from __future__ import annotations

import argparse
import functools
import json
import math
import unicodedata
from collections import defaultdict
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from hashlib import sha256
from pathlib import Path
from xml.etree import ElementTree

import regex

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


@cache
def word_pipeline(lang):
    import spacy

    try:
        spacy.util.get_lang_class(lang)
    except ImportError:
        lang = "xx"
    return spacy.blank(lang)


# --- text -------------------------------------------------------------------------------------------------------------

DROPPED = {0xFEFF, 0x200B, 0x00AD, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
DROPPED |= {c for c in range(0xA0) if unicodedata.category(chr(c)) == "Cc"} - {9, 10}
TABLE = dict.fromkeys(DROPPED, None) | dict.fromkeys(map(ord, "\r\v\f\x85\u2028\u2029"), "\n")


def normalize(text):
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").translate(TABLE))
    lines, line, space = [], [], False
    for c in [*text, "\n"]:
        if c == "\n":
            lines.append("".join(line).strip("\t "))
            line, space = [], False
        elif unicodedata.category(c) == "Zs":
            if not space:
                line.append(" ")
            space = True
        else:
            line.append(c)
            space = False
    return "\n".join(lines)


NAMED = [(name, regex.compile(rf"\p{{Script={name}}}")) for name in SCRIPTS]
NO_SCRIPT = regex.compile(r"[\p{Script=Common}\p{Script=Inherited}]")


@cache
def script(c):
    if unicodedata.category(c)[0] not in "LM" or NO_SCRIPT.match(c):
        return ""
    for name, pattern in NAMED:
        if pattern.match(c):
            return name
    return "Other"


def script_profile(text):
    counts = defaultdict(int)
    for c in text:
        counts[script(c)] += 1
    counts.pop("", None)
    total = sum(counts.values())
    return {name: n / total for name, n in counts.items()}


# --- language ---------------------------------------------------------------------------------------------------------


class LanguageIdentifier:
    def __init__(self, *, n=(1, 3), alpha=0.5):
        self.low, self.high = n
        self.alpha = alpha
        self.fitted = False

    def pieces(self, text):
        text = normalize(text)
        for size in range(self.low, self.high + 1):
            for end in range(size, len(text) + 1):
                yield text[end - size : end]

    def fit(self, texts, langs):
        if len(texts) != len(langs):
            raise ValueError("as many texts as languages are needed")
        if not texts:
            raise ValueError("nothing to learn from")
        self.counts = {lang: defaultdict(int) for lang in langs}
        self.vocabulary = set()
        for text, lang in zip(texts, langs):
            for gram in self.pieces(text):
                self.counts[lang][gram] += 1
                self.vocabulary.add(gram)
        smoothing = self.alpha * len(self.vocabulary)
        self.log_totals = {
            lang: math.log(sum(c.values()) + smoothing) if self.vocabulary else 0.0 for lang, c in self.counts.items()
        }
        self.fitted = True
        return self

    def log_posteriors(self, text):
        if not self.fitted:
            raise RuntimeError("not fitted")
        known = [gram for gram in self.pieces(text) if gram in self.vocabulary]
        scores = {}
        for lang, counts in self.counts.items():
            terms = [math.log(counts.get(gram, 0) + self.alpha) - self.log_totals[lang] for gram in known]
            scores[lang] = math.fsum(terms)
        best = max(scores.values())
        log_sum = best + math.log(sum(math.exp(s - best) for s in scores.values()))
        return {lang: score - log_sum for lang, score in scores.items()}

    def predict(self, text):
        winner, best = "", -math.inf
        for lang, value in sorted(self.log_posteriors(text).items()):
            if value > best:
                winner, best = lang, value
        return winner


# --- segments ---------------------------------------------------------------------------------------------------------


def split_sentences(text, lang):
    found, start, i, n = [], 0, 0, len(text)
    while i < n:
        if text[i] not in ASCII_ENDS and text[i] not in OTHER_ENDS:
            i += 1
            continue
        begin = i
        while i < n and (text[i] in ASCII_ENDS or text[i] in OTHER_ENDS):
            i += 1
        needs_space = text[i - 1] in ASCII_ENDS
        lone = i - begin == 1 and text[begin] == "."
        while i < n and (text[i] in CLOSERS or (needs_space and text[i] == "“")):
            i += 1
        if needs_space and i < n and not text[i].isspace():
            continue
        if lone and lang in ORDINAL_PERIOD and begin and text[begin - 1].isdigit():
            continue
        found.append(text[start:i].strip())
        start = i
    found.append(text[start:].strip())
    return [s for s in found if s]


def split_words(text, lang):
    words = []
    for token in word_pipeline(lang)(text):
        if token.is_space or token.is_punct:
            continue
        words.append(token.text)
    return words


# --- comparison -------------------------------------------------------------------------------------------------------


def gini(values):
    values = list(values)
    if not values or min(values) < 0:
        raise ValueError("no values, or a negative one")
    if not sum(values):
        return 0.0
    return sum(abs(x - y) for x in values for y in values) / (2 * len(values) * sum(values))


def share(part, whole):
    return 0.0 if whole == 0 else part / whole


def compare_tokenizers(encoders, parallel, *, reference="en"):
    if reference not in parallel:
        raise ValueError(f"the reference language {reference} has no texts")
    size = len(parallel[reference])
    for lang in parallel:
        if len(parallel[lang]) != size:
            raise ValueError(f"language {lang}: {len(parallel[lang])} items and not {size}")
    langs = list(parallel)
    words = {lang: [w for text in parallel[lang] for w in split_words(text, lang)] for lang in langs}
    # One batch: all items, then all words.
    batch = [text for lang in langs for text in parallel[lang]] + [" " + w for lang in langs for w in words[lang]]
    results = []
    for name, encode in encoders.items():
        encoded = iter(encode(batch))
        items = {lang: [next(encoded) for _ in range(size)] for lang in langs}
        pieces = {lang: [next(encoded) for _ in words[lang]] for lang in langs}
        metrics, sets = {}, {}
        for lang in langs:
            text = "".join(parallel[lang])
            tokens = sum(len(ids) for ids in items[lang])
            sets[lang] = set().union(*items[lang])
            premiums = [len(a) / len(b) for a, b in zip(items[lang], items[reference])]
            metrics[lang] = LangMetrics(
                lang,
                tokens,
                share(tokens, len(words[lang])),
                share(tokens, len(text)),
                share(len(text.encode("utf-8")), tokens),
                share(len(text.encode("utf-8")), len(text)),
                share(sum(premiums), size),
                share(len([1 for ids in pieces[lang] if len(ids) > 1]), len(words[lang])),
            )
        worst = langs[0]
        for lang in langs:
            if metrics[lang].parity > metrics[worst].parity:
                worst = lang
        overlap = {}
        for i, a in enumerate(langs):
            for b in langs[i + 1 :]:
                overlap[a, b] = share(len(sets[a] & sets[b]), len(sets[a] | sets[b]))
        results.append(TokenizerComparison(name, metrics, gini([metrics[x].tokens for x in langs]), worst, overlap))
    return results


# --- the shared tokenizer ---------------------------------------------------------------------------------------------


def mark_aware_pattern():
    return r"'(?:[stmd]|re|ve|ll)| ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"


def mixing_weights(sizes, alpha):
    if any(n < 0 for n in sizes.values()):
        raise ValueError("a negative size")
    total = sum(sizes.values())
    if not total:
        raise ValueError("no size is positive")
    weights = {lang: 0.0 if n == 0 else (n / total) ** alpha for lang, n in sizes.items()}
    scale = math.fsum(weights.values())
    return {lang: w / scale for lang, w in weights.items()}


def allocate(total, weights):
    if total < 0 or any(w < 0 for w in weights.values()):
        raise ValueError("negative total or weight")
    scale = sum(Fraction(w) for w in weights.values())
    if not scale:
        raise ValueError("no weight is positive")
    quotas = {lang: total * Fraction(w) / scale for lang, w in weights.items()}
    shares = {lang: q.numerator // q.denominator for lang, q in quotas.items()}
    missing = total - sum(shares.values())
    for lang in sorted(sorted(quotas), key=lambda x: quotas[x] - shares[x], reverse=True)[:missing]:
        shares[lang] += 1
    return shares


def train_shared(docs, sizes, *, alpha, total, vocab_size, pattern):
    import tokenizers
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
    from tokenizers.trainers import BpeTrainer

    shares = allocate(total, mixing_weights(sizes, alpha))
    texts = []
    for lang in sorted(shares):
        if shares[lang]:
            if lang not in docs or not docs[lang]:
                raise ValueError(f"{lang} has no documents")
            full, rest = divmod(shares[lang], len(docs[lang]))
            texts += list(docs[lang]) * full + list(docs[lang])[:rest]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    cut = Split(tokenizers.Regex(pattern), behavior="isolated")
    tokenizer.pre_tokenizer = Sequence([cut, ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts, BpeTrainer(vocab_size=vocab_size, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    )
    return tokenizer


# --- the pipeline -----------------------------------------------------------------------------------------------------


class Pipeline:
    def __init__(self, identifier, *, min_chars=10, min_margin=2.0, dedupe=True):
        self.identifier = identifier
        self.least = min_chars, min_margin
        self.dedupe = dedupe
        self.stats = PipelineStats()

    def run(self, records):
        self.stats = PipelineStats()
        digests = set()
        for record in records:
            self.stats.seen += 1
            reason, result = self.judge(record, digests)
            if reason:
                self.stats.dropped[reason] += 1
            else:
                self.stats.kept += 1
                self.stats.by_lang[result.lang] = self.stats.by_lang.get(result.lang, 0) + 1
                yield result

    def judge(self, record, digests):
        text = normalize(record.text)
        if len(text) < self.least[0]:
            return "short", None
        log_p = self.identifier.log_posteriors(text)
        first, *others = sorted(log_p, key=lambda lang: (-log_p[lang], lang))
        margin = log_p[first] - log_p[others[0]] if others else math.inf
        lang = record.lang
        if lang is None:
            if margin < self.least[1]:
                return "margin", None
            lang = first
        profile = script_profile(text)
        if profile and lang in LANG_SCRIPTS:
            most = max(profile.values())
            if min(name for name in profile if profile[name] == most) not in LANG_SCRIPTS[lang]:
                return "script", None
        if self.dedupe:
            digest = sha256(text.encode()).digest()
            if digest in digests:
                return "duplicate", None
            digests.add(digest)
        sentences = tuple(split_sentences(text, lang))
        return None, Processed(record.id, text, lang, margin, profile, sentences, len(split_words(text, lang)))


def plot_parity(comparisons, path):
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    langs = list(comparisons[0].metrics)
    step = 1 / (len(comparisons) + 1)
    for k, comparison in enumerate(comparisons):
        heights = [m.parity for m in comparison.metrics.values()]
        ax.bar([i + k * step for i in range(len(langs))], heights, step, label=comparison.name)
    ax.set_xticks([i + (len(comparisons) - 1) * step / 2 for i in range(len(langs))])
    ax.set_xticklabels(langs)
    ax.axhline(1.0)
    ax.set_ylabel("parity")
    ax.legend()
    plt.savefig(path, format="png")
    plt.close(figure)
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
