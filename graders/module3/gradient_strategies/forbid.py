"""What may not be called: the clipping of PyTorch."""

from llmkata.checks import Forbid

_FINISHED = (
    "torch.nn.utils.{} is what you are building, and its norm overflows: write the norm and the factor yourself."
)

FORBID = Forbid(
    modules={
        f"torch.nn.utils.{name}": _FINISHED.format(name)
        for name in ("clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_", "get_total_norm")
    }
)
