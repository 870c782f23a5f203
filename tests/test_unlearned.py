"""`raymu evaluate`: a model that any code unlearned is measured as a trial's is, image by image where that is asked."""

import csv
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits

import raymu
from raymu import evaluation, reference_models
from raymu.cli import main
from raymu.errors import InputError
from raymu.evaluation import columns
from raymu.evaluation.samples import write
from raymu.methods.random_label import RandomLabel
from raymu.models import architectures
from raymu.scenario import Scenario
from raymu.trial import measured
from raymu.values import FORMULAS

OWN = """
import dataclasses
import raymu

quick = dataclasses.replace(
    raymu.SCENARIOS["digits"], name="quick", recipe=raymu.Recipe(lr=0.05, epochs=3, batch_size=64)
)
"""
QUICK = ("--own", "own.py", "--scenario", "quick")
LABELS = load_digits().target  # of an array's row


@pytest.fixture
def command(tmp_path: Path, monkeypatch, capsys) -> Callable[..., Any]:
    """What `raymu evaluate`, in this process, prints (`out`) and says beside (`err`)."""
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, code: int = 0) -> Any:
        monkeypatch.setattr(sys, "argv", ["raymu", "evaluate", *arguments])
        with pytest.raises(SystemExit, match=str(code)):
            main()
        return capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def kept(quick: Scenario, quick_references, tmp_path_factory) -> dict[str, Path]:
    """Exported models, by their heads."""
    found = {}
    for head in ("linear", "cmf"):
        more = {"temperature": 8.0} if head == "cmf" else {}
        trial = raymu.Trial(RandomLabel(lr=0.02, epochs=1, head=head, **more), quick, seed=4)
        found[head] = tmp_path_factory.mktemp("kept") / head
        trial.prepared().keep(found[head])
    return found


@pytest.mark.parametrize("head", ["linear", "cmf"])
def test_an_exported_model_has_the_figures_of_its_row(head: str, kept, command) -> None:
    row = json.loads((kept[head] / "row.json").read_text())
    said = command(str(kept[head]), "--json")
    found = json.loads(said.out)
    same = (*measured(), "score", "test_score", "test_forget_images")
    assert {key: found["unlearned"][key] for key in same} == {key: row[key] for key in same}
    assert (found["original"]["score"], found["retrained"]["score"], found["dead"]["score"]) == (0, 1, 0)
    assert found["memory"]["test"]["original"] == pytest.approx(found["original"]["test_attack_auc"])
    assert not said.err


def test_a_row_that_says_otherwise_is_told_of(kept, quick_references, command, tmp_path) -> None:
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "row.json").write_text((kept["linear"] / "row.json").read_text())
    save_file(quick_references.original, changed / "model.safetensors")
    said = command(str(changed / "model.safetensors"))  # as the directory
    assert said.err.startswith("warning: these are not the figures of its row: val_")
    said = command(str(changed), *QUICK, "--forget-share", "0.1")
    assert said.err == "note: the model was made by a trial on another scenario, quick\n"


def test_weights_of_other_code_are_measured_beside_the_references(quick_references, command, tmp_path) -> None:
    torch.save({"net": {f"module.{name}": one for name, one in quick_references.original.items()}}, tmp_path / "my.pth")
    table = command("my.pth", *QUICK, "--layers").out
    assert table.startswith("my.pth on quick, forgetting classes 1, 3, 5, 8, 9\n")
    comparison, layers = table.split("Probe on test")
    figures = {line.split()[0]: line.split()[1:] for line in comparison.splitlines() if line.strip()}
    assert figures["unlearned"] == figures["original"]
    assert figures["dead"] != figures["original"]
    assert "to remove" in table
    penultimate = layers.split("penultimate")[1].split()
    assert penultimate[:2] == penultimate[4:]  # of the original and of the same model
    assert penultimate[1] == figures["original"][4]


def test_python_takes_a_file_as_well(quick, quick_references, tmp_path) -> None:
    save_file(quick_references.original, tmp_path / "my.safetensors")
    row = raymu.evaluate(tmp_path / "my.safetensors", quick, objective=raymu.Objective(_forgotten))
    assert {key: row[key] for key in columns()} == {key: quick_references.metrics["original"][key] for key in columns()}
    assert row["score"] == 1 - row["val_forget_acc"]


