"""Mistakes of the toy exercise."""

# ruff: noqa: F811, F821 (functions of one name, names of the model answer)

from llmkata.checks import misconception


@misconception("wrong_axis", replaces="softmax", caught_by="test_softmax_sums_to_one",
               feedback="Your softmax runs over the first dimension.")
def softmax(x):
    if x.dim() == 0:
        raise ValueError("softmax needs a dimension, not shape ()")
    e = (x - x.amax(0, keepdim=True)).exp()
    return e / e.sum(0, keepdim=True)


@misconception("base_two", replaces="softmax", caught_by="test_softmax_matches",
               feedback="Your softmax raises 2, not e, to the scores.")
def softmax(x):
    e = 2 ** (x - x.amax(-1, keepdim=True))
    return e / e.sum(-1, keepdim=True)


@misconception("scaled_by_log_two", replaces="softmax", caught_by="test_softmax_matches", equivalent_to="base_two",
               feedback="Your softmax scales its scores by log 2.")
def softmax(x):
    return original(x * 0.6931471805599453)


@misconception("unshifted", replaces="softmax", caught_by="test_softmax_of_large_numbers",
               feedback="Without subtracting the maximum, exp overflows.")
def softmax(x):
    e = x.exp()
    return e / e.sum(-1, keepdim=True)


@misconception("off_by_eleven", replaces="magic", caught_by="test_magic", feedback="The constant 11 is missing.")
def magic(n):
    return 48271 * n % 2147483647


@misconception("eleven_too_late", replaces="magic", caught_by="test_magic", feedback="Nothing is added after the product.")
def magic(n):
    return (48271 * n) % 2147483647


@misconception("twice", replaces="project", caught_by="test_project_flops", matches="flops",
               feedback="The product is computed twice.")
def project(x, w):
    return (x @ w + x @ w) / 2
