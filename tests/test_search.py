"""Which algorithm a searcher or scheduler is: the same seed and rows give the same, or the protocol says otherwise."""

import dataclasses
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY
from optuna.samplers import NSGAIISampler, TPESampler
from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule
from rich.console import Console
from test_store import row as a_row

from raymu.distributed.session import Resources
from raymu.errors import InputError
from raymu.method import Range
from raymu.methods.random_label import RandomLabel
from raymu.protocol import Protocol
from raymu.results import ranking, reader, writer
from raymu.tuning import fingerprints, samplers, schedulers
from raymu.tuning.driver import run_sweep
from raymu.tuning.samplers import gp, learning, nsga2, sampler, tpe
from raymu.tuning.schedulers import scheduler
from raymu.tuning.sweep import Sweep

SPACE = {"lr": Range(1e-5, 1e-1, "log"), "share": Range(0.0, 2.0, "linear"), "epochs": Range(1, 10, "int")}
SEED = 3
PARETO = {"objective": "pareto"}
PROTOCOLS: dict[str, Any] = {
    "tpe": {"searcher": "tpe"},
    "pareto": {"searcher": "tpe", **PARETO},
    "nsga2": {"searcher": "nsga2", **PARETO},
}
RANDOM = [[0.0014239, 1.87911, 9], [0.00595151, 1.47346, 1]]  # with 5 rows, for trials 5 and 6
SUGGESTED = {  # with 33 rows, for trials 33 and 34, by `fingerprints.suggestions`
    "c209af8c3ecf": [[0.00451008, 1.02088, 8], [0.00333606, 0.73143, 4]],  # tpe, Optuna 4.5
    "c7a9d614459e": [[0.0026008, 0.961086, 3], [0.00245042, 1.00445, 1]],  # tpe, Optuna 5.0
    "07f2cfeef6a9": [[0.00904333, 0.294571, 2], [0.00778163, 0.295491, 2]],  # tpe for pareto, Optuna 4.5
    "9290f661eb4d": [[0.00904333, 0.294571, 2], [0.00778163, 0.295491, 2]],  # the same, Optuna 5.0
    "d6bd3ff38474": [[0.000335956, 0.848485, 3], [0.1, 1.95505, 1]],  # nsga2, Optuna 4.5 and 5.0
}
ASK = "import json, test_search; print(json.dumps(test_search.all_suggested()))"


def rows(count: int) -> list[dict[str, Any]]:
    """Completed, stopped and diverged ones, spread over the space."""
    made = []
    for n in range(count):
        keep = 1 - abs(n * 7 % count - count / 3) / count
        made.append(
            {
                "config": {
                    "lr": 10 ** (-1 - 4 * (n * 7 % count) / count),
                    "share": 2 * (n * 5 % count) / count,
                    "epochs": 1 + n % 10,
                },
                "status": "stopped" if n % 4 == 3 else "diverged" if n == 6 else "completed",
                "score": keep,
                "val_retain_acc": keep,
                "val_probe_forget_acc": (n * 3 % count) / count,
                "curve": [[1, keep - 0.1], [3, keep]],
            }
        )
    return made


def suggested(protocol: Protocol, count: int) -> list[list[float]]:
    learner = sampler(protocol, SEED, SPACE, rows(count))
    return [[float(f"{value:.6g}") for value in learner.suggest(count + n).values()] for n in range(2)]


def suggestions(protocol: Protocol) -> str:
    return fingerprints.suggestions(protocol.searcher, protocol.objective.maximises is not None)


def all_suggested() -> dict[str, Any]:
    made = {name: Protocol(40, **fields) for name, fields in PROTOCOLS.items()}
    return {name: [suggestions(one), suggested(one, 5), suggested(one, 33)] for name, one in made.items()}


def test_a_searcher_suggests_what_its_identity_says() -> None:
    for digest, first, later in all_suggested().values():
        assert first == RANDOM
        assert later == SUGGESTED[digest]


