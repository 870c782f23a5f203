"""The attacker against scikit-learn and a computation written out, and the objective between its two fixed points."""

import dataclasses
import math

import pytest
import torch
from scipy.special import logit
from sklearn.metrics import roc_auc_score, roc_curve

from raymu import evaluation, references
from raymu.errors import Undefined
from raymu.evaluation import attack
from raymu.models import architectures
from raymu.models.inference import extract, heads
from raymu.objective import MARGIN, REMOVAL
from raymu.protocol import Protocol
from raymu.scenario import SCENARIOS
from raymu.tuning import fixed_points


def noise(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scores(shift: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-odds of 200 retain and 60 forget images by two readers of two classes; the second reader reads more."""
    belongs = torch.arange(60) % 2
    forget = noise(60, 2, 2, seed=seed + 1)
    forget[torch.arange(60), 0, belongs] += shift
    forget[torch.arange(60), 1, belongs] += 2 * shift
    return noise(200, 2, 2, seed=seed), forget, belongs


def test_log_odds_are_those_of_the_softmax() -> None:
    logits = noise(7, 4)
    expected = torch.tensor(logit(logits.softmax(1).numpy()))
    torch.testing.assert_close(attack.log_odds(logits, torch.tensor([[2, 0]])), expected[:, [2, 0]])
    labels = torch.arange(7) % 4
    own = attack.log_odds(logits, labels.unsqueeze(1))
    torch.testing.assert_close(own[:, 0], expected[torch.arange(7), labels])
    sure = attack.log_odds(torch.tensor([[100.0, 0.0, 0.0]]), torch.tensor([[0]]))
    assert sure.item() == pytest.approx(100 - math.log(2))  # where a probability would be 1


def test_its_area_and_recall_are_scikit_learns_of_the_stronger_reader() -> None:
    retain, forget, belongs = scores()
    areas, recalls = [], []
    for reader in range(2):
        area = recall = 0.0
        for place in range(2):
            positives, negatives = forget[belongs == place, reader, place], retain[:, reader, place]
            truth = [1] * len(positives) + [0] * len(negatives)
            told = torch.cat([positives, negatives])
            area += roc_auc_score(truth, told) / 2
            false, true, _ = roc_curve(truth, told, drop_intermediate=False)
            recall += max(t for f, t in zip(false, true, strict=True) if f <= attack.FALSE_POSITIVES) / 2
        areas.append(area)
        recalls.append(recall)
    assert areas[1] > areas[0]
    assert attack.area(retain, forget, belongs) == pytest.approx(areas[1])
    assert attack.recall(retain, forget, belongs) == pytest.approx(max(recalls))
    found = attack.placements(retain, forget, belongs)
    assert (found.forget.mean().item(), found.retain.mean().item()) == pytest.approx((areas[1], areas[1]))


def test_ties_count_half_and_a_blind_attacker_has_a_half() -> None:
    blind = torch.zeros(10, 1, 1), torch.zeros(4, 1, 1), torch.zeros(4, dtype=torch.long)
    assert attack.area(*blind) == 0.5
    assert attack.recall(*blind) == 0
    with pytest.raises(Undefined, match="a retain and a forget image"):
        attack.area(blind[0][:0], *blind[1:])
    with pytest.raises(Undefined, match="no number"):
        attack.area(blind[0] * torch.nan, *blind[1:])


def test_the_error_of_what_there_is_to_forget_is_its_spread_over_images() -> None:
    """DeLong's against samples drawn again and again."""
    found = []
    for seed in range(0, 400, 2):
        original, retrained = (attack.placements(*scores(shift, seed)) for shift in (1.0, 0.7))
        one = attack.memory(original, retrained)
        found.append((one.original - one.retrained, one.error))
    differences, errors = torch.tensor(found).T
    assert errors.mean().item() == pytest.approx(differences.std().item(), rel=0.15)
    low, high = one.interval
    assert (high - low) / 2 == pytest.approx(1.96 * one.error, rel=1e-4)
    assert one[3:] == (60, 200)
    with pytest.raises(Undefined, match="two retain and two forget"):
        attack.memory(*(attack.Placements(each.forget[:1], each.retain) for each in (original, retrained)))


def test_where_a_class_is_put_does_not_matter(digits, digits_data) -> None:
    """A reader whose bias moves, as with another share of the class in training, orders the images alike."""
    retain, forget, belongs = scores()
    moved = retain - 3, forget - 3, belongs
    assert attack.area(*moved) == attack.area(retain, forget, belongs)
    assert attack.recall(*moved) == attack.recall(retain, forget, belongs)


# The objective

ORIGINAL = {"retain_acc": 0.95, "attack_auc": 0.999, "forget_acc": 0.96}
RETRAINED = {"retain_acc": 0.96, "attack_auc": 0.979, "forget_acc": 0.0}
REFERENCES = {
    name: {f"val_{key}": value for key, value in row.items()}
    for name, row in (("original", ORIGINAL), ("retrained", RETRAINED))
}


def score(**changed: float) -> float:
    return REMOVAL.of({f"val_{key}": value for key, value in (RETRAINED | changed).items()}, REFERENCES)


def test_the_original_scores_0_and_the_retrained_model_1() -> None:
    assert score(**ORIGINAL) == 0
    assert score() == 1


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"retain_acc": 0.96 - MARGIN}, 1.0),  # within the margin
        ({"retain_acc": 0.96 - 3 * MARGIN}, 0.5),
        ({"retain_acc": 0.96 - 5 * MARGIN}, 0.0),
        ({"attack_auc": 0.989}, 0.5),  # half of the memory
        ({"attack_auc": 0.5}, 1.0),  # below the retrained model: nothing is earned
        ({"retain_acc": 0.99}, 1.0),
        ({"forget_acc": 0.48}, 0.5),
        ({"attack_auc": 0.989, "forget_acc": 0.48}, 0.25),
        ({"forget_acc": 0.0, "attack_auc": 0.999}, 0.0),  # the illusion: silent, and as well read as before
        ({"retain_acc": 0.1, "attack_auc": 0.5}, 0.0),  # a dead network
        ({"retain_acc": 0.6 * 0.96, "attack_auc": 0.5}, 0.0),
    ],
)
def test_a_score_is_the_product_of_three_shares(changed: dict[str, float], expected: float) -> None:
    assert score(**changed) == pytest.approx(expected)


