"""Real sweeps on real Ray, through the scripts that users run."""

import dataclasses
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest.mock import MagicMock

import numpy as np
import pytest
from conftest import REPOSITORY
from rich.console import Console

from raymu import methods, reference_models, splits
from raymu.data import published
from raymu.distributed.session import Resources, session
from raymu.engines import DEFAULTS
from raymu.errors import InputError
from raymu.evaluation import columns
from raymu.methods.random_label import RandomLabel
from raymu.methods.salun import SalUn
from raymu.objective import HMEAN, Objective
from raymu.protocol import Confirmation, Protocol
from raymu.results import files, reader, selection, writer
from raymu.results.ranking import FIXED
from raymu.scenario import SCENARIOS, Recipe
from raymu.storage import locate
from raymu.trial import blank_row
from raymu.tuning.callbacks import Ended, Recorder
from raymu.tuning.driver import run_sweep
from raymu.tuning.process import _result, blank_of
from raymu.tuning.samplers import KNOWN, sampler
from raymu.tuning.schedulers import scheduler
from raymu.tuning.sweep import Sweep

SHORT = ("--trials", 12, "--max-epochs", 4, "--scheduler", "asha")
pytestmark = pytest.mark.timeout(600)  # beside other tests a sweep takes minutes
ROW_KEYS = {"method", "scenario", "seed", "trial_id", "status", "config", "score", "wall_s", "epochs", *columns()}


def script(name: str, directory: Path) -> list[str]:
    """The command that runs a copy of a sweep script, alone in a directory, as `ray submit` does."""
    directory.mkdir(exist_ok=True)
    copy = shutil.copy(REPOSITORY / "sweeps" / f"{name}.py", directory)
    return [sys.executable, str(copy)]


