"""How many images searchers need to find a good setting, replayed against the tables that `search_tables.py` made:
`OMP_NUM_THREADS=1 python tests/benchmarks/search.py --seeds 20`.

For each table and objective it prints the target, the median of what 64 random trials find whose epochs are drawn, too.
For each searcher it prints medians over its searches: of the setting that raymu chooses the score on validation and on
test, the images, and the images until the target was reached with their quartiles, all images in those of the 64 random
trials ("inf": not within its trials). Where there are tables of other originals, "elsewhere" is the setting's mean test
score there, with the standard error of the mean over the searches. Trials choose their epochs, but for a searcher with
a star, which draws them.

It also says whether a run that is LOST margins of retain accuracy below the retrained model, and still falls, might be
stopped: how many of a table's runs come there before their last epoch, and in how many of these a later epoch has the
highest score.
"""

import argparse
import heapq
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from search_tables import EPOCHS, SETTINGS, TABLES
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Kernel, Matern, WhiteKernel

from raymu import methods
from raymu.method import Method, Range
from raymu.objective import HMEAN, MARGIN, REMOVAL, Objective
from raymu.protocol import AUTO, Protocol
from raymu.results import selection
from raymu.trial import best_epoch, has_turned
from raymu.tuning import remaining
from raymu.tuning.samplers import Chosen, sampler
from raymu.tuning.samplers.base import place_in
from raymu.tuning.schedulers import scheduler

Array = NDArray[np.float64]
SPLITS = ("val", "test")
LEAST = 0.005  # where the log-odds of a share end
TRIALS = 64
LOST = 5
SEARCHERS = [("random", "asha", None), ("tpe", "none", None), ("tpe", "asha", None), ("gp", "none", None)]
SEARCHERS += [("gp", "none", AUTO[1])]  # with the patience of --trials auto
OLD = "tpe", "asha", 40  # raymu's default until trials chose their epochs
DIVERGED = {"attack_auc": 0.5}  # what is measured of such a model; else 0


class Run(NamedTuple):
    """Measurements of a run after each epoch, from epoch `first` on, before which trials do not compare; on test also
    those on other originals (1 + originals, epochs).
    """

    first: int
    metrics: Array
    val: Array
    test: Array
    images: Array
    seconds: Array


