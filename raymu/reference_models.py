"""The two models everything is compared with: the original, and the one retrained without the forget set. Beside them
stands a dead network, which no objective should pay for.
"""

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from raymu import cache, devices, source, splits
from raymu.checkpoints import Checkpoints, State
from raymu.engines import DEFAULTS, Options
from raymu.errors import Diverged, InputError
from raymu.evaluation import (
    Memory,
    Metric,
    as_seen,
    baseline,
    evaluate,
    evaluate_quickly,
    gaps,
    look,
    measured,
    memories,
    profile,
)
from raymu.method import Method
from raymu.methods.retrain import Retrain
from raymu.models import architectures, compatibility, given, pretrained
from raymu.models.inference import killed
from raymu.scenario import NONE, Scenario
from raymu.storage import locate
from raymu.training import TrainOriginal, carried_out_by, fit
from raymu.values import content_hash
from raymu.workers import Workers

Which = Literal["original", "retrained"]
REFERENCES: tuple[Which, ...] = ("original", "retrained")
DEAD = "dead"  # the original, killed

WEIGHTS = "model.safetensors"
BASELINE = "baseline.safetensors"
METRICS_FILE = "metrics.json"
MEMORY_FILE = "memory.json"
SEEN_FILE = "seen.json"
PROFILES_FILE = "profiles.json"
TRAINING_FILE = "training.json"


def of(scenario: Scenario) -> tuple[Which, ...]:
    """References that a scenario has: both, or the original alone."""
    return REFERENCES if scenario.has_retrained else REFERENCES[:1]


def directory(scenario: Scenario) -> Path:
    """Where everything that belongs to the scenario and its data is cached."""
    scenario = scenario if scenario.data else splits.prepared(scenario)
    name = re.sub(r"[^\w.+-]", "_", scenario.name)  # of whatever a user calls it
    return cache.root() / "scenarios" / f"{name}-{scenario.hash}"


def entry_of(scenario: Scenario, which: Which) -> Path:
    """Where a reference is cached, named by all that decides its weights beside the scenario: the code that splits the
    data and trains on them, the architecture's, and the weights that training starts from. Of one that was trained
    elsewhere the scenario says the weights.
    """
    if own := _own(scenario, which):
        return directory(scenario) / f"{which}-{own}"
    code = source.digest(TrainOriginal, fit, splits.load, within=source.TRAINING)
    made_by = [code, architectures.code_of(scenario), pretrained.digest(scenario)]
    return directory(scenario) / f"{which}-{content_hash(made_by)}"


def _own(scenario: Scenario, which: Which) -> str:
    """Digest of a reference that was trained elsewhere; empty: raymu trains it."""
    return scenario.original if which == "original" else scenario.retrained


def weights_digest(scenario: Scenario, which: Which) -> str:
    """12 hex digits over the weights of a reference that is cached."""
    entry = entry_of(scenario, which)
    cache.find(entry)
    hashes: dict[str, str] = cache.load_json(entry / cache.HASHES)
    return hashes[WEIGHTS][:12]


def missing(scenario: Scenario) -> list[Which]:
    """The references that are still to be trained."""
    return [which for which in of(scenario) if not cache.find(entry_of(scenario, which))]


def are_ready(scenario: Scenario, further: Sequence[Metric] = ()) -> bool:
    """Whether both are trained, and compared by raymu's metrics and further ones."""
    return not missing(scenario) and cache.find(_comparison(scenario, further))


def train(
    scenario: Scenario, which: Which, options: Options = DEFAULTS, checkpoints: Checkpoints | None = None
) -> Path:
    """Train one reference unless it is cached; return the directory that holds it. A training that was cut off goes on
    after its last checkpoint.

    Args:
        options: what carries it out.
        checkpoints: where they are kept; None: in the cache of this machine.

    Raises:
        InputError: the architecture cannot be trained or measured, or the recipe does not train it.
    """
    entry = entry_of(scenario, which)
    kept = checkpoints or Checkpoints(locate(entry.with_name(f".{entry.name}.training")))

    def build(entry: Path | None) -> None:
        compatibility.check(scenario)
        if own := _own(scenario, which):
            if entry is not None:
                cache.save_tensors(entry / WEIGHTS, given.weights(scenario, own))
            return
        scenario_data = load_data(scenario, options)
        model = pretrained.start(scenario, scenario.model_seed).to(scenario_data.device)
        kind = TrainOriginal if which == "original" else Retrain
        method = kind(lr=scenario.recipe.lr, epochs=scenario.recipe.epochs)
        with devices.cpu_threads(options.threads), blamed(scenario, which):
            fitted = fit(model, scenario_data, method, scenario, options, kept)
        if entry is None:
            return
        cache.save_tensors(entry / WEIGHTS, model.state_dict())
        cache.save_json(entry / TRAINING_FILE, fitted._asdict())
        cache.save_json(entry / "scenario.json", scenario.as_dict())
        kept.clear()

    return Workers().once(entry, build)


