"""The references of a sweep, trained and compared on the cluster."""

import time
from collections.abc import Sequence

from rich.console import Console

from raymu import reference_models
from raymu.checkpoints import Checkpoints
from raymu.distributed import nodes
from raymu.distributed.session import Slots
from raymu.distributed.watch import Watch
from raymu.distributed.worker_groups import side_by_side
from raymu.errors import InputError
from raymu.results import writer
from raymu.row import Row
from raymu.scenario import Scenario
from raymu.storage import Location
from raymu.tuning.process import CHECKPOINTS
from raymu.tuning.progress import ReferencesProgress
from raymu.tuning.sweep import Sweep

OF_REFERENCES = "references"  # among the checkpoints


def train(
    sweep: Sweep,
    scenarios: Sequence[Scenario],
    rows: writer.Store,
    driver: nodes.Driver,
    watch: Watch,
    slots: Slots,
    console: Console,
) -> None:
    """Train those that are missing, side by side, and then compare every two.

    Raises:
        NodeError: machines failed one too often.
    """
    started, options, further = time.monotonic(), slots.options, sweep.protocol.metrics
    scenarios = [one for one in dict.fromkeys(scenarios) if not reference_models.are_ready(one, further)]
    if not scenarios:
        return
    missing = [(scenario, which) for scenario in scenarios for which in reference_models.missing(scenario)]
    names = [f"{which} model {one.model_seed} of {one.name} ({one.forgotten})" for one, which in missing]
    if missing:
        kept, entry_of = checkpoints_in(rows.directory), reference_models.entry_of
        train_calls = [
            (name, reference_models.train, *one, options, Checkpoints(kept / one[0].hash / entry_of(*one).name))
            for name, one in zip(names, missing, strict=True)
        ]
        with ReferencesProgress(console, names) as progress, watch.over(progress.look):
            side_by_side(driver, watch, slots, train_calls)
        count = len(missing)
        console.print(
            f"trained {count} reference{'s' * (count > 1)} ({time.monotonic() - started:.0f} s)", highlight=False
        )
    with console.status("comparing the references"):
        calls = [
            (
                f"references {one.model_seed} of {one.name} ({one.forgotten})",
                reference_models.compare,
                one,
                options,
                further,
            )
            for one in scenarios
        ]
        side_by_side(driver, watch, slots, calls)


def check(sweep: Sweep, scenarios: Sequence[Scenario], rows: Sequence[Row]) -> None:
    """Look whether the rows of a sweep came from the references that are there.

    Raises:
        InputError: they came from other ones.
    """
    for scenario in scenarios:
        metrics = reference_models.metrics(scenario, sweep.protocol.metrics)
        for which in reference_models.of(scenario):
            column, weights = f"{which}_weights", metrics[which]["weights"]
            theirs = (row for row in rows if row["scenario_hash"] == scenario.hash and row[column])
            if any(row[column] != weights for row in theirs):
                raise InputError(
                    f"the {which} model of the rows is not the one in {reference_models.directory(scenario)},"
                    " which was trained elsewhere or anew: choose another --name"
                )


def checkpoints_in(directory: Location) -> Location:
    """Where the references' checkpoints are kept, in a sweep's directory."""
    return directory / CHECKPOINTS / OF_REFERENCES
