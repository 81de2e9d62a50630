"""What crosses the boundary between trusted and untrusted processes: frames, value tags, limits. Nothing else does."""

from .decode import Decoder, Hooks, decode
from .encode import Encoder, encode
from .frames import Channel, Closed, Kind, Late, Until
from .limits import TRUSTED, UNTRUSTED, Limits, WireError

__all__ = [
    "TRUSTED", "UNTRUSTED", "Channel", "Closed", "Decoder", "Encoder", "Hooks", "Kind", "Late", "Limits", "Until", "WireError",
    "decode", "encode",
]
