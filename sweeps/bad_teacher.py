"""Tune BadTeacher. Edit what you like; flags given on the command line win over what stands here.

    python sweeps/bad_teacher.py --help

Copied elsewhere, this file works alone wherever raymu is installed; `ray submit` does just that.
"""

from raymu.cli.sweep import sweep_main
from raymu.method import Range
from raymu.methods.bad_teacher import BadTeacher
from raymu.objective import REMOVAL
from raymu.protocol import Protocol
from raymu.scenario import SCENARIOS
from raymu.tuning.sweep import Sweep


def sweep() -> Sweep:
    return Sweep(
        method=BadTeacher,
        scenario=SCENARIOS["digits"],
        protocol=Protocol(trials=12, objective=REMOVAL),
        # Ranges to search instead of the method's own (see `raymu methods`):
        space={"lr": Range(1e-6, 0.01, "log")},
    )


if __name__ == "__main__":
    sweep_main(sweep)
