"""docs/extending.md to the letter, and what else users try in a script of their own."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image

import raymu
from raymu import plugins
from raymu.errors import InputError
from raymu.method import Method, Range, tuned
from raymu.methods import get, names
from raymu.results import reader
from raymu.scenario import get as get_scenario

PAGE = (REPOSITORY / "docs" / "extending.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def shell(command: str, where: Path) -> str:
    """What a command prints; a Python script runs in this environment."""
    raymu = f"{sys.executable} -m raymu"
    command = re.sub(r"^raymu ", f"{raymu} ", command)
    command = re.sub(r"^python ", f"{sys.executable} ", command)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
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
    assert all(row["objective"] == "tow" and 0 <= row["test_confidence"] <= 1 for row in rows)
    for out in ("again", "model"):
        assert (tmp_path / out / "model.safetensors").exists()
    again = json.loads((tmp_path / "again" / "row.json").read_text())
    assert again["test_confidence"] in [row["test_confidence"] for row in rows]
    report = (tmp_path / "report.html").read_text()
    assert "npo" in report
    assert "<th>confidence</th>" in report


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
    shell("python mine.py --storage swept", tmp_path)
    assert [row["status"] for row in reader.read(tmp_path / "swept" / "finetune")] == ["completed"] * 2


PACKAGE = """
import raymu

class Still(raymu.Method):
    paper = "none"
    lr: float = raymu.tuned(1e-3, raymu.Range(1e-4, 1e-1, "log"), "unused")

SCENARIO = raymu.Scenario("packed", "digits", "test_resnet", raymu.Recipe(0.05, 1), (3,), val_share=0.3, test_share=0.3)
"""


def test_a_package_brings_things_by_entry_points(tmp_path, monkeypatch) -> None:
    pytest.importorskip("importlib_metadata")  # once imported, as mlflow does, entry points are found as its class
    (tmp_path / "package_of_a_test.py").write_text(PACKAGE)
    metadata = tmp_path / "package_of_a_test-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: package-of-a-test\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(
        "[raymu.methods]\nstill = package_of_a_test:Still\nbroken = package_of_a_test:Missing\n"
        "[raymu.scenarios]\npacked = package_of_a_test:SCENARIO\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert "still" in names()
    assert get("still").name() == "still"
    assert get_scenario("packed").forget == (3,)
    with pytest.raises(InputError, match=r"method broken .* cannot be loaded: AttributeError"):
        get("broken")


def test_a_file_with_several_things_asks_for_a_name(tmp_path) -> None:
    path = tmp_path / "two.py"
    path.write_text(PACKAGE + "class Other(Still):\n    pass\n")
    with pytest.raises(InputError, match=r"two.py defines the methods still, other; name one as .*two.py:NAME"):
        get(str(path))
    assert get(f"{path}:other").name() == "other"
    assert get_scenario(str(path)).name == "packed"
    assert plugins.find(Method, "still", {}) is get(f"{path}:still")  # by its name alone, once the file is loaded


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
    assert typed == {(module, name) for module, names in raymu._PLACES.items() for name in names}
    for of_module in raymu._PLACES.values():
        for name in of_module:
            assert hasattr(raymu, name)
    alone = "import sys, raymu.study; assert not {'ray', 'optuna', 'plotly'} & sys.modules.keys()"  # for a trial
    subprocess.run([sys.executable, "-c", alone], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        raymu.nothing  # noqa: B018
