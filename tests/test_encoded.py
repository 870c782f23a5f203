"""Images that stay encoded: folders and shards are one dataset, whoever reads them and wherever they lie."""

import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow.fs import FileSystem, LocalFileSystem, copy_files
from timm.data import create_transform
from torchvision.datasets import CIFAR100

from raymu import cache, splits
from raymu.data import decoding, folders, index, published
from raymu.data.encoded import Encoded
from raymu.data.index import Index
from raymu.errors import InputError
from raymu.methods.random_label import RandomLabel
from raymu.methods.unsir import UNSIR
from raymu.scenario import Recipe, Scenario
from raymu.storage import locate
from raymu.trial import run_trial

CPU = torch.device("cpu")  # where images are compared to the bit
CLASSES, TRAIN, VAL = 4, 15, 6
SCENARIO = Scenario(
    name="photos",
    dataset="photos",
    architecture="test_vit",
    model_args=(("img_size", 32),),
    recipe=Recipe(lr=0.01, epochs=1, batch_size=8, augment=True),
    forget=(1,),
    val_share=0.2,
)
BY_SHARE = replace(SCENARIO, name="photos-share", forget=(), forget_share=0.2)


def write_photos(root: Path) -> None:
    """Of every class, images of several sizes and colour modes, as ImageNet has them."""
    generator = np.random.default_rng(0)
    for part, count in (("train", TRAIN), ("val", VAL)):
        for label in range(CLASSES):
            folder = root / part / f"n{label:08d}"
            folder.mkdir(parents=True)
            for number in range(count):
                height, width = generator.integers(40, 90, 2)
                small = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
                image = Image.fromarray(small).resize((width, height))
                image = image.convert(("RGB", "L", "CMYK")[number % 3])
                image.save(folder / f"n{label:08d}_{number}.JPEG", quality=90)


