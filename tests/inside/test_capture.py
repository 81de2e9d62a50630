"""Prints: kept up to a cap, with a mark where they were cut."""

from __future__ import annotations

import contextlib

from llmkata.inside.capture import Capture


def test_kept_and_taken():
    c = Capture()
    with contextlib.redirect_stdout(c):
        print("one", 2)
    assert c.take() == "one 2\n" and c.take() == ""


def test_the_cap():
    c = Capture(cap=10)
    assert c.write("12345678") == 8 and c.write("90abc") == 5 and c.write("def") == 3
    assert c.take() == "1234567890\n[... 6 more characters were printed and are not kept]"
    c.write("fresh")
    assert c.take() == "fresh"


def test_a_flood_costs_no_memory():
    c = Capture(cap=100)
    for _ in range(10_000):
        c.write("x" * 1000)
    text = c.take()
    assert len(text) < 200 and "9999900 more characters" in text


def test_it_is_a_stream():
    c = Capture()
    assert c.writable() and not c.isatty() and not c.readable()
    c.writelines(["a", "b"])
    c.flush()
    assert c.take() == "ab"
