"""A sweep: scenario x method x protocol, searched by Ray Tune. The only file that imports ray."""

import contextlib
import dataclasses
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # Tune's loggers would write every row a second time
os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # not every result is one that ASHA may compare
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C ends the sweep at once: what is measured is in the rows
os.environ["RAY_AIR_NEW_OUTPUT"] = "0"

import optuna
import ray
from optuna.distributions import FloatDistribution, IntDistribution
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch
from rich.console import Console

import raymu
from raymu import cache, data, references
from raymu.errors import InputError
from raymu.method import Head, Method, Range, Train
from raymu.progress import SweepProgress
from raymu.protocol import GRACE_EPOCHS, REDUCTION_FACTOR, Protocol
from raymu.results import store
from raymu.scenario import Scenario, unknown
from raymu.trial import Row, blank_row, check, run_trial

CONNECT_TIMEOUT_S = 5.0
TASK_TIMEOUT_S = 60.0
WORKER_RETRIES = 2  # of a trial whose process dies


@dataclass(frozen=True)
class Sweep:
    """What is searched.

    Attributes:
        method: a class of `raymu/methods/`, or one's own.
        scenario: what has to be forgotten.
        protocol: the budget.
        space: ranges that replace those of the method, by hyperparameter.
        head: "linear", or "cmf" for class-mean features.
        train: "all" weights, or the "classifier" alone.

    Raises:
        InputError: a forget set that the data does not have or the method cannot forget, an architecture that timm
            does not have, options that make no sense for the method, or a hyperparameter that it does not search.
    """

    method: type[Method]
    scenario: Scenario
    protocol: Protocol = field(default_factory=Protocol)
    space: Mapping[str, Range] = field(default_factory=dict)
    head: Head = "linear"
    train: Train = "all"

    def __post_init__(self) -> None:
        check(self.scenario, self.method, self.protocol.objective)
        self.method.check_options(self.head, self.train)
        known = list(self.method.ranges(self.head))
        for name in self.space:
            if name not in known:
                raise InputError(unknown(f"searched hyperparameter of {self.method.name()}", name, known))

    @property
    def name(self) -> str:
        """Its directory's name, unless another is asked for: salun, salun-cmf, salun-classifier."""
        options = (self.head if self.head != "linear" else "", self.train if self.train != "all" else "")
        return "-".join([self.method.name(), *filter(None, options)])

    @property
    def ranges(self) -> dict[str, Range]:
        """The search space."""
        return {**self.method.ranges(self.head), **self.space}

    @property
    def published(self) -> dict[str, Any]:
        """Trial 0."""
        return self.method.published_config(self.scenario, self.head)

    def configured(self, config: Mapping[str, Any]) -> Method:
        """The method at a setting."""
        return self.method.from_config(config, head=self.head, train=self.train)

    def identity(self) -> dict[str, Any]:
        """What has to agree for two runs to be the same sweep, in JSON's types."""
        return {
            "raymu": raymu.__version__,
            "method": self.method.name(),
            "head": self.head,
            "train": self.train,
            "scenario": self.scenario.as_dict(),
            "space": {name: dataclasses.asdict(search) for name, search in self.ranges.items()},
            "protocol": dataclasses.asdict(self.protocol),
        }


@dataclass(frozen=True)
class Resources:
    """Where a sweep runs and what each trial gets.

    Attributes:
        address: of a Ray cluster to join; None joins the one of this machine (`ray start`, `RAY_ADDRESS`) or, where
            there is none, starts a local one that ends with the sweep.
        cpus_per_trial: CPU cores, and threads of torch.
        gpus_per_trial: GPUs, in fractions if need be; None means 1 where the cluster has any.
        concurrent: at most so many trials at once; None means as many as fit.
    """

    address: str | None = None
    cpus_per_trial: int = 1
    gpus_per_trial: float | None = None
    concurrent: int | None = None

    def __post_init__(self) -> None:
        if self.cpus_per_trial < 1:
            raise InputError(f"cpus per trial has to be at least 1, not {self.cpus_per_trial}")
        if self.gpus_per_trial is not None and self.gpus_per_trial < 0:
            raise InputError(f"gpus per trial has to be at least 0, not {self.gpus_per_trial}")
        if self.concurrent is not None and self.concurrent < 1:
            raise InputError(f"concurrent has to be at least 1, not {self.concurrent}")