def run(command: list[str], *arguments: object, timeout: float = 580) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, cwd=Path(command[1]).parent
    )


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The storage after one sweep of SalUn, and what it printed."""
    directory = tmp_path_factory.mktemp("swept")
    storage = directory / "storage"
    return storage, run(script("salun", directory), *SHORT, "--storage", storage)


def test_a_sweep_leaves_one_whole_row_a_trial(swept) -> None:
    storage, printed = swept
    assert printed.returncode == 0, printed.stderr
    rows = reader.read_all(storage)
    assert [row["trial"] for row in sorted(rows, key=lambda row: row["trial"])] == list(range(12))
    assert len({row["trial_id"] for row in rows}) == 12
    for row in rows:
        assert set(row) >= ROW_KEYS
        assert all(0 <= row[column] <= 1 for column in columns(rung=True))


def test_test_is_read_of_the_published_setting_and_of_trials_that_are_the_best_when_they_end(swept) -> None:
    rows = [row for row in reader.read_all(swept[0]) if row["status"] == "completed"]
    for number, row in enumerate(rows):
        assert (row["test_score"] is None) == (row["test_retain_acc"] is None)
        assert row["test_score"] is not None or row["source"] == "search"
        before = [one for one in rows[:number] if one["trial"] < row["trial"]]
        if row["source"] == "search" and row["test_score"] is not None:  # while test is read of it, another may end
            assert selection.is_best(row, before) or selection.is_best(row, before[:-1])
        elif row["source"] == "search":
            assert not selection.is_best(row, before)
    assert 1 < sum(row["test_score"] is not None for row in rows) < len(rows)


def test_the_best_of_several_is_the_one_that_would_be_chosen() -> None:
    some = [searched(1, -0.3), searched(2, -0.2), searched(4, 0.9, "stopped"), searched(5, 0.8, "diverged")]
    assert selection.is_best(searched(6, -0.2), some)  # of scores that are 0 the searcher's decide
    assert not selection.is_best(searched(6, -0.25), some)
    assert selection.is_best(searched(6, -1.0), [])
    lucky = searched(6, 0.9) | {"expected_score": 0.3}
    assert not selection.is_best(lucky, [searched(7, 0.4)])
    assert selection.is_best(searched(7, 0.4), [lucky])


def test_a_row_is_kept_although_the_objective_cannot_say_what_is_expected(digits, tmp_path) -> None:
    """A searcher asks it about columns that no trial has had. The sweep ends, and Tune does not take it for a trial's
    failure.
    """

    def expected(row: dict) -> float:
        raise InputError("objective mine has no score")

    sweep, kept, done = Sweep(RandomLabel, digits, Protocol(9)), list[dict](), [searched(1, 0.9)]
    store = SimpleNamespace(name="own", directory=locate(tmp_path), append=kept.append)
    other = MagicMock()
    other.__getitem__.return_value = SimpleNamespace(begun=1)
    recorder = Recorder(sweep, store, DEFAULTS, other, done, other, other, other, lambda: 1.0, expected)
    task = sweep.task(0, 3, {})
    row = blank_of(sweep, task, DEFAULTS) | {"score": 0.5, "curve": [[3, 0.5]], "epochs": 3}
    assert not recorder.is_no_best("", {"config": {"task": task}, **_result(row)})  # it is measured on test
    trial = SimpleNamespace(config={"task": task}, last_result=_result(row), trial_id="")
    with pytest.raises(Ended) as ended:
        recorder.on_trial_complete(0, [], trial)
    assert str(ended.value.error) == "objective mine has no score"
    assert kept == [done[-1]]
    assert (kept[0]["trial"], kept[0]["score"], kept[0]["expected_score"]) == (3, 0.5, None)


def test_only_what_rungs_tell_is_asked_before_test_is_read(digits) -> None:
    late = Objective(lambda mia_auc: mia_auc, name="late")  # which only the end of a trial measures
    asked = [Sweep(RandomLabel, digits, Protocol(9, searcher="tpe", objective=one)) for one in (HMEAN, "pareto", late)]
    assert [sweep.is_judged_at_rungs for sweep in asked] == [True, False, False]


def test_trial_0_is_the_published_setting_and_runs_in_full(swept) -> None:
    rows = reader.read_all(swept[0])
    first = next(row for row in rows if row["trial"] == 0)
    assert first["config"] == {
        "lr": 1e-2,
        "epochs": 3,
        "clip": None,
        "salient": 0.5,
        "saliency": "absolute",
        "decay": 1.0,
    }
    assert first["published"] is None  # for the digits it is a fallback
    assert (first["source"], first["status"], first["epochs"]) == ("published", "completed", 3)
    assert selection.tuned(rows)["score"] >= first["score"]


def test_asha_stops_some_and_only_at_its_rungs(swept) -> None:
    rows = reader.read_all(swept[0])
    stopped = [row for row in rows if row["status"] == "stopped"]
    assert stopped
    for row in stopped:
        assert row["epochs"] in (1, 3, 9)
        assert row["epochs"] < row["config"]["epochs"]
    for row in rows:
        if row["status"] == "completed":
            assert row["epochs"] == row["config"]["epochs"]
        if row["source"] == "search":
            assert [epoch for epoch, _ in row["curve"]] == list(range(1, len(row["curve"]) + 1))
            assert row["epochs"] <= len(row["curve"]) <= 10


def test_the_comparison_is_printed(swept) -> None:
    output = swept[1].stdout
    for model in (*FIXED, "published", "tuned"):
        assert any(line.startswith(model) for line in output.splitlines())
    assert "tuned setting: lr=" in output
    assert str(swept[0] / "salun") in output
    assert "[12/12," in output  # plain lines where there is no terminal


@pytest.mark.long
def test_a_second_sweep_of_another_method_trains_no_reference(swept, tmp_path) -> None:
    scenario = SCENARIOS["digits"]
    models = [
        reference_models.entry_of(scenario, which) / reference_models.WEIGHTS for which in reference_models.REFERENCES
    ]
    before = [model.stat().st_mtime_ns for model in models]
    printed = run(script("random_label", tmp_path), "--trials", 2, "--storage", swept[0])
    assert printed.returncode == 0, printed.stderr
    assert not re.search(r"trained \d", printed.stdout)
    assert [model.stat().st_mtime_ns for model in models] == before
    assert {row["method"] for row in reader.read_all(swept[0])} == {"salun", "random_label"}


@pytest.mark.long
def test_all_methods_are_swept_under_one_protocol_and_ranked(swept, tmp_path) -> None:
    unconfirmed = ("--confirm-seeds", 0, "--confirm-originals", 0)
    options = ("--trials", 1, "--train", "classifier", "--storage", tmp_path / "storage")
    printed = run(script("all", tmp_path), *options, *unconfirmed)
    assert printed.returncode == 0, printed.stderr
    rows = reader.read_all(tmp_path / "storage")
    refused = {"ssd", "svd", "influence"}
    swept_methods = set(methods.names()) - refused - {"retrain"}
    assert {row["method"] for row in rows} == swept_methods
    assert printed.stdout.count("left out: ") == len(refused)
    assert {row["train"] for row in rows} == {"classifier"}
    assert all(row["fallback"] for row in rows)  # the paper gives no setting for the digits
    ranking = printed.stdout[printed.stdout.index("Tuned, on test") :]
    ranked = re.findall(r"^ *\d+(?: \(\d+-\d+\))? +(\w+-classifier) +([\d.]+)", ranking, re.MULTILINE)
    assert sorted(name for name, _ in ranked) == sorted(f"{name}-classifier" for name in swept_methods)
    scores = [float(score) for _, score in ranked]
    assert scores == sorted(scores, reverse=True)
    refused_range = run(script("all", tmp_path), "--range", "lr=1e-4:1e-2")
    assert refused_range.returncode == 2
    assert "sweep of one method" in refused_range.stderr


def test_best_runs_again_to_the_last_digit(swept, raymu, tmp_path) -> None:
    (tmp_path / "best.yaml").write_text(raymu("best", str(swept[0] / "salun"), "--yaml").stdout)
    best = json.loads(raymu("best", str(swept[0] / "salun"), "--json").stdout)
    assert best == selection.tuned(reader.read(swept[0] / "salun"))
    printed = raymu("run", "salun", "--config", "best.yaml", "--out", "again")
    assert printed.returncode == 0, printed.stderr
    row = json.loads((tmp_path / "again" / "row.json").read_text())
    same = ("config", "seed", "score", "images", "forget", "threads", *columns())
    assert {key: row[key] for key in same} == {key: best[key] for key in same}
    assert (tmp_path / "again" / "model.safetensors").stat().st_size > 0


@pytest.mark.long
def test_ranking_rules_and_report_from_the_command_line(swept, raymu, tmp_path) -> None:
    storage = str(swept[0] / "salun")
    rows = reader.read(swept[0] / "salun")
    ranking = raymu("results", storage, "--ranking", COLUMNS="100")
    assert ranking.returncode == 0, ranking.stderr
    assert re.findall(r"^ *(\d+) +(\w+)", ranking.stdout, re.MULTILINE) == [("1", "salun")]
    assert r"1 & salun & " in raymu("results", storage, "--latex").stdout
    front = json.loads(raymu("best", storage, "--rule", "pareto", "--json").stdout)
    assert [row["trial"] for row in front] == [row["trial"] for row in selection.ParetoFront().choose(rows)]
    constrained = json.loads(raymu("best", storage, "--rule", "constrained:0.5", "--json").stdout)
    original = reference_models.metrics(SCENARIOS["digits"])["original"]
    assert constrained["trial"] == selection.Constrained(original, 0.5).choose(rows)[0]["trial"]
    for rule, message in (
        ("cheapest", "confirmed at least twice"),
        ("constrained:much", "takes a share"),
        ("constrained:-1", "no completed trial keeps"),
        ("tunned", "did you mean 'tuned'"),
        ("tuned:3", "rule tuned takes no '3'"),
    ):
        refused = raymu("best", storage, "--rule", rule)
        assert (refused.returncode, message in refused.stderr) == (2, True), refused.stderr
    assert raymu("report", storage, "-o", "page.html").returncode == 0
    assert "salun" in (tmp_path / "page.html").read_text()


@pytest.mark.long
def test_rows_that_are_not_there_are_told_of(swept, raymu, tmp_path) -> None:
    assert [sweep.missing for sweep in reader.load(swept[0] / "salun")] == [""]
    shutil.copytree(swept[0] / "salun", tmp_path / "s")
    path = tmp_path / "s" / files.ROWS
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    for arguments in (["best", "s"], ["results", "s", "--ranking"], ["report", "s"]):
        assert raymu(*arguments).stderr.strip().endswith("s: 11 of its 12 rows are there")
    assert "s: 11 of its 12 rows are there." in (tmp_path / "report.html").read_text()
    (tmp_path / "s" / files.ENDED).unlink()
    assert "s: the sweep has not ended; 11 rows so far" in raymu("best", "s").stderr


@pytest.mark.long
def test_export_makes_the_tuned_model_again_with_a_card(swept, raymu, tmp_path) -> None:
    printed = raymu("export", str(swept[0] / "salun"), "--out", "model")
    assert printed.returncode == 0, printed.stderr
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "README.md",
        "hashes.json",
        "model.safetensors",
        "row.json",
    }
    row, tuned = (
        json.loads((tmp_path / "model" / "row.json").read_text()),
        selection.tuned(reader.read(swept[0] / "salun")),
    )
    assert {key: row[key] for key in columns()} == {key: tuned[key] for key in columns()}
    assert "machine-unlearning" in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.long
def test_a_finished_sweep_is_shown_again_and_another_is_refused(swept, tmp_path) -> None:
    command = script("salun", tmp_path)
    before = (swept[0] / "salun" / files.ROWS).read_bytes()
    asked = (*SHORT, "--storage", swept[0])
    again = run(command, *asked)
    assert again.returncode == 0
    assert "tuned setting" in again.stdout
    refused = run(command, *asked, "--name", "salun", "--forget", 3)
    assert refused.returncode == 2
    assert "belongs to another sweep: scenario.forget is [1, 3, 5, 8, 9] there, [3] here" in refused.stderr
    assert (swept[0] / "salun" / files.ROWS).read_bytes() == before


@pytest.mark.long
@pytest.mark.parametrize(
    "blow",
    [
        pytest.param(signal.SIGKILL, id="killed"),
        pytest.param(signal.SIGINT, id="ctrl-c"),
        pytest.param(signal.SIGTERM, id="terminated"),
        pytest.param(signal.SIGHUP, id="hung up"),
    ],
)
def test_resume_after_the_driver_ended(swept, tmp_path, blow) -> None:
    """Every row that was there stays, and the sweep ends with as many trials as it was to have, each once."""
    command = [*script("salun", tmp_path), "--trials", "9", "--storage", str(tmp_path / "storage"), "--name", "cut"]

    def heed() -> None:
        for number in (signal.SIGINT, signal.SIGHUP):  # which the children of a background job, or of nohup, ignore
            signal.signal(number, signal.SIG_DFL)

    driver = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, preexec_fn=heed
    )
    rows = tmp_path / "storage" / "cut"
    deadline = time.monotonic() + 300
    while len(reader.read(rows)) < 3:
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    driver.send_signal(blow)
    _, errors = driver.communicate(timeout=60)
    if blow != signal.SIGKILL:
        assert driver.returncode == 128 + blow
        assert re.fullmatch(r"interrupted after \d trials; the same command with --resume continues\n", errors)
    before = (rows / files.ROWS).read_bytes()
    kept = reader.read(rows)
    assert 3 <= len(kept) < 9

    refused = run(command[:2], *command[2:])
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    resumed = run(command[:2], *command[2:], "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert (rows / files.ROWS).read_bytes().startswith(before)
    ended = reader.read(rows)
    assert sorted(row["trial"] for row in ended) == list(range(9))
    assert len({json.dumps(row["config"]) for row in ended}) == 9
    assert [row["source"] for row in ended].count("published") == 1


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("Range(1e-5, 1e-1,", "Range(1e-1, 1e-5,", "low end has to be below the high end"),
        pytest.param("trials=12", "trials=0", "trials has to be at least 1", marks=pytest.mark.long),
        pytest.param('{"lr":', '{"rl":', "did you mean 'lr'", marks=pytest.mark.long),
    ],
)
def test_a_mistake_in_an_edited_script_is_one_clear_line(tmp_path, before, after, message) -> None:
    command = script("salun", tmp_path)
    text = Path(command[1]).read_text()
    assert before in text
    Path(command[1]).write_text(text.replace(before, after))
    printed = run(command)
    assert printed.returncode == 2
    assert message in printed.stderr
    assert len(printed.stderr.splitlines()) == 1


def _sweep(sweep: Sweep, directory: Path, *, resume: bool = False) -> list[dict]:
    """One trial at a time, so that what is learnt of those before is the same whenever it is run."""
    return run_sweep(sweep, directory, Resources(concurrent=1), Console(quiet=True), resume=resume, anyway=True)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with session(None):
        yield


@pytest.mark.long
def test_a_finished_sweep_shows_its_table_although_the_cache_was_cleared(swept) -> None:
    storage, printed = swept
    for comparison in reference_models.directory(SCENARIOS["digits"]).glob("comparison-*"):
        shutil.rmtree(comparison)
    again = run(script("salun", storage.parent), *SHORT, "--storage", storage)
    assert again.returncode == 0, again.stderr
    table = printed.stdout[printed.stdout.index("On test") : printed.stdout.index("tuned setting")]
    assert table in again.stdout


def searched(trial: int, score: float, status: str = "completed", **config) -> dict:
    return {
        "trial": trial,
        "source": "search",
        "status": status,
        "score": score,
        "val_retain_acc": score,
        "val_probe_forget_acc": 0.9 if score is None else 1 - score,
        "config": {"lr": 0.01, "epochs": 5, **config},
        "curve": [[1, score]],
    }


def test_to_the_searcher_a_stopped_trial_is_worse_than_any_other(digits) -> None:
    """Its score does not compare with theirs: it must not win over one that ran to its end."""
    done = [searched(1, 0.9, "stopped"), searched(2, 0.4), searched(3, None, "error"), searched(4, 0.8, lr=100.0)]
    sweep = Sweep(RandomLabel, digits, Protocol(searcher="tpe"))
    learner = sampler(sweep.protocol, 0, sweep.ranges, done)
    learner.suggest(5)
    trials = learner.study.trials
    # Of what is no error and in the space, and the suggestion.
    assert [trial.state.name for trial in trials] == ["PRUNED", "COMPLETE", "FAIL"]
    assert trials[0].intermediate_values == {1: 0.9}
    assert trials[1].value == 0.4


GP = {"objective": "hmean"}
TPE = {"searcher": "tpe"}
PARETO = {"searcher": "nsga2", "objective": "pareto"}


@pytest.mark.parametrize("asked", [GP, TPE, PARETO], ids=["gp", "tpe", "nsga2"])
def test_a_suggestion_depends_on_what_is_known_and_on_nothing_else(digits, asked) -> None:
    protocol = Protocol(24, **asked)
    sweep = Sweep(RandomLabel, digits, protocol)
    done: list[dict] = []
    learner = sampler(protocol, 0, sweep.ranges, done)
    for number in range(1, 24):
        config = learner.suggest(number)
        assert config == learner.suggest(number)
        assert config == sampler(protocol, 0, sweep.ranges, done).suggest(number)  # that of a sweep which is resumed
        status = "diverged" if number % 7 == 0 else "completed"
        done.append(searched(number, 1 / (1 + abs(np.log10(config["lr"] / 0.003))), status, **config))
    assert len({json.dumps(row["config"]) for row in done}) > 15  # nsga2 may keep a parent as it is
    assert sampler(protocol, 1, sweep.ranges, done).suggest(24) != learner.suggest(24)
    if asked != PARETO:  # which has hardly begun
        first, last = ([row["score"] for row in part] for part in (done[:8], done[-8:]))
        assert np.mean(last) > np.mean(first)


def test_generations_follow_the_rows(digits) -> None:
    """Also where rows are missing that cannot be learnt, and where trials were asked for side by side."""
    protocol = Protocol(24, **PARETO)
    rows = [searched(number, number / 20, "error" if number == 3 else "completed") for number in range(25)]
    learner = sampler(protocol, 0, Sweep(RandomLabel, digits, protocol).ranges, rows)
    for number in range(3):
        learner.suggest(25 + number)
    trials = learner.study.trials
    generations = [trial.system_attrs[learner.study.sampler._get_generation_key()] for trial in trials]
    assert generations == [0] * 10 + [1] * 10 + [2] * 4 + [2] * 3


class Asked(NamedTuple):
    """What a scheduler looks at of a trial of Tune's."""

    trial_id: str
    config: dict


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_a_scheduler_knows_trials_by_their_number(kind) -> None:
    """Whoever runs them: a rung is compared once, also where its trial goes on from a checkpoint behind it."""
    plain = {"status": "stopped", "epochs": 1}
    others = [searched(number, 0.5 + number / 10) | plain for number in range(4)]

    def ask(judge, number: int, *curve: list) -> str:
        trial = Asked(f"{number}-{len(curve)}", {"task": SimpleNamespace(number=number)})
        return judge.on_trial_result(None, trial, {"row": {"status": "stopped", "curve": list(curve)}})

    judge, late = scheduler(kind, 9, others), scheduler(kind, 9, others)
    assert ask(judge, 4, [1, 0.9]) == "CONTINUE"
    assert ask(judge, 5, [1, 0.1]) == "STOP"
    assert ask(judge, 5, [1, 0.1]) == "CONTINUE"  # what was told is not told again
    assert ask(late, 4, [1, 0.9], [3, 0.8]) == "CONTINUE"  # its first rung is from before
    assert ask(late, 5, [1, 0.1]) == "STOP"
    ended = searched(4, 0.9) | {"curve": [[1, 0.9], [2, 0.3]]}  # the last is no rung's
    for one in (judge, late, scheduler(kind, 9, [*others, ended, searched(5, 0.1, "stopped")])):
        assert ask(one, 6, [1, 0.85]) == "CONTINUE"
        assert ask(one, 7, [1, 0.45]) == "STOP"


