"""Sweeps that grow: one that went from few trials to more equals one that was to have more from the start."""

import dataclasses
import itertools
import math
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_ranking import row

import raymu
from raymu import splits
from raymu.distributed.session import Resources, session
from raymu.errors import InputError
from raymu.evaluation import columns
from raymu.methods.random_label import RandomLabel
from raymu.protocol import Confirmation, Protocol
from raymu.results import files, groups, ranking, reader, report, selection, tables
from raymu.results.identity import CONFIRMATIONS, Budget, place_of
from raymu.results.reader import SweepResults
from raymu.results.writer import Store
from raymu.tuning import remaining
from raymu.tuning.driver import run_sweep
from raymu.tuning.samplers import known_settings
from raymu.tuning.samplers.gp import INITIAL
from raymu.tuning.schedulers import scheduler
from raymu.tuning.sweep import Sweep

VERSION = raymu.__version__
PARETO = {"objective": "pareto"}
SEARCHERS = {
    "gp": {"objective": "hmean"},
    "tpe": {"searcher": "tpe", "scheduler": "asha"},
    "tpe for pareto": {"searcher": "tpe", **PARETO},
    "random": {"searcher": "random"},
    "quasi_random": {"searcher": "quasi_random"},
    "grid": {"searcher": "grid"},
    "nsga2": {"searcher": "nsga2", **PARETO},
    "median": {"searcher": "tpe", "scheduler": "median"},
    "several seeds": {"searcher": "tpe", "search_seeds": (0, 3)},
}
UNCONFIRMED = Confirmation()
SAME = ("trial", "trial_id", "search_seed", "source", "seed", "config", "status", "score", "curve", "epochs", "images")


def row_of(sweep: Sweep, seed: int, number: int, config: dict[str, Any], judge: Any) -> dict[str, Any]:
    """What a trial would leave: the nearer to lr 0.003 the better, epoch by epoch until the scheduler stops it."""
    keep = 1 / (1 + abs(math.log10(config["lr"] / 0.003)))
    epochs, curve, status = config["epochs"], [], "completed"
    rungs = sweep.rungs(sweep.configured(config))[:-1] if place_of(number, sweep.protocol.search_seeds) else []
    for epoch in [*rungs, epochs]:
        curve.append([epoch, keep * (1 - 0.5 / epoch) + 0.01 * (number * 7 % 5)])
        if epoch < epochs and sweep.protocol.scheduler != "none" and judge.tell(number, "stopped", curve) == "STOP":
            status = "stopped"
            break
    return {
        "trial": number,
        "trial_id": f"m-{number:04d}",
        "search_seed": seed,
        "source": sweep.task(seed, number, {}).source,
        "confirms": None,
        "config": config,
        "status": status,
        "score": curve[-1][1],
        "val_retain_acc": keep,
        "val_probe_forget_acc": 1 - epoch / 20,
        "curve": curve,
        "epochs": epoch,
        "shorter": [
            {sweep.chosen: end, "val_retain_acc": keep, "val_probe_forget_acc": 1 - end / 20}
            for end, _ in curve
            if sweep.chosen
        ],
    }


def searched(sweep: Sweep, rows: list[dict[str, Any]], most: int = 1000) -> list[dict[str, Any]]:
    """The rows and at most so many more, as the driver goes on from these rows: one trial at a time."""
    for seed in sweep.protocol.search_seeds:
        done = reader.of_search(seed, rows)
        sampler = sweep.sampler(seed, done)
        judge = scheduler(sweep.protocol.scheduler, sweep.longest, done)
        for number in itertools.islice(remaining.missing(sweep, seed, rows, ()), most):
            place = place_of(number, sweep.protocol.search_seeds)
            config = dict(sweep.task(seed, number, sampler.suggest(place) if place else {}).config)
            done.append(row_of(sweep, seed, number, config, judge))
            rows = [*rows, done[-1]]
    return rows


def by_number(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: row["trial"])


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=pytest.mark.long if name == "gp" else ()) for name in SEARCHERS]
)
def test_a_search_of_20_that_grows_to_40_suggests_and_stops_as_one_of_40(digits, case) -> None:
    small, large = (Sweep(RandomLabel, digits, Protocol(trials, **SEARCHERS[case])) for trials in (20, 40))
    whole = by_number(searched(large, []))
    begun = searched(small, [], 13)  # interrupted
    ended = searched(small, begun)
    assert len(begun) < len(ended) < len(whole)
    assert by_number(searched(large, begun)) == whole
    assert by_number(searched(large, ended)) == whole
    if large.protocol.scheduler != "none":
        assert "stopped" in {row["status"] for row in whole}
    assert large.protocol_hash == small.protocol_hash


