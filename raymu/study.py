"""The application: what a study does with sweeps, rows and models. The command line only parses and prints."""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import nn

from raymu import cache, devices, engines, export, fixed_points, methods, reference_models, scenarios, source, splits
from raymu import objective as objectives
from raymu.engines import DEFAULTS, Options
from raymu.engines.options import ENGINES
from raymu.errors import InputError
from raymu.evaluation import Metric, accuracy, metrics
from raymu.evaluation.layers import check_blocks
from raymu.method import Method
from raymu.methods.retrain import Retrain
from raymu.models import compatibility, pretrained
from raymu.models.inference import extract
from raymu.objective import REMOVAL, Objective
from raymu.results import reader
from raymu.results.files import MIRROR
from raymu.results.reader import SweepResults
from raymu.row import IDENTITY, MADE_WITH, MEASURED, Row
from raymu.scenario import Scenario
from raymu.storage import Location, locate
from raymu.trial import check, run_trial
from raymu.values import NOT_NEGATIVE, SCENARIO, STORAGE, checked, given_values, unknown

if TYPE_CHECKING:  # Ray takes seconds, which a trial alone does not need
    from raymu.distributed.session import Resources
    from raymu.tuning.sweep import Sweep
    from raymu.tuning.trackers.settings import Trackers

MOST_NAMED = 5  # of what differs between two rows
OF_SCENARIO = ("forget", "forget_share", "model_seed")  # what a row also says outside its scenario_fields


def tune(
    sweep: "Sweep",
    storage: Path | str | Location = STORAGE,
    *,
    name: str | None = None,
    mirror: bool = True,
    resume: bool = False,
    anyway: bool = False,
    data_dir: Path | str | None = None,
    weights_file: Path | None = None,
    resources: "Resources | None" = None,
    trackers: "Trackers | None" = None,
    console: Console | None = None,
) -> SweepResults:
    """Results of a sweep, after it was run, or what is missing of it.

    Args:
        storage: directory of all sweeps, or a URI such as s3://bucket/unlearning.
        name: its directory in the storage; None: `sweep.directory`.
        mirror: whether the storage also keeps what is cached, references above all, for other nodes and later clusters.
        resume: whether an unfinished sweep is continued, or one of a smaller budget grows.
        anyway: whether it runs where there is nothing to forget.
        data_dir: where the dataset's original files are.
        weights_file: a safetensors file with the scenario's pretrained weights.
        resources: what a trial has, and how many run at once.
        trackers: where its searches are shown as well.
        console: where progress is shown; None: standard output, in a notebook one output of the cell.

    Raises:
        InputError, StorageError, KeyboardInterrupt: see `raymu.tuning.driver.run_sweep`.
    """
    from raymu.distributed.session import Resources
    from raymu.tuning.driver import run_sweep
    from raymu.tuning.progress import default_console

    where = locate(storage)
    if MIRROR in (name or "").split("/"):
        raise InputError(f"{MIRROR} is where {where} keeps what is cached: choose another name")
    directory = where / (name or sweep.directory)
    run_sweep(
        sweep,
        directory,
        resources or Resources(),
        console or default_console(),
        data_dir=data_dir,
        weights_file=weights_file,
        mirror=where / MIRROR if mirror else None,
        resume=resume,
        anyway=anyway,
        trackers=trackers,
    )
    (found,) = reader.load(directory)
    return found


def possible(makers: "Iterable[Callable[[], Sweep]]") -> "tuple[list[Sweep], list[InputError]]":
    """Sweeps that can be made, and why others cannot, as of a method that does not forget single samples.

    Raises:
        InputError: none can be made, or two have one name.
    """
    sweeps, refused = [], []
    for make in makers:
        try:
            sweeps.append(make())
        except InputError as error:
            refused.append(error)
    if not sweeps:
        raise refused[0]
    names = [sweep.name for sweep in sweeps]
    if twice := [one for one in names if names.count(one) > 1]:
        raise InputError(f"two of the sweeps are {twice[0]}: one of a method, head and trained part is ranked")
    return sweeps, refused


