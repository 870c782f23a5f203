"""Selection rules and the ranking, on hand-made rows whose answer a statistician knows."""

import dataclasses
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from raymu.errors import InputError
from raymu.objective import HMEAN
from raymu.protocol import Confirmation, Protocol
from raymu.results import groups, ranking, report, selection, tables, writer
from raymu.results.groups import grouped
from raymu.results.ranking import rank
from raymu.results.reader import SweepResults
from raymu.scenario import SCENARIOS
from raymu.tuning.sweep import directory_name
from raymu.values import content_hash

SCENARIO = SCENARIOS["digits"]
PROTOCOL = Protocol(trials=4, objective=HMEAN, confirmation=Confirmation(seeds=3, originals=5))
ACCURACIES = [f"{split}_{metric}" for split in ("val", "test") for metric in ("retain_acc", "probe_forget_acc")]


def row(trial: int, keep: float | None, probe: float | None, **more: Any) -> dict[str, Any]:
    """A search's row with the same accuracies on both splits."""
    accuracies = dict(zip(ACCURACIES, [keep, probe] * 2, strict=True))
    score = None if keep is None else HMEAN.of(accuracies, {})
    others = {column: None for column in ranking.ACCURACIES if column not in accuracies}
    return {
        "trial_id": f"m-{trial:04d}",
        "trial": trial,
        "source": "published" if trial == 0 else "search",
        "status": "completed",
        "method": "m",
        "scenario_hash": SCENARIO.hash,
        "objective": "hmean",
        "protocol_hash": content_hash(PROTOCOL.as_dict()),
        "confirms": None,
        "config": {"lr": float(trial)},
        "score": score,
        "unlearn_s": 1.0,
        "model_seed": 0,
        "seed": 0,
        "forget": [8],
        "forget_share": 0.0,
        **accuracies,
        **others,
    } | more


def again(of: int, original: int, seed: int, probe: float | None, keep: float = 0.9, **more: Any) -> dict[str, Any]:
    """A run of the confirmation."""
    options = {"source": "confirmation", "confirms": f"m-{of:04d}", "model_seed": original, "seed": seed, **more}
    return row(100 + 10 * original + seed, keep, probe, **options) | {"config": {"lr": float(of)}}


def sweep(name: str, rows: list[dict[str, Any]], **changed: Any) -> SweepResults:
    protocol = dataclasses.replace(PROTOCOL, **changed)
    rows = [one | {"method": name, "protocol_hash": content_hash(protocol.as_dict())} for one in rows]
    fields = protocol.as_dict()
    identity = {"method": name, "scenario": SCENARIO.as_dict(), "protocol": fields}
    return SweepResults(name, identity, {}, {}, None, rows)


def confirmed(name: str, probe: float, spread: float = 0.02, seed: int = 0, originals: int = 5) -> SweepResults:
    """A sweep whose tuned setting was run on five originals, three times each."""
    random = np.random.default_rng(seed)
    runs = [
        again(1, original, run, probe + shift + spread / 4 * random.standard_normal())
        for original in range(1, originals + 1)
        for shift in [spread * random.standard_normal()]
        for run in (1, 2, 3)
    ]
    return sweep(name, [row(0, 0.9, 0.9), row(1, 0.9, probe), *runs])


def stored(directory: Path, one: SweepResults) -> None:
    """Write a sweep below a directory."""
    with writer.Store(directory / one.name, one.identity, resume=False) as rows:
        for of in one.rows:
            rows.append(of)
        rows.end(len(one.rows))


# Rules


def test_best_takes_the_highest_score_the_earliest_of_equals_and_no_setting_twice() -> None:
    rows = [
        row(0, 0.9, 0.9),
        row(3, 0.9, 0.2),
        row(2, 0.9, 0.2),
        row(1, 0.9, 0.5),
        row(4, 0.9, 0.2, config={"lr": 2.0}),
    ]
    assert [one["trial"] for one in selection.Best(3).choose(rows)] == [2, 3, 1]
    assert selection.tuned(rows)["trial"] == 2


