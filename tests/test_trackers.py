"""Trackers follow real sweeps; what they were told is read back from their own files."""

import contextlib
import dataclasses
import io
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import pytest
import steady
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from ray.tune.logger import LoggerCallback
from ray.tune.logger.tensorboardx import TBXLoggerCallback
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from raymu.distributed.session import Resources, session
from raymu.errors import InputError
from raymu.method import Range
from raymu.methods.random_label import RandomLabel
from raymu.protocol import Confirmation, Protocol
from raymu.results import reader, writer
from raymu.results.identity import lasting
from raymu.tuning.driver import run_sweep
from raymu.tuning.sweep import Sweep
from raymu.tuning.trackers.base import Shown, Tracker, last_epoch
from raymu.tuning.trackers.services import StudyTracker, TensorBoardTracker, mlflow_tracker
from raymu.tuning.trackers.settings import Trackers
from raymu.values import content_hash

SPACE = {"lr": FloatDistribution(1e-2, 1e-1, log=True), "epochs": IntDistribution(1, 10)}


class Followed(NamedTuple):
    sweep: Sweep
    trackers: Trackers
    rows: list[dict[str, Any]]  # of the search
    printed: str


@pytest.fixture(scope="module", autouse=True)
def _ray(cache: Path) -> Iterator[None]:
    with session(None):
        yield


def follow(sweep: Sweep, directory: Path, trackers: Trackers, resume: bool = False) -> Followed:
    console = Console(file=io.StringIO(), width=1000)
    rows = run_sweep(sweep, directory, Resources(concurrent=2), console, resume=resume, trackers=trackers, anyway=True)
    searched = [row for row in rows if row["source"] != "confirmation"]
    return Followed(sweep, trackers, searched, console.file.getvalue())


@pytest.fixture(scope="module")
def followed(quick, quick_references, tmp_path_factory: pytest.TempPathFactory) -> Followed:
    """A sweep whose range leaves the published learning rate (1e-2) out, and whose confirmation is not followed."""
    base = tmp_path_factory.mktemp("followed")
    protocol = Protocol(trials=3, confirmation=Confirmation(seeds=1))
    sweep = Sweep(RandomLabel, quick, protocol, space={"lr": Range(2e-2, 1e-1, "log")})
    trackers = Trackers(base / "tb", f"sqlite:///{base}/mlflow.db", None, f"sqlite:///{base}/study.db")
    return follow(sweep, base / "rl", trackers)


@pytest.mark.long
@pytest.mark.cluster
def test_nothing_is_lost_and_nothing_complained_of(followed: Followed) -> None:
    assert sorted(row["trial_id"] for row in followed.rows) == ["rl-0000", "rl-0001", "rl-0002"]
    assert "rl-1000000" in followed.printed  # of the confirmation
    assert "warning" not in followed.printed


def given(row: dict[str, Any]) -> tuple[str, ...]:
    """Hyperparameters that a trial is given; a searched one chooses its epochs."""
    return ("lr",) if row["source"] == "search" else ("lr", "epochs")


def history_of(row: dict[str, Any]) -> dict[int, float]:
    """Scores by epoch, the row's own at the last one."""
    return {epoch: max(0.0, seen) for epoch, seen in row["curve"]} | {last_epoch(row): row["score"]}


