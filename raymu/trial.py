"""One trial: a method at one setting, from the original model to a row. Knows nothing of Ray."""

import time
import traceback
from collections.abc import Callable, Sequence

import torch

from raymu import devices, engines, heartbeat, memory, reference_models, source, splits
from raymu.checkpoints import Checkpoints
from raymu.engines import DEFAULTS, Options
from raymu.errors import Diverged, InputError, described
from raymu.evaluation import Metric, columns, evaluate, evaluate_quickly, gaps
from raymu.evaluation.metrics import check_new
from raymu.method import Method
from raymu.models import pretrained
from raymu.objective import HMEAN, REMOVAL, Objective
from raymu.protocol import TURNED
from raymu.row import IDENTITY, Columns, Row, row_of
from raymu.scenario import Scenario, check_kind
from raymu.workers import Workers


def measured(metrics: Sequence[Metric] = (), *, rung: bool = False) -> list[str]:
    """Columns of raymu's metrics and of further ones, and of their gaps to the retrained model's.

    Args:
        rung: only those that are measured while a trial runs.
    """
    return [column for metric in columns(metrics, rung=rung) for column in (metric, f"{metric}_gap")]


def unmeasured(metrics: Sequence[Metric] = ()) -> Row:
    """The part of a row that metrics fill, empty."""
    return dict.fromkeys(measured(metrics))


class _Turned(BaseException):
    """Ends a run that `has_turned`, whatever errors its method handles."""


def best_epoch(curve: Sequence[Sequence[float]]) -> int:
    """The epoch with the highest score of [epoch, score], of equal ones the first."""
    return int(max(curve, key=lambda point: point[1])[0])


def has_turned(curve: Sequence[Sequence[float]]) -> bool:
    """Whether no score of [epoch, score] is higher than one above 0 that is TURNED epochs older than the last."""
    return max(score for _, score in curve) > 0 and curve[-1][0] - best_epoch(curve) >= TURNED


OF_THE_MACHINE = (OSError, MemoryError, torch.OutOfMemoryError)


