"""The linear probes against scikit-learn, full-precision references and known answers."""

import math

import numpy as np
import pytest
import torch
from conftest import DEVICE
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.covariance import oas
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from raymu.errors import Undefined
from raymu.evaluation import probe as probes
from raymu.evaluation.moments import Moments
from raymu.evaluation.probe import PENALTIES, LDAProbe, LinearProbe
from raymu.models import architectures, inference

Data = tuple[torch.Tensor, torch.Tensor]


def clusters(count: int, classes: int, features: int, spread: float, seed: int = 0) -> Data:
    """Gaussian clusters around fixed random centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, features, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % classes
    return centres[labels] + spread * torch.randn(count, features, generator=generator), labels


def share(answers: torch.Tensor, labels: torch.Tensor) -> float:
    return (answers == labels).double().mean().item()


def cheap(features: torch.Tensor, labels: torch.Tensor) -> LDAProbe:
    return LDAProbe(Moments.of(features, labels))


BOTH = pytest.mark.parametrize("probe", [LinearProbe, cheap])


def gaussian() -> tuple[Data, Data]:
    return clusters(2000, 10, 30, spread=3.0), clusters(4000, 10, 30, spread=3.0, seed=1)


def pixels() -> tuple[Data, Data]:
    inputs, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    inputs, labels = inputs[order].float(), labels[order]
    return (inputs[:900], labels[:900]), (inputs[900:], labels[900:])


def network(digits, digits_data) -> tuple[Data, Data]:
    """Features of a network that is not trained: the classes overlap."""
    model = architectures.build(digits, seed=0).to(DEVICE)
    train, test = inference.extract(model, digits_data, digits_data.train, digits_data.test.retain)
    return (train.features, train.labels), (test.features, test.labels)


def features_of(source: str, digits, digits_data) -> tuple[Data, Data]:
    parts = {"gaussian": gaussian, "pixels": pixels, "network": lambda: network(digits, digits_data)}[source]()
    train, held_out = (tuple(tensor.to(DEVICE) for tensor in part) for part in parts)
    return train, held_out


@pytest.mark.parametrize("source", ["gaussian", "pixels", "network"])
def test_as_accurate_as_scikit_learn_with_its_penalty_chosen_by_cross_validation(source, digits, digits_data) -> None:
    (features, labels), (held_out, held_out_labels) = features_of(source, digits, digits_data)
    grid = {"logisticregression__C": [1 / (len(labels) * penalty) for penalty in PENALTIES]}
    theirs = GridSearchCV(make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)), grid, cv=5)
    theirs.fit(features.cpu().numpy(), labels.cpu().numpy())
    ours = share(LinearProbe(features, labels).predict(held_out), held_out_labels)
    assert ours > theirs.score(held_out.cpu().numpy(), held_out_labels.cpu().numpy()) - 0.02


@pytest.mark.parametrize("source", ["gaussian", "pixels", "network"])
@pytest.mark.parametrize("penalty", PENALTIES[:3])
def test_as_accurate_as_scikit_learn_at_the_same_penalty(source, penalty, monkeypatch, digits, digits_data) -> None:
    """Within 0.3 points."""
    monkeypatch.setattr(probes, "PENALTIES", (penalty,))
    (features, labels), (held_out, held_out_labels) = features_of(source, digits, digits_data)
    scaler = StandardScaler().fit(features.cpu())
    theirs = LogisticRegression(C=1 / (len(labels) * penalty), tol=1e-8, max_iter=5000)
    theirs.fit(scaler.transform(features.cpu()), labels.cpu())
    ours = share(LinearProbe(features, labels).predict(held_out), held_out_labels)
    assert ours == pytest.approx(theirs.score(scaler.transform(held_out.cpu()), held_out_labels.cpu()), abs=0.003)


def test_fitted_to_convergence(monkeypatch) -> None:
    """The loss is that of a general-purpose optimiser in float64."""
    monkeypatch.setattr(probes, "PENALTIES", (1e-3,))
    features, labels = clusters(500, 5, 12, spread=2.0)
    inputs = ((features - features.mean(0)) / features.std(0, unbiased=False)).double().numpy()
    targets = labels.cpu().numpy()

    def loss(flat: np.ndarray) -> float:
        weights = flat.reshape(5, 13)
        logits = inputs @ weights[:, :-1].T + weights[:, -1]
        mean = (logsumexp(logits, axis=1) - logits[np.arange(500), targets]).mean()
        return mean + 1e-3 / 2 * (weights[:, :-1] ** 2).sum()

    best = minimize(loss, np.zeros(65), method="BFGS").fun
    probe = LinearProbe(features, labels)
    assert best - 1e-7 < loss(probe._weights.numpy().ravel()) < best + 1e-5


@BOTH
def test_ill_conditioned_features_change_no_answer(probe, monkeypatch) -> None:
    """A constant column, a duplicated one and one scaled by 1e6, against a full-precision fit."""
    monkeypatch.setattr(probes, "PENALTIES", (1e-2,))
    (features, labels), (held_out, held_out_labels) = gaussian()

    def spoil(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, :1] * 1e6, x[:, 1:], x[:, 1:2], torch.full((len(x), 1), 7.0)], dim=1)

    scaler = StandardScaler().fit(spoil(features).double())
    theirs = LogisticRegression(C=1 / (len(labels) * 1e-2), solver="newton-cholesky", tol=1e-10)
    theirs.fit(scaler.transform(spoil(features).double()), labels)
    expected = torch.from_numpy(theirs.predict(scaler.transform(spoil(held_out).double())))
    answers = probe(spoil(features), labels).predict(spoil(held_out))
    assert share(answers, expected) > (0.997 if probe is LinearProbe else 0.9)
    assert share(answers, held_out_labels) == pytest.approx(
        share(expected, held_out_labels), abs=0.003 if probe is LinearProbe else 0.02
    )


@BOTH
def test_finds_what_is_linearly_there(probe) -> None:
    features, labels = clusters(400, 4, 8, spread=0.01)
    assert share(probe(features, labels).predict(features), labels) == 1.0


@BOTH
def test_is_at_chance_where_nothing_is_there(probe) -> None:
    generator = torch.Generator().manual_seed(1)
    features, held_out = torch.randn(2, 2000, 5, generator=generator)
    labels, held_out_labels = torch.arange(2000) % 4, torch.randint(4, (2000,), generator=generator)
    assert share(probe(features, labels).predict(held_out), held_out_labels) == pytest.approx(0.25, abs=0.04)


@BOTH
def test_is_linear(probe) -> None:
    """XOR is invisible to every linear classifier."""
    signs = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]).repeat(200, 1)
    features = signs + 0.1 * torch.randn(800, 2, generator=torch.Generator().manual_seed(2))
    labels = (signs[:, 0] * signs[:, 1] > 0).long()
    assert share(probe(features, labels).predict(features), labels) < 0.8


def test_better_than_a_default_logistic_regression_where_the_penalty_matters() -> None:
    """Many noisy features, few samples."""
    features, labels = clusters(300, 10, 100, spread=4.0)
    held_out, held_out_labels = clusters(5000, 10, 100, spread=4.0, seed=1)
    default = LogisticRegression(max_iter=5000).fit(features.cpu().numpy(), labels.cpu().numpy())
    theirs = default.score(held_out.cpu().numpy(), held_out_labels.cpu().numpy())
    assert share(LinearProbe(features, labels).predict(held_out), held_out_labels) > theirs + 0.02


@BOTH
def test_deterministic_and_blind_to_blocks(probe, monkeypatch) -> None:
    features, labels = clusters(300, 10, 20, spread=2.0)
    first, second = (probe(features, labels).predict(features) for _ in range(2))
    assert torch.equal(first, second)
    monkeypatch.setattr(probes, "LOGITS", 70)
    monkeypatch.setattr(probes, "BLOCK", 11)
    assert share(probe(features, labels).predict(features), first) > 0.99


def test_a_part_of_the_samples_is_enough_to_choose_a_penalty(monkeypatch) -> None:
    """The features are long-tailed, so that the penalty matters. What is chosen is fitted to all samples."""
    parts = [clusters(4000, 5, 120, spread=6.0, seed=seed) for seed in (0, 1)]
    (features, labels), (held_out, held_out_labels) = (((inputs / 4).exp(), labels) for inputs, labels in parts)
    whole = LinearProbe(features, labels)
    fitted = []
    fit = LinearProbe._fit
    monkeypatch.setattr(LinearProbe, "_fit", lambda self, *rows: fitted.append(len(rows[0])) or fit(self, *rows))
    monkeypatch.setattr(probes, "PART", 1600)
    part = LinearProbe(features, labels)
    assert set(fitted[:-2]) == {1600}
    assert fitted[-2:] == [3200, 4000]
    assert whole.penalty / 10 <= part.penalty <= whole.penalty * 10
    accuracies = [share(probe.predict(held_out), held_out_labels) for probe in (part, whole)]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.02)


@BOTH
def test_half_precision_features_are_read(probe) -> None:
    features, labels = clusters(400, 4, 8, spread=0.5)
    answers = probe(features.bfloat16(), labels).predict(features.bfloat16())
    assert share(answers, probe(features, labels).predict(features)) > 0.98


@BOTH
def test_more_features_than_samples(probe) -> None:
    features, labels = clusters(60, 3, 400, spread=1.0)
    held_out, held_out_labels = clusters(600, 3, 400, spread=1.0, seed=1)
    assert share(probe(features, labels).predict(held_out), held_out_labels) > 0.99


@BOTH
def test_features_that_hardly_vary_far_from_the_origin(probe) -> None:
    """Their moments are singular, so that rounding decides signs."""
    (features, labels), (held_out, their) = clusters(24, 4, 768, 3.0), clusters(600, 4, 768, 3.0, seed=1)
    origin = 1e6 * torch.rand(768, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    answers = probe(origin + features, labels).predict(origin + held_out)
    assert share(answers, their) > 0.95


@BOTH
def test_labels_need_not_be_consecutive_nor_frequent(probe) -> None:
    features, labels = clusters(200, 4, 6, spread=0.05)
    labels = torch.tensor([1, 30, 4, 7])[labels]
    alone = torch.cat([features, torch.full((1, 6), 9.0)]), torch.cat([labels, torch.tensor([12])])
    assert share(probe(*alone).predict(features), labels) == 1.0
    assert probe(*alone).predict(torch.full((1, 6), 9.0)).tolist() == [12]


@BOTH
def test_a_single_class_is_always_answered(probe) -> None:
    features = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    assert probe(features, torch.full((20,), 5)).predict(features).tolist() == [5] * 20


def test_without_two_samples_of_a_class_the_largest_penalty_is_taken() -> None:
    features = torch.eye(5)
    probe = LinearProbe(features, torch.arange(5))
    assert probe.penalty == max(PENALTIES)
    assert probe.predict(features).tolist() == list(range(5))


@BOTH
def test_constant_features_are_no_error(probe) -> None:
    labels = torch.arange(20) % 2
    assert set(probe(torch.ones(20, 3), labels).predict(torch.ones(4, 3)).tolist()) <= {0, 1}


@BOTH
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_are_not_finite_are_named(probe, bad) -> None:
    features, labels = clusters(40, 2, 3, spread=1.0)
    features[7, 1] = bad
    with pytest.raises(Undefined, match="not finite"):
        probe(features, labels)


@BOTH
def test_no_sample_is_named(probe) -> None:
    with pytest.raises(Undefined, match="no sample"):
        probe(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))


def test_cheap_probe_is_lda() -> None:
    """With so many samples there is next to nothing to shrink, and it is scikit-learn's."""
    turn = torch.randn(10, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    features, labels = clusters(100_000, 10, 10, spread=2.0)
    features = features.double() @ turn
    expected = LinearDiscriminantAnalysis(solver="lsqr").fit(features.numpy(), labels.numpy()).predict(features.numpy())
    assert share(cheap(features, labels).predict(features), torch.from_numpy(expected)) > 0.99


def test_shrinkage_is_the_oracle_approximating_one() -> None:
    features = torch.randn(80, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.linspace(
        1, 3, 60
    )
    features -= features.mean(0)
    covariance = features.mT @ features / 80
    expected, _ = oas(features.numpy(), assume_centered=True)
    torch.testing.assert_close(probes._shrink(covariance, samples=80), torch.from_numpy(expected), rtol=0.02, atol=0.02)
