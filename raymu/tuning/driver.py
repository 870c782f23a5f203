"""The driver: what is left of a sweep, run by Ray Tune."""

import contextlib
import dataclasses
import functools
import gc
import itertools
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.air.execution._internal import actor_manager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution import tune_controller
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from rich.console import Console

from raymu import cache, engines, environment, fixed_points, reference_models, source, splits
from raymu.checkpoints import Checkpoints
from raymu.distributed import nodes
from raymu.distributed.retries import Retries, in_flight
from raymu.distributed.session import Resources, Sharing, fit_to_cluster, session
from raymu.distributed.watch import Watch
from raymu.errors import InputError
from raymu.models import compatibility, pretrained
from raymu.results import files, reader, writer
from raymu.results.identity import CONFIRMATIONS, place_of
from raymu.row import Row
from raymu.scenario import Scenario
from raymu.storage import Location, locate
from raymu.tuning import references, remaining
from raymu.tuning.callbacks import Ended, Recorder, or_end
from raymu.tuning.process import checkpoints_of, id_of_trial, tune_trial
from raymu.tuning.progress import SweepProgress
from raymu.tuning.queue import Queue
from raymu.tuning.samplers.learning import distribution
from raymu.tuning.schedulers import scheduler
from raymu.tuning.sweep import Sweep, Task
from raymu.tuning.trackers.settings import Trackers, callbacks

os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # Tune's loggers would write every row a second time
os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # not every result is one that ASHA may compare
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C ends the sweep at once: what is measured is in the rows
os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "inf"  # rows are the only state of a sweep
os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "300"  # a trial that its stopped predecessor lets wait longer is lost
os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
for module in (actor_manager, tune_controller):  # which end the sweep where Ray ends a trial for its memory
    vars(module)["RayActorError"] = (RayActorError, OutOfMemoryError)


def run_sweep(
    sweep: Sweep,
    location: Path | str | Location,
    resources: Resources,
    console: Console,
    *,
    data_dir: Path | str | None = None,
    weights_file: Path | None = None,
    mirror: Location | None = None,
    resume: bool = False,
    anyway: bool = False,
    trackers: Trackers | None = None,
) -> list[Row]:
    """Run a sweep, or what is missing of it, and return all its rows.

    Args:
        location: the sweep's own directory, local or on object storage; holds its rows.
        data_dir: where the dataset's original files are.
        weights_file: a safetensors file with the scenario's pretrained weights.
        mirror: where cache entries are kept for other nodes and later clusters; None: all nodes share the cache.
        resume: whether an unfinished sweep in `location` is continued, or one of a smaller budget grows.
        anyway: whether it runs where there is nothing to forget.
        trackers: where its searches are shown as well.

    Raises:
        InputError: something that was asked for cannot work; raised before Ray starts, except for an address that
            cannot be reached and resources that the cluster does not have. There is nothing to forget, which the
            references show.
        StorageError: rows cannot be stored any more; those so far are kept.
        KeyboardInterrupt: by Ctrl-C; the rows so far are kept.
    """
    source.read_anew()
    sweep.check_protocol()
    directory = locate(location)
    pretrained.prepare(sweep.scenario, weights_file)
    sweep = dataclasses.replace(sweep, scenario=splits.prepare(sweep.scenario, data_dir))

    def finished(rows: Sequence[Row]) -> bool:
        return remaining.is_finished(sweep, rows, in_flight(directory, rows))

    rescue = cache.base() / "rescued"
    with writer.Store(directory, sweep.identity(), resume=resume, is_finished=finished, rescue=rescue) as rows:
        retries = Retries(rows)
        done = rows.read()
        followed = functools.partial(_followed, sweep, rows.name, done, retries, trackers or Trackers(), console)
        if finished(done):
            with followed():  # a tracker may be a new one
                if rows.grown:
                    rows.record()
                rows.end(len(done))
                return done
        rows.put(files.ENVIRONMENT, environment.describe())
        scenarios = [sweep.scenario, *sweep.confirmed()]
        engines.check(sweep.scenario, resources.options)
        compatibility.check(sweep.scenario, sweep.method)
        for line in splits.notes(sweep.scenario):
            _print_once(console, line)
        for scenario in scenarios:
            splits.check_split(scenario)
        with (
            session(resources.address),
            nodes.driving(rows.directory, mirror) as driver,
            Watch(driver.signs, rows.tell) as watch,
            followed() as followers,
        ):
            run = _Run(sweep, rows, retries, driver, watch, resources, console, followers)
            nodes.check(driver, sweep.scenario)
            run.check_gpus()
            run.train_references([sweep.scenario])
            run.look_at_memory(anyway)
            run.grow()
            for seed in sweep.protocol.search_seeds:
                run.search(seed)
            run.train_references(scenarios)
            what = sweep.protocol.objective, sweep.protocol.metrics
            rows.put(files.REFERENCES, {one.hash: fixed_points.compared(one, *what) for one in scenarios})
            run.confirm()
        if not finished(done := rows.read()):
            raise RuntimeError("Ray Tune ended before the sweep did")
        Checkpoints(references.checkpoints_in(rows.directory)).clear()
        rows.end(len(done))
        return done


