"""NSGA-II (Deb et al., IEEE TEC 2002), for objectives that maximise several numbers."""

from typing import Any

from optuna.samplers import NSGAIISampler
from optuna.samplers.nsgaii import UniformCrossover
from optuna.study import Study
from optuna.trial import FrozenTrial

from raymu.tuning.samplers.learning import Learner

POPULATION = 10  # whatever the number of trials is, which may grow


class NSGA2(Learner):
    """Optuna's NSGA-II with every argument spelt out that Optuna 4 has, too: Optuna 5 adds `mutation`, by default a new
    value from the whole range, as in Optuna 4.
    """

    def _sampler(self, seed: int) -> NSGAIISampler:
        return _Ordered(
            population_size=POPULATION,
            mutation_prob=None,  # one hyperparameter a child, on average
            crossover=UniformCrossover(swapping_prob=0.5),
            crossover_prob=0.9,
            swapping_prob=0.5,
            seed=seed,
            constraints_func=None,
            elite_population_selection_strategy=None,
            child_generation_strategy=None,
            after_trial_strategy=None,
        )

    def _attributes(self) -> dict[str, Any]:
        return {_Ordered._get_generation_key(): self._learnt // POPULATION}


class _Ordered(NSGAIISampler):
    """Its parents come in the order of their trials, as a study gives them from its cache from the second time on."""

    def select_parent(self, study: Study, generation: int) -> list[FrozenTrial]:
        return sorted(super().select_parent(study, generation), key=lambda parent: parent.number)
