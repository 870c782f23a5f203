"""One trial, without Ray."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from raymu import cache, reference_models, splits, training
from raymu.checkpoints import Checkpoints
from raymu.engines import DEFAULTS, Options
from raymu.engines.pytorch import Engine
from raymu.evaluation import columns
from raymu.method import Method, Range, Step, tuned
from raymu.methods.finetune import Finetune
from raymu.methods.random_label import RandomLabel
from raymu.methods.retrain import Retrain
from raymu.methods.salun import SalUn
from raymu.objective import Objective
from raymu.row import seen
from raymu.storage import locate
from raymu.trial import best_epoch, has_turned, run_trial

COSTS = {"wall_s", "unlearn_s", "evaluate_s", "peak_mem"}


def without_costs(row: dict) -> dict:
    return {key: value for key, value in row.items() if key not in COSTS}


class Broken(Method):
    paper: ClassVar[str] = "none"
    lr: float = tuned(0.1, Range(0.01, 1.0, "log"), "")
    epochs: int = tuned(2, Range(1, 9, "int"), "")

    def unlearn(self, run: Engine) -> Iterator[Step]:
        for epoch in run.epochs(self.epochs, self.lr):
            if epoch == 2:
                raise KeyError("what a bug looks like")
            for batch in run.batches("train"):
                yield torch.nn.functional.cross_entropy(run.model(batch.images), batch.labels)


class Unsayable(Exception):
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize("error", [SystemExit(0), GeneratorExit(), Unsayable(), KeyError("m" * 10**6)])
def test_whatever_a_method_raises_is_in_its_row(quick, quick_references, error) -> None:
    class Raises(Broken):
        def unlearn(self, run: Engine) -> Iterator[Step]:
            for _ in run.epochs(self.epochs, self.lr):
                raise error
            yield

    row, model = run_trial(quick, Raises(), seed=0)
    assert (row["status"], row["score"], model) == ("error", None, None)
    assert row["error"].startswith(f"{type(error).__name__}: ")
    assert len(row["error"]) < 20_000


def test_a_row_is_complete(quick, quick_references) -> None:
    row, model = run_trial(quick, SalUn(lr=0.01, epochs=2), seed=3)
    json.dumps(row, allow_nan=False)
    assert row["status"] == "completed"
    assert (row["method"], row["scenario"], row["seed"], row["epochs"]) == ("salun", "quick", 3, 2)
    defaults = {"clip": None, "salient": 0.5, "saliency": "absolute", "decay": 1.0}
    assert row["config"] == {"lr": 0.01, "epochs": 2, **defaults}
    assert (row["head"], row["train"], row["forget_share"]) == ("linear", "all", 0.0)
    train, forget = len(quick_references.data.train), quick_references.data.forget.sum().item()
    assert row["images"] == 2 * train + forget  # two epochs, and the saliency
    assert row["peak_mem"] > 2**26
    for key in columns():
        assert row[f"{key}_gap"] == pytest.approx(row[key] - quick_references.metrics["retrained"][key])
    ((epoch, seen),) = row["curve"]
    assert (epoch, row["score"]) == (2, max(0.0, seen))
    assert model is not None


def test_same_arguments_same_row_to_the_last_digit(quick) -> None:
    first, second, other = (run_trial(quick, SalUn(lr=0.01, epochs=1), seed=seed)[0] for seed in (3, 3, 4))
    assert without_costs(first) == without_costs(second)
    assert without_costs(first) != without_costs(other) | {"seed": 3}


def test_looking_in_between_changes_nothing(quick, quick_references) -> None:
    """Evaluation puts the model into eval mode; an epoch puts it back."""
    reports: list[dict] = []
    looked, _ = run_trial(quick, RandomLabel(lr=0.01, epochs=3), seed=0, rungs=[1, 2], report=reports.append)
    plain, _ = run_trial(quick, RandomLabel(lr=0.01, epochs=3), seed=0)
    on_the_way = {"curve": None}
    assert without_costs(looked) | on_the_way == without_costs(plain) | on_the_way
    assert looked["wall_s"] == pytest.approx(looked["unlearn_s"] + looked["evaluate_s"])  # nothing is cached
    assert [report["epochs"] for report in reports] == [1, 2]
    assert [report["status"] for report in reports] == ["stopped", "stopped"]
    assert [epoch for epoch, _ in looked["curve"]] == [1, 2, 3]
    retrained = quick_references.metrics["retrained"]
    for key in ("val_probe_forget_acc", "val_retain_acc"):
        assert reports[0][f"{key}_gap"] == pytest.approx(reports[0][key] - retrained[key])


@pytest.mark.parametrize(
    ("scores", "best", "turned"),
    [
        ([-0.5], 1, False),
        ([0.1, 0.3, 0.2, 0.3], 2, False),
        ([0.1, 0.3, 0.2, 0.3, 0.3], 2, True),
        ([0.1, 0.3, 0.2, 0.3, 0.4], 5, False),
        ([-0.1, -0.2, -0.3, -0.4, -0.5], 1, False),  # nothing is found yet
        ([0.0, 0.0, 0.0, 0.0], 1, False),
    ],
)
def test_a_curve_has_turned_three_epochs_after_its_best_score_above_0(scores, best, turned) -> None:
    curve = [[epoch, score] for epoch, score in enumerate(scores, 1)]
    assert (best_epoch(curve), has_turned(curve)) == (best, turned)


@pytest.fixture(scope="module")
def second(quick, quick_references) -> Objective:
    """Has its highest score where a run of RISING ends after two epochs."""
    aimed = run_trial(quick, RISING, seed=0)[0]["val_attack_auc"]
    return Objective(lambda attack_auc: 1 - abs(attack_auc - aimed), name="second")


RISING = RandomLabel(lr=0.003, epochs=2)
LONGER = replace(RISING, epochs=8)


class Ended(BaseException):
    """Raised to end a trial."""


CHOOSES = {"seed": 0, "rungs": range(1, 9), "chooses_epochs": True}
OF_THE_WAY = {"curve": None, "shorter": None, "images": None}


def test_a_trial_chooses_its_epochs(quick, second) -> None:
    """Its row and model are the shorter run's, and it costs three epochs more."""
    reports: list[dict] = []
    row, model = run_trial(quick, LONGER, objective=second, report=reports.append, **CHOOSES)
    own, own_model = run_trial(quick, RISING, seed=0, objective=second)
    assert without_costs(row) | OF_THE_WAY == without_costs(own) | OF_THE_WAY
    assert (row["epochs"], row["config"]["epochs"], row["score"]) == (2, 2, 1.0)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in own_model.state_dict().items())
    assert [epoch for epoch, _ in row["curve"]] == [1, 2, 3, 4, 5]
    assert seen(row) == row["curve"][1][1] == 1.0
    assert row["images"] == own["images"] / 2 * 5
    assert [(report["status"], report["config"]) for report in reports] == [("stopped", LONGER.config)] * 4


