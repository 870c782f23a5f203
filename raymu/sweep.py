"""A sweep: scenario x method x protocol, searched and confirmed by Ray Tune."""

import contextlib
import dataclasses
import functools
import gc
import itertools
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections import UserDict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # Tune's loggers would write every row a second time
os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # not every result is one that ASHA may compare
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C ends the sweep at once: what is measured is in the rows
os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "inf"  # rows are the only state of a sweep
os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "300"  # a trial that its stopped predecessor lets wait longer is lost
os.environ["RAY_AIR_NEW_OUTPUT"] = "0"

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from rich.console import Console

import raymu
from raymu import data, engines, environment, memory, models, nodes, references, source, weights
from raymu.attempts import Failure, Ledger, in_flight
from raymu.checkpoint import Checkpoints
from raymu.design import design
from raymu.engines import Options
from raymu.errors import InputError, NodeError, StorageError
from raymu.evaluation import picture
from raymu.method import Head, Method, Range, Train
from raymu.objective import code_of
from raymu.progress import SweepProgress
from raymu.protocol import ADAPTIVE, Protocol
from raymu.results import select, store
from raymu.scenario import Scenario
from raymu.search import Learner, Queue, distribution, scheduler
from raymu.session import Resources, Sharing, fit_to_cluster, session
from raymu.storage import Location, locate
from raymu.trackers import Trackers, callbacks
from raymu.trial import OF_THE_MACHINE, Row, blank_row, check, run_trial
from raymu.values import unknown
from raymu.worker_group import WorkerError, for_all, in_group, side_by_side
from raymu.workers import Workers

NODE_ERROR = re.compile(rf"^{NodeError.__module__}\.{NodeError.__name__}: (.*)$", re.MULTILINE)  # in a traceback
CHECKPOINTS = "checkpoints"  # in a sweep's directory, of trials that have begun, by number
OF_REFERENCES = "references"  # among them


