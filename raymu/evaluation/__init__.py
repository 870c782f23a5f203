"""A model and the data in, one flat row of metrics out."""

from raymu.evaluation.evaluate import METRICS, SPLITS, evaluate, gaps

__all__ = ["METRICS", "SPLITS", "evaluate", "gaps"]
