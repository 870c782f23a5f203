"""The linear probe: what a linear attacker reads from frozen features."""

import warnings

import torch
from torch import Tensor

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)  # scikit-learn's C: the inverse of the L2 penalty
HELD_OUT = 0.2
MAX_ITERATIONS = 1000


class LinearProbe:
    """Multinomial logistic regression on standardised features, with the L2 penalty chosen on held-out features.

    A weak probe flatters every method, so it is fitted to convergence and regularised as well as the features allow.
    Deterministic.

    Args:
        features: training features (N, D), finite.
        labels: their true labels (N,), at least two classes with at least two samples each.

    Raises:
        ValueError: the features are not finite, or a class has a single sample.
    """

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        from sklearn.linear_model import LogisticRegression  # takes a second, which only who probes has to spend
        from sklearn.model_selection import train_test_split

        self._mean = features.mean(0)
        self._scale = features.std(0)
        self._scale[self._scale == 0] = 1  # a constant feature says nothing, at any scale
        inputs, targets = self._standardise(features), labels.cpu().numpy()
        fit_inputs, held_inputs, fit_targets, held_targets = train_test_split(
            inputs, targets, test_size=HELD_OUT, stratify=targets, random_state=0
        )
        self._model = LogisticRegression(max_iter=MAX_ITERATIONS, warm_start=True)
        best = (-1.0, STRENGTHS[0])
        for strength in STRENGTHS:  # from strong to weak, each started from the last solution
            self._fit(strength, fit_inputs, fit_targets)
            accuracy = self._model.score(held_inputs, held_targets)
            best = max(best, (accuracy, strength), key=lambda pair: pair[0])  # ties: the stronger penalty
        self._fit(best[1], inputs, targets)

    def predict(self, features: Tensor) -> Tensor:
        """Labels (M,) of features (M, D)."""
        return torch.from_numpy(self._model.predict(self._standardise(features))).to(features.device)

    def _standardise(self, features: Tensor):  # type: ignore[no-untyped-def]
        return ((features - self._mean) / self._scale).double().cpu().numpy()

    def _fit(self, strength, inputs, targets) -> None:  # type: ignore[no-untyped-def]
        from sklearn.exceptions import ConvergenceWarning

        with warnings.catch_warnings():
            # The weakest penalty on separable features has its optimum far out; it seldom wins on held-out features.
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._model.set_params(C=strength).fit(inputs, targets)