def test_tune_finds_no_number_in_a_row(digits) -> None:
    """It keeps statistics of all that it finds, of every trial."""
    from ray.tune.utils import flatten_dict  # after raymu, which sets what Ray reads once

    row = blank_row(digits, RandomLabel(), seed=0, objective=HMEAN, options=DEFAULTS) | dict.fromkeys(columns(), 0.5)
    told = _result(row)
    assert flatten_dict(told) == told
    assert dict(told["row"]) == row


FRAGILE = """
import os
import signal
from dataclasses import dataclass

import torch

from raymu.cli import sweep_main
from raymu.method import Method, Range, tuned
from raymu.protocol import Confirmation, Protocol
from raymu.scenario import SCENARIOS
from raymu.tuning.sweep import Sweep


class Fragile(Method):
    paper = "none"
    lr: float = tuned(0.1, Range(0.0, 4.0, "linear"), "what goes wrong")
    epochs: int = tuned(1, Range(1, 2, "int"), "")

    def unlearn(self, run):
        for _ in run.epochs(self.epochs, self.lr):
            if self.lr > 3:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.lr > 2:
                raise RuntimeError("not today")
            for batch in run.batches("forget"):
                loss = torch.nn.functional.cross_entropy(run.model(batch.images), batch.labels)
                yield loss * torch.inf if self.lr > 1 else loss


sweep_main(lambda: Sweep(Fragile, SCENARIOS["digits"], Protocol(trials=7, search_seeds=(52,))))
"""