class Table:
    """A method on a scenario, at any setting.

    Every metric that the objective reads is, in log-odds, a Gaussian process over the settings, each range scaled to
    [0, 1], for all epochs, splits and originals together. What it misses at the nearest setting of the table is added:
    so the table's own runs come back as they were, and others are as rough as these.

    Attributes:
        error: of the scores that it says of the table's settings from all others: root of the mean square, over
            settings and epochs. `spread` is these scores' standard deviation.
    """

    def __init__(self, path: Path, objective: Objective) -> None:
        begin, *lines = map(json.loads, path.read_text().splitlines())
        self.name = path.stem
        _, method, self.head = path.stem.rsplit("-", 2)
        self.method: type[Method] = methods.get(method)
        self.knob, self.before = EPOCHS.get(method, ("epochs", []))
        self.ranges: dict[str, Range] = dict(self.method.ranges(self.head))
        self.longest = int(self.ranges[self.knob].high)
        self.objective, self.references, self.counts = objective, begin["references"], begin["images"]
        self._scorers = [(split, objective.scorer(self.references, split)) for split in SPLITS]
        self.metrics = [name[4:] for name in lines[0] if name[:4] == "val_" and name[4:] in objective.columns]
        self.settings = [line["setting"] for line in lines]
        self._points = np.array([self._point(setting) for setting in self.settings])
        self._images, self._seconds = (
            np.array([self._spent(line, column) for line in lines]) for column in ("images", "train_s")
        )
        measured = np.array([[self._measured(line, metric, SPLITS) for metric in self.metrics] for line in lines])
        for other in sorted(path.parent.glob(f"originals/{path.stem}-*.jsonl")):
            first, *there = map(json.loads, other.read_text().splitlines())
            if len(there) < len(lines):
                continue  # it is still being made
            self._scorers.append(("test", objective.scorer(first["references"], "test")))
            tested = [[self._measured(line, metric, ["test"]) for metric in self.metrics] for line in there]
            measured = np.concatenate([measured, tested], axis=2)
        fitted = [self._fit(_log_odds(measured[:, place])) for place in range(len(self.metrics))]
        self._kernels, self._weights, self._means, left_out = zip(*fitted, strict=True)
        self._missed = _log_odds(measured) - np.stack(
            [self._mean(place, self._points) for place in range(len(fitted))], 1
        )
        found = [self._scores(_shares(one)) for one in np.stack(left_out, 1)]
        real = np.array([self(setting).val for setting in self.settings])
        differ = real - np.array([one[0] for one in found])
        self.error, self.spread = float(np.sqrt(np.mean(differ**2))), float(np.std(real))

    def __call__(self, setting: Mapping[str, Any]) -> Run:
        """The run of a setting, whatever its number of epochs is."""
        point = self._point(setting)
        nearest = int(np.argmin(np.sum((self._points - point) ** 2, 1)))
        said = np.stack([self._mean(place, point[None])[0] for place in range(len(self.metrics))])
        measured = _shares(said + self._missed[nearest])
        val, *test = self._scores(measured)
        first = 1 + self._skipped(setting)
        return Run(first, measured[:, 0], val, np.array(test), self._images[nearest], self._seconds[nearest])

    def least(self, setting: Mapping[str, Any]) -> int:
        """The smallest number of epochs that a trial of a setting may choose."""
        method = self.method.from_config({**setting, self.knob: self.longest}, head=self.head)
        return max(int(self.ranges[self.knob].low), method.shortest)

    def said(self, run: Run, epoch: int) -> dict[str, float]:
        """Columns of a row that is measured after an epoch."""
        values = run.metrics[:, epoch - run.first].tolist()
        return {f"val_{name}": value for name, value in zip(self.metrics, values, strict=True)}

    def _point(self, setting: Mapping[str, Any]) -> Array:
        found = {name: place_in(search, setting[name]) for name, search in self.ranges.items() if name != self.knob}
        return np.array(list(found.values()))

    def _skipped(self, setting: Mapping[str, Any]) -> int:
        return sum(setting[name] for name in self.before)

    def _spent(self, line: Mapping[str, Any], column: str) -> Array:
        """Images or seconds of a run after each epoch that compares; an epoch after it diverged costs a mean one."""
        skipped, found = self._skipped(line["setting"]), list(line[column])
        if column == "train_s":
            found = list(np.cumsum(found))
        while len(found) < skipped + self.longest:
            found.append(found[-1] * (len(found) + 1) / len(found) if found else 1.0)
        return np.array(found[skipped:])

    def _measured(self, line: Mapping[str, Any], metric: str, splits: Sequence[str]) -> Array:
        """Values on some splits, (splits, epochs)."""
        skipped = self._skipped(line["setting"])
        rest = [DIVERGED.get(metric, 0.0)] * self.longest
        return np.array([[*line[f"{split}_{metric}"][skipped:], *rest][: self.longest] for split in splits])

    def _fit(self, values: Array) -> tuple[Kernel, Array, Array, Array]:
        """Kernel, weights, mean, and what is said of every setting from all others."""
        flat = values.reshape(len(values), -1)
        mean = flat.mean(0)
        kernel = Matern(np.full(self._points.shape[1], 0.5), (0.05, 20), nu=2.5) + WhiteKernel(0.05, (1e-4, 1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a length at the end of its bounds
            scaled = (flat - mean) / (flat.std(0) + LEAST)
            kernel = GaussianProcessRegressor(kernel, random_state=0).fit(self._points, scaled).kernel_
        inverse = np.linalg.inv(kernel(self._points))
        weights = inverse @ (flat - mean)
        left_out = flat - weights / np.diag(inverse)[:, None]
        return kernel, weights, mean, left_out.reshape(values.shape)

    def _mean(self, place: int, points: Array) -> Array:
        """Log-odds of a metric, (points, splits, epochs)."""
        said = self._kernels[place](points, self._points) @ self._weights[place] + self._means[place]
        return said.reshape(len(points), -1, self.longest)

    def _scores(self, measured: Array) -> Array:
        """Scores (splits, epochs) of metrics (metrics, splits, epochs), as a searcher sees them."""
        return np.array(
            [
                [
                    score({f"{split}_{name}": value for name, value in zip(self.metrics, values, strict=True)})
                    for values in measured[:, place].T.tolist()
                ]
                for place, (split, score) in enumerate(self._scorers)
            ]
        )


def _log_odds(shares: Array) -> Array:
    found: Array = logit((np.clip(shares, 0, 1) + LEAST) / (1 + 2 * LEAST))
    return found


def _shares(log_odds: Array) -> Array:
    return np.clip((1 + 2 * LEAST) * expit(log_odds) - LEAST, 0, 1)


class Trial(NamedTuple):
    """A trial that runs, and what was expected of it."""

    method: Method
    run: Run
    gain: float | None


class Found(NamedTuple):
    """A completed trial: images of all trials until it ended, its scores, test scores on all originals, and the score
    on validation by which it might be chosen.
    """

    images: float
    val: float
    test: Array
    sure: float


def drawn(table: Table, searcher: Any, stops: Any, trials: int, seed: int) -> list[Found]:
    """A search that draws the epochs of its trials like any other hyperparameter, one trial at a time."""
    protocol = Protocol(trials, searcher=searcher, scheduler=stops, objective=table.objective)
    done: list[dict[str, Any]] = []
    suggests, judge = sampler(protocol, seed, table.ranges, done), scheduler(stops, table.longest, [])
    found, spent = list[Found](), 0.0
    for number in range(trials):
        method = table.method.from_config(suggests.suggest(number) if number else {}, head=table.head)
        run, end, status = table(method.config), method.total_epochs, "completed"
        curve = list[tuple[int, float]]()
        for rung in protocol.rungs(end, method.comparable_from) if number else []:
            curve.append((rung, float(run.val[rung - run.first])))
            if judge.tell(number, "stopped", curve) == "STOP":
                end, status = rung, "stopped"
                break
        place = end - run.first
        val, score = float(run.val[place]), max(0.0, float(run.val[place]))
        spent += float(run.images[place])
        curve += [(end, val)] if status == "completed" else []
        row = {"trial": number, "status": status, "curve": curve, "config": method.config, "score": score}
        done.append(row | table.said(run, end))
        if status == "completed":
            found.append(Found(spent, score, np.maximum(run.test[:, place], 0.0), score))
    return found


def replay(table: Table, searcher: Any, stops: Any, seed: int, slots: int, patience: int | None = None) -> list[Found]:
    """A search by raymu's sampler and scheduler, whose trials choose their epochs, and take as long as in the table."""
    protocol = Protocol(TRIALS, searcher=searcher, scheduler=stops, objective=table.objective, patience=patience)
    done: list[dict[str, Any]] = []
    suggested = {name: search for name, search in table.ranges.items() if name != table.knob}
    chosen = Chosen(table.knob, table.ranges[table.knob], table.least)
    suggests = sampler(protocol, seed, suggested, done, table.references, chosen)
    judge: Any = scheduler(stops, table.longest, [])
    found, running, events, spent, now, begun = list[Found](), dict[int, Trial](), [], 0.0, 0.0, 0
    while True:
        while begun < TRIALS and len(running) < slots and not remaining.is_spent(protocol, done):
            others = [one.method.config for one in running.values()]
            setting = suggests.suggest(begun, others) if begun else {}
            gain = suggests.gain(begun, setting, others) if begun and patience else None
            longest = {table.knob: table.longest} if begun else {}
            method = table.method.from_config({**setting, **longest}, head=table.head)
            running[begun] = Trial(method, run := table(method.config), gain)
            heapq.heappush(events, (now + run.seconds[0], begun, 1))
            begun += 1
        if not events:
            break
        now, number, epoch = heapq.heappop(events)
        method, run, gain = running[number]
        spent += run.images[epoch - 1] - (run.images[epoch - 2] if epoch > 1 else 0)
        trained, is_last = run.first - 1 + epoch, run.first - 1 + epoch == method.total_epochs
        rungs = range(method.comparable_from, trained + 1) if number else [trained] if is_last else []
        curve = [(rung, float(run.val[rung - run.first])) for rung in rungs]
        is_over = is_last or bool(number and curve and has_turned(curve))
        if not is_over and (stops == "none" or not curve or judge.tell(number, "stopped", curve) != "STOP"):
            heapq.heappush(events, (now + run.seconds[epoch] - run.seconds[epoch - 1], number, epoch + 1))
            continue
        del running[number]
        end = best_epoch(curve) if is_over else trained
        val, test = float(run.val[end - run.first]), np.maximum(run.test[:, end - run.first], 0.0)
        row = {"trial": number, "expected_gain": gain, "status": "completed" if is_over else "stopped", "curve": curve}
        row |= {"config": method.config | method.shorter(end), "epochs": end, "score": max(0.0, val)}
        before = method.total_epochs - method.config[table.knob]
        row["source"] = "search" if number else "published"
        row["shorter"] = [{table.knob: rung - before} | table.said(run, rung) for rung in rungs if number]
        row |= table.said(run, end) | table.counts
        if is_over:
            row["expected_score"] = suggests.expected(row)
            found.append(Found(spent, row["score"], test, selection.sure(row)))
        done.append(row)
    return found


def fallen(table: Table) -> tuple[int, int]:
    """Numbers of runs that come LOST margins below the retrained model and fall, and of those that rise again."""
    come, rise, retain = 0, 0, table.metrics.index("retain_acc")
    for setting in table.settings:
        run = table(setting)
        loss = (table.references["retrained"]["val_retain_acc"] - run.metrics[retain]) / MARGIN
        places = 1 + np.flatnonzero((loss[1:-1] > LOST) & (loss[1:-1] >= loss[:-2]))
        if places.size:
            come += 1
            rise += bool(max(run.val[places[0] + 1 :]) > max(0.0, *run.val[: places[0] + 1]))
    return come, rise


def said(name: str, searches: Sequence[list[Found]], target: float, images: float) -> None:
    """Print what searches found."""
    best = [max(found, key=lambda one: one.sure) for found in searches]
    reached = [next((one.images for one in found if one.val >= target), np.inf) for found in searches]
    low, until, high = np.quantile(reached, [0.25, 0.5, 0.75], method="inverted_cdf") / images
    val, test = np.median([one.val for one in best]), np.median([one.test[0] for one in best])
    spent = np.median([found[-1].images for found in searches]) / images
    line = f"  {name}: {val:.3f}, test {test:.3f}; images {spent:.2f}, until {until:.2f} [{low:.2f}, {high:.2f}]"
    if elsewhere := [one.test[1:].mean() for one in best if len(one.test) > 1]:
        line += f"; elsewhere {np.mean(elsewhere):.3f} +- {np.std(elsewhere) / len(elsewhere) ** 0.5:.3f}"
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--slots", type=int, default=1)
    given = parser.parse_args()
    for path in sorted(TABLES.glob("*.jsonl")):
        if path.read_text().count("\n") <= SETTINGS:
            continue  # it is still being made
        for objective in (REMOVAL, HMEAN):
            table = Table(path, objective)
            baseline = [drawn(table, "random", "none", TRIALS, seed) for seed in range(given.seeds)]
            target = np.median([max(one.val for one in found) for found in baseline])
            images = np.median([found[-1].images for found in baseline])
            print(f"{table.name}, {objective.name}: target {target:.3f}, error {table.error:.3f} of {table.spread:.3f}")
            print(
                "  of {} runs {} lose too much, and {} of these rise again".format(len(table.settings), *fallen(table))
            )
            said("random none*", baseline, target, images)
            said("tpe    asha*", [drawn(table, *OLD, seed) for seed in range(given.seeds)], target, images)
            for searcher, stops, patience in SEARCHERS:
                searches = [replay(table, searcher, stops, seed, given.slots, patience) for seed in range(given.seeds)]
                said(f"{searcher:7}{'auto' if patience else stops:5}", searches, target, images)


if __name__ == "__main__":
    main()
