"""Settings that Gaussian processes suggest."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.special import expit, logit
from sklearn.gaussian_process.kernels import Matern

from raymu.errors import InputError, described
from raymu.evaluation.metrics import columns
from raymu.method import Range
from raymu.objective import References
from raymu.protocol import Protocol
from raymu.results.comparison import binomial
from raymu.row import Row
from raymu.tuning.samplers import quasi_random
from raymu.tuning.samplers.base import Chosen, Sampler, Setting, lies_in, place_in, setting_at

Array = NDArray[np.float64]
Places = NDArray[np.intp]

INITIAL = 4  # settings of a Sobol sequence, which come first
FEWEST = 3  # rows without which nothing is known
MOST = 128  # rows that are learnt at most: the best and the last ones
CANDIDATES = 512  # settings of which one is suggested: half from anywhere, half near the BEST
BEST = 3
NEAR = 0.1  # standard deviation of the step to a candidate nearby, in shares of the ranges
FINALISTS = 64  # candidates whose expected improvement is computed
DRAWS = 32
GAIN_DRAWS = 256  # for what is expected of one setting
LENGTHS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)  # over which a column may change, in shares of a range
MIDDLING = 0.8  # a length that is likelier beforehand than others
NOISES = (1e-3, 1e-2, 1e-1)  # variance of a column that no setting explains, as a part of all
LEAST = 0.005  # at which the log-odds of a share end
SHARES = frozenset(columns(rung=True))


class GP(Sampler):
    """The setting with the highest expected improvement of the score, where each column that the objective reads is a
    Gaussian process over the settings (Astudillo and Frazier, ICML 2019): a score may be 0 nearly everywhere and rise
    steeply, while accuracies change smoothly and show from a few trials where it will be high.

    A trial that runs is known by its setting: what it will say is no news any more, so others are tried. A diverged one
    says what a dead network does, a stopped one what it said when it was stopped; what has to be improved on is the
    best of those that completed.

    Where a trial chooses its epochs, the columns are processes over these, too, in their logarithm: from a trial its
    best and its last epoch are learnt, and epochs 1, 2, 4, ... A setting's score is then the highest of these epochs.

    Lengths and noise of a process are those among a few that make what is known most likely: last digits, which differ
    between CPUs, decide nothing.

    Args:
        seed: of the search.
        ranges: the search space.
        done: the rows of this search so far; those that are appended later are learnt, too.
        references: what the objective compares with, and the "dead" network.
        chosen: what every trial chooses by itself; None: there is nothing.
    """

    def __init__(
        self,
        protocol: Protocol,
        seed: int,
        ranges: Mapping[str, Range],
        done: Sequence[Row],
        references: References,
        chosen: Chosen | None = None,
    ) -> None:
        self._seed, self._ranges, self._done, self._chosen = seed, ranges, done, chosen
        self._ends, self._axes = [0], dict(ranges)
        if chosen:
            self._ends = _powers(chosen.search)
            self._axes[chosen.name] = Range(max(1, chosen.search.low), chosen.search.high, "log")
        self._objective, self._scorer = protocol.objective, protocol.objective.scorer(references)
        self._dead = self._objective.own(references.get("dead", {}))
        self._read, self._learnt = 0, _Learnt([], np.empty(0), np.empty((0, len(ranges))), np.empty(0))

    def suggest(self, place: int, running: Sequence[Setting] = ()) -> Setting:
        """See Sampler."""
        learnt, generator = self._up_to_date(), np.random.default_rng((self._seed, place))
        if self._is_first(place):
            return self._initial(place)
        begun = self._within(running)
        taken = {self._key(setting) for setting in (*(row["config"] for row in self._done), *begun)}
        found = [one for one in self._candidates(learnt, generator) if self._key(one) not in taken]
        if not found:  # all of a small space is known
            return self._initial(place)
        means, errors = self._at(found, begun)

        def drawn(places: Places, deviations: Array) -> Array:
            """Scores of some candidates, each column being its mean plus `deviations` standard deviations."""
            return self._scores(means[..., places] + deviations * errors[..., places])

        everyone, width = np.arange(len(found)), means.shape[1]
        likely = drawn(everyone, np.zeros((width, 1)))
        lucky = drawn(everyone, generator.normal(size=(width, len(found))))
        finalists = np.union1d(_highest(likely, FINALISTS // 2), _highest(lucky, FINALISTS // 2))
        draws = [drawn(finalists, generator.normal(size=(width, 1))) for _ in range(DRAWS)]
        gains = np.maximum(np.array(draws) - learnt.best, 0.0).mean(axis=0)
        return found[finalists[np.argmax(gains)] if gains.any() else np.argmax(likely)]

    def gain(self, place: int, setting: Setting, running: Sequence[Setting] = ()) -> float | None:
        """See Sampler."""
        learnt, generator = self._up_to_date(), np.random.default_rng((self._seed, place, 1))
        if self._is_first(place) or not learnt.best:
            return None
        means, errors = self._at([setting], self._within(running))
        deviations = generator.normal(size=(means.shape[1], GAIN_DRAWS))
        gain = np.maximum(self._scores(means + deviations * errors) - learnt.best, 0.0).mean()
        noise = self._scores(learnt.best_again(deviations)[None]).std()
        return float(gain / noise) if noise else None

    def expected(self, row: Row) -> float | None:
        """See Sampler. It is less than a lucky trial reached, as those near it say, and its epochs before and after. On
        other images accuracies would be others, by the binomial error of these and of those that were looked at.
        """
        if row["status"] != "completed" or not lies_in(self._ranges, row["config"]):
            return None
        learnt, generator = self._learn([*self._done, row]), np.random.default_rng((self._seed, row["trial"]))
        if not learnt.said:
            return None
        means, errors = learnt.again(self._points([row["config"]]))
        runs = learnt.values(means + generator.normal(size=(len(means), GAIN_DRAWS)) * errors)
        deviations = generator.normal(size=(GAIN_DRAWS, len(means))).tolist()
        scores = [self._score(_elsewhere(said, row, of)) for said, of in zip(runs, deviations, strict=True)]
        return float(np.maximum(scores, 0.0).mean())

    def _score(self, said: Mapping[str, Any]) -> float:
        """Score of some columns, which no trial may have had.

        Raises:
            InputError: the user's objective has none.
        """
        try:
            return self._scorer(said)
        except Exception as error:  # whatever it raises
            values = ", ".join(f"{name} {value:.4g}" for name, value in said.items())
            raise InputError(
                f"objective {self._objective.name} has no score for {values}: {described(error)} (the searcher gp asks"
                " about values that no trial has had, too)"
            ) from error

    def _up_to_date(self) -> "_Learnt":
        if self._read < len(self._done):
            self._read, self._learnt = len(self._done), self._learn(self._done)
        return self._learnt

    def _is_first(self, place: int) -> bool:
        """Whether a setting is drawn before anything is learnt."""
        return place <= INITIAL or len(self._up_to_date().said) < FEWEST

    def _within(self, settings: Sequence[Setting]) -> list[Setting]:
        """Settings that lie in the space."""
        return [one for one in settings if lies_in(self._ranges, one)]

    def _at(self, candidates: Sequence[Setting], running: Sequence[Setting]) -> tuple[Array, Array]:
        """Means and standard deviations (ends, columns, m) at m candidates, once the running ones have said theirs."""
        found = self._learnt.at(*(self._points(self._ended(some)) for some in (candidates, running)))
        means, errors = (one.reshape(len(one), len(self._ends), -1).swapaxes(0, 1) for one in found)
        return means, errors

    def _ended(self, settings: Sequence[Setting]) -> Sequence[Setting]:
        """Settings with ends that their trials may choose, each end for all of them."""
        if self._chosen is None:
            return settings
        name, least = self._chosen.name, list(map(self._chosen.least, settings))
        return [{**one, name: max(end, low)} for end in self._ends for one, low in zip(settings, least, strict=True)]

    def _scores(self, scaled: Array) -> Array:
        """Scores (m,) of m trials by their scaled columns (ends, columns, m), the highest of all ends."""
        scores = [[self._score(values) for values in self._learnt.values(end)] for end in scaled]
        highest: Array = np.max(scores, axis=0)
        return highest

    def _learn(self, rows: Sequence[Row]) -> "_Learnt":
        """Knowledge from all rows but errors and settings outside the space."""
        seen = itertools.chain.from_iterable(map(self._with_ends, rows))
        within = [row for row in seen if row["status"] != "error" and lies_in(self._ranges, row["config"])]
        pairs = [(row, self._dead if row["status"] == "diverged" else self._objective.own(row)) for row in within]
        known = [(row, said) for row, said in pairs if said and None not in said.values()]
        scores = np.array([self._score(said) for _, said in known])
        if len(known) > MOST:
            kept = sorted({*_highest(scores, MOST // 2).tolist(), *range(len(known) - MOST // 2, len(known))})
            known, scores = [known[n] for n in kept], scores[kept]
        completed = np.array([row["status"] == "completed" for row, _ in known])
        points = self._points([row["config"] for row, _ in known])
        return _Learnt([said for _, said in known], scores, points, completed)

    def _with_ends(self, row: Row) -> list[Row]:
        """Rows of the runs that a trial shows and that are learnt; the trial's own where it shows none."""
        if self._chosen is None or not (shown := row["shorter"]):
            return [row]
        name, config = self._chosen.name, row["config"]
        learnt = {*self._ends, config[name], shown[-1][name]}
        return [row | end | {"config": config | {name: end[name]}} for end in shown if end[name] in learnt]

    def _initial(self, place: int) -> Setting:
        return quasi_random.settings(self._ranges, place, self._seed)[-1]

    def _key(self, config: Setting) -> tuple[float, ...]:
        return tuple(config[name] for name in self._ranges)

    def _points(self, settings: Sequence[Setting]) -> Array:
        """Shares of the ranges (n, d) at which settings lie, the last one of what is chosen."""
        shares = [[place_in(search, one[name]) for name, search in self._axes.items()] for one in settings]
        return np.array(shares).reshape(len(settings), len(self._axes))

    def _candidates(self, learnt: "_Learnt", generator: np.random.Generator) -> Iterator[Setting]:
        """Settings anywhere in the space, and near the best ones, of which half of the hyperparameters are kept."""
        count, size = CANDIDATES // 2, len(self._ranges)
        steps = generator.normal(0, NEAR, (count, size)) * (generator.random((count, size)) < max(0.5, 1 / size))
        best = learnt.points[_highest(learnt.scores, BEST), :size]
        near = np.clip(best[generator.integers(len(best), size=count)] + steps, 0, 1)
        for point in (*generator.random((count, size)), *near):
            yield setting_at(self._ranges, point)


