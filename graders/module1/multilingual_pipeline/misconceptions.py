"""Wrong readings of multilingual text, each as the code it leads to; they run in the namespace of the model answer."""

# ruff: noqa: F811, F821 (functions of one name, names of the model answer)

import math
import unicodedata
from dataclasses import replace

from llmkata.checks import misconception

# --- clean text -------------------------------------------------------------------------------------------------------


@misconception(
    "strip_all_Cf",
    replaces="normalize",
    caught_by="test_normalize_keeps_meaning",
    feedback="You removed all format characters. U+200C and U+200D are spelling in Persian and the Indic scripts: joiners "
    "are the glue of letters, not noise.",
)
def normalize(text):
    return regex.sub(r"[\u200C\u200D]", "", original(text))


@misconception(
    "nfkc",
    replaces="normalize",
    caught_by="test_normalize_keeps_meaning",
    feedback="NFKC rewrites what is meant: ² becomes 2, ﬁ becomes fi, full-width forms change. Use NFC here.",
)
def normalize(text):
    return original(unicodedata.normalize("NFKC", original(text)))


@misconception(
    "strip_accents",
    replaces="normalize",
    caught_by="test_normalize_keeps_meaning",
    feedback="You removed accents. Diacritics tell words apart: schon and schön, año and ano, and vowels in Hindi.",
)
def normalize(text):
    apart = unicodedata.normalize("NFD", original(text))
    return original("".join(c for c in apart if unicodedata.category(c) != "Mn"))


@misconception(
    "nfc_before_removal",
    replaces="normalize",
    caught_by="test_normalize_keeps_meaning",
    feedback="You composed before you removed what is invisible: `e`, U+200B, accent then stays in two characters, and "
    "normalising once more changes the text. Remove first, then NFC.",
)
def normalize(text):
    text = regex.sub(r"\r\n|[\r\v\f\x85\u2028\u2029]", "\n", text)
    text = unicodedata.normalize("NFC", text)
    text = regex.sub(r"[^\P{Cc}\n\t]|[\uFEFF\u200B\u00AD\u200E\u200F\u202A-\u202E\u2066-\u2069]", "", text)
    text = regex.sub(r"\p{Zs}+", " ", text)
    return "\n".join(line.strip(" \t") for line in text.split("\n"))


@misconception(
    "shares_of_all_characters",
    replaces="script_profile",
    caught_by="test_script_profile",
    feedback="You divided by the length of the text. Digits, spaces and signs have no script: shares are of the letters "
    "and marks that have one, and sum to 1.",
)
def script_profile(text):
    letters = len(regex.sub(r"[\p{Script=Common}\p{Script=Inherited}]|[^\p{L}\p{M}]", "", text))
    return {script: share * letters / len(text) for script, share in original(text).items()}


# --- language ---------------------------------------------------------------------------------------------------------


@misconception(
    "probabilities_multiplied",
    replaces="LanguageIdentifier.log_posteriors",
    caught_by="test_identifier_matches_bayes",
    feedback="You multiplied probabilities. For a long text the product is 0 in floating point for every language, and "
    "all of them tie. Add logarithms.",
)
def log_posteriors(self, text):
    if self.langs is None:
        raise RuntimeError("not fitted")
    products = np.ones(len(self.langs))
    for gram, count in self._grams(text).items():
        if gram in self.log_probs:
            products *= np.exp(self.log_probs[gram]) ** count
    if not products.all():
        products = np.ones(len(self.langs))
    return dict(zip(self.langs, np.log(products / products.sum()).tolist()))


@misconception(
    "smoothing_over_language_vocab",
    replaces="LanguageIdentifier.fit",
    caught_by="test_identifier_matches_bayes",
    feedback="You smoothed each language over its own n-grams. V is the vocabulary of all languages together, or those "
    "with little text win.",
)
def fit(self, texts, langs):
    if len(texts) != len(langs) or not texts:
        raise ValueError("as many texts as languages are needed, and at least one")
    self.langs = sorted(set(langs))
    counts = {}
    for text, lang in zip(texts, langs):
        for gram, count in self._grams(text).items():
            counts.setdefault(gram, np.zeros(len(self.langs)))[self.langs.index(lang)] += count
    table = np.array(list(counts.values())).reshape(len(counts), len(self.langs))
    totals = table.sum(0) + self.alpha * (table > 0).sum(0)
    self.log_probs = dict(zip(counts, np.log(table + self.alpha) - np.log(totals)))
    return self


@misconception(
    "prior_from_data",
    replaces="LanguageIdentifier",
    caught_by="test_identifier_matches_bayes",
    feedback="You weighted languages by how many texts were seen of them. The prior is uniform: a text without known "
    "n-grams speaks for no language.",
)
class LanguageIdentifier(LanguageIdentifier):
    def fit(self, texts, langs):
        super().fit(texts, langs)
        self.prior = {lang: math.log(list(langs).count(lang) / len(langs)) for lang in self.langs}
        return self

    def log_posteriors(self, text):
        found = {lang: value + self.prior[lang] for lang, value in super().log_posteriors(text).items()}
        total = float(np.logaddexp.reduce(list(found.values())))
        return {lang: value - total for lang, value in found.items()}