def events(directory: Path) -> list[Event]:
    """Of TensorBoard's record format: length, its checksum, the event, its checksum."""
    found = []
    for path in sorted(directory.glob("events.*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


@pytest.mark.long
@pytest.mark.cluster
def test_tensorboard_has_every_number_by_epoch(followed: Followed) -> None:
    directory = followed.trackers.tensorboard / "rl"
    assert sorted(path.name for path in directory.iterdir()) == sorted(row["trial_id"] for row in followed.rows)
    for row in followed.rows:
        values, hyperparameters = {}, {}
        for event in events(directory / row["trial_id"]):
            for value in event.summary.value:
                values[value.tag, event.step] = value.simple_value
                if value.tag == "_hparams_/session_start_info":
                    plugin = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                    hyperparameters = {
                        name: entry.number_value for name, entry in plugin.session_start_info.hparams.items()
                    }
        last = {tag.rpartition("/")[2]: value for (tag, step), value in values.items() if step == last_epoch(row)}
        shown = history_of(row)
        assert {step: values["ray/tune/score", step] for step in shown} == pytest.approx(shown)
        expected = {
            key: value
            for key, value in row.items()
            if isinstance(value, (int, float))
            and key not in ("trial", "search_seed", "fallback", "restarts", "ended_s", "search_s")
        }
        assert "test_probe_forget_acc" in expected
        assert last == pytest.approx(expected)
        assert hyperparameters == pytest.approx({name: row["config"][name] for name in given(row)})


@pytest.mark.long
@pytest.mark.cluster
def test_mlflow_has_a_run_a_trial(followed: Followed) -> None:
    client = MlflowClient(followed.trackers.mlflow)
    runs = client.search_runs([client.get_experiment_by_name("rl").experiment_id])
    by_name = {run.info.run_name: run for run in runs}
    assert len(runs) == len(by_name) == 3
    for row in followed.rows:
        run = by_name[row["trial_id"]]
        assert run.info.status == "FINISHED"
        assert {name: float(value) for name, value in run.data.params.items()} == {
            name: row["config"][name] for name in given(row)
        }
        for metric in ("score", "val_probe_forget_acc", "test_retain_acc", "wall_s"):
            assert run.data.metrics[metric] == row[metric]
        history = {point.step: point.value for point in client.get_metric_history(run.info.run_id, "score")}
        assert history == history_of(row)
        assert (run.data.tags["method"], run.data.tags["head"]) == ("random_label", "linear")


@pytest.mark.long
@pytest.mark.cluster
def test_the_study_has_every_trial(followed: Followed) -> None:
    study = optuna.load_study(study_name="rl", storage=followed.trackers.optuna)
    trials = {trial.user_attrs["trial_id"]: trial for trial in study.trials}
    assert len(study.trials) == len(trials) == 3
    for row in followed.rows:
        trial = trials[row["trial_id"]]
        assert trial.state == {"completed": TrialState.COMPLETE, "stopped": TrialState.PRUNED}[row["status"]]
        assert trial.value == row["score"]
        assert trial.params == {name: row["config"][name] for name in ("lr", "epochs")}
        assert trial.intermediate_values == dict(row["curve"])
        assert trial.user_attrs["test_probe_forget_acc"] == row["test_probe_forget_acc"]
        assert trial.duration.total_seconds() == pytest.approx(row["wall_s"], abs=2e-6)  # it counts microseconds
        # One range for all, or Optuna's importances leave it out; it holds the published 1e-2.
        assert trial.distributions == SPACE
    assert study.best_trial.value == max(row["score"] for row in followed.rows if row["status"] == "completed")


@pytest.mark.long
@pytest.mark.cluster
def test_a_resumed_sweep_adds_to_the_study_what_it_lacks(followed: Followed, tmp_path: Path) -> None:
    """Of three rows the study knows one, the second was written while it was away, the third is run now."""
    url = f"sqlite:///{tmp_path}/study.db"
    kept = sorted(followed.rows, key=lambda row: row["trial"])[:2]
    identity = reader.load(followed.trackers.tensorboard.parent / "rl")[0].identity
    study = StudyTracker(url, "rl", SPACE, kept[:1], content_hash(lasting(identity)))
    study.setup()
    with writer.Store(tmp_path / "rl", identity, resume=False, is_finished=lambda rows: False) as rows:
        for row in kept:
            rows.append(row)
    resumed = follow(followed.sweep, tmp_path / "rl", Trackers(optuna=url), resume=True)
    assert "warning" not in resumed.printed
    trials = optuna.load_study(study_name="rl", storage=url).trials
    assert [trial.user_attrs["trial_id"] for trial in trials] == ["rl-0000", "rl-0001", "rl-0002"]
    assert [trial.params["lr"] for trial in trials] == [row["config"]["lr"] for row in resumed.rows]


@pytest.mark.long
@pytest.mark.cluster
def test_a_sweep_that_has_ended_is_shown_to_a_new_tracker(followed: Followed, tmp_path: Path) -> None:
    uri, url = f"sqlite:///{tmp_path}/mlflow.db", f"sqlite:///{tmp_path}/study.db"
    directory = followed.trackers.tensorboard.parent / "rl"
    again = follow(followed.sweep, directory, Trackers(tmp_path / "tb", uri, None, url), resume=True)
    assert again.rows == followed.rows
    assert "warning" not in again.printed
    assert {run.info.status for run in runs_of(uri, "rl")} == {"FINISHED"}
    assert len(runs_of(uri, "rl")) == len(optuna.load_study(study_name="rl", storage=url).trials) == 3
    assert sorted(path.name for path in (tmp_path / "tb" / "rl").iterdir()) == ["rl-0000", "rl-0001", "rl-0002"]


@pytest.mark.long
@pytest.mark.cluster
def test_a_study_of_another_sweep_is_left_alone(followed: Followed, tmp_path: Path) -> None:
    shutil.copy(followed.trackers.optuna.removeprefix("sqlite:///"), tmp_path / "study.db")
    url = f"sqlite:///{tmp_path}/study.db"
    sweep = dataclasses.replace(followed.sweep, protocol=Protocol(trials=1))
    other = follow(sweep, tmp_path / "rl", Trackers(optuna=url))
    assert "the sweep goes on without optuna (ValueError: study 'rl' holds trials of another sweep" in other.printed
    assert len(other.rows) == 1
    assert len(optuna.load_study(study_name="rl", storage=url).trials) == 3


def fixed_study(**changed: Any) -> optuna.trial.FrozenTrial:
    """Trial rl-0000 as the study of `followed` has it, except for what is changed."""
    kept: dict[str, Any] = {"params": {"lr": 2e-2, "epochs": 3}, "distributions": SPACE, "value": 0.1}
    return optuna.trial.create_trial(**kept | {"user_attrs": {"trial_id": "rl-0000"}} | changed)


OF_OTHERS = {
    "to minimize": {"direction": "minimize"},
    "is to maximize, maximize": {"directions": ["maximize", "maximize"]},
    "has epochs as IntDistribution": {"trial": {"distributions": SPACE | {"epochs": IntDistribution(1, 9)}}},
    "has head as Categorical": {
        "trial": {
            "params": {"head": "cmf"},
            "distributions": {"head": CategoricalDistribution(["cmf", "linear"])},
        }
    },
    "holds trials of another sweep": {"trial": {}, "sweep": "another"},
    "holds trials of another": {"trial": {"user_attrs": {}}},
}


@pytest.mark.parametrize("reason", OF_OTHERS)
def test_a_study_that_does_not_fit_is_left_alone(tmp_path: Path, reason: str) -> None:
    case = OF_OTHERS[reason]
    url = f"sqlite:///{tmp_path}/study.db"
    kind = {name: case[name] for name in ("direction", "directions") if name in case} or {"direction": "maximize"}
    study = optuna.create_study(storage=url, study_name="rl", **kind)
    if "trial" in case:
        study.add_trial(fixed_study(**case["trial"]))
    if "sweep" in case:
        study.set_user_attr("sweep", case["sweep"])
    before = study.trials
    done = [{"trial_id": "rl-0000"}, {"trial_id": "rl-0001"}]
    with pytest.raises(ValueError, match=f"study 'rl' .*{reason}.*; choose another --optuna or --name"):
        StudyTracker(url, "rl", SPACE, done, "this").setup()
    assert optuna.load_study(storage=url, study_name="rl").trials == before


@pytest.mark.long
@pytest.mark.cluster
def test_what_does_not_fit_is_said_before_anything_is_computed(followed: Followed, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(storage=url, study_name="rl", direction="minimize")
    untrained = dataclasses.replace(followed.sweep.scenario, seed=1)
    sweep = dataclasses.replace(followed.sweep, scenario=untrained, protocol=Protocol(trials=1))
    printed = follow(sweep, tmp_path / "rl", Trackers(optuna=url)).printed
    assert 0 <= printed.index("without optuna (ValueError: study 'rl' is to minimize") < printed.index("trained 2 ref")
    assert study.trials == []


def runs_of(uri: str, name: str) -> list[Run]:
    client = MlflowClient(uri)
    return client.search_runs([client.get_experiment_by_name(name).experiment_id])


def test_mlflow_goes_on_with_the_run_of_a_trial_that_was_interrupted(tmp_path: Path) -> None:
    """Whether its driver was killed, ended by Ctrl-C, or killed between the trial's row and its run's end."""
    uri, tags = f"sqlite:///{tmp_path}/mlflow.db", {"sweep": "this"}
    result = {"score": 0.5, "training_iteration": 1}
    ended = row("completed", 0.7, [[1, 0.5], [3, 0.7]]) | {"trial_id": "s-0002"}
    earlier = row("stopped", 0.8, [[3, 0.8]]) | {"trial_id": "s-0004"}
    missed = row("error", None, []) | {"trial_id": "s-0003"}
    first = mlflow_tracker(uri, "s", tags, [], set())
    first.setup()
    for name in ("s-0000", "s-0001", "s-0002"):
        first.log_trial_start(shown(name))
        first.log_trial_result(1, shown(name), result)
    first.log_trial_start(shown("s-0004"))
    first.log_trial_result(1, shown("s-0004"), {"score": 0.1, "epochs": 5, "training_iteration": 5})
    first.log_trial_end(shown("s-0000"))
    assert Counter(run.info.status for run in runs_of(uri, "s")) == {"RUNNING": 3, "FINISHED": 1}
    first.interrupt()
    assert Counter(run.info.status for run in runs_of(uri, "s")) == {"KILLED": 3, "FINISHED": 1}
    known = {"s-0000", "s-0001", "s-0002", "s-0003", "s-0004"}
    done = [row("completed", 0.6, [[1, 0.5], [3, 0.6]]) | {"trial_id": "s-0000"}, ended, missed]
    second = mlflow_tracker(uri, "s", tags, done, known)
    second.setup()
    second.log_trial_start(shown("s-0001"))
    second.log_trial_start(shown("s-0004", row=earlier))
    assert Counter(run.info.status for run in runs_of(uri, "s")) == {"RUNNING": 2, "FINISHED": 2, "FAILED": 1}
    second.log_trial_end(shown("s-0001"))
    second.log_trial_end(shown("s-0004", row=earlier))
    second.interrupt()
    found = {run.info.run_name: (run.info.status, run.data.metrics.get("score")) for run in runs_of(uri, "s")}
    assert len(runs_of(uri, "s")) == 5
    assert found == {
        "s-0000": ("FINISHED", 0.5),  # as it was left
        "s-0001": ("FINISHED", 0.5),
        "s-0002": ("FINISHED", 0.7),
        "s-0003": ("FAILED", None),
        "s-0004": ("FINISHED", 0.8),  # what it had reached before, at epoch 5, is gone
    }


WANDB = """
import os, pathlib, signal, sys
from raymu.tuning.trackers.base import Shown
from raymu.tuning.trackers.services import wandb_tracker

def tracker(*names):
    row = {"status": "completed", "score": 0.7, "curve": [[1, 0.5], [3, 0.7]], "config": {"lr": 0.1}, "epochs": 3}
    found = wandb_tracker("p", "s", {"sweep": "this"}, [row | {"trial_id": name} for name in names])
    found.setup()
    return found

def look(*names):
    tracker(*names)
    ended = pathlib.Path("wandb").glob("offline-run-*/raymu-ended")
    print(*sorted(path.parent.name.split("-", 3)[3] for path in ended))

def drive(runs):
    shown = [Shown(f"s-000{number}", {"lr": 0.1}, {}, None) for number in range(3)]
    for one in shown:
        runs.log_trial_start(one)
        runs.log_trial_result(1, one, {"score": 0.5, "training_iteration": 1})
    runs.log_trial_end(shown[0])
"""


def test_weights_and_biases_has_every_trial_after_any_interruption(tmp_path: Path) -> None:
    """Trials that have ended, by the files which `wandb sync` sends. The driver was killed, or interrupted, while two
    of three ran; meanwhile one of these got its row.
    """
    pytest.importorskip("wandb")

    def printed(script: str) -> tuple[int, list[str]]:
        done = subprocess.run(
            [sys.executable, "-c", WANDB + script],
            cwd=tmp_path,
            env=os.environ | {"WANDB_MODE": "offline"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stderr == ""
        return done.returncode, done.stdout.splitlines()

    assert printed("drive(tracker()); os.kill(os.getpid(), signal.SIGKILL)") == (-signal.SIGKILL, [])
    later = "look(); look('s-0000', 's-0001'); look('s-0000', 's-0001')\n"
    later += "runs = tracker('s-0000'); drive(runs); runs.interrupt(); look()"
    assert printed(later) == (
        0,
        ["this-0000", "this-0000 this-0001", "this-0000 this-0001", "this-0000 this-0000 this-0001"],
    )


@pytest.mark.parametrize(("sweep", "known"), [("another", {"s-0000"}), ("this", set())])
def test_runs_of_another_sweep_of_that_name_are_left_alone(tmp_path: Path, sweep: str, known: set[str]) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    first = mlflow_tracker(uri, "s", {"sweep": sweep}, [], set())
    first.setup()
    first.log_trial_start(shown("s-0000"))
    with pytest.raises(ValueError, match="experiment 's' holds runs of another sweep; choose another --mlflow"):
        mlflow_tracker(uri, "s", {"sweep": "this"}, [], known).setup()
    (tmp_path / "tb" / "s-0000").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds trials of another sweep; choose another --tensorboard or --name"):
        TensorBoardTracker(tmp_path / "tb", [], {"s-0001"}).setup()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_trial_has_one_run_whatever_interrupts_the_driver(tmp_path: Path) -> None:
    """Killed, then Ctrl-C, then to the end; with all trackers."""
    pytest.importorskip("wandb")
    command = [sys.executable, steady.__file__, "--trials", "8", "--storage", str(tmp_path / "storage")]
    command += ["--mlflow", f"sqlite:///{tmp_path}/mlflow.db", "--optuna", f"sqlite:///{tmp_path}/study.db"]
    command += ["--tensorboard", str(tmp_path / "tb"), "--wandb", "p", "--concurrent", "2"]
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}

    @contextlib.contextmanager
    def drive(*more: str) -> Iterator[subprocess.Popen[str]]:
        driver = subprocess.Popen(
            [*command, *more],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            yield driver
        finally:
            driver.kill()
            driver.wait()

    rows = tmp_path / "storage" / "steady"
    for blow, more in ((signal.SIGKILL, ()), (signal.SIGINT, ("--resume",))):
        before = len(reader.read(rows))
        with drive(*more) as driver:
            while len(reader.read(rows)) < before + 2:
                assert driver.poll() is None, driver.communicate()
                time.sleep(0.05)
            driver.send_signal(blow)
            printed, _ = driver.communicate()
        statuses = Counter(run.info.status for run in runs_of(f"sqlite:///{tmp_path}/mlflow.db", "steady"))
        assert blow == signal.SIGKILL or "RUNNING" not in statuses, printed
    with drive("--resume") as driver:
        printed, _ = driver.communicate()
    assert driver.returncode == 0, printed
    assert "warning: the sweep goes on without" not in printed
    names = [f"steady-{number:04d}" for number in range(8)]
    runs = runs_of(f"sqlite:///{tmp_path}/mlflow.db", "steady")
    assert sorted(run.info.run_name for run in runs) == names
    assert {run.info.status for run in runs} == {"FINISHED"}
    by_name = {one["trial_id"]: one for one in reader.read(rows)}
    assert {run.info.run_name: run.data.metrics["score"] for run in runs} == {
        name: one["score"] for name, one in by_name.items()
    }
    assert sorted(path.name for path in (tmp_path / "tb" / "steady").iterdir()) == names
    trials = optuna.load_study(study_name="steady", storage=f"sqlite:///{tmp_path}/study.db").trials
    assert sorted(trial.user_attrs["trial_id"] for trial in trials) == names
    ids = {path.name.split("-", 3)[3] for path in (tmp_path / "wandb").glob("offline-run-*")}
    assert len(ids) == 8  # `wandb sync` puts what has one id into one run


@pytest.mark.long
@pytest.mark.cluster
def test_a_tracker_that_fails_costs_one_line_and_no_row(
    followed: Followed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: TBXLoggerCallback, trial: object, failed: bool = False) -> None:
        raise OSError("the disk\nis full")

    monkeypatch.setattr(TBXLoggerCallback, "log_trial_end", fail)
    trackers = Trackers(tmp_path / "tb", "http://127.0.0.1:9", None, f"sqlite:///{tmp_path}/missing/study.db")
    sweep = dataclasses.replace(followed.sweep, protocol=Protocol(trials=3, searcher="random"))
    printed = follow(sweep, tmp_path / "rl", trackers)
    assert [row["config"] for row in printed.rows if row["trial"] == 0] == [sweep.published]
    assert len(printed.rows) == 3
    warnings = [line for line in printed.printed.splitlines() if line.startswith("warning: the sweep goes on without")]
    assert [line.split(" without ")[1].split()[0] for line in warnings] == ["mlflow", "optuna", "tensorboard"]
    assert warnings[2].endswith("(OSError: the disk is full)")


def shown(trial_id: str, **last_result: Any) -> Any:
    return Shown(trial_id, {"lr": 0.01, "epochs": 5}, last_result, Path("nowhere"))


def row(status: str, score: float | None, curve: list[list[float]], **config: float) -> dict[str, Any]:
    config = {"lr": 0.01, "epochs": 5, "clip": None, **config}
    return {"status": status, "score": score, "curve": curve, "config": config, "epochs": 3, "wall_s": 2.0}


def test_every_status_has_its_state(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    study = StudyTracker(url, "s", SPACE, [], "of s")
    study.setup()
    stopped = row("stopped", 0.3, [[1, 0.2], [3, 0.3]], test_retain_acc=0.5)
    study.log_trial_end(shown("stopped", row=stopped))
    study.log_trial_end(shown("diverged", row=row("diverged", 0.0, [])))
    study.log_trial_end(shown("raised", row=row("error", None, [])), failed=True)
    study.log_trial_end(shown("died at once"), failed=True)
    study.log_trial_end(shown("died later", row=stopped), failed=True)
    study.log_trial_end(shown("zero", row=row("completed", 0.4, [[5, 0.4]], lr=0.0)))
    trials = {trial.user_attrs["trial_id"]: trial for trial in optuna.load_study(study_name="s", storage=url).trials}
    assert {name: (trial.state.name, trial.value) for name, trial in trials.items()} == {
        "stopped": ("PRUNED", 0.3),
        "diverged": ("COMPLETE", 0.0),
        "raised": ("FAIL", None),
        "died at once": ("FAIL", None),
        "died later": ("FAIL", None),
        "zero": ("COMPLETE", 0.4),
    }
    assert trials["stopped"].intermediate_values == {1: 0.2, 3: 0.3}
    assert trials["died at once"].params == {"lr": 0.01, "epochs": 5}
    assert trials["diverged"].user_attrs["status"] == "diverged"
    # A logarithmic range cannot hold 0.
    assert (trials["zero"].params, trials["zero"].user_attrs["lr"]) == ({"epochs": 5}, 0.0)


class Diary(LoggerCallback):
    def __init__(self) -> None:
        self.entries: list[Any] = []

    def log_trial_start(self, trial: Any) -> None:
        self.entries.append("start")

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        self.entries.append(result)

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        self.entries.append(f"end, failed={failed}")


def test_a_tracker_hears_numbers_only_and_nothing_after_the_end() -> None:
    """A trial may be started again by Tune after its process died, even after its last word."""
    diary = Diary()
    tracker = Tracker("diary", lambda: diary, lambda trial, name: trial, lambda trial: True, Console(quiet=True))
    tracker.setup()
    final = row("error", None, []) | {"traceback": "long", "val_mia_auc": 0.5, "flag": True}
    trial = shown("t", row=final)
    for _ in range(2):
        tracker.on_trial_start(0, [], trial)
    tracker.on_trial_result(0, [], trial, {"row": final, "score": 0.0})
    tracker.on_trial_complete(0, [], trial)
    tracker.on_trial_start(0, [], trial)
    tracker.on_trial_result(0, [], trial, {"row": final, "score": 0.0})
    tracker.on_trial_error(0, [], trial)
    tracker.close()
    told = {"epochs": 3, "wall_s": 2.0, "val_mia_auc": 0.5, "training_iteration": 3}
    assert diary.entries == ["start", "start", told, "end, failed=True"]


@pytest.mark.parametrize(
    ("tracker", "module", "command"),
    [
        ("tensorboard", "tensorboardX", "pip install tensorboardX"),
        ("mlflow", "mlflow", "pip install mlflow"),
        ("wandb", "wandb", "pip install wandb"),
    ],
)
def test_a_missing_package_is_said_before_anything_is_run(
    monkeypatch: pytest.MonkeyPatch, tracker: str, module: str, command: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=f"--{tracker} needs .*: {command}$"):
        Trackers(**{tracker: "sqlite:///x.db"})
    assert Trackers() == Trackers(None, None, None, None)


@pytest.mark.parametrize(
    ("trackers", "message"),
    [
        ({"optuna": "study.db"}, "sqlite:///study.db, not 'study.db'"),
        ({"optuna": "nosuch://host/x"}, "takes a database's URL"),
        ({"optuna": "oracle+cx_oracle://host/x"}, "pip install cx_Oracle"),
        ({"mlflow": "mlruns"}, "has given up directories"),
        ({"mlflow": "file:///tmp/mlruns"}, "has given up directories"),
    ],
)
def test_an_address_that_cannot_work_is_refused(trackers: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Trackers(**trackers)


@pytest.mark.long
def test_the_flags_reach_the_sweep(raymu, tmp_path: Path) -> None:
    printed = raymu("sweep", "salun", "--optuna", "study.db", "--storage", "storage")
    assert printed.returncode == 2
    assert printed.stderr.startswith("error: --optuna takes a database's URL")
    assert not (tmp_path / "storage").exists()
