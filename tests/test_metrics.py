"""Every metric on data whose answer is known, or against a computation of its own."""

import dataclasses
import math

import numpy as np
import pytest
import ray
import torch
from conftest import DEVICE
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from raymu import evaluation, memory, reference_models, splits
from raymu.data.images import Pixels
from raymu.errors import Diverged, InputError, Undefined
from raymu.evaluation import accuracy, columns
from raymu.evaluation.cka import linear_cka
from raymu.evaluation.collapse import alignment, nc1, nc2, nc3, nc4
from raymu.evaluation.membership import mia_auc
from raymu.evaluation.metrics import Metric
from raymu.evaluation.moments import Moments
from raymu.evaluation.ncc import NearestClassCentre
from raymu.evaluation.probe import LinearProbe
from raymu.evaluation.relearn import LR, MAX_EPOCHS, MOMENTUM, relearn_epochs
from raymu.evaluation.views import Answered
from raymu.methods.salun import SalUn
from raymu.models import architectures, inference
from raymu.objective import HMEAN, OBJECTIVES, Objective
from raymu.protocol import Protocol
from raymu.scenario import SCENARIOS
from raymu.trial import run_trial
from raymu.tuning.sweep import Sweep

CPU = torch.device("cpu")


def noise(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def simplex(classes: int, features: int) -> torch.Tensor:
    """Equally long, equally spread vectors (K, D), turned at random."""
    turn, _ = torch.linalg.qr(noise(features, features))
    return 3 * (torch.eye(classes, features, dtype=torch.float64) - torch.eye(classes, features).mean(0)) @ turn


# Moments


def test_moments_are_those_of_the_definition() -> None:
    features, labels = 3 * noise(60, 4) + 5, torch.arange(60) % 3
    moments = Moments.of(features, labels)
    means = torch.stack([features[labels == label].mean(0) for label in range(3)])
    torch.testing.assert_close(moments.means, means)
    torch.testing.assert_close(moments.mean, features.mean(0))
    torch.testing.assert_close(moments.scale, features.std(0, unbiased=False))
    torch.testing.assert_close(moments.total, torch.cov(features.mT, correction=0))
    torch.testing.assert_close(moments.within, torch.cov((features - means[labels]).mT, correction=0))


def test_moments_of_batches_are_those_of_the_whole() -> None:
    features, labels = noise(50, 4), torch.arange(50) % 3
    whole, parts = Moments.of(features, labels), Moments(3, 4, features.device)
    for chosen in torch.arange(50).split(7):
        parts.update(features[chosen], labels[chosen])
    torch.testing.assert_close(parts.within, whole.within)
    torch.testing.assert_close(parts.means, whole.means)


def test_moments_are_precise_far_from_the_origin() -> None:
    features, labels = noise(2000, 2), torch.arange(2000) % 2
    shifted, near = Moments.of(features + 1e4, labels), Moments.of(features, labels)
    torch.testing.assert_close(shifted.within, near.within, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(shifted.total, near.total, rtol=1e-9, atol=1e-9)
    assert Moments.of(torch.full((9, 1), 0.1), torch.zeros(9, dtype=torch.long)).scale.tolist() == [1.0]  # constant


# NCC


def test_ncc_answers_the_nearest_mean() -> None:
    features = torch.tensor([[0.0, 0.0], [2.0, 0.0], [10.0, 0.0], [10.0, 2.0]])
    centres = NearestClassCentre(Moments.of(features, torch.tensor([3, 3, 7, 7])))  # means (1, 0) and (10, 1)
    assert centres.predict(torch.tensor([[5.4, 0.5], [5.6, 0.5], [-50.0, 0.0]])).tolist() == [3, 7, 3]


def test_ncc_is_not_the_probe() -> None:
    """Two long parallel clusters: a line separates them, the distance to their means does not."""
    along = 100 * torch.rand(400, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(400) % 2
    features = torch.stack([along + 60 * labels, along + 64 * labels], dim=1)
    moments = Moments.of(features, labels)
    assert accuracy(LinearProbe(features, labels, moments).predict(features), labels) == 1.0
    assert accuracy(NearestClassCentre(moments).predict(features), labels) < 0.95


# Neural collapse and alignment


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_collapsed_classifier_has_no_nc(classes: int) -> None:
    means = simplex(classes, 12)
    features = means.repeat(5, 1) + 7.0  # where the origin is does not matter
    moments = Moments.of(features, torch.arange(classes).repeat(5))
    for value in (nc1(moments), nc2(moments), nc3(moments, 0.1 * means)):
        assert value == pytest.approx(0, abs=1e-6)


def test_nc1_of_two_classes_on_a_line() -> None:
    """Means 1 and -1: Sb = 1. Spread s around each: Sw = s^2."""
    features = torch.tensor([1.5, 0.5, -0.5, -1.5]).unsqueeze(1)
    assert nc1(Moments.of(features, torch.tensor([0, 0, 1, 1]))) == pytest.approx(0.25 / 2)


def test_nc1_is_that_of_the_definition() -> None:
    labels = torch.arange(90) % 4
    features = noise(4, 6, seed=1)[labels] + noise(90, 6)
    means = torch.stack([features[labels == label].mean(0) for label in range(4)]).numpy()
    between = np.cov(means.T, bias=True)
    within = np.cov((features.numpy() - means[labels]).T, bias=True)
    expected = np.trace(within @ np.linalg.pinv(between, rcond=1e-8)) / 4
    assert nc1(Moments.of(features, labels)) == pytest.approx(expected)


def test_nc2_of_three_classes_on_a_line() -> None:
    """Means -1, 0, 1: the cosine of their Gram matrix and the simplex's is 1 / sqrt(2)."""
    moments = Moments.of(torch.tensor([[-1.0], [0.0], [1.0]]), torch.arange(3))
    assert nc2(moments) == pytest.approx(math.sqrt(2 - math.sqrt(2)))


def test_nc3_of_an_opposite_head_is_largest() -> None:
    means = simplex(5, 8)
    assert nc3(Moments.of(means, torch.arange(5)), -means) == pytest.approx(2)


def test_nc4_counts_disagreement() -> None:
    assert nc4(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 5])) == 0.25


@pytest.mark.parametrize("centred", [True, False])
def test_a_flipped_head_vector_moves_its_own_alignment_alone(centred: bool) -> None:
    means = simplex(10, 16)
    retain = torch.arange(10) != 8
    centre = retain if centred else None
    head = means.clone()
    torch.testing.assert_close(alignment(head, means, centre), torch.ones(10, dtype=torch.float64))
    head[8] *= -0.7
    expected = torch.where(retain, 1.0, -1.0).double()
    torch.testing.assert_close(alignment(head, means, centre), expected)
    if centred:  # what happens where the forgotten class is not left out of the mean
        assert (alignment(head, means, torch.ones(10, dtype=torch.bool))[retain] < 0.999).all()


def test_alignment_is_the_cosine() -> None:
    head, means = torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 2.0], [4.0, 3.0]])
    torch.testing.assert_close(alignment(head, means), torch.tensor([0, 24 / 25], dtype=torch.float64))


