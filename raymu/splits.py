"""The train / validation / test split of a scenario, and its forget set."""

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raymu.data import listed
from raymu.data.dataset import READ_BY, Labelled
from raymu.data.images import Images
from raymu.errors import InputError
from raymu.scenario import Scenario
from raymu.workers import Workers


@dataclass(frozen=True)
class Split:
    """Some images of a source: all its `images` and their `labels` (int64, N), and `index` (int64), the positions of
    those that belong to the split.
    """

    images: Images
    labels: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    @property
    def targets(self) -> Tensor:
        """The true labels of its images."""
        return self.labels[self.index]

    def read(self) -> Tensor:
        """All its images at once, normalised (N, C, H, W)."""
        return next(self.images.read([(self.index, None)]))

    def subset(self, chosen: Tensor) -> "Split":
        """The split with the chosen images alone, by position or by a mask."""
        return Split(self.images, self.labels, self.index[chosen])


class HeldOut(NamedTuple):
    """What a model is evaluated on.

    Where classes are forgotten: the held-out images of the other classes, and of these classes. Where samples
    are forgotten: all held-out images, and one half of the forgotten training images.
    """

    retain: Split
    forget: Split


@dataclass(frozen=True)
class Data:
    """A scenario's three splits.

    Attributes:
        train: what the original was trained on.
        forget: which of them have to be forgotten (bool, one an image).
        probed: what a probe is fitted on: the training split; where samples are forgotten, without them, or it would
            learn them itself.
        forgotten: the classes that have to be forgotten; none where samples are.
        classes: the dataset's number of each label, where these are others: labels count the scenario's classes from 0.
        workers: who share the work on it.
    """

    train: Split
    forget: Tensor
    probed: Split
    val: HeldOut
    test: HeldOut
    num_classes: int
    forgotten: tuple[int, ...] = ()
    classes: tuple[int, ...] = ()
    workers: Workers = field(default_factory=Workers)

    @property
    def device(self) -> torch.device:
        """Where its images and labels are."""
        return self.train.labels.device

    @property
    def images(self) -> dict[str, int]:
        """Numbers of held-out images, by the columns of a row that say them."""
        parts = {"val_retain": self.val.retain, "val_forget": self.val.forget}
        parts |= {"test_retain": self.test.retain, "test_forget": self.test.forget}
        return {f"{part}_images": len(split) for part, split in parts.items()}

    def numbers_of(self, labels: Tensor) -> list[int]:
        """The dataset's numbers of the classes that labels (N,) stand for."""
        return [self.classes[label] for label in labels.tolist()] if self.classes else labels.tolist()

    def is_forgotten(self, classes: Tensor) -> Tensor:
        """Which of these classes have to be forgotten (bool)."""
        return torch.isin(classes, torch.tensor(self.forgotten, dtype=classes.dtype, device=classes.device))


def check_forget(scenario: Scenario) -> None:
    """Look whether the classes that are used and the forget set make sense for the data.

    Raises:
        InputError: a class that the data does not have, none, or all of them; a share outside 0..1; or both; a
            forgotten class that is not used.
    """
    known = range(scenario.source.num_classes)
    for one in scenario.classes:
        if one not in known:
            raise InputError(f"class {one} is outside the data: {scenario.dataset_name} has 0..{known[-1]}")
    if len(scenario.classes) == len(known):
        raise InputError(f"these classes are all that {scenario.dataset_name} has: leave them out")
    if scenario.forgets_samples:
        if scenario.forget:
            raise InputError("forget classes or samples, not both")
        listed.check(scenario.forget_samples, scenario.forget_share)
        return
    for forgotten in scenario.forget:
        if forgotten not in known:
            raise InputError(
                f"forget class {forgotten} is outside the data: {scenario.dataset_name} has 0..{known[-1]}"
            )
        if scenario.classes and forgotten not in scenario.classes:
            raise InputError(
                f"forget class {forgotten} is not among the classes {', '.join(map(str, scenario.classes))}"
            )
    if not 0 < len(scenario.forget) < scenario.num_classes:
        raise InputError("the forget set needs at least one class, and has to leave at least one")


