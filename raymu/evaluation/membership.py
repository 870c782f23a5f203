"""Membership inference: whether a model's confidence betrays which images it was trained on."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raymu.errors import Undefined
from raymu.evaluation.attack import twice_below
from raymu.workers import ALONE, Workers

FOLDS = 3
ROUNDING = 1e-12
EXACT = 1e-10  # how far, in proportion, an attacker's loss may be above its minimum
SUFFICIENT = 1e-4  # share of the expected decrease that a step has to bring (Armijo)


def mia_auc(
    members: Tensor, member_labels: Tensor, unseen: Tensor, unseen_labels: Tensor, workers: Workers = ALONE
) -> float:
    """Area under the ROC curve of an attacker who tells forgotten training images from unseen ones: 0.5 is no leak.

    The attacker is a logistic regression on what `confidence` says, standardised; both sides weigh the same. It is
    trained and judged on different folds; the mean over the folds. Deterministic. All workers' features are put
    together, and all train the same attacker.

    Args:
        members: logits (m, K) of this worker's training images, with true labels (m,).
        unseen: logits (u, K) of its images of the same classes that no training saw, with true labels (u,).

    Raises:
        Undefined: there are fewer than two of either, or a logit is not finite.
    """
    told = [confidence(members, member_labels), confidence(unseen, unseen_labels)]
    parts = [workers.gather(part) for part in told]
    folds = min(FOLDS, *map(len, parts))
    if folds < 2:
        raise Undefined("membership inference needs two members and two unseen images")
    both = torch.cat(parts)
    if not both.isfinite().all():
        raise Undefined("the logits are not finite")
    standardised = ((both - both.mean(0)) / both.std(0).clamp(min=ROUNDING)).cpu().numpy()
    inputs = np.column_stack([standardised, np.ones(len(both))])  # the ones are multiplied with the bias
    targets = np.repeat([True, False], [len(part) for part in parts])
    random = np.random.default_rng(0)
    fold = np.concatenate([random.permutation(np.arange(len(part)) % folds) for part in parts])
    areas = []
    for held_out in range(folds):
        weights = _logistic_regression(inputs[fold != held_out], targets[fold != held_out])
        areas.append(_area_under_roc(inputs[fold == held_out] @ weights, targets[fold == held_out]))
    return float(np.mean(areas))


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """What logits (N, K) say of how sure a model is of the true labels (N,), as features (N, 4): the log-odds of the
    label (Carlini et al., S&P 2022), its CE, the entropy (Song and Mittal, USENIX Security 2021), and how far the
    answer is ahead of the second best. NaN where a logit is not finite.
    """
    logs = logits.double().log_softmax(1)
    label = labels.unsqueeze(1)
    of_label = logs.gather(1, label).squeeze(1)
    of_others = logs.scatter(1, label, -torch.inf).logsumexp(1)
    answer, second = logs.topk(2, dim=1).values.unbind(1)
    entropy = -(logs.exp() * logs).sum(1)
    return torch.stack([of_label - of_others, -of_label, entropy, answer - second], dim=1)


def _logistic_regression(inputs: NDArray[np.float64], targets: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Weights (F,) of a logistic regression on inputs (N, F). The last input is 1: its weight, the bias, is free.

        minimise  sum_i s_i log(1 + exp(-t_i w x_i)) + |w|^2 / 2,  t_i = +-1,  s_i = N / (2 samples like i)

    By Newton's method. A library takes ten times as long to look at its arguments, and two seconds of every trial's
    process to be imported.
    """
    counts = np.bincount(targets, minlength=2)
    shares = len(targets) / (2 * counts[targets.astype(int)])
    signed = inputs * np.where(targets, 1.0, -1.0)[:, None]
    penalties = np.ones(inputs.shape[1])
    penalties[-1] = 0
    weights = np.zeros(inputs.shape[1])

    def loss(weights: NDArray[np.float64]) -> float:
        return float(shares @ np.logaddexp(0, -signed @ weights) + penalties @ weights**2 / 2)

    while True:
        here, wrong = loss(weights), np.exp(-np.logaddexp(0, signed @ weights))
        gradient = penalties * weights - (shares * wrong) @ signed
        curvature = np.diag(penalties) + (signed.T * (shares * wrong * (1 - wrong))) @ signed
        step = np.linalg.solve(curvature, gradient)
        decrease = gradient @ step / 2
        if decrease <= EXACT * here:
            return weights
        while loss(weights - step) > here - SUFFICIENT * decrease:
            step, decrease = step / 2, decrease / 2
        weights = weights - step


def _area_under_roc(scores: NDArray[np.float64], targets: NDArray[np.bool_]) -> float:
    """The share of pairs of a positive and a negative (N,) whose scores (N,) are in order; ties count half."""
    positives, negatives = (torch.from_numpy(scores[chosen]) for chosen in (targets, ~targets))
    return float(twice_below(positives, negatives).mean() / 2 / len(negatives))
