"""Influence: one Newton step away from the forget set."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from raymu.engines.local import Engine
from raymu.method import Method, Range, Step, fixed, tuned


@dataclass(frozen=True, kw_only=True)
class Influence(Method):
    """No training: one Newton step of the retain set's loss from the original model, where its gradient is the forget
    set's with the opposite sign. At scale 1 it is what leaving the forget set out changes, to first order.

        theta += scale * (G + damping I)^-1 (sum of the gradients of CE over the forget set) / (size of the retain set)

    G is the Gauss-Newton matrix of CE on a sample of the retain set, balanced by class; the inverse is taken by
    conjugate gradients. Reads forget images and the sample, in eval mode: BatchNorm statistics do not move.
    """

    paper: ClassVar[str] = "Koh and Liang, ICML 2017; Jia et al., NeurIPS 2023"
    trains: ClassVar[bool] = False

    scale: float = tuned(1.0, Range(0.01, 100.0, "log"), "length of the step")
    samples: int = fixed(1000, "images of the retain set that the curvature is taken from")
    damping: float = fixed(5e-4, "added to the curvature: the weight decay of the original's training")
    iterations: int = fixed(20, "of conjugate gradients, at most")

    def unlearn(self, run: Engine) -> Iterator[Step]:
        direction = run.cached(
            "influence",
            lambda: self._direction(run),
            samples=self.samples,
            damping=self.damping,
            iterations=self.iterations,
        )
        run.edit(lambda name, weight: weight + self.scale * direction[name])
        yield from ()

    def _direction(self, run: Engine) -> dict[str, Tensor]:
        weights = run.weights()
        total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for gradients in run.gradients("forget", "sum"):
            for name, gradient in gradients.items():
                total[name] += gradient
        sample = run.sample("retain", max(1, self.samples // len(run.classes("retain"))), seed=run.scenario.seed)

        def flat(tensors: dict[str, Tensor]) -> np.ndarray:
            return torch.cat([tensor.flatten() for tensor in tensors.values()]).double().cpu().numpy()

        def unflat(vector: np.ndarray) -> dict[str, Tensor]:
            parts = torch.from_numpy(vector).split([weight.numel() for weight in weights.values()])
            return {
                name: part.view_as(weight).to(weight)
                for (name, weight), part in zip(weights.items(), parts, strict=True)
            }

        target = flat(total) / run.size("retain")
        curvature = LinearOperator(
            (len(target), len(target)),
            matvec=lambda vector: flat(run.curvature_product(sample, unflat(vector))) + self.damping * vector,
        )
        solution, _ = cg(curvature, target, maxiter=self.iterations)
        return unflat(solution)
