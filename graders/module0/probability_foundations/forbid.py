"""What may not be used: the functions that are the exercise, and packages that hold the answer."""

from llmkata.checks import Forbid

_LOG = "A stable log-softmax is what you write in task 1: subtract the largest logit, then the log of the sum."
_DRAW = "Samplers here are functions of the uniform numbers they are given: use inverse_cdf_sample."

FORBID = Forbid(
    functions={
        "torch.nn.functional.log_softmax": _LOG,
        "torch.log_softmax": _LOG,
        "torch.logsumexp": _LOG,
        "torch.multinomial": _DRAW,
    },
    modules={
        "torch.distributions": _DRAW,
        "transformers": "The filters are yours to write; transformers is reached through the given load_lm only.",
    },
    allow_in=("load_lm", "hf_lm"),
)
