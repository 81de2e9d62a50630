"""What may not be used: packages that hold the answer."""

from llmkata.checks import Forbid

FORBID = Forbid(
    modules={
        name: "The algorithms are yours to write: no quantization package here."
        for name in ("auto_gptq", "gptqmodel", "awq", "bitsandbytes", "torchao", "optimum", "torch.ao.quantization")
    },
)
