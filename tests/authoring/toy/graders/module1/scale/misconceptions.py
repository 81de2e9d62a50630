"""Known mistakes."""

# ruff: noqa: F811 (functions of one name)

from llmkata.checks import misconception


@misconception("wrong_axis", replaces="softmax", caught_by="test_softmax_matches",
               feedback="Your softmax runs over the first dimension.")
def softmax(x):
    if x.dim() == 0:
        raise ValueError("softmax needs a dimension, not shape ()")
    return x.softmax(0)


@misconception("unshifted", replaces="softmax", caught_by="test_large_numbers",
               feedback="Without subtracting the maximum, exp overflows.")
def softmax(x):
    if x.dim() == 0:
        raise ValueError("softmax needs a dimension, not shape ()")
    e = x.exp()
    return e / e.sum(-1, keepdim=True)


@misconception("product_twice", replaces="mix", caught_by="test_mix_flops", matches="flops",
               feedback="The product is computed twice.")
def mix(scores, values):
    return (softmax(scores) @ values + softmax(scores) @ values) / 2