def test_collapse_of_one_class_has_no_value() -> None:
    one = Moments.of(noise(9, 3), torch.full((9,), 2))
    same = Moments.of(torch.ones(8, 3), torch.arange(8) % 2)
    for moments in (one, same):
        for metric in (nc1, nc2, lambda moments: nc3(moments, noise(3, 3))):
            with pytest.raises(Undefined, match="class"):
                metric(moments)
    with pytest.raises(Undefined, match="no direction"):
        alignment(noise(2, 3), noise(2, 3), torch.tensor([True, False]))
    with pytest.raises(Undefined, match="no class is left"):
        alignment(noise(2, 3), noise(2, 3), torch.tensor([False, False]))
    with pytest.raises(Undefined, match="does not see"):
        nc3(Moments.of(simplex(3, 4), torch.arange(3)), torch.zeros(3, 4))
    with pytest.raises(Undefined, match="no sample"):
        nc4(torch.zeros(0), torch.zeros(0))


def test_collapse_with_fewer_samples_than_features() -> None:
    """20 samples of 50 features: Sb has a pseudo-inverse, and nothing is divided by 0."""
    moments = Moments.of(noise(20, 50), torch.arange(20) % 4)
    assert 0 < nc1(moments) < 100
    assert 0 < nc2(moments) < math.sqrt(2)


# CKA


def test_cka_sees_through_turns_and_shifts() -> None:
    features = noise(40, 6)
    turn, _ = torch.linalg.qr(noise(6, 6, seed=1))
    assert linear_cka(features, 3 * features @ turn + 5) == pytest.approx(1)


