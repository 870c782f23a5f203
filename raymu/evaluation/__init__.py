"""A model and the data in, one flat row of metrics out."""

from raymu.evaluation.accuracy import accuracy
from raymu.evaluation.evaluate import baseline, evaluate, gaps, look
from raymu.evaluation.layers import profile
from raymu.evaluation.metrics import Metric, columns
from raymu.evaluation.picture import picture

__all__ = ["Metric", "accuracy", "baseline", "columns", "evaluate", "gaps", "look", "picture", "profile"]
