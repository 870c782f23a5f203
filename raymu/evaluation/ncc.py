"""NCC, the nearest class centre: what the class means alone tell."""

import torch
from torch import Tensor


class NearestClassCentre:
    """Answers with the class whose mean training feature is nearest in Euclidean distance (Papyan et al., PNAS 2020).

    Args:
        features: training features (N, D).
        labels: their true labels (N,). Classes that do not occur are never answered.
    """

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self._classes, position = labels.unique(return_inverse=True)
        sums = torch.zeros(len(self._classes), features.shape[1], dtype=torch.float64, device=features.device)
        sums.index_add_(0, position, features.double())
        self._centres = sums / position.bincount().unsqueeze(1)

    def predict(self, features: Tensor) -> Tensor:
        """Labels (M,) of features (M, D)."""
        nearest: Tensor = self._classes[torch.cdist(features.double(), self._centres).argmin(1)]
        return nearest
