"""Hidden correctness checks of 1.3 custom_tokenizer_training.

Core is tasks 1 to 5. Lists of merges, vocabularies and ids are compared exactly, log-probabilities to 1e-9. Where
sums of floats decide (Viterbi paths, prunes), cases are either exact (log-probabilities are small integers, so sums do
not round) or drawn again until the oracle's margins are clear.

Mended in the specification: where [UNK] stands and what counts (`train_wordpiece`), pairs count at every position,
`prune` does not renormalise, what `history` holds, unknown characters of a Unigram model raise ValueError, the
pre-tokenizers of the exported files; all are told in the docstrings of the stub. A byte string that two merges make
has two ids and cannot be exported: tables with one are not graded.
"""

import json
import math
from itertools import pairwise
from pathlib import Path

import regex

from llmkata.checks import check, expect_error, hint, points, probe, same, task

SAMPLE = Path(__file__).parents[3] / "components" / "parallel_text" / "english_sample.txt"
SPECIALS = ["<|a|>", "<|a|><|a|>", "|end|"]
HARD = [
    "", " ", "a", "Hello, world!", "it's we'll I'VE they'd 'quoted'", "line\r\n\r\nnext\tcell   three", "🙂🙃 👍🏽",
    "naïve café", "今天天气很好。", "مرحبا بالعالم", "x=1234567; y=3.14", "a\u00a0b\u2028c\u3000d", "   lead and trail   ",
    "don''t 'l 'll 've",
]  # fmt: skip
BETWEEN = [
    "<|a|>", "x<|a|>y", "one <|a|><|a|> two", "<|a|><|a|><|a|>", " <|a|> ", "<|a|", "|end||end|", "a|end|<|a|>b",
    "<|<|a|>|>",
]  # fmt: skip


@probe
def counted(module, texts, specials):
    return [[piece, n] for piece, n in module.count_pretokens((text for text in texts), specials).items()]


@probe
def trained(module, cases):
    """[merges, vocab] for each (counts, vocab_size, specials)."""
    out = []
    for counts, size, specials in cases:
        model = module.train_bpe(dict(map(tuple, counts)), size, specials)
        out.append([[list(pair) for pair in model.merges], dict(model.vocab)])
    return out


@probe
def encoded(module, counts, size, specials, texts):
    """(ids of each text, decoded ids) of a model trained here."""
    model = module.train_bpe(dict(map(tuple, counts)), size, specials)
    ids = [list(model.encode(text)) for text in texts]
    return ids, [model.decode(iter(found)) for found in ids]


@probe
def decoded(module, counts, size, ids):
    model = module.train_bpe(dict(map(tuple, counts)), size)
    return [model.decode(found) for found in ids]


@probe
def streamed(module, counts, size, specials, cuts):
    model = module.train_bpe(dict(map(tuple, counts)), size, specials)
    return [list(model.encode_iterable(iter(chunks))) for chunks in cuts]


@probe
def laziness(module, counts, size, specials, chunks):
    """For each id: how many chunks had been asked for when it came."""
    model, taken = module.train_bpe(dict(map(tuple, counts)), size, specials), [0]

    def read():
        for chunk in chunks:
            taken[0] += 1
            yield chunk

    return [[i, taken[0]] for i in model.encode_iterable(read())]


@probe
def wordpieces(module, cases):
    return [dict(module.train_wordpiece(counts, size, unk=unk).vocab) for counts, size, unk in cases]


@probe
def wordpieced(module, vocab, words, options):
    model = module.WordPieceModel(vocab)
    return [list(model.encode_word(word, **options)) for word in words]


@probe
def paths(module, cases):
    out = []
    for word, logp, max_piece, skip in cases:
        pieces, score = module.viterbi(word, logp, max_piece, skip=skip)
        out.append([None if pieces is None else list(pieces), float(score)])
    return out


@probe
def expectations(module, cases):
    out = []
    for case in cases:
        log_z, expected = module.forward_backward(*case)
        out.append([float(log_z), {p: float(c) for p, c in expected.items()}])
    return out


@probe
def em_steps(module, counts, logp, max_piece, steps):
    out = []
    for _ in range(steps):
        likelihood, logp = module.em_step(counts, logp, max_piece)
        out.append([float(likelihood), dict(logp)])
    return out