@misconception(
    "ties_to_the_last",
    replaces="LanguageIdentifier.predict",
    caught_by="test_predict",
    feedback="Of languages with equal posteriors you took the alphabetically last one; it must be the first.",
)
def predict(self, text):
    posteriors = self.log_posteriors(text)
    return max(posteriors, key=lambda lang: (posteriors[lang], lang))


@misconception(
    "scans_what_was_learnt",
    replaces="LanguageIdentifier.log_posteriors",
    caught_by="test_posterior_steps",
    matches="steps",
    feedback="You went through every n-gram that was learnt. Look up those that the text has: a prediction must not cost "
    "more because more was learnt.",
)
def log_posteriors(self, text):
    if self.langs is None:
        raise RuntimeError("not fitted")
    grams, scores = self._grams(text), np.zeros(len(self.langs))
    for gram, row in self.log_probs.items():
        if gram in grams:
            scores += grams[gram] * row
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())
    return dict(zip(self.langs, scores.tolist()))


# --- sentences --------------------------------------------------------------------------------------------------------


@misconception(
    "ascii_sentence_end",
    replaces="split_sentences",
    caught_by="test_sentences",
    feedback="Only . ! ? end your sentences. Chinese, Arabic and Hindi end theirs with other marks.",
)
def split_sentences(text, lang):
    sentences, start = [], 0
    for match in regex.finditer(rf"([{ASCII_ENDS}]++)[{regex.escape(CLOSERS)}“]*(?=\s|\Z)", text):
        if not (lang in ORDINAL_PERIOD and match[1] == "." and text[: match.start()][-1:].isdigit()):
            sentences.append(text[start : match.end()])
            start = match.end()
    sentences.append(text[start:])
    return [s for s in map(str.strip, sentences) if s]


@misconception(
    "ordinals_end_sentences",
    replaces="split_sentences",
    caught_by="test_sentences",
    feedback="You cut after `3.` in German, Turkish or Finnish, where digits and a period are an ordinal.",
)
def split_sentences(text, lang):
    return original(text, "en")


# --- comparison -------------------------------------------------------------------------------------------------------


@misconception(
    "sample_gini",
    replaces="gini",
    caught_by="test_gini",
    feedback="You divided by n (n - 1). Here the pairs i = j count too: one of n who has all gives (n - 1) / n, not 1.",
)
def gini(values):
    n = len(values)
    return original(values) * n / (n - 1) if n > 1 else original(values)


@misconception(
    "len_bytes_confused",
    replaces="compare_tokenizers",
    caught_by="test_metrics",
    feedback="You counted characters where bytes are asked for. A byte-level model pays by the byte of UTF-8: three for a "
    "letter of Hindi, one for a letter of English.",
)
def compare_tokenizers(encoders, parallel, *, reference="en"):
    found = []
    for c in original(encoders, parallel, reference=reference):
        metrics = {
            lang: replace(m, bytes_per_token=1 / m.tokens_per_char if m.tokens else 0.0,
                          bytes_per_char=1.0 if any(parallel[lang]) else 0.0)
            for lang, m in c.metrics.items()
        }  # fmt: skip
        found.append(replace(c, metrics=metrics))
    return found


@misconception(
    "parity_of_totals",
    replaces="compare_tokenizers",
    caught_by="test_metrics",
    feedback="You divided the sums. parity is the mean over the parallel items of tokens(lang) / tokens(reference): each "
    "item counts the same, long or short.",
)
def compare_tokenizers(encoders, parallel, *, reference="en"):
    found = []
    for c in original(encoders, parallel, reference=reference):
        base = c.metrics[reference].tokens
        metrics = {lang: replace(m, parity=m.tokens / base) for lang, m in c.metrics.items()}
        found.append(replace(c, metrics=metrics, worst=max(metrics, key=lambda lang: metrics[lang].parity)))
    return found


@misconception(
    "words_without_a_space",
    replaces="compare_tokenizers",
    caught_by="test_metrics",
    feedback="You encoded words without the space before them. Inside a text a word comes with its space, and tokenizers "
    "have other tokens for that.",
)
def compare_tokenizers(encoders, parallel, *, reference="en"):
    def bare(encode):
        return lambda texts: encode([t[1:] if t[:1] == " " else t for t in texts])

    return original({name: bare(encode) for name, encode in encoders.items()}, parallel, reference=reference)


@misconception(
    "item_by_item",
    replaces="compare_tokenizers",
    caught_by="test_encode_calls",
    matches="calls",
    feedback="You called the encoder for each text. Encoders take batches and share their work out: one call for all "
    "items of a language, and one for its words.",
)
def compare_tokenizers(encoders, parallel, *, reference="en"):
    def one_by_one(encode):
        return lambda texts: [encode([text])[0] for text in texts]

    return original({name: one_by_one(encode) for name, encode in encoders.items()}, parallel, reference=reference)


