"""Splits, and datasets in their real format."""

import gzip
import hashlib
import json
import pickle
import re
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DEVICE
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, FashionMNIST

from raymu import splits, training
from raymu.data import published
from raymu.data.images import Pixels
from raymu.errors import InputError
from raymu.models import architectures
from raymu.scenario import SCENARIOS

NONE = np.empty(0, np.int64)
NOWHERE = "http://127.0.0.1:9/cifar-10-python.tar.gz"


def test_digits_are_split_by_class_without_overlap(digits, digits_data) -> None:
    parts = [[digits_data.train], digits_data.val, digits_data.test]
    indices = torch.cat([split.index for part in parts for split in part])
    assert sorted(indices.tolist()) == list(range(1797))
    for part in parts:
        counts = torch.cat([split.targets for split in part]).bincount()
        assert counts.max() - counts.min() <= 0.06 * counts.sum()  # as uneven as the data is
    for held_out in (digits_data.val, digits_data.test):
        assert set(held_out.forget.targets.tolist()) == set(digits.forget)
        assert not set(held_out.retain.targets.tolist()) & set(digits.forget)
    assert torch.equal(digits_data.forget, digits_data.train.targets == digits.forget[0])
    assert sum(map(len, digits_data.test)) == pytest.approx(0.35 * 1797, abs=1)


def test_a_share_of_the_samples_is_drawn_from_training_and_halved(digits) -> None:
    """Where samples are forgotten, "forget" is themselves, one half for each split; all held-out images are retain."""
    scenario = replace(digits, forget=(), forget_share=0.1)
    loaded = splits.load(scenario, DEVICE)
    forgotten = loaded.train.index[loaded.forget]
    assert len(forgotten) == round(0.1 * len(loaded.train))
    assert sorted(torch.cat([loaded.val.forget.index, loaded.test.forget.index]).tolist()) == forgotten.tolist()
    assert abs(len(loaded.val.forget) - len(loaded.test.forget)) <= 1
    assert len(loaded.val.retain) + len(loaded.test.retain) + len(loaded.train) == 1797
    assert not set(loaded.probed.index.tolist()) & set(forgotten.tolist())  # or the probe would learn them itself
    assert len(set(loaded.train.targets[loaded.forget].tolist())) == 10
    with pytest.raises(InputError, match="at least 2"):
        splits.load(replace(scenario, forget_share=0.001), DEVICE)


def test_the_split_depends_on_the_scenarios_seed_alone(digits, digits_data) -> None:
    again, other = splits.load(digits, DEVICE), splits.load(replace(digits, seed=1), DEVICE)
    assert torch.equal(again.test.retain.index, digits_data.test.retain.index)
    assert not torch.equal(other.train.index, digits_data.train.index)


def test_normalised_images_have_zero_mean_and_unit_variance(digits_data) -> None:
    images = torch.cat([part.read() for part in (digits_data.train, *digits_data.val, *digits_data.test)])
    assert images.mean().item() == pytest.approx(0, abs=0.01)
    assert images.std().item() == pytest.approx(1, abs=0.01)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="a GPU has copies")
def test_images_are_shared_pages_of_one_file(digits, digits_data) -> None:
    """Two loads of a process map the same file instead of copying it."""
    again = splits.load(digits, DEVICE)
    maps = Path("/proc/self/maps").read_text()
    assert len(re.findall("datasets/digits-[0-9a-f]{12}/train_images.npy", maps)) >= 2
    assert again.train.images.pixels.data_ptr() != digits_data.train.images.pixels.data_ptr()
    assert digits_data.train.images is digits_data.test.retain.images


def write_cifar10(directory: Path, per_class: int) -> tuple[np.ndarray, dict[str, str]]:
    """A small cifar-10-python.tar.gz as the official one is made; returns the images of batch 1 and all checksums."""
    folder = directory / "make" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    first = None
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for name in names:
        images = generator.integers(0, 256, (10 * per_class, 3072), dtype=np.uint8)
        first = images if first is None else first
        labels = [row % 10 for row in range(len(images))]
        batch = {b"batch_label": b"", b"data": images, b"labels": labels, b"filenames": []}
        (folder / name).write_bytes(pickle.dumps({key.decode(): value for key, value in batch.items()}, protocol=2))
    meta = {"label_names": [f"class {number}" for number in range(10)], "num_vis": 3072, "num_cases_per_batch": 0}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    with tarfile.open(directory / CIFAR10.filename, "w:gz") as archive:
        archive.add(folder, CIFAR10.base_folder)
    checksums = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    checksums[CIFAR10.filename] = hashlib.md5((directory / CIFAR10.filename).read_bytes()).hexdigest()
    return first, checksums


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """A scenario whose data is a small archive, and a cache of its own."""
    monkeypatch.setenv("RAYMU_CACHE", str(tmp_path / "cache"))
    images, checksums = write_cifar10(tmp_path, per_class=20)
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, part, [[name, checksums[name]] for name, _ in getattr(CIFAR10, part)])
    monkeypatch.setattr(CIFAR10, "tgz_md5", checksums[CIFAR10.filename])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": checksums["batches.meta"]})
    monkeypatch.setitem(published.PUBLISHED, "CIFAR10", {"train": 10 * (100,), "test": 10 * (20,)})
    return SCENARIOS["cifar10-resnet18"], tmp_path, images


