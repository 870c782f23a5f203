"""The command line: `raymu ...`, and what the scripts in `sweeps/` call."""

from raymu.cli import evaluate, listing, references, results, run
from raymu.cli.program import app, main
from raymu.cli.sweep import sweep_main

__all__ = ["app", "evaluate", "listing", "main", "references", "results", "run", "sweep_main"]