def run_sweep(
    sweep: Sweep,
    directory: Path,
    resources: Resources,
    console: Console,
    *,
    data_dir: Path | None = None,
    resume: bool = False,
) -> list[Row]:
    """Run a sweep, or what is missing of it, and return all its rows.

    Args:
        directory: the sweep's own; holds its rows.
        data_dir: where the dataset's original files are.
        resume: whether an unfinished sweep in `directory` is continued.

    Raises:
        InputError: something that was asked for cannot work; raised before Ray starts, except for an address that
            cannot be reached and resources that the cluster does not have.
        KeyboardInterrupt: by Ctrl-C; the rows so far are kept.
    """
    with store.Store(directory, sweep.identity(), resume=resume) as rows:
        if _missing(sweep, store.read(directory)) or not references.are_ready(sweep.scenario):
            data.prepare(sweep.scenario, data_dir)
            data.check_split(sweep.scenario)
            with session(resources.address):
                slots = _fit_to_cluster(resources)
                _train_references(sweep.scenario, slots, console)
                # One search is enough, unless Tune loses a trial, which it may when a process or a node dies.
                while _missing(sweep, done := store.read(directory)):
                    _search(sweep, rows, done, slots, console)
                    if len(store.read(directory)) == len(done):
                        raise RuntimeError("Ray Tune ended without running a trial")
    return store.read(directory)


def _missing(sweep: Sweep, rows: list[Row]) -> list[int]:
    """The numbers of the trials that have no row yet."""
    done = {row["trial"] for row in rows}
    return [number for number in range(sweep.protocol.trials) if number not in done]


