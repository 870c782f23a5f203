"""Which images of a directory are a dataset, with which labels; and that nothing of it is left out without a word."""

import io
import os
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from raymu import reference_models
from raymu.cli.program import main
from raymu.data import folders, index, published
from raymu.data.layout import SUFFIXES
from raymu.distributed.session import Resources
from raymu.errors import InputError
from raymu.methods.finetune import Finetune
from raymu.methods.random_label import RandomLabel
from raymu.protocol import Protocol
from raymu.scenario import SCENARIOS, Recipe, Scenario
from raymu.storage import locate
from raymu.tuning import driver
from raymu.tuning.sweep import Sweep

CLASSES = ("cat", "dog", "fox")


def _encoded(form: str) -> bytes:
    content = io.BytesIO()
    Image.effect_noise((40, 40), 50).save(content, form)
    return content.getvalue()


FORMS = {"jpg": "JPEG", "jpeg": "JPEG", "tif": "TIFF", "pbm": "PPM", "pgm": "PPM", "pnm": "PPM"}
JPEG = _encoded("JPEG")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMU_CACHE", str(tmp_path / "cache"))


def image(path: Path, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix[1:].lower()
    Image.new(mode, (2, 2)).save(path, FORMS.get(suffix, suffix.upper()))
    return path


def image_folders(root: Path, classes: tuple[str, ...] = CLASSES, held_out: str = "val") -> Path:
    """Two images of each class to train on, one held out."""
    for name in classes:
        for path in (f"train/{name}/a.jpg", f"train/{name}/b.JPEG", f"{held_out}/{name}/c.jpg"):
            image(root / path)
    return root


def shard(path: Path, members: dict[str, bytes | str]) -> Path:
    """A string is a link to there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def shards(
    root: Path, train: tuple[int, ...] = (0, 1, 2), val: tuple[int, ...] = (0, 1, 2), **more: bytes | str
) -> Path:
    for part, labels in (("train", train), ("val", val)):
        pairs = [(f"{number}.jpg", JPEG) for number in range(len(labels))]
        pairs += [(f"{number}.cls", str(label).encode()) for number, label in enumerate(labels)]
        shard(root / f"{part}-0.tar", {**dict(pairs), **more})
    return root


def labelled(root: Path, part: str = "train") -> dict[str, int]:
    """The label of each file that is read."""
    found = index.load(index.build(locate(root)))[part]
    assert len(found.files) == len(found.keys) == len(np.unique(found.ids))
    return {found.files[row].decode(): int(found.labels[at]) for at, row in enumerate(found.file)}


def notes(root: Path) -> list[str]:
    return index.notes(index.build(locate(root)))


CLEAN = {f"train/{name}/{file}": label for label, name in enumerate(CLASSES) for file in ("a.jpg", "b.JPEG")}
ORDER = "class folders are numbered in the order of their names: cat is class 0, dog is class 1, fox is class 2"


def test_of_a_clean_folder_nothing_is_left_out(tmp_path) -> None:
    assert labelled(image_folders(tmp_path / "it")) == CLEAN
    assert notes(tmp_path / "it") == [ORDER]


# What is read


def test_an_image_belongs_to_the_top_folder_however_deep_it_lies(tmp_path) -> None:
    """And its key to all the way there: clips often number their frames alike."""
    root = image_folders(tmp_path / "it")
    for name in ("one/0.jpg", "two/0.jpg", "two/more/0.jpg"):
        image(root / "train" / "dog" / name)
    assert labelled(root) == {**CLEAN, **{f"train/dog/{name}/0.jpg": 1 for name in ("one", "two", "two/more")}}
    keys = index.load(index.build(locate(root)))["train"].keys
    assert {b"one/0", b"two/0", b"two/more/0", b"a"} <= set(keys.tolist())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_of_an_image_is_read_whatever_its_case(tmp_path, suffix) -> None:
    root = image_folders(tmp_path / "it")
    mode = {"pbm": "1", "pgm": "L"}.get(suffix, "RGB")
    image(root / "train" / "cat" / f"x.{suffix}", mode)
    image(root / "train" / "cat" / f"y.{suffix.upper()}", mode)
    assert labelled(root) == {**CLEAN, f"train/cat/x.{suffix}": 0, f"train/cat/y.{suffix.upper()}": 0}


def test_links_are_followed(tmp_path) -> None:
    """To images, to folders of images, and to the class itself."""
    root, elsewhere = image_folders(tmp_path / "it"), tmp_path / "elsewhere"
    one = image(elsewhere / "one.jpg")
    image(elsewhere / "folder" / "two.jpg")
    (root / "train" / "cat" / "link.jpg").symlink_to(one)
    (root / "train" / "cat" / "more").symlink_to(elsewhere / "folder")
    (root / "train" / "dog").rename(elsewhere / "dog")
    (root / "train" / "dog").symlink_to(elsewhere / "dog")
    assert labelled(root) == {**CLEAN, "train/cat/link.jpg": 0, "train/cat/more/two.jpg": 0}
    assert notes(root) == [ORDER]


@pytest.mark.parametrize(
    ("names", "expected", "said"),
    [
        (("0", "1", "10", "11", "2"), {"0": 0, "1": 1, "2": 2, "10": 3, "11": 4}, "numbered as numbers: 0 is class 0"),
        (("1", "2", "03"), {"1": 0, "2": 1, "03": 2}, "as numbers: 1 is class 0, 2 is class 1, 03 is class 2"),
        (("1", "10", "2", "a"), {"1": 0, "10": 1, "2": 2, "a": 3}, "order of their names: 1 is class 0, 10 is class 1"),
        (("b", "B", "ä", "a b"), {"B": 0, "a b": 1, "b": 2, "ä": 3}, "B is class 0"),
    ],
)
def test_classes_are_numbered_by_value_where_all_names_are_numbers(tmp_path, names, expected, said) -> None:
    root = image_folders(tmp_path / "it", names)
    for part in ("train", "test"):
        assert {file.split("/")[1]: label for file, label in labelled(root, part).items()} == expected
    (note,) = notes(root)
    assert said in note


def test_folders_named_as_their_classes_need_no_word(tmp_path) -> None:
    assert notes(image_folders(tmp_path / "it", tuple(map(str, range(12))))) == []


def test_of_many_classes_the_note_names_a_few(tmp_path) -> None:
    (note,) = notes(image_folders(tmp_path / "it", tuple(f"n{number:02d}" for number in range(20))))
    assert note.endswith("n00 is class 0, n01 is class 1, n02 is class 2, ..., n19 is class 19")


# What is left out


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


LEFT_OUT: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda it: (it / "train/cat/boxes.txt").touch(), ".txt files: 1 (train/cat/boxes.txt)"),
    "another image format": (lambda it: (it / "train/cat/x.AVIF").touch(), ".avif files: 1 (train/cat/x.AVIF)"),
    "no suffix": (lambda it: (it / "train/cat/README").touch(), "files without a suffix: 1 (train/cat/README)"),
    "Windows' files": (
        lambda it: [(it / f"train/{name}/Thumbs.db").touch() for name in CLASSES],
        ".db files: 3 (such as train/cat/Thumbs.db)",
    ),
    "a class of Jupyter": (
        lambda it: image(it / "train/.ipynb_checkpoints/a.jpg"),
        "hidden: 1 (train/.ipynb_checkpoints)",
    ),
    "a folder of Jupyter": (
        lambda it: image(it / "val/cat/.ipynb_checkpoints/a.jpg"),
        "hidden: 1 (val/cat/.ipynb_checkpoints)",
    ),
    "a Mac's file": (lambda it: (it / "train/cat/._a.jpg").write_bytes(b"?"), "hidden: 1 (train/cat/._a.jpg)"),
    "a Mac's folder": (lambda it: image(it / "train/__MACOSX/cat/._a.jpg"), "hidden: 1 (train/__MACOSX)"),
    "a dangling link": (lambda it: dangling(it / "train/cat/x.jpg"), "links that lead nowhere: 1 (train/cat/x.jpg)"),
    "a dangling folder": (lambda it: dangling(it / "train/owl"), "links that lead nowhere: 1 (train/owl)"),
    "a link to itself": (
        lambda it: (it / "train/cat/x.jpg").symlink_to("x.jpg"),
        "links that lead nowhere: 1 (train/cat/x.jpg)",
    ),
    "a circle": (lambda it: (it / "train/cat/me").symlink_to("."), "links to a folder above: 1 (train/cat/me)"),
    "a wide circle": (lambda it: (it / "train/cat/all").symlink_to("/"), "links to a folder above: 1 (train/cat/all)"),
    "a pipe": (lambda it: os.mkfifo(it / "train/cat/x.jpg"), "neither files nor folders: 1 (train/cat/x.jpg)"),
    "images of no class": (lambda it: image(it / "train/x.jpg"), "images outside class folders: 1 (train/x.jpg)"),
    "images of no part": (lambda it: image(it / "x.png"), "images outside class folders: 1 (x.png)"),
    "tars of classes": (
        lambda it: [shard(it / f"train/{name}.tar", {"a.jpg": b"image"}) for name in CLASSES],
        ".tar files: 3 (such as train/cat.tar)",
    ),
    "a held-out set without labels": (
        lambda it: image(it / "test/all/x.jpg"),
        "test sets without labels, or of other classes: 1 (test/all/x.jpg)",
    ),
    "a part of another name": (
        lambda it: image(it / "valid/cat/x.jpg"),
        "folders that are no part that is read: 1 (valid)",
    ),
}


@pytest.mark.parametrize("what", LEFT_OUT)
def test_what_is_left_out_is_counted_and_named(tmp_path, what) -> None:
    root = image_folders(tmp_path / "it")
    make, said = LEFT_OUT[what]
    make(root)
    assert labelled(root) == CLEAN
    assert len(labelled(root, "test")) == len(CLASSES)
    assert notes(root) == [f"left out: {said}", ORDER]


def test_it_is_counted_also_where_it_changes_later(tmp_path) -> None:
    root = image_folders(tmp_path / "it")
    assert notes(root) == [ORDER]
    (root / "train" / "cat" / "x.txt").touch()
    assert notes(root)[0] == "left out: .txt files: 1 (train/cat/x.txt)"


def test_reasons_are_one_line(tmp_path) -> None:
    """As with a microscope's `image.0001`, whose suffixes are many."""
    root = image_folders(tmp_path / "it")
    for number in range(20):
        (root / "train" / "cat" / f"image.{number:04d}").touch()
    (root / "train" / "cat" / "image2.0019").touch()
    line = notes(root)[0]
    assert line.startswith("left out: .0019 files: 2 (such as train/cat/image.0019); .0000 files: 1 (train")
    assert line.endswith("; others: 14")


MEMBERS: dict[str, tuple[dict[str, bytes | str], str]] = {
    "json": ({"0.json": b"{}"}, ".json members: 2 (such as train-0.tar/0.json)"),
    "a Mac's member": ({"some/._0.jpg": b"?"}, "hidden: 2 (such as train-0.tar/some/._0.jpg)"),
    "a second image": ({"0.mask.png": b"?"}, ".mask.png members: 2 (such as train-0.tar/0.mask.png)"),
    "a link": ({"9.jpg": "0.jpg"}, "members that are no files: 2 (such as train-0.tar/9.jpg)"),
}


@pytest.mark.parametrize("what", MEMBERS)
def test_what_is_left_out_of_shards_is_counted_and_named(tmp_path, what) -> None:
    members, said = MEMBERS[what]
    root = shards(tmp_path / "it", **members)
    assert index.load(index.build(locate(root)))["train"].labels.tolist() == [0, 1, 2]
    assert notes(root) == [f"left out: {said}"]


def test_files_beside_shards_are_counted_and_named(tmp_path) -> None:
    root = shards(tmp_path / "it")
    for name in ("train_1.tar", "train-1.tar.part", "test-0.tar"):
        (root / name).touch()
    (root / "train-9.tar").symlink_to("nowhere")
    assert notes(root) == [
        "left out: .part files: 1 (train-1.tar.part); links that lead nowhere: 1 (train-9.tar);"
        " shards of no part that is read: 1 (train_1.tar);"
        " test sets without labels, or of other classes: 1 (test-0.tar)"
    ]


# What is refused


def without(*paths: str) -> Callable[[Path], object]:
    return lambda it: [(it / path).unlink() for path in paths]


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a class missing in val": (
        without("val/dog/c.jpg"),
        r"1 of 3 classes have no image in the val set \(val/cat/c\.jpg, \.\.\.\), such as dog",
    ),
    "a class missing in a test set beside val": (
        lambda it: image(it / "test/cat/x.jpg"),
        r"2 of 3 classes have no image in the test set \(test/cat/x\.jpg, \.\.\.\), such as dog",
    ),
    "a class in test alone": (
        lambda it: [image(it / f"test/{name}/x.jpg") for name in (*CLASSES, "mouse")],
        "there is no class mouse in train",
    ),
    "a class missing in train": (
        without("train/dog/a.jpg", "train/dog/b.JPEG"),
        r"1 of 3 classes have no image in the train set \(train/cat/a\.jpg, \.\.\.\), such as dog",
    ),
    "a class that train does not know": (
        lambda it: image(it / "val/owl/a.jpg"),
        r"val/owl/a\.jpg: there is no class owl",
    ),
    "an empty file": (
        lambda it: (it / "train/fox/z.jpg").touch(),
        r"empty image files: 1, such as train/fox/z\.jpg",
    ),
    "floating point": (
        lambda it: image(it / "train/fox/z.tif", "F"),
        r"it/train/fox/z\.tif cannot be read: its pixels are floating-point numbers",
    ),
    "no image": (
        lambda it: (it / "val/fox/z.png").write_bytes(b"<html>"),
        r"val/fox/z\.png cannot be read: it is no image",
    ),
    "a key twice": (
        lambda it: image(it / "train/fox/a.bmp"),
        r"class 2 has the key b?'?a'? twice: in .*train/fox/a\.bmp and in .*train/fox/a\.jpg",
    ),
    "a name that is no text": (
        lambda it: os.rename(it / "train/fox/a.jpg", os.fsencode(it / "train/fox") + b"/\xff.jpg"),
        r"a name that is not UTF-8: 'train/fox/\\udcff\.jpg'",
    ),
    "a page of an error under an image's name": (
        lambda it: (it / "val/cat/z.jpg").write_text("<html>404</html>"),
        r"val/cat/z\.jpg cannot be read: it is no image",
    ),
    "an animation under another name": (
        lambda it: Image.new("L", (2, 2)).save(
            it / "val/cat/z.jpg", "GIF", save_all=True, append_images=[Image.new("L", (2, 2), 9)]
        ),
        r"val/cat/z\.jpg cannot be read: it has 2 frames",
    ),
    "a JPEG that is cut off": (
        lambda it: (it / "val/cat/z.jpg").write_bytes(JPEG[:-400]),
        r"val/cat/z\.jpg cannot be read: .*truncated",
    ),
    "a PNG that is cut off": (
        lambda it: (it / "val/cat/z.png").write_bytes(_encoded("PNG")[:-400]),
        r"val/cat/z\.png cannot be read: ",
    ),
    "val as shards": (
        lambda it: ([path.unlink() for path in it.glob("val/*/*")], (it / "val-0.tar").touch()),
        r"\(train/cat/a\.jpg, \.\.\.\) and the held-out set \(val-0\.tar, \.\.\.\) are not of one layout",
    ),
    "train of no class": (
        lambda it: [path.rename(it / "train" / f"{path.parent.name}{path.name}") for path in it.glob("train/*/*")],
        r"has neither images train/.*; left out: images outside class folders: 6 \(such as train/cata\.jpg\)",
    ),
    "tars of classes that are still packed": (
        lambda it: (
            [path.unlink() for path in it.glob("train/*/*")],
            shard(it / "train" / "cat.tar", {"cat_1.JPEG": b"image"}),
            shard(it / "val" / "cat.tar", {"cat_1.JPEG": b"image"}),
        ),
        r"train/cat\.tar: cat_1 has no label \(\.cls\); the tar of one class has to be unpacked into train/<class>",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_right_is_refused_in_one_line(tmp_path, what) -> None:
    root = image_folders(tmp_path / "it")
    change, message = REFUSED[what]
    change(root)
    with pytest.raises(InputError, match=message) as error:
        index.build(locate(root))
    assert "\n" not in str(error.value)


def test_an_image_that_may_not_be_read_is_refused(tmp_path, monkeypatch) -> None:
    """Of who may, the system decides: the superuser may all."""
    root = image_folders(tmp_path / "it")
    (root / "train" / "cat" / "a.jpg").chmod(0o600)
    assert labelled(root) == CLEAN
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match=r"may not read .*train/cat/a\.jpg"):
        index.build(locate(root))


