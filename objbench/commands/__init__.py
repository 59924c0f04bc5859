"""The command line: thin. One module a command; none imports torch, pandas or matplotlib before it runs."""

from __future__ import annotations

import sys

import click

from objbench import __version__
from objbench.commands.catalog import info, list_, plugins
from objbench.commands.check import check
from objbench.commands.data import data
from objbench.commands.new import new
from objbench.commands.predict import predict
from objbench.commands.report import report
from objbench.commands.run import run
from objbench.commands.score import score
from objbench.commands.show import show
from objbench.commands.verify import verify
from objbench.errors import UsageError

COMMANDS = [run, report, show, list_, info, plugins, data, score, verify, check, new, predict]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, "-V", "--version", prog_name="objbench")
def cli() -> None:
    """Train and compare unsupervised object detectors that also cluster what they find."""


for _command in COMMANDS:
    cli.add_command(_command)


def main() -> None:
    """Entry point: runs the command line; a UsageError is one line on stderr and exit code 2."""
    try:
        sys.exit(cli.main(standalone_mode=False))
    except UsageError as error:
        click.echo(f"objbench: {error}", err=True)
        sys.exit(2)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help())
        sys.exit(2)
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "objbench"
        click.echo(f"{where}: {error.format_message()}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
