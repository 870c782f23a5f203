"""Digests of code. What a computation left behind is known by the code that computed it, since a name stays the same
when the code behind it is edited.
"""

import ast
import functools
import hashlib
import importlib.util
import inspect
import sys
import sysconfig
import textwrap
import types
import uuid
from collections.abc import Iterator
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
            for name, value in _used(one, code):
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


def _is_users(module: str) -> bool:
    """Whether it can be imported, and is neither raymu's, Python's nor of an installed package."""
    try:
        spec = None if _package(module) == "raymu" else importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return False
    origin = "" if spec is None else spec.origin or ""
    return origin.endswith(".py") and not origin.startswith(INSTALLED)


class _Code(NamedTuple):
    """The source of a class or function without docstrings; what it names, `x` and `x.y.z`; and which names it imports
    itself from which module.
    """

    text: str
    names: frozenset[str]
    dotted: frozenset[str]
    imported: frozenset[tuple[str, str]]


@functools.cache
def _code(one: Any) -> _Code | None:
    code = getattr(one, "__code__", one)  # else a decorated function shows the one that it wraps
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError):
        return None
    except SyntaxError:  # a lambda within a line
        return _Code(_instructions(code), frozenset(code.co_names), frozenset(), frozenset())
    names, dotted, imported = set[str](), set[str](), set[tuple[str, str]]()
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        elif isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            dotted.add(ast.unparse(node))
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.update((node.module, alias.name) for alias in node.names)
    return _Code(ast.unparse(tree), frozenset(names), frozenset(dotted), frozenset(imported))


def _instructions(code: types.CodeType) -> str:
    parts = (_instructions(one) if isinstance(one, types.CodeType) else repr(one) for one in code.co_consts)
    return f"{code.co_code.hex()} {code.co_names} {list(parts)}"


def _enclosed(one: Any) -> dict[str, Any]:
    """What a function that stands in another one uses of that."""
    names, cells = getattr(one, "__code__", None), getattr(one, "__closure__", None) or ()
    found = dict(zip(names.co_freevars if names else (), cells, strict=True))
    return {name: cell.cell_contents for name, cell in found.items() if cell != types.CellType()}


def _used(one: Any, code: _Code) -> Iterator[tuple[str, Any]]:
    """The globals that the source names, what it takes of own modules, and what was given to a class afterwards."""
    scope = {**vars(sys.modules[one.__module__]), **_enclosed(one)}
    for name in code.names & scope.keys():
        yield name, scope[name]
    for chain in code.dotted:
        root, *rest = chain.split(".")
        owner = scope.get(root)
        for place, name in enumerate(rest):
            # What modules of others hold may depend on the machine, as os.environ does.
            if not isinstance(owner, types.ModuleType) or not is_own(owner.__name__):
                break
            owner = getattr(owner, name, None)
            if place == len(rest) - 1 or not isinstance(owner, types.ModuleType):
                yield f"{root}.{'.'.join(rest[: place + 1])}", owner
    for module, name in code.imported:
        if _is_users(module):  # raymu's own imports within functions are of what few need
            yield f"{module}.{name}", getattr(importlib.import_module(module), name, None)
    if isinstance(one, type):
        for name, value in vars(one).items():
            function = getattr(value, "__func__", value)
            is_body = getattr(function, "__qualname__", "").startswith(f"{one.__qualname__}.")
            if isinstance(value, PLAIN) and not name.startswith("_"):
                yield name, value
            elif (
                isinstance(function, types.FunctionType)
                and not is_body
                and "__create_fn__" not in function.__qualname__
            ):
                yield name, function


_seen_first: dict[int, tuple[Any, list[Any]]] = {}


def _parts(value: Any) -> Iterator[Any]:
    """The classes, functions and plain values that a global consists of. What a program fills while it runs, such as a
    cache, counts as it was when it was seen first.
    """
    if isinstance(value, PLAIN):
        yield value
    elif isinstance(value, (type, types.FunctionType)):
        yield value
        if hasattr(value, "__wrapped__"):
            yield from _parts(value.__wrapped__)
    elif hasattr(type(value), "__array__"):  # of NumPy or torch
        array = value.detach().cpu().numpy() if hasattr(value, "detach") else value
        yield f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
    elif isinstance(value, (tuple, frozenset)):
        for one in value:
            yield from _parts(one)
    elif isinstance(value, functools.partial):
        yield from _parts((value.func, value.args, value.keywords))
    elif isinstance(value, types.MethodType):
        yield from _parts((value.__func__, value.__self__))
    elif hasattr(value, "__wrapped__"):
        yield from _parts(value.__wrapped__)
    elif (
        isinstance(value, (dict, list, set))
        or is_own(type(value).__module__)
        or isinstance(value, types.SimpleNamespace)
    ):
        if id(value) not in _seen_first:
            _seen_first[id(value)] = value, []  # before what it holds, which may hold it
            held = (
                value if isinstance(value, (dict, list, set)) else {"": type(value), **getattr(value, "__dict__", {})}
            )
            items = (*held.keys(), *held.values()) if isinstance(held, dict) else tuple(held)
            _seen_first[id(value)][1].extend(_parts(items))
        yield from _seen_first[id(value)][1]
