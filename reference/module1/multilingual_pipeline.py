"""Oracle of 1.5 multilingual_pipeline: one character, one n-gram, one pair at a time; exact fractions where numbers are cut.

Text rules go through unicodedata, character by character; only the script of a character is asked of `regex`.
"""

from __future__ import annotations

import functools
import itertools
import math
import unicodedata
from collections import Counter
from fractions import Fraction

import regex

LANGS = ("en", "de", "fr", "es", "ru", "zh", "ar", "tr", "hi", "fi")
HOME = {"ru": "Cyrillic", "zh": "Han", "ar": "Arabic", "hi": "Devanagari"}
DIRECTIONAL = [0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
INVISIBLE = {chr(c) for c in (0xFEFF, 0x200B, 0x00AD, *DIRECTIONAL)}


def normalize(text):
    broken = text.replace("\r\n", "\n")
    broken = "".join("\n" if c in "\r\v\f\x85\u2028\u2029" else c for c in broken)
    kept = "".join(c for c in broken if c in "\n\t" or (unicodedata.category(c) != "Cc" and c not in INVISIBLE))
    lines = []
    for line in unicodedata.normalize("NFC", kept).split("\n"):
        spaced = ""
        for c in line:
            if unicodedata.category(c) != "Zs":
                spaced += c
            elif not spaced.endswith(" "):
                spaced += " "
        while spaced and spaced[0] in " \t":
            spaced = spaced[1:]
        while spaced and spaced[-1] in " \t":
            spaced = spaced[:-1]
        lines.append(spaced)
    return "\n".join(lines)


@functools.cache
def script_of(char, names):
    if unicodedata.category(char)[0] not in "LM" or regex.match(r"[\p{Script=Common}\p{Script=Inherited}]", char):
        return None
    return next((name for name in names if regex.match(rf"\p{{Script={name}}}", char)), "Other")


def script_profile(text, names):
    scripts = [s for s in (script_of(c, tuple(names)) for c in text) if s]
    return {s: scripts.count(s) / len(scripts) for s in set(scripts)}


def grams(text, n):
    text = normalize(text)
    return [text[i : i + k] for k in range(n[0], n[1] + 1) for i in range(len(text)) if i + k <= len(text)]


def identifier(texts, langs, n, alpha):
    """The function from a text to its log-posteriors."""
    counts = {lang: Counter() for lang in sorted(set(langs))}
    for text, lang in zip(texts, langs, strict=True):
        counts[lang].update(grams(text, n))
    vocabulary = set().union(*counts.values())

    def log_posteriors(text):
        known = [g for g in grams(text, n) if g in vocabulary]
        scores = {}
        for lang, c in counts.items():
            total = sum(c.values()) + alpha * len(vocabulary)
            scores[lang] = math.fsum(math.log((c[g] + alpha) / total) for g in known)
        top = max(scores.values())
        log_sum = top + math.log(math.fsum(math.exp(s - top) for s in scores.values()))
        return {lang: score - log_sum for lang, score in scores.items()}

    return log_posteriors


def split_sentences(text, lang):
    plain, closing = "…。！？؟।॥", set("\"'”’»)]}」』）】》")
    sentences, start, i = [], 0, 0
    while i < len(text):
        j = i
        while j < len(text) and text[j] in plain + ".!?":
            j += 1
        if i == j:
            i += 1
            continue
        ascii_last = text[j - 1] in ".!?"
        k = j
        while k < len(text) and (text[k] in closing or (ascii_last and text[k] == "“")):
            k += 1
        free = not ascii_last or k == len(text) or text[k].isspace()
        ordinal = lang in ("de", "tr", "fi") and text[i:j] == "." and i > 0 and text[i - 1].isdigit()
        if free and not ordinal:
            sentences.append(text[start:k])
            start = k
        i = k
    return [s.strip() for s in [*sentences, text[start:]] if s.strip()]


def gini(values):
    n, mean = len(values), sum(values) / len(values)
    return sum(abs(a - b) for a in values for b in values) / (2 * n * n * mean) if mean else 0.0


def over(a, b):
    return a / b if b else 0.0


def comparison(ids, word_ids, texts, words, reference):
    """One tokenizer. ids[lang][item] and word_ids[lang][word] are lists of ids."""
    rows = {}
    for lang in texts:
        tokens = sum(len(x) for x in ids[lang])
        chars, size = len("".join(texts[lang])), len("".join(texts[lang]).encode())
        ratios = [len(a) / len(b) for a, b in zip(ids[lang], ids[reference], strict=True)]
        rows[lang] = {
            "lang": lang,
            "tokens": tokens,
            "fertility": over(tokens, len(words[lang])),
            "tokens_per_char": over(tokens, chars),
            "bytes_per_token": over(size, tokens),
            "bytes_per_char": over(size, chars),
            "parity": over(math.fsum(ratios), len(ratios)),
            "continued_word_rate": over(len([x for x in word_ids[lang] if len(x) > 1]), len(word_ids[lang])),
        }
    used = {lang: {i for x in ids[lang] for i in x} for lang in texts}
    overlap = {
        (a, b): over(len(used[a] & used[b]), len(used[a] | used[b])) for a, b in itertools.combinations(texts, 2)
    }
    worst = max(rows, key=lambda lang: rows[lang]["parity"])
    return {"metrics": rows, "gini": gini([r["tokens"] for r in rows.values()]), "worst": worst, "overlap": overlap}


def mixing_weights(sizes, alpha):
    total = sum(sizes.values())
    powers = {lang: math.exp(alpha * math.log(size / total)) if size else 0.0 for lang, size in sizes.items()}
    return {lang: power / math.fsum(powers.values()) for lang, power in powers.items()}


def allocate(total, weights):
    quotas = {lang: Fraction(total) * Fraction(w) / sum(map(Fraction, weights.values())) for lang, w in weights.items()}
    counts = {lang: int(q) for lang, q in quotas.items()}
    for _ in range(total - sum(counts.values())):
        # One after the other: the largest remainder that has not been served, of equal ones the first name.
        rest = [lang for lang in weights if counts[lang] <= quotas[lang] and counts[lang] == int(quotas[lang])]
        counts[min(rest, key=lambda lang: (-(quotas[lang] - counts[lang]), lang))] += 1
    return counts


def mixture(docs, counts):
    return [docs[lang][i % len(docs[lang])] for lang in counts for i in range(counts[lang])]


def train(texts, vocab_size, pattern):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


def pipeline(records, posteriors, names, *, min_chars, min_margin, dedupe):
    """records: [id, text, lang or None]; returns what is kept as dicts, and the statistics."""
    kept, seen, dropped, by_lang = [], set(), Counter(), Counter()
    for key, raw, given in records:
        text = normalize(raw)
        ranked = sorted(posteriors(text).items(), key=lambda item: (-item[1], item[0]))
        margin = ranked[0][1] - ranked[1][1] if len(ranked) > 1 else math.inf
        lang = ranked[0][0] if given is None else given
        shares = script_profile(text, names)
        dominant = min(shares, key=lambda s: (-shares[s], s), default=None)
        if len(text) < min_chars:
            dropped["short"] += 1
        elif given is None and margin < min_margin:
            dropped["margin"] += 1
        elif dominant and lang in LANGS and dominant != HOME.get(lang, "Latin"):
            dropped["script"] += 1
        elif dedupe and text in seen:
            dropped["duplicate"] += 1
        else:
            seen.add(text)
            by_lang[lang] += 1
            kept.append({"id": key, "text": text, "lang": lang, "lang_logprob_margin": margin, "scripts": shares,
                         "sentences": split_sentences(text, lang)})  # fmt: skip
    return kept, {"seen": len(records), "kept": len(kept), "dropped": dict(dropped), "by_lang": dict(by_lang)}
