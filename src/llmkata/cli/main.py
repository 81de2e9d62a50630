"""The command line ``kata``: a module a command, thin; what a command needs is imported when it runs."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from typer.core import TyperGroup

from llmkata.cli.adjust import adjust
from llmkata.cli.audit import audit
from llmkata.cli.bench import bench
from llmkata.cli.check import check
from llmkata.cli.ci import ci
from llmkata.cli.cluster import cluster
from llmkata.cli.collect import collect
from llmkata.cli.common import UNUSABLE, UsageFault, prog
from llmkata.cli.demo import demo
from llmkata.cli.export import export
from llmkata.cli.forget import forget
from llmkata.cli.freeze import freeze, release_grades
from llmkata.cli.grade import grade
from llmkata.cli.hint import hint
from llmkata.cli.lint import lint
from llmkata.cli.list import list_exercises
from llmkata.cli.log import log, undo
from llmkata.cli.merge import merge
from llmkata.cli.new import new
from llmkata.cli.next import next_step, open_exercise
from llmkata.cli.notebook import notebook
from llmkata.cli.regrade import regrade
from llmkata.cli.release import release
from llmkata.cli.remark import comment, rubric
from llmkata.cli.replay import replay
from llmkata.cli.report import report
from llmkata.cli.reset import give_up, reset
from llmkata.cli.scorecard import scorecard
from llmkata.cli.signed import verify
from llmkata.cli.start import start
from llmkata.cli.sync import sync
from llmkata.cli.version import version
from llmkata.cli.void import void
from llmkata.cli.watch import watch
from llmkata.cli.whois import whois
from llmkata.cli.workflow import workflow
from llmkata.threads import one_thread


class Sections(TyperGroup):
    """Help that lists commands by whom they are for (the ``rich_help_panel`` of each)."""

    def format_commands(self, ctx, formatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            rows = sections.setdefault(str(command.rich_help_panel), [])
            rows.append((name, command.get_short_help_str(limit=500)))
        width = max(len(name) for name in self.commands)
        for title, rows in sections.items():
            with formatter.section(title):
                # Equal first columns: the sections read as one table.
                formatter.write_dl([(name.ljust(width), text) for name, text in rows])


app = typer.Typer(
    name="kata", cls=Sections, rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False,
    suggest_commands=False,  # click does it already
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="Large language models, learned by making tests pass. Exit status: 0 done, all passed; 1 something failed; "
    "2 wrong usage, or it could not be judged.",
    epilog="EXERCISE is a name (module2/self_attention, self_attention), a number (2.1) or a path. "
    "From a clone, './kata test' runs the project's own tests.",
)  # fmt: skip


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    course: Annotated[Path | None, typer.Option(help="Folder of another course.", metavar="PATH")] = None,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    bundle: Annotated[bool, typer.Option("--bundle", help="Write it to kata-doctor.zip, to go with a report.")] = False,
) -> None:
    """Say what this machine offers: Python, libraries, sandbox layers, and how to get what is missing.

    Exit status: 0 everything is there; 1 something is missing.
    """
    from llmkata.cli.doctor import doctor as diagnose

    raise typer.Exit(diagnose(json=as_json, bundle=bundle))


for _section, _commands in {
    "Learn": {
        "start": start, "list": list_exercises, "next": next_step, "open": open_exercise, "watch": watch, "check": check,
        "hint": hint, "replay": replay, "reset": reset, "give-up": give_up, "scorecard": scorecard,
        "notebook": notebook,
    },
    "Grade": {
        "grade": grade, "regrade": regrade, "merge": merge, "cluster": cluster, "report": report, "export": export,
        "demo": demo, "ci": ci, "verify": verify, "collect": collect, "workflow": workflow, "forget": forget,
        "whois": whois,
    },
    "Change by hand": {
        "adjust": adjust, "comment": comment, "rubric": rubric, "void": void, "undo": undo, "freeze": freeze,
        "release-grades": release_grades, "log": log,
    },
    "Write exercises": {"new": new, "sync": sync, "lint": lint, "audit": audit, "release": release},
    "This installation": {"doctor": doctor, "version": version, "bench": bench},
}.items():
    for _name, _function in _commands.items():
        app.command(_name, rich_help_panel=_section)(_function)


def main() -> None:
    """Entry point. Faults that the person can mend come as a message and the next command, without a traceback."""
    # typer converts arguments with pydantic, which would look for plugins in every installed package first.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    one_thread()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal that cannot show a sign shows "?"
    from llmkata.course import CourseError

    try:
        app(prog_name=prog())
    except BrokenPipeError:
        # The reader (head, less) has left; keep the interpreter from complaining when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(UNUSABLE)
    except UsageFault as fault:
        _stop(str(fault), fault.step)
    except CourseError as error:
        _stop(str(error))
    except ModuleNotFoundError as error:
        _stop(f"a module is missing: {error.name}", f"{prog()} doctor")
    except Exception:  # noqa: BLE001 - the last resort: status 1 would read as "a check failed"
        traceback.print_exc()
        _stop("this is a fault of the program, not of your work; please report the lines above")


def _stop(message: str, step: str = "") -> NoReturn:
    print(f"kata: {message}" + (f"\nNext: {step}" if step else ""), file=sys.stderr)
    sys.exit(UNUSABLE)


if __name__ == "__main__":
    main()
