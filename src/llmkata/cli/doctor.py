"""``kata doctor``: what this machine offers, and what to do about what is missing."""

from __future__ import annotations

import io
import json as jsonlib
import os
import platform
import sys
import zipfile
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

from llmkata.outside.host import LayerStatus, probe_host

_LIBRARIES = ("torch", "numpy", "transformers", "tokenizers", "safetensors", "scipy", "matplotlib", "hypothesis",
              "pytest")


def doctor(json: bool = False, bundle: bool = False) -> int:
    """Print Python, libraries and sandbox layers of this host; return 0 if every layer stands, else 1.

    ``bundle``: write them to ``kata-doctor.zip`` in the current folder, too.
    """
    libraries = {name: _version(name) for name in _LIBRARIES}
    layers = probe_host()
    host = {"python": platform.python_version(), "system": f"{platform.system()} {platform.release()}",
            "machine": platform.machine(), "libraries": libraries, "sandbox": [asdict(layer) for layer in layers]}
    if json:
        print(jsonlib.dumps(host, indent=2))
    else:
        _print(libraries, layers)
    if bundle:
        path = Path("kata-doctor.zip")
        path.write_bytes(_bundle(host))
        print(f"Written: {path} (no names of people, machines or folders, no variables). Read it, then attach it.",
              file=sys.stderr if json else sys.stdout)
    return 0 if all(layer.available for layer in layers) and all(libraries.values()) else 1


#: What decides which layers a kernel gives to whom. Values of settings, nothing that is the user's.
_KERNEL = ("/proc/sys/user/max_user_namespaces", "/proc/sys/kernel/unprivileged_userns_clone",
           "/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "/proc/sys/kernel/yama/ptrace_scope",
           "/proc/sys/kernel/seccomp/actions_avail", "/sys/kernel/security/lsm", "/proc/sys/vm/overcommit_memory")


def _bundle(host: dict) -> bytes:
    """A .zip of what a maintainer asks for first: the report, the kernel's settings, the packages that are installed."""
    kernel = {path: _first_line(path) for path in _KERNEL}
    kernel |= {"/proc/self/status": [line for line in _lines("/proc/self/status")
                                     if line.startswith(("Cap", "Seccomp", "NoNewPrivs", "Cpus_allowed_list"))],
               "root": hasattr(os, "geteuid") and os.geteuid() == 0, "cpus": os.cpu_count(),
               "container": [p for p in ("/.dockerenv", "/run/.containerenv") if os.path.exists(p)]}
    packages = sorted(f"{d.metadata['Name']}=={d.version}" for d in distributions() if d.metadata["Name"])
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in (("doctor.json", jsonlib.dumps(host, indent=2)), ("kernel.json", jsonlib.dumps(kernel, indent=2)),
                           ("packages.txt", "\n".join(packages))):
            file.writestr(name, text.replace(str(Path.home()), "~") + "\n")
    return out.getvalue()


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text("utf-8", "replace").splitlines()
    except OSError:
        return []


def _first_line(path: str) -> str | None:
    return next(iter(_lines(path)), None)


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
