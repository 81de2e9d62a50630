"""What every fourth submission of the benchmark does."""

# ruff: noqa: F821 (names of the model answer)

from llmkata.checks import misconception


@misconception(
    "scale_by_d",
    replaces="attention",
    caught_by="test_output",
    feedback="This is what you get by dividing by d rather than sqrt(d).",
)
def attention(q, k, v, causal=False):
    return original(q / math.sqrt(q.shape[-1]), k, v, causal)