def test_of_several_0_what_the_searcher_saw_decides() -> None:
    rows = [row(trial, 0.9, 1.0, curve=[[1, seen]]) for trial, seen in enumerate((-0.3, -0.4, -0.1, -0.1))]
    assert [one["trial"] for one in selection.Best(4).choose(rows)] == [2, 3, 0, 1]
    runs = [
        again(of, original, 1, 1.0, curve=[[1, seen]]) for of, seen in ((0, -0.3), (2, -0.1)) for original in (1, 2)
    ]
    assert selection.tuned([*rows, *runs])["trial"] == 2


def test_what_another_run_is_expected_to_reach_decides_but_not_more_than_was_reached() -> None:
    rows = [
        row(0, 0.9, 0.9),  # its search could not say
        row(1, 0.9, 0.1, expected_score=0.3),  # lucky
        row(2, 0.9, 0.3, expected_score=0.95),
        row(3, 0.9, 0.2, expected_score=0.7),
    ]
    scores = [one["score"] for one in rows]
    assert scores[1] > scores[3] > scores[2] > 0.7 > scores[0]
    assert [one["trial"] for one in selection.Best(4).choose(rows)] == [2, 3, 1, 0]
    assert [selection.sure(one) for one in rows] == [scores[0], 0.3, scores[2], 0.7]
    published = row(0, 0.9, 0.25, expected_score=0.1)
    assert selection.tuned([published, *rows[1:]])["trial"] == 0  # none is chosen that was worse on validation


def test_a_row_that_was_not_measured_on_test_is_no_figure() -> None:
    unread = row(1, 0.9, 0.1) | dict.fromkeys(ranking.MEASURED)
    assert not ranking.is_measured(unread)
    assert ranking.is_measured(row(1, 0.9, 0.1))
    assert ranking.is_measured(unread | {"status": "diverged"})  # which scores 0 everywhere
    with pytest.raises(InputError, match="m-0001 was not measured on test: --resume --confirm-seeds 1 runs it again"):
        ranking.rank([sweep("m", [row(0, 0.9, 0.9), unread])])


def test_what_is_expected_of_another_run_is_said() -> None:
    assert tables.on_validation(row(1, 0.9, 0.1)) == "hmean 0.900 on validation"
    lucky = row(1, 0.9, 0.1, expected_score=0.3)
    assert tables.on_validation(lucky) == "hmean 0.900 on validation, 0.300 expected of another run"
    assert ["0.300" in list(column.cells) for column in tables.trials([lucky]).columns].count(True) == 1


def test_settings_are_chosen_by_the_confirmations_that_all_of_them_have() -> None:
    """The first one ran on an easy original, too, when the sweep was killed."""
    searched = [row(0, 0.9, 0.9), row(1, 0.9, 0.2), row(2, 0.9, 0.3)]
    again = [
        row(1000 + n, kept, 0.5, source="confirmation", confirms=f"m-{trial:04d}", model_seed=original)
        | {"config": {"lr": float(trial)}}
        for n, (trial, original, kept) in enumerate([(1, 1, 0.6), (2, 1, 0.7), (1, 2, 0.99)])
    ]
    assert selection.tuned([*searched, *again])["trial"] == 2
    apart = [again[0], again[1] | {"model_seed": 3}]  # nothing in common: what there is decides
    assert selection.tuned([*searched, *apart])["trial"] == 2


