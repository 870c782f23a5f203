"""docs/extending.md to the letter, and what else users try in a script of their own."""

import ast
import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from PIL import Image

import raymu
from raymu import plugins
from raymu.cli import listing
from raymu.errors import InputError
from raymu.evaluation.metrics import get as get_metric
from raymu.method import Method, Range, tuned
from raymu.methods import get, names
from raymu.methods.salun import SalUn
from raymu.objective import get as get_objective
from raymu.results import reader
from raymu.scenarios import get as get_scenario

PAGE = (REPOSITORY / "docs" / "extending.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def shell(command: str, where: Path) -> str:
    """What a command prints; a Python script runs in this environment."""
    raymu = f"{sys.executable} -m raymu"
    command = re.sub(r"^raymu ", f"{raymu} ", command)
    command = re.sub(r"^python ", f"{sys.executable} ", command)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, shell=True, cwd=where, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def write_shapes(root: Path) -> None:
    """Grey images with one, two or three bright bars."""
    random = np.random.default_rng(0)
    for part, count in (("train", 40), ("val", 12)):
        for label, name in enumerate(("bar", "gate", "fork")):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 90, (32, 32, 3), dtype=np.uint8)
                pixels[:, 4 : 4 + 10 * (label + 1) : 10] = 250
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")


DIGITS = raymu.SCENARIOS["digits"]


def one(head):
    return 1.0


def positional(head, /):
    return 1.0


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_the_page_works_as_it_stands(tmp_path) -> None:
    write_shapes(tmp_path / "photos")
    (tmp_path / "own.py").write_text("\n\n".join(blocks("python")))
    (commands,) = blocks("sh")
    for command in commands.splitlines():
        shell(command, tmp_path)
    rows = reader.read_all(tmp_path / "swept")
    assert sorted((row["method"], row["trial"]) for row in rows) == [
        (method, trial) for method in ("npo", "random_label") for trial in range(3)
    ]
    assert {row["status"] for row in rows} <= {"completed", "stopped"}
    assert all(row["objective"] == "tow" and 0 <= row["val_confidence"] <= 1 for row in rows)
    assert all(0 <= row["test_confidence"] <= 1 for row in rows if row["status"] == "completed")
    for out in ("again", "model"):
        assert (tmp_path / out / "model.safetensors").exists()
    again = json.loads((tmp_path / "again" / "row.json").read_text())
    assert again["test_confidence"] in [row["test_confidence"] for row in rows]
    report = (tmp_path / "report.html").read_text()
    assert "npo" in report
    assert '<th scope="col">confidence</th>' in report


REGISTERED = """
import timm
from raymu.data import published
from timm.models import register_model
from torch import nn

import raymu
from raymu.methods.finetune import Finetune


@register_model
def my_network(pretrained=False, num_classes=10, in_chans=1, **rest):
    return nn.Sequential(nn.Flatten(), nn.Linear(256 * in_chans, 8), nn.ReLU(), nn.Linear(8, num_classes))


def read(directory):
    arrays = published.DATASETS["digits"].read(directory)
    return {name: array[:600] for name, array in arrays.items()}


published.DATASETS["mine"] = raymu.ArrayDataset("mine", 10, 1, 16, (0.3,), (0.3,), read)
MINE = raymu.Scenario(
    "mine", "mine", "my_network", raymu.Recipe(0.05, 1, batch_size=64), (8,), val_share=0.35, test_share=0.35
)
raymu.sweep_main(lambda: raymu.Sweep(Finetune, MINE, raymu.Protocol(trials=2, scheduler="none")))
"""


@pytest.mark.long
def test_what_a_script_registers_under_a_name_travels(tmp_path) -> None:
    """With timm, and among raymu's datasets: workers do not run the script."""
    (tmp_path / "mine.py").write_text(REGISTERED)
    shell("python mine.py --storage swept --name finetune --anyway", tmp_path)
    assert [row["status"] for row in reader.read(tmp_path / "swept" / "finetune")] == ["completed"] * 2


PACKAGE = """
import raymu

class Still(raymu.Method):
    paper = "none"
    lr: float = raymu.tuned(1e-3, raymu.Range(1e-4, 1e-1, "log"), "unused")

NUMBER = 3
SCENARIO = raymu.Scenario("packed", "digits", "test_resnet", raymu.Recipe(0.05, 1), (3,), val_share=0.3, test_share=0.3)
"""


