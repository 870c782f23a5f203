"""TPE, the tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011)."""

import math
import warnings

import numpy as np
from numpy.typing import NDArray
from optuna.samplers import TPESampler

from raymu.tuning.samplers.learning import Learner

RECENT = 25  # trials that are weighed in full


class TPE(Learner):
    """Optuna's TPE with every argument spelt out, since its defaults change."""

    def _sampler(self, seed: int) -> TPESampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna 4 calls some of these experimental, Optuna 5 others deprecated
            return TPESampler(
                consider_prior=True,
                prior_weight=1.0,
                consider_magic_clip=True,
                consider_endpoints=False,
                n_startup_trials=10,
                n_ei_candidates=24,
                gamma=_best_tenth if self._several else _best_tenth_of_few,
                weights=_recent_first,
                seed=seed,
                multivariate=not self._several,
                group=False,
                warn_independent_sampling=False,
                constant_liar=False,  # no trial is running: a suggestion depends on rows
                constraints_func=None,
            )


def _best_tenth(trials: int) -> int:
    return math.ceil(trials / 10)


def _best_tenth_of_few(trials: int) -> int:
    return min(_best_tenth(trials), RECENT)


def _recent_first(trials: int) -> NDArray[np.float64]:
    """Weights of trials, oldest first (Bergstra et al., ICML 2013)."""
    older = max(trials - RECENT, 0)
    return np.concatenate([np.linspace(1 / max(trials, 1), 1, older), np.ones(trials - older)])
