"""What a trial gets of a cluster."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
from rich.console import Console

from raymu import reference_models, splits
from raymu.cli.program import run_program
from raymu.distributed import session as session_module
from raymu.distributed.session import Resources, Sharing, fit_to_cluster, session
from raymu.distributed.watch import Watch
from raymu.engines import Options
from raymu.errors import InputError
from raymu.protocol import Protocol
from raymu.results import reader
from raymu.storage import locate
from raymu.tuning import driver, references


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let Ray say that it has nodes with so many (CPUs, GPUs)."""

    def say(*nodes: tuple[float, float]) -> None:
        known = [{"Alive": True, "Labels": {}, "Resources": {"CPU": cpus, "GPU": gpus}} for cpus, gpus in nodes]
        monkeypatch.setattr(ray, "nodes", lambda: known)
        everything = {kind: sum(node["Resources"][kind] for node in known) for kind in ("CPU", "GPU")}
        monkeypatch.setattr(ray, "cluster_resources", lambda: everything)

    return say


@pytest.mark.parametrize("trials", [1, 2, 3, 5, 7, 10, 83])
def test_the_part_of_a_gpu_is_one_that_ray_knows(trials, cluster) -> None:
    """As many trials get it as there are such parts, which a division of floats does not always tell."""
    sharing = Sharing()
    sharing.trials = trials
    cluster((100, 1))
    slots = fit_to_cluster(Resources(gpus_per_worker=sharing.part))
    assert (slots.number, slots.options.gpu_share) == (trials, pytest.approx(1 / trials, abs=1e-4))


@pytest.mark.parametrize(
    ("given", "gpus", "cores", "number"),
    [
        ({}, None, 8, 6),  # as many as the node with the fewest has for a GPU
        ({}, 0.5, 4, 12),
        ({}, 0.1, 1, 56),
        ({}, 2.0, 16, 3),
        ({"threads": 2, "cores": 2}, None, 2, 6),
        ({"threads": 3}, 0.1, 3, 18),
        ({}, 0.0, 1, 56),  # on the CPU
        ({"threads": 4}, 0.0, 4, 14),
    ],
)
def test_a_trial_on_a_gpu_has_the_cpu_cores_that_go_with_it(given, gpus, cores, number, cluster) -> None:
    cluster((16, 2), (40, 4), (0.0, 0.0))
    slots = fit_to_cluster(Resources(options=Options(**given), gpus_per_worker=gpus))
    assert (slots.options.cores, slots.options.threads) == (cores, given.get("threads", 1))
    assert (slots.bundle["CPU"], slots.number) == (given.get("threads", 1), number)  # nobody waits for the others
    said = f"trials at once: {number}, each with {cores} CPU" + ("" if gpus == 0 else f", {gpus or 1:g} GPU")
    assert str(slots) == said


@pytest.mark.parametrize(
    ("speeds", "used", "tried", "trials"),
    [
        ({1: 100, 2: 180, 4: 300, 8: 310}, 0.01, [1, 2, 4, 8], 4),  # the GPU is busy
        ({1: 100, 2: 90}, 0.01, [1, 2], 1),
        ({1: 100, 2: 200, 3: 300}, 0.25, [1, 2, 3], 3),  # its memory is full
        ({1: 100}, 0.5, [1], 1),
    ],
)
def test_no_more_trials_share_a_gpu_than_bring_more_images_a_second(speeds, used, tried, trials) -> None:
    """Given what a GPU gets through, by the number of trials that share it."""
    sharing, found = Sharing(), []
    sharing.learn(None, used)  # a trial that failed says nothing
    sharing.learn(speeds[1], None)
    while not sharing.is_found:
        found.append(sharing.trials)
        sharing.learn(speeds[sharing.trials] / sharing.trials, used)
    assert (found, sharing.trials) == (tried, trials)
    assert str(sharing).endswith(f"{tried[-1]} on a GPU: {speeds[tried[-1]]} images/s; from now on {trials}")