def prepare(scenario: Scenario, directory: Path | str | None = None) -> Scenario:
    """The scenario with its data filled in (`Scenario.data`); they are read into the cache, or indexed, unless that is
    done.

    Args:
        directory: where the original files are or will be downloaded to, which is then looked at anew; of a dataset
            that stays encoded a directory or a URI. None: where they were the last time.

    Raises:
        InputError: the files are missing and cannot be fetched, something is wrong with them, or they are not those
            that the scenario names.
    """
    filled = _filled(scenario, scenario.source.prepare(directory, scenario.data.partition(READ_BY)[0]))
    if scenario.data not in ("", filled.data):
        raise InputError(
            f"{scenario.dataset_name} is not what it was: here are {filled.data}; asked for are {scenario.data}"
        )
    return filled


def last_prepared(scenario: Scenario) -> Scenario | None:
    """The scenario with the data that its dataset had when it was prepared last, and None if it never was; nothing is
    read.
    """
    data = scenario.source.latest().get("data")
    return None if data is None else _filled(scenario, data)


def _filled(scenario: Scenario, data: str) -> Scenario:
    """The scenario with what its dataset's `prepare` returned."""
    reader = scenario.source.reader(scenario.transform)
    return dataclasses.replace(scenario, data=data + READ_BY + reader if reader else data)


def prepared(scenario: Scenario) -> Scenario:
    """The scenario with its data filled in. Where they are, and are in the cache, nothing is looked at: a sweep's data
    were looked at when it began.

    Raises:
        InputError: see `prepare`.
    """
    dataset = scenario.source
    known, _, reader = scenario.data.partition(READ_BY)
    is_ready = known and dataset.is_ready(dataset.entry(known)) and reader == dataset.reader(scenario.transform)
    return scenario if is_ready else prepare(scenario)


def notes(scenario: Scenario) -> list[str]:
    """Lines that whoever uses the data of a scenario, which `prepare` returned, should read (see `Dataset.notes`)."""
    found = scenario.source.notes(scenario.source.entry(scenario.data))
    if scenario.original and " validation " not in scenario.data:
        found = [*found, "validation images are drawn from the training images, which the original may have seen"]
    return found


def check_split(scenario: Scenario) -> None:
    """Look whether the split leaves something to forget and something to retain; the dataset is prepared if need be.

    Raises:
        InputError: it does not.
    """
    load(scenario, torch.device("cpu"))


def load(scenario: Scenario, device: torch.device, processes: int | None = None) -> Data:
    """The scenario's data.

    The split is stratified by class. It follows from the scenario's seed and the images' keys alone: neither from where
    they lie, nor from their order.

    Args:
        processes: how many decode images that are not kept in memory, beside this one; 0: this one does. None: as many
            as torch has CPU threads.
    """
    dataset, scenario = scenario.source, prepared(scenario)
    processes = torch.get_num_threads() if processes is None else processes
    parts = dataset.load(dataset.entry(scenario.data), scenario.transform, device, processes)
    parts = {name: part._replace(labels=_renumbered(part.labels, scenario.classes)) for name, part in parts.items()}
    train = parts["train"]
    rows, brought = _used(train), {part: split for part, split in parts.items() if part != "train"}
    num_val = 0 if "val" in brought else round(len(rows) * scenario.val_share)
    num_test = round(len(rows) * scenario.test_share)
    size = round((len(rows) - num_val - num_test) * scenario.train_share)
    if not num_test and "test" not in brought:
        raise InputError(f"{dataset.name} brings no test set (a directory or shards val); set a test_share")
    drawn, labels = _draw(train.images.keys[rows], scenario.seed, "split"), train.labels.cpu().numpy()[rows]
    order, asked = rows[_stratified(drawn, labels)], _asked(scenario, train, size)
    order = order[~np.isin(order, asked)]  # what was asked for is trained on, whatever is drawn

    def split(part: Labelled, rows: NDArray[np.int64]) -> Split:
        return Split(part.images, part.labels, torch.from_numpy(np.sort(rows)).to(device))

    def whole(part: Labelled) -> Split:
        return split(part, _used(part))

    test, val, rest = np.split(order, [num_test, num_test + num_val])
    rest = np.concatenate([asked, rest])[:size]  # in this order every beginning is stratified as well
    return Data(
        **_forget_set(
            scenario,
            split(train, rest),
            whole(brought["val"]) if "val" in brought else split(train, val),
            split(train, test) if num_test else whole(brought["test"]),
            asked,
        ),
        num_classes=scenario.num_classes,
        classes=scenario.classes,
    )


