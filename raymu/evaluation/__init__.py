"""A model and the data in, one flat row of metrics out."""

from raymu.evaluation.accuracy import accuracy
from raymu.evaluation.evaluate import baseline, evaluate, evaluate_quickly, gaps
from raymu.evaluation.layers import profile
from raymu.evaluation.metrics import Metric, columns
from raymu.evaluation.tsne import tsne

__all__ = ["Metric", "accuracy", "baseline", "columns", "evaluate", "evaluate_quickly", "gaps", "profile", "tsne"]