def _powers(search: Range) -> list[int]:
    """Powers of two within a range, and its ends."""
    low, high = int(search.low), int(search.high)
    return sorted({low, *(2**n for n in range(high.bit_length()) if low < 2**n < high), high})


def _elsewhere(said: Mapping[str, float], row: Row, deviations: Sequence[float]) -> dict[str, float]:
    """Columns as they would be on other images than the row's, as many."""
    found = dict(said)
    for (name, value), deviation in zip(said.items(), deviations, strict=True):
        count = row.get("val_retain_images" if "retain" in name else "val_forget_images")
        if name.endswith("_acc") and count:
            error = math.sqrt(2 * binomial(value, 1, 1 / count))
            found[name] = min(max(0.0, value + deviation * error), 1.0)
    return found


def _highest(scores: Array, count: int) -> Places:
    """Places of the highest scores, of equal ones the first."""
    found: Places = np.argsort(-scores, kind="stable")[:count]
    return found


class _Learnt:
    """Knowledge from n trials: the columns that each `said`, its score and its point (n, d). A suggestion ought to
    improve on the `best` score of those that completed.
    """

    def __init__(self, said: Sequence[Mapping[str, float]], scores: Array, points: Array, completed: Array) -> None:
        self.said, self.scores, self.points = said, scores, points
        self._completed = scores * completed
        self.best = float(max(self._completed, default=0.0))
        self._names = list(said[0]) if said else []
        self._columns = [_Column(name, np.array([one[name] for one in said])) for name in self._names]
        self._processes = [_Process(points, column.scaled) for column in self._columns]

    def at(self, candidates: Array, waiting: Array) -> tuple[Array, Array]:
        """Means and standard deviations (columns, m) at candidates (m, d), once there is an answer at waiting points
        (w, d), too.
        """
        found = [process.at(candidates, waiting) for process in self._processes]
        means, errors = (np.array(some) for some in zip(*found, strict=True))
        return means, errors

    def again(self, points: Array) -> tuple[Array, Array]:
        """Means and standard deviations (columns, m) of what runs at points (m, d) would say, noise included."""
        means, errors = self.at(points, points[:0])
        noises = np.array([[process.noise] for process in self._processes])
        return means, np.sqrt(errors**2 + noises)

    def best_again(self, deviations: Array) -> Array:
        """Scaled columns (columns, m) of the best trial, had it run m times more.

        Args:
            deviations: the noise of each run (columns, m), in standard deviations of the column's noise.
        """
        place = np.argmax(self._completed)
        again = zip(self._processes, deviations, strict=True)
        return np.array([one.values[place] + deviation * np.sqrt(one.noise) for one, deviation in again])

    def values(self, scaled: Array) -> Iterator[Mapping[str, float]]:
        """Columns of m trials by their scaled values (columns, m)."""
        values = [column.unscaled(one).tolist() for column, one in zip(self._columns, scaled, strict=True)]
        for one in zip(*values, strict=True):
            yield dict(zip(self._names, one, strict=True))


