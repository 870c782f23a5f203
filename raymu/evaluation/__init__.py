"""A model and the data in, one flat row of metrics out."""

from raymu.evaluation.accuracy import accuracy
from raymu.evaluation.attack import Memory
from raymu.evaluation.evaluate import baseline, evaluate, evaluate_quickly, gaps, look, measured, memories
from raymu.evaluation.layers import profile
from raymu.evaluation.metrics import Metric, columns
from raymu.evaluation.samples import as_seen, samples
from raymu.evaluation.tsne import tsne

__all__ = [
    "Memory",
    "Metric",
    "accuracy",
    "as_seen",
    "baseline",
    "columns",
    "evaluate",
    "evaluate_quickly",
    "gaps",
    "look",
    "measured",
    "memories",
    "profile",
    "samples",
    "tsne",
]
