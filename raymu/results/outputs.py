"""What results become: a DataFrame, figures, a page. A notebook shows each."""

import contextlib
import html
import itertools
import logging
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas
import plotly.graph_objects as go

from raymu.errors import InputError
from raymu.results import ranking, reader
from raymu.results.garbage import uncollected
from raymu.results.reader import Results
from raymu.results.report import Drawing, drawings, side_by_side, titled, write, write_png
from raymu.storage import locate


class Page(NamedTuple):
    """A report that was written: its `path`, and its `figures` as PNG."""

    path: Path
    figures: list[Path]

    def _repr_html_(self) -> str:
        """Link, for a notebook."""
        return f'<a href="{urllib.parse.quote(str(self.path))}" target="_blank">{html.escape(str(self.path))}</a>'


class Plots(dict[str, go.Figure]):
    """Figures with their titles, by section and sweep."""

    def __init__(self, drawings: Iterable[Drawing]) -> None:
        super().__init__(
            (f"{one.section} of {one.sweep}" if one.sweep else one.section, titled(one)) for one in drawings
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self)})"

    def _ipython_display_(self) -> None:
        """Draw all, in a notebook."""
        for figure in self.values():
            figure.show()


def load(results: Results) -> pandas.DataFrame:
    """All rows of sweeps, with a line for each trial and a column for each field; NaN or None where a row has none.

    `sweep` is the sweep's name. The setting has a column a hyperparameter: `config.lr`, `config.epochs`.

    Args:
        results: sweeps, or where they are stored.

    Raises:
        InputError: there is no sweep, or the storage cannot be read.
    """
    rows = [
        {**row, "sweep": sweep.name, **{f"config.{name}": value for name, value in row["config"].items()}}
        for sweep in reader.loaded(results)
        for row in sweep.rows
    ]
    return pandas.DataFrame(rows).drop(columns="config", errors="ignore")


def figures(results: Results) -> Plots:
    """The report's figures by name, such as "tradeoff" and "hyperparameters of salun". A notebook draws each, or all.

    Args:
        results: sweeps that can be ranked, or where they are stored.

    Raises:
        InputError: they cannot be ranked.
    """
    sweeps = reader.loaded(results)
    return Plots(drawings(sweeps, ranking.rank(sweeps)))


@uncollected()
def report(
    results: Results,
    out: Path | str = "report.html",
    png: Path | str | None = None,
    beside: Sequence[Results] = (),
) -> Page:
    """The page with the ranking, the figures and the best settings, after it was written. A notebook shows its link.

    Args:
        results: sweeps, or where they are stored; those that do not compare are chapters.
        out: the page, one file.
        png: a directory for every figure.
        beside: others; the page begins with what changed since `results`.

    Raises:
        InputError: a file cannot be written, what figures as PNG need is missing, or two storages are the same.
    """
    sides = [results, *beside]
    for one, other in itertools.combinations([locate(one) for one in sides if isinstance(one, Path | str)], 2):
        if one.is_same(other):
            raise InputError(f"{one} and {other} are the same storage, so there is nothing to compare")
    with _warned() as warnings:
        found, changed = side_by_side(
            {_name(side, number): reader.loaded(side) for number, side in enumerate(sides, 1)}
        )
    page = Path(out).absolute()
    write(found, page.parent, page.name, changed, [line for line in warnings if line.startswith("left out")])
    return Page(Path(out), [] if png is None else write_png(found, Path(png)))


@contextlib.contextmanager
def _warned() -> Iterator[list[str]]:
    """Lines that whoever reads results is warned with in the body. They are shown as well."""
    lines = list[str]()
    logger = logging.getLogger("raymu.results")
    last = None if logger.hasHandlers() else logging.lastResort  # which Python leaves out once there is a handler

    def keep(record: logging.LogRecord) -> None:
        lines.append(record.getMessage())
        if last:
            last.handle(record)

    handler = logging.Handler(logging.WARNING)
    handler.emit = keep  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def _name(results: Results, number: int) -> str:
    """Where sweeps are stored, or which of several they are."""
    return str(locate(results)) if isinstance(results, Path | str) else f"results {number}"