class _Column:
    """Values of one column, with mean 0 and variance 1: those of a share in log-odds, of another as they are, and never
    beyond what has been seen.
    """

    def __init__(self, name: str, values: Array) -> None:
        self._is_share, self._low, self._high = name in SHARES, values.min(), values.max()
        found = logit((values + LEAST) / (1 + 2 * LEAST)) if self._is_share else values
        self._mean, self._std = found.mean(), found.std() or 1.0
        self.scaled = (found - self._mean) / self._std

    def unscaled(self, scaled: Array) -> Array:
        """Values by their scaled ones."""
        values: Array = scaled * self._std + self._mean
        if self._is_share:
            values = (1 + 2 * LEAST) * expit(values) - LEAST
            return np.clip(values, 0.0, 1.0)
        return np.clip(values, self._low, self._high)


class _Process:
    """A Gaussian process with a Matern-5/2 kernel through values (n,) at points (n, d), with a length a dimension."""

    def __init__(self, points: Array, values: Array) -> None:
        self._points, self.values = points, values
        size = points.shape[1]
        found = np.array([*[MIDDLING] * size, NOISES[1]])  # the lengths, then the noise
        best = self._likelihood(found[:-1], found[-1])
        for place in (*range(size + 1), *range(size + 1)):
            for value in NOISES if place == size else LENGTHS:
                tried = found.copy()
                tried[place] = value
                if (likelihood := self._likelihood(tried[:-1], tried[-1])) > best + 1e-6:
                    best, found = likelihood, tried
        self._lengths, self.noise = found[:-1], found[-1]

    def at(self, candidates: Array, waiting: Array) -> tuple[Array, Array]:
        """Means and standard deviations (m,) at candidates (m, d), once values at waiting points (w, d) are there."""
        known = np.concatenate([self._points, waiting])
        kernel = Matern(self._lengths, nu=2.5)
        across, covariance = kernel(known, candidates), kernel(known) + self.noise * np.eye(len(known))
        count = len(self._points)
        mean = across[:count].T @ np.linalg.solve(covariance[:count, :count], self.values)
        explained = np.sum(across * np.linalg.solve(covariance, across), axis=0)
        return mean, np.sqrt(np.maximum(1 - explained, 1e-6))

    def _likelihood(self, lengths: Array, noise: float) -> float:
        """Logarithm of how likely the values are, up to a constant; a middling length is likelier beforehand."""
        lower = np.linalg.cholesky(Matern(lengths, nu=2.5)(self._points) + noise * np.eye(len(self._points)))
        white = solve_triangular(lower, self.values, lower=True)
        beforehand = float(np.sum(np.log(lengths / MIDDLING) ** 2)) / 2
        return float(-(white @ white) / 2 - np.log(np.diag(lower)).sum() - beforehand)