@probe
def pruned(module, cases):
    return [dict(module.prune(*case)) for case in cases]


@probe
def unigrams(module, cases):
    out = []
    for counts, size, options in cases:
        model = module.train_unigram(counts, size, **options)
        out.append([dict(model.logp), [[int(n), float(x)] for n, x in model.history], int(model.max_piece)])
    return out


@probe
def exported(module, kind, train_args, texts):
    """(text of the exported file, what the model makes of each text)."""
    import tempfile
    from pathlib import Path

    if kind == "bpe":
        counts, size, specials = train_args
        model = module.train_bpe(dict(map(tuple, counts)), size, specials)
        found = [list(model.encode(text)) for text in texts]
    else:
        model = {"wordpiece": module.train_wordpiece, "unigram": module.train_unigram}[kind](*train_args)
        found = [list(model.encode_word(word)) for word in texts]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        module.export_tokenizer_json(model, path)
        return path.read_text(encoding="utf-8"), found


def sample():
    return SAMPLE.read_text(encoding="utf-8").splitlines()


def word_counts():
    counts = {}
    for word in " ".join(sample()).split():
        counts[word] = counts.get(word, 0) + 1
    return counts


def table(rng, letters, words=14, longest=9):
    """Words over few letters, runs and small counts among them: many ties and overlaps."""
    letters = list(letters)
    made = {}
    for _ in range(words):
        word = "".join(rng.choice(letters, size=rng.integers(1, longest + 1)))
        made[word] = int(rng.integers(1, 4))
    made[letters[0] * int(rng.integers(3, 8))] = int(rng.integers(1, 4))
    return made


def in_bytes(counts):
    return [[word.encode("utf-8"), n] for word, n in counts.items()]


def unique(merges):
    return len({a + b for a, b in merges}) == len(merges)


def bpe_case(rng, reference, letters, merges, specials):
    """A table and a size whose merges make no piece twice."""
    while True:
        counts = in_bytes(table(rng, letters))
        want = reference.bpe_merges(dict(map(tuple, counts)), merges)
        if unique(want):
            return (counts, 256 + merges + len(specials), specials), want


def natural(reference, merges):
    """Pre-tokens of the English sample, and its merges."""
    counts = reference.count_pretokens(sample()[:12])
    return [[p, n] for p, n in counts.items()], reference.bpe_merges(counts, merges)


def pieces_over(rng, letters, number, longest, score):
    """Log-probabilities of all letters and of some longer pieces."""
    names = list(letters)
    while len(names) < number:
        piece = "".join(rng.choice(list(letters), size=rng.integers(2, longest + 1)))
        if piece not in names:
            names.append(piece)
    return {p: score() for p in names}


def words_over(rng, letters, number, longest):
    return ["".join(rng.choice(list(letters), size=rng.integers(1, longest + 1))) for _ in range(number)]


# --- task 1 -----------------------------------------------------------------------------------------------------------


@task(1)
@points(4)
@hint(
    "Cut each text at the special tokens before PRETOKEN sees it; what is between two of them is cut alone.",
    "In a pattern of alternatives the first that matches wins: sort the special tokens by length, longest first.",
)
def test_count_pretokens(submission, reference, rng):
    """Pre-tokens are counted between the special tokens, which are dropped, the longer one first."""
    glued = ["".join(rng.choice([*HARD, *BETWEEN], size=4)) for _ in range(12)]
    for texts, specials in ((HARD, []), (HARD + BETWEEN, SPECIALS), (glued, SPECIALS), (BETWEEN, ["<|a|>"]), ([], []),
                            (["a.b.c", "a+c"], [".", "+"])):  # fmt: skip
        got = {bytes(piece): n for piece, n in submission.run(counted, texts, specials)}
        want = reference.count_pretokens(texts, specials)
        check(got == want, f"The pre-tokens of {len(texts)} texts with special tokens {specials}", got=got, want=want)


# --- task 2 -----------------------------------------------------------------------------------------------------------


