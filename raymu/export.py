"""One trial whose model is kept."""

from collections.abc import Sequence
from pathlib import Path

from raymu import cache, devices, reference_models
from raymu.engines import Options
from raymu.errors import InputError
from raymu.evaluation import Metric, profile
from raymu.method import Method
from raymu.model_card import WEIGHTS, model_card
from raymu.objective import Objective
from raymu.row import Row
from raymu.scenario import Scenario
from raymu.trial import run_trial
from raymu.workers import Workers

ROW = "row.json"
CARD = "README.md"
LAYERS = "layers.json"


def make_room(out: Path) -> None:
    """Make the directory, or remove from it what an earlier run left there, as its hashes say.

    Raises:
        InputError: it cannot be made, or it holds files of the same names that no earlier run left.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        listed = out / cache.HASHES
        left = cache.load_json(listed) if listed.exists() else {}
        for name in (ROW, WEIGHTS, CARD, LAYERS):
            if (out / name).exists() and cache.hash_of(out / name) != left.get(name):
                raise InputError(f"{out} holds a {name} that is not an earlier run's; choose another --out")
        for name in (*left, cache.HASHES):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{listed} is damaged; choose another --out") from error


def keep(
    out: Path,
    method: Method,
    scenario: Scenario,
    seed: int,
    objective: Objective,
    metrics: Sequence[Metric],
    options: Options,
    layers: bool,
) -> None:
    """Run a trial and write its row, its model with a card, and if asked for a depth profile, into a directory. Where
    the options ask for several workers, each of them calls this, and the first one writes.
    """
    row, model = run_trial(scenario, method, seed=seed, objective=objective, metrics=metrics, options=options)
    profiles = None
    if layers and model is not None:
        with devices.cpu_threads(options.threads):
            loaded = reference_models.load(scenario, reference_models.default_device(), options, metrics)
            profiles = {**reference_models.profiles(scenario, options), method.name(): profile(model, loaded.data)}
    if Workers().rank > 0:
        return
    cache.save_json(out / ROW, row)
    if model is not None:
        cache.save_tensors(out / WEIGHTS, model.state_dict())
        known = reference_models.metrics(scenario, metrics)
        beside: dict[str, Row] = {which: known[which] for which in reference_models.REFERENCES}
        (out / CARD).write_text(model_card(row, beside, scenario, method.paper))
    if profiles is not None:
        cache.save_json(out / LAYERS, profiles)
    made = [out / name for name in (ROW, WEIGHTS, CARD, LAYERS) if (out / name).exists()]
    cache.save_json(out / cache.HASHES, {path.name: cache.hash_of(path) for path in made})