@dataclass(frozen=True)
class Task:
    """A trial to run: what its row will say of it.

    Attributes:
        number: of the trial in its sweep.
        search_seed: which search it belongs to; None: it confirms.
        confirms: the `trial_id` of the trial that it runs again.
        pictured: whether a picture of its features is kept.
    """

    number: int
    config: Mapping[str, Any]
    scenario: Scenario
    seed: int
    source: Literal["published", "search", "confirmation"]
    search_seed: int | None = None
    confirms: str | None = None
    pictured: bool = False


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
            does not have, options that make no sense for the method, a hyperparameter that it does not search, a range
            that goes beyond what it can be, or a budget that leaves it no range or no grid.
    """

    method: type[Method]
    scenario: Scenario
    protocol: Protocol = field(default_factory=Protocol)
    space: Mapping[str, Range] = field(default_factory=dict)
    head: Head = "linear"
    train: Train = "all"

    def __post_init__(self) -> None:
        for scenario in self._forget_sets():
            check(scenario, self.method, self.protocol.objective)
        self.method.check_options(self.head, self.train)
        known = list(self.method.ranges(self.head))
        for name in self.space:
            if name not in known:
                raise InputError(unknown(f"searched hyperparameter of {self.method.name()}", name, known))
        for name, search in {**self.method.ranges(self.head), **self.space}.items():
            self.method.check_range(name, search)
        self.design(self.protocol.search_seeds[0])

    @property
    def name(self) -> str:
        """Its directory's name, unless another is asked for: salun, salun-cmf, salun-classifier."""
        options = (self.head if self.head != "linear" else "", self.train if self.train != "all" else "")
        return "-".join([self.method.name(), *filter(None, options)])

    @property
    def ranges(self) -> dict[str, Range]:
        """The search space. Where the protocol caps the epochs, the phases of a method share them in proportion."""
        ranges = {**self.method.ranges(self.head), **self.space}
        longest = self._longest(ranges)
        cap = self.protocol.max_epochs
        if cap is None or longest <= cap:
            return ranges
        for name, search in ranges.items():
            if name.endswith("epochs"):
                try:
                    ranges[name] = dataclasses.replace(search, high=int(search.high * cap / longest))
                except InputError as error:
                    raise InputError(f"max_epochs {cap} leaves {self.method.name()} no range of {name}") from error
        return ranges

    @property
    def longest(self) -> int:
        """Epochs of the longest setting."""
        return self._longest(self.ranges)

    def _longest(self, ranges: Mapping[str, Range]) -> int:
        return self.configured({name: search.high for name, search in ranges.items()}).total_epochs

    @property
    def published(self) -> dict[str, Any]:
        """Trial 0."""
        return self.method.published_config(self.scenario, self.head)

    def configured(self, config: Mapping[str, Any]) -> Method:
        """The method at a setting."""
        return self.method.from_config(config, head=self.head, train=self.train)

    def design(self, seed: int) -> list[dict[str, float]] | None:
        """The settings of a search beside the published one, where they are known before; None: the search learns."""
        protocol, ranges = self.protocol, self.ranges
        if protocol.searcher in ADAPTIVE:
            return None
        return design(ranges, protocol.searcher, protocol.trials - 1, seed)

    def trials(self, seed: int) -> range:
        """The numbers of the trials of one search."""
        known = self.design(seed)
        size = self.protocol.trials if known is None else 1 + len(known)
        first = self._first(seed)
        return range(first, first + size)

    def _first(self, seed: int) -> int:
        """The number of a search's first trial, which is the published setting."""
        return self.protocol.search_seeds.index(seed) * self.protocol.trials

    def task(self, seed: int, number: int, setting: Mapping[str, Any]) -> Task:
        """A trial of one search."""
        config = self.configured({**self.published, **setting}).config
        source: Literal["published", "search"] = "published" if number == self._first(seed) else "search"
        return Task(number, config, self.scenario, seed, source, search_seed=seed)

    def confirmations(self, rows: Sequence[Row]) -> list[Task]:
        """What is run again once all searches are over, and the published setting with it.

        Originals outermost, so that a process that runs trial after trial seldom has to load another.
        """
        asked = self.protocol.confirmation
        try:
            best = select.Best(asked.top).choose(rows)
        except InputError:
            return []
        if (first := select.published(rows)) is None:
            again = best
        else:  # where it is one of the best, another search may have tried it as well
            again = [*(row for row in best if row["config"] != first["config"]), first]
        unseen = max(self.protocol.search_seeds) + 1
        runs = itertools.product(self.confirmed(), again, range(unseen, unseen + asked.seeds))
        number = len(self.protocol.search_seeds) * self.protocol.trials
        return [
            Task(
                number + place,
                row["config"],
                scenario,
                seed,
                "confirmation",
                confirms=row["trial_id"],
                pictured=place == 0,
            )
            for place, (scenario, row, seed) in enumerate(runs)
        ]

    def confirmed(self) -> list[Scenario]:
        """The scenarios of the confirmation: every original with every forget set."""
        asked = self.protocol.confirmation
        if not asked.seeds:
            return []
        first = self.scenario.model_seed
        originals = range(first + 1, first + 1 + asked.originals) if asked.originals else [first]
        return [
            dataclasses.replace(scenario, model_seed=original)
            for original in originals
            for scenario in self._forget_sets()
        ]

    def _forget_sets(self) -> list[Scenario]:
        """The scenario, and those that differ in what is forgotten."""
        others = [dataclasses.replace(self.scenario, forget=one) for one in self.protocol.confirmation.forget]
        return list(dict.fromkeys([self.scenario, *others]))

    def identity(self) -> dict[str, Any]:
        """What has to agree for two runs to be the same sweep, in JSON's types."""
        identity = {
            "raymu": raymu.__version__,
            "method": self.method.name(),
            "method_code": self.method.source(),
            "evaluation_code": references.evaluation_code(),
            "objective_code": code_of(self.protocol.objective),
            "head": self.head,
            "train": self.train,
            "scenario": self.scenario.as_dict(),
            "space": {name: dataclasses.asdict(search) for name, search in self.ranges.items()},
            "protocol": dataclasses.asdict(self.protocol),
        }
        same: dict[str, Any] = json.loads(json.dumps(identity))
        return same


