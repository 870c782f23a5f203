"""What searches spent, and what they had found at equal compute, on rows whose answer is plain."""

import io
from typing import Any

import pytest
from rich.console import Console
from test_ranking import again, row, sweep

from raymu.errors import InputError
from raymu.results import cost, tables
from raymu.results.ranking import rank
from raymu.results.reader import SweepResults

GPU = {"wall_s": 1800.0, "workers": 2, "threads": 4, "device": "cuda", "processor": "H100", "gpu_share": 0.25}
CPU = {"wall_s": 1800.0, "workers": 1, "threads": 4, "device": "cpu", "processor": "EPYC", "gpu_share": None}


def test_hours_are_of_what_a_trial_had() -> None:
    assert cost.spent([GPU, GPU]) == (0.5, 0.0, True)
    assert cost.spent([CPU]) == (0.0, 2.0, True)
    assert str(cost.spent([GPU, GPU, CPU])) == "0.50 GPU hours, 2.00 CPU hours"
    assert str(cost.spent([CPU | {"wall_s": 1.0}])) == "<.01 CPU hours"


def test_time_that_no_row_says_is_not_left_out_silently() -> None:
    died = CPU | {"device": None, "processor": None, "wall_s": 0.0, "restarts": 2}
    assert str(cost.spent([CPU, died])) == "more than 2.00 CPU hours"
    assert str(cost.spent([CPU | {"restarts": 1}])) == "more than 2.00 CPU hours"
    for column in GPU.keys() - {"processor"}:
        assert cost.spent([GPU, {key: value for key, value in GPU.items() if key != column}]) is None


def search(name: str, *trials: tuple[float, float], confirms: int | None = None, **more: Any) -> SweepResults:
    """A search by (probe-forget accuracy, images) of each trial; perhaps one trial confirmed, and the published one."""
    rows = [row(n, 0.9, probe, images=images, **{**CPU, **more}) for n, (probe, images) in enumerate(trials)]
    runs = [
        again(of, original, 1, probe, images=1, **CPU)
        for of, probe in ((0, 0.8), (confirms, 0.3))
        for original in (1, 2, 3)
        if confirms is not None
    ]
    return sweep(name, [*rows, *runs])


def test_at_equal_compute_a_search_is_what_it_had_found_by_then() -> None:
    """The cheap one spent 30 images. By then the other had ended two trials, and not yet the one that it ends with."""
    cheap = search("cheap", (0.9, 10), (0.5, 20), confirms=1)
    dear = search("dear", (0.9, 10), (0.6, 20), (0.1, 5), confirms=2)
    assert [entry.sweep.name for entry in rank([cheap, dear])] == ["cheap", "dear"]  # both confirmed at 0.3
    then, note = cost.at_equal([cheap, dear], "images")
    assert [[of["trial"] for of in one.rows if of["source"] != "confirmation"] for one in then] == [[0, 1], [0, 1]]
    ranked = {entry.sweep.name: entry for entry in rank(then)}
    assert ranked["cheap"].score.runs == 3  # its choice was confirmed
    assert (ranked["dear"].score.runs, ranked["dear"].tuned["trial"]) == (0, 1)
    assert note.startswith("Searches up to 30 images each, which is all that cheap spent. ")
    assert note.endswith(" Not confirmed at that point, so single runs: dear.")


def test_a_choice_that_was_confirmed_keeps_its_runs_and_goes_by_them() -> None:
    """Trial 1 was lucky: over the confirmation the published setting is better."""
    lucky = search("lucky", (0.7, 10), (0.1, 20), (0.9, 70))
    runs = [again(of, original, 1, probe, **CPU) for of, probe in ((0, 0.4), (1, 0.6)) for original in (1, 2, 3)]
    (then, _), note = cost.at_equal([sweep("lucky", [*lucky.rows, *runs]), search("other", (0.9, 30))], "images")
    (entry,) = rank([then])
    assert (entry.tuned["trial"], entry.score.runs) == (0, 3)
    assert "single runs: other" in note


def test_what_had_nothing_by_then_is_named_and_left_out() -> None:
    then, note = cost.at_equal([search("quick", (0.5, 10)), search("slow", (0.1, 11), (0.1, 1))], "images")
    assert [entry.sweep.name for entry in rank(then)] == ["quick"]
    assert note.endswith("Nothing had completed by then: slow.")


def test_a_search_that_failed_is_not_the_cheapest() -> None:
    failed = sweep("failed", [row(0, None, None, status="error", images=0, **CPU)])
    then, note = cost.at_equal([failed, search("m", (0.5, 10), (0.4, 10))], "images")
    assert "20 images each, which is all that m spent" in note
    assert [entry.sweep.name for entry in rank(then)] == ["m"]
    assert cost.at_equal([failed], "images") == ([failed], "")


def test_hours_compare_on_one_kind_of_processor_alone() -> None:
    cheap, dear = search("cheap", (0.5, 9)), search("dear", (0.5, 1), (0.4, 1))
    then, note = cost.at_equal([cheap, dear], "hours")
    assert [len(one.rows) for one in then] == [1, 1]
    assert "2.00 hours of a processor each, which is all that cheap spent" in note
    with pytest.raises(InputError, match=r"different processors do not compare \(EPYC, H100\): --at-equal images"):
        cost.at_equal([cheap, search("gpu", (0.5, 9), **GPU)], "hours")
    with pytest.raises(InputError, match="old do not say what its trials took"):
        cost.at_equal([cheap, sweep("old", [row(0, 0.9, 0.5, images=3)])], "hours")
    with pytest.raises(InputError, match="did you mean 'hours'"):
        cost.at_equal([cheap], "hour")
    with pytest.raises(InputError, match="free spent no images"):
        cost.at_equal([cheap, search("free", (0.5, 0))], "images")


def printed(*sweeps: SweepResults) -> list[str]:
    console = Console(width=80, file=io.StringIO())
    console.print(tables.ranking(rank(sweeps), console.width))
    return console.file.getvalue().splitlines()


def test_a_ranking_says_the_hours_of_each_search_within_80_columns() -> None:
    """Twelve places that may all be any, as long names as raymu's own have, and hours that are not all known."""
    everything = {"test_forget_acc": 1.0, "test_attack_auc": 0.9946, "test_score": 0.5, "restarts": 1, "wall_s": 9e4}
    sweeps = [
        sweep(
            f"{'gradient_ascent':.13}{n:02d}",
            [
                row(0, 1.0, 0.9, **CPU | everything),
                *(again(0, o, 1, 0.8, keep=1.0, **CPU | everything) for o in (1, 2, 3)),
            ],
        )
        for n in range(12)
    ]
    lines = printed(*sweeps)
    assert max(map(len, lines)) <= 80
    cells = [line.split() for line in lines if "gradient_asce" in line]
    assert [line[1] for line in cells] == ["(1-12)"] * 12
    assert {(*line[-5:],) for line in cells} == {("100.0", "100.0", "0.9946", "80.0", ">100")}
    assert {line[3] for line in cells} == {"0.500"}


def test_hours_that_rows_do_not_say_are_none() -> None:
    lines = printed(sweep("old", [row(0, 0.9, 0.5)]))
    assert next(line for line in lines if " old " in line).split()[-1] == "-"
    ranked = rank([search("a", (0.9, 1)), search("b", (0.9, 1), (0.5, 1))])
    assert cost.hours([entry.sweep for entry in ranked]) == (["CPU h"], [["4.00"], ["2.00"]])
    assert not any(heading.endswith(" h") for heading in tables.ranking_headings(ranked))  # nor in LaTeX
