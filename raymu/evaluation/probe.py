"""The linear probes: what a linear attacker reads from frozen features. A weak one would flatter every method."""

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from raymu import heartbeat
from raymu.evaluation.moments import BLOCK, Moments
from raymu.workers import ALONE, Workers

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
HELD_OUT = 0.2
PART, PER_CLASS = 2**14, 64  # samples that are enough to choose a penalty; at least of each class
ROUGH, EXACT = 1e-2, 1e-5  # how far, in proportion, a loss may be above its minimum: in the choice, and at the end
NEGLIGIBLE = 1e-2  # nats a sample: so small a loss decides no answer
MAX_ITERATIONS = 1000
REMEMBERED = 10  # steps that L-BFGS knows the curvature from
SUFFICIENT = 1e-4  # share of the expected decrease that a step has to bring (Armijo)
SHORTEST = 1e-6  # of the step
LOGITS = 2**21  # that are computed at once: they fit a CPU's cache
FLOOR = 1e-6  # of LDA's covariance, in units of a feature's variance


class _Point(NamedTuple):
    """A place, and what a loss and its gradient are there, in float64."""

    place: Tensor
    value: Tensor
    gradient: Tensor


class _Tried(NamedTuple):
    """A penalty, the minimum it leads to, and how well those weights do on what is held out."""

    accuracy: float
    loss: float
    penalty: float
    minimum: _Point


@dataclass(frozen=True)
class _Samples:
    """Training samples in an order that all workers know, of which each has some. A slice of them is one of that order.

    Attributes:
        inputs: this worker's features, standardised, and a 1 that the bias is multiplied with (n, D + 1).
        targets: their classes (n,).
        mine: which of the samples, in that order, are this worker's (bool, N).
    """

    inputs: Tensor
    targets: Tensor
    mine: Tensor
    workers: Workers

    def __len__(self) -> int:
        return len(self.mine)

    def __getitem__(self, part: slice) -> "_Samples":
        first, last = (int(self.mine[:end].sum()) for end in part.indices(len(self))[:2])
        return _Samples(self.inputs[first:last], self.targets[first:last], self.mine[part], self.workers)


class LinearReader(ABC):
    """A linear classifier of features."""

    _classes: Tensor  # that occur, in the order of the logits

    @abstractmethod
    def logits(self, features: Tensor) -> Iterator[Tensor]:
        """Logits of the classes that occur (m, C) for features (M, D), BLOCK by BLOCK."""

    def predict(self, features: Tensor) -> Tensor:
        """Labels (M,) of features (M, D)."""
        answers: Tensor = self._classes[torch.cat([logits.argmax(1) for logits in self.logits(features)])]
        return answers