SHARDS_REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a class missing in val": (
        lambda it: shards(it, val=(0, 2, 2)),
        r"1 of 3 classes have no image in the val set \(val-0\.tar, \.\.\.\), such as 1",
    ),
    "an empty image": (lambda it: shards(it, **{"0.jpg": b""}), r"train-0\.tar: 0\.jpg is empty"),
    "an image that is refused": (
        lambda it: shards(it, **{"5.cls": b"0", "5.tif": image(it / "x.tif", "F").read_bytes()}),
        r"train-0\.tar: 5\.tif cannot be read: its pixels are floating-point numbers",
    ),
    "an image that is none": (
        lambda it: shards(it, **{"0.jpg": b"image"}),
        r"train-0\.tar: 0 cannot be read: it is no",
    ),
    "val as folders": (
        lambda it: (shards(it), (it / "val-0.tar").unlink(), image(it / "val" / "0" / "a.jpg")),
        r"\(train-0\.tar, \.\.\.\) and the held-out set \(val/0/a\.jpg, \.\.\.\) are not of one layout",
    ),
}


@pytest.mark.parametrize("what", SHARDS_REFUSED)
def test_shards_that_cannot_be_right_are_refused_in_one_line(tmp_path, what) -> None:
    make, message = SHARDS_REFUSED[what]
    make(tmp_path / "it")
    with pytest.raises(InputError, match=message) as error:
        index.build(locate(tmp_path / "it"))
    assert "\n" not in str(error.value)


