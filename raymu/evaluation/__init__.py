"""A model and the data in, one flat row of metrics out."""

from raymu.evaluation.evaluate import accuracy, baseline, evaluate, gaps, keys, look
from raymu.evaluation.layers import profile

__all__ = ["accuracy", "baseline", "evaluate", "gaps", "keys", "look", "profile"]