@pytest.mark.parametrize(
    ("model", "scenario", "said"),
    [
        (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 100)), "quick", "100 outputs, quick has 10 cla"),
        (torch.nn.Flatten(), "quick", "0 outputs, quick has 10 classes"),
        ({"fc.weight": torch.zeros(10, 4)}, "quick", "a model is a torch.nn.Module, or the path of its weights"),
        (torch.nn.Flatten(), "pets.toml", r"such as .* raymu.scenarios.get\('pets.toml'\), not 'pets.toml'"),
    ],
)
def test_what_is_no_model_or_no_scenario_is_said_in_python(model, scenario, said, quick) -> None:
    for call in (raymu.evaluate, raymu.samples):
        with pytest.raises(InputError, match=said):
            call(model, quick if scenario == "quick" else scenario)


def _forgotten(forget_acc: float) -> float:
    return 1 - forget_acc


def test_every_forget_image_is_told_of(quick_references, command, tmp_path) -> None:
    save_file(quick_references.original, tmp_path / "my.safetensors")
    said = command("my.safetensors", *QUICK, "--samples", "known.csv", "--json")
    row = json.loads(said.out)["unlearned"]
    with (tmp_path / "known.csv").open() as file:
        found = list(csv.DictReader(file))
    for split in ("val", "test"):
        those = [one for one in found if one["split"] == split]
        assert len(those) == row[f"{split}_forget_images"]
        for column, reader in {"forget_acc": "model", "probe_forget_acc": "probe", "ncc_forget_acc": "ncc"}.items():
            right = np.mean([one[reader] == one["label"] for one in those])
            assert right == pytest.approx(row[f"{split}_{column}"])
    assert [int(one["label"]) for one in found] == LABELS[[int(one["image"]) for one in found]].tolist()
    odds = np.array([float(one["attacker"]) for one in found])
    named = np.array([one["probe"] == one["label"] for one in found])
    assert odds[named].mean() > odds[~named].mean()
    with Image.open(tmp_path / "known.png") as sheet:
        assert sheet.width > sheet.height > 500  # six rows of eight
    assert (
        said.err
        == f"the probe still names {named.sum()} of {len(found)} forget images: known.csv, pictures: known.png\n"
    )


def test_the_attacker_of_the_table_is_that_of_the_metric(quick, quick_references) -> None:
    """Ordered as the metric orders them: retain images by the same reader give the same area."""
    views = evaluation.look(quick_references.model(), quick_references.data)
    found = evaluation.samples(views)
    for view in views[:2]:
        odds = torch.tensor([one["attacker"] for one in found if one["split"] == view.split], dtype=torch.float64)
        areas = []
        for reader in range(view.forget.odds.shape[1]):
            retain = view.retain.odds[:, reader][:, view.belongs]  # (n, m)
            areas.append(((odds > retain).double() + (odds == retain).double() / 2).mean().item())
        row = quick_references.metrics["original"]
        assert max(areas) == pytest.approx(row[f"{view.split}_attack_auc"], abs=1e-9)


def test_what_a_spreadsheet_would_compute_is_a_text(quick_references, tmp_path) -> None:
    found = [
        {"split": "val", "image": f"{begin}1+1", "label": 1, "model": 0, "probe": 0, "ncc": 0, "attacker": -3.5}
        for begin in FORMULAS
    ]
    (tmp_path / "a.png").write_text("of an earlier run")
    assert write(found, quick_references.data, tmp_path / "a.csv") is None
    assert not (tmp_path / "a.png").exists()  # nothing is known
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [one["image"] for one in rows] == [f"'{begin}1+1" for begin in FORMULAS]
    assert {one["attacker"] for one in rows} == {"-3.5"}