@pytest.mark.long
def test_what_goes_wrong_in_a_trial_is_a_row(swept, tmp_path) -> None:
    """With a method of one's own, in a script of one's own. Each kind of failure happens; the sweep goes on."""
    (tmp_path / "fragile.py").write_text(FRAGILE)
    printed = run([sys.executable, str(tmp_path / "fragile.py")], "--storage", tmp_path)
    assert printed.returncode == 0, printed.stderr
    rows = reader.read(tmp_path / "fragile")
    assert sorted(row["trial"] for row in rows) == list(range(7))
    kinds = {0: ("completed", "stopped"), 1: ("diverged",), 2: ("error",), 3: ("error",)}
    assert {int(row["config"]["lr"]) for row in rows} == set(kinds)
    for row in rows:
        assert row["status"] in kinds[int(row["config"]["lr"])]
        if row["status"] == "diverged":
            assert row["score"] == 0.0
        if row["status"] == "error":
            assert row["score"] is None
            assert ("not today" if row["config"]["lr"] <= 3 else "process died") in row["error"]
            assert all(row[key] is None for key in columns())


SLOW = """
import time
from dataclasses import dataclass

import torch

from raymu.cli import sweep_main
from raymu.method import Method, Range, tuned
from raymu.protocol import Protocol
from raymu.scenario import SCENARIOS
from raymu.tuning.sweep import Sweep


class Slow(Method):
    paper = "none"
    lr: float = tuned(0.1, Range(1e-6, 0.1, "log"), "")
    epochs: int = tuned(3, Range(2, 3, "int"), "")

    def unlearn(self, run):
        try:
            for _ in run.epochs(self.epochs, self.lr):
                for batch in run.batches("forget"):
                    yield -torch.nn.functional.cross_entropy(run.model(batch.images), batch.labels)
        finally:
            time.sleep(4)


sweep_main(lambda: Sweep(Slow, SCENARIOS["digits"], Protocol(trials=9, searcher="random", scheduler="asha")))
"""