def compare(scenario: Scenario, options: Options = DEFAULTS, further: Sequence[Metric] = ()) -> Path:
    """Evaluate the two references and a dead network unless that is cached; return the directory that holds the
    outcome. A reference that is missing is trained first.

    Args:
        options: what carries it out.
        further: metrics beside raymu's.

    Raises:
        InputError: a further metric is no finite number on one of them, or a model from elsewhere cannot be what the
            scenario says.
    """
    for which in of(scenario):
        train(scenario, which, options)

    def build(entry: Path | None) -> None:
        scenario_data = load_data(scenario, options)
        trained = load_models(scenario, options)
        with devices.cpu_threads(options.threads):
            models = {**trained, DEAD: killed(load_model(scenario, "original", options))}
            measure, views = dict[str, Tensor](), {}
            for which, model in trained.items():
                with blamed(scenario, which):
                    measure |= baseline({which: model}, scenario_data)
            for which, model in models.items():
                with blamed(scenario, which):
                    views[which] = look(model, scenario_data, measure)
            try:
                rows = {which: measured(of_model, further) for which, of_model in views.items()}
            except ValueError as error:  # a metric of the user's
                raise InputError(str(error)) from error
            if _own(scenario, "retrained") not in ("", NONE):
                _check_retrained(scenario, rows["retrained"])
            to_forget = memories(*(views[which] for which in REFERENCES)) if scenario.has_retrained else {}
        if entry is None:
            return
        cache.save_tensors(entry / BASELINE, measure)
        found = {
            which: row | gaps(row, rows.get("retrained"), further) | scenario_data.images for which, row in rows.items()
        }
        for which in of(scenario):
            found[which]["weights"] = weights_digest(scenario, which)
        cache.save_json(entry / METRICS_FILE, found)
        cache.save_json(entry / MEMORY_FILE, to_forget)
        cache.save_json(entry / SEEN_FILE, as_seen(scenario_data))

    return Workers().once(_comparison(scenario, further), build)


@contextlib.contextmanager
def blamed(scenario: Scenario, which: str) -> Iterator[None]:
    """Say in one line which model of a scenario is not finite.

    Raises:
        InputError: in the place of Diverged.
    """
    try:
        yield
    except Diverged as error:
        raise InputError(f"the {which} model of {scenario.name} is of no use: {error}") from error


def _check_retrained(scenario: Scenario, row: Mapping[str, Any]) -> None:
    """Refuse a retrained model from elsewhere that names the forgotten classes more often than chance does."""
    chance, seen = 1 / scenario.num_classes, min(row["val_forget_acc"], row["test_forget_acc"])
    if scenario.forget and seen > chance:
        raise InputError(
            f"the retrained model of {scenario.name} was trained on what has to be forgotten: it names"
            f" {seen:.0%} of the held-out images of {scenario.forgotten}, and chance {chance:.0%}"
        )


def metrics(scenario: Scenario, further: Sequence[Metric] = ()) -> dict[str, dict[str, Any]]:
    """What `evaluate` said of each reference and of the dead network, the gaps to the retrained model, and a digest of
    a reference's `weights`.
    """
    metrics: dict[str, dict[str, Any]] = _compared(scenario, further, METRICS_FILE)
    return metrics


def memory(scenario: Scenario, further: Sequence[Metric] = ()) -> dict[str, Memory | None]:
    """Memory of the original on "val" and on "test"; None where it is not defined, empty without a retrained model."""
    return {split: found and Memory(*found) for split, found in _compared(scenario, further, MEMORY_FILE).items()}


def seen(scenario: Scenario, further: Sequence[Metric] = ()) -> dict[str, Any]:
    """Images as the models see them (`evaluation.as_seen`)."""
    seen: dict[str, Any] = _compared(scenario, further, SEEN_FILE)
    return seen


def known_memory(scenario: Scenario) -> dict[str, Memory | None]:
    """Memory that the cache knows, on the data that were prepared last, by split; empty: it knows none."""
    known = splits.last_prepared(scenario)
    return memory(known) if known is not None and are_ready(known) else {}


def profiles(scenario: Scenario, options: Options = DEFAULTS) -> dict[str, list[dict[str, Any]]]:
    """The depth profile of each reference (`evaluation.profile`); computed once. One that is missing is trained first.

    Args:
        options: what carries it out.
    """

    def build(entry: Path | None) -> None:
        scenario_data = load_data(scenario, options)
        with devices.cpu_threads(options.threads):
            found = {which: profile(model, scenario_data) for which, model in load_models(scenario, options).items()}
        if entry is not None:
            cache.save_json(entry / PROFILES_FILE, found)

    for which in of(scenario):
        train(scenario, which, options)
    entry = Workers().once(_of_both(scenario, "profiles", source.digest(profile, within=source.EVALUATION)), build)
    profiles: dict[str, list[dict[str, Any]]] = cache.load_json(entry / PROFILES_FILE)
    return profiles