class LinearProbe(LinearReader):
    """The probe: multinomial logistic regression fitted to convergence, its L2 penalty chosen on held-out
    features.

        minimise  mean CE(W x + b, label) + penalty / 2 |W|^2,  x the standardised features

    A fifth of every class is held out. From the largest of PENALTIES to the smallest, each fit starts where the one
    before ended, until the held-out accuracy falls by more than its standard error, or the loss is negligible. Of those
    that are no further from the best, the one with the lowest held-out loss is taken (accuracy alone is coarse, and
    loss alone another aim) and fitted to all features. PART of the samples, or PER_CLASS a class, are enough to choose:
    as the penalty weighs against the mean CE, it is larger there, by as much as the samples are fewer. If no class has
    two samples there is nothing to hold out, and the largest penalty is taken.

    L-BFGS (Nocedal and Wright, Numerical Optimization, 2006, Algorithm 7.4) works in the principal axes of the
    features, each weight scaled by its curvature at the start: correlated features cost no more steps than others.

    Deterministic, and on the device that the features are on. Memory beside the features: a float32 copy of them (4 n D
    bytes), LOGITS float32 at a time, the labels of all workers, and in float64 the D x D moments and 2 REMEMBERED
    weights of C x D.

    Each worker keeps its features. All hold out the same samples as one alone would, add up losses and gradients, and
    fit the same weights.

    Args:
        features: this worker's training features (n, D).
        labels: their true labels (n,). Classes that no worker has are never answered.
        moments: moments of all workers' features, where they are known.

    Attributes:
        penalty: the one chosen.

    Raises:
        Undefined: there is no sample, or a feature is not finite.
    """

    def __init__(
        self, features: Tensor, labels: Tensor, moments: Moments | None = None, workers: Workers = ALONE
    ) -> None:
        moments = moments or Moments.of(features, labels, workers)
        self._classes, self._mean, self._scale = moments.classes, moments.mean, moments.scale
        correlation = moments.total / torch.outer(self._scale, self._scale)
        one = torch.ones(1, 1, dtype=correlation.dtype, device=correlation.device)  # what the bias is multiplied with
        variances, self._axes = torch.linalg.eigh(torch.block_diag(correlation, one))
        self._variances = variances.clamp(min=0)  # which rounding leaves below 0 where features depend on each other

        order, num_fit = _hold_out(torch.searchsorted(self._classes, workers.gather(labels)))
        owners = workers.gather(torch.full_like(labels, workers.rank))
        mine = owners[order] == workers.rank
        rows = order[mine] - (owners < workers.rank).sum()
        targets = torch.searchsorted(self._classes, labels[rows])
        samples = _Samples(self._inputs(features, rows), targets, mine, workers)
        chosen = self._choose(samples, num_fit)
        self.penalty = chosen.penalty
        self._weights = self._fit(samples, chosen.penalty, _mean_ce(samples, chosen.minimum.place), EXACT).place

    def logits(self, features: Tensor) -> Iterator[Tensor]:
        """See LinearReader."""
        for rows in torch.arange(len(features), device=features.device).split(BLOCK):
            yield _logits(self._inputs(features, rows), self._weights)

    def _choose(self, samples: _Samples, num_fit: int) -> _Tried:
        """The best penalty for the first samples, judged by the others."""
        fit, unseen = samples[:num_fit], samples[num_fit:]
        size = min(num_fit, max(PART, PER_CLASS * len(self._classes)))
        part = fit[:size]
        shape = len(self._classes), samples.inputs.shape[1]
        minimum = _mean_ce(part, torch.zeros(shape, dtype=torch.float64, device=samples.inputs.device))
        tried = list[_Tried]()
        for penalty in PENALTIES:
            minimum = self._fit(part, penalty * num_fit / size, minimum, ROUGH)
            tried.append(_Tried(*_quality(unseen, minimum.place), penalty, minimum))
            best = max(one.accuracy for one in tried)
            error = math.sqrt(best * (1 - best) / max(1, len(unseen)))
            if tried[-1].accuracy < best - error or tried[-1].loss < NEGLIGIBLE:
                break
        chosen = min((one for one in tried if not one.accuracy < best - error), key=lambda one: one.loss)
        if size == num_fit:
            return chosen
        minimum = self._fit(fit, chosen.penalty, _mean_ce(fit, chosen.minimum.place), ROUGH)
        return _Tried(*_quality(unseen, minimum.place), chosen.penalty, minimum)

    def _inputs(self, features: Tensor, order: Tensor) -> Tensor:
        """The features in that order, standardised, and a 1 (N, D + 1), as float32."""
        inputs = torch.ones(len(order), features.shape[1] + 1, device=features.device)
        precise = torch.promote_types(features.dtype, torch.float32)
        mean, scale = self._mean.to(precise), self._scale.to(precise)
        for rows, into in zip(order.split(BLOCK), inputs.split(BLOCK), strict=True):
            into[:, :-1] = (features[rows] - mean) / scale
        return inputs

    def _fit(self, samples: _Samples, penalty: float, start: _Point, tolerance: float) -> _Point:
        """Go from a point of the mean CE, as a function of the weights (C, D + 1), the biases last, to the one where CE
        plus penalty is minimal.
        """
        penalties = torch.full_like(start.place[0], penalty)
        penalties[-1] = 0  # the biases are free
        curvature = _curvature(samples[:PART], start.place)
        scale = (curvature.unsqueeze(1) * self._variances + penalty).rsqrt()

        def penalised(place: Tensor, ce: _Point) -> _Point:
            value = ce.value + (penalties * ce.place.square()).sum() / 2
            gradient = ce.gradient + penalties * ce.place
            return _Point(place, value, gradient @ self._axes * scale)

        def weights(place: Tensor) -> Tensor:
            unscaled: Tensor = (place * scale) @ self._axes.mT
            return unscaled

        def objective(place: Tensor) -> _Point:
            return penalised(place, _mean_ce(samples, weights(place)))

        begin = penalised(start.place @ self._axes / scale, start)
        found = _minimise(objective, begin, tolerance, samples.workers)
        place = weights(found.place)
        value = found.value - (penalties * place.square()).sum() / 2
        return _Point(place, value, (found.gradient / scale) @ self._axes.mT - penalties * place)


