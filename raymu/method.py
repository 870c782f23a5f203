"""What an unlearning method is: hyperparameters with a published default and a range, and a generator of steps."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, dataclass_transform, get_args, get_type_hints

from torch import Tensor, nn

from raymu.errors import InputError
from raymu.run import Part, Run
from raymu.scenario import Scenario
from raymu.values import ANY, NOT_NEGATIVE, POSITIVE, Bounds, checked, conform, unknown

Head = Literal["linear", "cmf"]
Train = Literal["all", "classifier"]

TUNED_ON = {"cifar10": "resnet18", "cifar100": "resnet18", "tinyimagenet": "resnet50"}  # by the paper's authors
BATCH_SIZE = 128  # theirs, where a method says nothing else


@dataclass(frozen=True)
class Range:
    """A hyperparameter's search range, both ends included.

    `scale` is "log" (positive reals), "linear" (reals) or "int" (whole numbers).

    Raises:
        InputError: there is no such scale, low is not below high, an end is no finite number, a log range is not
            positive, or an int range has fractions.
    """

    low: float
    high: float
    scale: Literal["log", "linear", "int"]

    def __post_init__(self) -> None:
        conform(self, "range: ", **(dict.fromkeys(("low", "high"), POSITIVE) if self.scale == "log" else {}))
        for end in ("low", "high") if self.scale == "int" else ():
            object.__setattr__(self, end, checked(f"range: {end}", getattr(self, end), int))
        if self.low >= self.high:
            raise InputError(f"range {self}: the low end has to be below the high end")

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and (self.scale != "int" or float(value).is_integer())

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}" + ("" if self.scale == "int" else f" {self.scale}")


def tuned(default: float, search: Range, doc: str, bounds: Bounds | None = None) -> Any:
    """A hyperparameter that a sweep searches: its published default, its range, and its meaning, on one line.

    Its declared type says whether it is a whole number. It has to be positive if its whole range is; `bounds` say
    otherwise.
    """
    if not isinstance(search, Range):
        raise InputError(f"tuned takes a default, a Range and a doc, not {default!r}, {search!r}")
    bounds = bounds or _bounds(search.low)
    if default not in search or search.low not in bounds or search.high not in bounds:
        raise ValueError(f"default {default} or range {search} lies outside")
    return dataclasses.field(default=default, metadata={"range": search, "doc": doc, "bounds": bounds})


def fixed(default: float | str | None, doc: str, bounds: Bounds | None = None) -> Any:
    """A hyperparameter that a sweep leaves at its published value.

    Its declared type says what it can be: `int`, `float`, a Literal of words, or one of these or None. A number has to
    be positive if the default is; `bounds` say otherwise.
    """
    bounds = bounds or (_bounds(default) if isinstance(default, float | int) else POSITIVE)
    return dataclasses.field(default=default, metadata={"range": None, "doc": doc, "bounds": bounds})


def _bounds(least: float) -> Bounds:
    return POSITIVE if least > 0 else NOT_NEGATIVE if least == 0 else ANY


@dataclass(frozen=True)
class Clipped:
    """A loss whose gradient is scaled down to the norm `norm`, over all weights, if it is longer; None: left alone."""

    loss: Tensor
    norm: float | None


Loss = Tensor | Clipped
Step = Loss | tuple[Loss, ...]


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(tuned, fixed))
@dataclass(frozen=True, kw_only=True)
class Method:
    """An unlearning method. Its fields are its hyperparameters, `unlearn` is its algorithm.

    A method lives in `raymu/methods/NAME.py` (or in a user's own script) and knows nothing of how a step is carried
    out: it yields losses, and the engine does backward, optimizer and masks.

    Head, train and temperature are options of every method; the attributes after them belong to its class.

    Attributes:
        head: "linear", the original's own, or "cmf": class-mean features (`raymu.models.cmf.CMF`) for the whole of
            unlearning, made anew from the training set before the first and after every epoch.
        train: "all" weights, or the "classifier" alone: the control, whose features stay as they were.
        temperature: of the CMF head.
        paper: where the method comes from.
        needs: the parts of the training set that it reads.
        published: settings by (dataset, head, name), where they differ from the fields' defaults, which are those that
            the authors ran on CIFAR-10. The name "code" is what they ran, their scripts say, with "(one class)" or
            "(several classes)" to forget behind it where that makes a difference; "table" is what the paper's table
            says, where it differs.
        start: "original" weights, or "scratch" for random ones by the trial's seed (or pretrained ones).
        trains: whether it takes optimizer steps; otherwise it edits the weights once, in no epoch.
        classes_only: whether it can forget classes, but not single samples.
        nested: the hyperparameter of which a run shows all smaller values on its way, since none of its epochs depends
            on how many follow: each trial of a search chooses it by itself; "": there is none.

    Differs from the source, in every method: batches are of nearly equal size, where the authors' code has a small last
    one; the split, the original's training and the augmentation of training batches are the scenario's; and what is
    computed before the first epoch never sees augmented images.

    Raises:
        InputError: options that make no sense for the method, or a hyperparameter out of its bounds.
    """

    head: Head = "linear"
    train: Train = "all"
    temperature: float = tuned(1.0, Range(1, 64, "log"), "what the CMF head's cosines are multiplied by")

    paper: ClassVar[str] = ""
    needs: ClassVar[tuple[Part, ...]] = ("retain", "forget")
    published: ClassVar[Mapping[tuple[str, Head, str], Mapping[str, Any]]] = {}
    start: ClassVar[Literal["original", "scratch"]] = "original"
    trains: ClassVar[bool] = True
    classes_only: ClassVar[bool] = False
    nested: ClassVar[str] = ""
    _fields: ClassVar[dict[str, "dataclasses.Field[Any]"]]  # of hyperparameters, base classes' included
    _code: ClassVar[tuple[str, int, str]]  # which process looked, at which of its looks, and the digest

    def __init_subclass__(cls, **rest: Any) -> None:
        """Make a dataclass of a method, so that no hyperparameter is lost where nobody says so.

        Raises:
            TypeError: a hyperparameter has no type.
        """
        super().__init_subclass__(**rest)
        declared = {name: value for name, value in vars(cls).items() if isinstance(value, dataclasses.Field)}
        for name in declared.keys() - inspect.get_annotations(cls).keys():
            raise TypeError(f"{cls.__name__}.{name} needs a type, as in {name}: float = ...")
        dataclass(frozen=True, kw_only=True)(cls)
        del cls.__setattr__, cls.__delattr__  # the base class has them; whoever decorates a method as well may do so
        known = {name: field for base in reversed(cls.__mro__) for name, field in vars(base).get("_fields", {}).items()}
        cls._fields = known | {name: field for name, field in declared.items() if "doc" in field.metadata}

    def __post_init__(self) -> None:
        self.check_options(self.head, self.train)
        bounds = {name: field.metadata["bounds"] for name, field in self._fields.items()}
        conform(self, f"{self.name()}: ", **bounds)

    def unlearn(self, run: Run) -> Iterator[Step]:
        """Yield one step after the other: a scalar loss, or several whose gradients are added, each perhaps Clipped.

        Every step lies inside `for epoch in run.epochs(...)`.
        """
        raise NotImplementedError

    @property
    def total_epochs(self) -> int:
        """How many epochs `unlearn` takes in all."""
        return getattr(self, "epochs", 0)

    @property
    def comparable_from(self) -> int:
        """The first epoch after which the state may be compared with other trials' (a scheduler has to wait)."""
        return 1

    def shorter(self, epoch: int) -> dict[str, int]:
        """The hyperparameter, with its value, of the shorter run that ends as this one is after an epoch; empty where
        there is no such run.
        """
        if not self.nested or not self.comparable_from <= epoch < self.total_epochs:
            return {}
        return {self.nested: getattr(self, self.nested) - self.total_epochs + epoch}

    @property
    def shortest(self) -> int:
        """The smallest value of `nested` of which this run shows the end."""
        value: int = getattr(self, self.nested)
        return value - self.total_epochs + min(self.comparable_from, self.total_epochs)

    @classmethod
    def name(cls) -> str:
        """The method's name on the command line and in rows: its file's for raymu's, else as RandomLabel gives
        random_label.
        """
        module = cls.__module__
        if module.startswith("raymu.methods."):
            return module.rpartition(".")[2]
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    @classmethod
    def check_options(cls, head: str, train: str) -> None:
        """Look whether the two options make sense for the method.

        Raises:
            InputError: they do not.
        """
        for kind, value, known in (("head", head, get_args(Head)), ("train", train, get_args(Train))):
            if value not in known:
                raise InputError(unknown(kind, value, list(known)))
        if train == "classifier":
            if not cls.trains:
                raise InputError(f"{cls.name()} trains nothing, so it cannot train the classifier alone")
            if cls.start == "scratch":
                raise InputError(f"{cls.name()} starts from random weights: a classifier alone cannot learn on them")
            if head == "cmf":
                raise InputError("a CMF head follows the features: with those frozen there is nothing to train")

    @classmethod
    def check_model(cls, sample: Callable[[], tuple[nn.Module, Tensor]]) -> None:
        """Look, before anything is trained, whether the method can work on a model of this architecture.

        Args:
            sample: makes a model with random weights, in eval mode, and images (2, C, H, W), as the model reads them.

        Raises:
            ValueError: it cannot; the message says why.
        """

    @classmethod
    def hyperparameters(cls, head: Head = "linear") -> dict[str, "dataclasses.Field[Any]"]:
        """What a config may hold: name -> field, with its Range (or None) and meaning in `metadata`."""
        own = dict(cls._fields)
        temperature = own.pop("temperature")
        return {**own, "temperature": temperature} if head == "cmf" else own

    @classmethod
    def ranges(cls, head: Head = "linear") -> dict[str, Range]:
        """The search space: hyperparameter -> range."""
        fields = cls.hyperparameters(head)
        return {name: field.metadata["range"] for name, field in fields.items() if field.metadata["range"]}

    @property
    def config(self) -> dict[str, Any]:
        """The value of every hyperparameter."""
        return {name: getattr(self, name) for name in self.hyperparameters(self.head)}

    @classmethod
    def check_range(cls, name: str, search: Range) -> None:
        """Look whether a range suits one of the method's hyperparameters.

        Raises:
            InputError: its scale does not suit the hyperparameter's type, or an end lies out of bounds.
        """
        field, kind = cls._fields[name], get_type_hints(cls)[name]
        if not isinstance(search, Range):
            raise InputError(f"{cls.name()}: {name} needs a Range, not {search!r}")
        if (search.scale == "int") != (kind is int):
            scales = "int" if kind is int else "log or linear"
            raise InputError(f"{cls.name()}: the range of {name} has to be {scales}, not {search.scale}")
        for end in (search.low, search.high):
            checked(f"{cls.name()}: the range of {name}", end, kind, field.metadata["bounds"])

    @classmethod
    def settings(cls, scenario: Scenario, head: Head = "linear", train: Train = "all") -> dict[str, dict[str, Any]]:
        """Published settings for a scenario, by name; the first is what the authors ran. They are for its dataset,
        architecture, batch size and number of classes. There are none for single samples or the classifier alone.
        """
        tuned_on = scenario.architecture_name, scenario.recipe.batch_size
        if train != "all" or not scenario.forget or tuned_on != (TUNED_ON.get(scenario.dataset_name), BATCH_SIZE):
            return {}
        return cls._settings(scenario.dataset_name, head, len(scenario.forget))

    @classmethod
    def _settings(cls, dataset: str, head: Head, classes: int) -> dict[str, dict[str, Any]]:
        others, found = "(one class)" if classes > 1 else "(several classes)", dict[str, dict[str, Any]]()
        for (of_dataset, of_head, name), setting in cls.published.items():
            config = cls(head=head, **setting).config
            if (of_dataset, of_head) == (dataset, head) and not name.endswith(others) and config not in found.values():
                found[name] = config
        return found

    @classmethod
    def published_config(cls, scenario: Scenario, head: Head = "linear") -> dict[str, Any]:
        """Setting that the authors ran on a scenario; where nothing is published, the one they ran on CIFAR-10."""
        found = cls.settings(scenario, head) or cls._settings("cifar10", head, len(scenario.forget))
        return next(iter(found.values()), cls(head=head).config)

    @classmethod
    def is_published(cls, scenario: Scenario, head: Head = "linear", train: Train = "all") -> bool:
        """Whether there is a published setting for a scenario."""
        return bool(cls.settings(scenario, head, train))

    @classmethod
    def published_as(cls, scenario: Scenario, head: Head, train: Train, config: Mapping[str, Any]) -> str | None:
        """The name of the published setting that a config is; None: it is none here."""
        return next((name for name, setting in cls.settings(scenario, head, train).items() if setting == config), None)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, head: Head = "linear", train: Train = "all") -> "Method":
        """The method with these hyperparameters; those that are not given keep their default.

        Raises:
            InputError: options that make no sense, a hyperparameter that the method does not have, or a value that is
                not of its type or out of its bounds.
        """
        cls.check_options(head, train)
        known = list(cls.hyperparameters(head))
        for key in config:
            if key not in known:
                raise InputError(unknown(f"hyperparameter of {cls.name()}", key, known))
        return cls(head=head, train=train, **config)


def _refused(method: Method, name: str, *value: Any) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot set {name}")


Method.__setattr__ = Method.__delattr__ = _refused  # type: ignore[assignment, method-assign]
Method._fields = {"temperature": Method.__dataclass_fields__["temperature"]}


def shown(value: Any) -> str:
    """A hyperparameter's value in a table."""
    return "none" if value is None else f"{value:g}" if isinstance(value, float | int) else str(value)
