"""What may not be imported: other people's pruning."""

from llmkata.checks import Forbid

FORBID = Forbid(
    modules={
        "torch.nn.utils.prune": "Ranking and masking are what you are writing; compare your masks with it in a script of "
        "your own.",
        "torch.ao.pruning": "Ranking and masking are what you are writing; compare your masks with it in a script of your "
        "own.",
    },
)
