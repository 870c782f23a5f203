"""The budget, and the settings of a search that does not learn."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import kstest

from raymu.errors import InputError
from raymu.method import Range
from raymu.methods.neggrad_plus import NegGradPlus
from raymu.methods.random_label import RandomLabel
from raymu.methods.unsir import UNSIR
from raymu.protocol import Confirmation, Protocol
from raymu.results.identity import CONFIRMATIONS
from raymu.tuning.samplers import KNOWN
from raymu.tuning.sweep import Sweep

RANGES = {"lr": Range(1e-4, 1.0, "log"), "epochs": Range(1, 4, "int"), "share": Range(0.0, 2.0, "linear")}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trials": 0}, "trials has to be at least 1"),
        ({"max_epochs": 0}, "max_epochs has to be at least 1"),
        ({"max_images": -1}, "max_images has to be at least 1"),
        ({"max_hours": 0}, "max_hours has to be above 0, a number, not 0"),
        ({"max_hours": -0.5}, "max_hours has to be above 0"),
        ({"max_hours": float("nan")}, "max_hours has to be above 0"),
        ({"max_hours": "soon"}, "max_hours has to be above 0, a number, not 'soon'"),
        ({"patience": 0}, "patience has to be at least 1"),
        ({"patience": 3, "searcher": "tpe"}, "searcher tpe expects nothing of a trial: only gp has patience"),
        ({"trials": 600_000, "search_seeds": (0, 1)}, "trials have to be at most 500,000 a search"),
        ({"search_seeds": ()}, "seeds of at least 0"),
        ({"search_seeds": (0, -1)}, "seeds of at least 0"),
        ({"search_seeds": (1, 1)}, "not all different"),
        ({"objective": "hmeen"}, "did you mean 'hmean'"),
        ({"searcher": "gird"}, "did you mean 'grid'"),
        ({"scheduler": "ash"}, "did you mean 'asha'"),
        ({"searcher": "nsga2"}, "nsga2 is for the objective pareto"),
        ({"objective": "pareto"}, "gp maximises one score: with the objective pareto take tpe or nsga2"),
        ({"objective": "pareto", "searcher": "tpe", "scheduler": "asha"}, "it has to be none"),
    ],
)
def test_a_protocol_that_cannot_work_is_refused(fields, message) -> None:
    with pytest.raises(InputError, match=message):
        Protocol(**fields)


@pytest.mark.parametrize("fields", [{"seeds": -1}, {"top": 0}, {"originals": 2}, {"forget": ((1,),)}])
def test_a_confirmation_that_cannot_work_is_refused(fields) -> None:
    with pytest.raises(InputError, match="at least"):
        Confirmation(**fields)


def test_rungs() -> None:
    assert Protocol(scheduler="asha").rungs(10) == [1, 3, 9]
    assert Protocol(scheduler="asha").rungs(10, comparable_from=2) == [3, 9]
    assert Protocol(scheduler="median").rungs(5) == [1, 2, 3, 4]
    assert Protocol(scheduler="median").rungs(5, comparable_from=3) == [3, 4]
    assert Protocol().rungs(10) == []


@pytest.mark.parametrize("kind", ["random", "quasi_random"])
def test_a_design_is_even_in_its_ranges_and_depends_on_the_seed_alone(kind) -> None:
    settings = KNOWN[kind](RANGES, 400, 3)
    assert settings == KNOWN[kind](RANGES, 400, 3) != KNOWN[kind](RANGES, 400, 4)
    assert all(setting[name] in search for setting in settings for name, search in RANGES.items())
    exponents = np.log10([setting["lr"] for setting in settings])
    assert kstest(exponents, "uniform", (-4, 4)).pvalue > 0.01
    assert kstest([setting["share"] for setting in settings], "uniform", (0, 2)).pvalue > 0.01
    counts = np.bincount([setting["epochs"] for setting in settings])[1:]
    assert counts.min() > 70


def test_a_shorter_design_begins_a_longer_one() -> None:
    """So that more trials add to fewer; Sobol's points come in the same order."""
    for kind in ("random", "quasi_random"):
        assert KNOWN[kind](RANGES, 200, 0)[:13] == KNOWN[kind](RANGES, 13, 0)


def test_quasi_random_points_leave_smaller_gaps_than_random_ones() -> None:
    gaps = [
        np.diff(np.sort([setting["share"] for setting in KNOWN[kind](RANGES, 64, 0)])).max()
        for kind in ("quasi_random", "random")
    ]
    assert gaps[0] < gaps[1]


