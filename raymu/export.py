"""Models in files: a trial's that is kept, and those that are read back or come from elsewhere."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from raymu import cache, devices, reference_models
from raymu.engines import Options
from raymu.errors import InputError
from raymu.evaluation import Metric, profile
from raymu.method import Method
from raymu.model_card import WEIGHTS, model_card
from raymu.models import architectures, checkpoint
from raymu.models.cmf import CMF
from raymu.objective import Objective
from raymu.row import Row
from raymu.scenario import Scenario
from raymu.trial import run_trial
from raymu.workers import Workers

ROW = "row.json"
CARD = "README.md"
LAYERS = "layers.json"
OF_CMF = {"mu", "head.weight"}  # names of its buffers


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
        beside: dict[str, Row] = {which: known[which] for which in reference_models.of(scenario)}
        (out / CARD).write_text(model_card(row, beside, scenario, method.paper))
    if profiles is not None:
        cache.save_json(out / LAYERS, profiles)
    made = [out / name for name in (ROW, WEIGHTS, CARD, LAYERS) if (out / name).exists()]
    cache.save_json(out / cache.HASHES, {path.name: cache.hash_of(path) for path in made})


def load(path: Path, scenario: Scenario) -> nn.Module:
    """A model of the scenario's architecture, in eval mode, with the weights of a file that any code wrote, or of a
    directory that `keep` filled. Where they are those of a CMF head, the model has one. Of a head with further outputs
    only those of the scenario's classes are kept: among all classes of the data, or by `Scenario.original_rows`.

    Raises:
        InputError: see `raymu.models.checkpoint.load` and `made_by`.
    """
    path, row = made_by(path)
    model, tensors = architectures.build(scenario, scenario.model_seed), checkpoint.read(path)
    if tensors.keys() >= OF_CMF and not model.state_dict().keys() >= OF_CMF:
        model = CMF(model, scenario.num_classes, temperature=1.0)  # which its weights have in them
    what = f"{scenario.architecture_name} on {scenario.dataset_name}"
    kept, among, rows = scenario.classes, scenario.source.num_classes, scenario.original_rows
    outputs = max((len(tensors[name]) for name in checkpoint.of_heads(model) if name in tensors), default=0)
    if rows and not row and max(rows) < outputs:  # as of the original
        kept, among = tuple(rows[one] for one in kept or range(among)), 0
    model.load_state_dict(checkpoint.load(model, path, what, kept, among))
    return model.eval()


def made_by(path: Path) -> tuple[Path, Row]:
    """File with a model's weights, and the row of the trial that `keep` kept with it: of the directory, or of the file
    in it. Of a file from elsewhere the row is empty.

    Raises:
        InputError: the directory is no such, or its row is damaged.
    """
    is_directory = path.is_dir()
    directory = path if is_directory else path.parent
    if not is_directory and not (path.name == WEIGHTS and (directory / ROW).exists()):
        return path, {}
    try:
        row = cache.load_json(directory / ROW)
    except FileNotFoundError as error:
        raise InputError(
            f"{path} has no {ROW} of `raymu run` or `raymu export`; name the file with the weights"
        ) from error
    except OSError as error:
        raise InputError(f"cannot read {directory / ROW}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{directory / ROW} is damaged: {error}") from error
    if not isinstance(row, dict) or "scenario_hash" not in row:
        raise InputError(f"{directory / ROW} is no row of a trial")
    return directory / WEIGHTS, row