def test_cka_is_the_normalised_hsic() -> None:
    """Against the definition with N x N matrices."""
    x, y = noise(30, 5), noise(30, 9, seed=1)
    centring = torch.eye(30, dtype=torch.float64) - 1 / 30
    k, other = (centring @ f @ f.mT @ centring for f in (x, y))
    assert linear_cka(x, y) == pytest.approx(((k * other).sum() / (k.norm() * other.norm())).item())


def test_cka_of_unrelated_features_is_0() -> None:
    x = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    y = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    assert linear_cka(x, y) == pytest.approx(0)


def test_cka_without_a_value() -> None:
    for x, why in (
        (torch.full((5, 2), 0.1), "same features"),
        (torch.full((5, 2), math.nan), "not finite"),
        (torch.zeros(0, 2), "no sample"),
    ):
        with pytest.raises(Undefined, match=why):
            linear_cka(x, noise(len(x), 3))


# Membership inference


def logits_of(confidence: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Three logits a sample, of which that of the true class 1 is so large."""
    logits = torch.zeros(len(confidence), 3)
    logits[:, 1] = confidence
    return logits, torch.ones(len(confidence), dtype=torch.long)


def test_no_leak_is_a_half() -> None:
    areas = [mia_auc(*logits_of(noise(80, seed=seed)), *logits_of(noise(90, seed=100 + seed))) for seed in range(20)]
    assert np.mean(areas) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("direction", [1, -1])
def test_a_leak_is_found_whichever_way_it_goes(direction: int) -> None:
    """Forgotten images may be answered with too much confidence, or with too little."""
    assert mia_auc(*logits_of(direction * (5 + noise(60))), *logits_of(noise(70, seed=1))) > 0.99


def test_leak_of_two_gaussians_is_the_area_between_them() -> None:
    """One standard deviation apart: Phi(1 / sqrt(2))."""
    area = mia_auc(*logits_of(3 + noise(4000)), *logits_of(2 + noise(4000, seed=1)))
    assert area == pytest.approx(0.5 * (1 + math.erf(0.5)), abs=0.02)


@pytest.mark.parametrize(("members", "unseen", "shift"), [(52, 61, 0.0), (52, 61, 1.0), (300, 40, 0.5), (9, 200, 8.0)])
def test_membership_is_what_scikit_learns_attacker_finds(members: int, unseen: int, shift: float) -> None:
    """On the same folds. Confidence in ten classes, whose features are far from independent of each other."""
    labels = torch.arange(members + unseen) % 10
    logits = 2 * noise(members + unseen, 10)
    logits[torch.arange(members), labels[:members]] += shift
    chances = logits.softmax(1).numpy()
    of_label = chances[np.arange(len(labels)), labels]
    second, most = np.sort(chances, axis=1)[:, -2:].T
    features = [np.log(of_label / (1 - of_label)), -np.log(of_label), -(chances * np.log(chances)).sum(1)]
    inputs = np.stack([*features, np.log(most / second)], axis=1)
    inputs = (inputs - inputs.mean(0)) / inputs.std(0, ddof=1)
    targets = np.arange(len(labels)) < members

    random = np.random.default_rng(0)
    fold = np.concatenate([random.permutation(np.arange(count) % 3) for count in (members, unseen)])
    areas = []
    for held_out in range(3):
        attacker = LogisticRegression(class_weight="balanced", tol=1e-10, max_iter=10_000)
        attacker.fit(inputs[fold != held_out], targets[fold != held_out])
        scores = attacker.decision_function(inputs[fold == held_out])
        areas.append(roc_auc_score(targets[fold == held_out], scores))
    found = mia_auc(logits[:members], labels[:members], logits[members:], labels[members:])
    assert found == pytest.approx(np.mean(areas), abs=1e-9)


def test_membership_without_a_value() -> None:
    one, some = logits_of(noise(1)), logits_of(noise(9))
    for members, unseen in ((one, some), (some, one)):
        with pytest.raises(Undefined, match="two members"):
            mia_auc(*members, *unseen)
    with pytest.raises(Undefined, match="not finite"):
        mia_auc(some[0] * math.nan, some[1], *some)


# Relearn time


def test_relearn_epochs_are_counted() -> None:
    """One weight, one image: SGD with momentum by hand, until the logit is positive."""
    model = torch.nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0], [-8.5 * LR]]))  # class 1 is behind
    before = model.weight.detach().clone()

    weights, speed, by_hand = before.squeeze(1).double().numpy(), np.zeros(2), 0
    while weights[1] <= weights[0]:
        chances = np.exp(weights) / np.exp(weights).sum()
        speed = MOMENTUM * speed + chances - [0, 1]
        weights, by_hand = weights - LR * speed, by_hand + 1

    def right(changed: torch.nn.Module) -> list[float]:
        return [float(changed.weight[1] > changed.weight[0]), 0.0]

    image, label = torch.ones(1, 1), torch.tensor([1])
    assert relearn_epochs(model, image, label, right, right(model), [1.0, 0.5]) == [by_hand, MAX_EPOCHS]
    assert 2 < by_hand < MAX_EPOCHS
    assert torch.equal(model.weight, before)
    assert relearn_epochs(model, image, label, right, [1.0, 1.0], [1.0, 0.5]) == [0, 0]


# Evaluation


@pytest.fixture(scope="module")
def trained(quick, quick_references):
    return quick_references.model()


def test_accuracy_counts_samples_not_classes() -> None:
    answers, labels = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1])
    assert accuracy(answers[:3], labels[:3]) == pytest.approx(2 / 3)
    with pytest.raises(Undefined, match="no sample"):
        accuracy(answers[:0], labels[:0])


def test_evaluate_reads_each_split_and_part(quick, quick_references, trained) -> None:
    """Against an independent computation: image by image, without masks, from the same model."""
    loaded, model = quick_references.data, trained.eval()
    row = evaluation.evaluate(model, loaded, quick_references.baseline)
    assert set(row) == set(columns())
    for name, split in (("val", loaded.val), ("test", loaded.test)):
        right = {True: [], False: []}
        images = torch.cat([part.read() for part in split])
        for image, label in zip(images, torch.cat([part.targets for part in split]), strict=True):
            answer = model(image[None]).argmax().item()
            right[label.item() in quick.forget].append(answer == label.item())
        assert row[f"{name}_forget_acc"] == pytest.approx(sum(right[True]) / len(right[True]))
        assert row[f"{name}_retain_acc"] == pytest.approx(sum(right[False]) / len(right[False]))


def test_evaluate_gives_each_metric_what_belongs_to_it(quick_references, trained) -> None:
    """Every metric that is no accuracy, put together by hand from images of the three splits."""
    loaded = quick_references.data
    row = evaluation.evaluate(trained, loaded, quick_references.baseline)
    retrained = reference_models.load_model(quick_references.scenario, "retrained", 1)

    def said(model, *parts):
        index = torch.cat([part.index for part in parts])
        return inference.extract(model, loaded, splits.Split(parts[0].images, parts[0].labels, index))[0]

    train = said(trained, loaded.train)
    moments = Moments.of(train.features, train.labels)
    head = trained.get_classifier().weight.detach()
    assert row["train_nc1"] == pytest.approx(nc1(moments), rel=1e-4)
    assert row["train_nc2"] == pytest.approx(nc2(moments), rel=1e-4)
    assert row["train_nc3"] == pytest.approx(nc3(moments, head), rel=1e-4)
    retain = ~loaded.is_forgotten(torch.arange(10))
    for name, centre in (("alignment", retain), ("alignment_uncentred", None)):
        cosines = alignment(head, moments.means, centre)
        assert row[f"train_{name}_forget"] == pytest.approx(cosines[~retain].mean().item(), rel=1e-4)
        assert row[f"train_{name}_retain"] == pytest.approx(cosines[retain].mean().item(), rel=1e-4)
    members = train.subset(loaded.is_forgotten(train.labels))
    for name, split in (("val", loaded.val), ("test", loaded.test)):
        whole, other, forget = said(trained, *split), said(retrained, *split), said(trained, split.forget)
        assert row[f"{name}_cka_original"] == pytest.approx(1, abs=1e-5)  # it is the original
        assert row[f"{name}_cka_retrained"] == pytest.approx(linear_cka(whole.features, other.features), rel=1e-4)
        distances = torch.cdist(whole.features.double(), moments.means)
        assert row[f"{name}_nc4"] == pytest.approx(
            (whole.logits.argmax(1) != distances.argmin(1)).double().mean().item()
        )
        area = mia_auc(members.logits, members.labels, forget.logits, forget.labels)
        assert row[f"{name}_mia_auc"] == pytest.approx(area, abs=0.02)
        assert row[f"{name}_relearn_epochs"] == 0  # nothing was forgotten


def test_a_look_is_the_same_truth(quick_references, trained) -> None:
    whole = evaluation.evaluate(trained, quick_references.data, quick_references.baseline)
    look = evaluation.evaluate_quickly(trained, quick_references.data)
    assert set(look) == set(whole)
    for key in columns(rung=True):
        assert look[key] == whole[key]
    assert look["train_nc1"] is None
    assert all(value is None for key, value in look.items() if key.startswith("test_"))


@pytest.mark.parametrize("measure", [evaluation.evaluate_quickly, evaluation.evaluate])
def test_evaluation_leaves_the_model_as_it_is(measure, quick_references, trained) -> None:
    model = trained.train().requires_grad_(False)
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rest = (quick_references.baseline,) if measure is evaluation.evaluate else ()
    measure(model, quick_references.data, *rest)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert not any(weight.requires_grad for weight in model.parameters())


def test_where_samples_are_forgotten_nothing_speaks_of_classes(digits) -> None:
    scenario = dataclasses.replace(digits, forget=(), forget_share=0.1)
    loaded = splits.load(scenario, DEVICE)
    model = architectures.build(scenario, seed=3).to(DEVICE)
    row = evaluation.evaluate(model, loaded, evaluation.baseline({"original": model, "retrained": model}, loaded))
    undefined = {key for key, value in row.items() if value is None}
    assert undefined == {"train_alignment_forget", "train_alignment_uncentred_forget"}
    retain, forget = inference.extract(model, loaded, *loaded.val)
    area = mia_auc(forget.logits, forget.labels, retain.logits, retain.labels)
    assert row["val_mia_auc"] == pytest.approx(area, abs=0.02)


def test_where_one_class_is_left_its_centred_alignment_is_undefined(digits) -> None:
    scenario = dataclasses.replace(digits, forget=tuple(range(9)))
    loaded = splits.load(scenario, DEVICE)
    model = architectures.build(scenario, seed=3).to(DEVICE)
    row = evaluation.evaluate(model, loaded, evaluation.baseline({"original": model, "retrained": model}, loaded))
    assert {key for key, value in row.items() if value is None} == {"train_alignment_retain", "train_alignment_forget"}


def test_logits_are_the_models_own(digits_data, digits) -> None:
    model = architectures.build(digits, seed=3).to(DEVICE).eval()
    split = digits_data.val.retain
    (said,) = inference.extract(model, digits_data, split)
    torch.testing.assert_close(said.logits, model(split.read()).detach())
    assert torch.equal(said.labels, split.targets)


@pytest.mark.parametrize("batch", [1000, 100, 61, 7])
def test_splits_read_together_are_as_read_alone(batch, digits_data, digits, monkeypatch) -> None:
    """Whatever the size of a batch, which may reach from one split into the next, and over one."""
    model = architectures.build(digits, seed=3).to(DEVICE)
    every = torch.arange(len(digits_data.val.forget))
    chosen = [digits_data.val.forget.subset(rows) for rows in (every[:3], every[:0], every[3:40], every[40:])]
    splits = [digits_data.val.retain, *chosen, digits_data.test.forget]
    alone = [inference.extract(model, digits_data, split)[0] for split in splits]
    monkeypatch.setattr(inference, "EXTRACT_BATCH", batch)
    sizes = [len(labels) for _, labels in inference.batches(digits_data, *splits)]
    assert sum(sizes) == sum(map(len, splits))
    assert len(sizes) == -(-sum(sizes) // batch)
    assert max(sizes) - min(sizes) <= 1
    for split, one, other in zip(splits, inference.extract(model, digits_data, *splits), alone, strict=True):
        torch.testing.assert_close(one.features, other.features)
        torch.testing.assert_close(one.logits, other.logits)
        assert torch.equal(one.labels, split.targets)


def test_what_is_extracted_is_in_full_precision_whatever_the_model_computes_in(digits_data, digits) -> None:
    chosen = dataclasses.replace(digits, recipe=dataclasses.replace(digits.recipe, precision="bf16"))
    exact, rough = (architectures.build(scenario, seed=3).to(DEVICE) for scenario in (digits, chosen))
    images = digits_data.val.forget.read()
    for one, other in zip(
        inference.features_and_logits(exact, images), inference.features_and_logits(rough, images), strict=True
    ):
        assert other.dtype == torch.float32
        assert 0 < (one - other).abs().max() < 0.05 * one.abs().max()


@pytest.mark.parametrize("measure", ["evaluate_quickly", "evaluate"])
def test_nan_features_are_a_divergence(measure, digits_data, digits) -> None:
    model = architectures.build(digits, seed=3).to(DEVICE)
    torch.nn.init.constant_(model.get_classifier().weight, math.nan)
    with pytest.raises(Diverged):
        getattr(evaluation, measure)(model, digits_data, *([{}] if measure == "evaluate" else []))


@pytest.mark.parametrize("measure", ["evaluate_quickly", "evaluate"])
def test_features_too_large_for_their_squares_are_a_divergence(measure, digits_data, digits) -> None:
    model = architectures.build(digits, seed=3).to(DEVICE)
    last = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)][-1]
    torch.nn.init.constant_(last.weight, 1e30)
    torch.nn.init.zeros_(model.get_classifier().weight)
    with pytest.raises(Diverged, match="squared"):
        getattr(evaluation, measure)(model, digits_data, *([{}] if measure == "evaluate" else []))


def confidence(forget: Answered) -> float:
    """Mean probability of the true class."""
    return forget.logits.softmax(1).gather(1, forget.labels[:, None]).mean().item()


CONFIDENT = Objective(lambda confidence: confidence, "confident")


def largest_weight(model: torch.nn.Module) -> float:
    return max(weight.abs().max().item() for weight in model.parameters())


def test_a_metric_of_the_users_is_measured_beside_the_others(quick, quick_references, trained) -> None:
    own = (Metric(confidence, rung=True), Metric(largest_weight, "largest"))
    data = quick_references.data
    row = evaluation.evaluate(trained, data, quick_references.baseline, own)
    assert row.keys() - set(columns()) == {"val_confidence", "test_confidence", "train_largest"}
    said = torch.cat([trained.eval()(data.test.forget.read())])
    expected = said.softmax(1)[torch.arange(len(said)), data.test.forget.targets].mean().item()
    assert row["test_confidence"] == pytest.approx(expected)
    look = evaluation.evaluate_quickly(trained, data, own)
    assert look["val_confidence"] == pytest.approx(row["val_confidence"])
    assert look.keys() == row.keys()
    assert look["train_largest"] is None
    assert evaluation.gaps(row, row, own)["test_confidence_gap"] == 0

    before = reference_models.entry_of(quick, "original")
    both = (
        reference_models.metrics(quick),
        reference_models.compare(quick, further=own) and reference_models.metrics(quick, own),
    )
    assert reference_models.missing(quick) == []  # nothing is trained again
    assert reference_models.entry_of(quick, "original") == before
    for which in reference_models.REFERENCES:
        assert both[0][which].items() <= both[1][which].items()
    assert both[1]["original"]["test_confidence"] == pytest.approx(row["test_confidence"])

    objective = Objective(lambda confidence_gap: 1 - abs(confidence_gap), "alike")
    found, _ = run_trial(quick, SalUn(lr=0.01, epochs=2), seed=0, objective=objective, metrics=own, rungs=[1])
    assert found["status"] == "completed"
    assert found["score"] == 1 - abs(found["val_confidence"] - both[1]["retrained"]["val_confidence"])
    assert found["metrics"] == {one.name: one.code() for one in own}
    assert len(found["curve"]) == 2


def test_a_metric_without_a_number_is_no_row(quick) -> None:
    row, _ = run_trial(quick, SalUn(lr=0.01, epochs=1), seed=0, metrics=[Metric(lambda head: float("nan"), "broken")])
    assert (row["status"], row["train_broken"]) == ("error", None)
    assert row["error"] == "InputError: metric broken has to return a finite number, not nan"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Metric(lambda forget: 1.0), "needs a name"),
        (lambda: Metric(lambda forgot: 1.0, "own"), "metric own: unknown parameter 'forgot'; did you mean 'forget'"),
        (lambda: Metric(lambda original: 1.0, "own", rung=True), "needs original, which is not known at a rung"),
        (lambda: Protocol(metrics=[Metric(lambda both: 1.0, "nc4")]), "two metrics nc4"),
        (lambda: Protocol(metrics=[confidence]), "is a raymu.Metric, not"),
        (lambda: Protocol(metrics=[Metric(lambda both: 1.0, "retain_acc_gap")]), "names another column"),
        (
            lambda: Sweep(
                SalUn,
                SCENARIOS["digits"],
                Protocol(scheduler="asha", objective=CONFIDENT, metrics=[Metric(confidence)]),
            ).check_protocol(),
            "reads confidence, which is not measured while a trial runs",
        ),
    ],
)
def test_a_metric_that_cannot_be_is_one_line(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_a_metric_is_the_same_after_a_journey() -> None:
    one = Metric(confidence)
    other = ray.cloudpickle.loads(ray.cloudpickle.dumps(one))
    assert (one, hash(one)) == (other, hash(other))
    assert one != Metric(largest_weight, "confidence")


def test_gaps_are_zero_for_the_retrained_model_itself() -> None:
    metrics = dict.fromkeys(columns(), 0.4)
    assert set(evaluation.gaps(metrics, metrics).values()) == {0.0}
    better = metrics | {"test_retain_acc": 0.9, "train_nc1": None}
    gaps = evaluation.gaps(better, metrics)
    assert gaps["test_retain_acc_gap"] == pytest.approx(0.5)
    assert gaps["train_nc1_gap"] is None


# Layers


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit"])
def test_a_depth_profile_ends_where_the_evaluation_begins(architecture, digits) -> None:
    scenario = dataclasses.replace(digits, architecture=architecture)
    if architecture == "test_vit":
        scenario = dataclasses.replace(scenario, model_args=(("patch_size", 4),))
    loaded = splits.load(scenario, DEVICE)
    model = architectures.build(scenario, seed=3).to(DEVICE)
    rows = evaluation.profile(model, loaded)
    assert [row["layer"] for row in rows] == [*(info["module"] for info in model.feature_info), "penultimate"]
    assert len(rows) > 2
    whole = evaluation.evaluate(model, loaded, evaluation.baseline({"original": model, "retrained": model}, loaded))
    for key, value in rows[-1].items():
        assert key == "layer" or value == pytest.approx(whole[key], abs=0.03)


def test_pixels_alone_are_read_from_the_first_block(digits) -> None:
    """A block that forgets everything shows: all features after it are at chance."""
    loaded = splits.load(digits, DEVICE)
    model = architectures.build(digits, seed=3).to(DEVICE)
    torch.nn.init.zeros_(model.layer2[-1].bn2.weight)
    torch.nn.init.zeros_(model.layer2[-1].downsample[-1].weight)
    rows = {row["layer"]: row["test_probe_retain_acc"] for row in evaluation.profile(model, loaded)}
    assert rows["layer1"] > 0.5
    assert rows["layer2"] == rows["penultimate"] < 0.2


# Objectives


@pytest.mark.parametrize(
    ("retain", "probe_forget", "expected"),
    [(1, 0, 1), (0.5, 0.5, 0.5), (0.9, 1, 0), (0, 0, 0), (0, 1, 0), (0.9, 0.4, 0.72)],
)
def test_hmean(retain: float, probe_forget: float, expected: float) -> None:
    row = {"val_retain_acc": retain, "val_probe_forget_acc": probe_forget}
    assert HMEAN.of(row, {}) == pytest.approx(expected)


def test_other_objectives_and_splits() -> None:
    row = {"test_retain_acc": 0.8, "test_probe_forget_acc": 0.3}
    assert OBJECTIVES["weighted"].of(row, {}, "test") == pytest.approx(0.75)
    gap = Objective(lambda retain_acc_gap: 1 - abs(retain_acc_gap), "near")
    assert gap.of({"val_retain_acc_gap": -0.1}, {}) == pytest.approx(0.9)


@pytest.mark.long
def test_what_is_extracted_takes_little_more_memory_than_it_keeps(digits_data) -> None:
    """200,000 images of 768 features and 1,000 classes."""
    count, features, classes = 200_000, 768, 1000
    pixels = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(count, 1, 1, 1)
    split = splits.Split(Pixels(pixels, (0.0,), (1.0,)), torch.zeros(count, dtype=torch.int64), torch.arange(count))

    class Wide(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(features, classes)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(images.flatten(1).expand(-1, features).contiguous())

        def get_classifier(self) -> torch.nn.Module:
            return self.head

    memory.reset_peak(CPU)
    before = memory.peak(CPU)
    (said,) = inference.extract(Wide(), digits_data, split)
    kept = sum(tensor.nbytes for tensor in said)
    assert kept == count * (4 * features + 4 * classes + 8)
    assert memory.peak(CPU) - before < 1.1 * kept
