"""How long many results take to read. Run by hand, on an idle machine, with OMP_NUM_THREADS=1.

    python tests/benchmarks/results.py --rows 100000

Rows are those that a trial really leaves, on the embedded digits, with every number in them drawn anew: none is read
faster because it is short, or because there is another like it. Prints the best of three, in seconds, and the memory.
"""

import argparse
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raymu import methods, splits
from raymu.protocol import Confirmation, Protocol
from raymu.results import files, outputs, ranking, reader, writer
from raymu.results.identity import CONFIRMATIONS
from raymu.scenario import SCENARIOS
from raymu.trial import run_trial
from raymu.tuning.sweep import Sweep

SWEEPS = 10
ORIGINALS, RUNS = 5, 4  # of every sweep's confirmation


def write(storage: Path, rows: int) -> int:
    """Fill the storage with sweeps that have so many rows together; return their bytes."""
    scenario, chosen = splits.prepare(SCENARIOS["digits"]), methods.get("salun")
    real, _ = run_trial(scenario, chosen.from_config(chosen.published_config(scenario)), seed=0)
    protocol = Protocol(trials=rows // SWEEPS, confirmation=Confirmation(seeds=RUNS, originals=ORIGINALS, top=1))
    sweep = Sweep(chosen, scenario, protocol)
    identity = sweep.identity()
    names = ("trial_id", "sweep", "trial", "source", "search_seed", "confirms")
    real = (
        dict.fromkeys(names) | real | {"protocol_hash": sweep.protocol_hash, "fallback": False, "ended_s": time.time()}
    )
    numbers = [name for name, value in real.items() if isinstance(value, float)]
    generator = random.Random(0)
    written = 0
    for number in range(SWEEPS):
        directory = storage / f"method{number}"
        with writer.Store(directory, identity, resume=False) as stored:
            stored.end(rows // SWEEPS)
            lines = []
            for trial in range(rows // SWEEPS):
                row = real | {name: generator.random() for name in numbers}
                row |= {"trial_id": f"{directory.name}-{trial:04d}", "sweep": directory.name, "trial": trial}
                row |= {"source": "search", "curve": [[epoch, generator.random()] for epoch in (1, 3, 9, 27)]}
                row["config"] = {name: generator.random() for name in real["config"]}
                if (run := trial - (rows // SWEEPS - RUNS * ORIGINALS)) >= 0:
                    original, seed = divmod(run, RUNS)
                    row |= {"source": "confirmation", "model_seed": 1 + original, "seed": 1 + seed}
                    row |= {"trial": CONFIRMATIONS + run, "confirms": f"{directory.name}-0000"}
                lines.append(files.json_line(row, stored._seal))
            written += (directory / files.ROWS).write_bytes(b"".join(lines))
    print(f"{rows} rows of {len(real)} columns, {written / rows:.0f} bytes each, in {SWEEPS} sweeps")
    return written


def measure(what: str, read: Callable[[], Any]) -> None:
    """Print how long it takes."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        read()
        seconds.append(time.perf_counter() - started)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"  {what:<6} {min(seconds):6.2f} s   ({memory:.1f} GiB at most so far)")


def main() -> None:
    """Write, then read."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=100_000)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        storage = Path(directory)
        write(storage, options.rows)
        measure("load", lambda: reader.load(storage))
        measure("table", lambda: outputs.load(storage))
        sweeps = reader.load(storage)
        measure("rank", lambda: ranking.rank(sweeps))


if __name__ == "__main__":
    main()
