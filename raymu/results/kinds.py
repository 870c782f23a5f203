"""Kinds of what the files of a sweep hold, by their names: nothing else is read from them. All may hold more."""

from typing import Any, Required

from typing_extensions import TypedDict

from raymu import row, shapes


class _Scenario(TypedDict, total=False):
    name: str
    dataset: str
    architecture: str
    recipe: dict[str, Any]
    model_args: dict[str, Any]
    forget: list[int]
    forget_share: float
    forget_samples: str
    classes: list[int]
    train_share: float


class _Range(TypedDict):
    low: float
    high: float
    scale: str


class _Confirmation(TypedDict, total=False):
    seeds: int
    originals: int
    top: int
    forget: list[list[int]]


class _Protocol(TypedDict, total=False):
    trials: int
    max_epochs: float | None
    max_images: float | None
    max_hours: float | None
    searcher: str
    scheduler: str
    suggestions: str
    decisions: str
    search_seeds: list[int]
    objective: str
    confirmation: _Confirmation
    metrics: dict[str, str]


class _Grown(TypedDict, total=False):
    time: Required[str]
    raymu: Required[str]
    trials: list[int]
    seeds: list[int]
    originals: list[int]
    top: list[int]


class _Sweep(TypedDict, total=False):
    format: int
    raymu: str
    method: str
    method_code: str
    evaluation_code: str
    objective_code: str
    head: str
    train: str
    scenario: _Scenario
    forgotten: str
    subset: str
    space: dict[str, _Range]
    protocol: _Protocol
    history: list[_Grown]


class _Environment(TypedDict, total=False):
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


class _Features(TypedDict, total=False):
    trial_id: str
    confirms: str | None
    labels: Required[list[int]]
    forget: Required[list[int]]
    original: _Points
    retrained: _Points
    tuned: _Points


class _Ended(TypedDict, total=False):
    rows: Required[int]
    budget: dict[str, int] | None


KINDS = {
    "sweep.json": _Sweep,
    "environment.json": _Environment,
    "references.json": dict[str, _OfScenario],
    "features.json": _Features,
    "ended.json": _Ended,
}


def misfit(file: str, content: Any) -> str:
    """Where a file's content is not of its kind, as `shapes.misfit` says it; empty: it is.

    Args:
        file: its name.
    """
    said = shapes.misfit(content, KINDS.get(file, Any))
    if said or file != "references.json":
        return said
    rows = (
        one for found in content.values() for which, one in found.items() if which not in _OfScenario.__annotations__
    )
    return next(filter(None, (row.misfit(one, ()) for one in rows)), "")
