"""Budgets of 1.5 multilingual_pipeline: calls of encoders handed in, interpreter steps, peak memory of a stream."""

import string

from llmkata.checks import hint, needs, points, probe, task


@probe
def compare(module, encoders, parallel):
    module.compare_tokenizers(encoders, parallel)
    return True


@task(4)
@points(6)
@needs("test_metrics")
@hint("An encoder takes a batch: all items of a language in one call, and all its words in another.")
def test_encode_calls(submission, budget):
    """Comparing calls each encoder at most twice for each language."""
    langs, items, calls = ("en", "xx", "zh"), 12, {"one": 0, "two": 0}

    def counting(name):
        def encode(texts):
            calls[name] += 1
            return [[1] * len(text) for text in texts]

        return encode

    parallel = {lang: [f"item {i}, of {lang}" for i in range(items)] for lang in langs}
    submission.run(compare, {name: counting(name) for name in calls}, parallel)
    # 2 batches (items, words) · 3 languages = 6 calls; one call for all is enough. One call an item: 36 and more.
    for name, count in calls.items():
        budget.require(
            f"calls of the encoder {name}", count, at_most=6, at_least=1, reference=6, unit="calls", trust="handed in"
        )


def alphabet(rng, size):
    return "".join(chr(0x4E00 + int(c)) for c in rng.choice(2000, size=size, replace=False))


@task(2)
@points(7)
@needs("test_identifier_matches_bayes")
@hint("Look up the n-grams that the text has. Going through all that were learnt costs a corpus for each text.")
def test_posterior_steps(submission, budget, rng):
    """The cost of a prediction does not grow with the number of n-grams learnt."""
    first, second = ("".join(rng.choice(list(string.ascii_lowercase), size=60)) for _ in range(2))
    values = []
    for size in (100, 400):
        # Every character occurs once: 3 · size n-grams a text, about; the query's letters are known in both cases.
        texts, langs = [string.ascii_lowercase + alphabet(rng, size) for _ in range(2)], ["aa", "bb"]

        def steps(queries, texts=texts, langs=langs):
            def scenario(s):
                identifier = s.LanguageIdentifier()
                identifier.fit(texts, langs)
                for query in queries:
                    identifier.log_posteriors(query)

            return budget.steps(scenario)

        # The first prediction may prepare what later ones need.
        values.append(max(1, steps([first, second]) - steps([first])))
    # The text's own 177 n-grams are looked up in both cases: ratio 1.0. Going through all of about 600 and 2400: 2 to 4.
    budget.require(
        "steps with 4 times as many n-grams", values[1] / values[0], at_most=1.3, at_least=0.7, reference=1.0, unit="x"
    )


@task(6)
@points(5)
@needs("test_pipeline_is_lazy")
@hint(
    "Remember a digest of a text (hashlib, 16 bytes or so), not the text.",
    "Yield each result and forget it: nothing of a record may be kept but its digest.",
)
def test_stream_memory(submission, budget, rng):
    """A stream of 50 texts of 6 kB, all different, takes the memory of a few texts, not of all."""
    words = ["".join(str(d) for d in rng.integers(0, 10, size=300)) for _ in range(10)]
    texts = ["  ".join(words[int(i)] for i in rng.integers(0, 10, size=20)) for _ in range(51)]

    def scenario(s):
        identifier = s.LanguageIdentifier(n=(1, 1)).fit(["the cat", "die Katze"], ["en", "de"])
        first, *records = [s.Record(str(i), text, "xx") for i, text in enumerate(texts)]
        # Not measured: spaCy is set up for the language, which takes 0.9 MB.
        for _ in s.Pipeline(identifier).run([first]):
            pass
        return s.words_by_language(s.Pipeline(identifier).run(records))

    peak = budget.peak_bytes(scenario)
    # One text at a time: some copies of 6 kB, or 20 bytes a character. All normalised texts as well: 50 · 6 kB = 300 kB more.
    budget.require("peak memory", peak, at_most=220_000, reference=40_000, unit="B")