def test_a_grid_has_both_ends_and_as_many_values_as_fit() -> None:
    settings = KNOWN["grid"](RANGES, 40, 0)
    values = {name: sorted({setting[name] for setting in settings}) for name in RANGES}
    assert [len(found) for found in values.values()] == [4, 3, 3]
    assert values["lr"] == pytest.approx([1e-4, 1e-3, 1e-2, 1.0])  # a value more halves a gap
    assert (values["share"], values["epochs"][::2]) == ([0.0, 1.0, 2.0], [1, 4])
    assert len(settings) == 36 == len({tuple(setting.values()) for setting in settings})
    with pytest.raises(InputError, match="needs 9 trials at least"):
        KNOWN["grid"](RANGES, 7, 0)


def test_an_int_range_is_not_cut_finer_than_it_is() -> None:
    settings = KNOWN["grid"]({"epochs": Range(1, 3, "int")}, 50, 0)
    assert [setting["epochs"] for setting in settings] == [1, 3, 2]


def test_the_cap_on_epochs_holds_for_all_phases_together(digits) -> None:
    capped = Protocol(max_epochs=4)
    assert Sweep(RandomLabel, digits, capped).ranges["epochs"].high == 4
    assert Sweep(RandomLabel, digits, Protocol(max_epochs=400)).ranges["epochs"].high == 10
    phases = Sweep(UNSIR, digits, capped)
    assert [phases.ranges[name].high for name in ("impair_epochs", "repair_epochs")] == [2, 2]
    assert phases.longest == 4
    assert phases.published["impair_epochs"] == 3  # trial 0 is what the paper says
    with pytest.raises(InputError, match="max_epochs 3 leaves unsir no range of impair_epochs"):
        Sweep(UNSIR, digits, Protocol(max_epochs=3))


def test_the_numbers_of_the_trials_of_several_searches(digits) -> None:
    sweep = Sweep(NegGradPlus, digits, Protocol(trials=6, searcher="grid", search_seeds=(5, 7)))
    assert [list(sweep.trials(seed)) for seed in (5, 7)] == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]  # a grid of two by two


def test_what_is_confirmed(digits) -> None:
    confirmation = Confirmation(seeds=2, originals=2, top=2, forget=((3,), (0, 1)))
    sweep = Sweep(RandomLabel, digits, Protocol(trials=3, search_seeds=(0, 4), confirmation=confirmation))
    rows = [
        {
            "trial_id": f"m-{trial:04d}",
            "trial": trial,
            "source": "search" if trial > 1 else "published",
            "status": "completed",
            "score": score,
            "config": {"lr": float(trial // 2)},
            "scenario_hash": "s",
            "objective": "hmean",
            "protocol_hash": "p",
        }
        for trial, score in enumerate([0.1, 0.1, 0.5, 0.3, 0.4, 0.6])
    ]
    tasks = sweep.confirmations(rows)
    assert [task.number for task in tasks] == list(range(CONFIRMATIONS, CONFIRMATIONS + 2 * 3 * 3 * 2))
    assert {task.seed for task in tasks} == {5, 6}  # fresh
    assert {task.scenario.model_seed for task in tasks} == {1, 2}  # fresh, too
    assert {task.scenario.forget for task in tasks} == {digits.forget, (3,), (0, 1)}
    assert {task.scenario.seed for task in tasks} == {digits.seed}  # the same split
    assert {task.confirms for task in tasks} == {"m-0005", "m-0002", "m-0000"}  # the two best, and the published
    assert [task.projected for task in tasks].index(True) == 0
    assert sum(task.projected for task in tasks) == 1
    found_again = [row | {"score": 0.9} if row["trial"] == 1 else row for row in rows]  # by the other search
    again = {task.confirms for task in sweep.confirmations(found_again)}
    assert again == {"m-0005", "m-0000"}  # each setting once
    on_the_same = dataclasses.replace(sweep, protocol=Protocol(trials=3, confirmation=Confirmation(seeds=1)))
    assert {task.scenario for task in on_the_same.confirmations(rows)} == {digits}
    assert dataclasses.replace(sweep, protocol=Protocol(trials=3)).confirmations(rows) == []
    assert digits.model_seed == 0  # it is what it was
