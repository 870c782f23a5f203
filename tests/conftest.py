"""What all tests share: one cache, so that the references of a scenario are trained once a test run."""

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raymu import devices, plugins, reference_models, splits
from raymu.cli import main
from raymu.scenario import SCENARIOS, Recipe, Scenario

REPOSITORY = Path(__file__).parent.parent
DEVICE = reference_models.default_device()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Three processes for all tests on two cores, since many of them wait, and two for those of clusters; none but this
    for those that were chosen.
    """
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return 0
    return 3 if "not cluster" in config.option.markexpr else 2


def pytest_configure(config: pytest.Config) -> None:
    """Each process has its own place for Ray, which joins a cluster that `ray start` wrote down there. Trials are as
    urgent as tests: by Ray's default they would wait while other tests compute. Whatever is started computes with one
    thread: those of NumPy's libraries keep a core busy while they wait.
    """
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix=f"{worker}-", dir=os.environ.get("RAY_TMPDIR"))


def pytest_unconfigure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes longest comes first, or the other processes would wait for it at the end."""
    items.sort(key=lambda item: item.path.name != "test_sweep.py")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    before = os.environ.get("RAYMU_CACHE")
    base = tmp_path_factory.getbasetemp()
    base = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    base.mkdir(exist_ok=True)
    os.environ["RAYMU_CACHE"] = str(base)
    yield base
    if before is None:
        del os.environ["RAYMU_CACHE"]
    else:
        os.environ["RAYMU_CACHE"] = before


def asked(trials: int = 2, **fields: Any) -> dict[str, Any]:
    """The smallest `sweep.json` that can be read; `fields` are added to its protocol."""
    protocol = {"trials": trials, "search_seeds": [0], "objective": "hmean"}
    protocol["confirmation"] = {"seeds": 0, "originals": 0, "top": 1}
    return {"method": "salun", "scenario": {"name": "digits", "model_seed": 0}, "protocol": protocol | fields}


@pytest.fixture(scope="session")
def digits() -> Scenario:
    """Digits without one class, with references that are trained for seconds."""
    known = SCENARIOS["digits"]
    return dataclasses.replace(known, forget=(8,), recipe=dataclasses.replace(known.recipe, epochs=12))


@pytest.fixture(scope="session")
def quick() -> Scenario:
    """Digits with references that are hardly trained: for tests that do not look at accuracies."""
    return dataclasses.replace(SCENARIOS["digits"], name="quick", recipe=Recipe(lr=0.05, epochs=3, batch_size=64))


@pytest.fixture(scope="session")
def quick_references(quick: Scenario) -> reference_models.References:
    return reference_models.load(quick, DEVICE)


@pytest.fixture(scope="session")
def digits_data(digits: Scenario) -> splits.Data:
    return splits.load(digits, DEVICE)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with devices.cpu_threads(1):
        yield


@pytest.fixture(autouse=True)
def _nothing_stays_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test loads from a file is no method for the tests after it."""
    monkeypatch.setattr(plugins, "_loaded", {})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs to mount a disk")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)  # a process may have files open that were on it


@pytest.fixture
def in_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """The `raymu` command in this process, which saves a process's start; it returns what is printed."""

    def run(*arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["raymu", *arguments])
        with pytest.raises(SystemExit, match="0"):
            main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def raymu(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the `raymu` command, as a user does, in an empty directory."""

    def run(*arguments: str, timeout: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "raymu", *arguments],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The `raymu` command in this process, which has to refuse what it is given in one line, and to leave nothing; it
    returns the line.
    """

    def run(*arguments: str) -> str:
        place = tmp_path / "empty"
        place.mkdir()
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "argv", ["raymu", *arguments])
        with pytest.raises(SystemExit, match="2"):
            main()
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert list(place.iterdir()) == []
        return line

    return run
