"""What may not be called: the finished attentions of PyTorch."""

from llmkata.checks import Forbid

_FUSED = "{name} is what you are building: write the projections, scores, softmax and weighted sum of the heads yourself."

FORBID = Forbid(
    functions={
        name: _FUSED.format(name=name.rpartition(".")[2])
        for name in (
            "torch.nn.MultiheadAttention",
            "torch.nn.functional.multi_head_attention_forward",
            "torch.nn.functional.scaled_dot_product_attention",
            "torch.nn.attention.flex_attention.flex_attention",
            # The inference paths of nn.MultiheadAttention and nn.TransformerEncoderLayer.
            "torch._native_multi_head_attention",
            "torch._transformer_encoder_layer_fwd",
        )
    },
)