@pytest.mark.long
def test_no_trial_is_lost_behind_one_that_is_slow_to_end(swept, tmp_path) -> None:
    """Fix: Tune waited two seconds for the process of a stopped trial, and then forgot the next one."""
    (tmp_path / "slow.py").write_text(SLOW)
    printed = run([sys.executable, str(tmp_path / "slow.py")], "--storage", tmp_path, "--concurrent", 1)
    assert printed.returncode == 0, printed.stderr
    rows = reader.read(tmp_path / "slow")
    assert sorted(row["trial"] for row in rows) == list(range(9))
    assert {row["status"] for row in rows} == {"completed", "stopped"}


@pytest.mark.long
def test_poisoned_test_labels_change_nothing_in_the_search(tmp_path, monkeypatch) -> None:
    """Two whole sweeps, one after the other at a time, on data that differs in its test labels alone."""
    generator = np.random.default_rng(0)
    labels = np.arange(600) % 10
    images = generator.integers(0, 200, (600, 3, 32, 32)) + 5 * labels[:, None, None, None]  # not too easy to tell
    scenario = dataclasses.replace(
        SCENARIOS["cifar10-resnet18"],
        architecture="test_resnet",
        cifar_stem=False,
        recipe=Recipe(lr=0.05, epochs=1, batch_size=64),
    )
    searches, tests = [], []
    for poison in (False, True):
        monkeypatch.setenv("RAYMU_CACHE", str(tmp_path / f"cache-{poison}"))
        parts = {
            "train_images": images[:300].astype(np.uint8),
            "train_labels": labels[:300],
            "test_images": images[300:].astype(np.uint8),
            "test_labels": generator.permutation(labels[:300]) if poison else labels[:300],
        }
        published.DATASETS["cifar10"].keep(parts)
        protocol = Protocol(12, scheduler="asha", confirmation=Confirmation(seeds=1, originals=1, top=2))
        rows = _sweep(Sweep(RandomLabel, scenario, protocol), tmp_path / f"poison-{poison}" / "rows")
        seen = ("trial_id", "confirms", "model_seed", "seed", "config", "status", "epochs", "curve", "score")
        searches.append([[row[key] for key in seen] for row in rows])
        searches[-1].append(
            [selection.tuned(rows)["trial"], [row["trial"] for row in selection.ParetoFront().choose(rows)]]
        )
        tests.append([row["test_retain_acc"] for row in rows])
    assert searches[0] == searches[1]
    assert tests[0] != tests[1]
    assert "stopped" in {row[5] for row in searches[0][:-1]}
    assert len(searches[0]) > 12 + 1


