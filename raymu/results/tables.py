"""Tables for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from raymu.objective import OBJECTIVES

Row = Mapping[str, Any]

COLUMNS = {
    "retain": "retain_acc",
    "forget": "forget_acc",
    "probe-forget": "probe_forget_acc",
    "NCC-forget": "ncc_forget_acc",
}


def comparison(models: Mapping[str, Row | None], objective: str) -> Table:
    """Models (by name) side by side on test; None stands for a model that is not there."""
    table = Table(title="On test (accuracies in %)", title_justify="left", box=None, pad_edge=False)
    table.add_column("model")
    for heading in (*COLUMNS, objective):
        table.add_column(heading, justify="right")
    for name, row in models.items():
        if row is None:
            table.add_row(name, *["-"] * (len(COLUMNS) + 1))
            continue
        score = OBJECTIVES[objective](row, "test")
        table.add_row(name, *(percent(row[f"test_{metric}"]) for metric in COLUMNS.values()), f"{score:.3f}")
    return table


def ranking(sweeps: Mapping[str, Mapping[str, Row | None]], objective: str) -> Table:
    """Sweeps by name, best first by the objective of the tuned setting on test; `published` is the published one's.

    Every sweep has the rows "original", "retrained", "published" and "tuned", on one scenario.
    """

    def score(row: Row | None) -> float:
        return -1.0 if row is None else OBJECTIVES[objective](row, "test")

    table = Table(title="Tuned, on test (accuracies in %)", title_justify="left", box=None, pad_edge=False)
    table.add_column("rank", justify="right")
    table.add_column("method", no_wrap=True)
    for heading in (*COLUMNS, objective, f"published {objective}"):
        table.add_column(heading.replace("-", "-\n").replace(" ", "\n"), justify="right")

    def add(rank: str, name: str, row: Row, published: Row | None) -> None:
        accuracies = (percent(row[f"test_{metric}"]) for metric in COLUMNS.values())
        shown = "-" if published is None else f"{score(published):.3f}"
        table.add_row(rank, name, *accuracies, f"{score(row):.3f}", shown)

    ranked = sorted(sweeps.items(), key=lambda sweep: score(sweep[1]["tuned"]), reverse=True)
    for model in ("original", "retrained"):
        row = ranked[0][1][model]
        assert row is not None
        add("", model, row, None)
    for rank, (name, rows) in enumerate(ranked, start=1):
        if rows["tuned"] is not None:
            add(str(rank), name, rows["tuned"], rows["published"])
    return table


def layers(profiles: Mapping[str, Sequence[Row]]) -> Table:
    """What the probe reads from every block on test, for models by name."""
    table = Table(title="Probe on test (accuracies in %)", title_justify="left", box=None, pad_edge=False)
    table.add_column("layer")
    for name in profiles:
        table.add_column(f"{name}\nretain", justify="right")
        table.add_column("\nforget", justify="right")
    for rows in zip(*profiles.values(), strict=True):
        accuracies = (row[f"test_probe_{part}_acc"] for row in rows for part in ("retain", "forget"))
        table.add_row(rows[0]["layer"], *map(percent, accuracies))
    return table


def trials(rows: Sequence[Row]) -> Table:
    """One line a trial, best score first: the score on validation, accuracies on test."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("trial")
    table.add_column("status")
    for heading in ("score", *COLUMNS):
        table.add_column(heading.replace("-", "-\n"), justify="right")
    table.add_column("setting", min_width=12)
    for row in sorted(rows, key=lambda row: -1.0 if row["score"] is None else row["score"], reverse=True):
        table.add_row(
            row["trial_id"],
            row["status"],
            "-" if row["score"] is None else f"{row['score']:.3f}",
            *(percent(row[f"test_{metric}"]) for metric in COLUMNS.values()),
            setting(row["config"]),
        )
    return table


def setting(config: Mapping[str, float | None]) -> str:
    """'lr=0.0123 epochs=3'; a hyperparameter that is None is left out."""
    shown = {
        name: value if isinstance(value, int) else f"{value:.3g}" for name, value in config.items() if value is not None
    }
    return " ".join(f"{name}={value}" for name, value in shown.items())


def percent(value: float | None) -> str:
    """A fraction as a percentage with one digit, '-' where there is none."""
    return "-" if value is None else f"{100 * value:.1f}"