def test_a_grid_gets_finer_and_keeps_its_points(digits) -> None:
    """In the order in which they came, each once, and always a whole grid."""
    ranges = Sweep(RandomLabel, digits).ranges
    found = [known_settings(Protocol(trials, searcher="grid"), 0, ranges) for trials in range(5, 120)]
    for fewer, more in itertools.pairwise(found):
        assert more[: len(fewer)] == fewer
    for trials, points in zip(range(5, 120), found, strict=True):
        settings = {tuple(point.values()) for point in points}
        values = [{setting[place] for setting in settings} for place in range(2)]
        assert len(points) == len(settings) == math.prod(map(len, values)) < trials
    epochs = sorted({point["epochs"] for point in found[-1]})
    assert epochs == list(range(1, 11))
    assert {len(points) for points in found} > {4, 6, 9, 12, 16}


def test_only_the_budget_may_grow_and_with_resume_alone(digits, tmp_path: Path) -> None:
    def asked(trials: int = 4, confirmation: Confirmation = Confirmation(1, 1, 1), **fields: Any) -> dict[str, Any]:  # noqa: B008
        return Sweep(RandomLabel, digits, Protocol(trials, confirmation=confirmation, **fields)).identity()

    def refused(identity: dict[str, Any], resume: bool = True) -> str:
        with pytest.raises(InputError) as error:
            Store(tmp_path / "s", identity, resume=resume, is_finished=lambda rows: False)
        assert "\n" not in str(error.value)
        return str(error.value)

    with Store(tmp_path / "s", asked(), resume=False) as rows:
        rows.append(row(0, 0.5, 0.5))
        rows.end(1)
    before = (tmp_path / "s" / files.SWEEP).read_bytes()
    assert "protocol.trials is 4 there, 6 here. --resume lets it grow" in refused(asked(6), resume=False)
    assert "protocol.trials is 4 there, 3 here (a sweep grows, and never shrinks)" in refused(asked(3))
    fewer = refused(asked(6, Confirmation(1, 0)))
    assert "protocol.confirmation.originals is 1 there, 0 here" in fewer
    assert "protocol.trials" not in fewer
    for fields in (
        {"max_images": 9},
        {"max_hours": 2.0},
        {"searcher": "random"},
        {"search_seeds": (0, 1)},
        {"confirmation": Confirmation(1, 1, 1, forget=((3,),))},
    ):
        assert "belongs to another sweep" in refused(asked(6, **fields))
    with Store(tmp_path / "s", asked(6, Confirmation(2, 3, 2)), resume=True) as rows:
        assert rows.grown == {
            "protocol.trials": [4, 6],
            "protocol.confirmation.seeds": [1, 2],
            "protocol.confirmation.originals": [1, 3],
            "protocol.confirmation.top": [1, 2],
        }
    assert (tmp_path / "s" / files.SWEEP).read_bytes() == before  # as long as nothing was begun it can be taken back
    Store(tmp_path / "s", asked(), resume=True).__exit__(None, None, None)


def test_what_grew_is_written_down_with_its_time(digits, tmp_path: Path, monkeypatch) -> None:
    def store(trials: int) -> Store:
        return Store(tmp_path / "s", Sweep(RandomLabel, digits, Protocol(trials)).identity(), resume=True)

    with store(2) as rows:
        rows.append(row(0, 0.5, 0.5, scenario_hash="s"))
        rows.end(1)
    monkeypatch.setattr(raymu, "__version__", "0.2.99")
    with store(5) as rows:
        rows.record()
        assert rows.grown == {}
        rows.append(row(1, 0.5, 0.5, scenario_hash="s"))
    (sweep,) = reader.load(tmp_path)
    assert [row["trial"] for row in sweep.rows] == [0, 1]  # checksums of before and after fit
    assert sweep.missing == "the sweep has grown, and not ended since; 2 rows so far"
    assert sweep.identity["protocol"]["trials"] == 5
    (entry,) = sweep.identity["history"]
    assert (entry["raymu"], entry["protocol.trials"], sweep.identity["raymu"]) == ("0.2.99", [2, 5], VERSION)
    assert entry["time"].startswith("20")
    with store(6) as rows:
        rows.record()
        rows.end(2)
    (sweep,) = reader.load(tmp_path)
    assert sweep.missing == ""
    assert [one["protocol.trials"] for one in sweep.identity["history"]] == [[2, 5], [5, 6]]
    (line,) = report.facts([sweep])["history"]
    times = [one["time"] for one in sweep.identity["history"]]
    assert line == (f"{times[0]} raymu 0.2.99, protocol.trials 2 -> 5; {times[1]} raymu 0.2.99, protocol.trials 5 -> 6")


