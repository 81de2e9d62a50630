"""What may not be imported: finished trainers, and arrays that hide a recount in C."""

from llmkata.checks import Forbid

_TRAINER = "{} holds a finished trainer: the training is the exercise (only the given train_with_hf may use one)."
_ARRAYS = (
    "{} is not needed: the standard library and regex are enough, and a merge should touch few words, not all fast."
)

FORBID = Forbid(
    modules={
        **{n: _TRAINER.format(n) for n in ("tokenizers", "transformers", "sentencepiece", "tiktoken", "subword_nmt")},
        **{n: _ARRAYS.format(n) for n in ("numpy", "torch", "numba", "scipy", "sklearn")},
    },
    allow_in=("train_with_hf",),
)