def test_a_package_brings_things_by_entry_points(tmp_path, monkeypatch, capsys, caplog) -> None:
    pytest.importorskip("importlib_metadata")  # once imported, as mlflow does, entry points are found as its class
    (tmp_path / "package_that_brings.py").write_text(PACKAGE)
    metadata = tmp_path / "package_that_brings-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: package-that-brings\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(
        "[raymu.methods]\nstill = package_that_brings:Still\nsalun = package_that_brings:Still\n"
        "broken = package_that_brings:Missing\n"
        "number = package_that_brings:NUMBER\nother = package_that_brings\nbare = json\n"
        "[raymu.scenarios]\npacked = package_that_brings:SCENARIO\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert "still" in names()
    assert "left out: package_that_brings:Still of raymu.methods has the name of raymu's own salun" in caplog.text
    assert get("still").name() == "still"
    assert get_scenario("packed").forget == (3,)
    with pytest.raises(InputError, match=r"method broken .* cannot be loaded: AttributeError"):
        get("broken")
    with pytest.raises(InputError, match=r"method number .* is no Method, but 3"):
        get("number")
    with pytest.raises(InputError, match=r"method other .* has the name still: the entry point has to be called so"):
        get("other")
    with pytest.raises(InputError, match=r"method bare .* has the name -"):
        get("bare")
    listing.methods()
    said = capsys.readouterr()
    assert "still" in said.out
    assert "left out: method broken" in said.err


def test_a_file_with_several_things_asks_for_a_name(tmp_path) -> None:
    path = tmp_path / "two.py"
    path.write_text(PACKAGE + "class Other(Still):\n    pass\n")
    with pytest.raises(InputError, match=r"two.py defines the methods still, other; name one as .*two.py:NAME"):
        get(str(path))
    assert get(f"{path}:other").name() == "other"
    assert get_scenario(str(path)).name == "packed"
    assert plugins.find(Method, "still", {}) is get(f"{path}:still")  # by its name alone, once the file is loaded


def test_a_file_defines_what_it_makes_itself_and_each_name_once(tmp_path) -> None:
    path = tmp_path / "objectives.py"
    path.write_text("import raymu\nfrom raymu.objective import HMEAN\nOWN = raymu.Objective(lambda nc1: 0.5, 'own')\n")
    assert get_objective(str(path)).name == "own"
    path = tmp_path / "metrics.py"
    path.write_text("import raymu\na, b = (raymu.Metric(lambda head, x=x: x, 'same') for x in (1, 2))\n")
    with pytest.raises(InputError, match=r"metric same: unknown parameter 'x'"):
        get_metric(str(path))
    path = tmp_path / "twice.py"
    path.write_text(
        "import raymu\na = raymu.Metric(lambda head: 1, 'same')\nb = raymu.Metric(lambda head: 2, 'same')\n"
    )
    with pytest.raises(InputError, match=r"twice.py defines two metrics same"):
        get_metric(str(path))
    path = tmp_path / "ends.py"
    path.write_text("raise SystemExit(3)\n")
    with pytest.raises(InputError, match=r"ends.py cannot be run: SystemExit: 3"):
        get_metric(str(path))


FILE = """
from torch.nn.functional import cross_entropy

import raymu


def helped(head):
    return float(head.norm())


class Mine(raymu.Method):
    lr: float = raymu.tuned(1e-3, raymu.Range(1e-4, 1e-1, "log"), "learning rate")

    def unlearn(self, run):
        for _ in run.epochs(1, self.lr):
            for batch in run.batches("retain"):
                yield cross_entropy(run.model(batch.images), batch.labels)

    @property
    def total_epochs(self):
        return 1


LENGTH = raymu.Metric(lambda head: helped(head), "length")
KEEP = raymu.Objective(lambda retain_acc: retain_acc, "keep")
"""


@pytest.mark.long
def test_what_a_file_defines_can_be_swept_by_the_command_line(tmp_path) -> None:
    """Workers do not have the file as a module."""
    (tmp_path / "mine.py").write_text(FILE)
    shell("raymu sweep mine.py --metric mine.py --objective mine.py --trials 2 --scheduler none --storage s", tmp_path)
    rows = reader.read(tmp_path / "s" / "mine-keep")
    assert [row["status"] for row in rows] == ["completed"] * 2
    assert all(row["train_length"] > 0 and row["score"] == row["val_retain_acc"] for row in rows)


TYPED = """
import raymu, torch
from torch import nn
from raymu.methods.finetune import Finetune
class Mine(raymu.Architecture):
    name = "mine"
    def build(self, num_classes, shape):
        return nn.Sequential(nn.Flatten(), nn.Linear(256 * shape[0], 8), nn.ReLU(), nn.Linear(8, num_classes))
length = raymu.Metric(lambda head: float(head.norm()), "length")
recipe = raymu.Recipe(0.05, 1, batch_size=64)
mine = raymu.Scenario("mine", "digits", Mine(), recipe, (8,), val_share=0.3, test_share=0.3)
row, _ = raymu.Trial(Finetune(epochs=1), mine, metrics=(length,)).run()
again, _ = raymu.Trial.of(row).run()
assert again["status"] == "completed", again["traceback"]
assert again["score"] == row["score"] and again["train_length"] == row["train_length"]
"""