@pytest.mark.parametrize(("lost", "trials"), [({}, 1), ({"images": 0, "status": "error"}, 1), ({"peak_mem": None}, 1)])
def test_a_busy_gpu_is_not_shared_whatever_the_lengths_of_trials(lost, trials, cluster, monkeypatch) -> None:
    """It gets through 100 images a second in all: of two trials that begin together the longer one ends alone."""
    cluster((16, 1))
    run: Any = driver._Run.__new__(driver._Run)
    run._resources = Resources(gpus_per_worker="auto")
    run._sweep = SimpleNamespace(method=SimpleNamespace(trains=True))
    run._console = Console(quiet=True)
    run._sharing = sharing = Sharing()
    done = {"status": "completed", "peak_mem": 10**9}
    run._slots = fit_to_cluster(Resources(gpus_per_worker=sharing.part))
    run._share(sharing, [done | {"images": 1000, "unlearn_s": 10.0}], 0.05)
    assert run._slots.number == 2
    both = [done | {"images": 1000, "unlearn_s": 20.0} | lost, done | {"images": 9000, "unlearn_s": 100.0}]
    run._share(sharing, both, None)
    assert (run._sharing, sharing.trials, run._slots.number) == (None, trials, trials)


def test_every_reference_has_checkpoints_of_its_own(monkeypatch, digits, tmp_path) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(references, "side_by_side", lambda driver, watch, slots, some: calls.extend(some))
    monkeypatch.setattr(reference_models, "missing", lambda scenario: list(reference_models.REFERENCES))
    made: Any = SimpleNamespace(directory=locate(tmp_path), protocol=Protocol(), options=Options())
    digits = splits.prepare(digits)
    scenarios = [digits, *(replace(digits, **one) for one in ({"model_seed": 1}, {"forget": (5,)}))]
    references.train(made, scenarios, made, made, Watch(None), made, Console(quiet=True))
    trained = [call for call in calls if call[1] is reference_models.train]
    assert len({call[-1].location.path for call in trained}) == len({call[0] for call in trained}) == 6


def test_trials_that_cannot_share_a_gpu_do_not_try_for_ever() -> None:
    sharing = Sharing()
    for rate in (100.0, 90.0, None):  # four have too little memory
        sharing.learn(rate, 0.1)
    assert (sharing.trials, sharing.is_found) == (2, True)


@pytest.mark.parametrize(
    ("workers", "gpus", "message"),
    [(1, 1.5, "a part of one, or a whole number"), (1, -1.0, "not -1"), (2, 0.5, "cannot share"), (2, "auto", "share")],
)
def test_parts_that_make_no_sense_are_refused(workers, gpus, message) -> None:
    with pytest.raises(InputError, match=message):
        Resources(options=Options(workers=workers), gpus_per_worker=gpus)


# Who gets in

ALONE = """
import json, os, sys
os.umask(0)
import psutil, ray, raymu
from raymu.distributed.session import session

with session():
    ours = psutil.Process().children(recursive=True)
    listening = [one.laddr.ip for each in ours for one in each.net_connections("inet") if one.status == "LISTEN"]
    where = ray._private.worker._global_node.temp_dir
    print(json.dumps({"listening": listening, "temp_dir": where}))
    sys.stdout.flush()
    sys.stdin.readline()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_another_user_of_the_machine_does_not_get_in(tmp_path: Path) -> None:
    """Neither by the token, whatever the umask, nor by Ray's directory; and no other machine by a port."""
    with tempfile.TemporaryDirectory() as home:
        Path(home).chmod(0o755)
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY")} | {"HOME": home}
        with subprocess.Popen([sys.executable, "-c", ALONE], env=env, stdin=PIPE, stdout=PIPE, text=True) as sweep:
            assert sweep.stdout is not None
            found = json.loads(sweep.stdout.readline())
            assert found["listening"]
            assert {ip.removeprefix("::ffff:") for ip in found["listening"]} == {"127.0.0.1"}
            token = Path(home) / ".ray" / "auth_token"
            for command in (["cat", str(token)], ["ls", found["temp_dir"]]):
                other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command]
                ended = subprocess.run(other, env=env, capture_output=True, text=True)
                assert "Permission denied" in ended.stderr
            sweep.communicate("\n")
        assert not Path(found["temp_dir"]).parent.exists()


def test_a_signal_while_ray_starts_ends_the_program_as_ever(monkeypatch) -> None:
    """Ray's own handler exits with the signal's number."""

    def start(**options: Any) -> None:
        sys.exit(signal.SIGTERM)

    def program() -> None:
        with session():
            pass

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(SystemExit) as ended:
        run_program(program)
    assert ended.value.code == 128 + signal.SIGTERM


