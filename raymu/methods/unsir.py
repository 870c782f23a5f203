"""UNSIR: impair the forget classes with noise that the model cannot bear, then repair the rest."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from raymu.method import Method, Range, Step, fixed, tuned
from raymu.run import Run
from raymu.values import NOT_NEGATIVE

NOISE_LR = 0.1
NOISE_STEPS = 40  # 5 x 8


class UNSIR(Method):
    """For every forget class, learn a batch of noise images that maximises its loss; impair the model by training it
    to see the class in them; repair it on a sample of the retain set.

        noise: minimise -CE(noise, class) + noise_weight * |noise|^2 (mean over images), by Adam, in eval mode
        impair: loss = CE(noise, class) + CE(retain sample), mixed;  repair: loss = CE(retain sample);  both by Adam

    Reads retain images; of the forget set it knows the classes alone. The noise stays within what a real image can be.
    BatchNorm statistics follow noise and retain images.

    Differs from the source: settings follow Gao et al., AISTATS 2026. There noise may lie beyond what an image
    can be, the retain sample are the first images of every class, and each is augmented once for all epochs.
    """

    paper: ClassVar[str] = "Tarun et al., TNNLS 2023"
    published: ClassVar[dict[Any, Any]] = {
        ("cifar10", "linear", "code"): {"impair_lr": 1e-4, "repair_lr": 5e-5},
        ("cifar10", "linear", "table"): {"impair_lr": 5e-5, "repair_lr": 5e-5},
        ("cifar100", "linear", "code"): {"impair_lr": 2e-4, "repair_lr": 3e-5},
        ("cifar100", "linear", "table"): {"impair_lr": 3e-5, "repair_lr": 3e-5},
        ("tinyimagenet", "linear", "code"): {"impair_lr": 2e-4, "repair_lr": 2e-5},
        ("tinyimagenet", "linear", "table"): {"impair_lr": 2e-5, "repair_lr": 2e-5},
        ("cifar10", "cmf", "code"): {"impair_lr": 1e-4, "repair_lr": 5e-5},
        ("cifar10", "cmf", "table"): {"impair_lr": 5e-5, "repair_lr": 5e-5},
        ("cifar100", "cmf", "code"): {"impair_lr": 2e-4, "repair_lr": 5e-5},
        ("cifar100", "cmf", "table"): {"impair_lr": 5e-5, "repair_lr": 5e-5},
        ("tinyimagenet", "cmf", "code"): {"impair_lr": 2e-4, "repair_lr": 2e-5},
        ("tinyimagenet", "cmf", "table"): {"impair_lr": 2e-5, "repair_lr": 2e-5},
    }
    needs: ClassVar[tuple[Any, ...]] = ("retain",)
    classes_only: ClassVar[bool] = True
    nested: ClassVar[str] = "repair_epochs"

    impair_lr: float = tuned(1e-4, Range(1e-6, 1e-2, "log"), "learning rate of the first phase")
    repair_lr: float = tuned(5e-5, Range(1e-6, 1e-2, "log"), "learning rate of the second phase")
    impair_epochs: int = tuned(3, Range(1, 5, "int"), "passes over noise and retain sample")
    repair_epochs: int = tuned(3, Range(1, 5, "int"), "passes over the retain sample")
    noise_batches: int = tuned(20, Range(5, 40, "int"), "how often a class's batch of noise is mixed in")
    noise_weight: float = tuned(0.1, Range(1e-3, 1.0, "log"), "penalty on the noise's squared norm", NOT_NEGATIVE)
    retain_per_class: int = fixed(1000, "size of the retain sample")

    @property
    def total_epochs(self) -> int:
        return self.impair_epochs + self.repair_epochs

    @property
    def comparable_from(self) -> int:
        """Impairing makes the score dip."""
        return self.impair_epochs + 1

    def unlearn(self, run: Run) -> Iterator[Step]:
        noise = [self._noise(run, forgotten) for forgotten in run.scenario.forget]
        labels = torch.tensor(run.scenario.forget).repeat_interleave(len(noise[0])).to(noise[0].device)
        extra = torch.cat(noise), labels, self.noise_batches
        sample = run.sample("retain", self.retain_per_class, seed=run.seed)
        for _ in run.epochs(self.impair_epochs, self.impair_lr, "adam"):
            for batch in run.batches(sample, extra=extra):
                yield cross_entropy(run.model(batch.images), batch.labels)
        for _ in run.epochs(self.repair_epochs, self.repair_lr, "adam"):
            for batch in run.batches(sample):
                yield cross_entropy(run.model(batch.images), batch.labels)

    def _noise(self, run: Run, forgotten: int) -> Tensor:
        """Noise images (B, C, H, W) for one class, B being the scenario's batch size."""
        count = run.scenario.recipe.batch_size

        def loss(images: Tensor) -> Tensor:
            labels = torch.full((count,), forgotten, device=images.device)
            penalty = images.square().sum((1, 2, 3)).mean()
            return self.noise_weight * penalty - cross_entropy(run.model(images), labels)

        # Not cached: it depends on the seed and on a searched hyperparameter, so hardly another trial would use it.
        return run.optimise_images(count, loss, lr=NOISE_LR, steps=NOISE_STEPS, seed=run.seed)
