"""Kinds of the files of a sweep: the fields that are read of each. A file may have others as well."""

import math
from typing import Annotated, Any, Literal, Required

from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from raymu import row, shapes


class _Scenario(TypedDict, total=False):
    name: Required[str]
    model_seed: Required[int]
    dataset: str
    architecture: str
    recipe: dict[str, Any]
    model_args: dict[str, Any]
    forget: list[int]
    forget_share: float
    forget_samples: str
    classes: list[int]
    train_share: float


class _Ends(TypedDict):
    low: float
    high: float
    scale: Literal["log", "linear", "int"]


def _checked(ends: _Ends) -> _Ends:
    """Ends of a range that `raymu.method.Range` would take, whose check stands on a floor above.

    Raises:
        ValueError: they are not.
    """
    if not (0 if ends["scale"] == "log" else -math.inf) < ends["low"] < ends["high"] < math.inf:
        raise ValueError("there is no such range")
    return ends


_Range = Annotated[_Ends, AfterValidator(_checked)]


class _Confirmation(TypedDict, total=False):
    seeds: Required[int]
    originals: Required[int]
    top: Required[int]
    forget: list[list[int]]


class _Protocol(TypedDict, total=False):
    trials: Required[int]
    max_epochs: float | None
    max_images: float | None
    max_hours: float | None
    patience: int | None
    searcher: str
    scheduler: str
    suggestions: str
    decisions: str
    search_seeds: Required[Annotated[list[int], Field(min_length=1)]]
    objective: Required[str]
    confirmation: Required[_Confirmation]
    metrics: dict[str, str]


class _Grown(TypedDict, total=False):
    time: Required[str]
    raymu: Required[str]
    trials: list[int]
    seeds: list[int]
    originals: list[int]
    top: list[int]


class Sweep(TypedDict, total=False):
    """Request for a sweep, `sweep.json`."""

    format: int
    raymu: str
    method: str
    method_code: str
    evaluation_code: str
    objective_code: str
    head: str
    train: str
    scenario: Required[_Scenario]
    forgotten: str
    subset: str
    space: dict[str, _Range]
    chosen: str
    protocol: Required[_Protocol]
    history: list[_Grown]


class _Process(TypedDict):
    what: str
    seconds: float
    epoch: int
    epochs: int


class Progress(TypedDict):
    """How far the processes of a sweep that runs are, `progress.json`."""

    time: float
    host: str
    running: list[_Process]


class Environment(TypedDict, total=False):
    """Machine and versions, `environment.json`."""

    versions: dict[str, Any]
    machine: str
    started: str


class _Memory(TypedDict, total=False):
    original: Required[float]
    retrained: Required[float]
    error: float
    interval: list[float]


class _Seen(TypedDict):
    png: str
    mean: list[float]
    std: list[float]


class _OfScenario(TypedDict, total=False):
    memory: dict[str, _Memory | None]
    seen: _Seen


class _Points(TypedDict):
    x: list[float]
    y: list[float]


class Features(TypedDict, total=False):
    """t-SNE maps, `features.json`."""

    trial_id: str
    confirms: str | None
    labels: Required[list[int]]
    forget: Required[list[int]]
    original: _Points
    retrained: _Points
    tuned: _Points


class Ended(TypedDict, total=False):
    """Size of a finished sweep, `ended.json`."""

    rows: Required[int]
    budget: dict[str, int] | None


References = dict[str, _OfScenario]  # by the scenario's hash, `references.json`


def misfit(content: Any, kind: Any) -> str:
    """Where a file's content is not of its kind, as `shapes.misfit` says it; empty: it is. Of references that covers
    the rows of the models as well.
    """
    said = shapes.misfit(content, kind)
    if said or kind is not References:
        return said
    rows = (
        one for found in content.values() for which, one in found.items() if which not in _OfScenario.__annotations__
    )
    return next(filter(None, (row.misfit(one, ()) for one in rows)), "")
