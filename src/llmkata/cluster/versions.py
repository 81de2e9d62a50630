"""What must agree between the machine that asks for grades and those that judge."""

from __future__ import annotations

import functools
import importlib.metadata
import re
import sys

from llmkata.grading.provenance import judging_hash


@functools.cache
def versions() -> dict[str, str]:
    """Of this process: the source of what judges, Python, and the libraries that llmkata depends on. Imports none of them."""
    found = {"llmkata": judging_hash(), "Python": f"{sys.version_info[0]}.{sys.version_info[1]}"}
    for requirement in importlib.metadata.requires("llmkata") or ():
        if "extra ==" not in requirement:
            name = re.match(r"[\w.-]+", requirement).group()
            try:
                # A build for other processors ("+cpu") computes the same.
                found[name] = importlib.metadata.version(name).partition("+")[0]
            except importlib.metadata.PackageNotFoundError:
                found[name] = "missing"
    return found


def differences(here: dict[str, str], there: dict[str, str]) -> list[str]:
    """``torch 2.12 there, 2.13 here`` for each that differs."""
    names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    return [f"{name} {there.get(name, 'missing')} there, {here.get(name, 'missing')} here" for name in names]
