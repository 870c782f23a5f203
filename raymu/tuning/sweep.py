"""A sweep: scenario x method x protocol."""

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import raymu
from raymu import engines, reference_models
from raymu.errors import InputError
from raymu.method import Head, Method, Range, Train
from raymu.objective import REMOVAL, References
from raymu.protocol import Protocol
from raymu.results import selection
from raymu.results.identity import CONFIRMATIONS, FORMAT, lasting_protocol, name_of, place_of
from raymu.row import Row
from raymu.scenario import SCENARIOS, Scenario
from raymu.trial import check, measured
from raymu.tuning import fingerprints
from raymu.tuning.samplers import NO_REFERENCES, Chosen, Sampler, Setting, known_settings, sampler
from raymu.values import SCENARIO, content_hash, unknown

MOST_CLASSES = 10  # classes in the name of a directory


def directory_name(what: str, scenario: Scenario, objective: str = REMOVAL.name) -> str:
    """Name of a directory for what is tuned on a scenario: with the names of the scenario and of the objective where
    these are not the defaults, and with the forget set and the part of the data where these are not the known
    scenario's: salun, salun-cifar10-resnet18, all-forget-3-5, salun-hmean, salun-forget-3-classes-0-1-3-train-0.1.
    """
    known = SCENARIOS.get(scenario.name)
    parts = [what, *([scenario.name] if scenario.name != SCENARIO else [])]
    parts += [objective] if objective != REMOVAL.name else []
    if known is None or (known.forget, known.forget_share) != (scenario.forget, scenario.forget_share):
        share, listed = scenario.forget_share, scenario.forget_samples.rpartition(" ")[2]
        parts += filter(None, ["forget", *_in_name(scenario.forget), f"{share:g}" if share else "", listed])
    if scenario.classes != (known.classes if known else ()):
        parts += ["classes", *_in_name(scenario.classes)]
    if scenario.train_share != (known.train_share if known else 1):
        parts += ["train", f"{scenario.train_share:g}"]
    return re.sub(r"[^\w.+-]", "_", "-".join(parts))


def _in_name(classes: Sequence[int]) -> list[str]:
    if len(classes) > MOST_CLASSES:
        return [f"{len(classes)}-classes", content_hash(classes)]
    return [str(one) for one in classes]


@dataclass(frozen=True)
class Task:
    """A trial to run: what its row will say of it.

    Attributes:
        number: of the trial in its sweep.
        search_seed: which search it belongs to; None: it confirms.
        confirms: the `trial_id` of the trial that it runs again.
        projected: whether a t-SNE of its features is kept.
        expected_gain: see the row's column.
    """

    number: int
    config: Mapping[str, Any]
    scenario: Scenario
    seed: int
    source: Literal["published", "search", "confirmation"]
    search_seed: int | None = None
    confirms: str | None = None
    projected: bool = False
    expected_gain: float | None = None


