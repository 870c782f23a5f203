"""Trackers follow real sweeps; what they were told is read back from their own files."""

import dataclasses
import io
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import pytest
from mlflow import MlflowClient
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState
from ray.tune.logger import LoggerCallback
from ray.tune.logger.tensorboardx import TBXLoggerCallback
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from raymu.errors import InputError
from raymu.method import Range
from raymu.methods.random_label import RandomLabel
from raymu.protocol import Confirmation, Protocol
from raymu.results import store
from raymu.session import Resources, session
from raymu.sweep import Sweep, run_sweep
from raymu.trackers import Trackers, _Shown, _Study, _Tracker

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
    rows = run_sweep(sweep, directory, Resources(concurrent=2), console, resume=resume, trackers=trackers)
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


def test_nothing_is_lost_and_nothing_complained_of(followed: Followed) -> None:
    assert sorted(row["trial_id"] for row in followed.rows) == ["rl-0000", "rl-0001", "rl-0002"]
    assert "rl-0003" in followed.printed  # of the confirmation
    assert "warning" not in followed.printed


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
        last = {tag.rpartition("/")[2]: value for (tag, step), value in values.items() if step == row["epochs"]}
        assert {step: values["ray/tune/score", step] for step, _ in row["curve"]} == pytest.approx(dict(row["curve"]))
        expected = {
            key: value
            for key, value in row.items()
            if isinstance(value, (int, float))
            and key not in ("trial", "search_seed", "fallback", "restarts", "ended_s")
            and key not in ("trial", "search_seed", "fallback", "restarts", "ended_s")
        }
        assert "test_probe_forget_acc" in expected
        assert last == pytest.approx(expected)
        assert hyperparameters == pytest.approx({name: row["config"][name] for name in ("lr", "epochs")})


def test_mlflow_has_a_run_a_trial(followed: Followed) -> None:
    client = MlflowClient(followed.trackers.mlflow)
    runs = client.search_runs([client.get_experiment_by_name("rl").experiment_id])
    by_name = {run.info.run_name: run for run in runs}
    assert len(runs) == len(by_name) == 3
    for row in followed.rows:
        run = by_name[row["trial_id"]]
        assert run.info.status == "FINISHED"
        assert {name: float(value) for name, value in run.data.params.items()} == {
            name: row["config"][name] for name in ("lr", "epochs")
        }
        for metric in ("score", "val_probe_forget_acc", "test_retain_acc", "wall_s"):
            assert run.data.metrics[metric] == row[metric]
        history = [[point.step, point.value] for point in client.get_metric_history(run.info.run_id, "score")]
        assert history == row["curve"]
        assert (run.data.tags["method"], run.data.tags["head"]) == ("random_label", "linear")


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
def test_a_resumed_sweep_adds_to_the_study_what_it_lacks(followed: Followed, tmp_path: Path) -> None:
    """Of three rows the study knows one, the second was written while it was away, the third is run now."""
    url = f"sqlite:///{tmp_path}/study.db"
    kept = sorted(followed.rows, key=lambda row: row["trial"])[:2]
    study = _Study(url, "rl", SPACE, kept[:1])
    study.setup()
    identity = followed.sweep.identity()
    with store.Store(tmp_path / "rl", identity, resume=False, is_finished=lambda rows: False) as rows:
        for row in kept:
            rows.append(row)
    resumed = follow(followed.sweep, tmp_path / "rl", Trackers(optuna=url), resume=True)
    assert "warning" not in resumed.printed
    trials = optuna.load_study(study_name="rl", storage=url).trials
    assert [trial.user_attrs["trial_id"] for trial in trials] == ["rl-0000", "rl-0001", "rl-0002"]
    assert [trial.params["lr"] for trial in trials] == [row["config"]["lr"] for row in resumed.rows]


def test_a_study_of_another_sweep_is_left_alone(followed: Followed, tmp_path: Path) -> None:
    shutil.copy(followed.trackers.optuna.removeprefix("sqlite:///"), tmp_path / "study.db")
    url = f"sqlite:///{tmp_path}/study.db"
    sweep = dataclasses.replace(followed.sweep, protocol=Protocol(trials=1))
    other = follow(sweep, tmp_path / "rl", Trackers(optuna=url))
    assert "the sweep goes on without optuna (ValueError: study 'rl' holds trials of another sweep" in other.printed
    assert len(other.rows) == 1
    assert len(optuna.load_study(study_name="rl", storage=url).trials) == 3


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
    return _Shown(trial_id, trial_id, {"lr": 0.01, "epochs": 5}, last_result, Path("nowhere"))


def row(status: str, score: float | None, curve: list[list[float]], **config: float) -> dict[str, Any]:
    config = {"lr": 0.01, "epochs": 5, "clip": None, **config}
    return {"status": status, "score": score, "curve": curve, "config": config, "epochs": 3, "wall_s": 2.0}


def test_every_status_has_its_state(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    study = _Study(url, "s", SPACE, [])
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
    tracker = _Tracker("diary", lambda: diary, lambda trial, name: trial, lambda trial: True, Console(quiet=True))
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


def test_the_flags_reach_the_sweep(raymu, tmp_path: Path) -> None:
    printed = raymu("sweep", "salun", "--optuna", "study.db", "--storage", "storage")
    assert printed.returncode == 2
    assert printed.stderr.startswith("error: --optuna takes a database's URL")
    assert not (tmp_path / "storage").exists()