def _renumbered(labels: Tensor, classes: tuple[int, ...]) -> Tensor:
    """Labels (N,) that count these classes from 0, and are -1 elsewhere; without classes those that they are."""
    if not classes:
        return labels
    numbers = torch.tensor(classes, device=labels.device)
    return torch.where(torch.isin(labels, numbers), torch.searchsorted(numbers, labels), -1)


def _used(part: Labelled) -> NDArray[np.int64]:
    """Rows of the images that have a label."""
    return np.flatnonzero(part.labels.cpu().numpy() >= 0)


def _draw(keys: NDArray[np.uint64], seed: int, purpose: str) -> NDArray[np.uint64]:
    """A random number for each key (N,), by SplitMix64 (Steele et al., OOPSLA 2014) from a start that follows from the
    seed and the purpose.
    """
    start = int.from_bytes(hashlib.sha256(repr((seed, purpose)).encode()).digest()[:8])
    mixed = keys * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _stratified(drawn: NDArray[np.uint64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """An order (N,), by random numbers, in which every part holds each class by its share of all."""
    by_class = np.lexsort((drawn, labels))
    sizes = np.bincount(labels)
    rank = np.empty(len(labels))
    rank[by_class] = np.arange(len(labels)) - (sizes.cumsum() - sizes)[labels[by_class]]
    return np.lexsort((drawn, (rank + 0.5) / sizes[labels]))


def _asked(scenario: Scenario, train: Labelled, size: int) -> NDArray[np.int64]:
    """Rows of the training images that a list names; of one with scores the first of them, as many as are a share of
    `size` images.

    Raises:
        InputError: it names an image that is not there.
    """
    if not scenario.forget_samples:
        return np.empty(0, np.int64)
    used = _used(train)
    keys = dict(zip(map(train.images.key, used.tolist()), used.tolist(), strict=True))
    named = listed.images_of(scenario.forget_samples)
    if missing := [key for key in named if key not in keys]:
        raise InputError(
            f"{len(missing):,} of the {len(named):,} images to forget are no training images of"
            f" {scenario.dataset_name}, such as {missing[0]}; here an image is called {next(iter(keys))}"
        )
    count = round(scenario.forget_share * size) if scenario.forget_share else len(named)
    return np.array([keys[key] for key in named[:count]], np.int64)


def _forget_set(scenario: Scenario, train: Split, val: Split, test: Split, asked: NDArray[np.int64]) -> dict[str, Any]:
    """Forget set of the three splits, as fields of Data.

    Args:
        asked: rows of the samples that a list names; empty: there is no list.
    """
    if scenario.forget:
        forgotten = tuple(_renumbered(torch.tensor(scenario.forget), scenario.classes).tolist())
        classes = torch.tensor(forgotten, device=train.labels.device)
        chosen, *held_out = (torch.isin(split.targets, classes) for split in (train, val, test))
        parts = {
            name: HeldOut(split.subset(~forget), split.subset(forget))
            for name, split, forget in zip(("val", "test"), (val, test), held_out, strict=True)
        }
        for name, part in {**parts, "train": HeldOut(train.subset(~chosen), train.subset(chosen))}.items():
            if not (len(part.retain) and len(part.forget)):
                raise InputError(
                    f"the {name} split has {len(part.forget)} images of {scenario.forgotten} and {len(part.retain)} of"
                    " the others; there has to be one of each"
                )
        return {"train": train, "forget": chosen, "forgotten": forgotten, "probed": train, **parts}
    count = len(asked) or round(scenario.forget_share * len(train))
    if not 2 <= count < len(train):
        raise InputError(f"{scenario.forgotten} are {count} of {len(train)}; there have to be at least 2, and a rest")
    numbers = _draw(train.images.keys[train.index.cpu().numpy()], scenario.seed, "forget")
    order = np.argsort(numbers)
    order = order[np.isin(train.index.cpu().numpy()[order], asked)] if len(asked) else order[:count]
    drawn = torch.from_numpy(order).to(train.index.device)
    forget = torch.zeros(len(train), dtype=torch.bool, device=drawn.device)
    forget[drawn] = True
    return {
        "train": train,
        "forget": forget,
        "forgotten": (),
        "probed": train.subset(~forget),
        "val": HeldOut(val, train.subset(drawn[: count // 2])),
        "test": HeldOut(test, train.subset(drawn[count // 2 :])),
    }
