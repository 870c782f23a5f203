"""Two storages side by side: what became of each method that both have, and what was set differently."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from raymu.errors import InputError
from raymu.objective import score_name
from raymu.results import selection
from raymu.results.comparison import FEWEST, Lead, Runs, by_original, leads, unpaired
from raymu.results.identity import Cell, differences, name_of
from raymu.results.ranking import Ranked, score_on_test, step
from raymu.results.reader import SweepResults
from raymu.results.verdict import some
from raymu.row import Row

NAMES = ("trial_id", "confirms")  # of a row, which depend on what else is in the storage
UNKNOWN = Lead(None, None, None)
SAME = "the same trials"


class Storage(NamedTuple):
    """A storage's name, its sweeps, and the places of those in which a trial completed."""

    name: str
    sweeps: Sequence[SweepResults]
    ranked: Sequence[Ranked]


class Change(NamedTuple):
    """What became of a method.

    Attributes:
        method: its name, with head and trained part where these are no default, and the sweep's where there are more.
        there, here: what the sweeps ended with; None: no trial completed.
        difference: how far the score here is above the one there; its interval holds for itself alone.
        by: what the difference comes from, in words.
        fields: what was asked for differently, as "protocol.trials is 12 there, 24 here".
    """

    method: str
    there: Ranked | None
    here: Ranked | None
    difference: Lead
    by: str
    fields: list[str]


OUTCOMES: dict[str, Callable[[Change], bool]] = {  # the first that holds is told
    "The same trials": lambda one: one.by == SAME,
    "Higher": lambda one: one.difference.low is not None and one.difference.low > 0,
    "Lower": lambda one: one.difference.high is not None and one.difference.high < 0,
    "Not told apart": lambda one: one.difference.low is not None,
    "Without an interval": lambda one: True,
}


class Changes(NamedTuple):
    """Two storages by name, the methods that both have, and those that only one has."""

    there: str
    here: str
    methods: list[Change]
    only_there: list[str]
    only_here: list[str]

    @property
    def headline(self) -> str:
        """Which methods score higher here, which lower, and which neither, in sentences."""
        found: dict[str, list[str]] = {outcome: [] for outcome in OUTCOMES}
        for one in self.methods:
            found[next(outcome for outcome, holds in OUTCOMES.items() if holds(one))].append(one.method)
        return " ".join(f"{outcome}: {some(names, 'methods')}." for outcome, names in found.items() if names)

    @property
    def score(self) -> str:
        """Name of the score, where it is the same for all."""
        ends = [end for one in self.methods for end in (one.there, one.here) if end is not None]
        names = {score_name(end.tuned["objective"]) for end in ends}
        return names.pop() if len(names) == 1 else "score"

    @property
    def fields(self) -> dict[str, list[str]]:
        """What was asked for differently, with the names of the methods where it was."""
        found: dict[str, list[str]] = {}
        for one in self.methods:
            for field in one.fields:
                found.setdefault(field, []).append(one.method)
        return found


def changes(there: Storage, here: Storage) -> Changes:
    """What changed from one storage to another.

    Raises:
        InputError: no method is in both, or both hold the same trials and no others.
    """
    ends = [{entry.sweep.name: entry for entry in one.ranked} for one in (there, here)]
    pairs = list(_pairs(there.sweeps, here.sweeps))
    methods = [sorted({_method(sweep) for sweep in one.sweeps}) for one in (there, here)]
    if not pairs:
        raise InputError(
            f"{there.name} and {here.name} have no method in common: {', '.join(methods[0])} there,"
            f" {', '.join(methods[1])} here"
        )
    left = [
        [sweep.name for sweep in one.sweeps if all(sweep is not pair[side] for pair in pairs)]
        for side, one in enumerate((there, here))
    ]
    if not any(left) and all(_are_same(*pair) for pair in pairs):
        raise InputError(f"{there.name} and {here.name} hold the same trials, so nothing changed")
    found, many = [], Counter(_method(after) for _, after in pairs)
    for before, after in pairs:
        first, second = ends[0].get(before.name), ends[1].get(after.name)
        if _are_same(before, after):
            difference, by = UNKNOWN, SAME
        else:
            difference, by = _difference(first, second)
        name = _method(after)
        shown = name if many[name] == 1 else f"{name} ({after.name})"
        fields = list(differences(before.identity, after.identity))
        found.append(Change(shown, first, second, difference, by, fields))
    return Changes(there.name, here.name, found, *left)