def test_shuffled_test_metrics_change_neither_selection_nor_confirmation(swept) -> None:
    (result,) = reader.load(swept[0] / "salun")
    rows = result.rows
    columns = [column for column in rows[0] if column.startswith("test_")]
    order = np.random.default_rng(0).permutation(len(rows))
    shuffled = [
        row | {column: rows[other][column] for column in columns} for row, other in zip(rows, order, strict=True)
    ]
    assert [row["test_retain_acc"] for row in rows] != [row["test_retain_acc"] for row in shuffled]
    sweep = Sweep(SalUn, SCENARIOS["digits"], Protocol(trials=12, confirmation=Confirmation(2, 2, 3)))
    original = result.references[splits.prepare(SCENARIOS["digits"]).hash]["original"]
    for rule in (selection.Best(5), selection.ParetoFront(), selection.Constrained(original, 0.2)):
        assert [row["trial"] for row in rule.choose(rows)] == [row["trial"] for row in rule.choose(shuffled)]
    assert sweep.confirmations(rows) == sweep.confirmations(shuffled)
    assert selection.tuned(rows)["trial"] == selection.tuned(shuffled)["trial"]


@pytest.mark.long
def test_every_searcher_and_scheduler(local_ray, quick, tmp_path) -> None:
    """Nothing is drawn twice, and all within the budget."""
    protocols = {
        "random": Protocol(trials=5, searcher="random", scheduler="median", max_epochs=4),
        "grid": Protocol(trials=5, searcher="grid", scheduler="none", max_epochs=3),
        "nsga2": Protocol(trials=6, searcher="nsga2", scheduler="none", objective="pareto", max_epochs=3),
        "seeds": Protocol(trials=3, searcher="quasi_random", search_seeds=(0, 3), max_epochs=3),
    }
    for name, protocol in protocols.items():
        sweep = Sweep(RandomLabel, quick, protocol)
        rows = _sweep(sweep, tmp_path / name)
        numbers = [number for seed in protocol.search_seeds for number in sweep.trials(seed)]
        assert sorted(row["trial"] for row in rows) == sorted(numbers)
        configs = [json.dumps([row["seed"], row["config"]]) for row in rows]
        assert len(set(configs)) == len(rows) or protocol.searcher == "nsga2"  # which may keep a parent as it is
        assert [row["source"] for row in rows].count("published") == len(protocol.search_seeds)
        assert all(row["seed"] == row["search_seed"] in protocol.search_seeds for row in rows)
        assert max(row["config"]["epochs"] for row in rows) <= protocol.max_epochs
        if protocol.searcher in KNOWN:
            by_trial = {row["trial"]: row for row in rows}
            numbers = sweep.trials(0)[1:]
            known = sweep.sampler(0)
            lrs = [known.suggest(place)["lr"] for place in range(1, 1 + len(numbers))]
            assert [by_trial[one]["config"]["lr"] for one in numbers] == lrs


