"""The program `raymu`, to which every file of this folder adds its commands."""

import sys
from collections.abc import Callable

import typer
from rich.console import Console

from raymu.errors import InputError, StorageError

console = Console(stderr=False)
app = typer.Typer(
    help="Tune machine-unlearning methods fairly. Start with: raymu sweep salun",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def main() -> None:
    """`raymu`."""
    run_program(app)


def run_program(program: Callable[[], None]) -> None:
    """Call a program and turn the errors that a user can mend into one line and exit code 2, Ctrl-C into 130."""
    try:
        program()
    except (InputError, StorageError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