def run_sweep(
    sweep: Sweep,
    location: Path | str | Location,
    resources: Resources,
    console: Console,
    *,
    data_dir: Path | str | None = None,
    weights_file: Path | None = None,
    resume: bool = False,
    trackers: Trackers | None = None,
) -> list[Row]:
    """Run a sweep, or what is missing of it, and return all its rows.

    Args:
        location: the sweep's own directory, local or on object storage; holds its rows.
        data_dir: where the dataset's original files are.
        weights_file: a safetensors file with the scenario's pretrained weights.
        resume: whether an unfinished sweep in `location` is continued.
        trackers: where its searches are shown as well.

    Raises:
        InputError: something that was asked for cannot work; raised before Ray starts, except for an address that
            cannot be reached and resources that the cluster does not have.
        StorageError: rows cannot be stored any more; those so far are kept.
        KeyboardInterrupt: by Ctrl-C; the rows so far are kept.
    """
    source.look_anew()
    directory = locate(location)
    weights.prepare(sweep.scenario, weights_file)
    sweep = dataclasses.replace(sweep, scenario=data.prepare(sweep.scenario, data_dir))

    def finished(rows: Sequence[Row]) -> bool:
        return is_finished(sweep, rows, in_flight(directory, rows))

    with store.Store(directory, sweep.identity(), resume=resume, is_finished=finished) as rows:
        ledger = Ledger(rows)
        done = rows.read()
        followed = functools.partial(_followed, sweep, rows.name, done, ledger, trackers or Trackers(), console)
        if finished(done):
            with followed():  # a tracker may be a new one
                rows.end(len(done))
                return done
        rows.put(store.ENVIRONMENT, environment.describe())
        scenarios = [sweep.scenario, *sweep.confirmed()]
        engines.check(sweep.scenario, resources.options)
        models.check(sweep.scenario, sweep.method)
        for line in data.notes(sweep.scenario):
            _print_once(console, line)
        for scenario in scenarios:
            data.check_split(scenario)
        with (
            session(resources.address),
            nodes.at_home(rows.directory) as home,
            followed() as followers,
        ):
            run = _Run(sweep, rows, ledger, home, resources, console, followers)
            nodes.check(home, sweep.scenario)
            run.check_gpus()
            run.train_references([sweep.scenario])
            for seed in sweep.protocol.search_seeds:
                run.search(seed)
            run.train_references(scenarios)
            rows.put(store.REFERENCES, {one.hash: references.metrics(one) for one in scenarios})
            run.confirm()
        if not finished(done := rows.read()):
            raise RuntimeError("Ray Tune ended before the sweep did")
        Checkpoints(rows.directory / CHECKPOINTS / OF_REFERENCES).clear()
        rows.end(len(done))
        return done


@contextlib.contextmanager
def _followed(
    sweep: Sweep, name: str, done: Sequence[Row], ledger: Ledger, trackers: Trackers, console: Console
) -> Iterator[list[tune.Callback]]:
    """Trackers of a sweep, open while the body runs. They get the rows that they lack first, and what they refuse is
    said before anything is computed.
    """
    searched = [row for row in done if row["source"] != "confirmation"]
    searches = itertools.chain.from_iterable(map(sweep.trials, sweep.protocol.search_seeds))
    begun = [_trial_id(name, number) for number in searches if number in ledger]
    space = {name: distribution(search) for name, search in sweep.ranges.items()}

    def describe(trial: Trial) -> tuple[str, Mapping[str, Any]]:
        task: Task = trial.config["task"]
        return _trial_id(name, task.number), task.config

    def is_over(trial: Trial) -> bool:
        return trial.config["task"].number not in ledger

    followers = callbacks(trackers, sweep, name, space, searched, begun, describe, is_over, console)
    try:
        for follower in followers:
            follower.setup()
        yield list(followers)
    finally:
        for follower in followers:
            follower.close()