@pytest.mark.long
def test_no_trial_begins_once_the_images_are_spent(local_ray, quick, tmp_path) -> None:
    protocol = Protocol(trials=20, max_images=8000, scheduler="none")
    sweep = Sweep(RandomLabel, quick, protocol)
    rows = _sweep(sweep, tmp_path / "spent")
    images = [row["images"] for row in rows]
    assert sum(images[:-1]) < 8000 <= sum(images)
    assert len(rows) < 20
    before = (tmp_path / "spent" / files.ROWS).read_bytes()
    assert len(_sweep(sweep, tmp_path / "spent")) == len(rows)  # it is finished
    assert (tmp_path / "spent" / files.ROWS).read_bytes() == before
    # Trials side by side, of which the driver saw but the last end: those that had begun are within the budget.
    cut = tmp_path / "cut" / "spent"
    shutil.copytree(tmp_path / "spent", cut)
    (cut / files.ROWS).unlink()
    attempt = {"config": rows[0]["config"], "begun": 1, "failures": 0, "lost_nodes": 0}
    (whole,) = reader.load(tmp_path / "spent")
    with writer.Store(cut, whole.identity, resume=True) as stored:
        for row in rows[1:]:
            stored.append(row | {"images": 8000})
        stored.put(files.RUNNING, {"0": attempt})
    resumed = _sweep(sweep, cut, resume=True)
    assert sorted(row["trial"] for row in resumed) == list(range(len(rows)))