@task(2)
@points(12)
@hint(
    "Write the slow trainer first: count all pairs, take max by (count, pair), merge left to right, repeat.",
    "An incremental trainer must also change the pairs left and right of a merge. In `aaa` the pair (a, a) counts "
    "twice, but only one is merged, and what is left over is the pair (aa, a).",
)
def test_train_bpe_exact(submission, reference, rng):
    """Merges and vocabulary equal a full recount, on tables full of ties and overlaps and on English."""
    cases, wants = [], []
    for i in range(12):
        specials = ["<s>", "</s>"][: i % 3]
        case, want = bpe_case(rng, reference, ["ab", "abc", "abcé", "abcde"][i % 4], int(rng.integers(4, 16)), specials)
        cases.append(case)
        wants.append(want)
    counts, want = natural(reference, 40)
    small = [[b"aaaa", 3], [b"ab", 1]]
    cases += [(counts, 296, []), (small, 256, []), (small, 258, ["<a>", "<b>"]), (small, 300, ["<s>"]), ([], 260, [])]
    wants += [want, [], [], reference.bpe_merges(dict(map(tuple, small)), 43), []]
    for (table_, size, specials), want, (merges, vocab) in zip(
        cases, wants, submission.run(trained, cases), strict=True
    ):
        got = [tuple(map(bytes, pair)) for pair in merges]
        shown = dict(map(tuple, table_[:20]))
        check(got == want, f"The merges of {shown}, vocab_size {size}", got=got, want=want)
        want = reference.bpe_vocab(want, specials)
        check({int(i): bytes(piece) for i, piece in vocab.items()} == want, "The vocabulary: bytes, merges, specials.")


@task(2)
@points(1)
@hint("256 bytes and the special tokens must fit: compare before you train.")
def test_vocabulary_too_small(submission):
    """A vocabulary with no room for the bytes and the special tokens is a ValueError."""
    for size, specials in ((255, []), (256, ["<s>"]), (0, [])):
        with expect_error(ValueError):
            submission.train_bpe({b"ab": 1}, size, specials)


# --- task 3 -----------------------------------------------------------------------------------------------------------


@task(3)
@points(8)
@hint(
    "At each moment merge the pair that was learnt first, wherever it stands in the pre-token.",
    "Where two special tokens begin at one place, the longer one wins.",
)
def test_bpe_encode(submission, reference, rng):
    """Ids equal those of the merges replayed in the order learnt, with special tokens, for any text."""
    counts, merges = natural(reference, 40)
    texts = [
        *HARD,
        *BETWEEN,
        *("".join(rng.choice([*HARD, *BETWEEN, "the", " and"], size=4)) for _ in range(12)),
        *sample()[12:14],
    ]
    ids, _ = submission.run(encoded, counts, 299, SPECIALS, texts)
    judge_ids(ids, texts, lambda text: reference.bpe_encode(text, merges, SPECIALS))
    (counts, size, _), merges = bpe_case(rng, reference, "abc", 12, [])
    texts = words_over(rng, "abc", 40, 12)
    ids, _ = submission.run(encoded, counts, size, [], texts)
    judge_ids(ids, texts, lambda text: reference.bpe_encode(text, merges))


def judge_ids(got, texts, want_of):
    for text, found in zip(texts, got, strict=True):
        want = want_of(text)
        check(found == want, f"The ids of {text!r}", got=found, want=want)


@task(3)
@points(3)
@hint("One character may be cut into several ids: join all bytes first, decode once, with errors='replace'.")
def test_bpe_decode(submission, reference, rng):
    """Decoding gives every text back; bytes that are no UTF-8 become U+FFFD."""
    counts, _ = natural(reference, 20)
    points_ = rng.integers(1, 0x2FFF, size=(12, 8))
    texts = [*HARD, *BETWEEN, *("".join(map(chr, row)) for row in points_)]
    _, back = submission.run(encoded, counts, 279, SPECIALS, texts)
    for text, got in zip(texts, back, strict=True):
        check(got == text, f"decode(encode({text!r}))", got=got, want=text)
    broken = [[0xE4, 0xBB], [65, 0xFF, 66], [0x80], [0xF0, 0x9F, 0x99, 0x82, 0xF0], []]
    for ids, got in zip(broken, submission.run(decoded, counts, 276, broken), strict=True):
        want = bytes(ids).decode("utf-8", errors="replace")
        check(got == want, f"The text of the ids {ids}", got=got, want=want)