@contextlib.contextmanager
def session(address: str | None) -> Iterator[None]:
    """Run the body on a Ray cluster that is joined, or on a local one that is started for it, unless Ray is connected
    already.

    Without an address Ray joins the cluster of `RAY_ADDRESS` or `ray start`, never the local one of another sweep.
    Token authentication is on, unless `RAY_AUTH_MODE` says otherwise. A local Ray has no dashboard.

    Raises:
        InputError: the cluster cannot be reached.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        _check_reachable(address)
    try:
        ray.init(address=address, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError, ray.exceptions.AuthenticationError) as error:
        raise InputError(f"cannot join the Ray cluster {address or 'of `ray start`'}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself goes on trying for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # a word of Ray's own, such as "auto"
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise InputError(f"no Ray cluster answers at {address}: {error}") from error


def try_ray() -> dict[str, float]:
    """Run a task on Ray and return what the cluster has ("CPU", "GPU", ...). For `raymu doctor`.

    Raises whatever stops Ray from working.
    """
    with session(None):
        ray.get(ray.remote(_alive).remote(), timeout=TASK_TIMEOUT_S)
        resources: dict[str, float] = ray.cluster_resources()
        return resources


def _alive() -> bool:
    return True


@dataclass(frozen=True)
class _Slots:
    """What a trial gets, and how many run at once."""

    cpus: int
    gpus: float
    count: int


def _fit_to_cluster(resources: Resources) -> _Slots:
    """Fill in what the resources leave open."""
    available: dict[str, float] = ray.cluster_resources()
    gpus = resources.gpus_per_trial
    if gpus is None:
        gpus = 1.0 if available.get("GPU", 0) >= 1 else 0.0
    slots = int(available.get("CPU", 0) // resources.cpus_per_trial)
    if gpus:
        slots = min(slots, int(available.get("GPU", 0) // gpus))
    if slots < 1:
        raise InputError(
            f"a trial needs {resources.cpus_per_trial} CPUs and {gpus:g} GPUs; the Ray cluster has"
            f" {available.get('CPU', 0):g} and {available.get('GPU', 0):g}"
        )
    return _Slots(resources.cpus_per_trial, gpus, min(slots, resources.concurrent or slots))


def _train_references(scenario: Scenario, slots: _Slots, console: Console) -> None:
    """Train what is missing, side by side, and then compare the two."""
    if references.are_ready(scenario):
        return
    missing = references.missing(scenario)
    started = time.monotonic()
    with console.status(f"training the references: {', '.join(missing)}" if missing else "comparing the references"):
        task = ray.remote(num_cpus=slots.cpus, num_gpus=slots.gpus)(_run_with_cache)
        location = str(cache.base())
        ray.get([task.remote(location, references.train, scenario, which, slots.cpus) for which in missing])
        ray.get(task.remote(location, references.compare, scenario, slots.cpus))
    if missing:
        console.print(f"trained the references: {', '.join(missing)} ({time.monotonic() - started:.0f} s)")


def _run_with_cache(cache_base: str, function: Callable[..., Any], *arguments: Any) -> None:
    os.environ["RAYMU_CACHE"] = cache_base
    function(*arguments)


def _search(sweep: Sweep, rows: store.Store, done: list[Row], slots: _Slots, console: Console) -> None:
    """Run the trials that are missing."""
    missing = _missing(sweep, done)
    trainable = tune.with_parameters(_trial, sweep=sweep, threads=slots.cpus, cache_base=str(cache.base()))
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what fails is in its row
    # Rows are the only state of a sweep: what Tune writes of its own is not needed again.
    scratch = tempfile.mkdtemp(prefix="raymu-tune-")
    try:
        with SweepProgress(console, sweep.protocol.trials, len(done)) as progress:
            tune.Tuner(
                tune.with_resources(trainable, {"cpu": slots.cpus, "gpu": slots.gpus}),
                tune_config=tune.TuneConfig(
                    num_samples=len(missing),
                    max_concurrent_trials=slots.count,
                    search_alg=_searcher(sweep, done),
                    scheduler=_scheduler(sweep, done),
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    storage_path=scratch,
                    name=sweep.method.name(),
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=WORKER_RETRIES),
                    callbacks=[_Recorder(sweep, rows, missing, slots.cpus, progress)],
                ),
            ).fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _trial(config: dict[str, Any], sweep: Sweep, threads: int, cache_base: str) -> None:
    """What an actor of Tune does, trial after trial; data and references stay in its process."""
    os.environ["RAYMU_CACHE"] = cache_base
    protocol, method = sweep.protocol, sweep.configured(config)
    is_published = method.config == sweep.published

    def report(row: Row) -> None:
        result = {"epoch": row["epochs"], "score": row["score"] or 0.0, "row": row}
        if row["status"] == "stopped":  # for good, if ASHA says so
            result["rung_score"] = row["score"]
        tune.report(result)

    row, _ = run_trial(
        sweep.scenario,
        method,
        seed=protocol.seed,
        objective=protocol.objective,
        threads=threads,
        # The published setting runs in full, or there would be nothing to compare the tuned one with.
        rungs=[] if is_published else protocol.rungs(method.total_epochs, method.comparable_from),
        report=report,
    )
    report(row)


class _Searcher(OptunaSearch):
    """TPE, for which a trial that was stopped is worse than any that was not.

    Its score says no more than that: it is the cheap probe's, which reads less, and so looks better.
    """

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        stopped = result is not None and result["row/status"] == "stopped"
        super().on_trial_complete(trial_id, None if stopped else result, error)


def _searcher(sweep: Sweep, done: list[Row]) -> _Searcher:
    """A searcher that knows the trials which are done."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    has_published = any(row["source"] == "published" for row in done)
    searcher = _Searcher(
        space={name: _distribution(search) for name, search in sweep.ranges.items()},
        metric="score",
        mode="max",
        # A resumed search must not draw again what it drew before.
        seed=sweep.protocol.seed + len(done),
        points_to_evaluate=[] if has_published else [{name: sweep.published[name] for name in sweep.ranges}],
    )
    for row in done:
        searched = {name: row["config"][name] for name in sweep.ranges}
        if row["score"] is not None and all(value in sweep.ranges[name] for name, value in searched.items()):
            searcher.add_evaluated_point(
                searched,
                row["score"],
                pruned=row["status"] == "stopped",
                intermediate_values=[0.0, *(score for _, score in row["curve"])],  # Tune counts reports from 1
            )
    return searcher


