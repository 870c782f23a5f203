"""A model and the data in, one flat row of metrics out."""

from raymu.evaluation.accuracy import accuracy
from raymu.evaluation.evaluate import baseline, evaluate, gaps, keys, look, looked_at
from raymu.evaluation.layers import profile
from raymu.evaluation.picture import picture

__all__ = ["accuracy", "baseline", "evaluate", "gaps", "keys", "look", "looked_at", "picture", "profile"]
