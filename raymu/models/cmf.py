"""The head of class-mean features (Gao et al., AISTATS 2026)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from raymu.models.inference import features_and_logits, head_matrix, heads, outputs
from raymu.splits import Data


class CMF(nn.Module):
    """A classifier whose head are the class means of its own features (Gao et al., AISTATS 2026, Section 5).

    z = norm(norm(f) - mu), W_c = norm(m_c - mu), logits = temperature * z W^T, where f are the backbone's penultimate
    features, m_c is the mean of norm(f) over class c and mu that over all. The head has nothing to train: it follows
    the features when `update` is called, so that a method has to change them.

    Differs from the source: Gao et al. take the class means of augmented images; here they never are.

    Whoever probes it looks at z. The backbone's own head is not used.

    Args:
        backbone: a timm classifier; the weights of its head are frozen.
        temperature: what the cosines are multiplied by.
    """

    def __init__(self, backbone: Any, num_classes: int, temperature: float) -> None:
        super().__init__()
        self.backbone: Any = backbone.requires_grad_(True)
        for layer in heads(backbone):
            layer.requires_grad_(False)
        size = head_matrix(backbone).shape[1]
        self.head = nn.Linear(size, num_classes, bias=False)
        weight = torch.zeros_like(self.head.weight)
        del self.head.weight
        self.head.register_buffer("weight", weight)  # not trained: what shards parameters leaves it alone
        self.temperature = temperature
        self.mu: Tensor
        self.register_buffer("mu", torch.zeros(size))

    def class_sums(self, data: Data) -> tuple[Tensor, Tensor]:
        """Of this worker's share of the training set, the sum of every class's unit backbone features (K, D) and the
        number of its images (K,), float64.
        """
        sums = torch.zeros_like(self.head.weight, dtype=torch.float64)
        counts = torch.zeros_like(sums[:, 0])
        for features, _, labels in outputs(self.backbone, data, data.train):
            sums.index_add_(0, labels, normalize(features.double()))
            counts += labels.bincount(minlength=len(counts))
        return sums, counts

    @torch.no_grad()
    def update(self, sums: Tensor, counts: Tensor) -> None:
        """Make the head from the class sums of the whole training set. A class without images gets the logit 0."""
        mean, counts = sums.sum(0) / counts.sum(), counts.unsqueeze(1)
        centred = torch.where(counts > 0, sums / counts - mean, 0.0)
        self.mu.copy_(mean)
        self.head.weight.copy_(self.temperature * normalize(centred))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of normalised images."""
        features, _ = features_and_logits(self.backbone, images)
        logits: Tensor = self.head(normalize(normalize(features) - self.mu))
        return logits

    def get_classifier(self) -> nn.Module:
        """The head, without its centring: it takes z."""
        return self.head