@pytest.mark.long
def test_what_is_typed_into_a_shell_works_and_is_found_again(tmp_path) -> None:
    done = subprocess.run([sys.executable, "-"], input=TYPED, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: raymu.Sweep("salun", DIGITS), "a method is a class"),
        (lambda: raymu.Sweep(Method, DIGITS), "with an unlearn of its own"),
        (lambda: raymu.Sweep(SalUn(), DIGITS), "a method is a class"),
        (lambda: raymu.Sweep(SalUn, "digits"), "a scenario is a raymu.Scenario"),
        (lambda: raymu.Sweep(SalUn, DIGITS, {"trials": 2}), "a protocol is a raymu.Protocol"),
        (lambda: raymu.Trial(SalUn, DIGITS), "a trial's method is one at a setting"),
        (lambda: raymu.Trial(SalUn(), "digits"), "a scenario is a raymu.Scenario"),
        (lambda: raymu.Trial(SalUn(), DIGITS, objective="hmean"), "an objective is a raymu.Objective"),
        (lambda: raymu.Trial(SalUn(), DIGITS, metrics=(len,)), "a metric is a raymu.Metric"),
        (lambda: raymu.Trial(SalUn(), DIGITS, metrics=(raymu.Metric(one, "nc4"),)), "two metrics nc4"),
        (lambda: raymu.evaluate(torch.nn.Linear(1, 1), DIGITS, [raymu.Metric(one, "nc4")]), "two metrics nc4"),
        (lambda: raymu.Trial(SalUn(), dataclasses.replace(DIGITS, name="")), "need names"),
        (lambda: raymu.Trial.of({}), "does not say its method"),
        (lambda: raymu.best([]), "no sweep to choose from"),
        (lambda: raymu.Metric(3, "x"), "no function whose parameters can be read"),
        (lambda: raymu.Metric(one, 3), "name has to be a text"),
        (lambda: raymu.Metric(one, "x", rung="no"), "rung has to be true or false"),
        (lambda: raymu.Metric(positional, "x"), "by name"),
        (lambda: raymu.Objective("retain_acc", "x"), "no function whose parameters can be read"),
        (lambda: raymu.Objective(one, "x", forgets=("class",)), "did you mean 'classes'"),
        (lambda: raymu.Objective(positional, "x"), "by name"),
    ],
)
def test_objects_of_the_wrong_kind_are_one_line(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_a_metric_that_changes_the_model_or_fails_is_said(quick, quick_references) -> None:
    def zero(model):
        with torch.no_grad():
            for weight in model.parameters():
                weight.zero_()
        return 0.0

    def fails(head):
        raise RuntimeError("boom")

    for function, message in ((zero, "metric own changed the model"), (fails, "metric own: RuntimeError: boom")):
        with pytest.raises(InputError, match=message):
            raymu.evaluate(quick_references.model(), quick, [raymu.Metric(function, "own")])


def test_no_hyperparameter_is_lost_where_nobody_says_dataclass() -> None:
    class Parent(Method):
        lr: float = tuned(1e-3, Range(1e-4, 1e-1, "log"), "")

    class Child(Parent):
        beta: float = tuned(1.0, Range(0.1, 10, "log"), "")

    assert list(Child.hyperparameters()) == ["lr", "beta"]
    assert (Child(lr=0.01).config, Parent().config) == ({"lr": 0.01, "beta": 1.0}, {"lr": 1e-3})
    with pytest.raises(AttributeError):
        Child().lr = 2.0
    with pytest.raises(TypeError, match="beta needs a type, as in beta: float"):
        type("Untyped", (Parent,), {"beta": tuned(1.0, Range(0.1, 10, "log"), "")})


def test_everything_that_the_package_promises_is_there() -> None:
    (block,) = (node for node in ast.parse(Path(raymu.__file__).read_text()).body if isinstance(node, ast.If))
    typed = {(node.module, node.names[0].name) for node in block.body if isinstance(node, ast.ImportFrom)}
    things = {(module, name) for module, names in raymu._PLACES.items() for name in names}
    assert typed == things | {("raymu", module) for module in raymu._MODULES}
    assert {name for _, name in typed} <= set(dir(raymu))
    modules = {path.stem for path in (REPOSITORY / "raymu").iterdir()}
    assert not modules & {name for _, name in things}  # a module, once imported, would hide what has its name
    for of_module in raymu._PLACES.values():
        for name in of_module:
            assert hasattr(raymu, name)
    alone = "import sys, raymu.study; assert not {'ray', 'optuna', 'plotly'} & sys.modules.keys()"  # for a trial
    subprocess.run([sys.executable, "-c", alone], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        raymu.nothing  # noqa: B018