# --- task 4 -----------------------------------------------------------------------------------------------------------


@task(4)
@points(8)
@hint(
    "Each round counts symbols and pairs anew in the words as they are now, weighted by the words' counts.",
    "Scores tie often: compare (score, n_ab) exactly, then take the smaller pair. pair_score gives a Fraction.",
)
def test_wordpiece_training(submission, reference, rng):
    """The vocabulary is [UNK], the sorted alphabet, and the merges of the largest n_ab / (n_a n_b), in order."""
    for n_ab, n_a, n_b in ((3, 7, 9), (1, 10**12 + 1, 3), (2, 4, 6)):
        got = submission.pair_score(n_ab, n_a, n_b)
        check(got * (n_a * n_b) == n_ab, f"pair_score{n_ab, n_a, n_b} is not exact.", got=got)
    cases = [
        (table(rng, ["ab", "abc", "abcé"][i % 3]), int(rng.integers(10, 30)), ["[UNK]", "<unk>"][i % 2])
        for i in range(9)
    ]
    small = {"aaaa": 3, "ab": 1}
    cases += [({**word_counts(), "a": 5}, 60, "[UNK]"), (small, 2, "[UNK]"), (small, 500, "[UNK]"), ({}, 5, "[UNK]")]
    cases.append(({"cd": 1, "ab": 1}, 6, "[UNK]"))  # equal scores and counts
    for (counts, size, unk), got in zip(cases, submission.run(wordpieces, cases), strict=True):
        want = reference.wordpiece_vocab(counts, size, unk)
        check(got == want, f"The vocabulary of {dict(list(counts.items())[:20])}, size {size}", got=got, want=want)


@task(4)
@points(5)
@hint(
    "Take the longest piece that matches and never go back; pieces after the first carry ##.",
    "If any part has no piece, the answer is [UNK] alone, for the whole word.",
)
def test_wordpiece_encoding(submission, reference, rng):
    """A word is cut greedily, the longest match first; one with an unknown part or too many characters is [UNK]."""
    vocab = reference.wordpiece_vocab(table(rng, "abc", words=20), 25)
    words = [*words_over(rng, "abc", 30, 10), "abz", "zab", "azb", "z", "a" * 100, "b" * 101, "é"]
    hand = {"[UNK]": 0, "un": 1, "##aff": 2, "##able": 3, "##a": 4, "unaf": 5, "a": 6, "##f": 7, "ab": 8, "##bc": 9}
    by_hand = ["unaffable", "unaff", "unaffa", "abc", "una", "a##f", "able"]
    for names, tested, options in ((vocab, words, {}), (vocab, words, {"max_chars": 5}), (hand, by_hand, {})):
        for word, got in zip(tested, submission.run(wordpieced, names, tested, options), strict=True):
            want = reference.wordpiece_encode(word, names, **options)
            check(got == want, f"The pieces of {word!r} {options}", got=got, want=want)


# --- task 5 -----------------------------------------------------------------------------------------------------------


@task(5)
@points(9)
@hint(
    "best[end] is the maximum over starts of best[start] + logp[piece]; remember the start; walk back from the end.",
    "Go through the starts in ascending order and replace the best by a larger score only: so ties keep the earlier.",
)
def test_viterbi(submission, reference, rng):
    """The best segmentation and its score are those of all segmentations, ties, limits and `skip` included."""
    cases, exact = [], []
    for i in range(24):
        whole = i % 2 == 0
        logp = pieces_over(
            rng,
            "abc",
            12,
            4,
            (lambda: -float(rng.integers(1, 5))) if whole else (lambda: -float(rng.exponential()) - 0.1),
        )
        if i % 6 == 3:
            del logp["b"]
        skip = str(rng.choice(list(logp))) if i % 3 == 0 else None
        for word in words_over(rng, "abc", 3, 9):
            cases.append((word, logp, int(rng.integers(1, 5)), skip))
            exact.append(whole)
    cases += [("", {"a": -1.0}, 3, None), ("ab", {"ab": -2000.0}, 2, None), ("ab", {"a": -1.0}, 2, None)]
    exact += [True] * 3
    for (word, logp, most, skip), whole, (pieces, score) in zip(
        cases, exact, submission.run(paths, cases), strict=True
    ):
        want, best = reference.best_segmentation(word, logp, most, skip) if word else ([], 0.0)
        shown = f"{word!r} with {logp}, max_piece {most}, skip {skip!r}"
        check((pieces is None) == (want is None), f"Whether there is a segmentation of {shown}", got=pieces, want=want)
        if want is None:
            check(score == -math.inf, f"The score of no segmentation: {shown}", got=score, want=-math.inf)
            continue
        same(score, best, atol=1e-9, rtol=0.0, what=f"the score of {shown}")
        # Two orders of the same pieces have equal scores but for rounding: paths are compared where sums are exact.
        fits = "".join(pieces) == word and all(p in logp and len(p) <= most and p != skip for p in pieces)
        check(fits, f"The path is no segmentation of {shown}", got=pieces)
        same(float(sum(logp[p] for p in pieces)), best, atol=1e-9, rtol=0.0, what=f"the sum along the path of {shown}")
        check(pieces == want or not whole, f"The path of {shown}", got=pieces, want=want)


