"""The program: its commands, and how it ends."""

import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

import optd
from optd.ctl import output
from optd.ctl.commands import (
    algorithms,
    bench,
    changes,
    checkpoints,
    doctor,
    explain,
    group,
    groups,
    job,
    jobs,
    policy,
    rollback,
    server,
    watch,
    workers,
)
from optd.ctl.exits import INTERRUPTED, MEANINGS, BadUsage, Exit, UsageError, code_of, usage_line
from optd.ctl.invocation import command, with_settings
from optd.ctl.settings import Settings
from optd_wire.errors import OptdError

_EPILOG = "\n".join(
    [
        "Exit codes:",
        *[f"{code.value}  {meaning}" for code, meaning in MEANINGS.items()],
        "With -o json, standard output is one JSON document with the contract's field names (of watch, one a line).",
    ]
)
_COMMANDS: dict[str, Callable[..., None]] = {
    "status": server.status,
    "health": server.health,
    "jobs": jobs.jobs,
    "job": job.job,
    "groups": groups.groups,
    "group": group.group,
    "workers": workers.workers,
    "rejections": workers.rejections,
    "algorithms": algorithms.algorithms,
    "explain": explain.explain,
    "watch": watch.watch,
    "bench": bench.bench,
    "set": changes.set_options,
    "changes": changes.changes,
    "policy": policy.policy,
    "rollback": rollback.rollback,
    "delete": jobs.delete,
    "doctor": doctor.doctor,
}
_CHECKPOINT: dict[str, Callable[..., None]] = {
    "save": checkpoints.save,
    "ls": checkpoints.ls,
    "show": checkpoints.show,
    "verify": checkpoints.verify,
    "restore": checkpoints.restore,
    "export": checkpoints.export,
    "import": checkpoints.import_,
    "rm": checkpoints.rm,
}


def _print_version(wanted: bool) -> None:
    if wanted:
        output.write(f"optctl {optd.__version__}\n")
        raise typer.Exit


def _options_of_program(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None: ...


def _begin(context: typer.Context, settings: Settings, *, version: bool) -> None:
    context.obj = settings
    if context.invoked_subcommand is None:
        context.get_help()  # which prints it
        raise typer.Exit(Exit.USAGE)


def _build() -> typer.Typer:
    program = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    own = inspect.signature(_options_of_program, eval_str=True).parameters.values()
    begin = with_settings(_begin, own, "Look at an optd server, and change what it holds.")
    program.callback(invoke_without_command=True, epilog=_EPILOG)(begin)
    for name, function in _COMMANDS.items():
        program.command(name)(command(function))
    below = typer.Typer(help="Save jobs as files, and bring them back.", no_args_is_help=True)
    for name, function in _CHECKPOINT.items():
        below.command(name)(command(function))
    program.add_typer(below, name="checkpoint")
    return program


app = _build()


def run(arguments: Sequence[str]) -> int:
    """Runs one command line; returns the exit code. Prints an error as one line to standard error."""
    try:
        code = app(list(arguments), prog_name="optctl", standalone_mode=False)
    except SystemExit:
        return Exit.OK  # raised by typer if the reader of its help has gone
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last resort of a program
        if "--debug" in arguments:
            traceback.print_exc()
        return _complain(error)
    return code if isinstance(code, int) else Exit.OK


def _complain(error: Exception) -> Exit:
    match error:
        case OptdError():
            output.complain(error)
            return code_of(error)
        case BadUsage():
            output.complain(error)
            return Exit.USAGE
        case _ if isinstance(error, UsageError):
            output.complain(usage_line(error))
            return Exit.USAGE
        case _:
            output.complain(f"{type(error).__name__}: {error} (--debug shows where)")
            return Exit.REFUSED


def main() -> None:
    """The program `optctl`."""
    sys.exit(run(sys.argv[1:]))