def run_trial(
    scenario: Scenario,
    method: Method,
    *,
    seed: int,
    objective: Objective = REMOVAL,
    metrics: Sequence[Metric] = (),
    options: Options = DEFAULTS,
    rungs: Sequence[int] = (),
    chooses_epochs: bool = False,
    asks: bool = False,
    report: Callable[[Row], None] = lambda row: None,
    checkpoints: Checkpoints | None = None,
) -> tuple[Row, torch.nn.Module | None]:
    """Unlearn and evaluate.

    The same arguments give the same metrics, to the last digit on the same CPU (GPUs add up in an order that is not
    fixed): everything random comes from `seed`, and the options are part of the arguments. Where these ask for several
    workers, each of them calls this.

    Args:
        metrics: further ones beside raymu's.
        rungs: epochs after which `evaluate_quickly` measures the metrics of a rung, and the row so far is reported.
        chooses_epochs: whether the rung with the highest score is the trial's end: its model is what is evaluated and
            returned, and the row's `config` and `epochs` are those of the shorter run (see `Method.shorter`). The trial
            ends before its last epoch once it `has_turned`. The last epoch has to be a rung.
        asks: whether the end is measured as a rung is before it is measured in full, on test as well. The objective may
            then read no more than is measured at a rung.
        report: called with the row that the trial leaves if it is ended here: after each of the rungs (status
            "stopped"), and where it `asks` (status "completed"); may raise to end it.
        checkpoints: where a trial that takes long keeps how far it is; one of the same trial that is found there is
            gone on with.

    Returns:
        The final row and the unlearned model. The row's `status` is

        - "completed": all metrics are there; `score` is the objective on validation, `curve` lists [epoch, score],
          `resumed` the epochs after which it was gone on with; `wall_s` is what it took, `unlearn_s` what the method
          would have taken had nothing been cached, `peak_mem` what it needed (None where the retrained reference is
          what it would have made: that is taken);
        - "diverged": loss or features are not finite, before any epoch that it might choose: score 0, metrics None, no
          model;
        - "error": something was raised: `error` and `traceback` say what, score and metrics None, no model.

    Raises:
        InputError: the scenario's data are missing, or torch's defaults were changed.
        OSError, MemoryError, torch.OutOfMemoryError: the machine failed, not the method, as a full disk does; the trial
            may well work if it is tried again.
    """
    source.read_anew()
    devices.check_defaults()
    started, workers = time.perf_counter(), Workers()
    scenario = splits.prepared(scenario)
    here = devices.describe(reference_models.default_device(), scenario.recipe.precision, options.gpu_share)
    row = blank_row(scenario, method, seed=seed, objective=objective, metrics=metrics, options=options) | here
    unlearned: torch.nn.Module | None = None
    spared_s, is_telling, best, of_best = 0.0, False, dict[str, torch.Tensor](), Row()

    def clock() -> None:
        row["wall_s"] = time.perf_counter() - started
        row["unlearn_s"] = row["wall_s"] + spared_s - row["evaluate_s"]

    try:
        reference = reference_models.load(scenario, reference_models.default_device(), options, metrics)
        for which in reference_models.of(scenario):
            row[f"{which}_weights"] = reference.metrics[which]["weights"]
        row.update(reference.data.images)
        started = kept = time.perf_counter()  # what a process loads once is no trial's own time
        if method.start == "original":
            model = reference.model()
        else:
            model = pretrained.start(scenario, seed).to(reference.data.device)
        engine = engines.make(
            model,
            reference.data,
            scenario,
            options=options,
            seed=seed,
            cache_directory=reference.cache_directory() if method.start == "original" else None,
        )

        def measure(found: Callable[[], Row]) -> None:
            before = time.perf_counter()
            row.update(found())
            row.update(gaps(row, reference.metrics.get("retrained"), metrics))
            score = objective.seen(row, reference.metrics)
            row["score"] = max(0.0, score)
            if all(epoch < row["epochs"] for epoch, _ in row["curve"]):  # the end that was chosen is there
                row["curve"].append([row["epochs"], score])
            row["evaluate_s"] += time.perf_counter() - before

        def tell(status: str) -> None:
            nonlocal is_telling
            clock()
            is_telling = True
            report({**row, "status": status})
            is_telling = False

        def end_of_epoch(epoch: int) -> None:
            nonlocal kept, spared_s, best, of_best
            row["epochs"], row["images"], spared_s = epoch, engine.images, engine.spared_s
            if epoch in rungs and (chooses_epochs or epoch < method.total_epochs):
                measure(lambda: evaluate_quickly(engine.model, reference.data, metrics))
                if chooses_epochs:
                    ends_here = method.config | method.shorter(epoch)
                    row["shorter"].append({method.nested: ends_here[method.nested]} | objective.own(row))
                    if best_epoch(row["curve"]) == epoch:
                        best = {name: value.to("cpu", copy=True) for name, value in engine.model.state_dict().items()}
                        of_best = {column: row[column] for column in (*measured(metrics), "score")}
                    if has_turned(row["curve"]):
                        raise _Turned
                if epoch < method.total_epochs:
                    tell("stopped")
            is_due = time.perf_counter() - kept >= options.checkpoint_s or heartbeat.ends_soon()
            if checkpoints is not None and workers.broadcast(is_due):
                clock()
                checkpoints.save(engine.state()._replace(best=best), row, workers)
                kept = time.perf_counter()

        found = None if checkpoints is None else checkpoints.load(workers)
        known = None if rungs else reference.retrained(method, seed, options)
        if known is not None:
            engine.resume(known)
        elif found is not None and all(found[1][key] == row[key] for key in IDENTITY):
            state, so_far = found
            engine.resume(state)
            best = state.best
            row.update(so_far | here)
            row["resumed"] = [*so_far["resumed"], state.epoch]
            started -= row["wall_s"]

        with devices.cpu_threads(options.threads):
            memory.reset_peak(reference_models.default_device())
            try:
                engine.run(method, end_of_epoch)
                if engine.epoch != method.total_epochs:
                    raise RuntimeError(f"the method ended after epoch {engine.epoch} of {method.total_epochs}")
            except (_Turned, Diverged):
                if not best:
                    raise
            row["epochs"], row["images"], spared_s = engine.epoch, engine.images, engine.spared_s
            row["peak_mem"] = memory.peak(reference_models.default_device()) if known is None else None
            if chooses_epochs:
                row["epochs"] = best_epoch(row["curve"])
                row["config"] = method.config | method.shorter(row["epochs"])
                engine.model.load_state_dict(best)
                row.update(of_best)
            if asks:
                if not of_best:  # it went on from a checkpoint after its best epoch, or chooses none
                    measure(lambda: evaluate_quickly(engine.model, reference.data, metrics))
                tell("completed")
            measure(lambda: evaluate(engine.model, reference.data, reference.baseline, metrics))
            row["test_score"] = objective.of(row, reference.metrics, "test")
        unlearned = engine.model
    except Diverged as divergence:
        row.update(unmeasured(metrics), status="diverged", score=0.0, error=str(divergence))
    except OF_THE_MACHINE:
        raise
    except BaseException as error:  # whatever a method raises belongs to its row, sys.exit as well; the sweep goes on
        if workers.rank > 0 or is_telling or isinstance(error, KeyboardInterrupt):
            raise  # of several workers the first one writes the row, and cannot know
        row.update(unmeasured(metrics), status="error", score=None, error=described(error))
        row["traceback"] = traceback.format_exc()
    clock()
    return row, unlearned


