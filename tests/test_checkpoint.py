"""A trial or reference whose process dies goes on from its last epoch and ends as if nothing had happened."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_parity import CASES, SCENARIO, in_workers, setting

from raymu import cache, engines, reference_models
from raymu.checkpoints import Checkpoints, State
from raymu.engines import Engine, Options
from raymu.evaluation import columns
from raymu.methods.random_label import RandomLabel
from raymu.models import architectures
from raymu.scenario import Recipe
from raymu.storage import locate
from raymu.trial import run_trial
from raymu.workers import ALONE, Workers


class Killed(BaseException):
    """What ends a process in these tests."""


def lengthened(name: str):
    """Three epochs; of two phases three each."""
    method = CASES[name]
    return dataclasses.replace(method, **{knob: 3 for knob in method.ranges() if knob.endswith("epochs")})


def interrupted(name: str, options: Options, images, original, place, epochs) -> list[float]:
    """How far the weights of a run that was interrupted after an epoch end from those of one that was not."""
    method, workers = lengthened(name), Workers()

    def start() -> Engine:
        model = architectures.build(SCENARIO, seed=0)
        if method.start == "original":
            model.load_state_dict(original.state_dict())
        return engines.make(model, images, SCENARIO, seed=3, options=options)

    whole = start()
    whole.run(method)
    expected = whole.model.state_dict()
    apart = []
    for last in epochs:
        checkpoints = Checkpoints(locate(place / f"{name}-{options.engine}-{last}"))
        first = start()

        def die(epoch: int, first=first, checkpoints=checkpoints, last=last) -> None:
            if epoch == last:
                checkpoints.save(first.state(), {}, workers)
                raise Killed

        with pytest.raises(Killed):
            first.run(method, die)
        state, _ = checkpoints.load(workers)
        second, ends = start(), []
        second.resume(state)
        second.run(method, ends.append)
        assert ends == list(range(last + 1, method.total_epochs + 1))
        assert (second.epoch, second.images) == (whole.epoch, whole.images)
        got = second.model.state_dict()
        apart.append(max((got[key] - expected[key]).abs().max().item() for key in expected))
    return apart


@pytest.mark.parametrize(
    ("name", "epochs"),
    [
        ("salun-cmf-all", (1, 3)),
        ("neggrad_plus-linear-all", (2,)),
        ("scrub-linear-all", (1,)),
        pytest.param("unsir-linear-all", (2, 3, 5), marks=pytest.mark.long),  # of two phases of three
    ],
)
def test_an_engine_goes_on_where_another_stood(name, epochs, tmp_path) -> None:
    """To the bit: momentum, frozen weights, the place in an endless cycle, the teacher, the second of two phases."""
    original, images = setting()
    assert set(interrupted(name, Options(), images, original, tmp_path, epochs)) == {0.0}


def sharded(directory: str) -> list[float]:
    original, images = setting()
    shared = dataclasses.replace(images, workers=Workers())
    return [
        max(interrupted(name, Options(workers=2, zero=stage), shared, original, Path(directory), [epoch]))
        for name, stage, epoch in (
            ("neggrad_plus-linear-all", 0, 1),
            ("unsir-linear-all", 2, 4),
            ("salun-linear-all", 3, 2),
        )
    ]


@pytest.mark.long
def test_workers_go_on_with_their_parts_of_the_optimizer(tmp_path) -> None:
    for apart in in_workers(sharded, tmp_path, str(tmp_path)):
        assert max(apart) == 0.0


def test_a_trial_that_was_killed_ends_as_one_that_was_not(quick, quick_references, tmp_path) -> None:
    method, options = RandomLabel(lr=0.01, epochs=4), Options(checkpoint_s=0.0)
    whole, _ = run_trial(quick, method, seed=0, rungs=[1, 3])
    checkpoints = Checkpoints(locate(tmp_path / "trial"))
    reported = []

    def die(row: dict) -> None:
        reported.append(row["epochs"])
        if row["epochs"] == 3:
            raise Killed

    arguments = {"seed": 0, "rungs": [1, 3], "options": options, "checkpoints": checkpoints}
    with pytest.raises(Killed):
        run_trial(quick, method, **arguments, report=die)
    row, _ = run_trial(quick, method, **arguments, report=lambda row: reported.append(row["epochs"]))
    assert reported == [1, 3, 3]  # the third epoch was in flight
    assert row["resumed"] == [2]
    assert [epoch for epoch, _ in row["curve"]] == [1, 3, 4]
    for key in ("score", "curve", "images", "epochs", "status", *columns()):
        assert row[key] == whole[key], key
    assert row["unlearn_s"] > 0
    checkpoints.clear()
    assert not (tmp_path / "trial").exists()


@pytest.mark.parametrize(("patience", "last"), [(None, 1), (None, 3), (None, 5), (2, 1), (2, 2)])
def test_a_reference_goes_on_from_its_last_epoch(last, patience, digits, tmp_path, monkeypatch) -> None:
    """To the bit, and to the same best epoch, where the recipe looks for one."""
    recipe = Recipe(lr=0.3, epochs=6, batch_size=256, patience=patience)
    scenario = dataclasses.replace(digits, name="interrupted", recipe=recipe)
    epochs = 0

    def die(before, after: float) -> Callable[..., None]:
        def saved(*arguments) -> None:
            nonlocal epochs
            before(*arguments)
            epochs += 1
            if epochs == after:
                raise Killed

        return saved

    options, save = Options(checkpoint_s=0.0), Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", die(save, after=last))
    monkeypatch.setenv("RAYMU_CACHE", str(tmp_path / "interrupted"))
    with pytest.raises(Killed):
        reference_models.train(scenario, "original", options)
    entry = reference_models.train(scenario, "original", options)
    assert not list(entry.parent.glob(".*.training"))
    monkeypatch.setenv("RAYMU_CACHE", str(tmp_path / "whole"))
    monkeypatch.setattr(Checkpoints, "save", save)
    whole = reference_models.train(scenario, "original", options)
    assert whole != entry
    for name in (reference_models.WEIGHTS, "scenario.json"):
        assert (whole / name).read_bytes() == (entry / name).read_bytes()
    trained, undisturbed = (cache.load_json(one / "training.json") for one in (entry, whole))
    assert trained["epochs"] == undisturbed["epochs"]
    assert patience is not None or epochs == 6  # none was trained twice


def test_a_reference_does_not_go_on_from_that_of_another_scenario(digits, tmp_path, monkeypatch) -> None:
    """Of another original or forget set, which would be learnt."""
    first = dataclasses.replace(digits, name="first", recipe=Recipe(lr=0.3, epochs=2, batch_size=256))
    other = dataclasses.replace(first, model_seed=1, forget=(5,))
    kept, options = Checkpoints(locate(tmp_path / "kept")), Options(checkpoint_s=0.0)
    clear = Checkpoints.clear
    trained = []
    for place, before in (("mixed", first), ("alone", None)):
        monkeypatch.setenv("RAYMU_CACHE", str(tmp_path / place))
        monkeypatch.setattr(Checkpoints, "clear", lambda self: None)  # as if it had died after its last epoch
        if before is not None:
            reference_models.train(before, "retrained", options, kept)
        monkeypatch.setattr(Checkpoints, "clear", clear)
        entry = reference_models.train(other, "retrained", options, kept)
        trained.append((entry / reference_models.WEIGHTS).read_bytes())
    assert trained[0] == trained[1]


def test_a_damaged_checkpoint_is_as_good_as_none(quick, quick_references, tmp_path) -> None:
    """Its hash tells. What other workers wrote cannot be used either."""
    checkpoints = Checkpoints(locate(tmp_path / "trial"))
    state = State(2, 100, 0.5, [7], {"weight": torch.arange(4.0)}, {"0.momentum_buffer": torch.ones(4)}, {})
    assert checkpoints.load(ALONE) is None
    checkpoints.save(state, {"curve": [[1, 0.5]]}, ALONE)
    found, row = checkpoints.load(ALONE)
    assert (found.epoch, found.images, found.cycled, row) == (2, 100, [7], {"curve": [[1, 0.5]]})
    assert torch.equal(found.weights["weight"], state.weights["weight"])
    checkpoints.save(state._replace(epoch=3), {}, ALONE)
    assert [path.name for path in (tmp_path / "trial").iterdir() if path.is_dir()] == ["epoch-3"]  # the last alone
    for name in ("weights", "optimizer-0"):
        file = tmp_path / "trial" / "epoch-3" / f"{name}.safetensors"
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + b"\xff")
        assert checkpoints.load(ALONE) is None
        file.write_bytes(whole)
    assert checkpoints.load(ALONE) is not None
    (tmp_path / "trial" / "epoch-3" / "weights.safetensors").unlink()
    assert checkpoints.load(ALONE) is None


def test_a_checkpoint_that_cannot_be_written_costs_no_trial(quick, quick_references, tmp_path) -> None:
    (tmp_path / "file").write_text("no directory")
    row, _ = run_trial(
        quick,
        RandomLabel(lr=0.01, epochs=2),
        seed=0,
        options=Options(checkpoint_s=0.0),
        checkpoints=Checkpoints(locate(tmp_path / "file" / "trial")),
    )
    assert row["status"] == "completed"
