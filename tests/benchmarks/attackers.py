"""Which figure of what features still tell should an objective read? Run by hand.

    python tests/benchmarks/attackers.py --fashion /usr/share/datasets/fashion-mnist --cifar10 ~/data

Of an attacker's area under the ROC curve, its recall at 5 % false positives, the probe's accuracy and the nearest class
centre's, over several originals of each scenario, means on validation and on test:

- separation: original minus retrained model in standard errors over the forget images (paired; DeLong's for the area);
- shift: how far the original's figure moves, in the same units, when readers are fitted with only a quarter of the
  forgotten classes' training images: what a class's share of the data decides, features do not.
"""

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from raymu import devices, reference_models, splits
from raymu.evaluation import attack, look
from raymu.evaluation.views import OfModel, OfSplit
from raymu.scenario import SCENARIOS, Recipe, Scenario

KEPT = 4  # one of so many training images of a forgotten class
DEVICE = torch.device("cpu")
CIFAR10 = Scenario(
    name="cifar10-small",
    dataset="cifar10",
    architecture="test_resnet",
    recipe=Recipe(lr=0.05, epochs=20, batch_size=64),
    forget=(3,),
    train_share=0.1,
)


def figures(view: OfSplit) -> dict[str, Tensor]:
    """Each figure for every forget image of a split (n,); its value is the mean."""
    retain, forget, belongs = view.retain.odds, view.forget.odds, view.belongs
    found = max((_found(*pair, belongs) for pair in zip(retain.unbind(1), forget.unbind(1), strict=True)), key=_mean)
    return {
        "area": attack.placements(retain, forget, belongs).forget,
        "recall": found,
        "probe": (view.forget.probe == view.forget.labels).double(),
        "NCC": (view.forget.ncc == view.forget.labels).double(),
    }


def _found(retain: Tensor, forget: Tensor, belongs: Tensor) -> Tensor:
    least = torch.quantile(retain, 1 - attack.FALSE_POSITIVES, dim=0)
    return (forget.gather(1, belongs.unsqueeze(1))[:, 0] > least[belongs]).double()


def _mean(values: Tensor) -> float:
    return float(values.mean())


def thinned(data: splits.Data) -> splits.Data:
    """Data with fewer images of the forgotten classes for the readers."""
    labels = data.probed.targets
    keep = ~data.is_forgotten(labels)
    for one in data.forgotten:
        keep[(labels == one).nonzero()[::KEPT, 0]] = True
    return dataclasses.replace(data, probed=data.probed.subset(keep))


def measured(scenario: Scenario) -> Iterator[tuple[str, str, float, float]]:
    """(split, figure, separation, shift) of a scenario."""
    reference_models.compare(scenario)
    data, models = splits.load(scenario, DEVICE), reference_models.load_models(scenario)
    views: list[Sequence[OfModel]] = [look(models[which], data) for which in reference_models.REFERENCES]
    views.append(look(models["original"], thinned(data)))
    memory = reference_models.memory(scenario)
    for original, retrained, fewer in zip(*views, strict=True):
        if not all(isinstance(one, OfSplit) for one in (original, retrained, fewer)):
            continue
        told = [figures(one) for one in (original, retrained, fewer)]  # type: ignore[arg-type]
        for name in told[0]:
            apart = told[0][name] - told[1][name]
            error = float(apart.std()) / len(apart) ** 0.5
            if name == "area":
                area = memory[original.split]
                assert area is not None
                error = area.error
            yield original.split, name, _mean(apart) / error, abs(_mean(told[2][name]) - _mean(told[0][name])) / error


def main() -> None:
    """Print a table."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--fashion", type=Path, help="where Fashion-MNIST is")
    arguments.add_argument("--cifar10", type=Path, help="where CIFAR-10 is")
    arguments.add_argument("--originals", type=int, default=3)
    options = arguments.parse_args()
    scenarios = [(SCENARIOS["digits"], None)]
    scenarios += [(SCENARIOS["fashion-resnet"], options.fashion)] if options.fashion else []
    scenarios += [(CIFAR10, options.cifar10)] if options.cifar10 else []
    print("| scenario | figure | separation val | test | shift val | test |\n|---|---|---|---|---|---|")
    for scenario, directory in scenarios:
        prepared = splits.prepare(scenario, directory)
        seeds = [dataclasses.replace(prepared, model_seed=seed) for seed in range(options.originals)]
        with devices.cpu_threads(1):
            rows = [row for one in seeds for row in measured(one)]
        for name in dict.fromkeys(row[1] for row in rows):
            cells = [
                f"{fmean(row[place] for row in rows if row[:2] == (split, name)):.1f}"
                for place in (2, 3)
                for split in ("val", "test")
            ]
            print("|", " | ".join([scenario.name, name, *cells]), "|", flush=True)


if __name__ == "__main__":
    main()