def test_a_release_that_changes_no_algorithm_goes_on(digits, tmp_path: Path, monkeypatch) -> None:
    sweep = Sweep(RandomLabel, digits, Protocol(2))
    with Store(tmp_path / "s", sweep.identity(), resume=False) as rows:
        rows.append(row(0, 0.5, 0.5, scenario_hash="s"))
    for version in ("0.2.98", "0.2.98", "0.2.99"):
        monkeypatch.setattr(raymu, "__version__", version)
        with Store(tmp_path / "s", sweep.identity(), resume=True) as rows:
            rows.record()
            assert [row["trial"] for row in rows.read()] == [0]
    (found,) = reader.load(tmp_path)
    assert [entry["raymu"] for entry in found.identity["history"]] == ["0.2.98", "0.2.99"]
    assert found.identity["raymu"] == VERSION
    for field in ("method_code", "evaluation_code", "objective_code"):
        other = sweep.identity() | {field: "0123456789ab"}
        with pytest.raises(InputError, match=f"{field} is .* there, 0123456789ab here"):
            Store(tmp_path / "s", other, resume=True)
    older = sweep.identity()
    del older["format"]
    with Store(tmp_path / "older", older, resume=False) as rows:
        rows.append(row(0, 0.5, 0.5))
    with pytest.raises(InputError, match="can be read, but not resumed"):
        Store(tmp_path / "older", sweep.identity(), resume=True)


def made(
    name: str,
    scores: list[float],
    confirmation: Confirmation = UNCONFIRMED,
) -> SweepResults:
    """A sweep with these scores, whose confirmation, of all that its budget asks for, finds the same ones but for a
    little that depends on seed and original.
    """
    sweep = Sweep(RandomLabel, raymu.SCENARIOS["digits"], Protocol(len(scores), confirmation=confirmation))

    def row(number: int, score: float, **fields: Any) -> dict[str, Any]:
        digests = {key: identity.get(key) for key in ("method", "method_code", "evaluation_code", "objective_code")}
        accuracies = dict.fromkeys(columns(), score)
        return {
            "trial_id": f"{name}-{number:04d}",
            "trial": number,
            "source": "search" if number else "published",
            "status": "completed",
            "score": score,
            "test_score": score,
            "scenario_hash": sweep.scenario.hash,
            "objective": "removal",
            "protocol_hash": sweep.protocol_hash,
            "config": {"lr": float(number)},
            "confirms": None,
            "model_seed": 0,
            "forget": list(sweep.scenario.forget),
            "forget_share": 0.0,
            "seed": 0,
            "test_retain_images": 100,
            "test_forget_images": 100,
            **digests,
            **accuracies,
            **fields,
        }

    identity = sweep.identity() | {"method": name}
    rows = [row(number, score) for number, score in enumerate(scores)]
    for task in sweep.confirmations(rows):
        score = scores[int(task.config["lr"])] - 0.01 * task.scenario.model_seed - 0.003 * task.seed
        fields = {"source": "confirmation", "confirms": task.confirms, "config": dict(task.config), "seed": task.seed}
        fields |= {"model_seed": task.scenario.model_seed, "scenario_hash": task.scenario.hash}
        rows.append(row(task.number, score, **fields))
    return SweepResults(name, identity, {}, {}, None, rows)


def grown(small: SweepResults, large: SweepResults) -> SweepResults:
    """The larger one, if it grew from the smaller one: what that has confirmed is still there."""
    known = {(row["confirms"], row["seed"], row["model_seed"]) for row in small.rows if row["confirms"]}
    numbers = itertools.count(CONFIRMATIONS + len(known))
    later = [
        row | ({"trial": next(numbers)} if row["confirms"] else {})
        for row in large.rows[len([row for row in small.rows if not row["confirms"]]) :]
        if (row["confirms"], row["seed"], row["model_seed"]) not in known
    ]
    return large._replace(rows=[*small.rows, *later])


