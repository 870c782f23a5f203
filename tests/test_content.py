"""Results are known by what they are results of: data, scenario, code, original. A name says nothing."""

import dataclasses
import importlib
import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import asked
from PIL import Image
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

import raymu
from raymu import cache, engines, methods, modules, reference_models, source, splits, study
from raymu.architecture import Timm
from raymu.cli import app
from raymu.data import arrays, dataset, folders, published
from raymu.engines import code_of, pytorch
from raymu.errors import InputError
from raymu.method import Method, Range, tuned
from raymu.methods.random_label import RandomLabel
from raymu.objective import HMEAN, Objective
from raymu.protocol import Confirmation, Protocol
from raymu.results import files, reader, report, selection, writer
from raymu.scenario import SCENARIOS, Recipe, Scenario
from raymu.storage import locate
from raymu.trial import blank_row, run_trial
from raymu.tuning.sweep import Sweep

CPU = torch.device("cpu")
QUICK = Recipe(lr=0.05, epochs=1, batch_size=16)


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Iterator[Path]:
    monkeypatch.setenv("RAYMU_CACHE", str(tmp_path / "cache"))
    reference_models.release()
    yield tmp_path / "cache"
    reference_models.release()


@pytest.fixture
def photos(own_cache, monkeypatch) -> Scenario:
    monkeypatch.setitem(published.DATASETS, "photos", folders.EncodedDataset("photos", 4))
    return Scenario("photos", "photos", "test_vit", QUICK, (1,), model_args=(("img_size", 32),), val_share=0.25)


@pytest.fixture
def striped(own_cache, monkeypatch) -> Scenario:
    monkeypatch.setitem(published.DATASETS, "stripes", array_dataset(50))
    return Scenario("stripes", "stripes", "test_resnet", QUICK, (1,), val_share=0.25, test_share=0.25)


# Data


def image_folders(root: Path, classes: str = "abcd", first: int = 0, count: int = 8, shade: int = 0) -> Path:
    """Image folders whose files all have the same size and time; images number `first` and on."""
    for part in ("train", "val"):
        for place, name in enumerate(classes):
            directory = root / part / "abcd"[place]
            directory.mkdir(parents=True)
            for number in range(first, first + count):
                random = np.random.default_rng((ord(name), number, part == "val"))
                pixels = (random.integers(0, 60, (32, 32, 3)) + 40 * "abcd".index(name) + shade).astype(np.uint8)
                Image.fromarray(pixels).save(path := directory / f"{number}.png")
                os.utime(path, (0, 0))
    return root


def test_images_are_known_by_what_they_are_and_not_by_where_they_lie(photos, tmp_path) -> None:
    one = image_folders(tmp_path / "one")
    other = {
        "other images": image_folders(tmp_path / "images", first=8),
        "labels of two classes swapped": image_folders(tmp_path / "labels", "bacd"),
        "twice the images": image_folders(tmp_path / "twice", count=16),
        "the same names, other pixels": image_folders(tmp_path / "pixels", shade=1),
    }
    said = {what: splits.prepare(photos, place) for what, place in {"": one, **other}.items()}
    assert len({scenario.hash for scenario in said.values()}) == len(said)
    assert ": 64 training and 64 test images of 4 classes; read by " in said["twice the images"].data
    moved = one.rename(tmp_path / "moved")
    assert splits.prepare(photos, moved) == said[""] == splits.prepare(photos)
    with pytest.raises(InputError, match=r"photos is not what it was: here are \w+: 64 tr.*; asked for are \w+: 32 tr"):
        splits.prepare(said[""], other["twice the images"])


@pytest.mark.long
def test_trials_on_other_images_of_the_same_name_have_references_of_their_own(photos, tmp_path) -> None:
    rows = []
    for classes in ("abcd", "bacd", "abcd"):
        place = tmp_path / classes
        splits.prepare(photos, place if place.exists() else image_folders(place, classes))
        row, _ = run_trial(photos, RandomLabel(lr=1e-3, epochs=1), seed=0)
        assert row["status"] == "completed", row["traceback"]
        rows.append(row)
    assert rows[0]["original_weights"] == rows[2]["original_weights"] != rows[1]["original_weights"]
    assert rows[0]["scenario_hash"] == rows[2]["scenario_hash"] != rows[1]["scenario_hash"]
    assert rows[0]["val_retain_acc"] == rows[2]["val_retain_acc"]
    with pytest.raises(InputError, match="rows of several kinds"):
        selection.tuned([{**row, "source": "search", "trial": 0, "protocol_hash": "p"} for row in rows])


def stripes(brightness: int, directory: Path) -> dict[str, np.ndarray]:
    """Four classes of stripes; a number in `count` of the directory says how many images."""
    labels = np.arange(int((directory / "count").read_text()) if (directory / "count").exists() else 64) % 4
    images = np.zeros((len(labels), 1, 16, 16), np.uint8)
    for row, label in enumerate(labels):
        images[row, 0, :: label + 2] = brightness + row
    return {"train_images": images, "train_labels": labels}


def array_dataset(brightness: int, **changed) -> arrays.ArrayDataset:
    given = {"name": "stripes", "num_classes": 4, "channels": 1, "size": 16, "mean": (0.3,), "std": (0.3,), **changed}
    return arrays.ArrayDataset(**given, read=partial(stripes, brightness))