def test_cifar10_archive_in_the_real_format(cifar10) -> None:
    scenario, directory, first = cifar10
    splits.prepare(scenario, directory)
    loaded = splits.load(scenario, DEVICE)
    assert (len(loaded.train), sum(map(len, loaded.val)), sum(map(len, loaded.test))) == (900, 100, 200)
    assert loaded.val.retain.targets.bincount().tolist() == [0] + [10] * 9
    assert not set(loaded.train.index.tolist()) & set(loaded.val.retain.index.tolist())
    # Row-major red, green, blue planes: https://www.cs.toronto.edu/~kriz/cifar.html
    np.testing.assert_array_equal(loaded.train.images.pixels[:200].cpu().numpy(), first.reshape(-1, 3, 32, 32))


def test_digits_of_another_version_are_refused(tmp_path, monkeypatch) -> None:
    pixels, labels = load_digits(return_X_y=True)
    for changed, message in (
        (
            (pixels[1:], labels[1:]),
            "train set has 1796 images instead of 1797; 1 of 10 classes differ, such as class 0",
        ),
        ((pixels, (labels + 1) % 10), "train set has 1797 images instead of 1797; 10 of 10 classes differ"),
        ((pixels * 16, labels), "8 x 8 pixels of 0 to 16"),
        ((pixels[:, :49], labels), "8 x 8 pixels of 0 to 16"),
    ):
        monkeypatch.setattr("sklearn.datasets.load_digits", lambda return_X_y, changed=changed: changed)
        with pytest.raises(InputError, match=message):
            published.DATASETS["digits"].read(tmp_path)


@pytest.mark.long
def test_cifar10_resnet18_trains_with_the_papers_recipe(cifar10) -> None:
    scenario, directory, _ = cifar10
    splits.prepare(scenario, directory)
    short = replace(scenario, recipe=replace(scenario.recipe, epochs=4, patience=1))
    loaded = splits.load(short, DEVICE)
    model = architectures.build(short, seed=0).to(DEVICE)
    images = loaded.train.subset(torch.arange(2)).read()
    assert model.eval().forward_features(images).shape == (2, 512, 4, 4)  # the CIFAR stem keeps 32 x 32
    every_ninth = torch.arange(0, 900, 9)
    small = replace(loaded, train=loaded.train.subset(every_ninth), forget=loaded.forget[every_ninth])
    epoch, *_ = training.fit(model, small, training.TrainOriginal(lr=0.01, epochs=4), short)
    assert 1 <= epoch <= 4


def test_tampered_cifar10_files_are_never_opened(cifar10, monkeypatch) -> None:
    """Torchvision compares checksums before it unpickles."""
    scenario, directory, _ = cifar10
    splits.prepare(scenario, directory)
    trap = f"cbuiltins\nopen\n(S'{directory}/opened'\nS'w'\ntR."
    (directory / CIFAR10.base_folder / "data_batch_1").write_bytes(trap.encode())
    (directory / CIFAR10.filename).unlink()
    monkeypatch.setattr(CIFAR10, "url", NOWHERE)
    with pytest.raises(InputError):
        published.DATASETS["cifar10"].read(directory)
    assert not (directory / "opened").exists()