def test_whatever_is_chosen_was_measured_on_test() -> None:
    """Sweeps of random rows that end in any order: each trial is compared with those before it that have ended. So the
    best of the first trials is known, as of those that had ended at a time.
    """
    generator = np.random.default_rng(0)
    for _ in range(200):
        done: list[dict[str, Any]] = []
        measured = set()
        for trial in (1 + np.argsort(np.arange(19) + generator.uniform(0, 5, 19))).tolist():
            seen = float(generator.choice([-0.3, -0.2, 0.0, 0.2, 0.5, 0.9, 1.0]))
            expected = generator.choice([None, 0.0, 0.3, 0.6, 1.0])
            one = row(trial, 0.9, 0.5, curve=[[1, seen]], epochs=1, expected_score=expected, score=max(0.0, seen))
            one["status"] = str(generator.choice(["completed", "completed", "stopped", "diverged"]))
            if selection.is_best(one, [before for before in done if before["trial"] < trial]):
                measured.add(trial)
            done.append(one)
            for last in (5, 10, 20):
                first = [one for one in done if one["trial"] <= last]
                if any(one["status"] == "completed" for one in first):
                    assert selection.Best().choose(first)[0]["trial"] in measured


@pytest.mark.parametrize("status", ["stopped", "diverged", "error"])
def test_only_a_completed_trial_with_a_score_is_a_candidate(status) -> None:
    rows = [row(0, 0.9, 0.9), row(1, 0.9, 0.1, status=status), row(2, 0.9, 0.1, score=math.nan), row(3, None, None)]
    assert selection.tuned(rows)["trial"] == 0
    with pytest.raises(InputError, match="no completed trial"):
        selection.tuned(rows[1:])


def test_the_published_setting_is_found_by_its_source() -> None:
    assert selection.published([row(1, 0.9, 0.5), row(0, 0.9, 0.9)])["trial"] == 0
    assert selection.published([row(1, 0.9, 0.5)]) is None


@pytest.mark.parametrize("field", ["scenario_hash", "objective", "protocol_hash"])
def test_rows_of_two_kinds_are_not_compared(field) -> None:
    with pytest.raises(InputError, match=field):
        selection.tuned([row(0, 0.9, 0.9), row(1, 0.9, 0.1, **{field: "other"})])


def test_the_pareto_front() -> None:
    points = [(0.9, 0.9), (0.8, 0.5), (0.8, 0.6), (0.85, 0.5), (0.2, 0.1), (0.9, 0.9), (0.1, 0.3)]
    front = selection.ParetoFront().choose([row(trial, *point) for trial, point in enumerate(points)])
    assert [one["trial"] for one in front] == [0, 3, 4]


def test_the_least_probe_forget_within_a_loss_of_retain() -> None:
    rows = [row(trial, *point) for trial, point in enumerate([(0.95, 0.9), (0.93, 0.6), (0.91, 0.4), (0.5, 0.0)])]
    original = row(9, 0.95, 0.9)
    assert selection.Constrained(original, 0.02).choose(rows)[0]["trial"] == 1
    assert selection.Constrained(original, 0.05).choose(rows)[0]["trial"] == 2
    with pytest.raises(InputError, match="keeps a retain accuracy"):
        selection.Constrained(row(9, 1.0, 0.9), 0.01).choose(rows)


def test_the_cheapest_within_one_standard_error() -> None:
    """Means .60, .59 and .40, and the best's standard error about .016: the second is near enough, the third is not. It
    counts what a trial read, as seconds are its neighbours', too.
    """
    search = [row(trial, 0.9, 0.5) for trial in range(3)]
    runs = [
        again(trial, original, 1, 0.5, score=mean + shift, images=cost, unlearn_s=1 / cost)
        for trial, mean, cost in ((0, 0.60, 900), (1, 0.59, 200), (2, 0.40, 100))
        for original, shift in ((1, -0.04), (2, 0.0), (3, 0.04), (4, -0.03), (5, 0.03))
    ]
    assert selection.Cheapest().choose(search + runs)[0]["trial"] == 1
    easy = again(0, 6, 1, 0.5, score=1.0, images=900)  # the others have not run there
    assert selection.Cheapest().choose([*search, *runs, easy])[0]["trial"] == 1
    with pytest.raises(InputError, match="at least twice"):
        selection.Cheapest().choose(search)