# --- the shared tokenizer ---------------------------------------------------------------------------------------------


@misconception(
    "letters_only_pattern",
    replaces="mark_aware_pattern",
    caught_by="test_mark_aware_pattern",
    feedback="Vowel signs are marks, not letters: with letters alone the words of Hindi are shattered at every vowel.",
)
def mark_aware_pattern():
    return GPT2_PATTERN


@misconception(
    "alpha_inverted",
    replaces="mixing_weights",
    caught_by="test_mixing_weights",
    feedback="You used the exponent 1/alpha: with alpha = 0.3 that gives English even more than its share. The exponent is "
    "alpha.",
)
def mixing_weights(sizes, alpha):
    return original(sizes, 1 / alpha if alpha else alpha)


@misconception(
    "rounding_allocation",
    replaces="allocate",
    caught_by="test_allocate",
    feedback="You rounded each quota. Rounded shares do not add up to the total: take floors and hand out the rest by the "
    "largest remainders.",
)
def allocate(total, weights):
    original(total, weights)
    scale = sum(weights.values())
    return {lang: round(total * weight / scale) for lang, weight in weights.items()}


@misconception(
    "documents_not_repeated",
    replaces="train_shared",
    caught_by="test_train_shared",
    feedback="You took each document once at most. A language that was allocated more than it has repeats its documents: "
    "that is what upsampling means.",
)
def train_shared(docs, sizes, *, alpha, total, vocab_size, pattern):
    counts = allocate(total, mixing_weights(sizes, alpha))
    few = {lang: min(n, len(docs.get(lang, ()))) if docs.get(lang) else n for lang, n in counts.items()}
    return original(docs, few, alpha=1.0, total=sum(few.values()), vocab_size=vocab_size, pattern=pattern)


# --- the pipeline -----------------------------------------------------------------------------------------------------


def piped(self, records, remembered, doubted):
    """Pipeline.run with a choice of what is remembered of a record and of whose margin is looked at."""
    stats = self.stats = PipelineStats()
    digests = set()
    for record in records:
        stats.seen += 1
        text = normalize(record.text)
        if len(text) < self.min_chars:
            stats.dropped["short"] += 1
            continue
        posteriors = self.identifier.log_posteriors(text)
        best, second = sorted([*posteriors.values(), -math.inf], reverse=True)[:2]
        if doubted(record) and best - second < self.min_margin:
            stats.dropped["margin"] += 1
            continue
        lang = self.identifier.predict(text) if record.lang is None else record.lang
        scripts = script_profile(text)
        dominant = min(scripts, key=lambda script: (-scripts[script], script), default=None)
        if dominant and lang in LANG_SCRIPTS and dominant not in LANG_SCRIPTS[lang]:
            stats.dropped["script"] += 1
            continue
        digest = hashlib.blake2b(remembered(record.text, text).encode(), digest_size=16).digest()
        if self.dedupe and digest in digests:
            stats.dropped["duplicate"] += 1
            continue
        digests.add(digest)
        stats.kept += 1
        stats.by_lang[lang] = stats.by_lang.get(lang, 0) + 1
        sentences = tuple(split_sentences(text, lang))
        yield Processed(record.id, text, lang, best - second, scripts, sentences, len(split_words(text, lang)))


@misconception(
    "duplicates_of_the_raw_text",
    replaces="Pipeline.run",
    caught_by="test_pipeline",
    feedback="You looked for duplicates among the texts as they came in. Two texts that differ in invisible characters "
    "only are the same: compare them normalised.",
)
def run(self, records):
    return piped(self, records, lambda raw, text: raw, lambda record: record.lang is None)


@misconception(
    "said_language_is_doubted",
    replaces="Pipeline.run",
    caught_by="test_pipeline",
    feedback="You dropped records that say their language for a small margin. The margin is the identifier's doubt; where "
    "the language is known there is nothing to doubt.",
)
def run(self, records):
    return piped(self, records, lambda raw, text: text, lambda record: True)


@misconception(
    "whole_stream_first",
    replaces="Pipeline.run",
    caught_by="test_pipeline_is_lazy",
    feedback="You made a list of the stream. A pipeline pulls one record, yields its result and pulls the next: a corpus "
    "does not fit into memory.",
)
def run(self, records):
    def first(records):
        for n, record in enumerate(records):
            if n == 1000:
                return
            yield record

    yield from original(self, list(first(records)))


@misconception(
    "texts_remembered",
    replaces="Pipeline.run",
    caught_by="test_stream_memory",
    matches="peak_bytes",
    feedback="You remembered every text to find duplicates. A digest of 16 bytes does that, whatever the length of the "
    "text.",
)
def run(self, records):
    texts = set()
    for result in original(self, records):
        texts.add(result.text)
        yield result
