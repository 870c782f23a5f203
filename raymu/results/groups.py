"""Groups of sweeps whose scores compare: same scenario, protocol, code that evaluates, and references."""

import itertools
import logging
from collections.abc import Sequence
from typing import NamedTuple

from raymu.errors import InputError
from raymu.results.files import SWEEP
from raymu.results.identity import NAMES, Budget, differences, lasting, smallest
from raymu.results.reader import SweepResults, is_copy
from raymu.row import values
from raymu.values import content_hash

FIELDS = ("protocol", "scenario", "evaluation_code", "objective_code")  # of what lasts of an identity
MODELS = ("original_weights", "retrained_weights")
_Model = tuple[str, str, str]  # a scenario's hash, the column of one of its references, and this one's weights
DIGESTS = ("protocol.suggestions ", "protocol.decisions ", "evaluation_code ", "objective_code ")


class Group(NamedTuple):
    """Sweeps that compare with each other, and why they do not compare with the first group; empty for that one."""

    sweeps: list[SweepResults]
    apart: str

    @property
    def names(self) -> str:
        """Names of its sweeps, in a line."""
        return ", ".join(sweep.name for sweep in self.sweeps)


def grouped(sweeps: Sequence[SweepResults]) -> list[Group]:
    """Sweeps in groups, in the order in which they are given."""
    groups: list[Group] = []
    models = {id(sweep): _models(sweep) for sweep in sweeps}

    def apart(one: SweepResults, other: SweepResults) -> str:
        return _apart(one, other) or _differ(models[id(one)], models[id(other)])

    for sweep in sweeps:
        alike = (one for one in groups if not any(apart(each, sweep) for each in one.sweeps))
        if (found := next(alike, None)) is None:
            groups.append(found := Group([], apart(groups[0].sweeps[0], sweep) if groups else ""))
        found.sweeps.append(sweep)
    return groups


def sound(sweeps: Sequence[SweepResults]) -> list[SweepResults]:
    """Sweeps whose rows belong to what stands with them. One that was changed is left out, and a warning says why.

    Raises:
        InputError: all were changed.
    """
    found: list[SweepResults] = []
    reasons: list[InputError] = []
    for sweep in sweeps:
        try:
            _check_rows(sweep)
            found.append(sweep)
        except InputError as error:
            reasons.append(error)
    if reasons and not found:
        raise reasons[0]
    for reason in reasons:
        logging.getLogger(__name__).warning("left out: %s", reason)
    return found


def check_comparable(sweeps: Sequence[SweepResults]) -> None:
    """Look whether sweeps are one group.

    Raises:
        InputError: they are not; the message says in which field two differ. Or rows do not belong to what stands with
            them, or a sweep is a copy of another.
    """
    for sweep in sweeps:
        _check_rows(sweep)
    groups = grouped(sweeps)
    if len(groups) > 1:
        one, other = groups[0].sweeps[0].name, groups[1].sweeps[0].name
        raise InputError(f"{one} and {other} cannot be ranked together: {groups[1].apart}")
    _check_copies(sweeps)


def common(sweeps: Sequence[SweepResults]) -> Budget | None:
    """The budget of the part that all sweeps of a group have; None: they are of an earlier format, and have one."""
    budgets = [budget for sweep in sweeps if (budget := Budget.of(sweep.identity)) is not None]
    return smallest(budgets) if budgets else None


def said_of_part(sweeps: Sequence[SweepResults]) -> str:
    """What of sweeps is ranked, in a line, where some have a larger budget than others; empty where none has."""
    least, said = common(sweeps), []
    for place, (name, count) in enumerate(zip(NAMES, least or (), strict=least is not None)):
        budgets = {sweep.name: budget for sweep in sweeps if (budget := Budget.of(sweep.identity))}
        if more := [f"{budget[place]} in {sweep}" for sweep, budget in budgets.items() if budget[place] > count]:
            said.append(f"{name} {count} ({', '.join(more)})")
    return f"ranked by the part that all sweeps have: {'; '.join(said)}; --resume lets the others grow" if said else ""


def _apart(one: SweepResults, other: SweepResults) -> str:
    """Why two sweeps do not compare, by what was asked for; empty where they do."""
    ours, others = lasting(one.identity), lasting(other.identity)
    if ours.get("format") != others.get("format"):
        return "earlier versions of raymu numbered trials otherwise"
    fields = [(field, ours.get(field), others.get(field)) for field in FIELDS]
    if found := [said for field, there, here in fields for said in differences(there, here, field)]:
        return "; ".join([said for said in found if not said.startswith(DIGESTS)] or found)
    return ""


def _models(sweep: SweepResults) -> set[_Model]:
    """The references that rows were compared with, as far as they say them."""
    found = values(sweep.rows, ("scenario_hash", *MODELS))
    known = {(scenario or "", one) for scenario, *weights in found for one in zip(MODELS, weights, strict=True)}
    return {(scenario, column, weights) for scenario, (column, weights) in known if weights is not None}


def _differ(ours: set[_Model], others: set[_Model]) -> str:
    """Why rows do not compare that have these references; empty where they do."""
    known = {(scenario, column): weights for scenario, column, weights in ours}
    for scenario, column, here in sorted(others):
        if (there := known.get((scenario, column), here)) != here:
            return (
                f"{column} is {there} there, {here} here, so their references were trained at different times or places"
            )
    return ""


def _check_rows(sweep: SweepResults) -> None:
    """Look whether the rows are of the scenario, protocol and code that stand with them."""
    identity = sweep.identity
    stated = {
        "protocol_hash": content_hash(lasting(identity).get("protocol")),
        "objective": identity.get("protocol", {}).get("objective"),
        "method": identity.get("method"),
        "method_code": identity.get("method_code"),  # none in sweeps of raymu 0.1
        "evaluation_code": identity.get("evaluation_code"),
        "objective_code": identity.get("objective_code"),
        "scenario_hash": content_hash(identity.get("scenario")),
    }
    found = values(sweep.rows, ("source", *stated))
    for place, field in enumerate(stated, start=1):
        of = [one for one in found if field != "scenario_hash" or one[0] != "confirmation"]
        if others := {one[place] for one in of} - {stated[field]}:
            raise InputError(
                f"{sweep.name}/{SWEEP} was changed after the sweep: it says {field} {stated[field]}, its rows say"
                f" {', '.join(sorted(map(str, others)))}"
            )
    if apart := _differ(models := _models(sweep), models):
        raise InputError(f"rows of {sweep.name} do not compare: {apart}")


def _check_copies(sweeps: Sequence[SweepResults]) -> None:
    for one, other in itertools.combinations(sweeps, 2):
        if is_copy(other.rows, one.rows):
            raise InputError(f"{one.name} and {other.name} hold the same trials: one is a copy, which is no second run")
