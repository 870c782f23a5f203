"""The program `raymu`, to which every file of this folder adds its commands."""

import functools
import sys
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console

from raymu import __version__
from raymu.errors import InputError, StorageError

console = Console(stderr=False)
app = typer.Typer(
    help="Tune machine-unlearning methods fairly. Start with: raymu sweep salun",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"raymu {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the program itself."""


def main() -> None:
    """`raymu`."""
    run_program(functools.partial(app, prog_name="raymu"))  # also for `python -m raymu`: completion goes by the name


def run_program(program: Callable[[], None]) -> None:
    """Call a program and turn the errors that a user can mend into one line and exit code 2, Ctrl-C into 130."""
    try:
        program()
    except (InputError, StorageError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