class LDAProbe(LinearReader):
    """The second reader: linear discriminant analysis, in closed form from the moments of the training features.

        W_c = S^-1 m_c,  b_c = -W_c m_c / 2 + log(share of class c)

    S is the covariance within classes of the standardised features, shrunk towards a multiple of the identity by the
    oracle approximating rule (Chen et al., IEEE Trans. Signal Processing 2010, Eq. 23), which needs no held-out
    features.

    Args:
        moments: moments of the training features. Classes that do not occur are never answered.
    """

    def __init__(self, moments: Moments) -> None:
        self._classes, self._mean, self._scale = moments.classes, moments.mean, moments.scale
        within = moments.within / torch.outer(self._scale, self._scale)
        means = (moments.means - self._mean) / self._scale
        shrunk = _shrink(within, samples=float(moments.counts.sum()))
        self._weights = torch.linalg.solve(shrunk, means.mT).mT
        shares = moments.counts[self._classes] / moments.counts.sum()
        self._biases = shares.log() - (self._weights * means).sum(1) / 2

    def logits(self, features: Tensor) -> Iterator[Tensor]:
        """See LinearReader."""
        for some in features.split(BLOCK):
            yield (some.double() - self._mean) / self._scale @ self._weights.mT + self._biases


def _hold_out(targets: Tensor) -> tuple[Tensor, int]:
    """An order of the rows (N,), and how many of them come before those that are held out of it.

    Drawn at random, always the same. A class with two samples or more is in both parts.
    """
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0)).to(targets.device)
    targets = targets[order]
    by_class, counts = targets.argsort(stable=True), targets.bincount()
    place = torch.empty_like(targets)  # of a row among the rows of its class
    place[by_class] = torch.arange(len(targets), device=targets.device) - (counts.cumsum(0) - counts)[targets[by_class]]
    held = (HELD_OUT * counts).round().clamp(min=1).minimum(counts - 1)
    chosen = place < held[targets]
    return torch.cat([order[~chosen], order[chosen]]), int((~chosen).sum())


def _logits(inputs: Tensor, weights: Tensor) -> Tensor:
    """Logits (N, C) of inputs (N, D + 1)."""
    return inputs @ weights.to(inputs.dtype).mT


