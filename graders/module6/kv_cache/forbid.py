"""What may not be used: other people's caches and generation loops, and a compiler that rewrites the program."""

from llmkata.checks import Forbid

FORBID = Forbid(
    modules={
        "torch.compile": "torch.compile rewrites the program that is counted here: leave the model as it is.",
        "transformers": "The cache, the attention and the generation loop are yours to write; transformers is reached "
        "only through the given adapter and loader."
    },
    allow_in=("transformers_cache", "load_llama_directory"),
)
