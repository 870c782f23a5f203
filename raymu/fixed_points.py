"""Models whose scores are known before a method is tried: the original (0), the retrained model (1), and two that know
nothing, a dead and an untrained network (0). Between the first two lies what there is to forget.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raymu import devices, reference_models
from raymu.engines import DEFAULTS, Options
from raymu.errors import InputError, described
from raymu.evaluation import Memory, Metric, evaluate, gaps
from raymu.evaluation.metrics import SPLITS
from raymu.models import pretrained
from raymu.objective import Objective
from raymu.results.comparison import Estimate, estimate
from raymu.row import Row
from raymu.scenario import Scenario

Memories = Mapping[str, Memory | None]  # by split; None: not defined


def with_score(which: str, row: Row, found: Mapping[str, Row], objective: Objective) -> Row:
    """A row with its scores on validation and on test.

    Args:
        which: model it is of, in messages.
        found: rows of the references.

    Raises:
        InputError: the objective has no score for it.
    """
    try:
        score, test_score = (objective.of(row, found, split) for split in SPLITS)
    except Exception as error:  # whatever an objective of the user's raises
        raise InputError(f"objective {objective.name} on the {which} model: {described(error)}") from error
    return row | {"score": score, "test_score": test_score}


def scored(scenario: Scenario, objective: Objective, metrics: Sequence[Metric] = ()) -> dict[str, Row]:
    """Rows of both references and of the dead network, as `reference_models.metrics` returns them, with their scores.

    Raises:
        InputError: the objective has no score for one.
    """
    found = reference_models.metrics(scenario, metrics)
    return {which: with_score(which, row, found, objective) for which, row in found.items()}


def compared(scenario: Scenario, objective: Objective, metrics: Sequence[Metric] = ()) -> dict[str, Any]:
    """Rows as `scored` returns them, the "memory" between the references by split, and what was "seen" of some images,
    in JSON's types.
    """
    known = {
        "memory": in_json(reference_models.memory(scenario, metrics)),
        "seen": reference_models.seen(scenario, metrics),
    }
    return {**scored(scenario, objective, metrics), **known}


def in_json(memories: Memories) -> dict[str, dict[str, Any] | None]:
    """Fields of memories and the interval of what there is to remove, by split, in JSON's types."""
    return {split: found and found._asdict() | {"interval": [*found.interval]} for split, found in memories.items()}


def measured(
    scenario: Scenario, objective: Objective, metrics: Sequence[Metric] = (), options: Options = DEFAULTS
) -> dict[str, Row]:
    """Rows of all four, with their scores. References that are missing are trained. "untrained" has the weights that
    training starts from.

    Raises:
        InputError: as `scored`.
    """
    reference = reference_models.load(scenario, reference_models.default_device(), options, metrics)
    rows = scored(reference.scenario, objective, metrics)
    untrained = pretrained.start(reference.scenario, scenario.model_seed).to(reference.data.device)
    with devices.cpu_threads(options.threads):
        row = evaluate(untrained, reference.data, reference.baseline, metrics)
    row |= gaps(row, reference.metrics.get("retrained"), metrics) | reference.data.images
    rows["untrained"] = with_score("untrained", row, reference.metrics, objective)
    return {which: as_trial(row, reference.scenario, metrics) for which, row in rows.items()}


def as_trial(row: Row, scenario: Scenario, metrics: Sequence[Metric] = ()) -> Row:
    """A row with the columns that a trial's has as well, of a model that no trial made."""
    columns = {column: scenario.as_dict()[column] for column in ("forget", "forget_share", "model_seed")}
    measured_by = {"metrics": {one.name: one.code() for one in metrics}} if metrics else {}
    return {**columns, **measured_by, "seed": 0, "status": "completed", **row}


def memory_lines(originals: Sequence[Memories]) -> Iterator[str]:
    """Lines on what there is to forget.

    Args:
        originals: of one or several.
    """
    for number, memories in enumerate(originals, start=1):
        which = f" of original {number}" if len(originals) > 1 else ""
        for split, found in memories.items():
            if found is not None:
                yield (
                    f"memory{which} on {split}, the attacker's AUC from original to retrained: {found.shown} to remove,"
                    f" by {found.forget_images:,} forget and {found.retain_images:,} retain images"
                )
    for split in originals[0] if len(originals) > 1 else ():
        if over := _over(originals, split):
            ends = f"[{over.low:.4f}, {over.high:.4f}]"
            yield f"memory over {over.originals} originals on {split}: {over.mean:.4f} {ends} to remove"


def _over(originals: Sequence[Memories], split: str) -> Estimate | None:
    """Memory to remove on a split, over originals, with an interval; None: it is not known."""
    found = [memories[split] for memories in originals]
    runs = {(number, "", 0): one.original - one.retrained for number, one in enumerate(found) if one is not None}
    over = estimate(runs, bounds=(-1, 1)) if runs else None
    return over if over is not None and over.low is not None else None


def nothing_to_forget(originals: Sequence[Memories]) -> str:
    """Why nothing can tell a method that removes memory from one that does not, and what to try; empty if something
    can.

    Args:
        originals: of one or several: each has some, by its interval over images, or all together, over originals.
    """

    def is_clear(split: str) -> bool:
        if all(one is not None and one.interval[0] > 0 for one in (memories[split] for memories in originals)):
            return True
        over = _over(originals, split)
        return over is not None and over.low is not None and over.low > 0

    unclear = [split for split in originals[0] if not is_clear(split)]
    if not unclear:
        return ""
    return (
        f"nothing to forget: on {' and '.join(unclear)} the attacker reads the original no better than the retrained"
        " model, or within noise, so nothing can tell a method that removes memory from one that does not: forget other"
        " or more classes (--forget), or train longer"
    )