def test_missing_cifar10_says_what_to_put_where(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAYMU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(CIFAR10, "url", NOWHERE)
    with pytest.raises(InputError, match=r"cifar-10-python\.tar\.gz.*--data-dir"):
        splits.prepare(SCENARIOS["cifar10-resnet18"], tmp_path / "here")


def test_a_split_that_leaves_nothing_to_forget_is_refused(digits) -> None:
    """An accuracy of no image would have no value."""
    labels = torch.tensor([1, 2, 8, 1, 2, 8])
    whole = splits.Split(Pixels(torch.zeros(6, 1, 1, 1, dtype=torch.uint8), (0.5,), (1.0,)), labels, torch.arange(6))
    without = splits.Split(whole.images, labels, torch.tensor([0, 1]))
    only = splits.Split(whole.images, labels, torch.tensor([2, 5]))
    assert set(splits._forget_set(digits, whole, whole, whole, NONE)) == {
        "train",
        "forget",
        "forgotten",
        "probed",
        "val",
        "test",
    }
    for name, parts in (
        ("val split has 0 images of class 8 and 2", (whole, without, whole)),
        ("test split has 2 images of class 8 and 0", (whole, whole, only)),
        ("train split has 0 images of class 8", (without, whole, whole)),
    ):
        with pytest.raises(InputError, match=name):
            splits._forget_set(digits, *parts, NONE)


def test_a_training_share_is_a_stratified_part(digits, digits_data) -> None:
    third = splits.load(replace(digits, train_share=1 / 3), DEVICE)
    assert set(third.train.index.tolist()) < set(digits_data.train.index.tolist())
    assert len(third.train) == round(len(digits_data.train) / 3)
    counts = third.train.targets.bincount()
    assert counts.max() - counts.min() <= 2
    for split, whole in zip((*third.val, *third.test), (*digits_data.val, *digits_data.test), strict=True):
        assert torch.equal(split.index, whole.index)
    assert "train_share" not in digits.as_dict()  # hashes are older than it
    again = digits.from_dict(replace(digits, train_share=0.5).as_dict())
    assert again.train_share == 0.5
    with pytest.raises(InputError, match="train_share has to be above 0"):
        replace(digits, train_share=0)


def test_a_part_of_the_classes_is_a_scenario_of_its_own(digits, digits_data) -> None:
    part = replace(digits, classes=(9, 4, 8))
    assert part.hash != digits.hash
    assert "classes" not in digits.as_dict()  # hashes are older than it
    assert digits.from_dict(json.loads(json.dumps(part.as_dict()))) == part == replace(digits, classes=(4, 8, 9))
    assert part.title == "digits (classes 4, 8, 9 alone), forgetting class 8"
    loaded = splits.load(part, DEVICE)
    assert (loaded.num_classes, loaded.forgotten, part.num_classes) == (3, (1,), 3)
    for split in (loaded.train, *loaded.val, *loaded.test):
        theirs = digits_data.train.labels[split.index]  # of the whole dataset
        assert loaded.numbers_of(split.targets) == theirs.tolist()
    held_out = [split for two in (loaded.val, loaded.test) for split in two]
    every = torch.cat([split.index for split in (loaded.train, *held_out)])
    wanted = torch.isin(digits_data.train.labels, torch.tensor([4, 8, 9], device=DEVICE)).nonzero()[:, 0]
    assert every.sort().values.tolist() == wanted.tolist()
    assert set(loaded.numbers_of(loaded.val.forget.targets)) == {8}
    shares = loaded.train.targets.bincount() / wanted.numel()
    assert (shares - 0.1).abs().max() < 0.01  # 30 % of each class
    assert architectures.build(part, seed=0).get_classifier().out_features == 3


def write_fashion(directory: Path, per_class: int) -> None:
    """Fashion-MNIST's four files with fewer images: a black frame's only white pixel stands where its class says."""
    directory.mkdir(parents=True)
    for prefix, count in (("train", 2 * per_class), ("t10k", per_class)):
        labels = np.tile(np.arange(10, dtype=np.uint8), count)
        images = np.zeros((len(labels), 28, 28), np.uint8)
        images[np.arange(len(labels)), 0, labels] = 255
        for name, array, head in (("labels-idx1", labels, 0x801), ("images-idx3", images, 0x803)):
            content = np.array([head, *array.shape], ">u4").tobytes() + array.tobytes()
            (directory / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(content))


@pytest.fixture
def fashion(tmp_path, monkeypatch) -> Path:
    monkeypatch.setitem(published.PUBLISHED, "Fashion-MNIST", {"train": 10 * (40,), "test": 10 * (20,)})
    write_fashion(tmp_path / "files", per_class=20)
    return tmp_path / "files"


@pytest.mark.parametrize("where", ["here", "torchvision", "unpacked"])
def test_fashion_mnist_in_its_real_format(fashion, tmp_path, where) -> None:
    directory = fashion
    if where == "torchvision":
        directory = tmp_path / "root"
        shutil.copytree(fashion, directory / "FashionMNIST" / "raw")
    for path in fashion.iterdir() if where == "unpacked" else ():
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    arrays = published.DATASETS["fashion"].read(directory)
    assert arrays["train_images"].shape == (400, 1, 16, 16)
    assert arrays["test_labels"][:11].tolist() == [*range(10), 0]
    pixel = arrays["train_images"][3, 0]  # the fourth of row 0, below and right of a border of 2
    assert pixel[1, 2] == round(255 / 4)
    assert pixel.sum() == pixel[1, 2]


def test_damaged_fashion_mnist_is_one_line(fashion, tmp_path, monkeypatch) -> None:
    read, images = published.DATASETS["fashion"].read, fashion / "train-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    for damaged in (whole[:-2000], b"no gzip", gzip.compress(b"\0" * 40), gzip.compress(gzip.decompress(whole)[:-1])):
        images.write_bytes(damaged)
        with pytest.raises(InputError, match=r"train-images-idx3-ubyte.gz is not as published"):
            read(fashion)
    images.unlink()
    with pytest.raises(InputError, match=r"lacks train-images-idx3-ubyte.gz"):
        read(fashion)
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(InputError, match=r"Fashion-MNIST is not in .*--data-dir"):
        read(tmp_path / "nothing")
