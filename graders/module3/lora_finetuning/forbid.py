"""What may not be imported: packages that hold the layer, the files or the metrics."""

from llmkata.checks import Forbid

_LORA = "{} holds a finished LoRA: the layer, its injection and its files are what you build here."

FORBID = Forbid(
    modules={name: _LORA.format(name) for name in ("peft", "trl", "loralib", "accelerate")}
    | {"sklearn": "Accuracy, macro-F1 and the confusion matrix are a few lines of counting: yours to write."}
)
