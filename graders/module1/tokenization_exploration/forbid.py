"""What may not be imported: finished byte pair encoders."""

from llmkata.checks import Forbid

_BPE = "{} holds a finished byte pair encoder: learning and applying merges is the exercise."

FORBID = Forbid(
    modules={
        name: _BPE.format(name) for name in ("tokenizers", "transformers", "subword_nmt", "sentencepiece", "tiktoken")
    }
)