def check(scenario: Scenario, method: type[Method], objective: Objective, metrics: Sequence[Metric] = ()) -> None:
    """Look whether a method can be tried on a scenario.

    Raises:
        InputError: one is nothing of its kind, a forget set that the data does not have or the method cannot forget, an
            architecture that timm does not have, an objective that says nothing there, or a metric with the name of
            another column.
    """
    check_kind(scenario)
    if not (isinstance(method, type) and issubclass(method, Method) and method.unlearn is not Method.unlearn):
        raise InputError(f"a method is a class with an unlearn of its own below raymu.Method, not {method!r}")
    names = [scenario.name, scenario.dataset_name, scenario.architecture_name, method.name()]
    if not all(isinstance(name, str) and name.strip() and name.isprintable() for name in names):
        raise InputError(f"a scenario, its dataset, its architecture and a method need names, not {names}")
    if not isinstance(objective, Objective):
        raise InputError(f"an objective is a raymu.Objective, not {objective!r}")
    check_new(metrics)
    objective.check(measured(metrics), "in a trial")
    splits.check_forget(scenario)
    scenario.network.check(scenario.pretrained)
    if not scenario.has_retrained and scenario.forgets_samples:
        raise InputError(
            f"single samples are judged beside a retrained model, which {scenario.name} does not have: name one, or say"
            " in [recipe] how it is trained"
        )
    if not scenario.has_retrained and objective.compares:
        raise InputError(
            f"objective {objective.name} compares with a retrained model, which {scenario.name} does not have: use"
            f" {HMEAN.name}"
        )
    if scenario.forgets_samples:
        if method.classes_only:
            raise InputError(f"{method.name()} forgets classes; it cannot forget single samples")
        if "samples" not in objective.forgets:
            raise InputError(
                f"objective {objective.name} wants the forget set to be unreadable, but single samples are read as well"
                f" as unseen ones once they are forgotten: use {REMOVAL.name}"
            )
    elif "classes" not in objective.forgets:
        raise InputError(f"objective {objective.name} says nothing where whole classes are forgotten")


def blank_row(
    scenario: Scenario,
    method: Method,
    *,
    seed: int,
    objective: Objective,
    metrics: Sequence[Metric] = (),
    options: Options,
) -> Row:
    """The row of a trial that has not begun: what is known is there, the rest is None or 0."""
    columns = Columns(
        method=method.name(),
        scenario=scenario.name,
        scenario_hash=scenario.hash,
        scenario_fields=scenario.as_dict(),
        forget=list(scenario.forget),
        forget_share=scenario.forget_share,
        head=method.head,
        train=method.train,
        model_seed=scenario.model_seed,
        seed=seed,
        threads=options.threads,
        workers=options.workers,
        engine=options.engine,
        deepspeed=options.deepspeed,
        config=method.config,
        method_code=engines.code_of(type(method)),
        evaluation_code=reference_models.evaluation_code(),
        objective_code=objective.code(),
        metrics={one.name: one.code() for one in metrics},
        objective=objective.name,
    )
    return row_of(columns, unmeasured(metrics))
