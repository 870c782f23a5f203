"""What a value can be: its declared type and its bounds, looked at in one place, wherever it comes in."""

import dataclasses
import difflib
import functools
import hashlib
import inspect
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from raymu.errors import InputError

SCENARIO, STORAGE = "digits", "raymu-results"  # where nobody says another one
MOST_NAMED = 5  # classes in a sentence
FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes a cell for that begins so


@dataclass(frozen=True)
class Bounds:
    """The finite numbers from `low` to `high`, both ends included; without `low` itself if they are `above` it."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return math.isfinite(value) and self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self) -> str:
        ends = []
        if self.low > -math.inf:
            ends.append(f"above {self.low:g}" if self.above else f"at least {self.low:g}")
        if self.high < math.inf:
            ends.append(f"at most {self.high:g}")
        return " and ".join(ends)


LARGEST = 2**63 - 1  # what JSON's readers take for a whole number
ANY = Bounds()
NOT_NEGATIVE = Bounds(0)
POSITIVE = Bounds(0, above=True)
SHARE = Bounds(0, 1, above=True)


def conform(instance: Any, what: str = "", /, **bounds: Bounds) -> None:
    """Bring every field of a frozen dataclass to its declared type; see `checked`.

    Args:
        what: what stands before a field's name in messages.
        bounds: of its numbers, by field; the others have to be finite.

    Raises:
        InputError: a field is nothing of its type, or out of bounds.
    """
    kinds = _kinds(type(instance))  # type: ignore[arg-type]
    for field in dataclasses.fields(instance):
        if field.init:
            value = checked(what + field.name, getattr(instance, field.name), kinds[field.name], bounds.get(field.name))
            object.__setattr__(instance, field.name, value)


@functools.cache  # a search makes hundreds of settings before it suggests one
def _kinds(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def checked(what: str, value: Any, kind: Any, bounds: Bounds | None = None) -> Any:
    """A value in its declared type.

    Of other types than these it is returned as it is:

    - `int` and `float`: a number of Python's or NumPy's, but no bool, or a text that says one (YAML reads 1e-3 as a
      text); nothing is rounded;
    - `bool` and `str`: one;
    - a Literal: one of its words;
    - `tuple[X, ...]`: several X;
    - `X | None`: an X, or None; `X | Literal[...]`: an X, or one of the words; `str | C` of a class C: a text, or a C.

    Raises:
        InputError: it is nothing of the kind, or a number that is out of bounds or not finite.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        kinds = [one for one in arguments if one is not NoneType]
        words = [word for one in kinds if get_origin(one) is Literal for word in get_args(one)]
        if (value is None and NoneType in arguments) or (isinstance(value, str) and value in words):
            return value
        plain = (bool, int, float, str)
        if any(isinstance(one, type) and one not in plain and isinstance(value, one) for one in kinds):
            return value
        return checked(what, value, kinds[0], bounds)
    if origin is Literal:
        if not isinstance(value, str) or value not in arguments:
            raise InputError(unknown(what, value, list(arguments)))
        return value
    if origin is tuple and arguments[-1] is Ellipsis:
        if not isinstance(value, Iterable) or isinstance(value, str | Mapping):
            raise InputError(f"{what} has to be a tuple, not {value!r}")
        return tuple(checked(what, one, arguments[0], bounds) for one in value)
    if kind in (int, float):
        return _number(what, value, kind, bounds or ANY)
    if kind in (bool, str) and not isinstance(value, kind):
        raise InputError(f"{what} has to be {'a text' if kind is str else 'true or false'}, not {value!r}")
    return value


def _number(what: str, value: Any, kind: type[int] | type[float], bounds: Bounds) -> int | float:
    try:
        if isinstance(value, bool) or not isinstance(value, Real | str) or "_" in str(value):
            raise ValueError("no number")
        number = int(value) if isinstance(value, Integral) else float(value)
        if number not in bounds or not (kind is float or float(number).is_integer()):
            raise ValueError("out of bounds")
    except (ValueError, OverflowError) as error:
        wanted = ", ".join(filter(None, [str(bounds), "a whole number" if kind is int else "a number"]))
        raise InputError(f"{what} has to be {wanted}, not {value!r}") from error
    if kind is int and abs(number) > LARGEST:
        raise InputError(f"{what} has to be below 2^63, not {value!r}")
    return kind(number)


def parameters_of(function: Any, what: str) -> tuple[str, ...]:
    """Names of a function's parameters, by which it asks for what it needs.

    Args:
        what: which function, in messages.

    Raises:
        InputError: it is none, or has a parameter that has no name outside.
    """
    try:
        found = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}: {function!r} is no function whose parameters can be read") from error
    for one in found.values():
        if one.kind not in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
            raise InputError(f"{what}: its parameters are what it asks for, by name; {one} has none")
    return tuple(found)


def unknown(kind: str, name: Any, known: list[str]) -> str:
    """'unknown method 'salum'; did you mean 'salun'? Known: ...'."""
    nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    return f"unknown {kind} {name!r}{hint} Known: {', '.join(known)}"


def forget_set_in_words(scenario: Mapping[str, Any], names: Sequence[str] = ()) -> str:
    """Forget set of a scenario's fields: "class 8", "classes cat, dog", "10 % of the samples", "50 listed samples".

    Args:
        names: of all classes, by number; empty: they have none.
    """
    share, listed = scenario.get("forget_share"), str(scenario.get("forget_samples", "")).partition(":")[0]
    if share:
        return f"{100 * share:g} % of the {listed or 'samples'}"
    classes = scenario.get("forget", [])
    return listed or f"class{'' if len(classes) == 1 else 'es'} {_named(classes, names)}"


def subset_in_words(scenario: Mapping[str, Any], names: Sequence[str] = ()) -> str:
    """Part of the data that a scenario's fields use: " (classes 0, 1, 2 alone, 10 % of the training images)"; empty:
    all.

    Args:
        names: of all classes, by number; empty: they have none.
    """
    classes, share = scenario.get("classes", ()), scenario.get("train_share", 1)
    said = [f"classes {_named(classes, names)} alone"] if classes else []
    said += [f"{100 * share:g} % of the training images"] if share < 1 else []
    return f" ({', '.join(said)})" if said else ""


def _named(classes: Sequence[int], names: Sequence[str]) -> str:
    """Names of classes by their numbers, or the number where there is no name; of many the first ones."""
    first = [names[number] if 0 <= number < len(names) else str(number) for number in classes[:MOST_NAMED]]
    more = f", ... ({len(classes)} in all)" if len(classes) > MOST_NAMED else ""
    return ", ".join(first) + more


def as_cell(value: Any) -> Any:
    """Value for a cell of a CSV file. A text that a spreadsheet would take for a formula has a quote before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULAS) else value


def given_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that were given, by name: those that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def content_hash(content: Any) -> str:
    """12 hex digits over what can be written as JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def expanded(path: Path | str) -> Path:
    """A path of this machine without `~`.

    Raises:
        InputError: it is a URI, or nobody knows where that home directory is.
    """
    if re.match(r"\w[\w+.-]+:/", str(path)):
        raise InputError(f"{path} is no file or directory of this machine")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: there is no such home directory") from error
