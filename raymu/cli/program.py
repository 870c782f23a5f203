"""The program `raymu`, to which every file of this folder adds its commands."""

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from raymu import __version__
from raymu.errors import InputError, StorageError, described, without_secrets

BY_CTRL_C = 128 + signal.SIGINT


class _Console(Console):
    """Console of the program. Once nobody reads it, as after `| head`, the program ends as by Ctrl-C."""

    def on_broken_pipe(self) -> None:
        """See Console."""
        with contextlib.suppress(SystemExit):
            super().on_broken_pipe()
        raise KeyboardInterrupt


console = _Console(markup=False, emoji=False)  # names and paths may look like rich's markup


class _Program(typer.Typer):
    """A program whose files and directories are this machine's: `~` is looked up, and a URI refused."""

    def command(self, *given: Any, **more: Any) -> Callable[[Any], Any]:
        """See Typer."""
        register = super().command(*given, **more)

        def add(function: Any) -> Any:
            @functools.wraps(function)
            def called(**values: Any) -> Any:
                from raymu.values import expanded

                here = {name: expanded(value) for name, value in values.items() if isinstance(value, Path)}
                return function(**values | here)

            return register(called)

        return add


app = _Program(
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
    """Call a program and turn the errors that a user can mend into one line and exit code 2: what the system refuses
    and what code in a file of the user's raises are among them. A signal that ends it becomes 128 + its number: 130 for
    Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.
    """
    code = BY_CTRL_C

    def end(number: int, _: Any) -> None:
        nonlocal code
        code = 128 + number
        for one in ours:  # a second one would cut short what the first began
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt  # which libraries know

    ours = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) == signal.SIG_DFL]  # not nohup's
    for number in ours:
        signal.signal(number, end)
    try:
        program()
    except (InputError, StorageError) as error:
        _end(str(error))
    except (OSError, MemoryError) as error:
        _end(_refused(error))
    except Exception as error:
        plugins = sys.modules.get("raymu.plugins")
        if plugins and (place := plugins.raised_in(error)):
            _end(f"{place}: {described(error)}")
        raise
    except KeyboardInterrupt:
        sys.exit(code)
    except SystemExit as ended:
        sys.exit(code if ended.code == BY_CTRL_C else ended.code)  # typer has caught it
    finally:
        for number in ours if code == BY_CTRL_C else []:
            signal.signal(number, signal.SIG_DFL)


def _end(reason: str) -> NoReturn:
    """End with a reason in one line, whatever it quotes, without what in it is secret."""
    reason = without_secrets(reason).strip()
    shown = (one if one.isprintable() else one.encode("unicode_escape").decode() for one in reason)
    typer.echo(f"error: {''.join(shown)}", err=True)
    sys.exit(2)


def _refused(error: OSError | MemoryError) -> str:
    """Line that says what the system refuses. Where that is the cache, it names the variable that moves it."""
    if isinstance(error, MemoryError):
        return f"out of memory{f': {error}' if str(error) else ''}"
    from raymu.cache import base  # imports torch

    reason = (error.strerror or str(error)).partition("\n")[0]
    if error.filename is None:
        return reason
    place, cache = Path(os.fsdecode(error.filename)), base()
    is_cache = cache.is_relative_to(place) or place.is_relative_to(cache)
    return f"{place}: {reason}{' (RAYMU_CACHE names the cache)' * is_cache}"