def load_model(scenario: Scenario, which: Which, options: Options = DEFAULTS) -> nn.Module:
    """One reference, from the cache; if it is missing it is trained."""
    device = default_device()
    model = architectures.build(scenario, scenario.model_seed).to(device)
    model.load_state_dict(cache.load_tensors(train(scenario, which, options) / WEIGHTS, device))
    return model


def load_models(scenario: Scenario, options: Options = DEFAULTS) -> dict[str, nn.Module]:
    """The references, by name."""
    return {which: load_model(scenario, which, options) for which in of(scenario)}


def _compared(scenario: Scenario, further: Sequence[Metric], file: str) -> Any:
    """Content of a file that `compare` has written."""
    entry = _comparison(scenario, further)
    cache.find(entry)
    return cache.load_json(entry / file)


def _comparison(scenario: Scenario, further: Sequence[Metric]) -> Path:
    return _of_both(scenario, "comparison", evaluation_code(), *(f"{one.name} {one.code()}" for one in further))


def _of_both(scenario: Scenario, what: str, *codes: str) -> Path:
    """Where something is cached that some code says of both references, which have to be there."""
    weights = [weights_digest(scenario, which) for which in of(scenario)]
    return directory(scenario) / f"{what}-{content_hash([*codes, *weights])}"


def evaluation_code() -> str:
    """A digest of the code that evaluates: rows and references compare only where it is the same."""
    return source.digest(
        evaluate, evaluate_quickly, baseline, gaps, memories, killed, splits.load, within=source.EVALUATION
    )


@dataclass(frozen=True)
class References:
    """A scenario's data and references, ready for trials.

    Attributes:
        metrics: see the function of that name.
        baseline: what `evaluate` compares a model with.
        original: the original's weights.
    """

    scenario: Scenario
    data: splits.Data
    metrics: dict[str, dict[str, Any]]
    baseline: dict[str, Tensor]
    original: dict[str, Tensor]

    def model(self) -> nn.Module:
        """A copy of the original model that may be changed."""
        model = architectures.build(self.scenario, self.scenario.model_seed)
        model.load_state_dict(self.original)
        return model.to(self.data.device)

    def retrained(self, method: Method, seed: int, options: Options) -> State | None:
        """State of an engine at the end of the method, if the retrained reference was trained alike; else None."""
        recipe = self.scenario.recipe
        anew = Retrain(lr=recipe.lr, epochs=recipe.epochs)
        if method != anew or seed != self.scenario.model_seed or self.scenario.retrained:
            return None
        entry = entry_of(self.scenario, "retrained")
        training = cache.load_json(entry / TRAINING_FILE)
        alike = training["by"] == carried_out_by(options, self.data.device)
        if not alike or training["epochs"] != recipe.epochs:  # patience ended it, or took earlier weights
            return None
        return State(
            epoch=recipe.epochs,
            images=recipe.epochs * int((~self.data.forget).sum()),
            spared_s=training["seconds"],
            cycled=[],
            weights=cache.load_tensors(entry / WEIGHTS, self.data.device),
            optimizer={},
            best={},
        )

    def cache_directory(self) -> Path:
        """Where methods keep what they compute from the original model."""
        return directory(self.scenario) / f"computed-{self.metrics['original']['weights']}"


def load(
    scenario: Scenario, device: torch.device, options: Options = DEFAULTS, further: Sequence[Metric] = ()
) -> References:
    """A scenario's references, from the cache; kept in memory until `source.read_anew`, so that a process which runs
    trial after trial of one scenario reads them once: of one whose data are filled in, since what is prepared last may
    change. A reference that is missing is trained.

    Args:
        further: metrics beside raymu's.
    """
    return _loaded(splits.prepared(scenario), device, options, tuple(further), source.reading())


def load_data(scenario: Scenario, options: Options, device: torch.device | None = None) -> splits.Data:
    """The scenario's data, on the device that this process computes on or a given one; decoded, where they have to be,
    by as many processes as the options ask for.
    """
    return splits.load(scenario, device or default_device(), devices.cores(options.cores, options.threads))


def release() -> None:
    """Let go of the references that are kept in memory."""
    _loaded.cache_clear()


@functools.lru_cache(maxsize=1)
def _loaded(
    scenario: Scenario, device: torch.device, options: Options, further: tuple[Metric, ...], reading: tuple[str, int]
) -> References:
    compared = compare(scenario, options, further)
    return References(
        scenario=scenario,
        data=load_data(scenario, options, device),
        metrics=metrics(scenario, further),
        baseline=cache.load_tensors(compared / BASELINE, device),
        original=cache.load_tensors(entry_of(scenario, "original") / WEIGHTS, device),
    )


def default_device() -> torch.device:
    """The GPU that this process may use, or the CPU."""
    return torch.device("cuda" if devices.has_gpu() else "cpu")
