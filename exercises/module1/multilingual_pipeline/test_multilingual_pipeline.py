"""Visible checks of 1.5 multilingual_pipeline. They earn no points; what they ask for is in README.md."""

from llmkata.checks import check, expect_error, hint, probe, same, task

SNIPPETS = {
    "en": ["the cat sat on the mat and looked at the door", "they would rather have tea with their friends"],
    "de": ["die Katze saß auf der Matte und schaute zur Tür", "sie trinken lieber Tee mit ihren Freunden"],
    "tr": ["kedi paspasın üzerinde oturdu ve kapıya baktı", "arkadaşlarıyla çay içmeyi tercih ederler"],
}


@probe
def identify(module, snippets, texts):
    pairs = [(text, lang) for lang, items in snippets.items() for text in items]
    identifier = module.LanguageIdentifier().fit([t for t, _ in pairs], [lang for _, lang in pairs])
    return [identifier.predict(text) for text in texts]


@probe
def count_pieces(module, parallel):
    """Compare two encoders: one id a byte, one id a character."""
    encoders = {
        "bytes": lambda texts: [list(text.encode()) for text in texts],
        "characters": lambda texts: [[ord(c) for c in text] for text in texts],
    }
    found = module.compare_tokenizers(encoders, parallel)
    rows = {c.name: {lang: [m.tokens, m.parity, m.fertility, m.bytes_per_token] for lang, m in c.metrics.items()}
            for c in found}  # fmt: skip
    return rows, [[c.name, c.gini, c.worst] for c in found], module.format_table(found)