def _method(sweep: SweepResults) -> str:
    of = sweep.identity
    return name_of(str(of.get("method")), of.get("head", "linear"), of.get("train", "all"))


def _pairs(there: Sequence[SweepResults], here: Sequence[SweepResults]) -> Iterator[tuple[SweepResults, SweepResults]]:
    """Sweeps of one method, those first that have most in common, each once; by method."""

    def distance(pair: tuple[SweepResults, SweepResults]) -> tuple[int, int]:
        one, other = (sweep.identity for sweep in pair)
        of_scenario = differences(one.get("scenario"), other.get("scenario"))
        return len(list(of_scenario)), len(list(differences(one, other)))

    alike = [pair for pair in itertools.product(there, here) if _method(pair[0]) == _method(pair[1])]
    chosen: list[tuple[SweepResults, SweepResults]] = []
    for pair in sorted(alike, key=distance):
        if not any(one is other for taken in chosen for one, other in zip(pair, taken, strict=True)):
            chosen.append(pair)
    yield from sorted(chosen, key=lambda pair: (_method(pair[1]), pair[1].name))


def _are_same(one: SweepResults, other: SweepResults) -> bool:
    def measured(sweep: SweepResults) -> list[Row]:
        return [{column: value for column, value in row.items() if column not in NAMES} for row in sweep.rows]

    return measured(one) == measured(other)


def _difference(there: Ranked | None, here: Ranked | None) -> tuple[Lead, str]:
    """How far the score here is above the one there, and what that comes from."""
    if there is None or here is None:
        where = " and ".join(where for where, end in (("there", there), ("here", here)) if end is None)
        return UNKNOWN, f"no trial completed {where}"
    objectives = [end.tuned["objective"] for end in (there, here)]
    if objectives[0] != objectives[1]:
        return UNKNOWN, f"scores do not compare: {objectives[0]} there, {objectives[1]} here"
    runs = _confirmed(here, there)
    if not all(runs):
        where = " and ".join(where for where, of in zip(("here", "there"), runs, strict=True) if not of)
        return Lead(here.score.mean - there.score.mean, None, None), f"not confirmed {where}"
    size = max(step(end.figures["tuned"]) for end in (here, there))
    pairs = runs
    if not runs[0].keys() & runs[1].keys():  # other seeds or forget sets, perhaps on the same originals
        pairs = [{(original, "", 0): mean for original, mean in by_original(of).items()} for of in runs]
    shared = {original for original, _, _ in pairs[0].keys() & pairs[1].keys()}
    if len(shared) >= FEWEST:
        return leads(pairs, size)[0, 1], f"paired over {len(shared)} originals"
    found = unpaired(runs[0], runs[1], size)
    by = f"unpaired means, {there.score.originals} originals there and {here.score.originals} here"
    return found, by + (f"; below {FEWEST} no interval" if found.low is None else "")


def _confirmed(*ends: Ranked) -> list[Runs]:
    """Scores on test of the runs that confirmed each tuned setting. An original is the same where its weights are."""
    numbers: dict[Any, int] = {}
    found: list[Runs] = []
    for side, end in enumerate(ends):
        runs: dict[Cell, float] = {}
        for row in selection.confirmed(end.sweep.rows).get(end.tuned["trial_id"], []):
            original = row.get("original_weights") or (side, row["model_seed"])  # older rows do not say its weights
            _, forget, seed = selection.cell(row)
            score = score_on_test(row, end.tuned["objective"])
            runs[numbers.setdefault(original, len(numbers)), forget, seed] = score
        found.append(runs)
    return found
