"""What may not be used: the finished scaler and the finished autocast."""

from llmkata.checks import Forbid

_AUTOCAST = "torch's autocast casts below autograd, where nobody sees it: your Autocast is to do that, by the three tables."
_SCALER = "torch's GradScaler is what you are building: scale, flag, skip, grow and shrink are yours to write."

FORBID = Forbid(
    modules={
        "torch.amp": _SCALER,
        "torch.cuda.amp": _SCALER,
        "torch.cpu.amp": _SCALER,
        "torch.GradScaler": _SCALER,
        "torch.autocast": _AUTOCAST,
        "torch.set_autocast_enabled": _AUTOCAST,
        "torch._amp_update_scale_": _SCALER,
    }
)
