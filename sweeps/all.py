"""Tune every method but retraining under one protocol, one after the other, confirm what was found, and rank them.

    python sweeps/all.py --help

Options such as --head cmf or --train classifier hold for all; a method for which one makes no sense is left out.
"""

from raymu import methods
from raymu.cli.sweep import sweep_main
from raymu.objective import REMOVAL
from raymu.protocol import Confirmation, Protocol
from raymu.scenario import SCENARIOS
from raymu.tuning.sweep import Sweep


def sweeps() -> list[Sweep]:
    return [
        Sweep(
            method=methods.get(name),
            scenario=SCENARIOS["digits"],
            protocol=Protocol(trials=12, objective=REMOVAL, confirmation=Confirmation(seeds=2, originals=5)),
        )
        for name in methods.names()
        if name != "retrain"  # the aim, which stands above every ranking
    ]


if __name__ == "__main__":
    sweep_main(sweeps)