def test_the_confirmation_decides_among_the_best_of_the_search() -> None:
    """Trial 1 was lucky. One run that diverged counts as 0, one that ended in an error does not count."""
    search = [row(0, 0.9, 0.9), row(1, 0.9, 0.1), row(2, 0.9, 0.2)]
    runs = [again(trial, original, 1, probe) for trial, probe in ((1, 0.5), (2, 0.3)) for original in (1, 2)]
    runs.append(again(1, 3, 1, 0.5))
    assert selection.tuned(search + runs)["trial"] == 2
    diverged = again(2, 3, 1, None, keep=None, status="diverged", score=0.0)
    assert selection.tuned([*search, *runs, diverged])["trial"] == 1
    assert selection.tuned([*search, *runs, diverged | {"status": "error"}])["trial"] == 2


# Ranking


def test_a_clear_winner_and_a_tie() -> None:
    sweeps = [confirmed("loser", 0.8, seed=1), confirmed("one", 0.5, seed=2), confirmed("other", 0.5, seed=3)]
    winner = confirmed("winner", 0.2, seed=4)
    ranked = rank([*sweeps, winner])
    assert [(one.rank, one.first, one.last) for one in ranked] == [(1, 1, 1), (2, 2, 3), (3, 2, 3), (4, 4, 4)]
    assert [tables.place(one) for one in ranked] == ["1", "2 (2-3)", "3 (2-3)", "4"]
    assert [one.behind.significant for one in ranked] == [False, True, True, True]
    assert [one.sweep.name for one in ranked][::3] == ["winner", "loser"]
    assert ranked[0].score.low < ranked[0].score.mean < ranked[0].score.high
    assert (ranked[0].score.runs, ranked[0].score.originals) == (15, 5)
    assert rank([winner, *reversed(sweeps)]) == ranked


def test_without_a_confirmation_no_rank_is_significant() -> None:
    ranked = rank([sweep(name, [row(0, 0.9, 0.9), row(1, 0.9, probe)]) for name, probe in (("a", 0.8), ("b", 0.1))])
    assert [(one.sweep.name, one.rank, one.first, one.last) for one in ranked] == [("b", 1, 1, 2), ("a", 2, 1, 2)]
    assert ranked[0].score == (HMEAN.of(row(1, 0.9, 0.1), {}), None, None, 0, 0)


def test_the_mean_is_of_the_confirmation_never_of_the_search() -> None:
    (only,) = rank([sweep("m", [row(0, 0.9, 0.9), row(1, 1.0, 0.0), again(1, 1, 1, 0.5), again(1, 2, 1, 0.5)])])
    assert only.score.mean == pytest.approx(HMEAN.of(row(1, 0.9, 0.5), {}))
    assert only.tuned["trial"] == 1


def test_missing_cells_and_runs_that_diverged() -> None:
    """A run that ended in an error is missing; one that diverged scores 0, and has no accuracy to average."""
    whole, broken = confirmed("whole", 0.4, seed=1), confirmed("broken", 0.4, seed=1)
    runs = [one for one in broken.rows if one["source"] == "confirmation"]
    runs[0] |= {"status": "error", "score": None, **dict.fromkeys(ACCURACIES)}
    runs[1] |= {"status": "diverged", "score": 0.0, **dict.fromkeys(ACCURACIES)}
    first, second = rank([broken, whole])
    assert (first.sweep.name, second.sweep.name) == ("whole", "broken")
    assert second.score.runs == 14
    figures = second.figures["tuned"]
    assert figures is not None
    assert figures.metrics["test_probe_forget_acc"].runs == 13
    assert "test_forget_acc" not in figures.metrics
    assert "-" in [cell for line in tables.ranking_rows([first, second]) for cell in line]


def test_who_lost_the_hard_originals_is_not_better_for_it() -> None:
    """Its mean is higher; on every run that both have the other one is better."""
    runs = [(original, seed, 0.2 if original < 9 else 0.8) for original in range(1, 11) for seed in (1, 2, 3)]
    whole = [again(1, *run) for run in runs]
    few = [again(1, original, seed, probe + 0.01 * seed) for original, seed, probe in runs if original < 9]
    sweeps = [sweep(name, [row(0, 0.9, 0.9), row(1, 0.9, 0.5), *of]) for name, of in (("few", few), ("whole", whole))]
    assert [(one.sweep.name, one.score.originals) for one in rank(sweeps)] == [("whole", 8), ("few", 8)]
    assert [one["method"] for one in selection.best(sweeps)] == ["whole"]


