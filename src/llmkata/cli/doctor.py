"""``kata doctor``: what this machine offers, and what to do about what is missing."""

from __future__ import annotations

import json as jsonlib
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

from llmkata.outside.host import LayerStatus, probe_host

_LIBRARIES = ("torch", "numpy", "transformers", "tokenizers", "safetensors", "scipy", "matplotlib", "hypothesis",
              "pytest")


def doctor(json: bool = False) -> int:
    """Print Python, libraries and sandbox layers of this host; return 0 if every layer stands, else 1."""
    libraries = {name: _version(name) for name in _LIBRARIES}
    layers = probe_host()
    if json:
        host = {"python": platform.python_version(), "system": f"{platform.system()} {platform.release()}",
                "machine": platform.machine(), "libraries": libraries, "sandbox": [asdict(layer) for layer in layers]}
        print(jsonlib.dumps(host, indent=2))
    else:
        _print(libraries, layers)
    return 0 if all(layer.available for layer in layers) and all(libraries.values()) else 1


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _print(libraries: dict[str, str | None], layers: list[LayerStatus]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    system = f"{platform.system()} {platform.release()} ({platform.machine()})"
    console.print(f"Python {platform.python_version()} on {system}")
    console.print(", ".join(f"{name} {number or '[bold]missing[/]'}" for name, number in libraries.items()) + "\n")
    table = Table(title="Sandbox", title_justify="left")
    for heading in ("Layer", "Stands", "What it stops"):
        table.add_column(heading, no_wrap=heading != "What it stops")
    for layer in layers:
        # The word carries the state; colour only repeats it.
        state = "[green]yes[/]" if layer.available else "[bold red]no[/]"
        table.add_row(escape(layer.name), state, escape(layer.stops))
    console.print(table)
    missing = [layer for layer in layers if not layer.available]
    for how in dict.fromkeys(layer.how_to_get for layer in missing):
        console.print(f"\nTo get it: {escape(how)}")
        for layer in missing:
            if layer.how_to_get == how:
                console.print(f"  {escape(layer.name)}: {escape(layer.why_missing)}")
    if missing:
        console.print(f"\n{len(missing)} of {len(layers)} do not stand. Below the course's configured minimum, hidden "
                      "grading starts only when told to: kata grade --isolation=process")
