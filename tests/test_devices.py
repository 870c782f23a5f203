"""What a row says of the machine, and a GPU that was promised and is not there."""

import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from rich.console import Console

from raymu import devices, reference_models
from raymu.distributed.nodes import settle
from raymu.distributed.session import Resources
from raymu.engines import DEFAULTS
from raymu.errors import NodeError
from raymu.methods.random_label import RandomLabel
from raymu.objective import HMEAN
from raymu.protocol import Protocol
from raymu.results import reader
from raymu.storage import locate
from raymu.trial import blank_row, run_trial
from raymu.tuning.driver import run_sweep
from raymu.tuning.sweep import Sweep

QUIET = Console(quiet=True)
NVIDIA_SMI = "#!/bin/sh\necho 470.57.02\n"


@pytest.fixture
def believing() -> Iterator[None]:
    """A local Ray with a GPU that it was told of."""
    if torch.cuda.is_available():
        pytest.skip("torch has a GPU here")
    ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.long
def test_a_gpu_that_torch_cannot_use_is_refused_before_anything_is_trained(
    believing, quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYMU_CACHE", str(tmp_path / "cache"))
    reason = r"^node \S+: torch cannot use the GPU that Ray gives to trials there: .*NVIDIA driver: .*; torch "
    sweep = Sweep(RandomLabel, quick, Protocol(trials=2))
    with pytest.raises(NodeError, match=reason) as refused:
        run_sweep(sweep, tmp_path / "results", Resources(), QUIET, anyway=True)
    assert f"torch {torch.__version__}, built " in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert reference_models.missing(quick) == ["original", "retrained"]
    # A node that joins later is looked at by the first trial that it is given.
    monkeypatch.setattr("raymu.distributed.nodes.check_gpus", lambda: None)
    with pytest.raises(NodeError, match=reason):
        run_sweep(sweep, tmp_path / "results", Resources(), QUIET, anyway=True)
    assert reference_models.missing(quick) == ["original", "retrained"]
    reference_models.compare(quick)
    with pytest.raises(NodeError, match=reason):
        run_sweep(sweep, tmp_path / "results", Resources(gpus_per_worker=0.5), QUIET, anyway=True)
    assert reader.read(tmp_path / "results") == []
    assert {group["state"] for group in ray.util.placement_group_table().values()} == {"REMOVED"}
    rows = run_sweep(sweep, tmp_path / "results", Resources(gpus_per_worker=0), QUIET, resume=True, anyway=True)
    assert [(row["status"], row["device"], row["cuda"]) for row in rows] == [("completed", "cpu", None)] * 2


@pytest.mark.long
def test_a_trial_that_was_given_no_gpu_uses_none(monkeypatch: pytest.MonkeyPatch, believing, tmp_path: Path) -> None:
    """Ray does not hide those of its machine."""

    @ray.remote(num_cpus=1)
    def device(driver) -> str:
        settle(driver)
        torch.cuda.is_available = lambda: True  # as if the machine had one
        return reference_models.default_device().type

    from raymu.distributed.nodes import driving

    with driving(locate(tmp_path), None) as driver:
        assert ray.get(device.remote(driver)) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv(devices.VISIBLE, raising=False)
    assert reference_models.default_device().type == "cuda"


@pytest.mark.parametrize(
    ("cuda", "said", "built"),
    [
        ("13.0", "The NVIDIA driver on your system is too old (found version 11040)", "built for CUDA 13.0"),
        (None, "Torch not compiled with CUDA enabled", "built without CUDA"),
    ],
)
def test_driver_and_build_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda, said, built) -> None:
    def fail() -> None:
        raise RuntimeError(f"{said}. Please update your GPU driver")

    (tmp_path / "nvidia-smi").write_text(NVIDIA_SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv(devices.VISIBLE, raising=False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", fail)
    assert devices.missing_gpu() == f"{said} (NVIDIA driver: 470.57.02; torch {torch.__version__}, {built})"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.missing_gpu() is None


def test_a_row_says_what_computed_it(quick, quick_references, monkeypatch: pytest.MonkeyPatch) -> None:
    method = RandomLabel.from_config(RandomLabel.published_config(quick))
    row, _ = run_trial(quick, method, seed=0)
    assert (row["device"], row["cuda"], row["arithmetic"]) == ("cpu", None, "fp32")
    if Path("/proc/cpuinfo").exists():
        assert row["processor"] in Path("/proc/cpuinfo").read_text() or row["processor"] == platform.machine()
    blank = blank_row(quick, method, seed=0, objective=HMEAN, options=DEFAULTS)
    assert (blank["device"], blank["processor"], blank["arithmetic"]) == (None, None, None)  # nothing was computed
    assert list(row) == list(blank)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    on_gpu = devices.describe(torch.device("cuda"), "bf16", 0.25)
    assert on_gpu == {
        "device": "cuda",
        "processor": "NVIDIA A100",
        "gpu_share": 0.25,
        "cuda": torch.version.cuda,
        "arithmetic": "bf16 tf32:conv",
    }
