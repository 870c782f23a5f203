"""Samplers: which settings a search tries beside the published one. One file each, by the searcher's name."""

from collections.abc import Mapping, Sequence

from raymu.method import Range
from raymu.objective import References
from raymu.protocol import Protocol
from raymu.row import Row
from raymu.tuning.samplers import grid, quasi_random, random
from raymu.tuning.samplers.base import Chosen, Known, Sampler, Setting

__all__ = ["KNOWN", "Chosen", "Sampler", "Setting", "known_settings", "sampler"]

NO_REFERENCES: References = {}
KNOWN = {"random": random.settings, "quasi_random": quasi_random.settings, "grid": grid.settings}


def known_settings(protocol: Protocol, seed: int, ranges: Mapping[str, Range]) -> list[Setting] | None:
    """Settings of one search that depend on no trial; None: the search learns.

    Raises:
        InputError: the protocol has too few trials for a grid.
    """
    if ranges and protocol.searcher not in KNOWN:
        return None
    count, nothing = protocol.trials - 1, list[Setting]([{}])
    return KNOWN[protocol.searcher](ranges, count, seed) if ranges else nothing[:count]


def sampler(
    protocol: Protocol,
    seed: int,
    ranges: Mapping[str, Range],
    done: Sequence[Row] = (),
    references: References = NO_REFERENCES,
    chosen: Chosen | None = None,
) -> Sampler:
    """The sampler of one search.

    Args:
        seed: of the search.
        ranges: the search space.
        done: the rows of the search so far; those that are appended later are learnt, too.
        references: what the objective compares with, for a searcher that computes scores itself.
        chosen: what every trial chooses by itself, for a searcher that learns from that.

    Raises:
        InputError: see `known_settings`.
    """
    if (settings := known_settings(protocol, seed, ranges)) is not None:
        return Known(settings)
    if protocol.searcher == "gp":
        from raymu.tuning.samplers.gp import GP  # it loads scikit-learn

        return GP(protocol, seed, ranges, done, references, chosen)
    from raymu.tuning.samplers import nsga2, tpe  # they load Optuna

    return {"tpe": tpe.TPE, "nsga2": nsga2.NSGA2}[protocol.searcher](protocol, seed, ranges, done)