# Where it is said


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Scenario, Path]:
    """A scenario, and its data with a file that is left out."""
    root = image_folders(tmp_path / "it")
    for name in CLASSES:
        for number in range(6):
            image(root / "train" / name / f"{number}.jpg")
    (root / "train" / "cat" / "x.txt").touch()
    scenario = Scenario(
        name="mine",
        dataset="mine",
        architecture="test_vit",
        model_args=(("img_size", 32),),
        recipe=Recipe(lr=0.01, epochs=1, batch_size=8),
        forget=(1,),
        val_share=0.5,
    )
    monkeypatch.setitem(published.DATASETS, "mine", folders.EncodedDataset("mine", len(CLASSES)))
    monkeypatch.setitem(SCENARIOS, "mine", scenario)
    return scenario, root


SAID = ["left out: .txt files: 1 (train/cat/x.txt)", ORDER]


def test_sweeps_say_it_once(mine, tmp_path, monkeypatch) -> None:
    """Before anything is trained, also where several methods are tuned in a row."""
    scenario, root = mine

    class Started(Exception):
        pass

    def start(address: str | None) -> None:
        raise Started

    monkeypatch.setattr(driver, "session", start)
    console = Console(file=io.StringIO(), width=40)
    for method in (Finetune, RandomLabel):
        asked = Sweep(method=method, scenario=scenario, protocol=Protocol(trials=1))
        with pytest.raises(Started):
            driver.run_sweep(asked, tmp_path / method.name(), Resources(), console, data_dir=root, anyway=True)
    assert console.file.getvalue().splitlines() == SAID


@pytest.mark.long
def test_a_run_says_it_and_names_an_image_that_it_cannot_read(mine, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        sys, "argv", ["raymu", "run", "finetune", "--scenario", "mine", "--data-dir", str(mine[1]), "--out", "out"]
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line in SAID] == SAID
    Image.new("F", (2, 2)).save(mine[1] / "train" / "cat" / "z.jpg", "TIFF")
    reference_models.release()
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {mine[1]}/train/cat/z.jpg cannot be read: its pixels are floating-point numbers (mode F), and no file"
        " says which one is white\n"
    )