@dataclass(frozen=True)
class Trial:
    """One trial outside a sweep: unlearn once, and have the model.

    Attributes:
        method: the method at a setting.
        seed: draws everything random.
        metrics: what is measured beside raymu's own metrics.
        options: what carries it out.
        layers: whether every block is probed as well.

    Raises:
        InputError: they do not go together.
    """

    method: Method
    scenario: Scenario
    seed: int = 0
    objective: Objective = REMOVAL
    metrics: tuple[Metric, ...] = ()
    options: Options = DEFAULTS
    layers: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", checked("seed", self.seed, int, NOT_NEGATIVE))
        if not isinstance(self.method, Method):
            raise InputError(f"a trial's method is one at a setting, such as SalUn(lr=0.01), not {self.method!r}")
        check(self.scenario, type(self.method), self.objective, self.metrics)
        engines.check(self.scenario, self.options)
        if self.layers:
            check_blocks(self.scenario)

    @classmethod
    def of(
        cls,
        row: Mapping[str, Any],
        *,
        method: type[Method] | None = None,
        scenario: Scenario | None = None,
        head: str | None = None,
        train: str | None = None,
        objective: Objective | None = None,
        seed: int | None = None,
        options: Options | None = None,
        layers: bool = False,
    ) -> "Trial":
        """The trial that made a row, with what is given in the place of what the row says. Of an empty row, the
        method's published setting.

        Raises:
            InputError: the row was changed, or method or scenario are no longer those that made it.
        """
        if method is None and "method" not in row:
            raise InputError("the row does not say its method; name one")
        chosen = method or methods.get(row["method"])
        if row.get("method", chosen.name()) != chosen.name():
            raise InputError(f"the config is a setting of {row['method']}, not of {chosen.name()}")
        if "scenario_fields" in row and row.get("method_code") != engines.code_of(chosen):
            raise InputError(
                f"{chosen.name()} is not the method that made the row: its code was edited since, or the row's method"
                " is defined in another file. Name that file: raymu run path/to/own.py, or raymu export --method"
                " path/to/own.py"
            )
        task = scenario or scenario_of(row)
        kind: Any = {"head": head or row.get("head", "linear"), "train": train or row.get("train", "all")}
        chosen.check_options(**kind)
        config = row["config"] if "config" in row else chosen.published_config(task, kind["head"])
        if not isinstance(known := row.get("metrics", {}), Mapping):
            raise InputError(f"metrics are names with digests, not {known!r}")
        with from_a_row():
            scored_by = objective or objectives.get(row.get("objective", objectives.default(task.has_retrained).name))
            measured = tuple(map(metrics.get, known))
        return cls(
            chosen.from_config(config, **kind),
            task,
            seed=row.get("seed", 0) if seed is None else seed,
            objective=scored_by,
            metrics=measured,
            options=options or options_of(row),
            layers=layers,
        )

    def prepared(self, data_dir: Path | str | None = None, weights_file: Path | None = None) -> "Trial":
        """The same trial, once its data and pretrained weights are there and it is known that it can run.

        Args:
            data_dir: where the dataset's original files are.
            weights_file: a safetensors file with the scenario's pretrained weights.

        Raises:
            InputError: it cannot.
        """
        scenario = prepared(self.scenario, data_dir, weights_file, type(self.method))
        return dataclasses.replace(self, scenario=scenario)

    def run(self) -> tuple[Row, nn.Module | None]:
        """The row and the unlearned model, as `raymu.trial.run_trial` returns them, by this process alone."""
        trial = self.prepared()
        return run_trial(
            trial.scenario,
            trial.method,
            seed=trial.seed,
            objective=trial.objective,
            metrics=trial.metrics,
            options=trial.options,
        )

    def keep(self, out: Path) -> Row:
        """The row, after it was written into a directory, with the model, its card and what `layers` asks for. Several
        workers run on a Ray cluster. The trial is a prepared one.

        Raises:
            InputError: the directory cannot be written, or holds files that are not an earlier run's.
        """
        export.make_room(out)
        call = (export.keep, out.absolute(), *(getattr(self, one.name) for one in dataclasses.fields(self)))
        if self.options.stage is None:
            export.keep(*call[1:])
        else:
            from raymu.distributed.nodes import driving
            from raymu.distributed.session import Resources, fit_to_cluster, session
            from raymu.distributed.watch import Watch
            from raymu.distributed.worker_groups import side_by_side

            with (
                session(None),
                driving(locate(out), locate(out) / MIRROR) as driver,
                Watch(driver.signs) as watch,
            ):
                slots = fit_to_cluster(Resources(options=self.options))
                side_by_side(driver, watch, slots, [(self.method.name(), *call)])
            shutil.rmtree(out / MIRROR)
        row: Row = cache.load_json(out / export.ROW)
        return row


def prepared(
    scenario: Scenario,
    data_dir: Path | str | None = None,
    weights_file: Path | None = None,
    method: type[Method] | None = None,
) -> Scenario:
    """The scenario with its data filled in, once these and its pretrained weights are there and its architecture was
    tried out.

    Args:
        data_dir: where the dataset's original files are.
        weights_file: a safetensors file with the pretrained weights.
        method: what has to work on the architecture.

    Raises:
        InputError: something is missing or cannot work.
    """
    pretrained.prepare(scenario, weights_file)
    compatibility.check(scenario, method)
    filled = splits.prepare(scenario, data_dir)
    splits.check_split(filled)
    return filled