def test_forgotten_samples_are_told_of_as_well(quick, quick_references, tmp_path) -> None:
    task = dataclasses.replace(quick, forget=(), forget_share=0.1)
    found = raymu.samples(quick_references.model(), task, out=tmp_path / "known.csv")
    assert len(found) == round(0.1 * len(quick_references.data.train))
    assert {one["split"] for one in found} == {"val", "test"}
    assert (tmp_path / "known.png").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.pth"], "cannot read none.pth: No such file"),
        (["folder"], "folder has no row.json"),
        (["damaged"], "row.json is damaged"),
        (["other"], "row.json is no row of a trial"),
        (["seven.pth"], "seven.pth does not fit test_resnet on digits: its head has 7 classes, the data 10"),
        (["good.pth", "--samples", "known.txt"], "--samples takes a file NAME.csv"),
        (["good.pth", "--samples", "none/known.csv"], "cannot write to none/known.csv: No such file or directory"),
        (["good.pth", "--samples", "folder.csv"], "cannot write to folder.csv: Is a directory"),
        (["good.pth", "--samples", "photo.csv"], "photo.png is there already"),
        (["good.pth", "--samples", "list.csv"], "list.csv is there already"),
        (["good.pth", "--scenario", "digit"], "unknown scenario 'digit'; did you mean 'digits'?"),
        (["good.pth", "--objective", "remove"], "did you mean 'removal'?"),
        (["good.pth", "--metric", "nc5"], "unknown metric 'nc5'"),
        (["good.pth", "--classes", "1,2"], "forget class 3 is not among the classes 1, 2"),
        (["good.pth", "--classes", "1,1", "--forget", "1"], "1 is there twice in classes"),
        (["good.pth", "--classes", "1", "--forget", "1"], "two classes, not class 1 alone"),
        (["good.pth", "--classes", "1,12", "--forget", "1"], "class 12 is outside the data"),
        (["good.pth", "--classes", "1,2", "--forget", "1,2"], "has to leave at least one"),
        (["good.pth", "--classes", "", "--forget", "1"], "unknown class of digits ''"),
        (["good.pth", "--classes", "0,1,2,3,4,5,6,7,8,9"], "all that digits has"),
        (["good.pth", "--train-share", "0"], "train_share has to be above 0 and at most 1"),
    ],
)
def test_what_cannot_work_is_said_before_any_compute(arguments, said, command, quick, tmp_path, monkeypatch) -> None:
    for name, content in {"damaged": "{", "other": "{}"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "row.json").write_text(content)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "photo.png").write_bytes(b"mine")
    (tmp_path / "list.csv").write_text("image,score\n17,3\n")
    good = architectures.build(quick, 0).state_dict()
    torch.save(good, tmp_path / "good.pth")
    torch.save({**good, "fc.weight": good["fc.weight"][:7], "fc.bias": good["fc.bias"][:7]}, tmp_path / "seven.pth")
    monkeypatch.setattr(reference_models, "load", lambda *_: pytest.fail("it computes"))
    printed = command(*arguments, code=2)
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert not printed.out
    assert (tmp_path / "photo.png").read_bytes() == b"mine"
    assert (tmp_path / "list.csv").read_text() == "image,score\n17,3\n"
    assert not list(tmp_path.glob("known*"))


def test_a_model_that_answers_nothing_finite_is_told_of(quick_references, command, tmp_path) -> None:
    large = {name: 1e30 * one if name.endswith(".weight") else one for name, one in quick_references.original.items()}
    save_file(large, tmp_path / "large.safetensors")
    said = command("large.safetensors", *QUICK, code=2)
    assert said.err == "error: large.safetensors cannot be measured: the features or logits are not finite\n"


def test_a_subset_is_evaluated_by_the_outputs_of_its_classes(quick, quick_references, command, tmp_path) -> None:
    save_file(quick_references.original, tmp_path / "whole.safetensors")
    more = ["--classes", "4,1,7", "--forget", "4", "--train-share", "0.5", "--samples", "known.csv"]
    table = command("whole.safetensors", *QUICK, *more).out
    assert "quick (classes 1, 4, 7 alone, 50 % of the training images), forgetting class 4" in table
    with (tmp_path / "known.csv").open() as file:
        found = list(csv.DictReader(file))
    assert {one["label"] for one in found} == {"4"}
    assert {LABELS[int(one["image"])] for one in found} == {4}
    rows = torch.tensor([int(one["image"]) for one in found])
    with torch.no_grad():
        logits = quick_references.model().eval()(next(quick_references.data.train.images.read([(rows, None)])))
    named = torch.tensor([1, 4, 7])[logits[:, [1, 4, 7]].argmax(1)]
    assert [int(one["model"]) for one in found] == named.tolist()
