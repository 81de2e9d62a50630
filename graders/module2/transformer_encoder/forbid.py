"""What may not be called: the finished encoders of PyTorch and transformers."""

from llmkata.checks import Forbid

_FUSED = "It is (a part of) the encoder you are building: write it from linear maps, attention and norms."

FORBID = Forbid(
    functions={
        name: _FUSED
        for name in (
            "torch.nn.functional.multi_head_attention_forward",
            "torch.nn.MultiheadAttention",
            "torch._native_multi_head_attention",
            "torch._transformer_encoder_layer_fwd",
        )
    },
    modules={"transformers": "Its models are what you are building; `load_bert` reads their files without them."},
)
