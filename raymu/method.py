"""What an unlearning method is: hyperparameters with a published default and a range, and a generator of losses."""

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

from raymu.errors import InputError
from raymu.scenario import Scenario, unknown

if TYPE_CHECKING:
    from raymu.engines.local import Engine


@dataclass(frozen=True)
class Range:
    """A hyperparameter's search range, both ends included.

    `scale` is "log" (positive reals), "linear" (reals) or "int" (whole numbers).

    Raises:
        InputError: low is not below high, an end is not finite, a log range is not positive, or an int range has
            fractions.
    """

    low: float
    high: float
    scale: Literal["log", "linear", "int"]

    def __post_init__(self) -> None:
        if not float("-inf") < self.low < self.high < float("inf"):
            raise InputError(f"range {self}: the low end has to be below the high end")
        if self.scale == "log" and self.low <= 0:
            raise InputError(f"range {self}: a log range has to be positive")
        if self.scale == "int" and not (float(self.low).is_integer() and float(self.high).is_integer()):
            raise InputError(f"range {self}: an int range needs whole numbers")

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and (self.scale != "int" or float(value).is_integer())

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}" + ("" if self.scale == "int" else f" {self.scale}")


def tuned(default: float, search: Range, doc: str) -> Any:
    """A hyperparameter: its published default, the range a fair search covers, and its meaning, on one line."""
    if default not in search:
        raise ValueError(f"default {default} lies outside {search}")
    return dataclasses.field(default=default, metadata={"range": search, "doc": doc})


@dataclass(frozen=True, kw_only=True)
class Method:
    """An unlearning method. Its fields are its hyperparameters, `unlearn` is its algorithm.

    A method lives in `raymu/methods/NAME.py` (or in a user's own script) and knows nothing of how a step is carried
    out: it yields losses, and the engine does backward, optimizer (SGD, Nesterov momentum 0.9, weight decay 5e-4,
    as in Gao et al.) and masks.

    Class attributes:
        paper: where the method comes from.
        published: the paper's settings by scenario name, where they differ from the fields' defaults.
        start: "original" weights, or "scratch" for random ones.
    """

    lr: float
    epochs: int

    paper: ClassVar[str]
    published: ClassVar[Mapping[str, dict[str, Any]]] = {}
    start: ClassVar[Literal["original", "scratch"]] = "original"

    def unlearn(self, run: "Engine") -> Iterator[Tensor]:
        """Yield one scalar loss per optimizer step, all of them inside `for epoch in run.epochs(self.epochs)`."""
        raise NotImplementedError

    def lr_factor(self, epoch: int) -> float:
        """What `lr` is multiplied with in an epoch (1, 2, ...)."""
        return 1.0

    @classmethod
    def name(cls) -> str:
        """The method's name on the command line and in rows: SalUn -> salun, RandomLabel -> random_label."""
        module = cls.__module__
        if module.startswith("raymu.methods."):
            return module.rpartition(".")[2]
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    @classmethod
    def ranges(cls) -> dict[str, Range]:
        """The search space: hyperparameter -> range."""
        return {field.name: field.metadata["range"] for field in dataclasses.fields(cls)}

    @classmethod
    def published_config(cls, scenario: Scenario) -> dict[str, Any]:
        """The published setting for a scenario; the fields' defaults where the paper gives none for it."""
        return dataclasses.asdict(cls(**cls.published.get(scenario.name, {})))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Method":
        """The method with these hyperparameters; those that are not given keep their default.

        Raises:
            InputError: a hyperparameter that the method does not have, or a value that is no number.
        """
        known = {field.name: field.type for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for key, value in config.items():
            if key not in known:
                raise InputError(unknown(f"hyperparameter of {cls.name()}", key, list(known)))
            try:
                values[key] = int(value) if known[key] is int else float(value)
            except (TypeError, ValueError) as error:
                raise InputError(f"{cls.name()}: {key} has to be a number, not {value!r}") from error
        return cls(**values)


def names() -> list[str]:
    """Every method in `raymu/methods/`, by name."""
    from raymu import methods

    return sorted(module.name for module in pkgutil.iter_modules(methods.__path__))


def get(name: str) -> type[Method]:
    """The one Method that `raymu/methods/NAME.py` defines.

    Raises:
        InputError: there is no such file; the message names the nearest.
    """
    if name not in names():
        raise InputError(unknown("method", name, names()))
    module = importlib.import_module(f"raymu.methods.{name}")
    (method,) = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__
    ]
    return method
