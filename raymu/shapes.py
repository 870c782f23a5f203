"""What JSON from elsewhere has to look like before anything is made of it."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import GenericAlias, NoneType, UnionType
from typing import Any, Union, get_args, get_origin

KINDS: dict[Any, tuple[type, ...]] = {float: (int, float), Any: (NoneType, bool, int, float, str, list, dict)}
SHOWN = 40  # characters of a value


@dataclass(frozen=True, eq=False)
class Fields:
    """Kind of an object of JSON with these fields, each of some kind where it is there; it may have others.

    Attributes:
        kinds: of fields, by name: a type of Python's, a union of such, `list[...]`, `dict[str, ...]`, or Fields; many
            Fields are `of(list, ...)` or `of(dict, ...)`.
        needed: fields that have to be there.
    """

    kinds: Mapping[str, Any]
    needed: tuple[str, ...] = ()


def of(outer: type, inner: Fields) -> Any:
    """Kind of a list, or of an object with any names, whose values have these fields."""
    return GenericAlias(outer, (str, inner) if outer is dict else (inner,))


def misfit(content: Any, kind: Any, name: str) -> str:
    """The first value that is not of its kind, such as "config.lr is []"; empty: all are.

    Args:
        name: of the content.
    """
    if isinstance(kind, Fields):
        if type(content) is not dict:
            return _said(name, content)
        missing = next((f"{name} has no {field}" for field in kind.needed if field not in content), "")
        within = ((content[field], one, field) for field, one in kind.kinds.items() if field in content)
        return missing or _first(within, f"{name}.")
    plain, inner = _taken_apart(kind)
    if type(content) in plain:
        return ""
    if inner is None or type(content) is not inner[0]:
        return _said(name, content)
    values: Any = content
    named = values if isinstance(values, dict) else dict(enumerate(values))
    if _taken_apart(inner[1])[0].issuperset(map(type, named.values())):
        return ""
    return _first(((value, inner[1], str(key)) for key, value in named.items()), f"{name}.")


@functools.cache
def _taken_apart(kind: Any) -> tuple[frozenset[type], tuple[type, Any] | None]:
    """Types whose values need no further look, and of a list or an object its type and the kind of its values."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        parts = [_taken_apart(one) for one in arguments]
        return frozenset().union(*(plain for plain, _ in parts)), next((inner for _, inner in parts if inner), None)
    if origin in (list, dict):
        return frozenset(), (origin, arguments[-1])
    return frozenset(KINDS.get(kind, (kind,))), None


def _first(values: Iterable[tuple[Any, Any, str]], before: str) -> str:
    return next((said for value, kind, name in values if (said := misfit(value, kind, f"{before}{name}"))), "")


def _said(name: str, content: Any) -> str:
    shown = repr(content)
    return f"{name} is {shown if len(shown) <= SHOWN else shown[:SHOWN] + '...'}"
