"""Budgets of 1.1 tokenization_exploration: calls of callables handed in, and interpreter steps.

A step is one bytecode instruction in a frame of the submission's file; it is used for a growth exponent only.
"""

from llmkata.checks import check, hint, needs, points, probe, task


def ranks_by_length():
    """Every pair of symbols that together are at most 12 long has a rank that depends on their text alone."""

    def rank(a, b):
        size = len(a) + len(b)
        return None if size > 12 else size * 1000 + sum(ord(c) * (i + 1) for i, c in enumerate(a + b)) % 997

    return rank


def word(rng, n):
    return [str(c) for c in rng.choice(list("abcdefgh"), size=n)]


@task(6)
@points(14)
@needs("test_bpe_rank_not_position")
@hint(
    "A merge changes two pairs only: the one on its left and the one on its right. Ask for the ranks of these two.",
    "Keep the ranked pairs in a heap and the symbols in a linked list; entries whose symbols changed are skipped.",
)
def test_rank_lookups(submission, budget, reference, rng):
    """Encoding n symbols asks for at most 4 n ranks."""
    n = 256
    # n - 1 at the start and at most 2 for each of at most n - 1 merges: 3 (n - 1) = 765; the limit is 4 · 256 = 1024.
    # Asking for all pairs again after each merge: about n · n / 2 = 32 768.
    rank, calls = ranks_by_length(), 0

    def require():
        budget.require(
            "rank look-ups", calls, at_most=4 * n, at_least=n - 1, reference=3 * (n - 1), unit="calls", trust="handed in"
        )

    def counted(a, b):
        nonlocal calls
        calls += 1
        if calls > 8 * n:
            require()  # there is nothing left to learn, and each call costs a trip between two processes
        return rank(a, b)

    symbols = word(rng, n)
    got = submission.bpe_encode(symbols, counted)
    check("".join(got) == "".join(symbols), "The pieces do not spell the word.", got=got)
    require()


@task(6)
@points(10)
@needs("test_bpe_rank_not_position")
@hint(
    "Looking for the best pair by a scan costs n steps for each merge, and so does deleting from a list.",
    "heapq finds the best pair in log n; arrays `left` and `right` unlink a symbol in two assignments.",
)
def test_encode_steps(submission, budget, rng):
    """Interpreter steps of encoding grow hardly faster than the length: exponent at most 1.25."""
    # Heap and linked list: about 1.0 (log n hides in heapq, which is C). A scan for each merge: about 1.9.
    sizes, values = (32, 64, 128), []
    rank = ranks_by_length()
    for n in sizes:
        symbols = word(rng, n)
        values.append(budget.steps(lambda s, symbols=symbols: s.bpe_encode(symbols, rank)))
    budget.growth("steps of bpe_encode", sizes, values, exponent_at_most=1.25, unit="steps")


@probe
def compare_with(module, train, test, names, cut):
    def tokenizer(name):
        return lambda text: [module.Token(text[i:j], i, j) for i, j in cut(name, text)]

    module.compare(train, test, {name: tokenizer(name) for name in names})
    return True


@task(5)
@points(4)
@needs("test_compare")
@hint("Tokenize each text once, keep the tokens, and compute every figure from what you kept.")
def test_tokenizer_calls(submission, budget, rng):
    """Comparing calls each tokenizer exactly once per text."""
    train, test, names = [f"train {i} text" for i in range(5)], ["a test", "another one", "a third"], ["u", "v", "w"]
    calls = []

    def cut(name, text):
        calls.append((name, text))
        return [[i, i + 1] for i, c in enumerate(text) if c != " "]

    submission.run(compare_with, train, test, names, cut)
    # 3 tokenizers · (5 + 3) texts = 24 calls; one pass a figure makes 3 to 5 times as many.
    budget.require(
        "tokenizer calls", len(calls), at_most=24, at_least=24, reference=24, unit="calls", trust="handed in"
    )