def test_below_0_a_searcher_sees_which_way_is_up() -> None:
    def seen(**changed: float) -> float:
        return REMOVAL.seen({f"val_{key}": value for key, value in (RETRAINED | changed).items()}, REFERENCES)

    little = [seen(**(ORIGINAL | {"forget_acc": answers})) for answers in (0.96, 0.8, 0.4, 0.1)]
    damage = [seen(retain_acc=0.96 - loss) for loss in (0.3, 0.18, 0.14, 0.11)]
    for rising in (little, damage):
        assert rising == sorted(rising)
        assert -1 <= rising[0] < rising[-1] < 0


def test_forgotten_samples_are_to_be_answered_as_the_retrained_model_does() -> None:
    """Not worse: who is wrong about them on purpose tells which they were."""
    samples = {name: dict(row) for name, row in REFERENCES.items()}
    samples["original"]["val_forget_acc"], samples["retrained"]["val_forget_acc"] = 1.0, 0.95
    row = {f"val_{key}": value for key, value in RETRAINED.items()}
    assert REMOVAL.of(row | {"val_forget_acc": 0.95}, samples) == 1
    assert REMOVAL.of(row | {"val_forget_acc": 0.9}, samples) == pytest.approx(0)
    assert REMOVAL.of(row | {"val_forget_acc": 0.0}, samples) == 0


def test_an_objective_reads_the_references_columns() -> None:
    assert {"attack_auc", "attack_auc_original", "attack_auc_retrained"} <= set(REMOVAL.columns)
    REMOVAL.check(evaluation.columns(rung=True), "while a trial runs")


@pytest.fixture(scope="module")
def trained(digits) -> references.References:
    return references.load(digits, references.default_device())


def measured(model: torch.nn.Module, reference: references.References) -> dict:
    return evaluation.evaluate(model, reference.data, reference.baseline)


def test_real_models_score_what_they_are_worth(trained) -> None:
    scored = {which: [REMOVAL.of(trained.metrics[which], trained.metrics, split) for split in ("val", "test")]
              for which in references.REFERENCES}  # fmt: skip
    assert scored == {"original": [0, 0], "retrained": [1, 1]}
    dead, silent = trained.model(), trained.model()
    with torch.no_grad():
        for module in dead.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.zero_()
        for layer in heads(silent):
            layer.bias[list(trained.data.forgotten)] = -1e4
    untrained = architectures.build(trained.scenario, seed=7)
    for model in (dead, silent, untrained):
        row = measured(model, trained)
        for split in ("val", "test"):
            assert REMOVAL.of(row, trained.metrics, split) <= 0.05
    assert measured(silent, trained)["val_forget_acc"] == 0


def test_little_memory_is_said_before_a_search(quick, quick_references, monkeypatch) -> None:
    some = attack.Memory(0.99, 0.95, 0.01, 61, 568)
    monkeypatch.setattr(references, "memory", lambda *_: {"val": some, "test": some._replace(error=0.03), "none": None})
    first, second, third = fixed_points.memory_lines(quick, Protocol())
    assert "0.9900 on the original, 0.9500 on the retrained model: 0.0400 to remove [0.0204, 0.0596]" in first
    assert "61 forget and 568 retain images" in second
    assert third.startswith("nothing to forget on test: that is within noise")


@pytest.mark.long
def test_the_embedded_default_has_memory_to_remove() -> None:
    """On five originals it is above three standard errors on either split (measured: 3.1 to 5.0)."""
    digits = SCENARIOS["digits"]
    references.load(digits, references.default_device())
    for split, found in references.memory(digits).items():
        assert found is not None
        assert (found.original - found.retrained) / found.error > 3, split
        assert found.forget_images > 300
        row = references.metrics(digits)
        assert found[:2] == tuple(row[which][f"{split}_attack_auc"] for which in references.REFERENCES)


def test_forgotten_samples_are_told_by_the_models_confidence(quick) -> None:
    samples = dataclasses.replace(quick, name="samples", forget=(), forget_share=0.1)
    reference = references.load(samples, references.default_device())
    data, model = reference.data, reference.model()
    retain, forget = extract(model, data, data.val.retain, data.val.forget)
    told = [attack.log_odds(part.logits, part.labels.unsqueeze(1)).squeeze(1) for part in (retain, forget)]
    truth = [0] * len(told[0]) + [1] * len(told[1])
    expected = roc_auc_score(truth, torch.cat(told).cpu())
    assert reference.metrics["original"]["val_attack_auc"] == pytest.approx(expected)