def _distribution(search: Range) -> FloatDistribution | IntDistribution:
    if search.scale == "int":
        return IntDistribution(int(search.low), int(search.high))
    return FloatDistribution(search.low, search.high, log=search.scale == "log")


def _scheduler(sweep: Sweep, done: list[Row]) -> TrialScheduler:
    """ASHA that knows how the trials which are done compared, or none."""
    if sweep.protocol.scheduler == "none":
        return FIFOScheduler()
    longest = sweep.configured({name: search.high for name, search in sweep.ranges.items()})
    asha = ASHAScheduler(
        time_attr="epoch",
        metric="rung_score",
        mode="max",
        max_t=max(longest.total_epochs, GRACE_EPOCHS),
        grace_period=GRACE_EPOCHS,
        reduction_factor=REDUCTION_FACTOR,
    )
    for row in done:
        if row["source"] == "search":
            trial: Any = SimpleNamespace(trial_id=row["trial_id"])  # all that ASHA looks at
            controller: Any = None
            asha.on_trial_add(controller, trial)
            at_rungs = row["curve"] if row["status"] == "stopped" else row["curve"][:-1]
            for epoch, score in at_rungs:
                asha.on_trial_result(controller, trial, {"epoch": epoch, "rung_score": score})
    return asha


class _Recorder(tune.Callback):
    """Writes a row when a trial ends, and tells the progress display."""

    def __init__(
        self, sweep: Sweep, rows: store.Store, numbers: list[int], threads: int, progress: SweepProgress
    ) -> None:
        """`numbers` are those of the trials to come, in the order of their suggestion."""
        self._sweep = sweep
        self._rows = rows
        self._threads = threads
        self._progress = progress
        self._free = numbers
        self._numbers: dict[str, int] = {}
        self._recorded: set[str] = set()

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        """Tune pickles its callbacks for a restore of its own, which raymu does not use."""
        return tune.Callback, ()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        for suggested in trials[len(self._numbers) :]:
            self._numbers[suggested.trial_id] = self._free[len(self._numbers)]
        self._progress.started(trial.trial_id)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._record(trial, trial.last_result["row"])

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Only a trial whose process died comes here; what a method raises is in its row."""
        protocol, method = self._sweep.protocol, self._sweep.configured(trial.config)
        row = blank_row(
            self._sweep.scenario,
            method,
            seed=protocol.seed,
            objective=protocol.objective,
            threads=self._threads,
        )
        error = f"the trial's process died, {WORKER_RETRIES + 1} times"
        self._record(trial, row | {"status": "error", "error": error, "traceback": str(trial.get_error())})

    def _is_published(self) -> bool:
        return self._sweep.method.is_published(self._sweep.scenario, self._sweep.head)

    def _record(self, trial: Trial, row: Row) -> None:
        if trial.trial_id in self._recorded:
            return  # the process died after its last word
        self._recorded.add(trial.trial_id)
        number = self._numbers[trial.trial_id]
        source = "published" if row["config"] == self._sweep.published else "search"
        name = self._rows.directory.name
        row = {
            "trial_id": f"{name}-{number:04d}",
            "sweep": name,
            "trial": number,
            "source": source,
            "fallback": source == "published" and not self._is_published(),
            **row,
        }
        row["ended_s"] = time.time()
        self._rows.append(row)
        self._progress.ended(trial.trial_id, row)
