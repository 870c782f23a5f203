"""A row: all that is known of one trial. What columns it has, and what each is for, stands here and nowhere else."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NotRequired, get_type_hints

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from raymu import shapes
from raymu.errors import InputError

Setting = bool | int | float | str | None | list[float]  # of a hyperparameter
Row = dict[str, Any]  # as JSON has it: the columns below by name, and among them those that metrics fill


class Stored(Row):
    """A row as it was read. A column that it lacks, as one of an earlier version of raymu may, is said in a line."""

    def __missing__(self, column: str) -> Any:
        raise InputError(f"trial {self.get('trial_id')} has no column {column}, which this needs")


def column(doc: str, *uses: str, default: Any = dataclasses.MISSING, factory: Any = dataclasses.MISSING) -> Any:
    """Field of a row: what it says, and what it is used for beside that."""
    return field(default=default, default_factory=factory, metadata={"doc": doc, "uses": uses})


@dataclass(kw_only=True)
class Columns:
    """What every row says beside its metrics."""

    method: str = column("name of the method", "asked", "setting")
    scenario: str = column("name of the scenario", "setting")
    scenario_hash: str = column("digest of all of the scenario, with its data", "asked", "compared", "setting")
    scenario_fields: dict[str, Any] = column("the whole scenario", "setting")
    forget: list[int] = column("classes that are forgotten", "setting")
    forget_share: float = column("share of the training samples that is forgotten, in [0, 1)", "setting")
    head: str = column("linear or cmf", "asked", "setting")
    train: str = column("all weights, or the classifier alone", "asked", "setting")
    model_seed: int = column("draws the original's first weights and batches", "asked", "setting")
    seed: int = column("draws everything random of the trial", "asked", "setting")
    threads: int = column("CPU threads of a worker", "asked", "setting")
    workers: int = column("processes that shared the trial's work", "asked", "setting")
    engine: str = column("pytorch, or zero-0 to zero-3 for DeepSpeed", "asked", "setting")
    deepspeed: str | None = column("DeepSpeed's configuration (JSON), where a file said it", "asked", "setting")
    device: str | None = column("cpu or cuda", default=None)
    processor: str | None = column("model of the CPU or GPU", default=None)
    gpu_share: float | None = column("share of the GPU that the trial might use, in (0, 1]", default=None)
    cuda: str | None = column("version of CUDA that torch is built for", default=None)
    arithmetic: str | None = column("fp32 or bf16, and what a GPU rounds to tf32", default=None)
    config: dict[str, Any] = column("the method's hyperparameters", "asked", "setting")
    method_code: str = column("digest of the method's code and of the engine's", "asked", "setting")
    evaluation_code: str = column("digest of the code that evaluates", "made_with", "compared", "setting")
    objective_code: str = column("digest of the objective's code", "made_with", "compared", "setting")
    metrics: dict[str, str] = column("the user's metrics, with digests of their code", "made_with", "setting")
    original_weights: str | None = column(
        "digest of the original's weights", "made_with", "compared", "setting", default=None
    )
    retrained_weights: str | None = column(
        "digest of the retrained model's weights", "made_with", "compared", "setting", default=None
    )
    status: str = column("completed, stopped by the scheduler, diverged or error", "setting", default="completed")
    objective: str = column("name of the objective", "asked", "compared", "setting")
    score: float | None = column("the objective on validation, in [0, 1]", "setting", default=None)
    test_score: float | None = column("the objective on test, in [0, 1]; none: it was not measured there", default=None)
    curve: list[list[float]] = column("[epoch, score as a searcher sees it] of every rung and of the end", factory=list)
    shorter: list[dict[str, float | None]] = column(
        "of every epoch that the trial might choose, its value of what is chosen, and what the objective reads of it",
        factory=list,
    )
    resumed: list[int] = column("epochs after which it went on from a checkpoint", factory=list)
    val_retain_images: int | None = column("images that validation's retain columns are of", default=None)
    val_forget_images: int | None = column("images that validation's forget columns are of", default=None)
    test_retain_images: int | None = column("images that test's retain columns are of", default=None)
    test_forget_images: int | None = column("images that test's forget columns are of", default=None)
    epochs: int = column("epochs of the model that the metrics are of", default=0)
    images: int = column("images that the trial learnt from, those of later epochs as well", default=0)
    unlearn_s: float = column("seconds of the method, as if nothing had been cached", default=0.0)
    evaluate_s: float = column("seconds of the evaluation", default=0.0)
    wall_s: float = column("seconds that the trial took", default=0.0)
    peak_mem: int | None = column("bytes at the peak: of the GPU, or of the process on a CPU", default=None)
    error: str | None = column("message of what ended it", default=None)
    traceback: str | None = column("where that was raised", default=None)


@dataclass(kw_only=True)
class InSweep:
    """What a sweep adds."""

    trial_id: str = column("the sweep's name and the trial's number")
    sweep: str = column("name of the sweep")
    trial: int = column("number of the trial in its sweep")
    source: str = column("published, search or confirmation")
    search_seed: int | None = column("seed of the search that it belongs to; none: it confirms")
    confirms: str | None = column("trial_id of the trial that it runs again")
    protocol_hash: str = column("digest of the protocol, but for what may grow", "compared")
    published: str | None = column("name of the published setting that it is: code or table")
    fallback: bool = column("whether it is the published setting of another dataset or architecture")
    restarts: int = column("how often it was begun again")
    ended_s: float = column("seconds since 1970 when it ended")
    expected_gain: float | None = column(
        "expected improvement on the best score, in standard deviations of that score's noise; none: not known"
    )
    expected_score: float | None = column(
        "score on validation that another run of it is expected to have, by what its search knew then; none: not known",
        default=None,
    )
    search_s: float | None = column("seconds that its search had run by then, all resumptions together")


def row_of(columns: Columns, unmeasured: Row) -> Row:
    """A row whose metrics are still to be measured.

    Args:
        unmeasured: the columns that metrics fill, empty.
    """
    return {one.name: getattr(columns, one.name) for one in dataclasses.fields(columns)} | unmeasured


def seen(row: Row) -> float:
    """Score of a trial as its searcher saw it, which goes on below 0: the curve's at the row's `epochs`, or else its
    last, of a row that was measured elsewhere.
    """
    return float(dict(row["curve"]).get(row.get("epochs"), row["curve"][-1][1]))


DECLARED = (*dataclasses.fields(Columns), *dataclasses.fields(InSweep))


KINDS = {
    **get_type_hints(Columns),
    **get_type_hints(InSweep),
    "config": dict[str, Setting],
    "trial": Annotated[int, Field(ge=0, lt=2**63)],
    "source": Literal["published", "search", "confirmation"],
    "status": Literal["completed", "stopped", "diverged", "error"],
}
NEEDED = (  # what is shown and ranked goes by these
    *("trial_id", "trial", "source", "confirms", "method", "model_seed", "forget", "forget_share", "seed"),
    *("config", "status", "objective", "score"),
)
MEASURED = ("val_", "test_", "train_")  # begin the columns that metrics fill


def values(rows: Iterable[Row], columns: Sequence[str]) -> list[tuple[Any, ...]]:
    """Values of some columns together, each once, in the order of the rows; None for a column that a row lacks."""
    return list(dict.fromkeys(tuple(map(row.get, columns)) for row in rows))


def misfit(row: Row, needed: tuple[str, ...] = NEEDED) -> str:
    """The first column of a stored row that is not of its kind, as `shapes.misfit` says it; empty: all are.

    Args:
        needed: columns that have to be there.
    """
    return shapes.misfit(row, _kind(tuple(row) if isinstance(row, dict) else (), needed))


def parsed(line: bytes, columns: tuple[str, ...]) -> Row:
    """Some columns of a stored row, those of NEEDED among them, in less than half of the time that all take.

    Args:
        line: a JSON object.

    Raises:
        ValueError: one of them is not of its kind, or missing though it is needed.
    """
    row: Row = shapes.parsed(line, _kind(columns, NEEDED))
    return row


@functools.cache
def _kind(columns: tuple[str, ...], needed: tuple[str, ...]) -> Any:
    """Kind of rows with these columns, which are those of many."""
    known = [name for name in dict.fromkeys((*needed, *columns)) if name in KINDS or name.startswith(MEASURED)]
    kinds = {name: KINDS.get(name, float | None) for name in known}
    fields = {name: kind if name in needed else NotRequired[kind] for name, kind in kinds.items()}
    return with_config(ConfigDict(allow_inf_nan=False))(TypedDict("Row", fields))  # type: ignore[operator]


def _used_as(use: str) -> tuple[str, ...]:
    return tuple(one.name for one in DECLARED if use in one.metadata["uses"])


MADE_WITH = _used_as("made_with")  # the code and the models that made its figures: with others they are others
IDENTITY = (*_used_as("asked"), *MADE_WITH)  # what a trial is: where one differs, its checkpoint is another's
COMPARABLE = _used_as("compared")  # where one differs, scores do not compare
SETTING = _used_as("setting")  # what `raymu run --config` needs, and a report shows of a setting


def markdown_table() -> str:
    """Every column with its meaning, for the documentation."""
    rows = [f"| `{one.name}` | {one.metadata['doc']} |" for one in DECLARED]
    return "\n".join(["| column | what it says |", "|---|---|", *rows])