def test_best_goes_by_the_confirmation_as_the_ranking_does() -> None:
    """A search's maximum was lucky."""
    lucky = sweep("lucky", [row(1, 0.9, 0.01), *(again(1, original, 1, 0.5) for original in range(1, 4))])
    steady = sweep("steady", [row(1, 0.9, 0.3), *(again(1, original, 1, 0.3) for original in range(1, 4))])
    assert [one.sweep.name for one in rank([lucky, steady])] == ["steady", "lucky"]
    assert [one["method"] for one in selection.best([lucky, steady])] == ["steady"]
    unconfirmed = steady._replace(rows=steady.rows[:1])
    assert [one["method"] for one in selection.best([lucky, unconfirmed])] == ["lucky"]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_a_ranking_loses_columns_before_figures(width) -> None:
    names = ("neggrad_plus-cmf", "gradient_ascent-cmf", "salun-cmf")
    ranked = rank([confirmed(name, 0.2 * place, seed=place) for place, name in enumerate(names, 1)])
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(tables.ranking(ranked, width))
    shown = console.export_text()
    assert all(f"{one.score.mean:.3f}" in shown for one in ranked)
    assert ("90.0" in shown) is (width > 40)
    assert "…" not in shown or width < 60


def test_a_sweep_in_which_nothing_completed_is_left_out() -> None:
    failed = sweep("failed", [row(0, None, None, status="error")])
    assert [one.sweep.name for one in rank([failed, confirmed("m", 0.3)])] == ["m"]
    assert rank([failed]) == []


def test_sweeps_under_two_protocols_or_scenarios_are_not_ranked_together() -> None:
    first = confirmed("first", 0.3)
    with pytest.raises(InputError, match=r"first and second .*protocol\.trials is 4 there, 5 here"):
        rank([first, sweep("second", first.rows, trials=5)])
    other = dataclasses.replace(SCENARIO, seed=1)
    rows = [one | {"method": "second", "scenario_hash": other.hash} for one in first.rows]
    changed = SweepResults(
        "second", {**first.identity, "method": "second", "scenario": other.as_dict()}, {}, {}, None, rows
    )
    with pytest.raises(InputError, match="first and third hold the same trials: one is a copy"):
        rank([first, first._replace(name="third")])
    with pytest.raises(InputError, match=r"scenario\.seed is 0 there, 1 here"):
        rank([first, changed])


def test_sweeps_of_other_models_are_not_ranked_together() -> None:
    first, second = (
        sweep(name, [one | {"original_weights": weights} for one in confirmed(name, 0.3).rows])
        for name, weights in (("first", "a"), ("second", "b"))
    )
    with pytest.raises(InputError, match="first and second cannot be ranked together: original_weights is a there, b"):
        rank([first, second])
    mixed = [*first.rows[:1], *second.rows[1:2]]
    with pytest.raises(InputError, match="original_weights"):
        rank([sweep("mixed", mixed)])


@pytest.mark.parametrize(
    ("part", "change"),
    [("protocol", {"trials": 9}), ("protocol", {"search_seeds": [1]}), ("scenario", {"forget": [3]})],
)
def test_a_protocol_that_was_tampered_with_is_noticed(part, change) -> None:
    """Both sweep.json were changed alike, so they agree with each other; the rows do not agree with them."""
    sweeps = []
    for name in ("first", "second"):
        honest = confirmed(name, 0.3)
        sweeps.append(honest._replace(identity=honest.identity | {part: honest.identity[part] | change}))
    with pytest.raises(InputError, match=f"was changed after the sweep: it says {part}_hash"):
        rank(sweeps)


