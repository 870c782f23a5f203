"""A model that anybody's code unlearned, measured as a trial's is."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from raymu import devices, evaluation, export, fixed_points, reference_models, source, splits
from raymu.engines import DEFAULTS, Options
from raymu.errors import InputError
from raymu.evaluation import Metric, gaps
from raymu.evaluation.layers import check_blocks
from raymu.evaluation.metrics import check_new
from raymu.evaluation.samples import check_room, write
from raymu.models.inference import head_matrix, heads
from raymu.objective import Objective
from raymu.row import Row
from raymu.scenario import Scenario, check_kind

UNLEARNED = "unlearned"  # its name beside the references
Model = nn.Module | Path | str


def evaluate(
    model: Model,
    scenario: Scenario,
    metrics: Sequence[Metric] = (),
    options: Options = DEFAULTS,
    data_dir: Path | str | None = None,
    objective: Objective | None = None,
) -> Row:
    """All metrics of a model, and their gaps to the retrained one: to the last digit those of a trial with the same
    options on the same CPU. References that are missing are trained.

    Args:
        model: of the scenario's architecture, however it was unlearned; it is moved to the device that measures it, and
            stays as it is. Or where it is: a file with its weights, or a directory of `Trial.keep`.
        metrics: what is measured beside raymu's own metrics.
        options: what carries it out.
        data_dir: where the dataset's original files are.
        objective: what `score` and `test_score` are of; None: the row has none.

    Raises:
        InputError: the scenario's data are missing, the weights are not those of its architecture, or torch's defaults
            were changed.
        Diverged: the model's features or logits are not finite.
    """
    check_new(metrics)
    model = _model(model, scenario)
    found = _references(scenario, metrics, options, data_dir)
    with devices.cpu_threads(options.threads):
        row = evaluation.evaluate(model.to(found.data.device), found.data, found.baseline, metrics)
    row |= gaps(row, found.metrics.get("retrained"), metrics) | found.data.images
    return row if objective is None else fixed_points.with_score(UNLEARNED, row, found.metrics, objective)


def layers(
    model: Model, scenario: Scenario, options: Options = DEFAULTS, data_dir: Path | str | None = None
) -> dict[str, list[Row]]:
    """Depth profiles (see `raymu.evaluation.profile`) of the "original", the "retrained" and the "unlearned" model.

    Args:
        model, scenario, options, data_dir: see `evaluate`.

    Raises:
        InputError: see `evaluate`; or timm does not say what the blocks of the architecture are.
        Undefined: the output of a block is not finite.
    """
    model = _model(model, scenario)
    check_blocks(scenario)
    found = _references(scenario, (), options, data_dir)
    profiles = reference_models.profiles(found.scenario, options)
    with devices.cpu_threads(options.threads):
        return {**profiles, UNLEARNED: evaluation.profile(model.to(found.data.device), found.data)}


def samples(
    model: Model,
    scenario: Scenario,
    options: Options = DEFAULTS,
    data_dir: Path | str | None = None,
    out: Path | None = None,
) -> list[Row]:
    """What is still known of every held-out forget image (see `raymu.evaluation.samples`).

    Args:
        model, scenario, options, data_dir: see `evaluate`.
        out: a file NAME.csv that it is written to as well, beside NAME.png with the images that the probe still names.

    Raises:
        InputError: see `evaluate`; or the files cannot be written.
        Diverged: see `evaluate`.
    """
    if out is not None:
        check_room(out)
    model = _model(model, scenario)
    found = _references(scenario, (), options, data_dir)
    with devices.cpu_threads(options.threads):
        rows = evaluation.samples(evaluation.look(model.to(found.data.device), found.data))
    if out is not None:
        try:
            write(rows, found.data, out)
        except OSError as error:
            raise InputError(f"cannot write to {out}: {error.strerror}") from error
    return rows


def _model(model: Model, scenario: Scenario) -> nn.Module:
    """The model, or the one in a file; one in memory has to have an output for each class."""
    check_kind(scenario)
    if isinstance(model, Path | str):
        return export.load(Path(model), scenario)
    if not isinstance(model, nn.Module):
        raise InputError(f"a model is a torch.nn.Module, or the path of its weights, not a {type(model).__name__}")
    outputs = len(head_matrix(model)) if heads(model) else 0
    if outputs != scenario.num_classes:
        raise InputError(f"the model has {outputs} outputs, {scenario.name} has {scenario.num_classes} classes")
    return model


def _references(
    scenario: Scenario, metrics: Sequence[Metric], options: Options, data_dir: Path | str | None
) -> reference_models.References:
    source.read_anew()
    devices.check_defaults()
    return reference_models.load(
        splits.prepare(scenario, data_dir), reference_models.default_device(), options, metrics
    )
