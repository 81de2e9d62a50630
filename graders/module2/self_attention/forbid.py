"""What may not be called: the finished attentions of PyTorch."""

from llmkata.checks import Forbid

_FUSED = "{name} is the attention you are building: write scores, softmax and weighted sum yourself."

FORBID = Forbid(
    functions={
        name: _FUSED.format(name=name.rpartition(".")[2])
        for name in (
            "torch.nn.functional.scaled_dot_product_attention",
            "torch.nn.functional.multi_head_attention_forward",
            "torch.nn.MultiheadAttention",
            "torch.nn.attention.flex_attention.flex_attention",
        )
    },
)
