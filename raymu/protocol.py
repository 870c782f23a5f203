"""The fair budget: what every method gets, stated before the search and stored with its results."""

from dataclasses import dataclass
from typing import Literal, get_args

from raymu.errors import InputError
from raymu.objective import OBJECTIVES
from raymu.scenario import unknown

Scheduler = Literal["asha", "none"]

REDUCTION_FACTOR = 3
GRACE_EPOCHS = 1


@dataclass(frozen=True)
class Protocol:
    """How a method is searched.

    The searcher is Optuna's TPE. Trial 0 is the published setting and always runs in full, so a tuned method is
    never worse on validation than the published one.

    Attributes:
        trials: how many settings are tried.
        seed: draws the suggestions of the searcher and everything random inside every trial.
        objective: a key of `raymu.objective.OBJECTIVES`, computed on validation.
        scheduler: "asha" stops a trial after epoch 1, 3, 9, ... when its objective there is not among the best third
            of the trials that got there before it (Li et al., MLSys 2020), but never within a phase in which its
            method says that scores do not compare yet; "none" lets all run in full.

    Raises:
        InputError: a value that cannot work.
    """

    trials: int = 40
    seed: int = 0
    objective: str = "hmean"
    scheduler: Scheduler = "asha"

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise InputError(f"trials has to be at least 1, not {self.trials}")
        if self.seed < 0:
            raise InputError(f"seed has to be at least 0, not {self.seed}")
        if self.objective not in OBJECTIVES:
            raise InputError(unknown("objective", self.objective, list(OBJECTIVES)))
        if self.scheduler not in get_args(Scheduler):
            raise InputError(unknown("scheduler", self.scheduler, list(get_args(Scheduler))))

    def rungs(self, epochs: int, comparable_from: int = 1) -> list[int]:
        """The epochs before the last after which the scheduler compares a trial of so many epochs, the first at which
        its score is comparable being `comparable_from`.
        """
        rungs = []
        epoch = GRACE_EPOCHS
        while self.scheduler == "asha" and epoch < epochs:
            if epoch >= comparable_from:
                rungs.append(epoch)
            epoch *= REDUCTION_FACTOR
        return rungs
