"""What the probes cost and how much they read, beside what others use. Run by hand, on an idle machine.

    python tests/benchmarks/probe.py --data-dir ~/data

On the features of a ResNet-18 that is trained on CIFAR-10 for six epochs (a quarter of an hour on two cores, once),
and on synthetic features of 100 and of 1,000 classes: seconds and held-out accuracy of the strong probe, the cheap one,
scikit-learn's logistic regression at its default penalty, and minibatch SGD (lr 0.01, momentum 0.9, batch 64) for 20
and 150 epochs. All start from features in memory; what standardising costs is included, except for SGD.

With --evaluation instead: what share of its unlearning the whole evaluation of a trial takes, on the embedded digits.
"""

import argparse
import dataclasses
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from raymu import devices, methods, reference_models, splits
from raymu.engines import Options
from raymu.evaluation.moments import Moments
from raymu.evaluation.probe import LDAProbe, LinearProbe
from raymu.models import inference
from raymu.scenario import SCENARIOS, Recipe
from raymu.trial import run_trial

DEVICE = reference_models.default_device()
LONG_SGD = 150
EPOCHS = (20, LONG_SGD)

Predict = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Features:
    """Training features (N, D) with labels (N,), and held-out ones."""

    train: Tensor
    labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor


def cifar10(directory: Path, threads: int) -> Features:
    """Penultimate features of a network that raymu trains itself, once."""
    scenario = dataclasses.replace(
        SCENARIOS["cifar10-resnet18"],
        name="cifar10-probe-benchmark",
        cifar_stem=False,
        recipe=Recipe(lr=0.05, epochs=6, augment=True),
        val_share=0.02,
    )
    splits.prepare(scenario, directory)
    model = reference_models.load_model(scenario, "original", Options(threads))
    loaded = splits.load(scenario, DEVICE)
    train, *test = inference.extract(model, loaded, loaded.train, *loaded.test)
    held_out = inference.Outputs(*(torch.cat(parts) for parts in zip(*test, strict=True)))
    return Features(train.features, train.labels, held_out.features, held_out.labels)


def synthetic(classes: int, rows: int, features: int, distance: float) -> Features:
    """Overlapping clusters of correlated noise, rectified, as the features of a network are."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(features, features, generator=generator) / features**0.5
    centres = distance * torch.randn(classes, features, generator=generator)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(classes, (count,), generator=generator)
        noise = torch.randn(count, features, generator=generator) @ mixing
        return (centres[labels] + noise + 0.5).relu(), labels

    return Features(*(tensor.to(DEVICE) for tensor in (*draw(rows), *draw(10_000))))


def cheap(train: Tensor, labels: Tensor) -> Predict:
    """The closed form, its pass over the features included."""
    return LDAProbe(Moments.of(train, labels)).predict


def strong(train: Tensor, labels: Tensor) -> Predict:
    """Its own pass for the moments included."""
    return LinearProbe(train, labels).predict


def scikit_learn(train: Tensor, labels: Tensor) -> Predict:
    """L-BFGS at C = 1, on standardised features, until it says that it has converged."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    fitted = LogisticRegression(max_iter=1000).fit(scaler.fit_transform(train.cpu()), labels.cpu())
    return lambda held_out: torch.from_numpy(fitted.predict(scaler.transform(held_out.cpu()))).to(held_out.device)


def sgd(features: Features) -> dict[str, tuple[float, float]]:
    """Seconds and held-out accuracy after each of EPOCHS, on standardised features."""
    mean, scale = features.train.mean(0), features.train.std(0).clamp(min=1e-6)
    inputs, held_out = (features.train - mean) / scale, (features.held_out - mean) / scale
    torch.manual_seed(0)
    layer = torch.nn.Linear(inputs.shape[1], int(features.labels.max()) + 1, device=inputs.device)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9)
    seconds, found = 0.0, {}
    for epoch in range(1, LONG_SGD + 1):
        started = devices.now(DEVICE)
        for chosen in torch.randperm(len(inputs)).to(inputs.device).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(inputs[chosen]), features.labels[chosen]).backward()
            optimizer.step()
        seconds += devices.now(DEVICE) - started
        if epoch in EPOCHS:
            found[f"SGD, {epoch} epochs"] = seconds, _share(layer(held_out).argmax(1), features.held_out_labels)
    return found


def _share(answers: Tensor, labels: Tensor) -> float:
    return (answers == labels).double().mean().item()


def compare(name: str, features: Features) -> None:
    """Print one line a probe."""
    found = {}
    for kind, fit in (("strong", strong), ("cheap", cheap), ("scikit-learn", scikit_learn)):
        repeats = 1 if kind == "scikit-learn" else 3
        seconds = []
        for _ in range(repeats):
            started = devices.now(DEVICE)
            predict = fit(features.train, features.labels)
            seconds.append(devices.now(DEVICE) - started)
        found[kind] = statistics.median(seconds), _share(predict(features.held_out), features.held_out_labels)
    found |= sgd(features)
    longest = found[f"SGD, {LONG_SGD} epochs"][0]
    rows, width = features.train.shape
    print(f"{name}: {rows} x {width}, {int(features.labels.max()) + 1} classes")
    for kind, (seconds, accuracy) in found.items():
        print(f"  {kind:<16} {seconds:8.2f} s  {100 * accuracy:5.2f} %   1/{longest / seconds:.1f} of the longest SGD")


def evaluation(threads: int) -> None:
    """Print what share of a trial's unlearning its evaluation takes: published setting, medians of nine trials."""
    scenario = SCENARIOS["digits"]
    splits.prepare(scenario)
    for name in ("random_label", "salun", "scrub", "neggrad_plus", "finetune"):
        chosen = methods.get(name)
        published = chosen.from_config(chosen.published_config(scenario))
        rows = [run_trial(scenario, published, seed=0, options=Options(threads))[0] for _ in range(10)][1:]
        unlearn, evaluate = (statistics.median(row[cost] for row in rows) for cost in ("unlearn_s", "evaluate_s"))
        print(f"{name:<14} unlearning {unlearn:.3f} s, evaluation {evaluate:.3f} s: {evaluate / unlearn:.1%}")


def main() -> None:
    """Print one of the two."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data-dir", type=Path, default=Path("data"), help="where CIFAR-10 is")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--evaluation", action="store_true")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    if options.evaluation:
        evaluation(options.threads)
        return
    compare("CIFAR-10, ResNet-18", cifar10(options.data_dir, options.threads))
    compare("synthetic", synthetic(100, 50_000, 256, distance=0.14))
    compare("synthetic", synthetic(1000, 50_000, 256, distance=0.2))


if __name__ == "__main__":
    main()
