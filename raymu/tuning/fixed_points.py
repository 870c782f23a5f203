"""The two fixed points of a sweep, its references: their scores, and what there is to forget between them."""

from collections.abc import Iterator

from raymu import references
from raymu.errors import InputError
from raymu.evaluation.metrics import SPLITS
from raymu.protocol import Protocol
from raymu.row import Row
from raymu.scenario import Scenario


def scored(scenario: Scenario, protocol: Protocol) -> dict[str, Row]:
    """What `references.metrics` says of both, with their scores on test.

    Raises:
        InputError: the objective has no score for one.
    """
    found = references.metrics(scenario, protocol.metrics)
    scored = {}
    for which, row in found.items():
        try:
            scores = [protocol.objective.of(row, found, split) for split in SPLITS]
        except Exception as error:  # whatever an objective of the user's raises
            said = f"{type(error).__name__}: {error}"
            raise InputError(f"objective {protocol.objective.name} on the {which} model: {said}") from error
        scored[which] = row | {"test_score": scores[1]}
    return scored


def memory_lines(scenario: Scenario, protocol: Protocol) -> Iterator[str]:
    """Lines on what there is to forget."""
    for split, found in references.memory(scenario, protocol.metrics).items():
        if found is None:
            continue
        low, high = found.interval
        yield (
            f"memory on {split}: the attacker's AUC is {found.original:.4f} on the original, {found.retrained:.4f} on"
            f" the retrained model: {found.original - found.retrained:.4f} to remove [{low:.4f}, {high:.4f}], by"
            f" {found.forget_images:,} forget and {found.retain_images:,} retain images"
        )
        if low <= 0:
            yield (
                f"nothing to forget on {split}: that is within noise, so nothing can tell a method that removes memory"
                " from one that does not; forget other or more classes, or train longer"
            )
