"""Benchmarks that are for a GPU, rehearsed without one; the half hour where what such a machine lacks is hidden."""

import importlib
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY
from pretended_gpu import pretended_gpu

from raymu.data import folders, published
from raymu.scenario import Recipe, Scenario

HIDDEN = ("ray", "optuna", "deepspeed", "orjson", "plotly")
GPU = REPOSITORY / "tests" / "benchmarks" / "gpu.py"


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine that lacks them."""
    for name in HIDDEN:
        package = tmp_path / "hidden" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"raise ModuleNotFoundError('No module named {name}', name='{name}')")
    changed = {"PYTHONPATH": str(tmp_path / "hidden"), "RAYMU_CACHE": str(tmp_path / "cache")}
    return {**os.environ, **changed}


def rehearsed(out: Path, environment: dict[str, str], *arguments: str) -> dict[str, dict]:
    command = [sys.executable, str(GPU), "--out", str(out), "--device", "cpu", "--tiny", *arguments]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}


@pytest.mark.long
def test_parts_say_what_they_found_or_what_they_miss(bare, tmp_path) -> None:
    parts = rehearsed(tmp_path / "out", bare, "--parts", "evaluation,ray,deepspeed")
    assert {name: part["ended"] for name, part in parts.items()} == {
        "evaluation": "complete",
        "ray": "left out: No module named ray",
        "deepspeed": "left out: No module named deepspeed",
    }
    assert [found["what"] for found in parts["evaluation"]["found"]] == 2 * ["moments", "cheap", "strong"]
    table = subprocess.run(
        [sys.executable, GPU, "--table", tmp_path / "out"], capture_output=True, text=True, check=True
    )
    assert "## evaluation" in table.stdout
    assert table.stdout.count("| strong |") == 2


def test_a_part_that_cannot_begin_leaves_nothing_of_an_earlier_call(bare, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "evaluation.json").write_text("{}")
    command = [
        sys.executable,
        str(GPU),
        "--out",
        tmp_path / "out",
        "--parts",
        "evaluation",
    ]  # on a GPU, which is missing
    ended = subprocess.run(command, env=bare, check=False, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "torch finds no GPU here" in ended.stderr
    assert not list((tmp_path / "out").iterdir())


def test_what_a_wheel_lets_run_can_be_run(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(GPU.parent)
    gpu = importlib.import_module("gpu")
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "served-1-py3-none-any.whl", "w") as wheel:
        for name, mode in (("served/server", 0o755), ("served/__init__.py", 0o644)):
            member = zipfile.ZipInfo(name)
            member.external_attr = mode << 16
            wheel.writestr(member, "#!/bin/sh\n")
    site = Path(gpu.install(tmp_path))
    assert os.access(site / "served" / "server", os.X_OK)
    assert (site / "served" / "__init__.py").stat().st_mode & 0o777 == 0o644


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_half_hour_is_rehearsed(bare, tmp_path) -> None:
    parts = rehearsed(tmp_path / "out", bare)
    left_out = {name: part["ended"] for name, part in parts.items() if part["ended"] != "complete"}
    assert left_out == {name: f"left out: No module named {name}" for name in ("ray", "deepspeed")}
    assert len(parts) == 10
    assert sum(part["limit_s"] for part in parts.values()) <= 1800
    assert sum(part["seconds"] for part in parts.values()) < 600
    wrong = [found for part in parts.values() for found in part["found"] if found.get("failed") or found.get("error")]
    assert [found.get("error") for found in wrong] == ["nvidia-cuda-mps-control does not start"]
    assert all(found["by"] == 0 for found in parts["methods"]["found"])  # the one device is the other


def test_what_takes_too_long_is_cut_off_and_loses_nothing(bare, tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(GPU.parent)
    gpu = importlib.import_module("gpu")
    report = gpu.Report(tmp_path / "steps.json", "this machine", limit=1)
    report.add(what="engine", ms=3.5)
    found = json.loads((tmp_path / "steps.json").read_text())
    assert (found["part"], found["ended"], found["found"]) == ("steps", "cut off", [{"what": "engine", "ms": 3.5}])
    monkeypatch.setitem(gpu.PARTS, "vits", 2)
    monkeypatch.setattr(sys, "argv", [str(GPU), "--out", str(tmp_path), "--device", "cpu", "--tiny", "--parts", "vits"])
    started = time.monotonic()
    gpu.main()
    assert time.monotonic() - started < 20


@pytest.mark.long
def test_a_resnet_is_timed(bare) -> None:
    """It takes no patches."""
    small = "--model test_resnet --image-size 16 --batch-size 4 --steps 2 --repeats 1 --stages"
    said = subprocess.check_output([sys.executable, GPU.parent / "engine.py", *small.split()], env=bare, text=True)
    assert "test_resnet, images 16 x 16" in said
    assert said.splitlines()[-2].startswith("engine")


def test_probes_are_timed_on_a_gpu(monkeypatch, capsys) -> None:
    monkeypatch.syspath_prepend(GPU.parent)
    with pretended_gpu(monkeypatch):
        probe = importlib.import_module("probe")
        monkeypatch.setattr(probe, "LONG_SGD", 2)
        monkeypatch.setattr(probe, "EPOCHS", (1, 2))
        features = probe.synthetic(3, 200, 4, distance=1.0)
        assert features.train.is_cuda
        probe.compare("synthetic", features)
    assert "SGD, 2 epochs" in capsys.readouterr().out


@pytest.mark.long
def test_images_are_read_to_a_gpu(monkeypatch, tmp_path) -> None:
    monkeypatch.syspath_prepend(GPU.parent)
    with pretended_gpu(monkeypatch):
        imagenet = importlib.import_module("imagenet")
        for label in range(2):
            imagenet.write_class(tmp_path, label)
        monkeypatch.setitem(published.DATASETS, "photos", folders.EncodedDataset("photos", num_classes=2))
        recipe = Recipe(lr=0.1, epochs=1, augment=True)
        photos = Scenario("photos", "photos", "test_resnet", recipe, forget=(0,), val_share=0.2)
        loaded = imagenet.load(tmp_path, "folders", photos, 1)
        read = list(imagenet.batches(loaded, loaded.forget.nonzero().squeeze(1), 0, size=10))
    assert [len(images) for images in read] == [10, 6]
    assert all(images.is_cuda for images in read)


def test_searchers_are_replayed_against_runs_that_were_measured(monkeypatch) -> None:
    monkeypatch.syspath_prepend(GPU.parent)
    search = importlib.import_module("search")
    path = search.TABLES / "digits-random_label-linear.jsonl"
    table = search.Table(path, search.HMEAN)
    for line in map(json.loads, path.read_text().splitlines()[1::16]):
        if len(line["images"]) == table.longest:  # else it diverged
            run = table(line["setting"])
            place = table.metrics.index("retain_acc")
            assert run.metrics[place].tolist() == pytest.approx(line["val_retain_acc"], abs=1e-6)
            assert run.images.tolist() == line["images"]
    for number, other in enumerate(sorted(path.parent.glob("originals/digits-random_label-linear-*.jsonl")), start=1):
        for line in map(json.loads, other.read_text().splitlines()[1::16]):
            shares = zip(line["test_retain_acc"], line["test_probe_forget_acc"], strict=True)
            scores = [2 * kept * (1 - read) / (kept + 1 - read) for kept, read in shares]
            if len(scores) == table.longest:
                assert table(line["setting"]).test[number].tolist() == pytest.approx(scores, abs=1e-6)
    most = len(search.replay(table, "gp", "none", seed=0, slots=2, patience=1))
    assert 6 < most < search.TRIALS
    monkeypatch.setattr(search, "TRIALS", 6)
    for searcher, stops, patience in search.SEARCHERS:
        found = search.replay(table, searcher, stops, seed=0, slots=2, patience=patience)
        images = [one.images for one in found]
        assert images == sorted(images)
        assert len(found) == 6 if stops == "none" else 1 <= len(found) <= 6
        assert max(one.val for one in found) > 0
    whole = [search.drawn(table, "random", "none", 6, seed) for seed in (0, 1)]
    assert [len(found) for found in whole] == [6, 6]
    assert whole[0][0].val == whole[1][0].val  # the published setting
    assert len(search.drawn(table, *search.OLD, seed=0)) < search.OLD[2]  # it stops some
