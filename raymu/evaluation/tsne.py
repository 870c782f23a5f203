"""A picture of features: how the images of a forgotten class lie among the others, before and after."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raymu.models.inference import extract
from raymu.splits import Data, Split

RETAIN_IMAGES, FORGET_IMAGES = 200, 60
PERPLEXITY = 20.0


def tsne(models: Mapping[str, nn.Module], data: Data) -> dict[str, Any]:
    """Where t-SNE (van der Maaten and Hinton, JMLR 2008) places the same validation images by each model's features.

    Deterministic, by the features of all workers. Distances between far points say nothing, nor do positions across
    models.

    Args:
        models: by name.

    Returns:
        `labels` of the images (N,), the `forget` classes, and for every model `x` and `y` (N,), as lists.
    """
    parts = [_some(data.val.retain, RETAIN_IMAGES), _some(data.val.forget, FORGET_IMAGES)]
    labels = data.numbers_of(torch.cat([part.targets for part in parts]))
    found: dict[str, Any] = {
        "labels": labels,
        "forget": data.numbers_of(torch.tensor(data.forgotten, dtype=torch.long)),
    }
    for name, model in models.items():
        read = [data.workers.gather(said.features) for said in extract(model, data, *parts)]
        found[name] = data.workers.broadcast(_place(torch.cat(read).cpu().numpy()) if data.workers.rank == 0 else None)
    return found


def _place(features: NDArray[np.float32]) -> dict[str, list[float]]:
    """Coordinates of features (N, D), by name."""
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    placed = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features)
    return {"x": placed[:, 0].round(3).tolist(), "y": placed[:, 1].round(3).tolist()}


def _some(split: Split, count: int) -> Split:
    """Images that lie evenly in it."""
    count = min(count, len(split))
    return split.subset(torch.linspace(0, len(split) - 1, count).round().long())