@pytest.mark.long
def test_a_confirmation_is_resumed_and_leaves_what_a_report_needs(local_ray, quick, tmp_path) -> None:
    sweep = Sweep(
        RandomLabel, quick, Protocol(trials=2, confirmation=Confirmation(seeds=2, originals=2, top=1, forget=((3,),)))
    )
    rows = _sweep(sweep, tmp_path / "whole")
    confirmed = {row["trial"]: row for row in rows if row["source"] == "confirmation"}
    assert len(confirmed) in (8, 16)  # the published setting may be the best
    cut = tmp_path / "cut" / "whole"
    shutil.copytree(tmp_path / "whole", cut)
    (cut / files.ROWS).write_text("".join((cut / files.ROWS).read_text().splitlines(keepends=True)[:5]))
    with pytest.raises(InputError, match="--resume"):
        _sweep(sweep, cut)
    resumed = _sweep(sweep, cut, resume=True)
    same = ("trial", "confirms", "model_seed", "forget", "seed", "config", "score", *columns())
    assert sorted([[row[key] for key in same] for row in resumed], key=lambda row: row[0]) == sorted(
        [[row[key] for key in same] for row in rows], key=lambda row: row[0]
    )
    scores = {(row["model_seed"], row["seed"], tuple(row["forget"])) for row in confirmed.values()}
    assert scores == set(itertools.product((1, 2), (1, 2), (quick.forget, (3,))))
    (result,) = reader.load(tmp_path / "whole")
    assert set(result.references) == {splits.prepare(quick).hash} | {row["scenario_hash"] for row in confirmed.values()}
    assert result.environment["versions"]["ray"]
    assert result.features is not None
    assert {len(result.features[model]["x"]) for model in ("original", "retrained", "tuned")} == {260}
    assert result.features["trial_id"] == selection.Best().choose(rows)[0]["trial_id"]


@pytest.mark.long
def test_two_sweeps_at_once_train_the_references_once(tmp_path) -> None:
    """On a cache of their own; each on its own local Ray."""
    environment = {**os.environ, "RAYMU_CACHE": str(tmp_path / "cache")}
    drivers = [
        subprocess.Popen(
            [*script(name, tmp_path), "--trials", "1", "--storage", str(tmp_path / "storage")],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("salun", "random_label")
    ]
    outputs = [driver.communicate(timeout=240) for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], outputs
    rows = reader.read_all(tmp_path / "storage")
    assert {row["method"] for row in rows} == {"salun", "random_label"}
    assert len({row["scenario_hash"] for row in rows}) == 1
