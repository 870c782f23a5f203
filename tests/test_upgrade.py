"""What raymu 0.1 stored: `raymu-0.1/finetune` is a sweep of three trials on the digits, as it wrote it."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml

from raymu import cache
from raymu.results import reader, writer

STORED = Path(__file__).parent / "raymu-0.1"


def digests(directory: Path) -> dict[str, str]:
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != writer.LOCK)
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def old(tmp_path) -> Path:
    return shutil.copytree(STORED, tmp_path / "old")


@pytest.mark.long
def test_a_storage_of_then_is_read_and_stays_as_it_is(raymu, old) -> None:
    before = digests(old)
    rows = reader.read_all(old)
    assert [row["status"] for row in rows] == ["completed"] * 3
    for arguments in (
        ["results", "old"],
        ["results", "old", "--json"],
        ["results", "old", "--ranking"],
        ["best", "old"],
        ["best", "old", "--rule", "constrained:0.1"],
        ["report", "old"],
    ):
        printed = raymu(*arguments)
        assert printed.returncode == 0, (arguments, printed.stderr)
    best = json.loads(raymu("best", "old", "--json").stdout)
    assert best in rows
    assert digests(old) == before


@pytest.mark.long
def test_what_cannot_go_on_says_so_in_a_line(raymu, old, tmp_path) -> None:
    before = digests(old)
    best = reader.read_all(old)[0]
    (tmp_path / "best.yaml").write_text(yaml.safe_dump(best))
    refused = {
        "raymu is 0.1.0 there, 0.2.0 here": ["sweep", "finetune", "--storage", "old", "--trials", "3", "--resume"],
        "takes such a row, with --scenario": ["run", "finetune", "--config", "best.yaml", "--out", "out"],
        "does not hold it, since raymu 0.1 made it": ["export", "old", "--out", "out"],
    }
    for message, arguments in refused.items():
        printed = raymu(*arguments)
        assert (printed.returncode, message in printed.stderr) == (2, True), printed.stderr
        assert len(printed.stderr.strip().splitlines()) == 1
    assert digests(old) == before
    made = raymu("run", "finetune", "--config", "best.yaml", "--scenario", "digits", "--out", "out")
    assert made.returncode == 0, made.stderr
    row = json.loads((tmp_path / "out" / "row.json").read_text())
    assert row["config"] == best["config"]
    assert "raymu 0.1 made the row, which does not say by what code" in made.stderr


@pytest.mark.long
def test_a_cache_of_then_is_left_alone(raymu, tmp_path, monkeypatch) -> None:
    """It lies beside this version's: nothing of it is read, changed or removed."""
    monkeypatch.setenv("RAYMU_CACHE", str(tmp_path / "cache"))
    then = tmp_path / "cache" / "v3"
    (then / "datasets" / "digits").mkdir(parents=True)
    (then / "datasets" / "digits" / "train_images.npy").write_text("not to be read")
    before = digests(then)
    printed = raymu("sweep", "finetune", "--trials", "0", RAYMU_CACHE=str(tmp_path / "cache"))
    assert printed.returncode == 2
    from raymu import splits
    from raymu.scenario import SCENARIOS

    assert splits.prepare(SCENARIOS["digits"]).data.endswith("1,797 training images of 10 classes")
    assert cache.root() != then
    assert digests(then) == before