def figures(ranked: list[ranking.Ranked]) -> list[Any]:
    return [(one.sweep.name, one.rank, one.tuned["trial"], one.figures["tuned"], one.first, one.last) for one in ranked]


SCORES = [0.1, 0.3, 0.5, 0.4, 0.8, 0.6]  # the best of the first four is not the best of all


def test_a_ranking_uses_the_part_that_all_sweeps_have_and_says_so() -> None:
    asked, more = Confirmation(1, 3, 1), Confirmation(2, 5, 2)
    other = made("other", [0.1, 0.45, 0.2, 0.3], asked)
    small, large = made("m", SCORES[:4], asked), made("m", SCORES, more)
    both = grown(small, large)
    assert len(both.rows) > len(large.rows)  # nothing disappeared
    assert figures(ranking.rank([other, both])) == figures(ranking.rank([other, small]))
    assert ranking.rank([other, both])[0].sweep is both
    assert figures(ranking.rank([both])) == figures(ranking.rank([large]))  # the former best does not count twice
    assert selection.best([both])[0]["trial"] == 4
    assert groups.said_of_part([other, both]) == (
        "ranked by the part that all sweeps have: protocol.trials 4 (6 in m); protocol.confirmation.seeds 1 (2 in m);"
        " protocol.confirmation.originals 3 (5 in m); protocol.confirmation.top 1 (2 in m); --resume lets the others"
        " grow"
    )
    (chapter,) = report.chapters([other, both])
    assert any("protocol.trials 4 (6 in m)" in line for line in report.verdict.cautions(*chapter[:2]))
    assert groups.said_of_part([other, small]) == groups.said_of_part([both]) == ""
    said = groups.said_of_part([other, both])
    assert tables.latex(ranking.rank([other, both]), comments=["", said]).startswith(f"% {said}\n\\begin")


def test_one_that_was_larger_from_the_start_is_not_confirmed_in_a_smaller_part() -> None:
    asked = Confirmation(1, 3, 1)
    other, large = made("other", [0.1, 0.45, 0.2, 0.3], asked), made("m", SCORES, asked)
    ranked = ranking.rank([other, large])
    assert [(one.sweep.name, one.tuned["trial"], one.score.runs) for one in ranked] == [("m", 2, 0), ("other", 1, 3)]
    assert any(line.startswith("m: not confirmed") for line in report.verdict.cautions([other, large], ranked))


def test_sweeps_that_differ_in_more_than_the_budget_stay_apart() -> None:
    one, other = made("one", SCORES), made("other", SCORES[:4])
    other.identity["protocol"] = other.identity["protocol"] | {"max_images": 5}
    found = groups.grouped([one, other])
    assert [group.apart for group in found] == ["", "protocol.max_images is None there, 5 here"]
    older = {name: value for name, value in one.identity.items() if name != "format"}
    found = groups.grouped([one, one._replace(name="older", identity=older)])
    assert [group.apart for group in found] == ["", "earlier versions of raymu numbered trials otherwise"]


def test_a_winner_that_changed_is_confirmed_and_no_run_has_anothers_number() -> None:
    scenario = raymu.SCENARIOS["digits"]

    def sweep(trials: int, confirmation: Confirmation) -> Sweep:
        return Sweep(RandomLabel, scenario, Protocol(trials, confirmation=confirmation))

    small = made("m", SCORES[:4], Confirmation(1, 2, 1))
    whole = [*small.rows, *(row for row in made("m", SCORES).rows if row["trial"] >= 4)]
    larger = sweep(6, Confirmation(2, 3, 2))
    done, missing = {row["trial"] for row in small.rows}, remaining.unconfirmed(larger, whole)
    wanted = {(task.confirms, task.scenario.model_seed, task.seed) for task in larger.confirmations(whole)}
    assert wanted == set(itertools.product(("m-0000", "m-0004", "m-0005"), (1, 2, 3), (1, 2)))
    published = {("m-0000", original, 1) for original in (1, 2)}  # is there already
    assert {(task.confirms, task.scenario.model_seed, task.seed) for task in missing} == wanted - published
    assert not {task.number for task in missing} & done
    assert min(task.number for task in missing) == max(done) + 1
    # An interrupted confirmation gives the same runs the same numbers again.
    first = sweep(4, Confirmation(1, 2, 1))
    numbers = {task.number: task for task in first.confirmations(small.rows)}
    for gone in numbers:
        kept = [row for row in small.rows if row["trial"] != gone]
        assert remaining.unconfirmed(first, kept) == [numbers[gone]]


