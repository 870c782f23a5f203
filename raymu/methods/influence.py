"""Influence: one Newton step away from the forget set."""

import functools
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from raymu.method import Method, Range, Step, fixed, tuned
from raymu.run import Part, Run

TOLERANCE = 1e-3  # of the linear system's residual, relative to its right side


class Influence(Method):
    """No training: one Newton step that takes back what the forget set changed, to first order, at scale 1.

        theta += scale * (G + damping I)^-1 (gradient(forget) - gradient(retain)) * forget size / training size

    The gradients are taken of the mean CE over all images of the part; the second is 0 but for an original that has not
    converged. G is the Gauss-Newton matrix of CE on a sample of the retain set, balanced by class; the inverse is taken
    by conjugate gradients, until they converge: on the digits after about 10 products with G. A small damping may take
    thousands. Reads forget and retain images and, for every product, the sample, in eval mode: BatchNorm statistics do
    not move.

    Differs from the source: WoodFisher, of Jia et al., approximates the inverse by 1,000 updates of rank one, from the
    gradients of single retain images. They leave the vector nearly unchanged (on the digits its norm falls from .03645
    to .03644), so that their step is close to a plain gradient step; the converged step is about 2.6 times shorter
    there, and the cosine of the two is .80. Jia et al. read augmented images, here they never are; their scale
    (alpha) is 0.2 unless said otherwise.

    Raises:
        RuntimeError: conjugate gradients do not converge in the iterations that they have.
    """

    paper: ClassVar[str] = "Koh and Liang, ICML 2017; Jia et al., NeurIPS 2023"
    trains: ClassVar[bool] = False

    scale: float = tuned(1.0, Range(0.01, 100.0, "log"), "length of the step")
    samples: int = fixed(1000, "images of the retain set that the curvature is taken from, at most, but one a class")
    damping: float = fixed(1.0, "added to the curvature")
    iterations: int = fixed(200, "of conjugate gradients, at most: an error if they need more")

    def unlearn(self, run: Run) -> Iterator[Step]:
        direction = run.cached(
            "influence",
            lambda: self._direction(run),
            samples=self.samples,
            damping=self.damping,
            iterations=self.iterations,
        )
        run.edit(lambda name, weight: weight + self.scale * direction[name])
        yield from ()

    def _direction(self, run: Run) -> dict[str, Tensor]:
        weights = run.weights()
        sample = run.sample("retain", max(1, self.samples // len(run.classes("retain"))), seed=run.scenario.seed)

        def flat(tensors: dict[str, Tensor]) -> Tensor:
            return torch.cat([tensor.flatten() for tensor in tensors.values()]).double()

        def unflat(vector: np.ndarray) -> dict[str, Tensor]:
            parts = torch.from_numpy(vector).split([weight.numel() for weight in weights.values()])
            return {
                name: part.view_as(weight).to(weight)
                for (name, weight), part in zip(weights.items(), parts, strict=True)
            }

        def gradient(part: Part) -> np.ndarray:
            total = functools.reduce(torch.add, map(flat, run.gradients(part, "sum")))
            return total.cpu().numpy() / run.size(part)

        def curved(vector: np.ndarray) -> np.ndarray:
            product = flat(run.curvature_product(sample, unflat(vector)))
            return product.cpu().numpy() + self.damping * vector

        share = run.size("forget") / (run.size("forget") + run.size("retain"))
        target = share * (gradient("forget") - gradient("retain"))
        curvature = LinearOperator((len(target), len(target)), matvec=curved, dtype=target.dtype)
        solution, _ = cg(curvature, target, rtol=TOLERANCE / 10, maxiter=self.iterations)
        left = np.linalg.norm(target - curvature @ solution)
        if not left <= TOLERANCE * np.linalg.norm(target):
            raise RuntimeError(
                f"conjugate gradients do not converge in {self.iterations} iterations:"
                f" {left / np.linalg.norm(target):.2g} of the gradient is left; give them more, or more damping"
            )
        return unflat(solution)
