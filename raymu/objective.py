"""Objectives: pure functions, row -> score in [0, 1], higher is better.

Each takes the split whose metrics it reads. A search uses "val"; "test" is for reports only.
"""

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

from raymu import source
from raymu.errors import InputError
from raymu.values import unknown

Row = Mapping[str, Any]


def hmean(row: Row, split: str = "val") -> float:
    """Harmonic mean of retain accuracy and 1 - probe-forget accuracy: 0 where either fails, no reference needed."""
    keep, forget = pair(row, split)
    return 2 * keep * forget / (keep + forget) if keep + forget > 0 else 0.0


def weighted(row: Row, split: str = "val") -> float:
    """Mean of retain accuracy and 1 - probe-forget accuracy."""
    return sum(pair(row, split)) / 2


def oracle_gap(row: Row, split: str = "val") -> float:
    """1 - mean absolute gap to the retrained model, in retain and probe-forget accuracy."""
    return 1 - float(abs(row[f"{split}_retain_acc_gap"]) + abs(row[f"{split}_probe_forget_acc_gap"])) / 2


def pair(row: Row, split: str = "val") -> tuple[float, float]:
    """Retain accuracy and 1 - probe-forget accuracy: what `pareto` maximises, neither at the other's cost."""
    return float(row[f"{split}_retain_acc"]), 1 - float(row[f"{split}_probe_forget_acc"])


PARETO = "pareto"

# Under `pareto` the search maximises `pair`; the score, where one number has to do, is that of hmean.
OBJECTIVES: dict[str, Callable[..., float]] = {
    "hmean": hmean,
    "weighted": weighted,
    "oracle_gap": oracle_gap,
    PARETO: hmean,
}


def scored(objective: str, row: Row) -> float:
    """The score of a row on validation.

    Raises:
        ValueError: the objective returns something else than a number in [0, 1].
    """
    score = OBJECTIVES[objective](row)
    if isinstance(score, bool) or not isinstance(score, Real) or not 0 <= score <= 1:
        raise ValueError(f"objective {objective} has to return a number from 0 to 1, not {score!r}")
    return float(score)


def check(objective: object) -> None:
    """Look whether there is an objective of that name.

    Raises:
        InputError: there is none; the message names the nearest.
    """
    if objective not in list(OBJECTIVES):
        raise InputError(unknown("objective", str(objective), list(OBJECTIVES)))


def code_of(objective: str) -> str:
    """A digest of an objective's code: scores compare only where it is the same.

    Raises:
        InputError: there is no such objective.
    """
    check(objective)
    return source.digest(OBJECTIVES[objective], pair, within=("raymu.objective",))