def test_a_part_is_of_every_search() -> None:
    sweep = made("m", [0.1] * 8)
    sweep.identity["protocol"]["search_seeds"] = [0, 3]
    sweep.identity["protocol"]["trials"] = 4
    assert [row["trial"] for row in selection.part(sweep, Budget(3, 0, 0, 1))] == list(range(6))
    assert selection.part(sweep) == sweep.rows


# Real sweeps


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with session(None):
        yield


def _run(sweep: Sweep, directory: Path, *, resume: bool = False) -> list[dict[str, Any]]:
    """One trial at a time, so that what is learnt of those before is the same whenever it is run."""
    return run_sweep(sweep, directory, Resources(concurrent=1), Console(quiet=True), resume=resume, anyway=True)


def _same(rows: list[dict[str, Any]]) -> list[list[Any]]:
    """What is the same of a search's trials, and of what was confirmed, whose numbers depend on what was before."""
    kept = sorted(rows, key=lambda row: (row["source"] == "confirmation", row["confirms"], row["seed"], row["trial"]))
    same = [*SAME, "confirms", "model_seed", *columns()]
    return [[row[name] for name in same[2 if row["confirms"] else 0 :]] for row in kept]


@pytest.mark.long
@pytest.mark.parametrize("case", ["gp", "tpe", "random", "quasi_random", "grid", "nsga2", "median"])
def test_a_sweep_that_grew_is_one_that_was_to_be_larger(local_ray, quick, tmp_path: Path, case) -> None:
    def sweep(trials: int) -> Sweep:
        return Sweep(RandomLabel, quick, Protocol(trials, max_epochs=3, **SEARCHERS[case]))

    whole = _run(sweep(13), tmp_path / "whole" / "s")
    small = _run(sweep(6), tmp_path / "grown" / "s")
    begun = (tmp_path / "grown" / "s" / files.ROWS).read_bytes()
    rows = _run(sweep(13), tmp_path / "grown" / "s", resume=True)
    assert len(small) < len(rows)
    assert (tmp_path / "grown" / "s" / files.ROWS).read_bytes().startswith(begun)
    assert _same(rows) == _same(whole)
    assert reader.load(tmp_path / "grown")[0].missing == ""


@pytest.mark.long
def test_a_confirmation_grows_and_the_new_winner_is_confirmed(local_ray, quick, tmp_path: Path) -> None:
    def sweep(trials: int, *confirmation: int) -> Sweep:
        return Sweep(RandomLabel, quick, Protocol(trials, max_epochs=4, confirmation=Confirmation(*confirmation)))

    _run(sweep(2, 2, 0, 1), tmp_path / "grown" / "s")
    directory = tmp_path / "grown" / "s"
    lines = (directory / files.ROWS).read_text().splitlines(keepends=True)
    (directory / files.ROWS).write_text("".join(lines[:-1]))  # interrupted
    grown = _run(sweep(5, 2, 1, 2), directory, resume=True)
    _run(sweep(5, 2, 1, 2), tmp_path / "whole" / "s")
    parts = [selection.part(reader.load(tmp_path / name)[0]) for name in ("grown", "whole")]
    assert _same(parts[0]) == _same(parts[1])
    assert len(grown) > len(parts[0])  # what was confirmed on the original that was searched on
    ranked = [ranking.rank(reader.load(tmp_path / name))[0] for name in ("grown", "whole")]
    assert ranked[0].figures["tuned"] == ranked[1].figures["tuned"]
    assert ranked[0].score.runs == 2


# Budgets in time


@pytest.mark.long
def test_the_time_of_a_search_is_counted_over_resumptions(local_ray, quick, tmp_path: Path) -> None:
    sweep = Sweep(RandomLabel, splits.prepare(quick), Protocol(30, max_hours=1e-6, scheduler="none"))
    rows = _run(sweep, tmp_path / "s")
    assert [row["trial"] for row in rows] == [0]
    assert rows[0]["search_s"] >= 3600e-6
    assert _run(sweep, tmp_path / "s") == rows  # it is finished
    later = dataclasses.replace(sweep, protocol=dataclasses.replace(sweep.protocol, max_hours=10.0))
    with Store(tmp_path / "later", later.identity(), resume=False) as stored:
        stored.append(rows[0] | {"search_s": 35_999.9, "protocol_hash": later.protocol_hash})
    resumed = _run(later, tmp_path / "later", resume=True)
    assert [row["trial"] for row in resumed] == [0, 1]
    assert 36_000 <= resumed[1]["search_s"] < 37_000


