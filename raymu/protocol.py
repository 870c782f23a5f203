"""The fair budget: what every method gets, stated before the search and stored with its results."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from raymu import objective as objectives
from raymu.errors import InputError
from raymu.evaluation.metrics import Metric, check_new
from raymu.objective import REMOVAL, Objective
from raymu.results.identity import CONFIRMATIONS, Budget
from raymu.values import NOT_NEGATIVE, POSITIVE, Bounds, conform

Searcher = Literal["gp", "tpe", "random", "quasi_random", "grid", "nsga2"]
Scheduler = Literal["none", "asha", "median"]

AUTO = 64, 8  # trials and patience of a search that ends when more trials are not worth it
REDUCTION_FACTOR = 3
TURNED = 3  # epochs after its best one at which a trial that chooses its epochs ends
GRACE_EPOCHS = 1


@dataclass(frozen=True)
class Confirmation:
    """What the best settings of a method, and its published one, are run on again: what a report's means and intervals
    come from, never from the lucky maximum of a search.

    Attributes:
        seeds: fresh unlearning seeds a setting, original and forget set; 0: nothing is confirmed.
        originals: originals that are trained for it, independently of each other and of the one that was searched on;
            0: that one serves. Repeating unlearning on one original hides most of the variance (Lanyon et al., arXiv
            2510.26714).
        top: how many of the best settings of a method; the one with the highest mean on validation is its tuned one.
        forget: further forget sets, each some classes; sorted, and none twice.

    Raises:
        InputError: a value that cannot work.
    """

    seeds: int = 0
    originals: int = 0
    top: int = 3
    forget: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        conform(self, "confirmation ", seeds=NOT_NEGATIVE, originals=NOT_NEGATIVE, top=Bounds(1), forget=NOT_NEGATIVE)
        object.__setattr__(self, "forget", tuple(sorted({tuple(sorted(set(one))) for one in self.forget})))
        if not self.seeds and (self.originals or self.forget):
            raise InputError("a confirmation needs at least one seed")


@dataclass(frozen=True)
class Protocol:
    """How a method is searched, and how what was found is confirmed.

    Trial 0 of every search is the published setting and always runs in full, so a tuned method is never worse on
    validation than the published one.

    Attributes:
        trials: how many settings a search tries.
        max_epochs: the longest that a searched setting may be, over all its phases; None: as long as the method's
            ranges say.
        max_images: how many training images a search may process in all: when they are spent, no trial is begun any
            more; None: no limit.
        max_hours: wall time of a search after which it begins no trial any more, all resumptions together. Unlike
            `max_images` it is not reproducible to the trial: a faster machine tries more settings. None: no limit.
        searcher: "gp" (Gaussian processes of the columns that the objective reads, for one score), "tpe" (Optuna's),
            "random", "quasi_random" (scrambled Sobol points), "grid" (as many values of every hyperparameter as the
            trials allow), or "nsga2" (Optuna's) for the objective pareto. What one suggests depends on no total, so
            that the trials of a shorter search begin a longer one.
        scheduler: "none" lets all trials run in full. "asha" stops a trial after epoch 1, 3, 9, ... when its objective
            there is not among the best third of the trials that got there before it (Li et al., MLSys 2020), "median"
            after any epoch when it was never as good as the median of the others' averages up to there (Golovin et al.,
            KDD 2017); both never within a phase in which its method says that scores do not compare yet.
        search_seeds: every seed makes one search: it draws the suggestions, and everything random inside the trials.
        objective: what is maximised, on validation; one of `raymu.objective.OBJECTIVES` also by name.
        confirmation: what is run again.
        metrics: what is measured beside raymu's own metrics.
        patience: number of trials in a row with an expected improvement below the noise of the best score (the column
            `expected_gain` below 1), after which a search begins no further trial; None: it tries all settings.

    Raises:
        InputError: a value that cannot work.
    """

    trials: int = 12
    max_epochs: int | None = None
    max_images: int | None = None
    max_hours: float | None = None
    searcher: Searcher = "gp"
    scheduler: Scheduler = "none"
    search_seeds: tuple[int, ...] = (0,)
    objective: Objective = REMOVAL
    confirmation: Confirmation = field(default_factory=Confirmation)
    metrics: tuple[Metric, ...] = ()
    patience: int | None = None

    def __post_init__(self) -> None:
        some = Bounds(1)
        conform(self, trials=some, max_epochs=some, max_images=some, max_hours=POSITIVE, patience=some)
        if not self.search_seeds or min(self.search_seeds) < 0:
            raise InputError(f"a search needs seeds of at least 0, not {self.search_seeds}")
        if len(set(self.search_seeds)) < len(self.search_seeds):
            raise InputError(f"the search seeds {self.search_seeds} are not all different")
        if self.trials * len(self.search_seeds) > CONFIRMATIONS:
            raise InputError(f"trials have to be at most {CONFIRMATIONS // len(self.search_seeds):,} a search")
        if not isinstance(self.objective, Objective):
            object.__setattr__(self, "objective", objectives.get(str(self.objective)))
        object.__setattr__(self, "metrics", tuple(self.metrics))
        check_new(self.metrics)
        name, several = self.objective.name, self.objective.maximises is not None
        if self.searcher == "nsga2" and not several:
            raise InputError(f"searcher nsga2 is for the objective pareto, not for {name}")
        if self.searcher == "gp" and several:
            raise InputError(f"searcher gp maximises one score: with the objective {name} take tpe or nsga2")
        if self.patience is not None and self.searcher != "gp":
            raise InputError(f"searcher {self.searcher} expects nothing of a trial: only gp has patience")
        if several and self.scheduler != "none":
            raise InputError(f"a scheduler compares trials by one score; with the objective {name} it has to be none")

    @property
    def budget(self) -> Budget:
        """What of it may grow."""
        asked = self.confirmation
        return Budget(self.trials, asked.seeds, asked.originals, asked.top)

    def as_dict(self) -> dict[str, Any]:
        """All fields in JSON's types: the objective by its name, the metrics with their code."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            **fields,
            "objective": self.objective.name,
            "confirmation": dataclasses.asdict(self.confirmation),
            "metrics": {metric.name: metric.code() for metric in self.metrics},
        }

    def rungs(self, epochs: int, comparable_from: int = 1) -> list[int]:
        """Epochs before the last after which a trial of `epochs` epochs is measured for the scheduler.

        Args:
            comparable_from: the first epoch at which its score is comparable.
        """
        if self.scheduler == "none":
            return []
        if self.scheduler == "median":
            return list(range(max(GRACE_EPOCHS, comparable_from), epochs))
        rungs = []
        epoch = GRACE_EPOCHS
        while epoch < epochs:
            if epoch >= comparable_from:
                rungs.append(epoch)
            epoch *= REDUCTION_FACTOR
        return rungs
