"""Every metric on data whose answer is known."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from raymu import evaluation, models
from raymu.errors import Diverged
from raymu.evaluation.evaluate import accuracy, keys
from raymu.evaluation.ncc import NearestClassCentre
from raymu.evaluation.probe import LinearProbe
from raymu.objective import hmean, oracle_gap, weighted


def clusters(count: int, classes: int, features: int, spread: float, seed: int = 0):
    """Gaussian clusters around fixed random centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, features, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % classes
    return centres[labels] + spread * torch.randn(count, features, generator=generator), labels


def share(answers: torch.Tensor, labels: torch.Tensor) -> float:
    return (answers == labels).double().mean().item()


def test_accuracy_counts_samples_not_classes() -> None:
    answers, labels = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1])
    assert accuracy(answers[:3], labels[:3]) == pytest.approx(2 / 3)
    assert math.isnan(accuracy(answers[:0], labels[:0]))


def test_probe_finds_what_is_linearly_there() -> None:
    features, labels = clusters(400, 4, 8, spread=0.01)
    assert share(LinearProbe(features, labels).predict(features), labels) == 1.0


def test_probe_is_at_chance_where_nothing_is_there() -> None:
    generator = torch.Generator().manual_seed(1)
    features, held_out = torch.randn(2, 2000, 5, generator=generator)
    labels, held_out_labels = torch.arange(2000) % 4, torch.randint(4, (2000,), generator=generator)
    assert share(LinearProbe(features, labels).predict(held_out), held_out_labels) == pytest.approx(0.25, abs=0.04)


def test_probe_is_linear() -> None:
    """XOR is invisible to every linear classifier."""
    signs = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]).repeat(200, 1)
    features = signs + 0.1 * torch.randn(800, 2, generator=torch.Generator().manual_seed(2))
    labels = (signs[:, 0] * signs[:, 1] > 0).long()
    assert share(LinearProbe(features, labels).predict(features), labels) < 0.8


def test_probe_survives_constant_and_badly_scaled_columns() -> None:
    features, labels = clusters(600, 5, 6, spread=0.8)
    held_out, held_out_labels = clusters(600, 5, 6, spread=0.8, seed=1)
    plain = share(LinearProbe(features, labels).predict(held_out), held_out_labels)

    def spoil(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, :1] * 1e6, x[:, 1:], x[:, :1], torch.ones(len(x), 1)], dim=1)

    spoilt = share(LinearProbe(spoil(features), labels).predict(spoil(held_out)), held_out_labels)
    assert spoilt == pytest.approx(plain, abs=0.02)  # the twin column weakens the penalty a little


def test_probe_is_at_least_as_good_as_a_default_logistic_regression() -> None:
    """Many noisy features, few samples: where the choice of the penalty matters."""
    features, labels = clusters(300, 10, 100, spread=4.0)
    held_out, held_out_labels = clusters(5000, 10, 100, spread=4.0, seed=1)
    default = LogisticRegression(max_iter=5000).fit(features.numpy(), labels.numpy())
    theirs = default.score(held_out.numpy(), held_out_labels.numpy())
    assert share(LinearProbe(features, labels).predict(held_out), held_out_labels) > theirs + 0.02


def test_probe_is_deterministic() -> None:
    features, labels = clusters(300, 10, 20, spread=2.0)
    first, second = (LinearProbe(features, labels).predict(features) for _ in range(2))
    assert torch.equal(first, second)


def test_ncc_answers_the_nearest_mean() -> None:
    features = torch.tensor([[0.0, 0.0], [2.0, 0.0], [10.0, 0.0], [10.0, 2.0]])
    centres = NearestClassCentre(features, torch.tensor([3, 3, 7, 7]))  # means (1, 0) and (10, 1)
    assert centres.predict(torch.tensor([[5.4, 0.5], [5.6, 0.5], [-50.0, 0.0]])).tolist() == [3, 7, 3]


def test_ncc_is_not_the_probe() -> None:
    """Two long parallel clusters: a line separates them, the distance to their means does not."""
    along = 100 * torch.rand(400, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(400) % 2
    features = torch.stack([along + 60 * labels, along + 64 * labels], dim=1)
    centres, probe = NearestClassCentre(features, labels), LinearProbe(features, labels)
    assert share(probe.predict(features), labels) == 1.0
    assert share(centres.predict(features), labels) < 0.95


def test_evaluate_reads_each_split_and_part(digits_data, digits) -> None:
    """Against an independent computation: per-sample, without masks, from the same model."""
    model = models.build(digits, seed=3)
    row = evaluation.evaluate(model, digits_data)
    assert set(row) == set(keys())
    for name, split in (("val", digits_data.val), ("test", digits_data.test)):
        right = {True: [], False: []}
        index = torch.cat([split.retain.index, split.forget.index])
        for image, label in zip(split.retain.images[index], split.retain.labels[index], strict=True):
            answer = model(digits_data.normalise(image[None])).argmax().item()
            right[label.item() in digits.forget].append(answer == label.item())
        assert row[f"{name}_forget_acc"] == pytest.approx(sum(right[True]) / len(right[True]))
        assert row[f"{name}_retain_acc"] == pytest.approx(sum(right[False]) / len(right[False]))


def test_evaluate_does_not_change_the_model(digits_data, digits) -> None:
    model = models.build(digits, seed=3).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluation.evaluate(model, digits_data)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_logits_are_the_models_own(digits_data, digits) -> None:
    model = models.build(digits, seed=3).eval()
    split = digits_data.val.retain
    _, logits = models.extract(model, digits_data, split)
    images = digits_data.normalise(split.images[split.index])
    torch.testing.assert_close(logits, model(images).detach())


def test_nan_features_are_a_divergence(digits_data, digits) -> None:
    model = models.build(digits, seed=3)
    torch.nn.init.constant_(model.get_classifier().weight, math.nan)
    with pytest.raises(Diverged):
        evaluation.evaluate(model, digits_data)


def test_gaps_are_zero_for_the_retrained_model_itself() -> None:
    metrics = dict.fromkeys(keys(), 0.4)
    assert set(evaluation.gaps(metrics, metrics).values()) == {0.0}
    better = metrics | {"test_retain_acc": 0.9}
    assert evaluation.gaps(better, metrics)["test_retain_acc_gap"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("retain", "probe_forget", "expected"),
    [(1, 0, 1), (0.5, 0.5, 0.5), (0.9, 1, 0), (0, 0, 0), (0, 1, 0), (0.9, 0.4, 0.72)],
)
def test_hmean(retain: float, probe_forget: float, expected: float) -> None:
    row = {"val_retain_acc": retain, "val_probe_forget_acc": probe_forget}
    assert hmean(row) == pytest.approx(expected)


def test_other_objectives_and_splits() -> None:
    row = {"test_retain_acc": 0.8, "test_probe_forget_acc": 0.3}
    assert weighted(row, "test") == pytest.approx(0.75)
    gaps = {"val_retain_acc_gap": -0.1, "val_probe_forget_acc_gap": 0.3}
    assert oracle_gap(gaps) == pytest.approx(0.8)
