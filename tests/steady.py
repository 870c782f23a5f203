"""A sweep whose trials are the same whenever they run, and take some time: what the tests of faults disturb.

As a script it takes the flags of any sweep. STEADY_EPOCH_S are the seconds of an epoch, STEADY_SCENARIO is what the
models are trained on. STEADY_REFUSES names a file with a learning rate: while it is there, trials with a higher one
fail as on a full disk.
"""

import dataclasses
import errno
import os
import sys
import time
from pathlib import Path

import torch

from raymu.cli.sweep import sweep_main
from raymu.method import Method, Range, tuned
from raymu.protocol import Protocol
from raymu.scenario import SCENARIOS, Recipe
from raymu.tuning.sweep import Sweep

EPOCH_S = float(os.environ.get("STEADY_EPOCH_S", "0.15"))


class Steady(Method):
    """Descends on the images to forget, in small steps."""

    paper = "none"
    nested = "epochs"
    lr: float = tuned(0.003, Range(1e-4, 3e-2, "log"), "of every step")
    epochs: int = tuned(4, Range(2, 6, "int"), "over the images to forget")

    def unlearn(self, run):
        for _ in run.epochs(self.epochs, self.lr):
            time.sleep(EPOCH_S)
            refused = Path(os.environ.get("STEADY_REFUSES", "/nowhere"))
            if refused.exists() and self.lr > float(refused.read_text()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")
            for batch in run.batches("forget"):
                yield -torch.nn.functional.cross_entropy(run.model(batch.images), batch.labels)


def sweep(protocol: Protocol = Protocol(trials=6), scenario: str = "digits") -> Sweep:  # noqa: B008 # it is frozen
    recipe = Recipe(lr=0.05, epochs=1, batch_size=64)
    return Sweep(Steady, dataclasses.replace(SCENARIOS[scenario], name="quick", recipe=recipe), protocol)


if __name__ == "__main__":
    sys.argv += ["--name", "steady", "--anyway"]  # whatever its scenario is called and remembers
    sweep_main(lambda: sweep(scenario=os.environ.get("STEADY_SCENARIO", "digits")))
