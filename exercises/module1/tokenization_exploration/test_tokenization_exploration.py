"""Visible checks of 1.1 tokenization_exploration. They earn no points; what they ask for is in README.md."""

from llmkata.checks import check, expect_error, hint, probe, same, task

COUNTS = {"low": 5, "lower": 2, "newest": 6, "widest": 3}
MERGES = [("s", "t</w>"), ("e", "st</w>"), ("l", "o"), ("w", "est</w>"), ("n", "e"), ("ne", "west</w>"), ("lo", "w</w>"),
          ("w", "i")]  # fmt: skip
QUOTED = 'He said "stop!"'


def spans(tokens):
    return [(t.text, t.start, t.end) for t in tokens]


@probe
def encode_words(module, merges, words):
    tokenizer = module.BPETokenizer([tuple(m) for m in merges])
    return [list(tokenizer.encode_word(word)) for word in words]


@probe
def table(module):
    train, test = ["the cat sat", "a cat ran"], ["the dog sat", "a cat"]
    merges = module.learn_bpe({"the": 2, "cat": 3, "sat": 2, "ran": 1, "a": 2}, 3)
    tokenizers = {"whitespace": module.whitespace_tokenize, "bpe": module.BPETokenizer(merges)}
    result = module.compare(train, test, tokenizers)
    row = result.rows["whitespace"]
    figures = [row.n_tokens, row.n_types, row.fertility, row.chars_per_token, row.oov_rate, row.coverage]
    return [float(x) for x in figures], sorted(result.boundary_f1), module.format_table(result)


@probe
def missing_model(module):
    try:
        module.load_spacy("no_such_pipeline_here")
    except OSError as error:
        return str(error)
    return ""


@probe
def pipeline_from_folder(module, text):
    import tempfile

    import spacy

    with tempfile.TemporaryDirectory() as folder:
        spacy.blank("en").to_disk(folder)
        return [[t.text, t.start, t.end] for t in module.spacy_tokenize(text, folder)]


@task(1)
@hint("A token is a piece and the place where it stands: text == source[start:end].")
def test_offsets_of_a_quotation(submission):
    """Whitespace tokens, and NLTK's rewritten quotes, stand where they came from."""
    want = [("He", 0, 2), ("said", 3, 7), ('"stop!"', 8, 15)]
    check(spans(submission.whitespace_tokenize(QUOTED)) == want, "Whitespace tokens of the quotation", want=want)
    got = spans(submission.align(QUOTED, ["He", "said", "``", "stop", "!", "''"]))
    want = [("He", 0, 2), ("said", 3, 7), ('"', 8, 9), ("stop", 9, 13), ("!", 13, 14), ('"', 14, 15)]
    check(got == want, "The aligned pieces of the quotation", got=got, want=want)
    with expect_error(ValueError, "two", "5"):
        submission.align("one  three", ["one", "two"])


@task(2)
@hint("Both libraries cut this quotation into the same six tokens.")
def test_libraries(submission):
    """NLTK and spaCy cut the quotation into six tokens with offsets."""
    want = [("He", 0, 2), ("said", 3, 7), ('"', 8, 9), ("stop", 9, 13), ("!", 13, 14), ('"', 14, 15)]
    for name in ("nltk_tokenize", "spacy_tokenize"):
        got = spans(submission.call(name, QUOTED))
        check(got == want, f"{name} of the quotation", got=got, want=want)


@task(2)
@hint("load_spacy is given: leave it as it is.")
def test_missing_spacy_model(submission):
    """A spaCy pipeline that is not installed is refused with its name and the command that installs it."""
    message = submission.run(missing_model)
    check("no_such_pipeline_here" in message and "spacy download" in message, "The message does not help.", got=message)


@task(2)
@hint("spacy_tokenize gets its pipeline from load_spacy, which takes a folder too.")
def test_spacy_pipeline_from_a_folder(submission):
    """A pipeline saved to a folder is loaded by its path, as an installed one is by its name."""
    got = submission.run(pipeline_from_folder, "I can't.")
    check(got == [["I", 0, 1], ["ca", 2, 4], ["n't", 4, 7], [".", 7, 8]], "The tokens of I can't.", got=got)


@task(3)
@hint("(s, t</w>), (e, s) and (t</w> after s) all count 9: the greatest pair wins the tie.")
def test_first_merges(submission):
    """The merges of the worked example of the brief, in order."""
    got = [tuple(pair) for pair in submission.learn_bpe(COUNTS, 8)]
    check(got == MERGES, "The first eight merges", got=got, want=MERGES)
    check(list(submission.merge_pair(list("aaa"), ("a", "a"))) == ["aa", "a"], "aaa becomes aa a.")


@task(4)
@hint("l o w e s t</w>: the first merge that applies is (s, t</w>), then (e, st</w>), (l, o), (w, est</w>).")
def test_lowest(submission):
    """An unseen word is cut into learnt pieces, and decoding puts it together again."""
    tokenizer = submission.BPETokenizer(MERGES)
    check(list(tokenizer.encode_word("lowest")) == ["lo", "west</w>"], "lowest becomes lo west</w>.")
    check(tokenizer.decode(["lo", "west</w>", "lo", "w</w>"]) == "lowest low", "decode gives the words back.")
    want = [("lo", 0, 2), ("west", 2, 6), ("!", 6, 7)]
    check(spans(tokenizer("lowest!")) == want, "Surface tokens of lowest!", want=want)


@task(4)
@hint("At each moment merge the pair that was learnt first, wherever it stands.")
def test_twenty_words(submission):
    """Twenty words are cut as by the BPE model of Hugging Face tokenizers."""
    from tokenizers import models

    letters = sorted({c for word in COUNTS for c in word})
    pieces = dict.fromkeys([*letters, *(c + "</w>" for c in letters), *(a + b for a, b in MERGES)])
    vocab = {piece: i for i, piece in enumerate(pieces)}
    model = models.BPE(vocab=vocab, merges=MERGES, end_of_word_suffix="</w>")
    words = [a + b for a in ("low", "new", "wide", "nest", "sold") for b in ("", "est", "er", "west")]
    for word, got in zip(words, submission.run(encode_words, MERGES, words), strict=True):
        want = [token.value for token in model.tokenize(word)]
        check(got == want, f"The pieces of {word}", got=got, want=want)


@task(5)
@hint("5 test words, one of them (dog) unseen: OOV 0.2. 13 letters: 2.6 characters a token.")
def test_one_table(submission):
    """A comparison on five test words has the figures counted by hand."""
    figures, pairs, text = submission.run(table)
    same(figures, [5.0, 5.0, 1.0, 2.6, 0.2, 1.0], atol=1e-12, rtol=0.0, what="the whitespace row")
    check([tuple(p) for p in pairs] == [("whitespace", "bpe")], "The one key of boundary_f1", got=pairs)
    check("whitespace" in text and "bpe" in text, "format_table shows both rows.", got=text)


@task(6)
@hint("n - 1 look-ups at the start, two after each merge: never more than 3 n.")
def test_lookups(submission):
    """Encoding 200 symbols asks for at most 800 ranks."""
    calls = []

    def rank(a, b):
        calls.append(a + b)
        check(len(calls) <= 1600, "more than 1600 look-ups for 200 symbols", got=len(calls))
        return None if len(a + b) > 8 else len(a + b)

    submission.bpe_encode(list("abcdefgh" * 25), rank)
    check(len(calls) <= 800, "More than 4 look-ups a symbol", got=len(calls), want="at most 800")