@task(5)
@points(1)
@hint("encode_word is viterbi; where that gives None, raise ValueError with the word.")
def test_unknown_character(submission):
    """A word without a segmentation is a ValueError that names it."""
    model = submission.UnigramModel({"a": -1.0, "b": -1.0, "ab": -1.5}, 2, [])
    check(list(model.encode_word("aab")) == ["a", "ab"], "aab is a, ab.")
    with expect_error(ValueError, "'axb'"):
        model.encode_word("axb")


# --- task 6 -----------------------------------------------------------------------------------------------------------


@task(6)
@points(8)
@hint(
    "An occurrence s:e counts with probability exp(α(s) + logp + β(e) - log Z); a piece may occur several times.",
    "Add in logs: log Σ exp(x) = m + log Σ exp(x - m) with m the largest x. exp(-800) is 0.",
)
def test_forward_backward(submission, reference, rng):
    """Likelihood and expected counts equal sums over all segmentations, also for tiny probabilities."""
    cases = []
    for i in range(12):
        low = [0.1, 300.0][i % 2]
        logp = pieces_over(rng, "abc", 12, 4, lambda low=low: -low - float(rng.exponential()))
        if i % 4 == 3:
            del logp["c"]
        cases += [(word, logp, int(rng.integers(2, 5))) for word in words_over(rng, "abc", 3, 9)]
    cases += [
        ("abab", {"a": -700.0, "b": -700.0, "ab": -1400.5}, 3),
        ("ab", {"a": -1.0}, 2),
        ("aab", {"aab": -3.0, "a": -1.0}, 3),
    ]
    for case, (log_z, expected) in zip(cases, submission.run(expectations, cases), strict=True):
        want_z, want = reference.forward_backward(*case)
        shown = f"{case[0]!r} with {case[1]}, max_piece {case[2]}"
        if want_z == -math.inf:
            check(log_z == -math.inf and not expected, f"No segmentation of {shown}", got=(log_z, expected))
            continue
        check(math.isfinite(log_z), f"log Z of {shown}", got=log_z, want=want_z)
        same(log_z, want_z, atol=1e-9, rtol=1e-12, what=f"log Z of {shown}")
        for piece in {*want, *expected}:
            same(
                expected.get(piece, 0.0),
                want.get(piece, 0.0),
                atol=1e-9,
                rtol=0.0,
                what=f"expected count of {piece!r}, {shown}",
            )