@probe
def train_one(module, docs, text):
    sizes = {lang: 9 // (k + 1) for k, lang in enumerate(docs)}
    tokenizer = module.train_shared(
        docs, sizes, alpha=0.3, total=8, vocab_size=300, pattern=module.mark_aware_pattern()
    )
    ids = module.encoder_of(tokenizer)([text])[0]
    return tokenizer.get_vocab_size(), tokenizer.decode(ids)


@probe
def send(module, snippets, records):
    pairs = [(text, lang) for lang, items in snippets.items() for text in items]
    identifier = module.LanguageIdentifier().fit([t for t, _ in pairs], [lang for _, lang in pairs])
    pipeline = module.Pipeline(identifier)
    kept = [[r.id, r.lang, r.n_words] for r in pipeline.run([module.Record(*r) for r in records])]
    return kept, pipeline.stats.seen, dict(pipeline.stats.dropped)


@probe
def bars(module, folder_name):
    import tempfile
    from pathlib import Path

    rows = {lang: module.LangMetrics(lang, 9, 1.0, 1.0, 1.0, 1.0, p, 0.5) for lang, p in (("en", 1.0), ("hi", 4.5))}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / folder_name
        figure = module.plot_parity([module.TokenizerComparison("one", rows, 0.1, "hi", {})], path)
        size = path.stat().st_size
    return size, [float(bar.get_height()) for bar in figure.axes[0].containers[0]]


@probe
def read_files(module):
    """Two files of the UDHR's XML, and FLORES-style lines, read back."""
    import json
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for lang, words in (("sw", ["Watu wote", "Kila mtu", "ana haki"]), ("fi", ["Kaikki", "Jokainen", "ihminen"])):
            (folder / f"udhr_{lang}.xml").write_text(
                f"""<?xml version="1.0" encoding="utf-8"?>
                <udhr xml:lang="{lang}" xmlns="http://efele.net/udhr"><title>x</title><preamble><para>no</para></preamble>
                <article number="2"><title>2</title><para>{words[1]}</para><para>{words[2]}</para></article>
                <article number="1"><title>1</title><para>{words[0]}</para></article></udhr>""",
                encoding="utf-8",
            )
        path = folder / "lines.jsonl"
        rows = [{"id": i, "lang": lang, "text": f"{lang}{i}"} for i in (1, 2) for lang in ("en", "hi")]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return module.load_udhr_xml(folder), module.load_parallel(path)


@probe
def compare_saved(module, parallel):
    """The command line on saved tokenizers: a folder that holds tokenizer.json, in the real layout."""
    import contextlib
    import io
    import json
    import tempfile
    from pathlib import Path

    from tokenizers import Tokenizer, models, pre_tokenizers

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "cat": 1}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.save(str(folder / "tokenizer.json"))
        rows = [{"id": i, "lang": lang, "text": t} for lang, items in parallel.items() for i, t in enumerate(items)]
        (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        with contextlib.redirect_stdout(io.StringIO()) as out:
            code = module.main(["--parallel", str(folder / "texts.jsonl"), "--tokenizer", name])
    return code, out.getvalue()


@task(1)
@hint("unicodedata.normalize('NFC', ...) joins e and U+0301; regex.sub removes what is invisible.")
def test_clean_text(submission):
    """A decomposed accent is composed, a zero-width space goes, a no-break space becomes a space, a joiner stays."""
    for text, want in (
        ("cafe\u0301", "café"),
        ("a\u200bb", "ab"),
        ("10\u00a0 km ", "10 km"),
        ("می\u200cروم", "می\u200cروم"),
    ):
        got = submission.normalize(text)
        check(got == want, f"normalize({text!a})", got=got, want=want)


@task(1)
@hint("Nine letters and marks: four Latin, two Cyrillic, three Devanagari (two letters and a vowel sign).")
def test_mixed_scripts(submission):
    """Of `abcd 12 да हिन`, four ninths are Latin, two Cyrillic and three Devanagari."""
    want = {"Latin": 4 / 9, "Cyrillic": 2 / 9, "Devanagari": 3 / 9}
    same(submission.script_profile("abcd 12 да हिन"), want, atol=1e-12, rtol=0.0, what="the shares")
    check(submission.script_profile("12!") == {}, "A text without letters has no scripts.")


@task(2)
@hint("Sum the logarithms of the smoothed frequencies of all n-grams; the largest sum wins.")
def test_six_snippets(submission):
    """Six short texts are told apart after two sentences of each language."""
    texts = [
        "the dog and the door",
        "der Hund und die Tür",
        "köpek ve kapı",
        "with friends",
        "mit Freunden",
        "kapıya çay",
    ]
    got = submission.run(identify, SNIPPETS, texts)
    check(got == ["en", "de", "tr"] * 2, "The languages of the snippets", got=got, want=["en", "de", "tr"] * 2)
    with expect_error(RuntimeError, "not fitted"):
        submission.LanguageIdentifier().predict("abc")


@task(3)
@hint("A Chinese full stop needs no space after it; a danda ends a sentence of Hindi.")
def test_three_scripts(submission):
    """Sentences of English, Chinese and Hindi are cut where they end, and words are those of spaCy."""
    for text, lang, want in (
        ('It costs 3.50. "Really?" Yes.', "en", ["It costs 3.50.", '"Really?"', "Yes."]),
        ("你好。走吧！", "zh", ["你好。", "走吧！"]),
        ("वह आया। कब?", "hi", ["वह आया।", "कब?"]),
        ("Am 3. Mai. Gut.", "de", ["Am 3. Mai.", "Gut."]),
    ):
        got = list(submission.split_sentences(text, lang))
        check(got == want, f"The sentences of {text!a}", got=got, want=want)
    got = list(submission.split_words("I can't, really!", "en"))
    check(got == ["I", "ca", "n't", "really"], "The words of I can't, really!", got=got)


@task(4)
@hint("'да' is two characters and four bytes; the parity of the second item is 4 / 3.")
def test_one_table(submission):
    """Two encoders on two items in two languages have the figures counted by hand."""
    rows, summary, text = submission.run(count_pieces, {"en": ["ab", "yes"], "ru": ["да", "да"]})
    want = {"bytes": {"en": [5, 1.0, 2.5, 1.0], "ru": [8, (4 / 2 + 4 / 3) / 2, 4.0, 1.0]},
            "characters": {"en": [5, 1.0, 2.5, 1.0], "ru": [4, (2 / 2 + 2 / 3) / 2, 2.0, 2.0]}}  # fmt: skip
    same(rows, want, atol=1e-12, rtol=0.0, dtype=None, what="tokens, parity, fertility, bytes per token")
    same([x[1] for x in summary], [3 / 26, 1 / 18], atol=1e-12, rtol=0.0, what="the Gini coefficients")
    check([x[2] for x in summary] == ["ru", "en"], "The worst languages", got=[x[2] for x in summary])
    check("bytes" in text and "ru" in text, "format_table shows both encoders.", got=text)


@task(5)
@hint("0.9 ** 0.3 = 0.969 and 0.1 ** 0.3 = 0.501, of 1.470.")
def test_weights(submission):
    """Nine to one becomes about two to one at alpha 0.3, and ten documents are dealt out accordingly."""
    weights = submission.mixing_weights({"en": 900, "hi": 100}, 0.3)
    same(weights, {"en": 0.6590733, "hi": 0.3409267}, atol=1e-6, rtol=0.0, what="the weights at alpha 0.3")
    got = submission.allocate(10, {"en": 0.66, "hi": 0.34})
    check(got == {"en": 7, "hi": 3}, "Ten documents", got=got, want={"en": 7, "hi": 3})


@task(5)
@hint("Split by the pattern, then ByteLevel without a pattern of its own; bytes make any text decodable.")
def test_shared_tokenizer(submission):
    """A shared tokenizer has the vocabulary it was asked for and decodes texts of languages it has not seen."""
    docs = {"en": ["the cat and the hat", "a cat"], "hi": ["हिन्दी हिन्दी की"]}
    size, back = submission.run(train_one, docs, "the हिन्दी 東京 🙂")
    check(
        256 < size <= 300 and back == "the हिन्दी 東京 🙂",
        "Size of the vocabulary, and a decoded text",
        got=[size, back],
    )


@task(6)
@hint("Normalise, then short, margin, script, duplicate; yield the rest.")
def test_five_records(submission):
    """Of five records two are kept; one each is short, of an impossible script, and a duplicate."""
    records = [
        ["1", "the cat and the door", None], ["2", "  hi ", None], ["3", "the  cat and\u200b the door", None],
        ["4", "die Katze und der Hund", None], ["5", "the door is closed now", "ru"],
    ]  # fmt: skip
    kept, seen, dropped = submission.run(send, SNIPPETS, records)
    check(kept == [["1", "en", 5], ["4", "de", 5]], "Id, language and words of what is kept", got=kept)
    want = {"short": 1, "script": 1, "duplicate": 1}
    got = {reason: n for reason, n in dropped.items() if n}
    check(seen == 5 and got == want, "The statistics", got=[seen, got], want=[5, want])


@task(7)
@hint("ax.bar(positions, parities, width, label=name), then figure.savefig(path).")
def test_parity_bars(submission):
    """The figure is written, and its bars are the parities."""
    size, heights = submission.run(bars, "parity.png")
    check(size > 1000 and heights == [1.0, 4.5], "Size of the file and heights of the bars", got=[size, heights])


@task(4)
@hint("The loaders are given: leave them as they are.")
def test_loaders(submission):
    """Files of the Declaration in XML and parallel lines in JSON are read by language, in order."""
    articles, lines = submission.run(read_files)
    want = {"fi": ["Kaikki", "Jokainen\nihminen"], "sw": ["Watu wote", "Kila mtu\nana haki"]}
    check(articles == want, "The articles by language", got=articles, want=want)
    check(lines == {"en": ["en1", "en2"], "hi": ["hi1", "hi2"]}, "The lines by language", got=lines)


@task(4)
@hint("main is given; it needs compare_tokenizers.")
def test_saved_tokenizer(submission):
    """The command line compares a tokenizer saved in a folder, as published ones are."""
    code, out = submission.run(compare_saved, {"en": ["a cat", "cat"], "de": ["eine Katze hier", "Katze"]})
    check(code == 0 and "worst de" in out and "1.25" in out, "The table of the saved tokenizer", got=out)


@task(3)
@hint("word_pipeline is given and loads spaCy's Japanese, which needs a package of its own.")
def test_japanese(submission):
    """Japanese is cut into words where its dictionary is installed."""
    import importlib.util

    import pytest

    if importlib.util.find_spec("sudachipy") is None:
        pytest.skip("sudachipy is not installed: pip install sudachipy sudachidict_core")
    got = list(submission.split_words("東京に行く。", "ja"))
    check("".join(got) == "東京に行く", "The words spell the text, without the full stop.", got=got)