@pytest.mark.parametrize("how", [{"seed": 0}, CHOOSES])
def test_a_trial_asks_before_anything_is_read_from_test(quick, second, how) -> None:
    """On validation it says the same before and after."""
    method, reports = LONGER if how is CHOOSES else RISING, list[dict]()
    whole, _ = run_trial(quick, method, objective=second, **how)
    same, _ = run_trial(quick, method, objective=second, asks=True, report=reports.append, **how)
    assert without_costs(same) == without_costs(whole)
    asked = reports[-1]
    rung = set(columns(rung=True))
    at_the_end = {*columns(), *(f"{name}_gap" for name in columns()), "test_score"}
    late = at_the_end - rung - {f"{name}_gap" for name in rung}
    assert {name for name in late if name.startswith("test_")} > {"test_score", "test_retain_acc"}
    assert without_costs(asked) == without_costs(whole) | dict.fromkeys(late)
    assert 0 < asked["evaluate_s"] < asked["wall_s"]

    def end(row: dict) -> None:
        if row["status"] == "completed":
            raise Ended

    with pytest.raises(Ended):
        run_trial(quick, method, objective=second, asks=True, report=end, **how)


def test_a_trial_that_chooses_its_epochs_may_choose_the_last(quick) -> None:
    rising = iter(range(100))
    ever = Objective(lambda retain_acc: next(rising) / 100, name="ever")
    row, _ = run_trial(quick, LONGER, objective=ever, **CHOOSES)
    assert (row["epochs"], row["config"]) == (8, LONGER.config)
    assert [epoch for epoch, _ in row["curve"]] == list(range(1, 9))


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_run_that_diverges_ends_at_its_best_epoch(quick, epoch) -> None:
    """If there was one: it is a shorter run's end, which knows nothing of what would have followed."""

    class Diverging(Finetune):
        def unlearn(self, run: Engine) -> Iterator[Step]:
            for loss in super().unlearn(run):
                yield loss * (torch.nan if run.epoch == epoch else 1)

    method = Diverging(lr=0.003, epochs=8)
    row, model = run_trial(quick, method, **CHOOSES)
    if epoch == 1:
        assert (row["status"], model, row["curve"]) == ("diverged", None, [])
    else:
        assert (row["status"], row["error"]) == ("completed", None)
        assert row["epochs"] == row["config"]["epochs"] < epoch
        assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_trial_that_was_killed_chooses_as_one_that_was_not(quick, second, tmp_path, after) -> None:
    """Also where its best epoch was before."""

    def die(row: dict) -> None:
        if row["epochs"] > after:
            raise Ended

    kept = {"options": Options(checkpoint_s=0.0), "checkpoints": Checkpoints(locate(tmp_path / "trial"))}
    with pytest.raises(Ended):
        run_trial(quick, LONGER, objective=second, report=die, **CHOOSES, **kept)
    asked, reports = list[dict](), list[dict]()
    row, model = run_trial(quick, LONGER, objective=second, asks=True, report=asked.append, **CHOOSES, **kept)
    whole, other = run_trial(quick, LONGER, objective=second, asks=True, report=reports.append, **CHOOSES)
    assert row["resumed"] == [after]
    assert without_costs(asked[-1]) | {"resumed": []} == without_costs(reports[-1])
    assert without_costs(row) | {"resumed": []} == without_costs(whole)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in other.state_dict().items())


