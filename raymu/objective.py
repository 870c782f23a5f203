"""Objectives: scores of a row in [0, 1], higher is better, computed from the columns that they name."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from raymu import plugins, source
from raymu.errors import InputError

Kind = Literal["classes", "samples"]


@dataclass(frozen=True)
class Objective(source.Travels):
    """What a search maximises on validation.

    Attributes:
        score: a function whose parameters are the columns that it reads, without their split: `retain_acc`,
            `probe_forget_acc_gap`. It can read no others, and returns a number from 0 to 1.
        name: what stands in rows; empty: the function's.
        forgets: the kinds of forget sets for which it says something.
        maximises: another function of such columns, whose numbers are all maximised, none at the cost of another
            (`searcher` "nsga2" or "tpe"); None: the score alone.

    Raises:
        InputError: a parameter that is no column, or no name.
    """

    score: Callable[..., float]
    name: str = ""
    forgets: tuple[Kind, ...] = ("classes", "samples")
    maximises: Callable[..., tuple[float, ...]] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or getattr(self.score, "__name__", ""))
        if not self.name.isidentifier():
            raise InputError(f"an objective needs a name, not {self.name!r}: Objective(score, name=...)")
        for function in (self.score, self.maximises or self.score):
            if any(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in _parameters(function).values()):
                raise InputError(f"objective {self.name}: its columns are its parameters, which *, ** do not name")

    def code(self, within: tuple[str, ...] = ("raymu.objective",)) -> str:
        """Digest of what computes it: scores compare only where it is the same."""
        return super().code(within)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that it reads, without their split."""
        functions = (self.score, self.maximises or self.score)
        return tuple(dict.fromkeys(name for function in functions for name in _parameters(function)))

    def of(self, row: Mapping[str, Any], split: str = "val") -> float:
        """Score of a row on a split.

        Raises:
            ValueError: a column is missing or None, or the score is no number in [0, 1].
        """
        score = self.score(**self._given(self.score, row, split))
        if isinstance(score, bool) or not isinstance(score, Real) or not 0 <= score <= 1:
            raise ValueError(f"objective {self.name} has to return a number from 0 to 1, not {score!r}")
        return float(score)

    def values(self, row: Mapping[str, Any]) -> list[float]:
        """What is maximised, on validation."""
        if self.maximises is None:
            return [self.of(row)]
        return [float(value) for value in self.maximises(**self._given(self.maximises, row, "val"))]

    def check(self, known: list[str], when: str) -> None:
        """Look whether all its columns are measured.

        Args:
            known: columns, with their splits.
            when: at which these are measured, in words.

        Raises:
            InputError: one is not.
        """
        for column in self.columns:
            if _column(column, "val") not in known:
                raise InputError(f"objective {self.name} reads {column}, which is not measured {when}")

    def _given(self, function: Callable[..., Any], row: Mapping[str, Any], split: str) -> dict[str, Any]:
        given = {name: row.get(_column(name, split)) for name in _parameters(function)}
        for name, value in given.items():
            if value is None:
                raise ValueError(f"objective {self.name} reads {name}, which is not defined here")
        return given


def _column(name: str, split: str) -> str:
    """Column of a row; metrics of the training features have one split alone."""
    return name if name.startswith("train_") else f"{split}_{name}"


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def hmean(retain_acc: float, probe_forget_acc: float) -> float:
    """Harmonic mean of retain accuracy and 1 - probe-forget accuracy: 0 where either fails, no reference needed."""
    keep, forget = both(retain_acc, probe_forget_acc)
    return 2 * keep * forget / (keep + forget) if keep + forget > 0 else 0.0


def weighted(retain_acc: float, probe_forget_acc: float) -> float:
    """Mean of retain accuracy and 1 - probe-forget accuracy."""
    return sum(both(retain_acc, probe_forget_acc)) / 2


def oracle_gap(retain_acc_gap: float, probe_forget_acc_gap: float) -> float:
    """1 - mean absolute gap to the retrained model, in retain and probe-forget accuracy."""
    return 1 - float(abs(retain_acc_gap) + abs(probe_forget_acc_gap)) / 2


def both(retain_acc: float, probe_forget_acc: float) -> tuple[float, float]:
    """Retain accuracy and 1 - probe-forget accuracy."""
    return retain_acc, 1 - probe_forget_acc


def pair(row: Mapping[str, Any]) -> tuple[float, float]:
    """Retain accuracy and 1 - probe-forget accuracy of a row, on validation."""
    return both(float(row["val_retain_acc"]), float(row["val_probe_forget_acc"]))


# Where single samples are forgotten, they are to be read as well as unseen ones are: only the gap says how well.
HMEAN = Objective(hmean, forgets=("classes",))
OBJECTIVES: dict[str, Objective] = {
    one.name: one
    for one in (
        HMEAN,
        Objective(weighted, forgets=("classes",)),
        Objective(oracle_gap),
        Objective(hmean, name="pareto", forgets=("classes",), maximises=both),
    )
}


def get(name: str) -> Objective:
    """Objective of that name, of raymu, of a package or in a file of the user's (see `raymu.plugins`).

    Raises:
        InputError: there is none; the message names the nearest.
    """
    found: Objective = plugins.find(Objective, name, OBJECTIVES)
    return found
