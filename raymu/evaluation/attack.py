"""The attacker: how well what is left in a model tells the forget set from what was to be kept.

It names no class, since where a classifier puts a class depends on how frequent that was in training. It orders images
by how much they look like the forget set; what counts is the order. Where classes are forgotten, an image is judged by
the log-odds that a linear reader of the frozen features gives to the class, the stronger of two; where samples are
forgotten, by the log-odds that the model itself gives to the true label, since members are told by its confidence.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from raymu.errors import Undefined

FALSE_POSITIVES = 0.05
NORMAL = 1.959964  # the standard deviations of a 95 % interval


class Placements(NamedTuple):
    """Share of the retain images below each forget image (m,), and of the forget images above each retain image (n,).
    The mean of either is the area under the ROC curve.
    """

    forget: Tensor
    retain: Tensor


def log_odds(logits: Tensor, chosen: Tensor) -> Tensor:
    """Log-odds (n, F) of each of the chosen classes against all others, in float64.

    Args:
        logits: of all classes (n, C).
        chosen: places of the chosen classes (F,), or (n, 1) where it is another class for every image.
    """
    logits = logits.double()
    places = chosen.expand(len(logits), -1)
    odds = [
        logits.gather(1, place) - logits.scatter(1, place, -torch.inf).logsumexp(1, keepdim=True)
        for place in places.split(1, dim=1)
    ]
    return torch.cat(odds, 1) if odds else logits[:, :0]


def area(retain: Tensor, forget: Tensor, belongs: Tensor) -> float:
    """Area under the ROC curve of the attacker, one class against the retain images, averaged over the forget images.

    Args:
        retain: log-odds (n, R, F) by R readers, of F forgotten classes, of the retain images.
        forget: of the forget images (m, R, F).
        belongs: place among the F of each forget image's class (m,).

    Raises:
        Undefined: there is no retain or no forget image, or a log-odds is no number.
    """
    return _stronger(retain, forget, belongs, _shares_below)


def recall(retain: Tensor, forget: Tensor, belongs: Tensor) -> float:
    """Share of the forget images that the attacker finds where it takes FALSE_POSITIVES of the retain images, at most,
    for one of their class; see `area`.
    """
    return _stronger(retain, forget, belongs, _found)


def placements(retain: Tensor, forget: Tensor, belongs: Tensor) -> Placements:
    """Placements by the reader with the largest area; see `area`."""
    of_readers = []
    for of_retain, of_forget in _by_reader(retain, forget):
        above = torch.zeros(len(retain), dtype=torch.float64, device=retain.device)
        below = torch.empty(len(forget), dtype=torch.float64, device=retain.device)
        for place in belongs.unique():
            own = belongs == place
            positives, negatives = of_forget[own, place], of_retain[:, place]
            below[own] = _shares_below(positives, negatives)
            above += (1 - _shares_below(negatives, positives)) * own.double().mean()
        of_readers.append(Placements(below, above))
    return max(of_readers, key=lambda one: one.forget.mean().item())


class Memory(NamedTuple):
    """Memory on a split: the attacker's areas under the ROC curve on the original and on the retrained model, the
    standard error of their difference, and the numbers of images. Where an attacker orders the images the wrong way
    round, as one may who learnt from a few, its area is 1 minus what it measures: that tells as much.
    """

    original: float
    retrained: float
    error: float
    forget_images: int
    retain_images: int

    @property
    def interval(self) -> tuple[float, float]:
        """Interval of the difference between the areas, at 95 %."""
        difference, half = self.original - self.retrained, NORMAL * self.error
        return difference - half, difference + half

    @property
    def shown(self) -> str:
        """'0.9950 -> 0.9830: 0.0120 [0.0080, 0.0160]', of the original, the retrained model, and between them."""
        ends = ", ".join(f"{end:.4f}" for end in self.interval)
        return f"{self.original:.4f} -> {self.retrained:.4f}: {self.original - self.retrained:.4f} [{ends}]"


def memory(original: Placements, retrained: Placements) -> Memory:
    """Memory that two models' placements of the same images show; its error is DeLong's (Biometrics 1988).

    Raises:
        Undefined: there are fewer than two images of either kind.
    """
    sizes = [len(one) for one in original]
    if min(sizes) < 2:
        raise Undefined("a standard error needs two retain and two forget images")
    original, retrained = _right_way_round(original), _right_way_round(retrained)
    error = sum(float((one - other).var()) / len(one) for one, other in zip(original, retrained, strict=True)) ** 0.5
    return Memory(float(original.forget.mean()), float(retrained.forget.mean()), error, *sizes)


def _right_way_round(found: Placements) -> Placements:
    return found if found.forget.mean() >= 0.5 else Placements(1 - found.forget, 1 - found.retain)


def _stronger(retain: Tensor, forget: Tensor, belongs: Tensor, judge: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Mean over the forget images of what is judged, (positives, negatives) -> (positives), by the reader with the
    largest.
    """
    return max(
        torch.cat([judge(of_forget[belongs == place, place], of_retain[:, place]) for place in belongs.unique()])
        .double()
        .mean()
        .item()
        for of_retain, of_forget in _by_reader(retain, forget)
    )


def _by_reader(retain: Tensor, forget: Tensor) -> list[tuple[Tensor, Tensor]]:
    if not len(retain) or not len(forget):
        raise Undefined("an attacker needs a retain and a forget image")
    if retain.isnan().any() or forget.isnan().any():
        raise Undefined("a log-odds is no number")
    return list(zip(retain.unbind(1), forget.unbind(1), strict=True))


def twice_below(scores: Tensor, others: Tensor) -> Tensor:
    """Twice the number of others (n,) below each score (m,), so that an equal one, which counts half, is whole."""
    others = others.sort().values
    lower, not_higher = (torch.searchsorted(others, scores.contiguous(), side=side) for side in ("left", "right"))
    return (lower + not_higher).double()


def _shares_below(scores: Tensor, others: Tensor) -> Tensor:
    """Share of the others (n,) that are below each score (m,); an equal one counts half."""
    return twice_below(scores, others) / 2 / len(others)


def _found(positives: Tensor, negatives: Tensor) -> Tensor:
    """Mask of the positives (m,) that lie above at least 1 - FALSE_POSITIVES of the negatives (n,)."""
    allowed = int(FALSE_POSITIVES * len(negatives))
    return positives > negatives.sort().values[len(negatives) - 1 - allowed]