def _blocks(inputs: Tensor, weights: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the inputs, and their logits."""
    size = max(1, LOGITS // len(weights))
    for start in range(0, len(inputs), size):
        rows = slice(start, start + size)
        yield rows, _logits(inputs[rows], weights)


def _mean_ce(samples: _Samples, weights: Tensor) -> _Point:
    """The mean CE at these weights (C, D + 1)."""
    loss, gradient = weights.new_zeros(()), torch.zeros_like(weights)
    for rows, logits in _blocks(samples.inputs, weights):
        labels = samples.targets[rows].unsqueeze(1)
        # By hand, as torch's log_softmax takes many times as long over few classes on a CPU.
        logits -= logits.amax(1, keepdim=True)
        of_label = logits.gather(1, labels)
        chances = logits.exp_()
        total = chances.sum(1, keepdim=True)
        loss += (total.log() - of_label).sum(dtype=torch.float64)
        errors = chances.div_(total).scatter_add_(1, labels, -torch.ones_like(total))
        gradient += errors.mT @ samples.inputs[rows]
    samples.workers.sum(loss, gradient)
    return _Point(weights, loss / len(samples), gradient / len(samples))


def _curvature(samples: _Samples, weights: Tensor) -> Tensor:
    """The mean of p (1 - p) by class (C,): what the Hessian of CE has on its diagonal, per unit of variance."""
    total = torch.zeros_like(weights[:, 0])
    for _, logits in _blocks(samples.inputs, weights):
        chances = logits.softmax(1)
        total += (chances * (1 - chances)).sum(0)
    samples.workers.sum(total)
    return total / len(samples)


def _quality(samples: _Samples, weights: Tensor) -> tuple[float, float]:
    """Accuracy and mean CE; NaN if there is no sample."""
    sums = weights.new_zeros(2)
    for rows, logits in _blocks(samples.inputs, weights):
        sums[0] += (logits.argmax(1) == samples.targets[rows]).sum()
        sums[1] += cross_entropy(logits, samples.targets[rows], reduction="sum")
    samples.workers.sum(sums)
    right, loss = sums.tolist()
    return (right / len(samples), loss / len(samples)) if len(samples) else (math.nan, math.nan)


def _minimise(objective: Callable[[Tensor], _Point], start: _Point, tolerance: float, workers: Workers) -> _Point:
    """Where a convex objective is above its minimum by about so small a share: L-BFGS.

    All workers take the same steps. The first says where a loop ends, for whoever rounds differently: one that left it
    alone would wait for the others, and they for it.
    """
    here, history = start, deque[tuple[Tensor, Tensor, Tensor]](maxlen=REMEMBERED)
    for _ in range(MAX_ITERATIONS):
        direction = _descent(here.gradient, history)
        expected = -(here.gradient * direction).sum() / 2  # decrease, if the curvature is known well
        if workers.broadcast(bool(expected <= tolerance * here.value.clamp(min=NEGLIGIBLE))):
            break
        length = 1.0
        while True:
            heartbeat.beat()
            there = objective(here.place + length * direction)
            if workers.broadcast(bool(there.value <= here.value - SUFFICIENT * length * expected)):
                break
            length /= 2
            if length < SHORTEST:  # what is left is rounding
                return here
        s, y = (there.place - here.place).flatten(), (there.gradient - here.gradient).flatten()
        if (curvature := s.dot(y)) > 0:
            history.append((s, y, curvature))
        here = there
    return here


def _descent(gradient: Tensor, history: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The quasi-Newton direction: the two-loop recursion over the last steps (Nocedal, Math. Comp. 1980).

    Args:
        history: of each step the change of place s, of gradient y, and their product.
    """
    direction = -gradient.flatten()
    alphas = []
    for s, y, curvature in reversed(history):
        alphas.append(s.dot(direction) / curvature)
        direction = direction.addcmul(alphas[-1], y, value=-1)
    if history:
        _, y, curvature = history[-1]
        direction = direction * (curvature / y.dot(y))
    for (s, y, curvature), alpha in zip(history, reversed(alphas), strict=True):
        direction = direction.addcmul(alpha - y.dot(direction) / curvature, s)
    return direction.view_as(gradient)


def _shrink(covariance: Tensor, samples: float) -> Tensor:
    """The covariance (D, D), shrunk so that it can be inverted."""
    size, trace, square = len(covariance), covariance.trace(), covariance.square().sum()
    share = ((1 - 2 / size) * square + trace**2) / ((samples + 1 - 2 / size) * (square - trace**2 / size))
    share = share.nan_to_num(nan=1.0).clamp(max=1)  # 0 / 0 where nothing varies within classes
    return (1 - share) * covariance + torch.eye(size, dtype=covariance.dtype, device=covariance.device) * (
        share * trace / size + FLOOR
    )