@pytest.mark.long  # Ray gives a node 30 s
@pytest.mark.parametrize("program", ["GCS_SERVER_EXECUTABLE", "RAYLET_EXECUTABLE"])
def test_a_ray_that_does_not_start_is_a_line(program: str, tmp_path: Path) -> None:
    start = f"from ray._private import services; services.{program} = '/bin/false'; from raymu.cli import main; main()"
    command = [sys.executable, "-c", start, "sweep", "finetune"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: Ray cannot start: ")
    assert ended.returncode == 2


def test_a_token_that_others_may_read_is_mended(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray" / "auth_token"
    session_module._guard_token(make=False)  # who joins a cluster has its token, or learns that it is missing
    assert not token.exists()
    session_module._guard_token(make=True)
    first = token.read_text()
    assert len(first) == 64
    assert token.parent.stat().st_mode & 0o777 == 0o700
    token.chmod(0o644)
    session_module._guard_token(make=True)
    assert (token.read_text(), token.stat().st_mode & 0o777) == (first, 0o600)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/proc/1/nowhere/token")
    with pytest.raises(InputError, match="Ray's token in /proc/1/nowhere/token has to be this user's alone: No such"):
        session_module._guard_token(make=True)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        (
            "RAY_TMPDIR",
            "/tmp/" + 60 * "x",
            "RAY_TMPDIR has more than 29 characters, too many for Ray's sockets: /tmp/xx",
        ),
        ("RAY_TMPDIR", "/etc/passwd", r"Ray has no room for its files in .* \(RAY_TMPDIR\): Not a directory"),
        ("TMPDIR", "/tmp/" + 60 * "x", ""),  # as on many clusters; /tmp serves
    ],
)
def test_a_directory_for_ray(tmp_path, monkeypatch, variable, value, said) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", value if variable == "TMPDIR" else None)
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=said) if said else nullcontext(), session_module._directory() as directory:
        assert Path(directory).parent.parent == Path("/tmp")
        assert Path(directory).parent.stat().st_mode & 0o777 == 0o700


# What ends Ray


@contextlib.contextmanager
def sweeping(directory: Path, said: str) -> Iterator[subprocess.Popen[str]]:
    """A running sweep that has printed `said`. It starts its own Ray, and both are a process group."""
    command = [sys.executable, "-m", "raymu", "sweep", "random_label", "--trials", "3", "--concurrent", "1", "--resume"]
    env = os.environ | {"RAY_ADDRESS": "local", "RAYMU_CACHE": str(directory / "cache")}
    with (
        open(directory / "said", "w") as out,
        subprocess.Popen(
            command, cwd=directory, env=env, stdout=out, stderr=PIPE, text=True, start_new_session=True
        ) as one,
    ):
        deadline = time.monotonic() + 200
        while said not in (directory / "said").read_text():
            assert one.poll() is None, one.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        try:
            yield one
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(one.pid, signal.SIGKILL)


@pytest.mark.long
@pytest.mark.parametrize("said", ["trials at once", "[1/3"], ids=["references", "trials"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_all_processes_ends_a_sweep_as_one_to_the_driver(tmp_path: Path, number: int, said: str) -> None:
    """As systemd, Slurm and a closed terminal send it, to Ray as well."""
    with sweeping(tmp_path, said) as sweep:
        time.sleep(2)
        os.killpg(sweep.pid, number)
        _, errors = sweep.communicate(timeout=50)
    assert sweep.returncode == 128 + number
    assert re.fullmatch(r"interrupted after \d trials; the same command with --resume continues\n", errors)


@pytest.mark.long
@pytest.mark.parametrize("program", ["gcs_server", "raylet"])
def test_a_ray_that_ends_is_a_line(tmp_path: Path, program: str) -> None:
    """And the sweep goes on where it was."""
    with sweeping(tmp_path, "[1/3") as sweep:
        (process,) = (one for one in psutil.Process(sweep.pid).children(recursive=True) if one.name() == program)
        process.kill()
        _, errors = sweep.communicate(timeout=50)
    assert sweep.returncode == 2
    assert errors.splitlines()[-1] == f"error: Ray has ended here ({program}); the same command with --resume continues"
    before = reader.read(tmp_path / "raymu-results" / "random_label")
    with sweeping(tmp_path, "[3/3") as sweep:
        assert sweep.wait(60) == 0
    assert reader.read(tmp_path / "raymu-results" / "random_label")[: len(before)] == before
