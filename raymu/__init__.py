"""raymu tunes machine-unlearning methods fairly. Start with `raymu --help`."""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raymu import methods as methods
    from raymu import scenarios as scenarios
    from raymu.architecture import Architecture as Architecture
    from raymu.cli import sweep_main as sweep_main
    from raymu.data.arrays import ArrayDataset as ArrayDataset
    from raymu.data.folders import EncodedDataset as EncodedDataset
    from raymu.distributed.session import session as session
    from raymu.evaluation.metrics import Metric as Metric
    from raymu.method import Clipped as Clipped
    from raymu.method import Method as Method
    from raymu.method import Range as Range
    from raymu.method import fixed as fixed
    from raymu.method import tuned as tuned
    from raymu.objective import Objective as Objective
    from raymu.protocol import Confirmation as Confirmation
    from raymu.protocol import Protocol as Protocol
    from raymu.results.outputs import figures as figures
    from raymu.results.outputs import load as load
    from raymu.results.outputs import report as report
    from raymu.results.ranking import rank as rank
    from raymu.results.selection import best as best
    from raymu.run import Run as Run
    from raymu.scenario import SCENARIOS as SCENARIOS
    from raymu.scenario import Recipe as Recipe
    from raymu.scenario import Scenario as Scenario
    from raymu.study import Trial as Trial
    from raymu.study import references as references
    from raymu.study import tune as tune
    from raymu.tuning.sweep import Sweep as Sweep
    from raymu.unlearned import evaluate as evaluate
    from raymu.unlearned import samples as samples

__version__ = "0.2.0"

# What a script of the user's needs, by where it is; imported when it is asked for, since torch and Ray take seconds.
_PLACES = {
    "raymu.architecture": ("Architecture",),
    "raymu.cli": ("sweep_main",),
    "raymu.data.arrays": ("ArrayDataset",),
    "raymu.data.folders": ("EncodedDataset",),
    "raymu.distributed.session": ("session",),
    "raymu.evaluation.metrics": ("Metric",),
    "raymu.method": ("Clipped", "Method", "Range", "fixed", "tuned"),
    "raymu.objective": ("Objective",),
    "raymu.protocol": ("Confirmation", "Protocol"),
    "raymu.results.outputs": ("figures", "load", "report"),
    "raymu.results.ranking": ("rank",),
    "raymu.results.selection": ("best",),
    "raymu.run": ("Run",),
    "raymu.scenario": ("SCENARIOS", "Recipe", "Scenario"),
    "raymu.study": ("Trial", "references", "tune"),
    "raymu.tuning.sweep": ("Sweep",),
    "raymu.unlearned": ("evaluate", "samples"),
}

_MODULES = ("methods", "scenarios")  # whose `get` finds one by its name or file

# Before Ray is imported, which reads it once: who joins a cluster needs the token as well.
os.environ.setdefault("RAY_AUTH_MODE", "token")


def __getattr__(name: str) -> Any:
    for module, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    if name in _MODULES:
        return importlib.import_module(f"raymu.{name}")
    raise AttributeError(f"module 'raymu' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Names for a shell's or a notebook's completion."""
    return sorted({*globals(), *_MODULES, *(name for names in _PLACES.values() for name in names)})
