"""The searcher gp, on columns that are known in closed form."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, logit

from raymu.errors import InputError
from raymu.method import Range
from raymu.objective import HMEAN, REMOVAL, Objective
from raymu.protocol import Protocol
from raymu.tuning.samplers import Chosen, sampler
from raymu.tuning.samplers.gp import GP, INITIAL, LEAST, _elsewhere, _Process

SPACE = {"lr": Range(1e-5, 1e-1, "log"), "share": Range(0.0, 1.0, "linear"), "epochs": Range(1, 10, "int")}
Columns = Callable[[Mapping[str, float]], dict[str, Any]]
REFERENCES = {
    "original": {"val_retain_acc": 0.95, "val_attack_auc": 0.99, "val_forget_acc": 0.95},
    "retrained": {"val_retain_acc": 0.95, "val_attack_auc": 0.8, "val_forget_acc": 0.0},
    "dead": {"val_retain_acc": 0.1, "val_attack_auc": 0.5, "val_forget_acc": 0.1},
}


def sigmoid(value: float) -> float:
    return float(1 / (1 + np.exp(-value)))


def unlearning(setting: Mapping[str, float]) -> dict[str, float]:
    """Columns of a made-up method. It forgets more with a higher rate, share or number of epochs, and loses retain
    accuracy a little later. The score is high on a narrow ridge between the two, and 0 elsewhere.
    """
    strength = np.log10(setting["lr"]) + 0.5 * np.log10(setting["epochs"]) + setting["share"]
    return {
        "val_retain_acc": 0.96 * sigmoid(-6 * (strength + 1.2)),
        "val_attack_auc": 0.8 + 0.19 * sigmoid(-6 * (strength + 2.0)),
        "val_forget_acc": 0.95 * sigmoid(-6 * (strength + 2.2)),
    }


def row(setting: Mapping[str, float], columns: Columns, objective: Objective, status: str = "completed") -> dict:
    said = columns(setting) if status != "diverged" else {}
    score = objective.seen(said, REFERENCES) if said else 0.0
    return {"config": dict(setting), "status": status, "score": score, "curve": [[1, score]], "shorter": [], **said}


def search(searcher: str, seed: int, trials: int, columns: Columns, objective: Objective = REMOVAL) -> list[dict]:
    done: list[dict] = []
    learner = sampler(Protocol(trials, searcher=searcher, objective=objective), seed, SPACE, done, REFERENCES)
    for place in range(1, trials):
        done.append(row(learner.suggest(place), columns, objective))
    return done


def best(rows: list[dict]) -> float:
    return max(one["score"] for one in rows)


def test_a_narrow_ridge_is_found_in_a_quarter_of_the_trials() -> None:
    """Three seeds each, 16 trials against 64 at random."""
    found = [best(search("gp", seed, 16, unlearning)) for seed in range(3)]
    at_random = [best(search("random", seed, 64, unlearning)) for seed in range(3)]
    assert np.median(found) > np.median(at_random)


def test_what_runs_is_known_and_nothing_else_counts() -> None:
    done = search("gp", 0, 12, unlearning)

    def suggested(place: int = 12, running: tuple[Mapping[str, float], ...] = ()) -> Mapping[str, float]:
        return sampler(Protocol(), 0, SPACE, done, REFERENCES).suggest(place, running)

    alone = suggested()
    assert alone == suggested()
    assert suggested(running=(alone,)) != alone
    outside = alone | {"lr": 0.0}  # as a published setting may lie
    assert suggested(running=(outside,)) == alone


def test_where_trials_diverge_none_is_suggested() -> None:
    done = [row({"lr": lr, "share": share, "epochs": 5}, unlearning, REMOVAL, "diverged" if lr > 1e-3 else "completed")
            for lr in (1e-5, 1e-4, 5e-4, 5e-3, 5e-2) for share in (0.1, 0.5, 0.9)]  # fmt: skip
    learner = sampler(Protocol(), 0, SPACE, done, REFERENCES)
    assert np.median([learner.suggest(place)["lr"] for place in range(5, 15)]) < 2e-3


def test_what_has_an_error_or_lies_outside_is_not_learnt() -> None:
    done = search("gp", 0, 8, unlearning)
    before = sampler(Protocol(), 0, SPACE, done, REFERENCES).suggest(8)
    more = [done[0] | {"config": done[0]["config"] | {"lr": 1.0}}, done[0] | {"status": "error"}]
    assert sampler(Protocol(), 0, SPACE, done + more, REFERENCES).suggest(8) == before


def test_where_trials_choose_their_epochs_the_ends_that_are_learnt_are_runs_of_their_own() -> None:
    """Runs of 1, 2, 4 and 8 epochs, the longest run and the best one are learnt."""
    chosen, searched = (
        Chosen("epochs", SPACE["epochs"], lambda setting: 1),
        {name: SPACE[name] for name in ("lr", "share")},
    )
    told, alone = [], []
    for place, setting in enumerate(one["config"] for one in search("gp", 0, 9, unlearning)):
        best, last = 3 + place % 4, 6 + place % 4
        ends = [setting | {"epochs": epochs} for epochs in range(1, last + 1)]
        shorter = [{"epochs": end["epochs"]} | unlearning(end) for end in ends]
        told.append(row(ends[best - 1], unlearning, REMOVAL) | {"shorter": shorter})
        alone += [row(end, unlearning, REMOVAL) for end in ends if end["epochs"] in {1, 2, 4, 8, best, last}]
    learners = [sampler(Protocol(), 0, searched, done, REFERENCES, chosen) for done in (told, alone)]
    suggested = [learner.suggest(9) for learner in learners]
    assert suggested[0] == suggested[1]
    assert suggested[0].keys() == searched.keys()
    assert learners[0].gain(9, suggested[0]) == learners[1].gain(9, suggested[1])


def test_a_setting_is_worth_what_its_best_epoch_is() -> None:
    """The score is one accuracy, which is high in the second epoch alone, at a share near 0.7."""

    def columns(setting: Mapping[str, float]) -> dict[str, float]:
        share, epochs = setting["share"] - 0.7, np.log2(setting["epochs"]) - 1
        return {"val_retain_acc": np.exp(-8 * share**2 - 4 * epochs**2)}

    only = Objective(lambda retain_acc: retain_acc, name="only")
    chosen, searched, done = Chosen("epochs", SPACE["epochs"], lambda setting: 1), {"share": SPACE["share"]}, []
    learner = sampler(Protocol(objective=only), 0, searched, done, REFERENCES, chosen)
    for place in range(1, 10):
        ends = [{**learner.suggest(place), "epochs": epochs} for epochs in range(1, 11)]
        shorter = [{"epochs": end["epochs"]} | columns(end) for end in ends]
        done.append(row(ends[1], columns, only) | {"shorter": shorter})
    assert best(done) > 0.98
    assert abs(done[-1]["config"]["share"] - 0.7) < 0.05


def test_the_expected_gain_is_an_integral_over_what_is_not_known() -> None:
    """The score is one accuracy; its improvement and its noise are integrals over normal distributions."""

    def kept(retain_acc: float) -> float:
        return retain_acc

    only = Objective(kept)
    done = search("gp", 0, 9, unlearning, only)
    learner = sampler(Protocol(objective=only), 0, SPACE, done, REFERENCES)
    assert isinstance(learner, GP)
    setting = {"lr": 3e-5, "share": 0.3, "epochs": 4}
    running = ({"lr": 1e-4, "share": 0.8, "epochs": 7},)
    said = np.array([one["val_retain_acc"] for one in done])
    log_odds = logit((said + LEAST) / (1 + 2 * LEAST))
    places, weights = np.polynomial.hermite_e.hermegauss(60)

    def scores(mean: float, error: float) -> np.ndarray:
        found = (mean + error * places) * log_odds.std() + log_odds.mean()
        return np.clip((1 + 2 * LEAST) * expit(found) - LEAST, 0, 1)

    def expected(values: np.ndarray) -> float:
        return float(values @ weights / weights.sum())

    learnt = learner._up_to_date()
    (process,) = learnt._processes
    (mean,), (error,) = process.at(learner._points([setting]), learner._points(running))
    again = scores((log_odds[said.argmax()] - log_odds.mean()) / log_odds.std(), np.sqrt(process.noise))
    noise = np.sqrt(expected(again**2) - expected(again) ** 2)
    gain = expected(np.maximum(scores(mean, error) - said.max(), 0)) / noise
    assert learner.gain(9, setting, running) == pytest.approx(gain, rel=0.25)
    assert learner.gain(9, setting, (*running, setting)) < learner.gain(9, setting, running)
    assert learner.gain(INITIAL, setting) is None  # drawn before anything was learnt

    one = done.pop(4) | {"trial": 4}
    (mean,), (error,) = process.at(learner._points([one["config"]]), learner._points([]))
    again = expected(np.maximum(scores(mean, np.sqrt(error**2 + process.noise)), 0))
    assert learner.expected(one) == pytest.approx(again, abs=0.02)
    assert learner.expected(one | {"status": "stopped"}) is None
    assert learner.expected(one | {"config": setting | {"lr": 1.0}}) is None  # outside, as a published setting may lie


def test_on_other_images_an_accuracy_has_twice_its_binomial_variance() -> None:
    said = {"val_retain_acc": 0.9, "val_attack_auc": 0.8, "val_forget_acc": 0.02}
    images = {"val_retain_images": 400, "val_forget_images": 50}
    generator = np.random.default_rng(0)
    found = [_elsewhere(said, images, generator.normal(size=3).tolist()) for _ in range(20_000)]
    kept, forgotten = (np.array([one[name] for one in found]) for name in ("val_retain_acc", "val_forget_acc"))
    assert kept.mean() == pytest.approx(0.9, abs=1e-3)
    assert kept.var() == pytest.approx(2 * 0.9 * 0.1 / 400, rel=0.05)
    assert forgotten.min() == 0.0  # it cannot be less
    assert {one["val_attack_auc"] for one in found} == {0.8}
    assert _elsewhere(said, {}, [1.0, 1.0, 1.0]) == said  # of rows that do not say how many


def test_a_lucky_trial_is_expected_to_do_as_those_around_it() -> None:
    only = Objective(lambda retain_acc: retain_acc, name="only")
    searched = {"share": SPACE["share"]}
    generator = np.random.default_rng(0)

    def told(number: int, share: float, kept: float) -> dict[str, Any]:
        return row({"share": share}, lambda _: {"val_retain_acc": kept}, only) | {"trial": number}

    around = [
        told(number, share, 0.5 + 0.05 * generator.normal()) for number, share in enumerate(np.linspace(0, 1, 20))
    ]
    lucky, steady = told(20, 0.52, 0.95), told(21, 0.3, 0.55)
    learner = sampler(Protocol(objective=only), 0, searched, around, REFERENCES)
    assert 0.45 < learner.expected(lucky) < 0.75
    assert abs(learner.expected(steady) - 0.52) < 0.06


def test_an_objective_that_has_no_score_for_a_value_is_said_in_a_line() -> None:
    def picky(retain_acc: float) -> float:
        return retain_acc if retain_acc in known else 1 // 0

    only = Objective(picky)
    known = {0.2, 0.4, 0.6, 0.8}
    done = [
        row({"share": kept}, lambda _, kept=kept: {"val_retain_acc": kept}, only) | {"trial": number}
        for number, kept in enumerate(sorted(known))
    ]
    learner = sampler(Protocol(objective=only), 0, {"share": SPACE["share"]}, done, REFERENCES)
    with pytest.raises(InputError, match=r"objective picky has no score for val_retain_acc 0\.\d+: ZeroDivisionError"):
        learner.suggest(9)
    with pytest.raises(InputError, match="objective picky"):
        learner.expected(done.pop())


def test_nothing_is_expected_where_no_score_is_known() -> None:
    done = [row({"lr": 1e-1, "share": n / 9, "epochs": 5}, unlearning, REMOVAL, "diverged") for n in range(9)]
    learner = sampler(Protocol(), 0, SPACE, done, REFERENCES)
    assert learner.gain(9, learner.suggest(9)) is None


def test_a_small_space_that_is_known_is_tried_again() -> None:
    space = {"epochs": Range(1, 3, "int")}
    done = [row({"lr": 1e-3, "share": 0.5, "epochs": n}, unlearning, REMOVAL) for n in (1, 2, 3)]
    assert sampler(Protocol(), 0, space, done, REFERENCES).suggest(5)["epochs"] in (1, 2, 3)


def test_an_objective_of_the_users_reads_a_metric_of_the_users() -> None:
    """The metric is a distance and no share. The objective wants it to be 40."""

    def near(distance: float) -> float:
        return 1 / (1 + abs(distance - 40))

    def columns(setting: Mapping[str, float]) -> dict[str, float]:
        return {"val_distance": 100 * (5 + np.log10(setting["lr"])) / 4}

    found = search("gp", 0, 14, columns, Objective(near))
    assert best(found) > best(search("random", 0, 14, columns, Objective(near)))
    assert abs(max(found, key=lambda one: one["score"])["val_distance"] - 40) < 2


def test_hmean_needs_no_reference() -> None:
    def columns(setting: Mapping[str, float]) -> dict[str, float]:
        return {"val_retain_acc": 1 - setting["share"], "val_probe_forget_acc": setting["epochs"] / 10}

    done: list[dict] = []
    learner = sampler(Protocol(objective=HMEAN), 0, SPACE, done)
    for place in range(1, 12):
        done.append(row(learner.suggest(place), columns, HMEAN))
    assert best(done) > 0.85  # the highest is 0.947


def test_a_process_is_that_of_the_text_book() -> None:
    """Mean and variance by the formula (Rasmussen and Williams, 2006, equations 2.23 and 2.24)."""
    generator = np.random.default_rng(0)
    points, new, waiting = generator.random((6, 2)), generator.random((3, 2)), generator.random((2, 2))
    values = generator.normal(size=6)
    process = _Process(points, values)
    mean, error = process.at(new, waiting)

    def kernel(one: np.ndarray, other: np.ndarray) -> float:
        distance = np.sqrt(5) * np.linalg.norm((one - other) / process._lengths)
        return float((1 + distance + distance**2 / 3) * np.exp(-distance))

    for place, point in enumerate(new):
        for known, expected in ((points, mean[place]), (np.vstack([points, waiting]), error[place] ** 2)):
            covariance = np.array([[kernel(one, other) for other in known] for one in known])
            covariance += process.noise * np.eye(len(known))
            across = np.array([kernel(point, one) for one in known])
            found = across @ np.linalg.inv(covariance)
            assert np.isclose(found @ values if len(known) == 6 else 1 - found @ across, expected)
