"""What may not be imported: finished language identifiers, splitters and figures."""

from llmkata.checks import Forbid

_IDENTIFIER = "{} holds a finished classifier: counting n-grams and adding logarithms is the exercise."

FORBID = Forbid(
    modules={name: _IDENTIFIER.format(name) for name in ("sklearn", "langdetect", "langid", "fasttext", "nltk")}
    | {"transformers": "The tokenizers of this exercise are trained with the package tokenizers."}
)
