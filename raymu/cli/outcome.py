"""Sweeps that are run, and what is printed of them."""

from typing import TYPE_CHECKING, Any

import typer

from raymu.cli.program import console
from raymu.errors import InputError

if TYPE_CHECKING:  # they import torch and Ray, which `raymu --help` does not need
    from raymu.storage import Location
    from raymu.tuning.sweep import Sweep


def sweep_and_rank(sweeps: "list[Sweep]", storage: "Location", name: str, resources: Any, **options: Any) -> None:
    """Run sweeps and print how each went, and their ranking; write the report."""
    from raymu.distributed.session import session
    from raymu.results import groups, ranking, reader, report, tables

    if len(sweeps) > 1:
        said = _can_find(len(sweeps), sweeps[0].protocol.confirmation.originals)
        console.print(said, highlight=False, soft_wrap=True)
    with session(resources.address):
        for sweep in sweeps:
            sweep_and_show(sweep, storage, f"{name}/{sweep.name}", resources, **options)
            console.print()
    storage = storage / name
    done = [one for sweep in sweeps for one in reader.load(storage / sweep.name)]
    ranked = ranking.rank(done)
    if not ranked:
        raise InputError(f"no completed trial to choose from; see: raymu results {storage}")
    console.print(tables.ranking(ranked, console.width))
    if said := groups.said_of_part(done):
        console.print(said, highlight=False, soft_wrap=True)
    report.write([report.Chapter(done, ranked)], storage, "report.html")
    console.print(f"report: {storage / 'report.html'}", highlight=False, soft_wrap=True)


def _can_find(methods: int, originals: int) -> str:
    """Line on how large a difference between methods the ranking can find."""
    from raymu.results.comparison import FEWEST, POWER, detectable

    least = detectable(methods, originals)
    if least is None:
        return (
            f"this ranking can find no difference between two methods: that takes at least {FEWEST} originals"
            f" (--confirm-originals 5 --confirm-seeds 2), here are {originals}"
        )
    return (
        f"{methods} methods on {originals} originals: a difference between two of them is found with a chance of"
        f" {100 * POWER:.0f} % if it is {least:.1f} standard deviations of a method's score over originals"
    )


def sweep_and_show(sweep: "Sweep", storage: "Location", name: str | None, resources: Any, **options: Any) -> bool:
    """Run a sweep and print how it went; return whether a trial completed."""
    from raymu import reference_models
    from raymu.results import cost, ranking, reader, tables
    from raymu.study import tune

    protocol, location = sweep.protocol, storage / (name or sweep.directory)
    console.print(
        f"tuning {sweep.name} on {sweep.scenario.title}: {'' if protocol.patience is None else 'at most '}"
        f"{protocol.trials} trials, {protocol.scheduler}, into {location}",
        highlight=False,
        soft_wrap=True,
    )
    try:
        results = tune(sweep, storage, name=name, resources=resources, console=console, **options)
    except KeyboardInterrupt:
        done = len(reader.read(location))
        typer.echo(f"interrupted after {done} trials; the same command with --resume continues", err=True)
        raise
    statuses = [row["status"] for row in results.rows]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in sorted(set(statuses)))
    console.print()
    ranked = ranking.rank([results])
    if not ranked:
        console.print(f"no completed trial: {counts}", highlight=False)
        return False
    (end,) = ranked
    search = cost.spent(reader.search_rows(results))
    console.print(tables.comparison(end.figures, protocol.objective.name, console.width, search))
    for name, setting in sweep.method.settings(sweep.scenario, sweep.head, sweep.train).items():
        mark = "published" if setting == sweep.published else "also published, not run"
        console.print(f"{mark}: {name}, {tables.setting(setting)}", highlight=False, soft_wrap=True)
    if end.published is not None and end.published["fallback"]:
        console.print(
            f"published: a fallback, since nothing is for {sweep.scenario.architecture_name} on"
            f" {sweep.scenario.dataset_name}, batches of {sweep.scenario.recipe.batch_size}, {sweep.head} head,"
            f" training {sweep.train}",
            highlight=False,
            soft_wrap=True,
        )
    if end.score.runs:
        intervals = ", with 95 % intervals" if end.score.low is not None else ""
        console.print(f"means over {tables.runs_in_words(end.score)}{intervals}", highlight=False)
    console.print()
    for line in (
        f"tuned setting: {tables.setting(end.tuned['config'])} ({end.tuned['trial_id']},"
        f" {tables.on_validation(end.tuned)})",
        f"trials: {counts}",
        f"results: {location}",
        f"references: {reference_models.directory(sweep.scenario)}",
    ):
        console.print(line, highlight=False, soft_wrap=True)
    return True
