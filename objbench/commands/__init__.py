"""The command line, with one module per command. None imports torch, pandas or matplotlib before it runs."""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import os
import sys
from typing import Any

import click

from objbench import __version__
from objbench.commands.catalog import info, list_, plugins
from objbench.commands.check import check
from objbench.commands.compare import compare
from objbench.commands.data import data
from objbench.commands.evaluate import evaluate
from objbench.commands.figure import figure
from objbench.commands.merge import merge
from objbench.commands.new import new
from objbench.commands.predict import predict
from objbench.commands.report import report
from objbench.commands.rescore import rescore
from objbench.commands.rm import rm
from objbench.commands.run import run
from objbench.commands.score import score
from objbench.commands.show import show
from objbench.commands.verify import verify
from objbench.commands.watch import watch
from objbench.errors import UsageError

COMMANDS = [
    run,
    watch,
    report,
    show,
    figure,
    list_,
    info,
    plugins,
    data,
    score,
    verify,
    check,
    new,
    predict,
    rescore,
    merge,
    rm,
    compare,
    evaluate,
]
UNWRITABLE, CLOSED = 74, 141
"""Exit codes: stdout could not be written (EX_IOERR); the reader of our output closed it (128 + SIGPIPE)."""


class Commands(click.Group):
    """Exits with CLOSED and without a message when the reader of the output closes it; click would exit with 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            give_up_output()
            sys.exit(CLOSED)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, "-V", "--version", prog_name="objbench")
def cli() -> None:
    """Train and compare unsupervised object detectors that also cluster what they find."""


for _command in COMMANDS:
    cli.add_command(_command)


FULL = (errno.ENOSPC, errno.EDQUOT)
OF_THE_DISK = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""Errors that come from where a file lies, not from a mistake in objbench, which has a traceback."""


def main() -> None:
    """Entry point: runs the command line; a UsageError is one line on stderr and exit code 2."""
    hold_descriptors()
    # Otherwise Python searches all of torch for garbage when it exits, for half a second.
    atexit.register(gc.freeze)
    try:
        sys.exit(run_command_line())
    except OSError as error:
        if not raised_by_output(error):
            raise
        with contextlib.suppress(OSError):
            click.echo(f"objbench: cannot write the output: {error.strerror}", err=True)
        give_up_output()
        sys.exit(UNWRITABLE)


def run_command_line() -> int | None:
    """Runs the command line; returns its exit code."""
    try:
        code: int | None = cli.main(standalone_mode=False)
        return code
    except UsageError as error:
        click.echo(f"objbench: {error}", err=True)
        return 2
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help())
        return 2
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "objbench"
        click.echo(f"{where}: {error.format_message()}", err=True)
        return 2
    except (click.Abort, KeyboardInterrupt):
        return 130
    except OSError as error:  # of a file of the user's that nothing nearer has reported
        if error.errno not in OF_THE_DISK or not error.filename or raised_by_output(error):
            raise
        todo = "free some space" if error.errno in FULL else "correct this"
        click.echo(
            f"objbench: {error.strerror}: {error.filename}; {todo} and run the same command again", err=True
        )
        return 2


def raised_by_output(error: OSError) -> bool:
    """True if the error was raised while printing, not while writing another file."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals["__name__"].partition(".")[0] in ("click", "rich")


def hold_descriptors() -> None:
    """Opens /dev/null for each of stdin, stdout and stderr that is closed, so that no other file gets its number.

    Writing to a closed stdout is still an error.
    """
    for descriptor, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)  # gets the lowest free number
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def give_up_output() -> None:
    """Discards buffered output that cannot be written; else Python would report an error when it exits."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
            continue
        os.dup2(nowhere, stream.fileno())