@task(6)
@points(5)
@hint(
    "The likelihood that is returned belongs to the logp that came in, weighted by the words' counts.",
    "First the floor for single characters and the drop of the others at 1e-12, then divide by what is left in all.",
)
def test_em_step(submission, reference, rng):
    """EM steps equal sums over all segmentations, sum to 1, never lose likelihood, and keep each character."""
    counts = table(rng, "abc", words=10, longest=8)
    logp = pieces_over(rng, "abcx", 14, 4, lambda: -1.0 - float(rng.exponential()))
    total = math.log(sum(map(math.exp, logp.values())))
    logp = {p: x - total for p, x in logp.items()}
    before, last, sizes = logp, -math.inf, set(logp)
    for likelihood, new in submission.run(em_steps, counts, logp, 4, 5):
        want_likelihood, want = reference.em_step(counts, before, 4)
        same(likelihood, want_likelihood, atol=1e-9, rtol=1e-10, what="log-likelihood under the old logp")
        check(set(new) == set(want), "Which pieces are left", got=sorted(new), want=sorted(want))
        for piece, x in want.items():
            same(new[piece], x, atol=1e-7, rtol=0.0, what=f"the new logp of {piece!r}")
        same(math.fsum(map(math.exp, new.values())), 1.0, atol=1e-11, rtol=0.0, what="the sum of the probabilities")
        # "x" occurs in no word: its floor of 1e-12 is lost to the likelihood; pieces that go change the vocabulary.
        if set(new) == sizes:
            check(likelihood >= last - 1e-9 * abs(last), "The likelihood fell.", got=likelihood, want=last)
        before, last, sizes = new, likelihood, set(new)
    # ab competes with a b, which has 1/4: its expected count is `share` floors.
    for share in (0.5, 1.5):
        logp = {"a": math.log(0.5), "b": math.log(0.5), "ab": math.log(share * 0.25e-12)}
        ((_, new),) = submission.run(em_steps, {"ab": 1}, logp, 2, 1)
        check(("ab" in new) == (share > 1), f"A piece with an expected count of {share}e-12", got=sorted(new))


# --- task 7 -----------------------------------------------------------------------------------------------------------


@task(7)
@points(4)
@hint(
    "The loss is what the Viterbi score of the corpus loses: uses · (logp - best score of the piece without itself).",
    "Single characters stay whatever they cost; `keep` counts them too.",
)
def test_prune(submission, reference, rng):
    """Pruning keeps the characters and the pieces whose removal costs the most, with their values unchanged."""
    cases, wants = [], []
    while len(cases) < 10:
        counts = {
            word: n * 100 + int(rng.integers(1, 99)) for word, n in table(rng, "abc", words=10, longest=8).items()
        }
        logp = pieces_over(rng, "abc", 14, 4, lambda: -1.0 - float(rng.exponential()))
        keep = int(rng.integers(4, 13))
        want, gap = reference.prune(counts, logp, keep, 4)
        if gap > 1e-6:
            cases.append((counts, logp, keep, 4))
            wants.append(want)
    for keep in (2, 0, 40):
        cases.append((*cases[0][:2], keep, 4))
        wants.append(reference.prune(*cases[-1])[0])
    # Nobody uses aa and zz: their loss is 0, though zz cannot be written in any other way. That of ab is 1/2.
    unused = {"zz": -2.0, "a": -1.0, "b": -1.0, "aa": -3.0, "ab": -1.5}
    for keep in (3, 4):
        cases.append(({"ab": 1}, unused, keep, 2))
        wants.append(reference.prune(*cases[-1])[0])
    for (counts, logp, keep, _), want, got in zip(cases, wants, submission.run(pruned, cases), strict=True):
        check(set(got) == set(want), f"Which {keep} of {logp} stay", got=sorted(got), want=sorted(want))
        check(got == want, "The log-probabilities of what stays are those of before.", got=got, want=want)