def test_arrays_are_read_again_where_code_or_directory_say_otherwise(striped, tmp_path, monkeypatch) -> None:
    first = splits.prepare(striped)
    assert first.data.endswith(": 64 training images of 4 classes")
    monkeypatch.setitem(published.DATASETS, "stripes", array_dataset(60))
    brighter = splits.prepare(striped)
    monkeypatch.setitem(published.DATASETS, "stripes", array_dataset(50, mean=(0.5,)))
    normalised = splits.prepare(striped)
    monkeypatch.setitem(published.DATASETS, "stripes", array_dataset(50))
    assert splits.prepare(striped) == first
    (tmp_path / "count").write_text("32")
    fewer = splits.prepare(striped, tmp_path)
    assert fewer.data.endswith(": 32 training images of 4 classes")
    assert len({one.hash for one in (first, brighter, normalised, fewer)}) == 4
    (tmp_path / "count").write_text("48")  # a directory that is given is always looked at
    assert splits.prepare(striped, tmp_path).data.endswith(": 48 training images of 4 classes")
    assert len(splits.load(first, CPU).train) == 32  # half of its 64: what was bound stays bound


def test_what_a_function_of_the_users_raises_is_one_line_and_its_directory_is_remembered(
    striped, tmp_path, monkeypatch
):
    def read(directory: Path) -> dict[str, np.ndarray]:
        return dict(np.load(directory / "my.npz"))

    monkeypatch.setitem(published.DATASETS, "stripes", dataclasses.replace(array_dataset(50), read=read))
    with pytest.raises(InputError, match=r"stripes cannot be read from .*/no: FileNotFoundError: .*my\.npz"):
        splits.prepare(striped, tmp_path / "no")
    np.savez(tmp_path / "my.npz", **stripes(50, tmp_path))
    prepared = splits.prepare(striped, tmp_path)
    monkeypatch.chdir("/")
    assert splits.prepare(striped) == prepared
    (tmp_path / "my.npz").unlink()
    assert splits.prepare(prepared) == prepared  # it is in the cache, whatever lies there now
    with pytest.raises(InputError, match="FileNotFoundError"):
        splits.prepare(striped)


def test_images_are_known_by_what_reads_them(striped, photos, tmp_path, monkeypatch) -> None:
    class Own(arrays.ArrayDataset):
        """One of the user's."""

        def load(self, entry, scenario, device, processes):
            parts = super().load(entry, scenario, device, processes)
            return {name: part._replace(labels=(part.labels + SHIFT) % 4) for name, part in parts.items()}

    fields = vars(array_dataset(50))
    monkeypatch.setitem(published.DATASETS, "stripes", Own(**fields))
    own = splits.prepare(striped)
    assert splits.prepare(striped) == splits.prepared(own) == own
    monkeypatch.setattr(sys.modules[__name__], "SHIFT", 1)
    assert splits.prepare(striped).hash != own.hash
    assert splits.prepare(striped).data.partition(dataset.READ_BY)[0] == own.data.partition(dataset.READ_BY)[0]
    with pytest.raises(InputError, match=r"stripes is not what it was: here are .*; read by .*; asked for are"):
        splits.prepared(own)

    first = splits.prepare(photos, image_folders(tmp_path / "photos"))
    known = Timm.transform
    monkeypatch.setattr(Timm, "transform", lambda *given, **more: known(*given, **more) | {"crop_pct": 0.5})
    assert splits.prepare(photos).hash != first.hash


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_images": np.zeros((64, 16, 16), np.uint8)}, r"uint8 of the shape \(64, 1, 16, 16\)"),
        ({"train_images": np.zeros((63, 1, 16, 16), np.uint8)}, r"an image for each of train_labels"),
        ({"train_images": np.zeros((64, 1, 16, 16))}, "not float64"),
        ({"train_labels": np.full(64, 4)}, r"int64 in 0\.\.3"),
        ({"train_labels": np.zeros(0, np.int64)}, "an image for each"),
        ({"test_images": np.zeros((2, 1, 16, 16), np.uint8)}, "test_images"),
        ({"train_labels": np.arange(64) % 3}, "no train image is of class 3"),
        ({"valid_images": np.zeros((2, 1, 16, 16), np.uint8)}, "unknown array 'valid_images'"),
    ],
    ids=["flat", "too few", "floats", "a class too many", "no label", "no test label", "a class too few", "unknown"],
)
def test_arrays_that_cannot_be_used_are_refused(own_cache, tmp_path, changed, message) -> None:
    with pytest.raises(InputError, match=message):
        array_dataset(50).keep(stripes(50, tmp_path) | changed)