def test_the_original_stays_as_it_is(quick, quick_references) -> None:
    before = {name: tensor.clone() for name, tensor in quick_references.original.items()}
    run_trial(quick, RandomLabel(lr=0.1, epochs=1), seed=0)
    assert all(torch.equal(before[name], tensor) for name, tensor in quick_references.original.items())


def test_divergence_is_a_result(quick) -> None:
    row, model = run_trial(quick, RandomLabel(lr=1e9, epochs=2), seed=0)
    assert (row["status"], row["score"], model) == ("diverged", 0.0, None)
    assert all(row[key] is None for key in columns())


def test_an_exception_belongs_to_its_row(quick) -> None:
    row, model = run_trial(quick, Broken(), seed=0)
    assert (row["status"], row["score"], row["epochs"], model) == ("error", None, 1, None)
    assert "what a bug looks like" in row["error"]
    assert "test_trial.py" in row["traceback"]


def test_a_method_that_ends_early_is_an_error(quick) -> None:
    class Early(Broken):
        def unlearn(self, run: Engine) -> Iterator[Step]:
            for _ in run.epochs(1, self.lr):
                yield from ()

    row, _ = run_trial(quick, Early(), seed=0)
    assert (row["status"], row["score"]) == ("error", None)
    assert "ended after epoch 1 of 2" in row["error"]


