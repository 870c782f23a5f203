"""Objectives: scores of a row, higher is better, computed from the columns that they name."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from raymu import plugins, source
from raymu.errors import InputError
from raymu.values import conform, parameters_of

Kind = Literal["classes", "samples"]
References = Mapping[str, Mapping[str, Any]]
LOWEST = -1.0  # score that a searcher may see
NOTHING = 0.05  # what a share of 0 counts for a search
MARGIN = 0.02  # of retain accuracy that a method may lose against the retrained model


@dataclass(frozen=True)
class Objective(source.Travels):
    """What a search maximises on validation.

    Attributes:
        score: a function whose parameters are the columns that it reads, without their split: `retain_acc`,
            `probe_forget_acc_gap`. With `_original` or `_retrained` after it, as in `retain_acc_original`, a column is
            that reference's. It can read no others, and returns a number from -1 to 1. What is reported is at least 0;
            below it a searcher still sees which way is up.
        name: what stands in rows; empty: the function's.
        forgets: the kinds of forget sets for which it says something.
        maximises: another function, of a row's own columns alone, whose numbers are all maximised, none at the cost of
            another (`searcher` "nsga2" or "tpe"); None: the score alone.

    Raises:
        InputError: a parameter that is no column, or no name.
    """

    score: Callable[..., float]
    name: str = ""
    forgets: tuple[Kind, ...] = ("classes", "samples")
    maximises: Callable[..., tuple[float, ...]] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or getattr(self.score, "__name__", ""))
        conform(self, "objective: ")
        if not self.name.isidentifier():
            raise InputError(f"an objective needs a name, not {self.name!r}: Objective(score, name=...)")
        for function in (self.score, self.maximises or self.score):
            parameters_of(function, f"objective {self.name}")

    def code(self, within: tuple[str, ...] = ("raymu.objective",)) -> str:
        """Digest of what computes it: scores compare only where it is the same."""
        return super().code(within)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that it reads, without their split."""
        functions = (self.score, self.maximises or self.score)
        return tuple(dict.fromkeys(name for function in functions for name in _parameters(function)))

    @property
    def compares(self) -> bool:
        """Whether it compares with the retrained model."""
        return any(name.endswith(("_retrained", "_gap")) for name in self.columns)

    def of(self, row: Mapping[str, Any], references: References, split: str = "val") -> float:
        """Score of a row on a split, in [0, 1]; see `seen`."""
        return max(0.0, self.seen(row, references, split))

    def seen(self, row: Mapping[str, Any], references: References, split: str = "val") -> float:
        """Score of a row on a split as a searcher sees it, in [-1, 1].

        Args:
            references: the columns of the "original" and of the "retrained" model.

        Raises:
            ValueError: a column is missing or None, or the score is no number in [-1, 1].
        """
        return self.scorer(references, split)(row)

    def scorer(self, references: References, split: str = "val") -> Callable[[Mapping[str, Any]], float]:
        """Function that returns what `seen` says of a row: faster, where there are many."""
        read = self._reader(self.score, references, split)

        def seen(row: Mapping[str, Any]) -> float:
            score = self.score(**read(row))
            if isinstance(score, bool) or not isinstance(score, Real) or not LOWEST <= score <= 1:
                raise ValueError(f"objective {self.name} has to return a number from -1 to 1, not {score!r}")
            return float(score)

        return seen

    def values(self, row: Mapping[str, Any]) -> list[float]:
        """Numbers of `maximises` on validation, which a search maximises in place of the score."""
        assert self.maximises is not None
        return [float(value) for value in self.maximises(**self._reader(self.maximises, {}, "val")(row))]

    def own(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Columns of a row that the score reads on validation; references' are others."""
        names = (_column(name, "val") for name in _parameters(self.score))
        return {name: row[name] for name in names if name in row}

    def check(self, known: list[str], when: str) -> None:
        """Look whether all its columns are measured.

        Args:
            known: columns, with their splits.
            when: at which these are measured, in words.

        Raises:
            InputError: one is not.
        """
        if missing := self.missing(known):
            raise InputError(f"objective {self.name} reads {missing[0]}, which is not measured {when}")

    def missing(self, known: list[str]) -> list[str]:
        """Columns that it reads and that are not among the known ones, which are named with their splits."""
        there = set(known)
        return [
            column
            for column in self.columns
            if there.isdisjoint({_column(column, "val"), _column(_of_reference(column)[0], "val")})
        ]

    def _reader(
        self, function: Callable[..., Any], references: References, split: str
    ) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """Function that reads from a row, or else from the references, what the other one is called with."""
        own = {name: _column(name, split) for name in _parameters(function)}
        of_references = {}
        for name in own:
            column, which = _of_reference(name)
            of_references[name] = references.get(which, {}).get(_column(column, split))

        def read(row: Mapping[str, Any]) -> dict[str, Any]:
            given = {name: row[column] if column in row else of_references[name] for name, column in own.items()}
            for name, value in given.items():
                if value is None:
                    raise ValueError(f"objective {self.name} reads {name}, which is not defined here")
            return given

        return read


def _column(name: str, split: str) -> str:
    """Column of a row; metrics of the training features have one split alone."""
    return name if name.startswith("train_") else f"{split}_{name}"


def _of_reference(name: str) -> tuple[str, str]:
    """A reference's column, and which reference is meant."""
    column, _, which = name.rpartition("_")
    return (column, which) if which in ("original", "retrained") else (name, "")


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    return parameters_of(function, "objective")


def removal(
    retain_acc: float,
    retain_acc_retrained: float,
    attack_auc: float,
    attack_auc_original: float,
    attack_auc_retrained: float,
    forget_acc: float,
    forget_acc_original: float,
    forget_acc_retrained: float,
) -> float:
    """Removed memory, from 0 for the original to 1 for the retrained model.

    It comes from three shares:

        kept     1 - (loss - MARGIN) / MARGIN,  loss of retain accuracy against the retrained model
        memory   (original - model) / (original - retrained),  area of the attacker, or 1 - area if more
        answers  1 - abs(model - retrained) / (original - retrained),  the model's own answers on the forget set

    Each is at most 1, so damage beyond the retrained model earns nothing. The score is nearly their product, since
    removed memory counts only as far as the model does not answer, and a model only as far as it can still be used.
    `kept` falls steeply, or a search would trade retain accuracy for memory.

    Where one share is 0, as after a loss of two margins, or where an attacker reads as much as before, so is
    the score. For that alone the product would do; a search, though, has to see which way is up from there as well, and
    that a model which has moved and lost accuracy may be nearer than one that has not moved. Hence the product of

        soft(share) = NOTHING + (1 - NOTHING) share,  below 0 NOTHING / (1 - share)

    The score is how far it is above NOTHING, its value for two shares of 1 and one of 0.

    Where there is no memory, the original being read no better than the retrained model, none can be removed: `memory`
    is 0 for every model, and so is the score.
    """
    kept = 1 - (retain_acc_retrained - retain_acc - MARGIN) / MARGIN
    # Who orders the images the wrong way round reads as much: below 0.5 an area tells what it is short of 1.
    read, original, retrained = (max(a, 1 - a) for a in (attack_auc, attack_auc_original, attack_auc_retrained))
    memory = (original - read) / (original - retrained) if original > retrained else 0.0
    # Where samples are forgotten, original and retrained may answer the same.
    answers = 1 - abs(forget_acc - forget_acc_retrained) / max(forget_acc_original - forget_acc_retrained, MARGIN)
    return (math.prod(map(_soft, (kept, memory, answers))) - NOTHING) / (1 - NOTHING)


def _soft(share: float) -> float:
    return NOTHING + (1 - NOTHING) * min(share, 1.0) if share > 0 else NOTHING / (1 - share)


def hmean(retain_acc: float, probe_forget_acc: float) -> float:
    """Harmonic mean of retain accuracy and 1 - probe-forget accuracy: 0 where either fails, no reference needed."""
    keep, forget = both(retain_acc, probe_forget_acc)
    return 2 * keep * forget / (keep + forget) if keep + forget > 0 else 0.0


def weighted(retain_acc: float, probe_forget_acc: float) -> float:
    """Mean of retain accuracy and 1 - probe-forget accuracy."""
    return sum(both(retain_acc, probe_forget_acc)) / 2


def both(retain_acc: float, probe_forget_acc: float) -> tuple[float, float]:
    """Retain accuracy and 1 - probe-forget accuracy."""
    return retain_acc, 1 - probe_forget_acc


def pair(row: Mapping[str, Any]) -> tuple[float, float]:
    """Retain accuracy and 1 - probe-forget accuracy of a row, on validation."""
    found = row["val_retain_acc"], row["val_probe_forget_acc"]
    if None in found:
        raise InputError(f"trial {row.get('trial_id')} has no retain or probe-forget accuracy, which this needs")
    return both(*map(float, found))


HMEAN = Objective(hmean, forgets=("classes",))
REMOVAL = Objective(removal)
OBJECTIVES: dict[str, Objective] = {
    one.name: one
    for one in (
        REMOVAL,
        HMEAN,
        Objective(weighted, forgets=("classes",)),
        Objective(hmean, name="pareto", forgets=("classes",), maximises=both),
    )
}


def default(has_retrained: bool) -> Objective:
    """Objective of a scenario for which nobody asks for another: hmean where there is no retrained model."""
    return REMOVAL if has_retrained else HMEAN


def score_name(name: str) -> str:
    """Name of an objective's score: the objective's own, but hmean for pareto."""
    known = OBJECTIVES.get(name)
    return name if known is None or known.maximises is None else known.score.__name__


def get(name: str) -> Objective:
    """Objective of that name, of raymu, of a package or in a file of the user's (see `raymu.plugins`).

    Raises:
        InputError: there is none; the message names the nearest.
    """
    found: Objective = plugins.find(Objective, name, OBJECTIVES)
    return found