def test_a_directory_that_is_given_and_missing_is_no_reason_to_take_another(own_cache, tmp_path, monkeypatch) -> None:
    images, labels = np.zeros((20, 3, 32, 32), np.uint8), np.arange(20) % 10
    published.DATASETS["cifar10"].keep({"train_images": images, "train_labels": labels})
    monkeypatch.setattr("torchvision.datasets.CIFAR10.url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    splits.prepare(SCENARIOS["cifar10-resnet18"])
    with pytest.raises(InputError, match=r"CIFAR10 is not in .*nowhere"):
        splits.prepare(SCENARIOS["cifar10-resnet18"], tmp_path / "nowhere")


# Scenarios


def test_a_forget_set_is_a_set() -> None:
    digits = SCENARIOS["digits"]
    assert dataclasses.replace(digits, forget=digits.forget * 2).hash == digits.hash
    assert dataclasses.replace(digits, forget=(5, 3)) == dataclasses.replace(digits, forget=(3, 5))
    assert Confirmation(1, forget=((5, 3), (3, 5, 5), (1,))) == Confirmation(1, forget=((1,), (3, 5)))
    two = (("depth", 1), ("patch_size", 4))
    assert dataclasses.replace(digits, model_args=two[::-1]).hash == dataclasses.replace(digits, model_args=two).hash


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_a_scenario_comes_back_from_json(scenario) -> None:
    assert Scenario.from_dict(json.loads(json.dumps(scenario.as_dict()))) == scenario


SCRIPT = '''
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from raymu.cli import sweep_main
from raymu.method import Range, Step, tuned
from raymu.methods import salun
from raymu.protocol import Protocol
from raymu.scenario import SCENARIOS, Recipe
from raymu.tuning.sweep import Sweep

class Salun(salun.SalUn):
    """Keeps the name, and takes the weights that are least salient."""
    salient: float = tuned(0.2, Range(0.1, 0.9, "linear"), "share of the weights that may move")

    def unlearn(self, run) -> Iterator[Step]:
        kept = run.cached("saliency", lambda: {name: -values for name, values in salun.saliency(run).items()})
        run.train_only(salun.largest({name: kept[name] for name in run.weights()}, self.salient))
        yield from salun.RandomLabel.unlearn(self, run)

# The same name as raymu's, another training.
MINE = dataclasses.replace(SCENARIOS["digits"], recipe=Recipe(lr=0.05, epochs=3, batch_size=64))

def sweep() -> Sweep:
    return Sweep(method=Salun, scenario=MINE, protocol=Protocol(trials=3))

if __name__ == "__main__":
    sweep_main(sweep)
'''


@pytest.mark.long
def test_every_row_of_an_edited_scenario_and_method_can_be_made_again(raymu, tmp_path) -> None:
    (tmp_path / "mine.py").write_text(SCRIPT)
    swept = subprocess.run(
        [sys.executable, "mine.py", "--storage", "swept", "--range", "lr=1e-3:1e-1"],
        cwd=tmp_path, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert swept.returncode == 0, swept.stderr
    rows = reader.read_all(tmp_path / "swept")
    assert len(rows) == 3
    for row in rows:
        given = report.config(row) if row["source"] == "published" else row  # what a report shows of a row
        (tmp_path / "row.json").write_text(json.dumps(given))
        made = raymu("run", "mine.py", "--config", "row.json", "--out", "again")
        assert made.returncode == 0, made.stderr
        if row["status"] == "stopped":  # it holds accuracies of an epoch before its last
            assert f"was stopped after {row['epochs']} epochs" in made.stderr
            continue
        assert "may not be the row's figures" not in made.stderr
        again = json.loads((tmp_path / "again" / "row.json").read_text())
        assert {key: again[key] for key in row if key.endswith("_acc")} == {
            key: row[key] for key in row if key.endswith("_acc")
        }
    for command in (["run", "salun", "--config", "row.json"], ["export", "swept"]):  # raymu's own of that name
        refused = raymu(*command, "--out", "other")
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "salun is not the method that made the row" in refused.stderr
        assert not (tmp_path / "other").exists()
    exported = raymu("export", "swept", "--method", "mine.py", "--out", "other")
    assert exported.returncode == 0, exported.stderr
    best = selection.tuned(rows)
    assert json.loads((tmp_path / "other" / "row.json").read_text())["test_retain_acc"] == best["test_retain_acc"]
    shutil.rmtree(tmp_path / "other")
    changed = {**row, "scenario_fields": {**row["scenario_fields"], "val_share": 0.3}}
    (tmp_path / "row.json").write_text(json.dumps(changed))
    refused = raymu("run", "mine.py", "--config", "row.json", "--out", "other")
    assert refused.returncode == 2
    assert not (tmp_path / "other").exists()
    assert "the row was changed" in refused.stderr


CHANGED = {
    "forget": ({"forget": [3]}, "its forget is [3], in its scenario_fields [1, 3, 5, 8, 9]"),
    "model_seed": ({"model_seed": 4}, "its model_seed is 4"),
    "scenario": ({"scenario": "cifar10-resnet18"}, "its scenario is cifar10-resnet18"),
    "engine": ({"engine": "zero-x"}, "unknown engine 'zero-x'"),
    "no text": ({"engine": 3}, "unknown engine '3'"),
    "objective": ({"objective": ["hmean"]}, "unknown objective"),
    "method_code": ({"method_code": None}, "finetune is not the method that made the row"),
}
BY_HAND = {
    "a field that is none": ("sede: 7", "unknown field 'sede'; did you mean 'seed'?"),
    "a number given twice": ("seed: 1\nseed: 2", "says seed twice"),
    "classes that are none": ("forget: [12]", "12"),
    "both kinds": ("forget: [1]\nforget_share: 0.1", "not both"),
}


def refusal(path: Path) -> str:
    """Message of `raymu run finetune` for a config that it refuses."""
    done = CliRunner().invoke(app, ["run", "finetune", "--config", str(path), "--out", str(path.parent / "out")])
    assert isinstance(done.exception, InputError), done.output
    assert not (path.parent / "out").exists()
    return str(done.exception)


@pytest.mark.parametrize("case", CHANGED)
def test_a_row_that_contradicts_itself_is_refused(tmp_path, case) -> None:
    change, said = CHANGED[case]
    scenario, finetune = splits.prepare(SCENARIOS["digits"]), methods.get("finetune")()
    whole = blank_row(scenario, finetune, seed=0, objective=HMEAN, options=engines.DEFAULTS)
    (tmp_path / "row.json").write_text(json.dumps(whole | change))
    assert said in refusal(tmp_path / "row.json")


@pytest.mark.parametrize("case", BY_HAND)
def test_a_config_by_hand_says_nothing_that_is_not_read(tmp_path, case) -> None:
    text, said = BY_HAND[case]
    (tmp_path / "hand.yaml").write_text(f"{text}\nconfig: {{lr: 0.001, epochs: 1}}\n")
    assert said in refusal(tmp_path / "hand.yaml")


def test_a_config_by_hand_says_what_is_forgotten() -> None:
    assert study.scenario_of({"forget": [3, 1], "config": {}}).forget == (1, 3)
    sampled = study.scenario_of({"scenario": "digits", "forget_share": 0.1, "model_seed": 5})
    assert (sampled.forget, sampled.forget_share, sampled.model_seed) == ((), 0.1, 5)


# Code


class Least(Method):
    """A method that keeps something under a name that others use as well."""

    paper: ClassVar[str] = "nobody"
    lr: float = tuned(1e-3, Range(1e-5, 1e-1, "log"), "learning rate")
    epochs: int = tuned(1, Range(1, 5, "int"), "epochs")
    kept: ClassVar[list[float]] = []

    def value(self) -> float:
        return 1.0

    def unlearn(self, run):
        self.kept.append(run.cached("saliency", lambda: {"value": torch.tensor(self.value())})["value"].item())
        for _ in run.epochs(self.epochs, self.lr):
            for batch in run.batches("train"):
                yield cross_entropy(run.model(batch.images), batch.labels)


def edited() -> type[Method]:
    """The same name, fields and wording, another body."""

    class Least(globals()["Least"]):
        def value(self) -> float:
            return 2.0

    return Least


def test_what_a_method_keeps_is_known_by_its_code(striped) -> None:
    assert edited().name() == Least.name() == "least"
    for one in (Least, edited(), Least):
        row, _ = run_trial(striped, one(), seed=0)
        assert row["status"] == "completed", row["traceback"]
    assert Least.kept == [1.0, 2.0, 1.0]


REPLACED: dict[str, tuple[object, str, Callable]] = {
    "labels": (pytorch.Engine, "random_labels", lambda engine, batch: batch.labels),
    "clipping": (pytorch, "clipping", lambda norm, length: length),
    "sharded": (source, "text_of", lambda module: "edited"),
}


@pytest.mark.parametrize("edit", REPLACED)
def test_the_code_that_carries_a_method_out_is_part_of_it(monkeypatch, edit) -> None:
    before = code_of(RandomLabel)
    source.read_anew()
    assert code_of(RandomLabel) == before
    source.read_anew()
    monkeypatch.setattr(*REPLACED[edit])
    assert code_of(RandomLabel) != before
    source.read_anew()  # the other tests are of what is there


def test_an_edited_file_of_a_method_is_another_method(tmp_path) -> None:
    original = Path(methods.get("salun").__module__.replace(".", "/") + ".py")
    text = (Path(raymu.__file__).parent.parent / original).read_text()
    digests = {}
    for name, change in {
        "same": ("", ""),
        "comment": ("\ndef saliency(", "\n# a comment\n\ndef saliency("),
        "docstring": ('"""How much the', '"""By how much the'),
        "helper": ("largest(", "smallest("),
        "body": ("descending=True", "descending=False"),
    }.items():
        assert change[0] in text
        (tmp_path / name).mkdir()
        (tmp_path / name / "salun.py").write_text(text.replace(*change))
        digests[name] = code_of(methods.get(str(tmp_path / name / "salun.py")))
    assert digests["same"] == digests["comment"] == digests["docstring"]
    assert len({digests["same"], digests["helper"], digests["body"]}) == 3


def test_a_file_of_a_method_imports_what_lies_beside_it(tmp_path, monkeypatch) -> None:
    """As where Python runs it."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "beside_it.py").write_text("EPOCHS = 3\n")
    (tmp_path / "own.py").write_text(
        "from dataclasses import dataclass\n"
        "from beside_it import EPOCHS\n"
        "from raymu.methods.finetune import Finetune\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Own(Finetune):\n"
        "    def unlearn(self, run):\n"
        "        return EPOCHS\n"
    )
    assert methods.get(str(tmp_path / "own.py"))().unlearn(None) == 3


LIMIT = 3
LIMITS = {"a": [1, 2]}


def helper() -> int:
    return LIMIT + len(LIMITS)


@dataclass
class Settings:
    """What code may keep its numbers in."""

    beta: float = 1.0


SETTINGS = Settings()
TABLE = np.arange(3)
WEIGHTS = torch.zeros(2)
IN_A_LINE = {
    "a": lambda: 1,
}


class Uses:
    """What calls other code."""

    def work(self) -> float:
        from helper_of_a_test import scale

        return scale(helper() * SETTINGS.beta + TABLE.sum() + WEIGHTS.sum() + IN_A_LINE["a"]())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LIMIT", 4),
        ("LIMITS", {"a": [1, 3]}),
        ("helper", lambda: LIMIT),
        ("SETTINGS", Settings(2.0)),
        ("TABLE", np.arange(4)),
        ("WEIGHTS", torch.ones(2)),
        ("IN_A_LINE", {"a": lambda: 2}),
    ],
    ids=["number", "dict", "function", "instance", "array", "tensor", "lambda"],
)
def test_a_digest_covers_what_the_code_reaches(monkeypatch, tmp_path, name, value) -> None:
    (tmp_path / "helper_of_a_test.py").write_text("def scale(value):\n    return value\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "helper_of_a_test", raising=False)
    before = source.digest(Uses)
    assert source.digest(Uses) == before
    monkeypatch.setattr(sys.modules[__name__], name, value)
    assert source.digest(Uses) != before


HELPER = "VALUE = {V}\nTABLE = {{'a': {V}}}\ndef f():\n    return {V}\n"
EDITS = {
    "values swapped in a dict": "X = {{'a': {V}, 'b': 3 - {V}}}\ndef work():\n    return X['a']",
    "order of a list": "X = [{V}, 3 - {V}]\ndef work():\n    return X[0]",
    "length of a tuple": "X = (1,) * {V}\ndef work():\n    return sum(X)",
    "functions swapped in a table": (
        "def g(): return 1\ndef h(): return 2\n"
        "X = {{'p': (g, h)[{V} - 1], 'q': (h, g)[{V} - 1]}}\ndef work():\n    return X['p']()"
    ),
    "default of a closure": "def make(w):\n    return lambda row, w=w: w\nwork = make({V})",
    "keyword default": "def make(w):\n    def f(*, w=w):\n        return w\n    return f\nwork = make({V})",
    "attribute of a function": "def work():\n    return work.w\nwork.w = {V}",
    "one of two lambdas in a line": "work = (lambda: 1, lambda: 2)[{V} - 1]",
    "class of a closure": "def make(w):\n    class C:\n        def f(self): return w\n    return C\nwork = make({V})",
    "slots": "class C:\n    __slots__ = ('w',)\nX = C()\nX.w = {V}\ndef work():\n    return X.w",
    "Fraction": "from fractions import Fraction\nX = Fraction({V}, 7)\ndef work():\n    return X",
    "deque": "from collections import deque\nX = deque([{V}])\ndef work():\n    return X",
    "range": "X = range({V})\ndef work():\n    return X",
    "itemgetter": "import operator\nX = operator.itemgetter({V})\ndef work(row):\n    return X(row)",
    "module of torch": "import torch\nX = torch.nn.Dropout({V} / 10)\ndef work():\n    return X",
    "object of scikit-learn": (
        "from sklearn.linear_model import Ridge\nX = Ridge(alpha={V})\ndef work():\n    return X.alpha"
    ),
    "import inside": "def work():\n    import helper_of_a_test as h\n    return h.f()",
    "from inside": "def work():\n    from helper_of_a_test import f\n    return f()",
    "import_module": "import importlib\ndef work():\n    return importlib.import_module('helper_of_a_test').f()",
    "getattr": "import helper_of_a_test\ndef work():\n    return getattr(helper_of_a_test, 'f')()",
    "passed on": "import helper_of_a_test\ndef g(m): return m.f()\ndef work():\n    return g(helper_of_a_test)",
    "lambda in lines": "import helper_of_a_test\nX = {{\n    'a': lambda: helper_of_a_test.f(),\n}}\nwork = X['a']",
    "given to a class": "import helper_of_a_test\nclass work:\n    def f(self): pass\nwork.T = helper_of_a_test.TABLE",
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_digest_knows_each_value_by_its_place(monkeypatch, tmp_path, edit) -> None:
    digests = []
    monkeypatch.delitem(sys.modules, "helper_of_a_test", raising=False)  # of another test
    for number, value in enumerate((1, 2, 1)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "helper_of_a_test.py").write_text(HELPER.format(V=value))
        (folder / "own_of_a_test.py").write_text(EDITS[edit].format(V=value))
        with monkeypatch.context() as context:
            context.syspath_prepend(folder)
            digests.append(source.digest(importlib.import_module("own_of_a_test").work))
        for name in ("helper_of_a_test", "own_of_a_test"):
            sys.modules.pop(name, None)
    assert digests[0] == digests[2] != digests[1]


@pytest.mark.long
def test_what_differs_from_process_to_process_changes_no_digest(tmp_path) -> None:
    text = (
        "import os, random, threading\nfrom rich.console import Console\n"
        "LOCK, RANDOM = threading.Lock(), random.Random()\n"
        "CONSOLE, ENVIRONMENT = Console(), os.environ\ndef work():\n    return LOCK, RANDOM, CONSOLE, ENVIRONMENT\n"
    )
    (tmp_path / "own_of_a_test.py").write_text(text)
    say = "from raymu import reference_models, source, training; from raymu.data.published import DATASETS; "
    say += "import own_of_a_test as o; DATASETS['mine'] = o; "
    say += "print(source.digest(o.work), reference_models.evaluation_code(), source.digest(training.fit))"
    printed = {
        subprocess.run(
            [sys.executable, "-c", before + say], cwd=tmp_path, capture_output=True, text=True, check=True,
            env={**os.environ, "ONE_MORE": before},
        ).stdout
        for before in ("", "import raymu.cli, raymu.tuning.driver; ")
    }  # fmt: skip
    assert len(printed) == 1


def test_packages_of_another_environment_are_no_code_of_the_users(tmp_path, monkeypatch) -> None:
    package = tmp_path / "lib" / "site-packages" / "package_of_a_test"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from ._parts import f\n")
    (package / "_parts.py").write_text("def f(): return 1\n")
    monkeypatch.syspath_prepend(package.parent)
    assert not modules.is_own("package_of_a_test")
    assert not modules.is_own("package_of_a_test._parts")
    (tmp_path / "own_package_of_a_test").mkdir()
    (tmp_path / "own_package_of_a_test" / "part.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert modules.is_own("own_package_of_a_test.part")


def test_a_dataset_that_is_registered_changes_no_reference(striped, monkeypatch) -> None:
    before = reference_models.entry_of(splits.prepare(striped), "original")
    monkeypatch.setitem(published.DATASETS, "another", published.DATASETS["digits"])
    assert reference_models.entry_of(splits.prepare(striped), "original") == before


def test_images_that_are_normalised_otherwise_train_other_references(striped, monkeypatch) -> None:
    before = reference_models.entry_of(splits.prepare(striped), "original")
    changed = dataclasses.replace(published.DATASETS[striped.dataset], mean=(0.1,))
    monkeypatch.setitem(published.DATASETS, striped.dataset, changed)
    assert reference_models.entry_of(splits.prepare(striped), "original") != before


def test_what_a_program_fills_while_it_runs_changes_no_digest() -> None:
    kept: list[int] = []

    def fills() -> None:
        kept.append(1)

    before = source.digest(fills)
    fills()
    assert source.digest(fills) == before


def test_code_and_values_are_looked_at_anew_before_every_trial() -> None:
    """In one process, as a notebook or a loop in a script is: constants, attributes of a class, mutable globals."""
    scope = {"FACTOR": 1.0, "WEIGHTS": {"w": 0.5}}

    class Own(RandomLabel):
        """One of the user's."""

        STRENGTH: ClassVar[float] = 1.0

        def unlearn(self, run):
            return scope["FACTOR"] * scope["WEIGHTS"]["w"] * self.STRENGTH

    def digest() -> str:
        source.read_anew()
        return code_of(Own)

    seen = [digest(), digest()]
    assert seen[0] == seen[1]
    for change in (
        lambda: scope.update(FACTOR=2.0),
        lambda: scope["WEIGHTS"].update(w=0.6),
        lambda: setattr(Own, "STRENGTH", 2.0),
        lambda: setattr(Own, "total_epochs", 3),
    ):
        change()
        assert digest() not in seen
        seen.append(digest())


def test_a_worker_looks_once_a_sweep(monkeypatch) -> None:
    """A container that a trial fills changes no digest for the next one."""
    monkeypatch.setattr(source, "_sweep", "")
    kept: list[int] = []

    def fills() -> None:
        kept.append(1)

    source.read_anew("one")
    before = source.digest(fills)
    fills()
    for again in ("one", ""):
        source.read_anew(again)
        assert source.digest(fills) == before
    source.read_anew("two")
    assert source.digest(fills) != before


def test_code_that_nobody_can_read_is_this_process_s_own(monkeypatch) -> None:
    """Known again, so that what it left behind is found, but neither a second definition nor another process's."""
    shell = types.ModuleType("shell")
    monkeypatch.setitem(sys.modules, "shell", shell)
    scope = vars(shell)
    scope["used"] = 1
    typed = "class Typed:\n    held = 1\n    def unseen(self): return used\n"
    exec(typed, scope)
    first = scope["Typed"]
    assert source.digest(first) == source.digest(first)
    before, scope["used"] = source.digest(first), 2
    assert source.digest(first) != before
    before, first.held = source.digest(first), 2
    assert source.digest(first) != before
    before, first.unseen = source.digest(first), lambda self: 1
    assert source.digest(first) != before
    exec(typed, scope)
    assert source.digest(scope["Typed"]) != source.digest(first)
    ask = f"exec({typed!r}); from raymu import source; print(source.digest(Typed))"
    said = [subprocess.run([sys.executable, "-c", ask], capture_output=True, check=True).stdout for _ in range(2)]
    assert said[0] != said[1]


def test_metrics_of_other_code_are_computed_anew_for_the_references_too(striped, monkeypatch) -> None:
    before, _ = run_trial(striped, RandomLabel(lr=1e-3, epochs=1), seed=0)
    weights = reference_models.entry_of(splits.prepare(striped), "original") / reference_models.WEIGHTS
    trained_ns = weights.stat().st_mtime_ns
    monkeypatch.setattr(sys.modules["raymu.evaluation.metrics"], "nc4", lambda own, ncc, workers: 0.75)
    reference_models.release()
    after, _ = run_trial(striped, RandomLabel(lr=1e-3, epochs=1), seed=0)
    assert (after["val_nc4"], after["val_nc4_gap"]) == (0.75, 0.0)
    assert before["evaluation_code"] != after["evaluation_code"]
    assert before["val_retain_acc"] == after["val_retain_acc"]
    assert weights.stat().st_mtime_ns == trained_ns


# Rows and models


def row(trial: int, **more) -> dict:
    of_sweep = {"trial": trial, "trial_id": f"s-{trial}", "source": "search", "confirms": None, "method": "finetune"}
    made_from = {"model_seed": 0, "seed": 0, "forget": [8], "forget_share": 0.0}
    return (
        of_sweep
        | made_from
        | {
            "status": "completed",
            "score": 0.5,
            "scenario_hash": "s",
            "objective": "hmean",
            "config": {"lr": 0.1},
            **more,
        }
    )


@pytest.mark.long
def test_a_digit_that_changed_in_a_row_is_found(raymu, tmp_path) -> None:
    with writer.Store(locate(tmp_path / "s"), asked(), resume=False) as rows:
        rows.append(row(0, note='a quote: "checksum": "'))
        rows.append(row(1))
        rows.put(files.REFERENCES, {"s": {"original": {"val_retain_acc": 0.9}}})
        rows.put(files.FEATURES, {"labels": [], "forget": []})
    assert reader.read(tmp_path / "s") == [row(0, note='a quote: "checksum": "'), row(1)]
    (loaded,) = reader.load(tmp_path / "s")
    assert loaded.references == {"s": {"original": {"val_retain_acc": 0.9}}}
    path = tmp_path / "s" / files.ROWS
    lines = path.read_text().splitlines(keepends=True)
    damages: list[tuple[str, Callable[[], object]]] = [
        ("line 2 of rows.jsonl", lambda: path.write_text(lines[0] + lines[1].replace("0.5", "0.6"))),
        ("line 1 of rows.jsonl", lambda: path.write_text(json.dumps(row(0)) + "\n" + lines[1])),
        ("line 1 of rows.jsonl", lambda: path.write_text(json.dumps(row(0, scenario_fields={})) + "\n")),
        ("line 2 of rows.jsonl", lambda: path.write_text(lines[0] + "[]\n")),
    ]
    for shown, damage in damages:
        damage()
        printed = raymu("best", "s")
        assert printed.returncode == 2
        assert f"{shown} is damaged" in printed.stderr
    path.write_text("".join(lines))
    for name in (files.SWEEP, files.REFERENCES):
        content = (tmp_path / "s" / name).read_text()
        changed = content.replace("0.9", "0.8").replace('"trials": 2', '"trials": 3')
        unsealed = {key: value for key, value in json.loads(content).items() if key != "checksum"}
        for damaged in (changed, json.dumps(unsealed)):
            (tmp_path / "s" / name).write_text(damaged)
            printed = raymu("report", "s")
            assert printed.returncode == 2
            assert f"{name} is damaged" in printed.stderr
        (tmp_path / "s" / name).write_text(content)


@pytest.mark.long
def test_nothing_of_another_sweep_passes_for_a_sweeps_own(raymu, tmp_path) -> None:
    """As where two searches over other ranges of one method were put into one directory."""
    for name in ("narrow", "wide"):
        space = {"lr": {"low": 0.01, "high": 0.1 if name == "narrow" else 1.0, "scale": "log"}}
        with writer.Store(locate(tmp_path / name), asked() | {"space": space}, resume=False) as one:
            one.append(row(0, sweep=name))
            one.put(files.REFERENCES, {})
    narrow, wide = tmp_path / "narrow", tmp_path / "wide"
    stranger, own = (wide / files.ROWS).read_bytes(), (narrow / files.ROWS).read_bytes()
    for said, name, content in (
        ("line 1 of rows.jsonl", files.ROWS, stranger + own),
        ("line 2 of rows.jsonl", files.ROWS, own + stranger),
        ("line 1 of rows-00000-0123456789ab.jsonl", "rows-00000-0123456789ab.jsonl", stranger),
        ("references.json", files.REFERENCES, (wide / files.REFERENCES).read_bytes()),
    ):
        before = (narrow / name).read_bytes() if (narrow / name).exists() else None
        (narrow / name).write_bytes(content)
        for command in ("results", "best"):
            printed = raymu(command, "narrow")
            assert printed.returncode == 2
            assert f"{said} is damaged (its checksum does not fit: it was changed, or is of another" in printed.stderr
        (narrow / name).write_bytes(before) if before else (narrow / name).unlink()
    (wide / files.SWEEP).unlink()
    assert "wide has rows, but no sweep.json" in raymu("results", ".").stderr
    with pytest.raises(InputError, match=r"there are rows, but no sweep\.json"):
        writer.Store(locate(wide), asked(), resume=True)


def test_nothing_of_an_original_is_used_for_another(striped) -> None:
    """Its entry is replaced as a whole, hashes included, as where it was trained elsewhere."""
    scenario = splits.prepare(striped)
    before, _ = run_trial(scenario, methods.get("salun")(lr=1e-3, epochs=1), seed=0)
    entry = reference_models.entry_of(scenario, "original")
    other = dataclasses.replace(scenario, model_seed=1)
    shutil.rmtree(entry)
    shutil.copytree(reference_models.train(other, "original"), entry)
    said = cache.load_json(entry / cache.HASHES)
    cache.save_json(entry / cache.HASHES, said | {cache.ENTRY: str(entry.relative_to(cache.root()))})
    reference_models.release()
    after, _ = run_trial(scenario, methods.get("salun")(lr=1e-3, epochs=1), seed=0)
    expected = cache.load_tensors(entry / reference_models.WEIGHTS, CPU)
    assert torch.equal(reference_models.load(scenario, CPU).original["fc.weight"], expected["fc.weight"])
    assert (
        after["original_weights"] == reference_models.weights_digest(scenario, "original") != before["original_weights"]
    )
    assert len(list(reference_models.directory(scenario).glob("computed-*"))) == 2
    with pytest.raises(InputError, match="original_weights"):
        selection.tuned([{**one, "source": "search", "trial": 0, "protocol_hash": "p"} for one in (before, after)])


@pytest.mark.long
def test_a_run_leaves_nothing_of_the_run_before(raymu, tmp_path) -> None:
    (tmp_path / "good.yaml").write_text("config: {lr: 0.001, epochs: 1}")
    (tmp_path / "bad.yaml").write_text("config: {lr: 1.0e+30, epochs: 1}")
    assert raymu("run", "finetune", "--config", "good.yaml", "--out", "out").returncode == 0
    assert (tmp_path / "out" / "model.safetensors").exists()
    printed = raymu("run", "finetune", "--config", "bad.yaml", "--out", "out")
    assert printed.returncode == 1
    assert "there is no model" in printed.stderr
    assert "model" not in printed.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["hashes.json", "row.json"]
    assert json.loads((tmp_path / "out" / "row.json").read_text())["status"] == "diverged"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    (tmp_path / "mine" / "row.json").write_text("{}")
    printed = raymu("run", "finetune", "--config", "good.yaml", "--out", "mine")
    assert (printed.returncode, (tmp_path / "mine" / "README.md").read_text()) == (2, "mine")


# What references start from, and what scores are


ACTIVATION: type[torch.nn.Module] = torch.nn.ReLU
SHIFT = 0  # of the labels


def test_an_edited_architecture_of_ones_own_has_references_of_its_own(striped, tmp_path, monkeypatch) -> None:
    file = tmp_path / "body.pt"

    class Tiny(torch.nn.Module):
        def __init__(self, num_classes: int, in_chans: int) -> None:
            super().__init__()
            self.body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256 * in_chans, 8), ACTIVATION())
            self.fc = torch.nn.Linear(8, num_classes)
            if file.exists():
                self.body.load_state_dict(torch.load(file))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.fc(self.body(images))

        def get_classifier(self) -> torch.nn.Module:
            return self.fc

    def tiny_of_a_test(pretrained: bool = False, **given) -> torch.nn.Module:
        return Tiny(given["num_classes"], given["in_chans"])

    registered = sys.modules["timm.models._registry"]
    monkeypatch.setitem(registered._model_entrypoints, "tiny_of_a_test", tiny_of_a_test)
    scenario = splits.prepare(dataclasses.replace(striped, architecture="tiny_of_a_test"))
    before = reference_models.entry_of(scenario, "original")
    assert reference_models.entry_of(scenario, "original") == before
    monkeypatch.setattr(sys.modules[__name__], "ACTIVATION", torch.nn.Tanh)
    seen = [before, reference_models.entry_of(scenario, "original")]
    assert seen[0] != seen[1]
    for seed in (1, 2, 1):
        body = Tiny(4, 1).body
        body.load_state_dict({name: torch.full_like(weight, seed) for name, weight in body.state_dict().items()})
        torch.save(body.state_dict(), file)
        source.read_anew()
        seen.append(reference_models.entry_of(scenario, "original"))
    assert len(set(seen)) == 4
    assert seen[2] == seen[4]