def test_retraining_is_the_retrained_reference(quick, quick_references, monkeypatch) -> None:
    """Two paths to one model: the reference, and the method `retrain` at the recipe with the scenario's seed. So it is
    not trained twice, and the row says what it would have cost.
    """
    method = Retrain.from_config(Retrain.published_config(quick))
    row, model = run_trial(quick, method, seed=quick.model_seed)
    monkeypatch.setattr(reference_models.References, "retrained", lambda *arguments: None)
    anew, trained = run_trial(quick, method, seed=quick.model_seed)
    for key in (*columns(), "images", "epochs", "status", "score", "curve"):
        assert row[key] == anew[key]
    assert all(torch.equal(weight, trained.state_dict()[name]) for name, weight in model.state_dict().items())
    assert row["peak_mem"] is None
    training = cache.load_json(reference_models.entry_of(quick_references.scenario, "retrained") / "training.json")
    assert row["unlearn_s"] == pytest.approx(training["seconds"], abs=1)


@pytest.mark.parametrize("changed", [{"lr": 0.04}, {"epochs": 2}, {"head": "cmf"}])
def test_retraining_otherwise_is_another_model(quick, quick_references, changed) -> None:
    recipe = {"lr": quick.recipe.lr, "epochs": quick.recipe.epochs}
    seed, retrained = quick.model_seed, quick_references.retrained
    assert retrained(Retrain(**recipe), seed, DEFAULTS) is not None
    assert retrained(Retrain(**recipe), seed + 1, DEFAULTS) is None
    assert retrained(Retrain(**recipe), seed, Options(threads=2)) is None  # its last digits are others
    assert retrained(Retrain(**{**recipe, **changed}), seed, DEFAULTS) is None
    assert retrained(training.TrainOriginal(**recipe), seed, DEFAULTS) is None


@pytest.mark.parametrize("ended", [None, -1])
def test_a_reference_whose_patience_lasted_is_what_retraining_makes(quick, quick_references, ended) -> None:
    """Patience keeps the weights of the best epoch: they are the last ones, or others."""
    recipe = replace(quick.recipe, patience=9)
    entry = reference_models.entry_of(quick_references.scenario, "retrained")
    training = cache.load_json(entry / "training.json")
    epochs = recipe.epochs + (ended or 0)
    patient = replace(quick_references, scenario=replace(quick_references.scenario, recipe=recipe))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_models, "entry_of", lambda *arguments: entry)
        patch.setattr(cache, "load_json", lambda path: {**training, "epochs": epochs})
        state = patient.retrained(Retrain(lr=recipe.lr, epochs=recipe.epochs), quick.model_seed, DEFAULTS)
    assert (state is None) == (ended is not None)


def test_a_trial_that_a_scheduler_looks_at_is_trained(quick, quick_references) -> None:
    method = Retrain(lr=quick.recipe.lr, epochs=quick.recipe.epochs)
    row, _ = run_trial(quick, method, seed=quick.model_seed, rungs=[1])
    assert row["peak_mem"] > 0


def test_poisoned_test_labels_change_no_score(quick, monkeypatch) -> None:
    honest, _ = run_trial(quick, RandomLabel(lr=0.01, epochs=1), seed=0)
    load = reference_models.load

    def poisoned(*arguments):
        reference = load(*arguments)
        retain, forget = reference.data.test
        poisoned = replace(retain, labels=(retain.labels + 1) % 10)
        return replace(reference, data=replace(reference.data, test=splits.HeldOut(poisoned, forget)))

    monkeypatch.setattr(reference_models, "load", poisoned)
    row, _ = run_trial(quick, RandomLabel(lr=0.01, epochs=1), seed=0)
    assert row["status"] == "completed", row["traceback"]
    assert row["test_retain_acc"] != honest["test_retain_acc"]
    for key in ("score", "curve", "val_retain_acc", "val_probe_forget_acc"):
        assert row[key] == honest[key]