def test_no_trial_begins_after_the_hours_of_its_search(digits) -> None:
    sweep = Sweep(RandomLabel, digits, Protocol(6, max_hours=0.5, search_seeds=(0, 1)))
    rows = [
        {"trial": trial, "search_seed": trial % 2, "source": "search", "search_s": seconds, "images": 1}
        for trial, seconds in ((0, 700.0), (2, 1799.0), (1, 900.0))
    ]
    assert remaining.missing(sweep, 0, rows, ()) == [4, 6, 8, 10]
    rows.append({"trial": 4, "search_seed": 0, "source": "search", "search_s": 1800.0, "images": 1})
    assert remaining.missing(sweep, 0, rows, ()) == []
    assert remaining.missing(sweep, 0, rows, {6}) == [6]  # it had begun before
    assert remaining.missing(sweep, 1, rows, ()) == [3, 5, 7, 9, 11]  # the time of another search
    # A trial runs and the time is over, although no row says so yet.
    assert not remaining.is_spent(sweep.protocol, rows[:2], 1799.0)
    assert remaining.is_spent(sweep.protocol, rows[:2], 1800.0)
    assert not remaining.is_spent(dataclasses.replace(sweep.protocol, max_hours=None), rows, 1e9)


def test_no_trial_begins_once_nothing_is_expected(digits) -> None:
    sweep = Sweep(RandomLabel, digits, Protocol(12, patience=3))

    def missing(*gains: float | None, begun: tuple[int, ...] = ()) -> list[int]:
        rows = [{"trial": n, "search_seed": 0, "images": 1, "expected_gain": gain} for n, gain in enumerate(gains)]
        return remaining.missing(sweep, 0, rows[::-1], begun)

    assert missing(None, None, 2.0, 0.9, 0.1) == list(range(5, 12))
    assert missing(None, None, 2.0, 0.9, 0.1, 0.99) == []
    assert missing(None, None, 2.0, 0.9, 0.1, 0.99, begun=(7,)) == [7]
    assert missing(None, 0.9, 0.9, 0.9, 1.0) == list(range(5, 12))  # its last one is worth more
    assert missing(None, 0.0, 0.0, None) == list(range(4, 12))
    sweep = dataclasses.replace(sweep, protocol=Protocol(12))
    assert missing(*[0.0] * 6) == list(range(6, 12))


@pytest.mark.long
def test_a_search_without_hope_ends_and_its_report_says_why(local_ray, quick, tmp_path: Path) -> None:
    sweep = Sweep(RandomLabel, splits.prepare(quick), Protocol(40, patience=2))
    rows = _run(sweep, tmp_path / "s")
    gains = [row["expected_gain"] for row in rows]
    assert len(rows) < 40
    assert gains[: INITIAL + 1] == [None] * (INITIAL + 1)
    still = [gain is not None and gain < 1 for gain in gains]
    assert still[-2:] == [True, True]
    assert not any(itertools.starmap(operator.and_, itertools.pairwise(still[:-1])))
    assert _run(sweep, tmp_path / "s") == rows  # it is finished
    (found,) = reader.load(tmp_path / "s")
    (said,) = (line for line in report.verdict.cautions([found], []) if "--trials auto" in line)
    assert said.startswith(f"s: its search ended after {len(rows)} trials, as the last 2 were expected to improve")
    # A driver that is killed keeps what was expected of a trial on its way.
    cut = tmp_path / "cut" / "s"
    with Store(cut, found.identity, resume=False) as stored:
        for row in rows[:-1]:
            stored.append(row)
        stored.put(files.RUNNING, {str(rows[-1]["trial"]): {"config": rows[-1]["config"], "expected_gain": gains[-1]}})
    assert [row["expected_gain"] for row in _run(sweep, cut, resume=True)] == gains


def test_the_report_says_what_bounds_a_search() -> None:
    sweep = made("m", SCORES)
    sweep.identity["protocol"] |= {"max_hours": 1.5, "max_images": 5000}
    said = list(report.verdict.cautions([sweep], []))
    assert any("1.5 hours of wall time (--max-hours)" in line for line in said)
    assert any("5,000 images (--max-images)" in line for line in said)
