"""Scenario files: a user's own model, images and words."""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file, save_file

from raymu import drafts, export, reference_models, scenarios, splits
from raymu.cli import program
from raymu.cli.flags import with_forget, with_subset
from raymu.data import npz
from raymu.data.published import DATASETS
from raymu.errors import Diverged, InputError
from raymu.methods.random_label import RandomLabel
from raymu.models import given
from raymu.models.inference import extract
from raymu.objective import HMEAN
from raymu.protocol import Confirmation, Protocol
from raymu.results.identity import forgotten, subset
from raymu.scenario import SCENARIOS
from raymu.study import Trial, accuracies, references
from raymu.tuning.sweep import Sweep

CPU = torch.device("cpu")
CLASSES = ("dark", "grey", "light")
PER_CLASS = {"train": 12, "val": 4, "test": 5}
NETWORK = """
from torch import nn

class Small(nn.Module):
    def __init__(self, num_classes, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, 2)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, images):
        return self.fc(self.conv(images).relu().mean((2, 3)))

def small(num_classes):
    return Small(num_classes)

answer = 42
"""
FILE = """
architecture = "net:small"
original = "{original}"
retrained = "none"
forget = ["grey"]

[data]
format = "{format}"
path = "{path}"
{more}
"""


def pixels(part: str) -> np.ndarray:
    """Images (N, 16, 16, 3) of three brightnesses, class by class."""
    random = np.random.default_rng(len(part))
    means = np.repeat((60, 128, 200), PER_CLASS[part])
    return random.normal(means[:, None, None, None], 10, (len(means), 16, 16, 3)).clip(0, 255).astype(np.uint8)