def references(
    scenario: Scenario,
    objective: Objective = REMOVAL,
    metrics: Sequence[Metric] = (),
    options: Options = DEFAULTS,
    data_dir: Path | str | None = None,
    weights_file: Path | None = None,
) -> dict[str, Any]:
    """Rows of the "original", the "retrained", a "dead" and an "untrained" network with their scores, and the "memory"
    to remove by split (None where it is not defined), in JSON's types. References that are missing are trained.

    Args:
        objective: of the scores.
        metrics: what is measured beside raymu's own metrics.
        options: what carries it out.
        data_dir: where the dataset's original files are.
        weights_file: a safetensors file with the scenario's pretrained weights.

    Raises:
        InputError: scenario, objective and metrics do not go together, or data or weights are missing.
    """
    source.read_anew()
    devices.check_defaults()
    check(scenario, Retrain, objective, metrics)
    scenario = prepared(scenario, data_dir, weights_file)
    rows = fixed_points.measured(scenario, objective, metrics, options)
    return {**rows, "memory": fixed_points.in_json(reference_models.memory(scenario, metrics))}


def accuracies(scenario: Scenario, options: Options = DEFAULTS) -> dict[str, tuple[float, int]]:
    """Share of the held-out images that the original is right on, in [0, 1], and their number, on "validation" and on
    "test". An original that is missing is trained.

    Raises:
        InputError: the scenario's data are missing.
    """
    task = splits.prepare(scenario)
    data, model = reference_models.load_data(task, options), reference_models.load_model(task, "original", options)
    found = {}
    with devices.cpu_threads(options.threads), reference_models.blamed(task, "original"):
        for name, parts in (("validation", data.val), ("test", data.test)):
            said = extract(model, data, *parts)
            answers, labels = torch.cat([one.logits.argmax(1) for one in said]), torch.cat([one.labels for one in said])
            found[name] = (accuracy(answers, labels, data.workers), len(labels))
    return found


def scenario_of(row: Mapping[str, Any]) -> Scenario:
    """Scenario of a row, or of what a person wrote in its place: a name and what is forgotten.

    Raises:
        InputError: it was changed, or the row does not say it.
    """
    if "scenario_hash" not in row:  # written by hand
        task = scenarios.get(row.get("scenario", SCENARIO))
        if {"forget", "forget_share"} & row.keys():
            forget_set = {"forget": row.get("forget", ()), "forget_share": row.get("forget_share", 0.0)}
            task = task.forgetting(**forget_set, forget_samples="")
        return dataclasses.replace(task, model_seed=row.get("model_seed", task.model_seed))
    if "scenario_fields" not in row:
        raise InputError(
            f"the row names its scenario, {row['scenario']}, but does not hold it, since raymu 0.1 made it: raymu run"
            " --config takes such a row, with --scenario and where need be --forget"
        )
    task = Scenario.from_dict(row["scenario_fields"])
    if task.hash != row["scenario_hash"]:
        raise InputError(f"the row was changed: its scenario_fields are not those of {row['scenario_hash']}")
    for field, value in {"scenario": task.name, **{one: task.as_dict()[one] for one in OF_SCENARIO}}.items():
        if row.get(field, value) != value:
            raise InputError(f"the row was changed: its {field} is {row[field]}, in its scenario_fields {value}")
    with from_a_row():
        splits.check_forget(task)
        task.network.check(task.pretrained)
    return task


@contextlib.contextmanager
def from_a_row() -> Iterator[None]:
    """Say what to do where a row names a thing that only a file of the user's defines.

    Raises:
        InputError: in the place of the one in the body.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{error}. If it is your own, name the file that defines it: --own FILE") from error


def differences_to(given: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """Differences between a given row and the row of the same trial run again, as "column is X there, Y here"."""
    if "scenario_hash" in given and "scenario_fields" not in given:
        return ["raymu 0.1 made the row, which does not say by what code"]
    if any(given.get(key) != row[key] for key in IDENTITY if key not in MADE_WITH):
        return []  # another trial was asked for
    if given.get("status") == "stopped":
        return [f"its trial was stopped after {given['epochs']} epochs, this one went on for {row['epochs']}"]
    metrics = [key for key in row if key.startswith(MEASURED) and given.get(key) is not None]  # it may lack test's
    keys = [*MADE_WITH, *metrics, "score"]
    differ = [key for key in keys if key in given and given[key] != row[key] and given.get("status") == "completed"]
    return [f"{key} is {given[key]} there, {row[key]} here" for key in differ[:MOST_NAMED]]


def options_of(row: Mapping[str, Any], **given: Any) -> Options:
    """Options that carried out the row's trial, with those that are given and not None in their place."""
    engine = row.get("engine", "pytorch")
    if engine not in list(ENGINES):
        raise InputError(unknown("engine", str(engine), list(ENGINES)))
    said = {
        "threads": row.get("threads"),
        "workers": row.get("workers"),
        "zero": ENGINES[engine],
        "deepspeed": row.get("deepspeed"),
    }
    if said["deepspeed"] or given.get("deepspeed"):
        said["zero"] = None
    return Options(**{**given_values(said), **given_values(given)})
