"""Tables of trials, against which searchers are replayed by `search.py`. Made once, by hand; ended and begun again at
any time.

    OMP_NUM_THREADS=1 python tests/benchmarks/search_tables.py digits scrub linear
    OMP_NUM_THREADS=1 python tests/benchmarks/search_tables.py digits scrub linear --original 1

A table has SETTINGS settings of one method, at the points of a Sobol sequence over its ranges, and of each setting what
the evaluation of a rung says after every epoch, on validation and test. A run of many epochs stands for all shorter
ones: so only methods have a table whose state after an epoch does not depend on how many follow.

`tests/benchmarks/search/SCENARIO-METHOD-HEAD.jsonl` begins with a line on the references; then one line a setting. Of
another original, whose table stands in `originals`, test alone is looked at: it says what a setting that was found on
the first one is worth there. Seconds are CPU seconds of one thread, so that other work on the machine does not count.
"""

import argparse
import contextlib
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raymu import devices, engines, methods, reference_models, scenarios, splits
from raymu.errors import Diverged
from raymu.evaluation import look, measured
from raymu.evaluation.metrics import METRICS, SPLITS
from raymu.method import Method
from raymu.tuning.samplers import quasi_random

TABLES = Path(__file__).with_name("search")
SETTINGS = 128
DEVICE = reference_models.default_device()
# The knob whose epochs are all seen in one run, and the others that say how long a run is.
EPOCHS = {"unsir": ("repair_epochs", ["impair_epochs"])}


def settings(method: type[Method], head: str) -> list[dict[str, Any]]:
    """Settings of a table; each runs for as many epochs as it may."""
    knob, _ = EPOCHS.get(method.name(), ("epochs", []))
    ranges = dict(method.ranges(head))
    longest = int(ranges.pop(knob).high)
    return [{**setting, knob: longest} for setting in quasi_random.settings(ranges, SETTINGS, seed=0)]


def columns(splits: Sequence[str]) -> list[str]:
    """Columns of a table."""
    return [f"{split}_{metric.name}" for split in splits for metric in METRICS if metric.rung]


def curve(method: Method, reference: reference_models.References, splits: Sequence[str]) -> dict[str, Any]:
    """Measurements after every epoch of one run; the lists end early where it diverges."""
    engine = engines.make(
        reference.model(),
        reference.data,
        reference.scenario,
        options=engines.DEFAULTS,
        seed=0,
        cache_directory=reference.cache_directory(),
    )
    wanted = columns(splits)
    found: dict[str, list[float]] = {"images": [], "train_s": [], "evaluate_s": []}
    found |= {column: [] for column in wanted}
    begun = time.process_time()

    def end_of_epoch(epoch: int) -> None:
        nonlocal begun
        trained = time.process_time()
        said = measured(look(engine.model, reference.data, splits=splits), rung=True)
        evaluated = time.process_time()
        found["images"].append(engine.images)
        found["train_s"].append(round(trained - begun, 3))
        found["evaluate_s"].append(round(evaluated - trained, 3))
        for column in wanted:
            found[column].append(round(said[column], 5))
        begun = time.process_time()

    with contextlib.suppress(Diverged):
        engine.run(method, end_of_epoch)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenario")
    parser.add_argument("method")
    parser.add_argument("head", choices=["linear", "cmf"])
    parser.add_argument("--original", type=int, default=0, help="its seed")
    given = parser.parse_args()
    scenario, method = splits.prepare(scenarios.get(given.scenario)), methods.get(given.method)
    scenario = dataclasses.replace(scenario, model_seed=given.original)
    table, looked_at = TABLES / f"{given.scenario}-{given.method}-{given.head}.jsonl", SPLITS
    if given.original:
        table, looked_at = TABLES / "originals" / f"{table.stem}-{given.original}.jsonl", ("test",)
    with devices.cpu_threads(1):
        reference = reference_models.load(scenario, DEVICE)
        if not table.exists():
            wanted = columns(looked_at)
            known = {which: {name: row[name] for name in wanted} for which, row in reference.metrics.items()}
            begin = {"scenario": scenario.as_dict(), "code": engines.code_of(method), "references": known}
            begin |= {"images": reference.data.images}
            table.write_text(json.dumps(begin) + "\n")
        done = len(table.read_text().splitlines()) - 1
        for setting in settings(method, given.head)[done:]:
            found = curve(method.from_config(setting, head=given.head), reference, looked_at)
            with table.open("a") as file:
                file.write(json.dumps({"setting": setting, **found}) + "\n")
            print(table.stem, len(found["images"]), f"{sum(found['train_s'] + found['evaluate_s']):.1f} s", flush=True)


if __name__ == "__main__":
    main()