@pytest.mark.long
@pytest.mark.parametrize("version", ["4.5.0", "5.0.0"])
def test_two_versions_of_optuna_suggest_the_same_or_have_two_identities(tmp_path: Path, version: str) -> None:
    """Installs Optuna from PyPI, for this test alone."""
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path, f"optuna=={version}"]
    if (tried := subprocess.run(install, capture_output=True, text=True)).returncode:
        pytest.skip(tried.stderr.strip().splitlines()[-1])
    paths = {"PYTHONPATH": os.pathsep.join(map(str, [tmp_path, REPOSITORY, REPOSITORY / "tests"]))}
    asked = subprocess.run([sys.executable, "-c", ASK], env=os.environ | paths, capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr
    for digest, first, later in json.loads(asked.stdout.splitlines()[-1]).values():
        assert first == RANDOM
        assert later == SUGGESTED[digest]


def changed(monkeypatch: pytest.MonkeyPatch, maker: type, **defaults: Any) -> None:
    """Let a class have other defaults, as another version may."""
    known = inspect.signature(maker.__init__).parameters
    assert set(defaults) <= set(known)
    if maker.__init__.__kwdefaults__:
        monkeypatch.setattr(maker.__init__, "__kwdefaults__", maker.__init__.__kwdefaults__ | defaults)
    else:
        values = [defaults.get(name, one.default) for name, one in known.items() if one.default is not one.empty]
        monkeypatch.setattr(maker.__init__, "__defaults__", tuple(values))


def test_other_defaults_of_optuna_change_no_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    before = all_suggested()
    changed(
        monkeypatch,
        TPESampler,
        prior_weight=3.0,
        consider_magic_clip=False,
        consider_endpoints=True,
        n_startup_trials=2,
        n_ei_candidates=3,
        gamma=lambda n: n // 2,
        weights=lambda n: np.ones(n),
        multivariate=False,
        group=True,
        constant_liar=True,
    )
    changed(monkeypatch, NSGAIISampler, population_size=3, mutation_prob=0.9, crossover_prob=0.1, swapping_prob=0.1)
    assert all_suggested() == before


def test_other_defaults_of_ray_change_no_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(kind: str) -> list[tuple[int, int]]:
        judge, found = scheduler(kind, 9, []), []
        for number in range(20):
            trial = SimpleNamespace(trial_id=str(number), config={"task": SimpleNamespace(number=number)})
            scores = [[1, (number * 7 % 11) / 10], [3, (number * 5 % 11) / 10]]
            for rung in (1, 2):
                row = {"status": "stopped", "curve": scores[:rung]}
                if judge.on_trial_result(None, trial, {"row": row}) == "STOP":
                    found.append((number, rung))
                    break
        return found

    before = {kind: stopped(kind) for kind in ("asha", "median")}
    assert all(0 < len(decisions) < 20 for decisions in before.values())
    changed(monkeypatch, AsyncHyperBandScheduler, brackets=3, stop_last_trials=False, reduction_factor=2)
    changed(monkeypatch, MedianStoppingRule, min_samples_required=9, hard_stop=False)
    assert {kind: stopped(kind) for kind in before} == before


@pytest.fixture
def upgrade(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[ModuleType, str, Any], None]]:
    """Put another algorithm in the place of one of a module."""

    def forget() -> None:
        fingerprints.suggestions.cache_clear()
        fingerprints.decisions.cache_clear()

    def put(module: ModuleType, name: str, value: Any) -> None:
        monkeypatch.setattr(module, name, value)
        forget()

    yield put
    monkeypatch.undo()
    forget()


OTHERS = {
    "suggestions": (tpe.TPE, "_sampler", lambda self, seed: TPESampler(seed=seed, n_ei_candidates=5), PROTOCOLS["tpe"]),
    "suggestions of gp": (gp, "NEAR", 0.3, {}),
    "suggestions of nsga2": (nsga2.NSGA2, "_sampler", lambda self, seed: NSGAIISampler(seed=seed), PROTOCOLS["nsga2"]),
    "suggestions of Sobol": (
        samplers,
        "KNOWN",
        {"quasi_random": lambda ranges, count, seed: [{"lr": 0.5}] * count},
        {"searcher": "quasi_random"},
    ),
    "decisions": (schedulers, "REDUCTION_FACTOR", 2, {"scheduler": "asha"}),
}


@pytest.mark.parametrize("case", OTHERS)
def test_an_algorithm_that_does_otherwise_is_another_protocol(digits, tmp_path: Path, upgrade, case: str) -> None:
    module, name, value, fields = OTHERS[case]
    before = Sweep(RandomLabel, digits, Protocol(2, **fields))
    with writer.Store(tmp_path / "s", before.identity(), resume=False) as kept:
        kept.append(a_row(0))
    upgrade(module, name, value)
    after = dataclasses.replace(before, protocol=Protocol(2, **fields))
    assert after.protocol_hash != before.protocol_hash
    with pytest.raises(
        InputError, match=rf"protocol\.{case.split()[0]} is \w+ there, \w+ here \(.*environment"
    ) as said:
        run_sweep(after, tmp_path / "s", Resources(), Console(quiet=True), resume=True, anyway=True)
    assert "\n" not in str(said.value)
    both = [reader.SweepResults(str(n), one.identity(), {}, {}, None, []) for n, one in enumerate((before, after))]
    with pytest.raises(InputError, match="cannot be ranked together"):
        ranking.rank(both)


def test_an_upgrade_that_does_the_same_resumes(digits, tmp_path: Path, upgrade) -> None:
    before = Sweep(RandomLabel, digits, Protocol(2, **PROTOCOLS["tpe"]))
    with writer.Store(tmp_path / "s", before.identity(), resume=False) as kept:
        kept.append(a_row(0))
    upgrade(learning, "optuna", learning.optuna)  # forgets what was measured
    same = dataclasses.replace(before, protocol=Protocol(2, **PROTOCOLS["tpe"]))
    assert same.protocol == before.protocol
    writer.Store(tmp_path / "s", same.identity(), resume=True).__exit__(None, None, None)
