"""``kata version``."""

from __future__ import annotations

import typer


def version() -> None:
    """Print the versions of llmkata, Python and the libraries that verdicts hang on."""
    import platform
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    typer.echo(f"llmkata {installed('llmkata')}")
    typer.echo(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for library in ("torch", "numpy", "transformers", "hypothesis", "pytest"):
        try:
            typer.echo(f"{library} {installed(library)}")
        except PackageNotFoundError:
            typer.echo(f"{library} is not installed")