def test_a_sweep_that_was_changed_is_never_ranked_and_hides_no_other(caplog) -> None:
    honest, changed = confirmed("honest", 0.5), confirmed("changed", 0.1, seed=1)
    changed.identity["protocol"]["trials"] = 9
    assert [sweep.name for sweep in groups.sound([changed, honest])] == ["honest"]
    assert caplog.messages[0].startswith(
        "left out: changed/sweep.json was changed after the sweep: it says protocol_hash"
    )
    (chapter,) = report.chapters([changed, honest])
    assert [entry.sweep.name for entry in chapter.ranked] == ["honest"]
    with pytest.raises(InputError, match="was changed after the sweep"):
        groups.sound([changed])
    assert groups.sound([changed._replace(identity={}), honest]) == [honest]


def test_the_latex_table_has_all_cells_and_escapes_names() -> None:
    ranked = rank([confirmed("random_label", 0.3), confirmed(r"b&b~^\\", 0.6, seed=1)])
    text = tables.latex(ranked)
    assert r"1 & random\_label & \textbf{0.7" in text
    assert "8--" in text  # of an interval
    assert r"\caption{digits, forgetting classes 1, 3, 5, 8, 9: tuned settings on test" in text
    assert "means over 15 runs on 5 originals, with 95 \\% intervals.}" in text
    assert r"b\&b\textasciitilde{}\textasciicircum{}\textbackslash{}" in text
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in lines} == {8}
    assert len(lines) == 6


def test_what_does_not_compare_stands_in_groups() -> None:
    first, third = confirmed("first", 0.3), confirmed("third", 0.4, seed=2)
    more = sweep("more", first.rows, trials=5)
    found = grouped([first, more, third])
    assert [group.names for group in found] == ["first, third", "more"]
    assert found[0].apart == ""
    assert found[1].apart == "protocol.trials is 4 there, 5 here"
    digest = sweep("digest", first.rows, trials=5)
    digest.identity["protocol"]["suggestions"] = "0123456789ab"
    assert grouped([first, digest])[1].apart == "protocol.trials is 4 there, 5 here"
    assert "suggestions" in grouped([more, digest])[1].apart  # nothing else is known
    assert [len(chapter.ranked) for chapter in report.chapters([first, more, third])] == [2, 1]


def test_a_long_table_lists_the_best_trials_and_says_so() -> None:
    rows = [
        {"trial_id": f"salun-{number}", "status": "completed", "score": number / 1000, "config": {"lr": 0.1}}
        for number in range(tables.MOST_TRIALS + 1)
    ]
    assert tables.trials(rows[1:]).caption is None
    table = tables.trials(rows)
    assert (table.row_count, table.caption) == (200, "the best 200 of 201; --csv and --json print all")
    assert next(iter(table.columns[0].cells)) == "salun-200"


def test_directories_are_named_by_what_distinguishes_a_sweep() -> None:
    def name(**changed: Any) -> str:
        return directory_name("all", dataclasses.replace(SCENARIO, **changed))

    assert name() == "all"
    assert name(forget=(5, 3)) == "all-forget-3-5"
    assert name(forget=(), forget_share=0.1) == "all-forget-0.1"
    assert name(classes=(1, 3, 5, 8, 9, 0), train_share=0.1) == "all-classes-0-1-3-5-8-9-train-0.1"
    assert directory_name("all", SCENARIOS["fashion-resnet"]) == "all-fashion-resnet"  # its own share
    assert name(name="a/b c", forget=(1,)) == "all-a_b_c-forget-1"
    assert directory_name("salun", SCENARIO, "hmean") == "salun-hmean"
    assert directory_name("salun-cmf", SCENARIOS["cifar10-resnet18"]) == "salun-cmf-cifar10-resnet18"
    many = [name(name="imagenet-vit_b", forget=tuple(range(start, start + 50))) for start in (0, 1)]
    assert many[0].startswith("all-imagenet-vit_b-forget-50-classes-")
    assert many[0] != many[1]