def test_a_program_that_changed_torchs_defaults_is_refused(striped, monkeypatch) -> None:
    """References in float64 would lie in the cache for all."""
    monkeypatch.setattr(torch, "get_default_dtype", lambda: torch.float64)
    with pytest.raises(InputError, match=r"torch's defaults are torch\.float64 on cpu: raymu needs float32"):
        reference_models.train(striped, "original")


class Weighted:
    """A score with a knob."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, retain_acc: float) -> float:
        return self.weight * retain_acc


def test_an_objective_that_is_an_object_is_known_by_its_state() -> None:
    codes = [Objective(Weighted(weight), name="mine").code() for weight in (1.0, 0.25, 1.0)]
    assert codes[0] == codes[2] != codes[1]


@pytest.mark.parametrize("score", [7.5, -1.1, None, float("nan"), True, "0.5"])
def test_a_score_is_a_number_up_to_1(score) -> None:
    with pytest.raises(ValueError, match="objective mine has to return a number from -1 to 1"):
        Objective(lambda: score, name="mine").of({}, {})


def test_an_objective_reads_the_columns_that_it_names() -> None:
    """None of another split: a search does not see test."""
    both = Objective(lambda retain_acc, train_nc1: retain_acc * train_nc1, name="both")
    row = {"val_retain_acc": 0.5, "test_retain_acc": 0.25, "train_nc1": 1.0, "val_nc4": None}
    assert (both.of(row, {}), both.of(row, {}, "test")) == (0.5, 0.25)
    with pytest.raises(ValueError, match="reads nc4, which is not defined here"):
        Objective(lambda nc4: nc4, name="undefined").of(row, {})


@pytest.mark.parametrize(
    ("score", "scheduler", "message"),
    [
        (lambda test_retain_acc: 1.0, "none", "mine reads test_retain_acc, which is not measured in a trial"),
        (lambda mia_auc: 1.0, "asha", "mine reads mia_auc, which is not measured while a trial runs: --scheduler none"),
        (lambda **row: 1.0, "none", "its parameters are what it asks for, by name"),
    ],
)
def test_an_objective_that_cannot_be_computed_is_refused_before_anything_is(quick, score, scheduler, message) -> None:
    with pytest.raises(InputError, match=message):
        Sweep(
            RandomLabel, quick, Protocol(2, scheduler=scheduler, objective=Objective(score, name="mine"))
        ).check_protocol()


def test_epochs_are_searched_where_no_rung_has_the_objective(quick) -> None:
    def sweep(objective: Objective) -> Sweep:
        return Sweep(RandomLabel, quick, Protocol(searcher="gp", scheduler="none", objective=objective))

    chooses, searches = sweep(HMEAN), sweep(Objective(lambda mia_auc: mia_auc, name="mine"))
    searches.check_protocol()
    assert "epochs" not in chooses.suggested
    assert searches.suggested == searches.ranges
    assert chooses.rungs(RandomLabel(epochs=9)) == list(range(1, 10))
    assert searches.rungs(RandomLabel(epochs=9)) == []


def test_an_objective_is_known_by_its_code() -> None:
    before = HMEAN.code()
    assert Objective(lambda retain_acc: 1.0, name="hmean").code() != before
    scored = {"source": "search", "protocol_hash": "p"}
    with pytest.raises(InputError, match="objective_code"):
        selection.tuned([row(0, objective_code=before, **scored), row(1, objective_code="other", **scored)])
