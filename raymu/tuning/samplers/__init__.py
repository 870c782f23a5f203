"""Samplers: which settings a search tries beside the published one. One file each, by the searcher's name."""

from collections.abc import Mapping, Sequence

from raymu.method import Range
from raymu.protocol import Protocol
from raymu.row import Row
from raymu.tuning.samplers import grid, quasi_random, random
from raymu.tuning.samplers.base import Known, Sampler, Setting

__all__ = ["KNOWN", "Sampler", "Setting", "sampler"]

KNOWN = {"random": random.settings, "quasi_random": quasi_random.settings, "grid": grid.settings}


def sampler(
    protocol: Protocol, seed: int, ranges: Mapping[str, Range], done: Sequence[Row] = (), first: int = 0
) -> Sampler:
    """The sampler of one search.

    Args:
        seed: of the search.
        ranges: the search space.
        done: the rows of the search so far; those that are appended later are learnt, too.
        first: number of the search's first trial, which is the published setting.

    Raises:
        InputError: the protocol has too few trials for a grid.
    """
    if protocol.searcher in KNOWN:
        return Known(KNOWN[protocol.searcher](ranges, protocol.trials - 1, seed), first)
    from raymu.tuning.samplers import nsga2, tpe  # they load Optuna

    return {"tpe": tpe.TPE, "nsga2": nsga2.NSGA2}[protocol.searcher](protocol, seed, ranges, done)