def labels(part: str) -> np.ndarray:
    return np.repeat(np.arange(3), PER_CLASS[part])


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A directory with a network, its weights in two files, and the same images as folders, arrays and parquet."""
    (tmp_path / "net.py").write_text(NETWORK)
    space: dict[str, Any] = {}
    exec(NETWORK, space)
    torch.manual_seed(0)
    model = space["Small"](3)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    wrapped = {f"module.{name}": weight for name, weight in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": wrapped}, tmp_path / "model.pth")
    arrays: dict[str, np.ndarray] = {"classes": np.array(CLASSES)}
    (tmp_path / "hub").mkdir()
    for part in PER_CLASS:
        images, numbers = pixels(part), labels(part)
        arrays |= {f"x_{part}": images, f"y_{part}": numbers}
        rows = []
        for number, (image, label) in enumerate(zip(images, numbers, strict=True)):
            path = tmp_path / "photos" / part / CLASSES[label] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
            rows.append({"image": {"bytes": path.read_bytes(), "path": None}, "label": int(label)})
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(CLASSES)}}
        table = pyarrow.Table.from_pylist(rows)
        said = {"huggingface": json.dumps({"info": {"features": features}})}
        parquet.write_table(table.replace_schema_metadata(said), tmp_path / "hub" / f"{part}-00000-of-00001.parquet")
    np.savez(tmp_path / "arrays.npz", **arrays)
    return tmp_path


PATHS = {"folders": "photos", "npz": "arrays.npz", "parquet": "hub"}
EXACT = "size = 16\ncrop_pct = 1.0"  # photographs as they are


def write(own: Path, kind: str = "npz", *, original: str = "model.safetensors", more: str = "", **changes: str) -> Path:
    text = FILE.format(original=original, format=kind, path=PATHS[kind], more=more or EXACT * (kind != "npz"))
    for old, new in changes.items():
        text = text.replace(f"{old} = ", f"{new} = ", 1) if new else text
    (own / "own.toml").write_text(text)
    return own / "own.toml"


@pytest.mark.parametrize("kind", PATHS)
def test_the_same_images_in_every_format(own, kind) -> None:
    task = splits.prepare(scenarios.get(str(write(own, kind))))
    assert (task.name, task.dataset_name, task.forget) == ("own", "own", (1,))
    assert (task.source.class_names, task.forgotten) == (CLASSES, "class grey")
    data = splits.load(task, CPU)
    assert (len(data.train), data.num_classes) == (36, 3)  # nothing of the training set is held out
    assert [len(part) for part in (*data.val, *data.test)] == [8, 4, 10, 5]
    seen = data.test.forget.read()
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in task.format[1:])
    shown = pixels("test")[labels("test") == 1].transpose(0, 3, 1, 2)
    assert sorted((seen * std + mean).mul(255).round().int().flatten(1).sum(1).tolist()) == sorted(
        shown.reshape(len(shown), -1).astype(int).sum(1).tolist()
    )


def test_a_model_is_known_by_its_weights_whatever_holds_them(own) -> None:
    first, second = (scenarios.read(write(own, original=file)) for file in ("model.safetensors", "model.pth"))
    assert first.original == second.original != ""
    assert first.hash == second.hash
    (own / "model.safetensors").unlink()  # it was copied
    model = reference_models.load_model(splits.prepare(first), "original")
    assert torch.equal(model.fc.bias, torch.load(own / "model.pth")["state_dict"]["module.fc.bias"])
    again = scenarios.Scenario.from_dict(first.as_dict())
    assert (again.original, again.has_retrained) == (first.original, False)


def test_outputs_of_a_larger_head(own) -> None:
    space: dict[str, Any] = {}
    exec(NETWORK, space)
    large = space["Small"](7)
    save_file(large.state_dict(), own / "large.safetensors")
    path = write(own, original="large.safetensors")
    with pytest.raises(InputError, match="its head has 7 classes, the data 3"):
        scenarios.read(path)
    path.write_text("original_rows = [5, 0, 2]\n" + path.read_text())
    task = splits.prepare(scenarios.read(path))
    data = splits.load(task, CPU)
    (said,) = extract(reference_models.load_model(task, "original"), data, data.test.forget)
    with torch.no_grad():
        assert torch.allclose(said.logits, large.eval()(data.test.forget.read())[:, [5, 0, 2]], atol=1e-6)
    elsewhere = export.load(own / "large.safetensors", task)  # as of other code, with all outputs
    assert torch.equal(elsewhere.fc.bias, large.fc.bias[[5, 0, 2]])
    some = with_subset(task, "dark,grey", None)
    assert torch.equal(export.load(own / "large.safetensors", some).fc.bias, large.fc.bias[[5, 0]])
    save_file(elsewhere.state_dict(), own / "small.safetensors")
    assert torch.equal(export.load(own / "small.safetensors", some).fc.bias, large.fc.bias[[5, 0]])
    path.write_text(path.read_text().replace("[5, 0, 2]", "[5, 0, 7]"))
    with pytest.raises(InputError, match=r"large.safetensors: its head has the outputs 0..6, so none is 7"):
        scenarios.read(path)


def test_without_a_retrained_model_nothing_is_compared_with_it(own) -> None:
    task = splits.prepare(scenarios.read(write(own)))
    trial = Trial(RandomLabel(lr=0.01, epochs=1), task, objective=HMEAN)
    row, model = trial.run()
    assert row["status"] == "completed", row["error"]
    assert model is not None
    assert (row["retrained_weights"], row["test_cka_retrained"], row["test_retain_acc_gap"]) == (None, None, None)
    keep, forget = row["val_retain_acc"], 1 - row["val_probe_forget_acc"]
    assert row["score"] == pytest.approx(2 * keep * forget / (keep + forget) if keep + forget else 0)
    assert set(reference_models.metrics(task)) == {"original", "dead"}
    assert reference_models.memory(task) == {}
    several = Protocol(objective=HMEAN, confirmation=Confirmation(seeds=1, originals=3))
    with pytest.raises(InputError, match="own has one original, trained elsewhere: --confirm-originals 0"):
        Sweep(RandomLabel, task, several).check_protocol()
    with pytest.raises(InputError, match="removal compares with a retrained model, which own does not have: use hmean"):
        Trial(RandomLabel(), task)


def test_an_export_needs_no_retrained_model_and_loads_by_its_card(own, monkeypatch) -> None:
    trial = Trial(RandomLabel(lr=0.01, epochs=1), scenarios.read(write(own)), objective=HMEAN).prepared()
    row = trial.keep(own / "out")
    card = (own / "out" / "README.md").read_text()
    assert "*retrained*" not in card
    monkeypatch.chdir(own / "out")
    monkeypatch.syspath_prepend(own)
    space: dict[str, Any] = {}
    exec(card.partition("```python\n")[2].partition("```")[0], space)
    said = space["logits"](torch.tensor(pixels("test").transpose(0, 3, 1, 2)) / 255).argmax(1)
    is_right, forget = said == torch.tensor(labels("test")), torch.tensor(labels("test")) == 1
    assert is_right[forget].float().mean().item() == pytest.approx(row["test_forget_acc"])
    assert is_right[~forget].float().mean().item() == pytest.approx(row["test_retain_acc"])


def test_an_original_is_right_as_often_as_it_says(own) -> None:
    task = scenarios.read(write(own))
    model = reference_models.load_model(splits.prepare(task), "original").eval()
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in task.format[1:])
    with torch.no_grad():
        said = model((torch.tensor(pixels("test").transpose(0, 3, 1, 2)) / 255 - mean) / std).argmax(1)
    right = float((said == torch.tensor(labels("test"))).float().mean())
    assert accuracies(task)["test"] == (pytest.approx(right), 15)


def listed(own: Path, text: str, kind: str = "npz", more: str = "") -> scenarios.Scenario:
    (own / "remove.txt").write_text(text)
    path = write(own, kind)
    path.write_text(path.read_text().replace('forget = ["grey"]', f'forget_samples = "remove.txt"\n{more}', 1))
    return splits.prepare(scenarios.read(path))


@pytest.mark.parametrize(("kind", "names"), [("npz", ("7", "20", "21")), ("folders", ("dark/7", "grey/20", "grey/21"))])
def test_samples_of_a_list_are_forgotten(own, kind, names) -> None:
    task = listed(own, "\n".join(names), kind)
    data = splits.load(task, torch.device("cpu"))
    assert (task.forgotten, task.forget, data.forgotten) == ("3 listed samples", (), ())
    gone = data.train.index[data.forget].tolist()
    assert {data.train.images.key(one) for one in gone} == set(names)
    halves = [*data.val.forget.index.tolist(), *data.test.forget.index.tolist()]
    assert sorted(map(data.train.images.key, halves)) == sorted(names)
    assert listed(own, "image\n" + "\n".join(reversed(names)), kind) == task  # the order says nothing


def test_samples_with_the_highest_scores_are_forgotten(own) -> None:
    scores = {str(row): row % 10 for row in range(36)}
    text = "score,image\n" + "\n".join(f"{score},{row}" for row, score in scores.items())
    data = splits.load(listed(own, text, more="forget_share = 0.09"), torch.device("cpu"))
    assert data.train.index[data.forget].tolist() == [9, 19, 29]


def test_samples_of_a_list_are_never_held_out(own) -> None:
    """Validation and test images are drawn, and only some of the rest are trained on. All listed images are."""
    with np.load(own / "arrays.npz") as file:
        kept = {name: array for name, array in file.items() if name.endswith(("train", "classes"))}
    np.savez(own / "arrays.npz", **kept)
    names = [str(row) for row in range(0, 36, 9)]
    task = listed(own, "\n".join(names), more="test_share = 0.3\nval_share = 0.3\ntrain_share = 0.7")
    data = splits.load(task, torch.device("cpu"))
    assert data.train.index[data.forget].tolist() == [0, 9, 18, 27]
    assert (len(data.train), len(data.val.retain), len(data.test.retain)) == (10, 11, 11)


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("7\n99", "", "1 of the 2 images to forget are no training images of own, such as 99; here .* is called 0"),
        ("7\n7", "", "names 7 twice"),
        ("", "", "names no image"),
        ("7,0.5\n8", "", "'8' should be image,score"),
        ("7,high", "forget_share = 0.1", "the score of 7 has to be a number, not 'high'"),
        ("7,nan", "forget_share = 0.1", "the score of 7 has to be a number, not 'nan'"),
        ("7,1\n8,2", "", "need a forget_share where they have scores, and only there"),
        ("7\n8", "forget_share = 0.1", "need a forget_share where they have scores, and only there"),
        ("7,1\n8,2", "forget_share = 0.001", "0.1 % of the samples by their scores are 0 of 36; .* at least 2"),
        ("7", "", "1 listed samples are 1 of 36; there have to be at least 2"),
        ("7\n8", 'forget = ["grey"]', "classes or samples, not both"),
        ("\n".join(map(str, range(36))), "", "36 listed samples are 36 of 36"),
    ],
)
def test_a_list_that_cannot_work_is_one_line(own, text, more, message) -> None:
    def begin() -> None:
        task = listed(own, text, more=more)
        splits.check_forget(task)
        splits.check_split(task)

    with pytest.raises(InputError, match=message) as raised:
        begin()
    assert "\n" not in str(raised.value)


def test_samples_need_a_retrained_model(own) -> None:
    task = listed(own, "7\n8")
    with pytest.raises(InputError, match="single samples are judged beside a retrained model, which own does not have"):
        Trial(RandomLabel(), task, objective=HMEAN).prepared()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("forget =", "forgett =", "unknown field 'forgett'; did you mean 'forget'"),
        ('"grey"', '"gray"', "unknown class of own 'gray'; did you mean 'grey'"),
        ('"grey"', "7", "forget class 7 is outside the data"),
        ('"npz"', '"zip"', r"unknown format of \[data\] 'zip'"),
        ("arrays.npz", "array.npz", "cannot read .*array.npz: No such file"),
        ("net:small", "net:smal", "unknown function of net 'smal'; did you mean 'small'"),
        ("net:small", "net:answer", "unknown function of net 'answer'"),
        ("net:small", "nett:small", "architecture nett:small: ModuleNotFoundError"),
        ("net:small", "resnet81", "unknown architecture 'resnet81'"),
        ("net:small", "resnet18", "model.safetensors does not fit resnet18: it is another architecture's"),
        ('"model.safetensors"', '"net.py"', "net.py is no checkpoint"),
        ('"model.safetensors"', "3", "original has to be a text, not 3"),
        ('retrained = "none"', "", r"\[recipe\] needs lr: it says how the retrained model is trained"),
        ("[data]", "[data]\nmean = [123.7, 116.3, 103.5]", "mean is of pixels from 0 to 1, .*: divide by 255"),
        ("[data]", "[data]\nstd = [0.2, 0, 0.2]", "std is of pixels from 0 to 1"),
        ('retrained = "none"', 'retrained = "none"\noriginal_rows = [0, 0, 1]', "0 is there twice in original_rows"),
        ("[data]", "[data]\nmean = [0.5]", r"mean has 1 numbers, the images have 3 channels"),
        ("[data]", '[data]\nclasses = ["grey", "b"]', "its head has 3 classes, the data 2"),
        ("[data]", "[data]\nformats = 1", r"unknown field of \[data\] 'formats'"),
        ("[data]", "[data", "is no TOML"),
        ("[data]", "[recipe]\nlearning_rate = 1\n[data]", r"unknown field of \[recipe\] 'learning_rate'"),
    ],
)
def test_a_mistake_is_one_line(own, before, after, message) -> None:
    path = write(own)
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))

    def begin() -> None:
        Trial(RandomLabel(), scenarios.get(str(path)), objective=HMEAN).prepared()

    with pytest.raises(InputError, match=message) as raised:
        begin()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x_train": np.zeros((36, 16, 16, 3), np.float32)}, "x_train have to be uint8"),
        ({"x_train": np.zeros((36, 16, 20, 3), np.uint8)}, "have 16 x 20 pixels; arrays have to be square"),
        ({"x_train": np.zeros((36, 16), np.uint8)}, "have to be .N, H, W."),
        ({"y_train": np.zeros((36, 3), np.int64)}, r"have to be whole numbers .N,., not int64 \(36, 3\)"),
        ({"y_train": np.zeros(36, np.int64)}, "no train image is of class 1"),
        ({"y_train": np.array([None] * 36)}, "cannot be read: Object arrays cannot be loaded"),
        ({"y_train": np.array(3)}, r"y_train are \(\); there has to be one label an image"),
        ({"y_train": np.zeros(35, np.int64)}, r"y_train are \(35,\); there has to be one label an image"),
        ({"classes": np.array("abc")}, "have to be names .C,., each of one class, not abc"),
        ({"classes": np.array(["a", "b", "a"])}, "each of one class, not .'a', 'b', 'a'."),
        ({"classes": np.array([["a"], ["b"], ["c"]])}, "have to be names .C,."),
    ],
)
def test_arrays_that_cannot_work(own, changed, message) -> None:
    with np.load(own / "arrays.npz") as file:
        np.savez(own / "arrays.npz", **{**file, **changed})
    with pytest.raises(InputError, match=message):
        splits.prepare(scenarios.read(write(own)))


def encrypted(file: bytearray) -> None:
    file[file.index(b"PK\x01\x02") + 8] |= 1
    file[6] |= 1


def packed_otherwise(file: bytearray) -> None:
    file[file.index(b"PK\x01\x02") + 10] = file[8] = 99


def of_more_images(file: bytearray) -> None:
    place = file.index(b"(36,") if b"(36,  " in file else file.index(b"(36, 16")
    file[place : place + 3] = b"(99"


@pytest.mark.parametrize("blow", [encrypted, packed_otherwise, of_more_images])
def test_an_archive_that_cannot_be_read_or_lies_is_a_line(own, blow) -> None:
    """Before a pixel is read: what its header promises might take all memory."""
    content = bytearray((own / "arrays.npz").read_bytes())
    blow(content)
    (own / "arrays.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"arrays.npz (is no npz file|is damaged|cannot be read): ") as error:
        splits.prepare(scenarios.read(write(own)))
    assert "\n" not in str(error.value)


def test_a_pipe_is_not_waited_for(own) -> None:
    (own / "arrays.npz").unlink()
    os.mkfifo(own / "arrays.npz")
    with pytest.raises(InputError, match=r"arrays\.npz is no file"):
        splits.prepare(scenarios.read(write(own)))


@pytest.mark.parametrize("values", ["[0.5]", "[0.5, 0.5]", "[0.5, 0.5, 0.5, 0.5]"])
def test_photographs_have_three_colours(own, values) -> None:
    with pytest.raises(InputError, match=r"\[data\] mean has \d numbers, the images have 3 channels"):
        scenarios.read(write(own, "folders", more=f"{EXACT}\nmean = {values}"))


def test_arrays_are_read_anew_once_they_were_changed(own) -> None:
    before = splits.prepare(scenarios.read(write(own)))
    with np.load(own / "arrays.npz") as file:
        np.savez(own / "arrays.npz", **{**file, "x_test": 255 - file["x_test"]})
    after = splits.prepare(scenarios.read(write(own)))
    assert before.data != after.data
    assert splits.prepare(scenarios.read(write(own))).data == after.data


def named_otherwise(own: Path, classes: str, forget: str = "[0]") -> scenarios.Scenario:
    path = write(own, more=f"classes = {classes}")
    path.write_text(path.read_text().replace('["grey"]', forget))
    return scenarios.read(path)


@pytest.mark.parametrize(
    ("named", "classes", "forgotten"),
    [
        ("[0]", '["2", "0", "1"]', "class 2"),  # a number is a number
        ('["0"]', '["2", "0", "1"]', "class 0"),  # and a text a name
        ('["2"]', '["a", "b", "c"]', "class c"),  # unless none is called so
        ('["b, c", 0]', '["a", "b, c", "d"]', "classes a, b, c"),
    ],
)
def test_a_class_is_named_by_its_number_or_its_name(own, named, classes, forgotten) -> None:
    assert named_otherwise(own, classes, named).forgotten == forgotten


@pytest.mark.parametrize(
    ("flag", "forget"), [("1", (1,)), ("b", (1,)), ('"c, d", a', (0, 2)), ("c, d", (2,)), (" a ,1", (0, 1))]
)
def test_a_flag_names_classes(own, flag, forget) -> None:
    task = named_otherwise(own, '["a", "b", "c, d"]')
    assert with_forget(task, flag, None).forget == forget


@pytest.mark.parametrize(("flag", "said"), [("0", "class 1 of own, and the number of class 2:"), ("a\nb", "in a line")])
def test_a_flag_that_may_mean_two_classes_is_refused(own, flag, said) -> None:
    task = named_otherwise(own, '["2", "0", "1"]')
    with pytest.raises(InputError, match=said):
        with_forget(task, flag, None)


def test_a_retrained_model_is_one_of_its_forget_set(own) -> None:
    """The one in this test names every image light, and none grey."""
    with torch.no_grad():
        weights = load_file(own / "model.safetensors")
        weights["fc.weight"].zero_()
        weights["fc.bias"].copy_(torch.tensor([0.0, -1.0, 1.0]))
    save_file(weights, own / "retrained.safetensors")
    path = write(own)
    path.write_text(path.read_text().replace('"none"', '"retrained.safetensors"'))
    task = scenarios.get(str(path))
    references(task)
    said = "the retrained model of own is one without class grey: another forget set needs another"
    for forget in ({"forget": "light"}, {"share": 0.5}):
        with pytest.raises(InputError, match=said):
            with_forget(task, forget.get("forget"), forget.get("share"))  # type: ignore[arg-type]
    assert with_forget(task, "grey", None) == task
    with pytest.raises(InputError, match=said):
        Sweep(RandomLabel, task, Protocol(4, confirmation=Confirmation(1, forget=((2,),))))
    path.write_text(path.read_text().replace('["grey"]', '["light"]'))
    with pytest.raises(InputError, match="was trained on what has to be forgotten: it names 100% of the held-out"):
        references(scenarios.get(str(path)))


def test_a_model_that_answers_nothing_finite_is_named(own) -> None:
    weights = load_file(own / "model.safetensors")
    weights["fc.bias"][0] = 3e38
    weights["fc.weight"][0] = 3e38
    save_file(weights, own / "large.safetensors")
    with pytest.raises(InputError, match=r"net:small does not work with the weights of .*large\.safetensors: its"):
        scenarios.read(write(own, original="large.safetensors"))
    task = scenarios.read(write(own))
    with (
        pytest.raises(InputError, match="the original model of own is of no use: not finite"),
        reference_models.blamed(task, "original"),
    ):
        raise Diverged("not finite")


def test_a_validation_set_that_the_original_has_seen_is_said(own) -> None:
    assert splits.notes(splits.prepare(scenarios.read(write(own)))) == []
    with np.load(own / "arrays.npz") as file:
        np.savez(own / "arrays.npz", **{name: array for name, array in file.items() if not name.endswith("_val")})
    (note,) = splits.notes(splits.prepare(scenarios.read(write(own))))
    assert note == "validation images are drawn from the training images, which the original may have seen"


def test_layouts_of_arrays() -> None:
    shown = pixels("val")
    assert np.array_equal(npz._images(shown, ""), npz._images(shown.transpose(0, 3, 1, 2), ""))
    assert npz._images(shown[..., 0], "").shape == (12, 1, 16, 16)


@pytest.mark.parametrize("kind", PATHS)
def test_a_file_is_drafted_from_what_is_found(own, kind) -> None:
    text = drafts.draft(str(own / PATHS[kind]), own / "model.pth", "net:small", own)
    (own / "drafted.toml").write_text(text)
    task = scenarios.read(own / "drafted.toml")
    assert (task.name, task.forget, task.source.class_names) == ("drafted", (0,), CLASSES)
    assert given.weights(task, task.original).keys() == {"conv.weight", "conv.bias", "fc.weight", "fc.bias"}
    assert task.format.mean == (0.485, 0.456, 0.406)


def test_a_draft_elsewhere_finds_the_architecture_beside_the_data(own, monkeypatch) -> None:
    monkeypatch.chdir(own)
    (own / "new").mkdir()
    for name in ("net:small", "net.py:small"):
        text = drafts.draft("photos", Path("model.pth"), name, own / "new")
        assert text.startswith(f'architecture = "{own / "net.py:small"}"\n')
    (own / "new" / "own.toml").write_text(text)
    assert scenarios.read(own / "new" / "own.toml").forgotten == "class dark"


def test_a_draft_that_does_not_fit_leaves_no_file(own, monkeypatch, capsys) -> None:
    monkeypatch.chdir(own)
    arguments = ["--data", "photos", "--original", "model.safetensors", "--architecture"]
    monkeypatch.setattr(sys, "argv", ["raymu", "scenarios", "--init", "new.toml", *arguments, "resnet18"])
    with pytest.raises(SystemExit, match="2"):
        program.main()
    assert "does not fit resnet18" in capsys.readouterr().err
    assert not (own / "new.toml").exists()
    monkeypatch.setattr(sys, "argv", [*sys.argv[:-1], "net:small"])
    with pytest.raises(SystemExit, match="0"):
        program.main()
    assert "of 15 test images right" in capsys.readouterr().out


def test_a_draft_takes_the_architecture_that_a_file_is_named_after(tmp_path) -> None:
    path = tmp_path / "best-resnet18d-v2.pth"
    assert drafts._named_after(path) == "resnet18d"
    with pytest.raises(InputError, match="say what the network is: --architecture"):
        drafts._named_after(tmp_path / "best.pth")


def test_what_a_row_names_is_found_by_the_file(own) -> None:
    scenarios.load(write(own))
    assert scenarios.get("own").forget == (1,)
    assert scenarios.Scenario.from_dict(scenarios.get("own").as_dict()).source.class_names == CLASSES


def test_a_part_of_the_data_is_said_by_the_names_of_its_classes(own) -> None:
    task = with_subset(scenarios.read(write(own)), "grey,light", 0.5)
    said = "own (classes grey, light alone, 50 % of the training images), forgetting class grey"
    assert task.title == said
    identity = Sweep(RandomLabel, task, Protocol(2, objective=HMEAN)).identity()
    assert said in f"{task.name}{subset(identity)}, forgetting {forgotten(identity)}"
    del identity["forgotten"], identity["subset"]  # as of an earlier version
    assert subset(identity) == " (classes 1, 2 alone, 50 % of the training images)"


def test_published_classes_have_names() -> None:
    from timm.data.imagenet_info import ImageNetInfo

    known = ImageNetInfo()
    names = [known.label_name_to_description(one).partition(",")[0] for one in known.label_names()]
    assert list(DATASETS["imagenet"].class_names) == names
    assert DATASETS["cifar100"].class_names[30:33] == ("dolphin", "elephant", "flatfish")
    task = with_forget(SCENARIOS["imagenet-vit_b"], "tench, goldfish", None)
    assert task.forgotten == "classes tench, goldfish"
    with pytest.raises(InputError, match="the classes 134, 517 of imagenet are called 'crane'"):
        with_forget(task, "crane", None)
    assert dataclasses.replace(task, forget=tuple(range(20))).forgotten.endswith("hammerhead, ... (20 in all)")
