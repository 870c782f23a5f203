"""What a sweep is, as its `sweep.json` says, and what of that may grow."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from raymu.values import forget_set_in_words, subset_in_words

FORMAT = 3  # of a sweep's directory; in the two before trials had other numbers, and nothing grew
MEANINGS = {  # of fields that say little by themselves
    "protocol.suggestions": "other versions of Optuna, NumPy or SciPy suggest other settings; see environment.json",
    "protocol.decisions": "another version of Ray stops other trials; see environment.json",
}
IN_WORDS = ("forgotten", "subset")  # what a scenario says, with the names of its classes
CONFIRMATIONS = 1_000_000  # number of the first run of a confirmation; a search's trials lie below it

Cell = tuple[int, str, int]  # what a confirmation's run is of: original, forget set, unlearning seed


class Budget(NamedTuple):
    """What of a protocol may grow. A sweep of a larger budget has all the runs of one of a smaller budget, and more,
    but for the confirmation of settings that are not the best any more.

    Attributes:
        trials: of each search.
        seeds, originals, top: of the confirmation.
    """

    trials: int
    seeds: int
    originals: int
    top: int

    @classmethod
    def of(cls, identity: Mapping[str, Any]) -> "Budget | None":
        """That of a sweep; None: it is of an earlier format."""
        if identity.get("format") != FORMAT:
            return None
        protocol = identity["protocol"]
        return cls(protocol["trials"], *(protocol["confirmation"][name] for name in cls._fields[1:]))

    def fresh_seeds(self, search_seeds: Iterable[int]) -> range:
        """Unlearning seeds of the confirmation: none of a search."""
        first = max(search_seeds) + 1
        return range(first, first + self.seeds)

    def fresh_originals(self, searched: int) -> range:
        """Model seeds of the originals of the confirmation: none that was searched on, unless it serves."""
        first = searched + 1
        return range(first, first + self.originals) if self.originals else range(searched, first)


def name_of(method: str, head: str, train: str) -> str:
    """Name of a method with its options: salun, salun-cmf, salun-classifier."""
    options = (head if head != "linear" else "", train if train != "all" else "")
    return "-".join([method, *filter(None, options)])


NAMES = ("protocol.trials", *(f"protocol.confirmation.{name}" for name in Budget._fields[1:]))  # of a budget's fields


def smallest(budgets: Iterable[Budget]) -> Budget:
    """What sweeps of these budgets have in common."""
    return Budget(*map(min, zip(*budgets, strict=True)))


def lasting(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that identify a sweep. Two runs with the same ones are one sweep.

    These are all fields but the budget, what is there in words, and the version of raymu, since digests say whether an
    algorithm did change. Of a sweep of an earlier format they are all.
    """
    if identity.get("format") != FORMAT:
        return dict(identity)
    kept = {name: value for name, value in identity.items() if name not in ("raymu", "history", *IN_WORDS)}
    return kept | {"protocol": lasting_protocol(identity["protocol"])}


def lasting_protocol(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """A protocol without its budget."""
    confirmation = {name: value for name, value in protocol["confirmation"].items() if name not in Budget._fields}
    kept = {name: value for name, value in protocol.items() if name not in Budget._fields}
    return kept | {"confirmation": confirmation}


def changed(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> tuple[dict[str, list[int]], list[str]]:
    """What of the budget is larger than in a stored sweep, by name [there, here], and in words what is smaller."""
    there, here = Budget.of(stored), Budget.of(asked)
    larger, smaller = {}, []
    if there is not None and here is not None:
        for name, before, now in zip(NAMES, there, here, strict=True):
            if now > before:
                larger[name] = [before, now]
            elif now < before:
                smaller.append(f"{name} is {before} there, {now} here (a sweep grows, and never shrinks)")
    return larger, smaller


def forgotten(identity: Mapping[str, Any]) -> str:
    """Forget set of a sweep in words: with the names of the classes, if it knows them."""
    return identity.get("forgotten") or forget_set_in_words(identity.get("scenario", {}))


def subset(identity: Mapping[str, Any]) -> str:
    """Part of the data that a sweep uses in words, likewise."""
    return str(identity.get("subset", subset_in_words(identity.get("scenario", {}))))


def said_of_history(identity: Mapping[str, Any]) -> str:
    """How a sweep has grown, and when, in a line."""
    said = []
    for entry in identity.get("history", []):
        more = "".join(f", {name} {entry[name][0]} -> {entry[name][1]}" for name in NAMES if name in entry)
        said.append(f"{entry['time']} raymu {entry['raymu']}{more}")
    return "; ".join(said)


def place_of(number: int, search_seeds: Sequence[int]) -> int:
    """Place of a trial in its search, from its number in the sweep: searches take turns, so that every one can grow."""
    return number // len(search_seeds)


def is_of_first_version(identity: Mapping[str, Any]) -> bool:
    """Whether a sweep is raymu 0.1's, whose files have no checksums."""
    return str(identity.get("raymu")).startswith("0.1.")


def has_ended(identity: Mapping[str, Any], ended: Mapping[str, Any] | None) -> bool:
    """Whether a sweep has ended, and has not grown since.

    Args:
        ended: content of its `ended.json`; None: there is none.
    """
    budget = Budget.of(identity)
    return ended is not None and (budget is None or ended.get("budget") == budget._asdict())


def differences(stored: Any, asked: Any, name: str = "") -> Iterator[str]:
    """'protocol.trials is 12 there, 24 here', for every field that differs."""
    if isinstance(stored, dict) and isinstance(asked, dict):
        for key in stored | asked:
            yield from differences(stored.get(key), asked.get(key), f"{name}.{key}" if name else key)
    elif stored != asked:
        meaning = f" ({MEANINGS[name]})" if name in MEANINGS else ""
        yield f"{name} is {stored} there, {asked} here{meaning}"