@dataclass(frozen=True)
class Sweep:
    """What is searched.

    Attributes:
        method: a class of `raymu/methods/`, or one's own.
        scenario: what has to be forgotten.
        protocol: the budget.
        space: ranges that replace the method's, by hyperparameter.
        head: "linear", or "cmf" for class-mean features.
        train: "all" weights, or the "classifier" alone.

    Raises:
        InputError: a forget set that the data does not have or the method cannot forget, an architecture that timm
            does not have, options that make no sense for the method, a hyperparameter that it does not search, a range
            that goes beyond what it can be, or a budget that leaves it no range or no grid.
    """

    method: type[Method]
    scenario: Scenario
    protocol: Protocol = field(default_factory=Protocol)
    space: Mapping[str, Range] = field(default_factory=dict)
    head: Head = "linear"
    train: Train = "all"

    def __post_init__(self) -> None:
        if not isinstance(self.protocol, Protocol):
            raise InputError(f"a protocol is a raymu.Protocol, not {self.protocol!r}")
        check(self.scenario, self.method, self.protocol.objective, self.protocol.metrics)
        for other in self._forget_sets()[1:]:
            check(other, self.method, self.protocol.objective, self.protocol.metrics)
        self.method.check_options(self.head, self.train)
        known = list(self.method.ranges(self.head))
        for name in self.space:
            if name not in known:
                raise InputError(unknown(f"searched hyperparameter of {self.method.name()}", name, known))
        for name, search in {**self.method.ranges(self.head), **self.space}.items():
            self.method.check_range(name, search)
        self._known(self.protocol.search_seeds[0])

    def check_protocol(self) -> None:
        """Look whether the sweep can run under its protocol, which flags may have changed since it was written.

        Raises:
            InputError: its objective reads what is not measured while a trial runs, and a scheduler is to stop trials;
                or it is to be confirmed on several originals where the scenario has one.
        """
        if self.scenario.original and self.protocol.confirmation.originals:
            raise InputError(
                f"{self.scenario.name} has one original, trained elsewhere: --confirm-originals 0 confirms on it"
            )
        if self.protocol.scheduler != "none":
            self.protocol.objective.check(
                self._at_rungs,
                'while a trial runs: --scheduler none, or Protocol(scheduler="none"), runs all in full',
            )

    @property
    def name(self) -> str:
        """See `identity.name_of`."""
        return name_of(self.method.name(), self.head, self.train)

    @property
    def directory(self) -> str:
        """Its directory's name in a storage, unless another is asked for; see `directory_name`."""
        return directory_name(self.name, self.scenario, self.protocol.objective.name)

    @property
    def ranges(self) -> dict[str, Range]:
        """The search space. Where the protocol caps the epochs, the phases of a method share them in proportion."""
        ranges = {**self.method.ranges(self.head), **self.space}
        longest = self._longest(ranges)
        cap = self.protocol.max_epochs
        if cap is None or longest <= cap:
            return ranges
        for name, search in ranges.items():
            if name.endswith("epochs"):
                try:
                    ranges[name] = dataclasses.replace(search, high=int(search.high * cap / longest))
                except InputError as error:
                    raise InputError(f"max_epochs {cap} leaves {self.method.name()} no range of {name}") from error
        return ranges

    @property
    def chosen(self) -> str:
        """The hyperparameter that no trial is given: it runs to the end of its range, and chooses the value with the
        highest score on its way (see `Method.nested`). "": there is none, as where the objective reads what is not
        measured while a trial runs, or maximises several numbers.
        """
        return self.method.nested if self.is_judged_at_rungs else ""

    @property
    def suggested(self) -> dict[str, Range]:
        """The search space without what is `chosen`."""
        return {name: search for name, search in self.ranges.items() if name != self.chosen}

    @property
    def longest(self) -> int:
        """Epochs of the longest setting."""
        return self._longest(self.ranges)

    def _longest(self, ranges: Mapping[str, Range]) -> int:
        return self.configured({name: search.high for name, search in ranges.items()}).total_epochs

    @property
    def published(self) -> dict[str, Any]:
        """Trial 0."""
        return self.method.published_config(self.scenario, self.head)

    def configured(self, config: Mapping[str, Any]) -> Method:
        """The method at a setting."""
        return self.method.from_config(config, head=self.head, train=self.train)

    def rungs(self, method: Method) -> list[int]:
        """Epochs after which a trial is measured on its way, if it belongs to a search: the published setting runs in
        full, or there were nothing to compare with. Where a trial chooses its epochs, these are all that it may choose.
        """
        epochs, first = method.total_epochs, method.comparable_from
        if not self.chosen:
            return self.protocol.rungs(epochs, first)
        before = epochs - getattr(method, self.chosen)
        return list(range(before + max(method.shortest, int(self.ranges[self.chosen].low)), epochs + 1))

    @property
    def is_judged_at_rungs(self) -> bool:
        """Whether what is measured at a rung says how good a trial is."""
        objective = self.protocol.objective
        return not objective.maximises and not objective.missing(self._at_rungs)

    @property
    def _at_rungs(self) -> list[str]:
        """Columns that are measured while a trial runs."""
        return measured(self.protocol.metrics, rung=True)

    def sampler(self, seed: int, done: Sequence[Row] = (), references: References = NO_REFERENCES) -> Sampler:
        """What suggests the settings of one search beside the published one.

        Args:
            done: the rows of the search so far; those that are appended later are learnt, too.
            references: what the objective compares with.
        """
        chosen, name, published = None, self.chosen, self.published
        if name:
            search = self.ranges[name]
            low, high = int(search.low), int(search.high)

            def least(setting: Setting) -> int:  # of hundreds of settings before each suggestion
                return max(low, self.configured({**published, **setting, name: high}).shortest)

            chosen = Chosen(name, search, least)
        return sampler(self.protocol, seed, self.suggested, done, references, chosen)

    def trials(self, seed: int) -> range:
        """The numbers of the trials of one search, whose first is the published setting; see `place_of`."""
        seeds, known = self.protocol.search_seeds, self._known(seed)
        first, count = seeds.index(seed), self.protocol.trials if known is None else 1 + len(known)
        return range(first, first + count * len(seeds), len(seeds))

    def _known(self, seed: int) -> list[Setting] | None:
        return known_settings(self.protocol, seed, self.suggested)

    def task(self, seed: int, number: int, setting: Mapping[str, Any], expected_gain: float | None = None) -> Task:
        """A trial of one search: its first is the published setting, whatever `setting` says."""
        source: Literal["published", "search"] = (
            "search" if place_of(number, self.protocol.search_seeds) else "published"
        )
        if source == "search" and self.chosen:
            setting = {self.chosen: int(self.ranges[self.chosen].high), **setting}
        config = self.configured({**self.published, **setting}).config
        return Task(number, config, self.scenario, seed, source, seed, expected_gain=expected_gain)

    def confirmations(self, rows: Sequence[Row]) -> list[Task]:
        """What is run again once all searches are over, and the published setting with it.

        Originals outermost, so that a process that runs trial after trial seldom has to load another.
        """
        budget, seeds = self.protocol.budget, self.protocol.search_seeds
        runs = itertools.product(self.confirmed(), selection.to_confirm(rows, budget.top), budget.fresh_seeds(seeds))
        done = {
            (row["confirms"], row["model_seed"], tuple(row["forget"]), row["forget_share"], row["seed"]): row["trial"]
            for row in rows
            if row["source"] == "confirmation"
        }
        taken, tasks = set(done.values()), list[Task]()
        free = (number for number in itertools.count(CONFIRMATIONS) if number not in taken)
        for scenario, row, seed in runs:
            confirms = row["trial_id"]
            run = confirms, scenario.model_seed, scenario.forget, scenario.forget_share, seed
            number = done[run] if run in done else next(free)
            tasks.append(Task(number, row["config"], scenario, seed, "confirmation", None, confirms, not tasks))
        return tasks

    def confirmed(self) -> list[Scenario]:
        """The scenarios of the confirmation: every original with every forget set."""
        budget = self.protocol.budget
        if not budget.seeds:
            return []
        return [
            dataclasses.replace(scenario, model_seed=original)
            for original in budget.fresh_originals(self.scenario.model_seed)
            for scenario in self._forget_sets()
        ]

    def _forget_sets(self) -> list[Scenario]:
        """The scenario, and those that differ in what is forgotten."""
        others = [self.scenario.forgetting(forget=one) for one in self.protocol.confirmation.forget]
        return list(dict.fromkeys([self.scenario, *others]))

    @functools.cached_property
    def _protocol(self) -> dict[str, Any]:
        """The protocol's fields, and digests of what its searcher suggests and its scheduler decides with the installed
        packages.
        """
        several = self.protocol.objective.maximises is not None
        return self.protocol.as_dict() | {
            "suggestions": fingerprints.suggestions(self.protocol.searcher, several),
            "decisions": fingerprints.decisions(self.protocol.scheduler),
        }

    @property
    def protocol_hash(self) -> str:
        """12 hex digits over all that a protocol states, but for what may grow: every row carries it, so that none can
        pass for one of another protocol.
        """
        return content_hash(lasting_protocol(self._protocol))

    def identity(self) -> dict[str, Any]:
        """What two runs have to agree in to be the same sweep (see `lasting`), the budget, and the version of raymu, in
        JSON's types.
        """
        what = {
            "format": FORMAT,
            "raymu": raymu.__version__,
            "method": self.method.name(),
            "method_code": engines.code_of(self.method),
            "evaluation_code": reference_models.evaluation_code(),
            "objective_code": self.protocol.objective.code(),
            "head": self.head,
            "train": self.train,
            "scenario": self.scenario.as_dict(),
            "forgotten": self.scenario.forgotten,
            "subset": self.scenario.subset,
            "space": {name: dataclasses.asdict(search) for name, search in self.ranges.items()},
            "chosen": self.chosen,
            "protocol": self._protocol,
        }
        same: dict[str, Any] = json.loads(json.dumps(what))
        return same