@contextlib.contextmanager
def _followed(
    sweep: Sweep, name: str, done: Sequence[Row], retries: Retries, trackers: Trackers, console: Console
) -> Iterator[list[tune.Callback]]:
    """Trackers of a sweep, open while the body runs. They get the rows that they lack first, and what they refuse is
    said before anything is computed.
    """
    searched = [row for row in done if row["source"] != "confirmation"]
    searches = itertools.chain.from_iterable(map(sweep.trials, sweep.protocol.search_seeds))
    begun = [id_of_trial(name, number) for number in searches if number in retries]
    space = {name: distribution(search) for name, search in sweep.ranges.items()}

    def describe(trial: Trial) -> tuple[str, Mapping[str, Any]]:
        task: Task = trial.config["task"]
        chosen = sweep.chosen if task.source == "search" else ""  # its row will say what it chose
        return id_of_trial(name, task.number), {key: value for key, value in task.config.items() if key != chosen}

    def is_over(trial: Trial) -> bool:
        return trial.config["task"].number not in retries

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


class _Run:
    """What is left of a sweep, on a Ray cluster."""

    def __init__(
        self,
        sweep: Sweep,
        rows: writer.Store,
        retries: Retries,
        driver: nodes.Driver,
        watch: Watch,
        resources: Resources,
        console: Console,
        followers: Sequence[tune.Callback],
    ) -> None:
        self._sweep, self._rows, self._retries = sweep, rows, retries
        self._driver, self._watch, self._resources = driver, watch, resources
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
        """See `references.train` and `references.check`."""
        sweep, rows = self._sweep, self._rows
        references.train(sweep, scenarios, rows, self._driver, self._watch, self._slots, self._console)
        references.check(sweep, scenarios, rows.read())

    def look_at_memory(self, anyway: bool) -> None:
        """Say what there is to forget.

        Raises:
            InputError: there is nothing to forget, unless `anyway`; or the objective has no score for a reference.
        """
        scenario, protocol = self._sweep.scenario, self._sweep.protocol
        fixed_points.scored(scenario, protocol.objective, protocol.metrics)
        memories = [reference_models.memory(scenario, protocol.metrics)]
        for line in fixed_points.memory_lines(memories):
            _print_once(self._console, line)
        if nothing := fixed_points.nothing_to_forget(memories):
            if not anyway:
                raise InputError(f"{nothing}; --anyway goes on")
            _print_once(self._console, nothing)

    def grow(self) -> None:
        """Write down what is larger than before. A confirmation that was on its way may not be wanted any more."""
        if self._rows.grown:
            for number in self._retries.forget(CONFIRMATIONS):
                checkpoints_of(self._rows.directory, number).clear()
        self._rows.record()

    def search(self, seed: int) -> None:
        """Run the trials of one search that are missing."""
        sweep, protocol, everything = self._sweep, self._sweep.protocol, self._rows.read()
        missing = remaining.missing(sweep, seed, everything, self._retries)
        done = reader.of_search(seed, everything)
        references = reference_models.metrics(sweep.scenario, protocol.metrics)
        sampler, numbers_of_search = sweep.sampler(seed, done, references), sweep.trials(seed)
        started = time.monotonic() - remaining.searched_s(done)

        def searched_s() -> float:
            return time.monotonic() - started

        def task(number: int) -> Task:
            if number in self._retries:
                begun = self._retries[number]
                return sweep.task(seed, number, begun.config, begun.expected_gain)
            if (place := place_of(number, protocol.search_seeds)) == 0:
                return sweep.task(seed, number, {})
            running = [self._retries[one].config for one in self._retries if one in numbers_of_search]
            setting = sampler.suggest(place, running)
            return sweep.task(seed, number, setting, sampler.gain(place, setting, running))

        def is_spent(number: int) -> bool:
            if number in self._retries:
                return False
            runs = any(one in numbers_of_search for one in self._retries)
            return remaining.is_spent(protocol, done, searched_s() if runs else 0.0)

        while missing and not all(map(is_spent, missing)):
            size = len(missing) if self._sharing is None else self._slots.number
            numbers, missing = missing[:size], missing[size:]
            before = len(done)
            queue = Queue(numbers, self._begun(task), is_spent)
            chosen = scheduler(protocol.scheduler, sweep.longest, done)
            used = self._tune(
                queue, chosen, len(numbers), done, "trials", self._followers, searched_s, sampler.expected
            )
            was_full = len(done) - before == self._slots.number  # fewer trials do not show what a GPU gets through
            if self._sharing is not None and was_full:
                self._share(self._sharing, done[before:], used)

    def _share(self, sharing: Sharing, rows: Sequence[Row], used: float | None) -> None:
        """Decide how many trials share a GPU from now on, by the rows of those that had the present part of one, in the
        order of their ends.
        """
        before = sharing.trials
        seconds = "unlearn_s" if self._sweep.method.trains else "wall_s"  # what does not train is cached
        took_reference = any(row["status"] == "completed" and row["peak_mem"] is None for row in rows)
        have_trained = all(row["images"] for row in rows) and not took_reference
        first = rows[0]  # as long as it ran, all of them ran
        rate = first["images"] / first[seconds] if have_trained else None
        sharing.learn(rate, used)
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
        tasks = {task.number: task for task in remaining.unconfirmed(self._sweep, everything)}
        done = [row for row in everything if row["source"] == "confirmation"]
        queue = Queue(tasks, self._begun(tasks.__getitem__))
        self._tune(queue, FIFOScheduler(), len(tasks), done, "confirming", [])

    def _begun(self, make: Callable[[int], Task]) -> Callable[[int], Task]:
        """Function that makes a task and counts its attempt."""

        def begin(number: int) -> Task:
            with or_end():
                task = make(number)
                self._retries.begin(number, dict(task.config), task.expected_gain)
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
        searched_s: Callable[[], float | None] = lambda: None,
        expected: Callable[[Row], float | None] = lambda row: None,
    ) -> float | None:
        """Run `count` trials at most; their rows are appended to `done`, too. Return the share of a GPU's memory that
        was taken when the last one ended; None without a GPU.
        """
        if not count:
            return None
        before = len(done)
        trainable = tune.with_parameters(
            tune_trial,
            sweep=self._sweep,
            options=self._slots.options,
            directory=self._rows.directory,
            driver=self._driver,
        )
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what fails is in its row
        # Rows are the only state of a sweep: what Tune writes itself is not needed again.
        scratch = tempfile.mkdtemp(prefix="raymu-tune-")
        ended: Exception | None = None
        try:
            with (
                SweepProgress(self._console, what, before + count, done) as progress,
                self._watch.over(progress.look, self._resources.timeout_s),
            ):
                recorder = Recorder(
                    self._sweep,
                    self._rows,
                    self._slots.options,
                    progress,
                    done,
                    self._retries,
                    queue,
                    self._watch,
                    searched_s,
                    expected,
                )
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
                        stop=recorder.is_no_best,
                        verbose=0,
                        progress_reporter=tune.CLIReporter(),  # silent; the one for notebooks would clear the cell
                        failure_config=tune.FailureConfig(max_failures=0),  # the recorder says what is tried again
                        callbacks=[recorder, *followers],
                    ),
                ).fit()
        except Ended as end:
            ended = end.error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if ended is not None:
            gc.collect()  # Tune's controller, which frees the trials' places when it goes
            raise ended
        return recorder.gpu