@task(7)
@points(4)
@hint(
    "Seeds: every position counts, weighted by the word; of the longer substrings the largest frequency · length.",
    "history gets (number of pieces, log-likelihood) of the logp that goes into each EM step.",
)
def test_train_unigram(submission, reference, rng):
    """Training equals the rules on all segmentations: pieces, probabilities, the history, and the errors."""
    cases, wants = [], []
    while len(cases) < 3:
        counts = {
            word: n * 1000 + int(rng.integers(1, 999)) for word, n in table(rng, "abc", words=20, longest=6).items()
        }
        size = int(rng.integers(5, 14))
        options = {
            "seed_size": int(rng.integers(16, 32)),
            "max_piece": 3 + len(cases) % 2,
            "em_iters": 1 + len(cases) % 2,
            "shrink": 0.6,
        }
        logp, history, gap = reference.train_unigram(counts, size, **options)
        if gap > 1e-6:
            cases.append((counts, size, options))
            wants.append((logp, history, options["max_piece"]))
    # Few pieces occur twice; no more seeds than characters; a vocabulary of the characters alone.
    for case in (
        ({"abcab": 1, "xyz": 1}, 7, {"max_piece": 3}),
        ({"ab": 2}, 40, {}),
        ({"abcabc": 2, "cab": 1}, 40, {"seed_size": 2}),
        ({"ababab": 700, "abc": 523}, 3, {"max_piece": 2}),
    ):
        cases.append(case)
        wants.append((*reference.train_unigram(*case[:2], **case[2])[:2], case[2].get("max_piece", 6)))
    for (counts, size, options), (logp, history, most), got in zip(
        cases, wants, submission.run(unigrams, cases), strict=True
    ):
        shown = f"{counts}, vocab_size {size}, {options}"
        check(set(got[0]) == set(logp), f"The pieces of {shown}", got=sorted(got[0]), want=sorted(logp))
        for piece, x in logp.items():
            same(got[0][piece], x, atol=1e-7, rtol=0.0, what=f"logp of {piece!r} for {shown}")
        check(
            [n for n, _ in got[1]] == [n for n, _ in history],
            f"Pieces before each EM step of {shown}",
            got=got[1],
            want=history,
        )
        same([x for _, x in got[1]], [x for _, x in history], atol=1e-7, rtol=1e-10, what=f"log-likelihoods of {shown}")
        check(got[2] == most, "max_piece of the model", got=got[2], want=most)
    with expect_error(ValueError):
        submission.train_unigram({"abc": 3}, 2)


# --- task 9 -----------------------------------------------------------------------------------------------------------


@task(9)
@points(3)
@hint(
    "Keep the end of the text: the last two pre-tokens, and what could be the beginning of a special token.",
    "A special token ends the text before it: that part is final and may be encoded whole.",
)
def test_encode_iterable(submission, reference, rng):
    """However a text is cut into chunks, the ids are those of the whole text, and they come while it is read."""
    # Contractions and runs of spaces are merged, or it would not show where they are cut.
    counts = [*natural(reference, 0)[0], [b"'ll", 900], [b"'ve", 800], [b"   ", 700], [b" \n", 600]]
    merges = reference.bpe_merges(dict(map(tuple, counts)), 40)
    specials = ["<|a|>", "<|ab|>", "ab|", "zz<", "[end of text]"]
    parts = [
        "<|a|>",
        "<|",
        "ab",
        "|>",
        " ",
        "  ",
        "'",
        "l",
        "ll",
        "\n",
        "zz",
        "z",
        "<",
        "é",
        "1",
        " the",
        "ve",
        "'r",
        "e",
    ]
    cuts = [[], [""], ["'l", "l"], ["x <|a", "b|>"], ["<|", "", "a|>", " "], ["a  ", " b"], ["a\n", " \n", "b"]]
    cuts += [["x <|ab|", ">"], ["[end of text", "]"]]  # all but the last character of a special token
    for _ in range(60):
        text = "".join(rng.choice(parts, size=rng.integers(1, 14)))
        borders = sorted({0, len(text), *(int(x) for x in rng.integers(0, len(text) + 1, size=rng.integers(1, 8)))})
        cuts.append([text[i:j] for i, j in pairwise(borders)])
    for chunks, got in zip(cuts, submission.run(streamed, counts, 296 + len(specials), specials, cuts), strict=True):
        want = reference.bpe_encode("".join(chunks), merges, specials)
        check(got == want, f"The ids of the chunks {chunks}", got=got, want=want)
    words = [f" w{i % 7}" for i in range(40)]
    words[10:13], words[20:22] = ["[end of text]", "<e>", " the<e>"], [" a b c[", "end of text]"]
    specials = [specials[-1], "<e>"]
    found = submission.run(laziness, counts, 298, specials, words)
    want = reference.bpe_encode("".join(words), merges, specials)
    check([i for i, _ in found] == want, "The ids of 40 chunks", got=[i for i, _ in found], want=want)
    read = ["".join(words[: n + 1]) for n in range(len(words))]
    due = [len(reference.bpe_encode(settled(reference, text, specials), merges, specials)) for text in read]
    late = [n for n, least in enumerate(due, 1) if sum(taken <= n for _, taken in found) < least]
    check(not late, "More is held back than the last two pre-tokens and what could begin a special token.",
          got=f"after {late[:5]} of {len(words)} chunks")  # fmt: skip
    (plain,) = submission.run(streamed, counts, 296, [], [words])
    want = reference.bpe_encode("".join(words), merges)
    check(plain == want, "The ids where there are no special tokens", got=plain, want=want)