def write_shards(folders: Path, root: Path, size: int = 16) -> None:
    """The same images in another order, as WebDataset keeps them."""
    root.mkdir(parents=True)
    for part in ("train", "val"):
        files = sorted((folders / part).glob("*/*.JPEG"))
        random.Random(0).shuffle(files)
        for start in range(0, len(files), size):
            with tarfile.open(root / f"{part}-{start // size:04d}.tar", "w") as archive:
                for file in files[start : start + size]:
                    add(archive, f"some/{file.stem}.cls", str(int(file.parent.name[1:])).encode())
                    add(archive, f"some/{file.stem}.json", b"{}")
                    add(archive, f"some/{file.stem}.jpg", file.read_bytes())


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("photos")
    write_photos(root / "folders")
    write_shards(root / "folders", root / "shards")
    return {"folders": root / "folders", "shards": root / "shards"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(published.DATASETS, "photos", folders.EncodedDataset("photos", CLASSES))


def load(place: Path | str, scenario: Scenario = SCENARIO, processes: int = 0) -> splits.Data:
    splits.prepare(scenario, place)
    return splits.load(scenario, CPU, processes)


def read(split: splits.Split, batch: int = 8, seed: int | None = None) -> torch.Tensor:
    """All images of a split; of one seed, if they are to be augmented, with the same numbers for the same keys."""
    rows = split.index.split(batch)
    seeds = [None] * len(rows)
    if seed is not None:
        numbers = torch.from_numpy(split.images.keys.astype(np.int64) % 2**62 ^ seed)
        seeds = [numbers[part] for part in rows]
    return torch.cat(list(split.images.read(zip(rows, seeds, strict=True))))


def by_key(split: splits.Split, values: torch.Tensor) -> dict[int, torch.Tensor]:
    return dict(zip(split.images.keys[split.index.numpy()].tolist(), values, strict=True))


# What is read


@pytest.mark.parametrize("scenario", [SCENARIO, BY_SHARE], ids=["classes", "share"])
def test_folders_and_shards_are_one_dataset(places, scenario) -> None:
    """The same images in the same splits, with the same labels, of which the same are to be forgotten."""
    folders, shards = (load(place, scenario) for place in places.values())
    assert folders.train.images.keys.tolist() != shards.train.images.keys.tolist()  # lies in another order
    assert len(folders.train) == CLASSES * TRAIN * 0.8
    for one, other in (
        (folders.train, shards.train),
        *zip(folders.val, shards.val, strict=True),
        *zip(folders.test, shards.test, strict=True),
        (folders.train.subset(folders.forget), shards.train.subset(shards.forget)),
    ):
        assert len(one)
        assert by_key(one, one.targets) == by_key(other, other.targets)
        for seed in (None, 5):
            images, others = by_key(one, read(one, seed=seed)), by_key(other, read(other, seed=seed))
            assert all(torch.equal(image, others[key]) for key, image in images.items())


def test_keys_name_folder_and_file_or_class_and_key(places) -> None:
    for kind, place in places.items():
        train = load(place).train
        shown = [train.images.key(row) for row in train.index.tolist()]
        files = {
            path.relative_to(places["folders"] / "train").with_suffix("")
            for path in (places["folders"] / "train").rglob("*.*")
        }
        if kind == "folders":
            assert {Path(one) for one in shown} <= files
        else:
            assert [int(one.split("/")[0]) for one in shown] == train.targets.tolist()
            assert {one.split("/")[1] for one in shown} <= {file.name for file in files}


def test_images_are_those_of_timms_transform(places) -> None:
    """To the bit, evaluated and augmented."""
    split = load(places["folders"]).train
    files = sorted((places["folders"] / "train").glob("*/*.JPEG"))
    options = {"color_jitter": None, "auto_augment": None}
    for seed in (None, 12345):
        transform = create_transform(**SCENARIO.transform(), is_training=seed is not None, **options)
        for row, image in zip(split.index[:9], read(split.subset(torch.arange(9)), seed=seed), strict=True):
            if seed is not None:
                number = int(split.images.keys.astype(np.int64)[row] % 2**62 ^ seed)
                random.seed(number)
                torch.manual_seed(number)
            assert torch.equal(image, transform(Image.open(files[row]).convert("RGB")))


def test_the_format_is_that_of_the_architecture() -> None:
    """timm: ViTs of Google take 0.5, the ResNet-50 of A1 crops 95 %; `img_size` wins."""
    vit = replace(SCENARIO, architecture="vit_small_patch16_224", model_args=()).transform()
    resnet = replace(SCENARIO, architecture="resnet50", model_args=()).transform()
    assert (vit["input_size"], vit["mean"], vit["crop_pct"]) == ((3, 224, 224), (0.5, 0.5, 0.5), 0.9)
    assert (resnet["mean"], resnet["crop_pct"]) == ((0.485, 0.456, 0.406), 0.95)
    assert SCENARIO.format.shape == (3, 32, 32)


@pytest.mark.long
def test_any_number_of_processes_decodes_the_same(places) -> None:
    alone, one, two = (load(places["shards"], processes=count).train for count in (0, 1, 2))
    expected = read(alone, seed=7)
    for split in (one, two):
        assert torch.equal(read(split, seed=7), expected)
        assert torch.equal(read(split, batch=5, seed=7), expected)  # nor on who shares a batch
    assert not torch.equal(read(two, seed=8), expected)


def test_random_generators_of_this_process_are_left_alone(places) -> None:
    split = load(places["shards"]).train
    states = random.getstate(), torch.random.get_rng_state()
    read(split, seed=1)
    assert random.getstate() == states[0]
    assert torch.equal(torch.random.get_rng_state(), states[1])


def test_two_readers_and_one_that_is_abandoned(places) -> None:
    split = load(places["shards"], processes=2).train
    expected, augmented = read(split).split(8), read(split, seed=3).split(8)
    rows = split.index.split(8)
    numbers = torch.from_numpy(split.images.keys.astype(np.int64) % 2**62 ^ 3)
    abandoned = split.images.read([(part, None) for part in rows])
    assert torch.equal(next(abandoned), expected[0])
    abandoned.close()
    for one, other, *images in zip(
        split.images.read((part, None) for part in rows),
        split.images.read((part, numbers[part]) for part in rows),
        expected,
        augmented,
        strict=True,
    ):
        assert torch.equal(one, images[0])
        assert torch.equal(other, images[1])


def test_the_processes_are_started_once(places) -> None:
    split = load(places["shards"], processes=2).train
    read(split)
    before = decoding.decoders(2)._process.pid
    read(split)
    read(load(places["folders"], processes=2).train)
    assert decoding.decoders(2)._process.pid == before


def children(pool: decoding.Decoders) -> list[int]:
    """The processes that decode."""
    template = pool._process.pid
    return [int(child) for child in Path(f"/proc/{template}/task/{template}/children").read_text().split()]


def test_a_process_that_is_killed_is_told_and_replaced(places) -> None:
    split = load(places["shards"], processes=2).train
    expected = read(split)
    for child in children(decoding.decoders(2)):
        os.kill(child, signal.SIGKILL)
    with pytest.raises(ChildProcessError, match="a process that decodes images died"):
        read(split)
    assert torch.equal(read(split), expected)


@pytest.mark.long
def test_no_process_outlives_the_one_that_asked() -> None:
    code = (
        "import os, signal; from raymu.data.decoding import Decoders; pool = Decoders(2);"
        "print(pool._process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{asked.stdout.strip()}").exists() and not _is_zombie(int(asked.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _is_zombie(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_an_image_that_cannot_be_decoded_is_named(places, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(index, "_decode", lambda *given: None)  # as where it is not among the sample
    shutil.copytree(places["folders"], tmp_path / "broken")
    for path in (tmp_path / "broken" / "train" / "n00000002").iterdir():
        path.write_bytes(path.read_bytes()[:300])
    for processes in (0, 2):
        split = load(tmp_path / "broken", processes=processes).train
        with pytest.raises(InputError, match=r"n00000002_\d+ in train/n00000002/n00000002_\d+\.JPEG cannot be read"):
            read(split)
        assert len(read(split.subset(split.targets == 0))) == TRAIN * 0.8


@pytest.mark.parametrize("processes", [0, 2])
def test_images_are_read_as_their_modes_say(places, tmp_path, processes, monkeypatch) -> None:
    """16-bit grey was white. One that is refused is named, at the latest when it is read."""
    shutil.copytree(places["folders"], tmp_path / "mine")
    folder = tmp_path / "mine" / "train" / "n00000002"
    Image.fromarray(np.full((40, 40), 300, np.uint16)).save(folder / "dark.png")  # 300 of 65,535 is 1 of 255
    source = load(tmp_path / "mine", processes=processes).train.images
    (row,) = (source._index.keys == b"dark").nonzero()[0]
    seen = next(source.read([(torch.tensor([row]), None)]))
    torch.testing.assert_close(seen, source.normalise(torch.ones(seen.shape, dtype=torch.uint8)))
    Image.new("F", (40, 40)).save(folder / "bad.JPEG", "TIFF")
    with pytest.raises(InputError, match=r"train/n00000002/bad\.JPEG cannot be read: its pixels are fl"):
        load(tmp_path / "mine")
    monkeypatch.setattr(index, "_decode", lambda *given: None)  # as where it is not among the sample
    split = load(tmp_path / "mine", processes=processes).train
    with pytest.raises(
        InputError, match=r"the image bad in train/n00000002/bad\.JPEG cannot be read: its pixels are fl"
    ):
        list(split.images.read((part, None) for part in torch.arange(len(split.images.keys)).split(8)))


LOSSES = {
    "removed": (Path.unlink, "FileNotFoundError"),
    "a directory": (lambda path: (path.unlink(), path.mkdir()), "IsADirectoryError"),
    "cut": (lambda path: cut(path, 300), r"ends \d+ bytes before the image does"),
}


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize("loss", LOSSES)
def test_bytes_that_cannot_be_had_are_the_machines_failure(places, tmp_path, loss, processes) -> None:
    """Not the image's: they may be back when a trial is tried again, and are then read."""
    shutil.copytree(places["folders"], tmp_path / "mine")
    split = load(tmp_path / "mine", processes=processes).train
    lose, message = LOSSES[loss]
    lost = tmp_path / "mine" / "train" / "n00000002"
    for path in lost.iterdir():
        lose(path)
    with pytest.raises(OSError, match=rf"n00000002_\d+ in train/n00000002/.*\.JPEG cannot be read: .*{message}"):
        read(split)
    shutil.rmtree(lost)
    shutil.copytree(places["folders"] / "train" / "n00000002", lost)
    assert torch.equal(read(split), read(load(places["folders"]).train))


def test_too_little_memory_is_the_machines_failure(places, tmp_path) -> None:
    """While an image is decoded, too."""
    shutil.copytree(places["folders"], tmp_path / "mine")
    large = tmp_path / "large.jpg"
    Image.new("RGB", (4000, 4000)).save(large)
    for path in (tmp_path / "mine" / "train" / "n00000002").iterdir():
        shutil.copy(large, path)
    split = load(tmp_path / "mine", processes=1).train
    read(split.subset(split.targets == 0))  # what is needed to decode is there
    chosen = split.subset(split.targets == 2).subset(torch.arange(1))
    (child,) = children(decoding.decoders(1))
    pages = int(Path(f"/proc/{child}/statm").read_text().split()[0])
    soft, hard = resource.prlimit(child, resource.RLIMIT_AS)
    resource.prlimit(child, resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**25, hard))
    try:
        with pytest.raises(MemoryError, match=r"n00000002_\d+ in train/n00000002/.*\.JPEG cannot be read: MemoryError"):
            read(chosen)
    finally:
        resource.prlimit(child, resource.RLIMIT_AS, (soft, hard))
    assert len(read(chosen)) == 1


# The order of training


def encoded(file: np.ndarray, labels: np.ndarray) -> Encoded:
    """A source with that index alone: it cannot be read."""
    count = len(labels)
    zeros = np.zeros(count, np.int64)
    files = np.array([str(number).encode() for number in range(file.max() + 1)])
    positions = Index(files, np.arange(count).astype("S"), zeros.astype(np.uint64), labels, file, zeros, zeros)
    return Encoded(positions, "nowhere", None, SCENARIO.transform(), CPU, 0)


@pytest.mark.parametrize(("kind", "most"), [("mixed", 17), ("sorted", 64), ("folders", 6400)])
def test_the_order_of_training(kind, most) -> None:
    """Random; of mixed shards 16 at a time, so that not all are read at once."""
    labels = np.random.default_rng(0).integers(0, 10, 6400)
    labels = np.sort(labels) if kind == "sorted" else labels
    file = np.arange(6400) if kind == "folders" else np.arange(6400) // 100
    source, rows = encoded(file, labels), torch.arange(6400)[::2]
    order = source.shuffle(rows, torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(3200))
    assert torch.equal(order, source.shuffle(rows, torch.Generator().manual_seed(0)))
    assert not torch.equal(order, source.shuffle(rows, torch.Generator().manual_seed(1)))
    read = rows[order].numpy()
    touched = [len(set(file[read[start : start + 800]])) for start in range(0, 3200, 800)]
    assert max(touched) <= most
    if kind != "mixed":
        assert min(touched) >= min(most, 600)
    correlation = np.corrcoef(np.arange(800), read[:800])[0, 1]
    assert abs(correlation) < 0.2
    for start in range(0, 3200, 128):
        assert len(set(labels[read[start : start + 128]])) == 10


# The index


def test_an_index_is_made_once_and_mapped(places, monkeypatch) -> None:
    entry = index.build(locate(places["shards"]))
    monkeypatch.setattr(tarfile, "open", None)  # would fail
    assert index.build(locate(places["shards"])) == entry
    for part, count in (("train", TRAIN), ("test", VAL)):
        found = index.load(entry)[part]
        assert all(isinstance(array, np.memmap) for array in found)
        assert np.bincount(found.labels).tolist() == [count] * CLASSES


def test_a_change_is_noticed(places, tmp_path) -> None:
    shutil.copytree(places["folders"], tmp_path / "mine")
    before = len(load(tmp_path / "mine").train)
    for label in range(CLASSES):
        next((tmp_path / "mine" / "train" / f"n{label:08d}").iterdir()).unlink()
    assert len(load(tmp_path / "mine").train) < before


def test_a_shard_of_another_writer_is_read(tmp_path, places) -> None:
    """Long names (PAX and GNU headers), directories in the archive, shards in directories, and upper case."""
    image = next((places["folders"] / "train").rglob("*.JPEG")).read_bytes()
    for part, form in (("train", tarfile.PAX_FORMAT), ("validation", tarfile.GNU_FORMAT)):
        (tmp_path / "shards" / part).mkdir(parents=True)
        with tarfile.open(tmp_path / "shards" / part / "0.tar", "w", format=form) as archive:
            for label in range(CLASSES):
                folder = tarfile.TarInfo(f"{label}" + 120 * "x")
                folder.type = tarfile.DIRTYPE
                archive.addfile(folder)
                for number in range(5):
                    add(archive, f"{folder.name}/ü{label}{number}{90 * 'y'}.JPG", image)
                    add(archive, f"{folder.name}/ü{label}{number}{90 * 'y'}.cls", f"{label}\n".encode())
    loaded = load(tmp_path / "shards")
    assert len(loaded.train) == 0.8 * 5 * CLASSES
    images = read(loaded.train)
    assert torch.equal(images, images[:1].expand_as(images))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def edit(path: Path, **members: bytes | None) -> None:
    """Members of a shard as they are, but for these; None leaves one out."""
    with tarfile.open(path) as archive:
        content = {one.name: archive.extractfile(one).read() for one in archive}
    with tarfile.open(path, "w") as archive:
        for name, one in {**content, **members}.items():
            if one is not None:
                add(archive, name, one)


def write_unknown(path: Path) -> None:
    """A shard as writers make it that keep several images a sample."""
    with tarfile.open(path, "w") as archive:
        add(archive, f"{path.stem}.image.jpg", b"an image")


def a_member(path: Path, ending: str) -> str:
    with tarfile.open(path) as archive:
        return next(name for name in archive.getnames() if name.endswith(ending))


def header_of_last(path: Path) -> int:
    with tarfile.open(path) as archive:
        return archive.getmembers()[-1].offset


SHARD = "train-0000.tar"
BREAKAGES = {
    "nothing there": (lambda root: shutil.rmtree(root), r"broken has neither images train/.* nor shards"),
    "no training set": (lambda root: [path.unlink() for path in root.glob("train*")], "has neither images"),
    "cut in an image": (lambda root: cut(root / SHARD, 5000), r"cannot read .*train-0000\.tar: unexpected end"),
    "cut in a header": (
        lambda root: cut(root / SHARD, header_of_last(root / SHARD) + 100),
        r"train-0000\.tar is cut off or damaged at byte \d+",
    ),
    "cut between images": (
        lambda root: cut(root / SHARD, header_of_last(root / SHARD)),
        r"train-0000\.tar is cut off or damaged at byte \d+",
    ),
    "no archive": (lambda root: (root / SHARD).write_text("no"), r"cannot read .*train-0000\.tar"),
    "no number": (
        lambda root: edit(root / SHARD, **{a_member(root / SHARD, ".cls"): b"cat"}),
        r"train-0000\.tar: .*\.cls is no class number, but b'cat'",
    ),
    "no label": (
        lambda root: edit(root / SHARD, **{a_member(root / SHARD, ".cls"): None}),
        r"train-0000\.tar: .* has no label",
    ),
    "no image": (
        lambda root: edit(root / SHARD, **{a_member(root / SHARD, ".jpg"): None}),
        r"train-0000\.tar: .* has no image",
    ),
    "no name that is known": (
        lambda root: [write_unknown(path) for path in root.glob("train-*")],
        r"train shards in .*broken, such as train-\d+\.tar, hold no image: none .*<key>\.jpg or .*<key>\.cls",
    ),
    "a key twice": (
        lambda root: shutil.copy(root / SHARD, root / "train-9999.tar"),
        r"class \d has the key .* twice: in .*train-0000\.tar and in .*train-9999\.tar",
    ),
    "a class too many": (
        lambda root: [
            edit(root / shard, **{a_member(root / shard, ".cls"): b"4"}) for shard in (SHARD, "val-0000.tar")
        ],
        "has 5 classes, 0 to 4; photos has 4",
    ),
    "a class that is in no held-out set": (
        lambda root: edit(root / SHARD, **{a_member(root / SHARD, ".cls"): b"4"}),
        r"1 of 5 classes have no image in the val set \(val-0000\.tar, \.\.\.\), such as 4",
    ),
    "a class that is in no training set": (
        lambda root: edit(root / "val-0000.tar", **{a_member(root / "val-0000.tar", ".cls"): b"7"}),
        r"the test set in .* has \d classes, 0 to 7; photos has 4",
    ),
    "a class below 0": (
        lambda root: edit(root / SHARD, **{a_member(root / SHARD, ".cls"): b"-1"}),
        "is no class number, but b'-1'",
    ),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_what_is_wrong_with_shards_is_said_before_any_compute(places, tmp_path, breakage) -> None:
    shutil.copytree(places["shards"], tmp_path / "broken")
    change, message = BREAKAGES[breakage]
    change(tmp_path / "broken")
    with pytest.raises(InputError, match=message):
        splits.prepare(SCENARIO, tmp_path / "broken")


def test_what_is_wrong_with_folders_is_said_before_any_compute(places, tmp_path) -> None:
    root = tmp_path / "broken"
    shutil.copytree(places["folders"], root)
    images = root / "train" / "n00000000"
    shutil.copy(images / "n00000000_0.JPEG", images / "n00000000_0.png")
    with pytest.raises(InputError, match=r"class 0 has the key n00000000_0 twice: in .*0\.JPEG and in .*0\.png"):
        splits.prepare(SCENARIO, root)
    (images / "n00000000_0.png").unlink()
    (root / "val" / "n00000000").rename(root / "val" / "n5")
    with pytest.raises(InputError, match=r"val/n5/.*: there is no class n5 in train"):
        splits.prepare(SCENARIO, root)
    shutil.rmtree(root / "val")
    splits.prepare(SCENARIO, root)
    with pytest.raises(InputError, match="photos brings no test set"):
        splits.check_split(SCENARIO)
    assert sum(map(len, splits.load(replace(SCENARIO, test_share=0.2), CPU, 0).test)) == 12
    shutil.rmtree(images)
    with pytest.raises(InputError, match="has 3 classes, 0 to 2; photos has 4"):
        splits.prepare(SCENARIO, root)


def test_where_a_dataset_is_has_to_be_said_once(places, tmp_path) -> None:
    with pytest.raises(InputError, match=r"where is photos.*--data-dir"):
        splits.prepare(SCENARIO)
    shutil.copytree(places["shards"], tmp_path / "mine")
    splits.prepare(SCENARIO, tmp_path / "mine")
    assert len(splits.load(SCENARIO, CPU, 0).train) == CLASSES * TRAIN * 0.8
    shutil.rmtree(cache.root() / "indices")  # a cache may be deleted, in part as well
    assert len(splits.load(SCENARIO, CPU, 0).train) == CLASSES * TRAIN * 0.8
    shutil.rmtree(tmp_path / "mine")
    with pytest.raises(InputError, match=r"photos is no longer in .*mine"):
        splits.load(SCENARIO, CPU, 0)


# Object storage


@pytest.fixture
def bucket() -> Iterator[tuple[str, Any]]:
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    query = f"?endpoint_override=127.0.0.1:{server.get_host_and_port()[1]}&scheme=http"
    FileSystem.from_uri(f"s3://key:secret@photos{query}&allow_bucket_creation=true")[0].create_dir("photos")
    yield "s3://key:secret@photos/{}" + query, server
    server.stop()


def upload(source: Path, uri: str) -> None:
    filesystem, path = FileSystem.from_uri(uri)
    copy_files(str(source), path, source_filesystem=LocalFileSystem(), destination_filesystem=filesystem)


def test_shards_on_object_storage_are_copied_once(places, bucket) -> None:
    uri, server = bucket[0].format("some/shards"), bucket[1]
    upload(places["shards"], uri)
    remote, local = load(uri, processes=2), load(places["shards"])
    assert by_key(remote.train, remote.train.targets) == by_key(local.train, local.train.targets)
    assert torch.equal(read(remote.train, seed=2), read(local.train, seed=2))
    server.stop()
    assert torch.equal(read(remote.train, seed=3), read(local.train, seed=3))
    known = published.DATASETS["photos"].entry(splits.prepare(SCENARIO).data) / "location.json"
    assert json.loads(known.read_text())["location"] == str(places["shards"])


@pytest.mark.long
def test_an_outage_of_the_storage_is_the_machines_failure(places, bucket) -> None:
    uri, server = bucket[0].format("some/shards"), bucket[1]
    upload(places["shards"], uri)
    split = load(uri, processes=1).train
    port = server.get_host_and_port()[1]
    server.stop()
    with pytest.raises(OSError, match=r"the image .* in train-\d+\.tar cannot be read: OSError: "):
        read(split)
    again = type(server)("127.0.0.1", port, verbose=False)
    again.start()
    assert torch.equal(read(split), read(load(places["shards"]).train))
    again.stop()


def test_a_full_disk_is_the_machines_failure(places, bucket, small_disk, monkeypatch) -> None:
    monkeypatch.setenv("RAYMU_CACHE", str(small_disk))
    uri = bucket[0].format("some/shards")
    upload(places["shards"], uri)
    split = load(uri).train
    with (small_disk / "filler").open("wb") as filler:
        left = os.statvfs(small_disk)
        os.posix_fallocate(filler.fileno(), 0, left.f_bavail * left.f_frsize)
    with pytest.raises(OSError, match=r"in train-\d+\.tar cannot be read: OSError: .*No space left on device"):
        read(split)
    assert not list(small_disk.rglob("*.unfinished"))  # would take the room that others need
    (small_disk / "filler").unlink()
    assert torch.equal(read(split), read(load(places["shards"]).train))


def test_a_copy_that_was_cut_is_made_anew(places, bucket) -> None:
    uri = bucket[0].format("some/shards")
    upload(places["shards"], uri)
    split = load(uri).train
    expected = read(split)
    (copy,) = (cache.root() / "shards").rglob(f"{SHARD}/{SHARD}")
    cut(copy, 1000)
    with pytest.raises(OSError, match=rf"in {SHARD} cannot be read: .*ends \d+ bytes before the image does"):
        read(split)
    assert torch.equal(read(split), expected)


def test_what_is_wrong_on_object_storage_is_said_without_secrets(places, bucket) -> None:
    folders, nothing = bucket[0].format("folders"), bucket[0].format("nothing")
    upload(places["folders"], folders)
    for uri in (folders, nothing):
        with pytest.raises(InputError, match=r"has no shards train-\*\.tar") as error:
            splits.prepare(SCENARIO, uri)
        assert "secret" not in str(error.value)
    shards = bucket[0].format("shards")
    upload(places["shards"], shards)
    entry = published.DATASETS["photos"].entry(splits.prepare(SCENARIO, shards).data)
    assert (entry / "location.json").stat().st_mode & 0o777 == 0o600  # holds the secret


# Datasets in memory


def test_tiny_imagenet_as_it_is_published(tmp_path, monkeypatch) -> None:
    """The zip file's layout, and the labels of its validation images by name."""
    classes = [f"n{number:08d}" for number in (5, 3, 9)]
    colours = dict(zip(classes, (40, 120, 220), strict=True))

    def image(colour: int, mode: str = "RGB") -> bytes:
        content = io.BytesIO()
        Image.new("RGB", (64, 64), (colour, 0, 255 - colour)).convert(mode).save(content, "JPEG", quality=95)
        return content.getvalue()

    with zipfile.ZipFile(tmp_path / "tiny-imagenet-200.zip", "w") as archive:
        top = "tiny-imagenet-200"
        archive.writestr(f"{top}/wnids.txt", "\n".join(classes) + "\n")
        for name in classes:
            archive.writestr(f"{top}/train/{name}/{name}_boxes.txt", "")
            for number in range(4):
                archive.writestr(f"{top}/train/{name}/images/{name}_{number}.JPEG", image(colours[name]))
        lines = [f"val_{number}.JPEG\t{classes[number % 3]}\t0\t0\t62\t62\n" for number in range(9)]
        archive.writestr(f"{top}/val/val_annotations.txt", "".join(lines))
        for number in range(9):
            archive.writestr(f"{top}/val/images/val_{number}.JPEG", image(colours[classes[number % 3]]))
        archive.writestr(f"{top}/test/images/test_0.JPEG", image(0, "L"))
    monkeypatch.setitem(published.PUBLISHED, "Tiny-ImageNet", {"train": 3 * (4,), "test": 3 * (3,)})
    monkeypatch.setitem(published.DATASETS, "tinyimagenet", replace(published.DATASETS["tinyimagenet"], num_classes=3))
    scenario = replace(SCENARIO, dataset="tinyimagenet", val_share=0.25)
    monkeypatch.setattr(published, "TINY_IMAGENET_URL", "http://127.0.0.1:9/tiny-imagenet-200.zip")
    with pytest.raises(InputError, match=r"tiny-imagenet-200\.zip.*--data-dir"):
        splits.prepare(scenario, tmp_path)  # another checksum
    monkeypatch.setattr(published, "TINY_IMAGENET_MD5", None)
    splits.prepare(scenario, tmp_path)
    loaded = splits.load(scenario, CPU)
    assert (len(loaded.train), sum(map(len, loaded.val)), sum(map(len, loaded.test))) == (9, 3, 9)
    for split in (loaded.train, *loaded.test):
        red = split.images.pixels[split.index][:, 0].float().mean((1, 2))
        expected = torch.tensor([colours[name] for name in sorted(classes)])[split.targets]
        torch.testing.assert_close(red, expected.float(), atol=3, rtol=0)
    folder = tmp_path / "tiny-imagenet-200"
    some = folder / "train" / classes[1] / "images" / f"{classes[1]}_2.JPEG"
    for change, message in (
        (lambda: some.write_bytes(image(3)[:300]), rf"{some.name} cannot be read: .*[Tt]runcated"),
        (lambda: Image.new("RGB", (64, 32)).save(some), rf"{some.name} has 64 x 32 pixels instead of 64 x 64"),
        (
            some.unlink,
            rf"train set has 11 images instead of 12; 1 of 3 classes differ, such as {classes[1]} with 3 inst",
        ),
        ((folder / "val" / "images" / "val_4.JPEG").unlink, "train set has 11 images"),
        (
            lambda: some.write_bytes(image(3)),
            r"test set has 8 images instead of 9; 1 of 3 .* n00000003 with 2 instead of 3",
        ),
        ((folder / "val" / "val_annotations.txt").unlink, "is not Tiny-ImageNet as published: .*No such file"),
    ):
        change()
        with pytest.raises(InputError, match=message):
            published.DATASETS["tinyimagenet"].read(tmp_path)


def test_a_partly_unpacked_tiny_imagenet_is_refused(tmp_path, monkeypatch) -> None:
    """In its real numbers, before an image is opened; and nothing of it is kept."""
    classes = [f"n{number:08d}" for number in range(200)]
    folder = tmp_path / "tiny-imagenet-200"
    for name in classes:
        (folder / "train" / name / "images").mkdir(parents=True)
    for name in classes[:3]:
        for number in range(500):
            (folder / "train" / name / "images" / f"{name}_{number}.JPEG").touch()
    (folder / "wnids.txt").write_text("\n".join(classes))
    (folder / "val" / "images").mkdir(parents=True)
    lines = [f"val_{number}.JPEG\t{classes[number % 200]}\t0\t0\t62\t62\n" for number in range(10000)]
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    scenario = replace(SCENARIO, dataset="tinyimagenet")
    message = (
        "train set has 1500 images instead of 100000; 197 of 200 classes differ, such as n00000003 with 0 instead of"
    )
    with pytest.raises(InputError, match=message):
        splits.prepare(scenario, tmp_path)
    assert not (cache.root() / "datasets" / "tinyimagenet").exists()


class Source:
    """What torchvision makes of CIFAR-100: as many images as published, but for the last ones of a part."""

    missing: ClassVar = {True: 0, False: 0}
    shape = (32, 32, 3)

    def __init__(self, directory: Path, train: bool, download: bool) -> None:
        count = (50000 if train else 10000) - self.missing[train]
        self.data = np.zeros((count, *self.shape), np.uint8)
        self.data[:, 0, 0] = (1, 2, 3)
        self.targets = [row % 100 for row in range(count)]


def test_cifar100_is_labelled_by_its_fine_classes(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("torchvision.datasets.CIFAR100", Source)
    read = published.DATASETS["cifar100"].read(tmp_path)
    assert read["train_images"].shape == (50000, 3, 32, 32)
    assert read["test_images"][0, :, 0, 0].tolist() == [1, 2, 3]
    assert len(set(read["train_labels"].tolist())) == published.DATASETS["cifar100"].num_classes == 100
    assert CIFAR100.base_folder == "cifar-100-python"  # whose loader takes the fine labels


def test_a_cifar_of_another_size_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("torchvision.datasets.CIFAR100", Source)
    monkeypatch.setitem(Source.missing, False, 2)
    message = (
        "test set has 9998 images instead of 10000; 2 of 100 classes differ, such as class 98 with 99 instead of 100"
    )
    with pytest.raises(InputError, match=message):
        published.DATASETS["cifar100"].read(tmp_path)
    monkeypatch.setattr(Source, "shape", (16, 16, 3))
    with pytest.raises(InputError, match=r"has a train set of the shape \(50000, 16, 16, 3\)"):
        published.DATASETS["cifar100"].read(tmp_path)


# Trials


@pytest.mark.long
def test_trials_on_shards(places) -> None:
    """By class, with the UNSIR sample and its noise among the images, and by share."""
    splits.prepare(SCENARIO, places["shards"])
    row, model = run_trial(SCENARIO, RandomLabel(lr=0.01, epochs=1), seed=0)
    assert (row["status"], row["images"]) == ("completed", len(splits.load(SCENARIO, CPU, 0).train)), row["traceback"]
    assert model is not None
    settings = {"impair_epochs": 1, "repair_epochs": 1, "noise_batches": 1, "retain_per_class": 4}
    row, _ = run_trial(SCENARIO, UNSIR(**settings), seed=0)
    assert row["status"] == "completed", row["traceback"]
    row, _ = run_trial(BY_SHARE, RandomLabel(lr=0.01, epochs=1), seed=0)
    assert row["status"] == "completed", row["traceback"]


def test_a_trial_that_the_machine_keeps_from_its_images_may_be_tried_again(places, tmp_path) -> None:
    """It is no error of the method, which would be a row for ever."""
    shutil.copytree(places["shards"], tmp_path / "mine")
    scenario = splits.prepare(SCENARIO, tmp_path / "mine")
    method = RandomLabel(lr=0.01, epochs=1)
    row, _ = run_trial(scenario, method, seed=0)
    for shard in tmp_path.glob("mine/train-*"):
        cut(shard, 1000)
    with pytest.raises(OSError, match=r"the image .* in train-\d+\.tar cannot be read"):
        run_trial(scenario, method, seed=0)
    for shard in tmp_path.glob("mine/train-*"):
        shutil.copy(places["shards"] / shard.name, shard)
    again, _ = run_trial(scenario, method, seed=0)
    assert again["status"] == "completed", again["traceback"]
    assert again["score"] == row["score"]
