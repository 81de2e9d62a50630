"""Valid messages with bytes flipped, cut off, doubled and swapped: decoded to plain values or refused, never anything else.

Time is bounded by steps (interpreter events in the decoder), memory by tracemalloc, both in proportion to the message.
"""

from __future__ import annotations

import random
import sys
import tracemalloc

import numpy as np
import pytest
import torch

from llmkata.wire import UNTRUSTED, WireError, decode, encode

from .values import plain

MESSAGES = [bytes(encode(v)) for v in (
    None, [1, -2, 3.5, 1j, "text", b"bytes", True, ...], {"a": [1, 2], (1, "k"): {3, 4}, 2: frozenset({"x"})},
    {"value": (torch.arange(6.0).reshape(2, 3).t(), {"state": torch.ones(2, dtype=torch.bfloat16)}), "printed": "hello"},
    np.arange(12).reshape(3, 4)[::-1, ::2], np.broadcast_to(np.float32(1), (3, 2)), np.array(["ab", "c"]),
    torch.ones(2, 3).expand(4, 2, 3), torch.tensor(3), torch.empty(0, 3), torch.empty(2, 2, device="meta"),
    list(range(40)), [0.5] * 20, 2**200, slice(1, None, 2), [np.float16(1), torch.float32, np.dtype("<i2")],
    {"type": "ValueError", "bases": ["ValueError", "Exception"], "message": "no", "frames": [[3, "f", "return x"]]},
    [[[[[["deep"]]]]]], {i: str(i) for i in range(30)}, [np.bool_(True), torch.tensor([True, False])],
)]


def mutated(rng: random.Random, message: bytes) -> bytes:
    data = bytearray(message)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        how = rng.randrange(6)
        at = rng.randrange(len(data)) if data else 0
        if how == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1 and data:
            data[at] = rng.choice(b"\0\1\x7f\x80\xff" + b"NTFiIfcsbltSZdqrAXMGYJEPQDKRHBO")
        elif how == 2:
            del data[at:]
        elif how == 3:
            data[at:at] = data[at : at + rng.randrange(1, 20)]
        elif how == 4:
            del data[at : at + rng.randrange(1, 9)]
        elif data:
            other = rng.choice(MESSAGES)
            data[at:at] = other[: rng.randrange(len(other) + 1)]
    return bytes(data)


@pytest.mark.parametrize("seed", range(8))
def test_nothing_but_a_value_or_a_refusal(seed):
    rng, refused = random.Random(seed), 0
    for _ in range(1500):
        data = mutated(rng, rng.choice(MESSAGES))
        try:
            value = decode(data, limits=UNTRUSTED)
        except WireError as e:
            refused += 1
            assert str(e)
        else:
            assert plain(value), value
            repr(value)
    assert 300 < refused < 1500  # some mutations are harmless, most are not


def test_time_and_memory_follow_the_message():
    rng = random.Random(99)
    steps = 0

    def count(frame, event, arg):
        nonlocal steps
        steps += 1

    worst_steps = worst_memory = 0.0
    for _ in range(1500):
        data = mutated(rng, rng.choice(MESSAGES))
        steps = 0
        tracemalloc.start()
        sys.setprofile(count)
        try:
            value = decode(data, limits=UNTRUSTED)
            del value
        except WireError:
            pass
        finally:
            sys.setprofile(None)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        worst_steps = max(worst_steps, steps / (len(data) + 1))
        worst_memory = max(worst_memory, peak / (len(data) + 400))
    assert worst_steps < 100, "events per byte"
    assert worst_memory < 200, "bytes per byte"


def test_bytes_from_nowhere():
    rng = random.Random(5)
    for _ in range(3000):
        data = rng.randbytes(rng.randrange(60))
        try:
            assert plain(decode(data, limits=UNTRUSTED))
        except WireError:
            pass
