"""First and second moments of features: all that NCC, neural collapse and LDA need to know of them."""

import torch
from torch import Tensor

from raymu.errors import Undefined
from raymu.workers import ALONE, Workers

BLOCK = 2**14  # samples that are taken in at once
ROUNDING = 1e-12  # a variance is none if it is below this share of the squared mean


class Moments:
    """Sums over samples, kept in float64, in one pass: no feature has to be kept, and parts are put together.

    Products are of deviations from the mean (Chan, Golub and LeVeque, Updating formulae, 1979): features that vary
    little far from the origin lose no digits.

    A feature that is not finite makes them so.

    Memory: K (D + 1) + D^2 float64 for K classes and D features, and BLOCK x D more during an update, however many
    samples there are.

    Attributes:
        counts: samples of every class (K,).
        sums: the sum of every class's features (K, D).
        scatter: the sum over all samples of (f - m)(f - m)^T, m their mean (D, D).
    """

    def __init__(self, num_classes: int, num_features: int, device: torch.device) -> None:
        self.counts = torch.zeros(num_classes, dtype=torch.float64, device=device)
        self.sums = torch.zeros(num_classes, num_features, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(num_features, num_features, dtype=torch.float64, device=device)

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, workers: Workers = ALONE) -> "Moments":
        """Moments of all workers' features, where this one has (n, D) with labels (n,).

        Raises:
            Undefined: there is no sample, or a feature is not finite.
        """
        known = workers.gather(labels)
        if not len(known):
            raise Undefined("there is no sample")
        moments = cls(int(known.max()) + 1, features.shape[1], features.device)
        moments.update(features, labels)
        moments.reduce(workers)
        if not moments.scatter.diagonal().isfinite().all():  # looked at here, where all workers see it
            raise Undefined("the features are not finite")
        return moments

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take in features (B, D) with labels (B,) in 0..K-1."""
        if not len(labels):  # which have no mean
            return
        for some, their in zip(features.split(BLOCK), labels.split(BLOCK), strict=True):
            some = some.to(torch.promote_types(some.dtype, torch.float32))
            counts = their.bincount(minlength=len(self.counts))
            # Deviations are precise in the features' own precision, which takes half the time.
            centre = some.mean(0)
            deviations = some - centre
            sums = torch.zeros_like(self.sums, dtype=some.dtype).index_add_(0, their, deviations).double()
            left = sums.sum(0) / len(some)  # of the mean: it was rounded
            self.scatter += (deviations.mT @ deviations).double() - len(some) * torch.outer(left, left)
            apart = centre + left - self.mean
            before = self.counts.sum()
            self.scatter += before * len(some) / (before + len(some)) * torch.outer(apart, apart)
            self.counts += counts
            self.sums += sums + torch.outer(counts.double(), centre.double())

    def reduce(self, workers: Workers) -> None:
        """Add up all workers' moments; each then has the moments of all samples."""
        size, mean = self.counts.sum(), self.mean
        workers.sum(self.counts, self.sums)
        apart = mean - self.mean
        self.scatter += size * torch.outer(apart, apart)
        workers.sum(self.scatter)

    @property
    def classes(self) -> Tensor:
        """The classes that occur (C,), in increasing order."""
        return self.counts.nonzero().squeeze(1)

    @property
    def means(self) -> Tensor:
        """The mean feature of every class that occurs (C, D)."""
        return self.sums[self.classes] / self.counts[self.classes].unsqueeze(1)

    @property
    def mean(self) -> Tensor:
        """The mean of all samples (D,); 0 if there is none."""
        return self.sums.sum(0) / self.counts.sum().clamp(min=1)

    @property
    def scale(self) -> Tensor:
        """The standard deviation of every feature over all samples (D,); 1 for one that is constant."""
        variance = self.scatter.diagonal() / self.counts.sum()
        return torch.where(variance > ROUNDING * self.mean.square(), variance, 1.0).sqrt()

    @property
    def total(self) -> Tensor:
        """The covariance of all samples (D, D): the mean of (f - m)(f - m)^T."""
        return self.scatter / self.counts.sum()

    @property
    def within(self) -> Tensor:
        """The covariance within classes, Sw (D, D): the mean over all samples of (f - m_c)(f - m_c)^T."""
        apart = self.means - self.mean
        explained = (self.counts[self.classes].unsqueeze(1) * apart).mT @ apart
        return (self.scatter - explained) / self.counts.sum()