@functools.cache  # several sweeps in a row have the same data
def _print_once(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def is_finished(sweep: Sweep, rows: Sequence[Row], begun: Container[int]) -> bool:
    """Whether nothing is left to run, where `begun` are the numbers of the trials that had begun and have no row."""
    searched = all(not _missing(sweep, seed, rows, begun) for seed in sweep.protocol.search_seeds)
    return searched and not _unconfirmed(sweep, rows)


def _missing(sweep: Sweep, seed: int, rows: Sequence[Row], begun: Container[int]) -> list[int]:
    """The numbers of the trials of one search that have no row yet, and may have one within the budget. What has begun
    was within it.
    """
    spent = _is_spent(sweep.protocol, _of_search(seed, rows))
    done = {row["trial"] for row in rows}
    return [number for number in sweep.trials(seed) if number not in done and (number in begun or not spent)]


def _unconfirmed(sweep: Sweep, rows: Sequence[Row]) -> list[Task]:
    done = {row["trial"] for row in rows}
    return [task for task in sweep.confirmations(rows) if task.number not in done]


def _of_search(seed: int, rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["search_seed"] == seed]


def _is_spent(protocol: Protocol, rows: Iterable[Row]) -> bool:
    return protocol.max_images is not None and sum(row["images"] for row in rows) >= protocol.max_images


class _Run:
    """What is left of a sweep, on a Ray cluster."""

    def __init__(
        self,
        sweep: Sweep,
        rows: store.Store,
        ledger: Ledger,
        home: nodes.Home,
        resources: Resources,
        console: Console,
        followers: Sequence[tune.Callback],
    ) -> None:
        self._sweep, self._rows, self._ledger = sweep, rows, ledger
        self._home, self._resources = home, resources
        self._console, self._followers = console, followers
        # None: it is known how many trials share a GPU.
        self._sharing = Sharing() if resources.gpus_per_worker == "auto" else None
        with console.status("waiting for room on the cluster"):
            self._slots = fit_to_cluster(resources)
        _print_once(console, str(self._slots))

    def check_gpus(self) -> None:
        """Look whether torch can use the GPUs that trials are to have."""
        if "GPU" in self._slots.bundle:
            nodes.check_gpus()

    def train_references(self, scenarios: Sequence[Scenario]) -> None:
        """Train those that are missing, side by side, and then compare every two.

        Raises:
            InputError: rows of this sweep came from other ones.
        """
        self._train_missing([scenario for scenario in dict.fromkeys(scenarios) if not references.are_ready(scenario)])
        done = self._rows.read()
        for scenario in scenarios:
            metrics = references.metrics(scenario)
            for which in references.REFERENCES:
                column, weights = f"{which}_weights", metrics[which]["weights"]
                rows = (row for row in done if row["scenario_hash"] == scenario.hash and row[column])
                if any(row[column] != weights for row in rows):
                    raise InputError(
                        f"the {which} model of the rows so far is not the one in {references.directory(scenario)},"
                        " which was trained elsewhere or anew: choose another --name"
                    )

    def _train_missing(self, scenarios: Sequence[Scenario]) -> None:
        if not scenarios:
            return
        missing = [(scenario, which) for scenario in scenarios for which in references.missing(scenario)]
        started, count = time.monotonic(), len(missing)
        with self._console.status(f"training {count} references" if missing else "comparing the references"):
            options, kept = self._slots.options, self._rows.directory / CHECKPOINTS / OF_REFERENCES
            train = [
                (references.train, *one, options, Checkpoints(kept / references.entry_of(*one).name)) for one in missing
            ]
            for calls in (train, [(references.compare, one, options) for one in scenarios]):
                side_by_side(self._home, self._slots, calls)
        if missing:
            self._console.print(f"trained {count} references ({time.monotonic() - started:.0f} s)", highlight=False)

    def search(self, seed: int) -> None:
        """Run the trials of one search that are missing."""
        sweep, protocol, everything = self._sweep, self._sweep.protocol, self._rows.read()
        missing, done = _missing(sweep, seed, everything, self._ledger), _of_search(seed, everything)
        known, first = sweep.design(seed), sweep.trials(seed)[0]
        learner = Learner(protocol, seed, sweep.ranges, done)

        def task(number: int) -> Task:
            setting: Mapping[str, Any] = {}
            if number in self._ledger:
                setting = self._ledger.config(number)
            elif number > first:
                setting = learner.suggest(number) if known is None else known[number - first - 1]
            return sweep.task(seed, number, setting)

        def is_spent(number: int) -> bool:
            return number not in self._ledger and _is_spent(protocol, done)

        while missing and not all(map(is_spent, missing)):
            size = len(missing) if self._sharing is None else self._slots.number
            numbers, missing = missing[:size], missing[size:]
            before = len(done)
            queue = Queue(numbers, self._begun(task), is_spent)
            chosen = scheduler(protocol.scheduler, sweep.longest, done)
            used = self._tune(queue, chosen, len(numbers), done, "trials", self._followers)
            was_full = len(done) - before == self._slots.number  # fewer trials do not show what a GPU gets through
            if self._sharing is not None and was_full:
                self._share(self._sharing, done[before:], used)

    def _share(self, sharing: Sharing, rows: Sequence[Row], used: float | None) -> None:
        """Decide by the rows of trials that had the present part of a GPU how many share one from now on."""
        before = sharing.trials
        seconds = "unlearn_s" if self._sweep.method.trains else "wall_s"  # what does not train is cached
        sharing.learn([row["images"] / row[seconds] for row in rows if row["images"]], used)
        slots = fit_to_cluster(dataclasses.replace(self._resources, gpus_per_worker=sharing.part))
        if sharing.trials > before and slots.number <= self._slots.number:
            sharing.settle(before)  # CPUs, or --concurrent, allow no more at once
        else:
            self._slots = slots
        if sharing.is_found:
            self._sharing = None
            self._console.print(f"trials that share a GPU: {sharing}", highlight=False)

    def confirm(self) -> None:
        """Run again what the protocol says and has no row yet."""
        everything = self._rows.read()
        tasks = {task.number: task for task in _unconfirmed(self._sweep, everything)}
        done = [row for row in everything if row["source"] == "confirmation"]
        self._tune(Queue(tasks, self._begun(tasks.__getitem__)), FIFOScheduler(), len(tasks), done, "confirming", [])

    def _begun(self, make: Callable[[int], Task]) -> Callable[[int], Task]:
        """What makes a task, and enters it in the ledger."""

        def begin(number: int) -> Task:
            task = make(number)
            with _or_end():
                self._ledger.begin(number, dict(task.config))
            return task

        return begin

    def _tune(
        self,
        queue: Queue,
        chosen: TrialScheduler,
        count: int,
        done: list[Row],
        what: str,
        followers: Sequence[tune.Callback],
    ) -> float | None:
        """Run so many trials at most; their rows are appended to `done`, too. Return the share of a GPU's memory that
        was taken when the last one ended; None without a GPU.
        """
        if not count:
            return None
        before = len(done)
        trainable = tune.with_parameters(
            _trial,
            sweep=self._sweep,
            options=self._slots.options,
            directory=self._rows.directory,
            home=self._home,
        )
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what fails is in its row
        # Rows are the only state of a sweep: what Tune writes of its own is not needed again.
        scratch = tempfile.mkdtemp(prefix="raymu-tune-")
        ended: StorageError | NodeError | None = None
        try:
            with SweepProgress(self._console, what, before + count, before) as progress:
                recorder = _Recorder(self._sweep, self._rows, self._slots.options, progress, done, self._ledger, queue)
                tune.Tuner(
                    tune.with_resources(trainable, tune.PlacementGroupFactory(self._slots.bundles)),
                    tune_config=tune.TuneConfig(
                        num_samples=-1,  # the queue says when it is over
                        max_concurrent_trials=self._slots.number,
                        search_alg=queue,
                        scheduler=chosen,
                        reuse_actors=True,
                    ),
                    run_config=tune.RunConfig(
                        storage_path=scratch,
                        name=self._sweep.method.name(),
                        verbose=0,
                        failure_config=tune.FailureConfig(max_failures=0),  # the recorder says what is tried again
                        callbacks=[recorder, *followers],
                    ),
                ).fit()
        except _Ended as end:
            ended = end.error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if ended is not None:
            gc.collect()  # Tune's controller, which frees the trials' places when it goes
            raise ended
        return recorder.gpu


def _trial(config: dict[str, Any], sweep: Sweep, options: Options, directory: Location, home: nodes.Home) -> None:
    """What an actor of Tune does, trial after trial; data, references and other workers stay with its process."""
    task: Task = config["task"]
    try:
        in_group(home, options, _work, task, sweep, options, _checkpoints(directory, task.number), home)
    except WorkerError as error:
        if isinstance(error.__cause__, (*OF_THE_MACHINE, NodeError)):
            raise
        row = _blank(sweep, task, options)
        text = str(error).strip()
        tune.report(_result(row | {"status": "error", "error": text.splitlines()[-1], "traceback": text}))


def _checkpoints(directory: Location, number: int) -> Checkpoints:
    return Checkpoints(directory / CHECKPOINTS / str(number))


def _work(task: Task, sweep: Sweep, options: Options, checkpoints: Checkpoints, home: nodes.Home) -> None:
    """What every worker of a trial does. The first one reports."""
    nodes.prepare(home, task.scenario)
    method = sweep.configured(task.config)
    row, model = run_trial(
        task.scenario,
        method,
        seed=task.seed,
        objective=sweep.protocol.objective,
        options=options,
        # Only a search stops trials; the published setting runs in full, or there were nothing to compare with.
        rungs=sweep.protocol.rungs(method.total_epochs, method.comparable_from) if task.source == "search" else [],
        report=for_all(lambda row: tune.report(_result(row))),
        checkpoints=checkpoints,
    )
    more = {}
    if task.pictured and model is not None:
        with contextlib.suppress(Exception):  # a row is never lost for a picture
            compared = {**references.load_models(task.scenario, options), "tuned": model}
            loaded = references.load(task.scenario, references.default_device(), options)
            more["features"] = {"trial_id": task.confirms, **picture(compared, loaded.data)}
    if Workers().rank == 0:
        tune.report(_result(row) | {"gpu": memory.share(references.default_device())} | more)


def _result(row: Row) -> dict[str, Any]:
    """What Tune is told. In a dict it would find every number, and keep statistics of each."""
    return {"row": UserDict(row)}


def _blank(sweep: Sweep, task: Task, options: Options) -> Row:
    objective = sweep.protocol.objective
    return blank_row(task.scenario, sweep.configured(task.config), seed=task.seed, objective=objective, options=options)


def _trial_id(name: str, number: int) -> str:
    return f"{name}-{number:04d}"


class _Ended(BaseException):
    """What ends the sweep, on its way out of Tune, which would take an Exception for the trial's."""

    def __init__(self, error: StorageError | NodeError) -> None:
        super().__init__(error)
        self.error = error


@contextlib.contextmanager
def _or_end() -> Iterator[None]:
    """End the sweep where the body cannot store what has to be stored."""
    try:
        yield
    except StorageError as error:
        raise _Ended(error) from error


class _Recorder(tune.Callback):
    """Writes a row when a trial ends, lets one that failed be tried again, and tells the progress display.

    Attributes:
        gpu: the share of its GPU's memory that was taken when the last trial ended; None without a GPU.
    """

    gpu: float | None = None

    def __init__(
        self,
        sweep: Sweep,
        rows: store.Store,
        options: Options,
        progress: SweepProgress,
        done: list[Row],
        ledger: Ledger,
        queue: Queue,
    ) -> None:
        self._sweep, self._rows, self._options, self._progress, self._done = sweep, rows, options, progress, done
        self._ledger, self._queue = ledger, queue

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        """Tune pickles its callbacks for a restore of its own, which raymu does not use."""
        return tune.Callback, ()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._progress.started(trial.trial_id)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if "features" in trial.last_result:
            with _or_end():
                self._rows.put(store.FEATURES, trial.last_result["features"])
        self.gpu = trial.last_result.get("gpu", self.gpu)  # one that was stopped does not say
        self._record(trial, trial.last_result["row"].data)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Only a trial comes here whose process died or whose machine failed; what a method raises is in its row."""
        task: Task = trial.config["task"]
        if task.number not in self._ledger:
            return  # the process died after its last word
        text = Path(trial.error_file or os.devnull).read_text()
        if unfit := NODE_ERROR.search(text):
            raise _Ended(NodeError(unfit[1]))
        failure = Failure.of(text)
        with _or_end():
            pause = self._ledger.fail(task.number, failure)
        if pause is not None:
            self._progress.failed(trial.trial_id)
            self._queue.again(task, pause)
            return
        row = _blank(self._sweep, task, self._options)
        error = f"{failure}; tried {self._ledger.begun(task.number)} times"
        self._record(trial, row | {"status": "error", "error": error, "traceback": failure.text})

    def _record(self, trial: Trial, row: Row) -> None:
        task: Task = trial.config["task"]
        sweep = self._sweep
        published = sweep.method.published_as(sweep.scenario, sweep.head, sweep.train, task.config)
        row = {
            "trial_id": _trial_id(self._rows.name, task.number),
            "sweep": self._rows.name,
            "trial": task.number,
            "source": task.source,
            "search_seed": task.search_seed,
            "confirms": task.confirms,
            "protocol_hash": sweep.protocol.hash,
            "published": published,
            "fallback": published is None and task.config == sweep.published,
            "restarts": self._ledger.begun(task.number) - 1,
            **row,
        }
        row["ended_s"] = time.time()
        with _or_end():
            self._rows.append(row)
            self._ledger.end(task.number)
        self._done.append(row)
        _checkpoints(self._rows.directory, task.number).clear()
        self._progress.ended(trial.trial_id, row)