def settled(reference, text, specials):
    """A text without what may be held back of it: after the last special token two pre-tokens, and a beginning of one."""
    special, rest = reference.parts(text, specials)[-1]
    if special:
        return text
    begun = next((i for i in range(len(rest)) if any(s.startswith(rest[i:]) for s in specials)), len(rest))
    held = "".join(regex.findall(reference.PAT, rest[:begun])[-2:]) + rest[begun:]
    return text[: len(text) - len(held)]


# --- task 10 ----------------------------------------------------------------------------------------------------------


@task(10)
@points(4)
@hint(
    "Spell each byte with bytes_to_unicode(): a space is Ġ. Special tokens go to `added` with their ids.",
    "The ids of a Unigram file are the places in its list; for WordPiece the vocabulary is written as it is.",
)
def test_export_loads(submission, reference, rng):
    """The three exported files load in Hugging Face tokenizers and give the ids of the models."""
    from tokenizers import Tokenizer

    counts, merges = natural(reference, 40)
    texts = [*HARD, *BETWEEN, *sample()[12:15]]
    text, ids = submission.run(exported, "bpe", (counts, 299, SPECIALS), texts)
    numbered = sorted(json.loads(text)["model"]["vocab"].values())
    check(numbered == list(range(296)), "The vocabulary of the file holds bytes and merges alone.", got=numbered)
    loaded = Tokenizer.from_str(text)
    for source, found in zip(texts, ids, strict=True):
        want = reference.bpe_encode(source, merges, SPECIALS)
        got = loaded.encode(source).ids
        check(found == got == want, f"The ids that the file gives for {source!r}", got=got, want=want)
        back = loaded.decode(want, skip_special_tokens=False)
        check(back == source, f"What the file decodes for {source!r}", got=back, want=source)
    words = words_over(rng, "abc", 40, 10)
    learnt, odd = table(rng, "abc"), ["abz", "a" * 100, "a" * 101]
    text, found = submission.run(exported, "wordpiece", (learnt, 20), [*words, *odd])
    loaded, vocab = Tokenizer.from_str(text), reference.wordpiece_vocab(learnt, 20)
    for word, pieces in zip([*words, *odd], found, strict=True):
        got, want = loaded.encode(word), reference.wordpiece_encode(word, vocab)
        check(pieces == got.tokens == want, f"The WordPiece tokens of {word!r}", got=got.tokens, want=want)
        check(got.ids == [vocab[p] for p in want], f"The WordPiece ids of {word!r}", got=got.ids)
    both = loaded.encode(" ".join(words[:2])).tokens
    check(both == found[0] + found[1], "The WordPiece file splits at white space.", got=both, want=found[0] + found[1])
    known = {word: n * 1000 + int(rng.integers(1, 999)) for word, n in table(rng, "abc", words=10, longest=7).items()}
    words = list(known)
    text, found = submission.run(exported, "unigram", (known, 12), words)
    loaded, listed = Tokenizer.from_str(text), json.loads(text)["model"]["vocab"]
    scores = {piece: float(x) for piece, x in listed}
    for word, pieces in zip(words, found, strict=True):
        got = loaded.encode(word)
        check("".join(pieces) == word and set(pieces) <= set(scores), f"The pieces of {word!r}", got=pieces)
        # Segmentations may tie but for rounding.
        check("".join(got.tokens) == word, f"The Unigram tokens of {word!r}", got=got.tokens, want=pieces)
        same(
            *(math.fsum(scores[p] for p in x) for x in (got.tokens, pieces)),
            atol=1e-9,
            rtol=0.0,
            what=f"score of {word!r}",
        )
        check([listed[i][0] for i in got.ids] == got.tokens, f"The Unigram ids of {word!r}", got=got.ids)
    same(math.fsum(map(math.exp, scores.values())) <= 1.0 + 1e-9, True, dtype=None, what="probabilities in the file")
    pair = loaded.encode(f"{words[0]} {words[1]}").tokens
    check("".join(pair) == words[0] + words[1], "The Unigram file splits at white space.", got=pair)
