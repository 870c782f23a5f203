"""NCC, the nearest class centre: what the class means alone tell."""

import torch
from torch import Tensor

from raymu.evaluation.moments import BLOCK, Moments


class NearestClassCentre:
    """Answers with the class whose mean training feature is nearest in Euclidean distance (Papyan et al., PNAS 2020).

    Args:
        moments: moments of the training features. Classes that do not occur are never answered.
    """

    def __init__(self, moments: Moments) -> None:
        self._classes, self._centres = moments.classes, moments.means

    def predict(self, features: Tensor) -> Tensor:
        """Labels (M,) of features (M, D)."""
        nearest = [torch.cdist(some.double(), self._centres).argmin(1) for some in features.split(BLOCK)]
        return self._classes[torch.cat(nearest)]
