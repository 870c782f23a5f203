"""Digests of code. What a computation left behind is known by the code that computed it, since a name stays the same
when the code behind it is edited.
"""

import ast
import functools
import inspect
import sys
import sysconfig
import textwrap
import types
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from raymu.scenario import content_hash

INSTALLED = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib"))
PLAIN = (bool, int, float, complex, str, bytes, type(None), Path)


def digest(*objects: Any, within: tuple[str, ...] = ()) -> str:
    """12 hex digits over the source of classes and functions, and of all that they reach by name: other classes and
    functions, and constants. Comments, docstrings and formatting do not count.

    Args:
        objects: these count in any case, and what they reach in their own packages.
        within: the modules of raymu that count, such as "raymu.methods", with what is below them. Modules outside
            raymu count unless they are installed.

    Where a source is not to be found, as of a class that was typed into a Python shell, the digest is a new one every
    time: nothing that was kept is then taken for the same.
    """
    todo = list(_parts(objects))
    given = {one for one in todo if not isinstance(one, PLAIN)}
    packages = {_package(one.__module__) for one in given} - {"raymu"}
    seen, found = set[Any](), set[str]()
    while todo:
        one = todo.pop()
        if isinstance(one, PLAIN):
            found.add(repr(one))
        elif one not in seen and (one in given or _counts(one.__module__, within, packages)):
            seen.add(one)
            code = _code(one)
            if code is None:
                return uuid.uuid4().hex[:12]
            found.add(f"{one.__qualname__}: {code.text}")  # without the module: a script that runs is __main__
            for name, value in _used(code, {**vars(sys.modules[one.__module__]), **_enclosed(one)}):
                for part in _parts(value):
                    if isinstance(part, PLAIN):
                        found.add(f"{name}: {part!r}")
                    else:
                        found.add(f"{name}: {part.__qualname__}")
                        todo.append(part)
    return content_hash(sorted(found))


def _package(module: str) -> str:
    return module.partition(".")[0]


def _counts(module: str, within: tuple[str, ...], packages: set[str]) -> bool:
    if _package(module) == "raymu":
        return any(module == one or module.startswith(f"{one}.") for one in within)
    return _package(module) in packages or is_own(module)


@functools.cache
def is_own(module: str) -> bool:
    """Whether it is raymu's or the user's, not one of Python or of an installed package."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return _package(module) == "raymu" or (file is not None and not str(Path(file).resolve()).startswith(INSTALLED))


class _Code(NamedTuple):
    """The source of a class or function without docstrings, and what it names: `x`, and `x.y`."""

    text: str
    names: frozenset[str]
    attributes: frozenset[tuple[str, str]]


@functools.cache
def _code(one: Any) -> _Code | None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(one)))
    except (OSError, TypeError, SyntaxError):  # there is none, or it is a lambda within a line
        return None
    names, attributes = set[str](), set[tuple[str, str]]()
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        elif isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            attributes.add((node.value.id, node.attr))
    return _Code(ast.unparse(tree), frozenset(names), frozenset(attributes))


def _enclosed(one: Any) -> dict[str, Any]:
    """What a function that stands in another one uses of that."""
    names, cells = getattr(one, "__code__", None), getattr(one, "__closure__", None) or ()
    found = dict(zip(names.co_freevars if names else (), cells, strict=True))
    return {name: cell.cell_contents for name, cell in found.items() if cell != types.CellType()}


def _used(code: _Code, scope: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The globals that the source names, and the attributes that it takes of modules among them."""
    for name in code.names & scope.keys():
        yield name, scope[name]
    for name, attribute in code.attributes:
        owner = scope.get(name)
        # What modules of others hold may depend on the machine, as os.environ does.
        if isinstance(owner, types.ModuleType) and is_own(owner.__name__) and hasattr(owner, attribute):
            yield f"{name}.{attribute}", getattr(owner, attribute)


_seen_first: dict[int, tuple[Any, list[Any]]] = {}


def _parts(value: Any) -> Iterator[Any]:
    """The classes, functions and plain values that a global consists of. What a program fills while it runs, such as a
    cache, counts as it was when it was seen first.
    """
    if isinstance(value, PLAIN):
        yield value
    elif isinstance(value, functools.partial):
        yield from _parts((value.func, value.args, value.keywords))
    elif isinstance(value, (dict, list, set)):
        if id(value) not in _seen_first:
            items = (*value.keys(), *value.values()) if isinstance(value, dict) else tuple(value)
            _seen_first[id(value)] = value, list(_parts(items))
        yield from _seen_first[id(value)][1]
    elif isinstance(value, (tuple, frozenset)):
        for one in value:
            yield from _parts(one)
    elif isinstance(plain := inspect.unwrap(value) if callable(value) else value, (type, types.FunctionType)):
        yield plain
