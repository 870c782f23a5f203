"""Membership inference: whether a model's confidence betrays which images it was trained on."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raymu.errors import Undefined
from raymu.workers import ALONE, Workers

FOLDS = 3
ROUNDING = 1e-12


def mia_auc(
    members: Tensor, member_labels: Tensor, unseen: Tensor, unseen_labels: Tensor, workers: Workers = ALONE
) -> float:
    """Area under the ROC curve of an attacker who tells forgotten training images from unseen ones: 0.5 is no leak.

    The attacker is scikit-learn's logistic regression on what `confidence` says, trained and judged on different folds;
    the mean over the folds. Deterministic. All workers' features are put together, and all train the same attacker.

    Args:
        members: logits (m, K) of this worker's training images, with true labels (m,).
        unseen: logits (u, K) of its images of the same classes that no training saw, with true labels (u,).

    Raises:
        Undefined: there are fewer than two of either, or a logit is not finite.
    """
    from sklearn import config_context
    from sklearn.linear_model import LogisticRegression

    told = [confidence(members, member_labels), confidence(unseen, unseen_labels)]
    parts = [workers.gather(part) for part in told]
    folds = min(FOLDS, *map(len, parts))
    if folds < 2:
        raise Undefined("membership inference needs two members and two unseen images")
    both = torch.cat(parts)
    if not both.isfinite().all():
        raise Undefined("the logits are not finite")
    inputs = ((both - both.mean(0)) / both.std(0).clamp(min=ROUNDING)).cpu().numpy()
    targets = np.repeat([True, False], [len(part) for part in parts])
    random = np.random.default_rng(0)
    fold = np.concatenate([random.permutation(np.arange(len(part)) % folds) for part in parts])
    attacker = LogisticRegression(class_weight="balanced", solver="newton-cholesky")
    areas = []
    with config_context(assume_finite=True, skip_parameter_validation=True):  # both cost more than the fits
        for held_out in range(folds):
            attacker.fit(inputs[fold != held_out], targets[fold != held_out])
            scores = attacker.decision_function(inputs[fold == held_out])
            areas.append(_area_under_roc(scores, targets[fold == held_out]))
    return float(np.mean(areas))


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """What logits (N, K) say of how sure a model is of the true labels (N,), as features (N, 4): the log-odds of the
    label (Carlini et al., S&P 2022), its CE, the entropy, and the log-odds of the answer (Song and Mittal, USENIX
    Security 2021). NaN where a logit is not finite.
    """
    logs = logits.double().log_softmax(1)
    label = labels.unsqueeze(1)
    of_label = logs.gather(1, label).squeeze(1)
    of_others = logs.scatter(1, label, -torch.inf).logsumexp(1)
    answer, others = logs.topk(2, dim=1).values.unbind(1)
    entropy = -(logs.exp() * logs).sum(1)
    return torch.stack([of_label - of_others, -of_label, entropy, answer - others], dim=1)


def _area_under_roc(scores: NDArray[np.float64], targets: NDArray[np.bool_]) -> float:
    """The share of pairs of a positive and a negative (N,) whose scores (N,) are in order; ties count half."""
    negatives = np.sort(scores[~targets])
    lower, not_higher = (np.searchsorted(negatives, scores[targets], side) for side in ("left", "right"))
    return float((lower + not_higher).mean() / 2 / len(negatives))
