"""What may not be called: the finished norms of PyTorch."""

from llmkata.checks import Forbid

_FINISHED = "{name} is what you are building: write the mean, the root and the gain yourself."

FORBID = Forbid(
    functions={
        name: _FINISHED.format(name=name.rpartition(".")[2])
        for name in (
            "torch.nn.functional.layer_norm",
            "torch.nn.functional.rms_norm",
            "torch.nn.functional.batch_norm",
            "torch.nn.functional.group_norm",
        )
    },
)
