"""Digests of code. What a computation left behind is known by the code that computed it, since a name stays the same
when the code behind it is edited.
"""

import ast
import contextlib
import functools
import hashlib
import importlib.util
import inspect
import sys
import textwrap
import types
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from raymu.modules import file_of, is_own, is_users, package_of
from raymu.values import content_hash

DATA = tuple(  # an index is known by the digest of the data that it made
    f"raymu.data.{name}"
    for name in ("arrays", "dataset", "decoding", "encoded", "folders", "images", "published", "rgb")
)
TRAINING = (
    *DATA,
    "raymu.splits",
    "raymu.engines",
    "raymu.method",
    "raymu.methods",
    "raymu.models",
    "raymu.workers",
)
EVALUATION = (*DATA, "raymu.splits", "raymu.evaluation", "raymu.models", "raymu.workers")
PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...), Path)
SAID = "_code_where_it_came_from"
NOT_CODE = {"_abc_impl", "_code"}  # what Python and `engines.code_of` keep in a class
Function = types.FunctionType


def digest(*objects: Any, within: tuple[str, ...] = ()) -> str:
    """12 hex digits over the source of classes and functions, and of all that they reach by name: other classes and
    functions, and the values that they use, each with its place. Of a module of the user's own that they name, all of
    it. Comments, docstrings and formatting do not count.

    Args:
        objects: these count in any case, and what they reach in their own packages.
        within: the modules of raymu that count, such as "raymu.methods", with what is below them. Modules outside
            raymu count unless they are installed.

    Where a source is not to be found, as of a class that was typed into a Python shell, the digest is this process's
    own: what another one kept is never taken for the same.
    """
    return content_hash(_Reader(objects, within).text(objects))


def text_of(module: str) -> str:
    """The source of a module of raymu that need not be imported, as a digest takes it."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return _read(Path(spec.origin).read_text(encoding="utf-8"), module).text


class _Constant(NamedTuple):
    """A container that a module of raymu defines. Its source counts, since others may add to it, as to the datasets."""

    module: str
    name: str


class _Code(NamedTuple):
    """The source of a class, function or module without docstrings; what it names, `x` and `x.y.z`; and the modules
    that it imports.
    """

    text: str
    names: frozenset[str]
    dotted: frozenset[str]
    imported: frozenset[str]


@functools.cache
def _code(one: Any) -> _Code | None:
    code = getattr(one, "__code__", one)  # else a decorated function shows the one that it wraps
    try:
        if one.__name__ == "<lambda>":  # its lines hold more than itself, perhaps another one
            inspect.getsource(code)  # raises where nobody can read it
            names = frozenset(_named(code))
            return _Code(_instructions(code), names, frozenset(f"{a}.{b}" for a in names for b in names), frozenset())
        return _read(textwrap.dedent(inspect.getsource(code)), one.__module__)
    except (OSError, TypeError, SyntaxError):
        return None


@functools.cache
def _token(one: Any) -> str:
    """What stands for a source that nobody can read."""
    return uuid.uuid4().hex


def _unreadable(one: Any) -> _Code:
    """A class or function whose source is not to be found, by what Python made of it."""
    parts = [one] if isinstance(one, Function) else [one, *map(_unbound, vars(one).values())]
    functions = [part for part in parts if isinstance(part, Function)]
    names = frozenset(name for function in functions for name in _named(function.__code__))
    dotted = frozenset(f"{a}.{b}" for a in names for b in names)
    return _Code(" ".join(map(_token, (one, *functions))), names, dotted, frozenset())


def _read(source: str, module: str) -> _Code:
    tree = ast.parse(source)
    names, dotted, imported, strings = set[str](), set[str](), set[str](), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        elif isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            dotted.add(ast.unparse(node))
        elif isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = getattr(sys.modules.get(module), "__package__", None) or module.rpartition(".")[0]
            with contextlib.suppress(ImportError):  # a relative import in a script
                origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package or None)
                imported.update((origin, *(f"{origin}.{alias.name}" for alias in node.names)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            strings.add(node.value)
    if any(name.rpartition(".")[2] in ("import_module", "__import__") for name in names | dotted):
        imported |= {one for one in strings if all(part.isidentifier() for part in one.split("."))}
    return _Code(ast.unparse(tree), frozenset(names), frozenset(dotted), frozenset(imported))


@functools.cache
def _body(module: str) -> list[ast.stmt]:
    path = Path(getattr(sys.modules.get(module), "__file__", None) or "")  # "<stdin>" of what was typed
    return ast.parse(path.read_text(encoding="utf-8") if path.is_file() else "").body


@functools.cache
def _origins(module: str) -> dict[str, str]:
    """From which module a module has a name, for those that it imports."""
    imports = (node for node in _body(module) if isinstance(node, ast.ImportFrom))
    return {alias.asname or alias.name: node.module or "" for node in imports for alias in node.names}


@functools.cache
def _assigned(constant: _Constant) -> _Code:
    text = [
        ast.unparse(node)
        for node in _body(constant.module)
        for target in (getattr(node, "targets", None) or [getattr(node, "target", None)])
        if isinstance(target, ast.Name) and target.id == constant.name
    ]
    return _read("\n".join(text), constant.module)


def _instructions(code: types.CodeType) -> str:
    parts = (_instructions(one) if isinstance(one, types.CodeType) else repr(one) for one in code.co_consts)
    return f"{code.co_code.hex()} {code.co_names} {list(parts)}"


def _named(code: types.CodeType) -> Iterator[str]:
    yield from (*code.co_names, *code.co_freevars)
    for one in code.co_consts:
        if isinstance(one, types.CodeType):
            yield from _named(one)


def _enclosed(function: Function) -> dict[str, Any]:
    """What a function that stands in another one uses of that."""
    found = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    return {name: cell.cell_contents for name, cell in found.items() if cell != types.CellType()}


def _unbound(value: Any) -> Any:
    """The function that stands in a class as static method, class method or property."""
    return getattr(value, "__func__", getattr(value, "fget", value))


def _is_a_value(value: Any) -> bool:
    """Whether an object of an installed class, or of Python's, is known by what it holds. Others, such as a generator
    of random numbers or a console, hold what differs from process to process.
    """
    kind: Any = type(value)
    compares = kind.__eq__ is not object.__eq__ and kind.__module__ != "os"  # os.environ compares, too
    return compares or kind.__module__ in ("operator", "types", "builtins") or hasattr(value, "state_dict")


def _content(value: Any) -> tuple[Any, ...]:
    """Parts of an object, as pickle takes them. None for an object that cannot be pickled, such as a lock. Where the
    content may differ from process to process, the attributes, if all are plain.
    """
    if isinstance(value, Travels):  # its own digest may ask for it
        return type(value), tuple(item for item in vars(value).items() if item[0] != SAID)
    if not (is_own(type(value).__module__) or _is_a_value(value)):
        held = getattr(value, "__dict__", {})
        return tuple(held.items()) if all(isinstance(one, PLAIN) for one in held.values()) else ()
    try:
        made = value.__reduce_ex__(4)
    except Exception:  # whatever an object may raise
        return ()
    if isinstance(made, str):
        return (made,)
    make, arguments, state, *items = (*made, None, None, None)[:5]
    state = tuple(state.items()) if isinstance(state, dict) else state
    return (make, arguments, state, *(tuple(one or ()) for one in items))


class Travels:
    """Object of the user's that is known by its code, also in another process, which may not have the source: it takes
    along what was said where it came from.
    """

    def code(self, within: tuple[str, ...] = ()) -> str:
        """Digest of its class and of its attributes; see `digest`."""
        said = vars(self).get(SAID)
        return str(said or digest(type(self), dict(vars(self)), within=within))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), SAID: self.code()}


_process, _readings = uuid.uuid4().hex, 0
_seen_first: dict[int, tuple[Any, tuple[Any, ...]]] = {}
_sweep = ""


def reading() -> tuple[str, int]:
    """Name of this process, and the number of times that it has looked anew."""
    return _process, _readings


def read_anew(sweep: str = "") -> None:
    """Forget what containers and objects held at first sight. It comes before a sweep, and before a trial that belongs
    to none; a worker looks once a `sweep`, for all of its trials.
    """
    global _readings, _sweep
    if _sweep and sweep in ("", _sweep):
        return
    _sweep, _readings = sweep, _readings + 1
    _seen_first.clear()


def _first(value: Any, parts: Callable[[Any], tuple[Any, ...]]) -> tuple[Any, ...]:
    """Parts of a container or an object at its first sight. What a program adds later, as to a cache, is no code."""
    if id(value) not in _seen_first:
        _seen_first[id(value)] = value, parts(value)
    return _seen_first[id(value)][1]


class _Reader:
    """Writes down values and code, each class, function and container once, and then by its number."""

    def __init__(self, objects: tuple[Any, ...], within: tuple[str, ...]) -> None:
        self._within = within
        self._given = {id(one) for one in objects}
        self._packages = {package_of(getattr(one, "__module__", None) or "raymu") for one in objects} - {"raymu"}
        self._numbers: dict[Any, int] = {}
        self._kept: list[Any] = []

    def text(self, value: Any) -> str:
        """Text of a value and of all its parts."""
        if isinstance(value, PLAIN):
            return repr(value)
        if isinstance(value, _Constant):
            return self._constant(value)
        if isinstance(value, (tuple, frozenset)):
            return self._several(type(value).__qualname__, value)
        if hasattr(type(value), "__array__"):  # of NumPy, torch or pandas
            array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
            content = array.tolist() if array.dtype.hasobject else hashlib.sha256(array.tobytes()).hexdigest()
            return f"{array.dtype} {array.shape} {self.text(content)}"
        if isinstance(value, types.ModuleType):
            return self._module(value.__name__)
        if (seen := self._number(id(value))) is not None:
            return seen
        self._kept.append(value)  # so that no other gets its id
        if isinstance(value, (type, Function)):
            return self._definition(value)
        if isinstance(value, (list, set)):
            return self._several(type(value).__qualname__, _first(value, tuple))
        if isinstance(value, (dict, types.MappingProxyType)):
            return self._several("dict", _first(value, lambda held: tuple(held.items())))
        if isinstance(value, (types.MethodType, functools.partial, property, staticmethod, classmethod)):
            fields = ("__self__", "__func__", "func", "args", "keywords", "fget", "fset", "fdel")
            kind: Any = type(value)
            return self._several(kind.__qualname__, [getattr(value, name, None) for name in fields])
        if hasattr(value, "__wrapped__"):
            return self.text(value.__wrapped__)
        return self._several(type(value).__qualname__, _first(value, _content))

    def _number(self, key: Any) -> str | None:
        """The number of what was written down already; None where it was not, and is from now on."""
        if key in self._numbers:
            return f"#{self._numbers[key]}"
        self._numbers[key] = len(self._numbers)
        return None

    def _several(self, kind: str, values: Any) -> str:
        if isinstance(values, frozenset) or kind == "set":
            values = sorted(values, key=lambda one: getattr(one, "__qualname__", repr(one)))
        return f"{kind}({', '.join(map(self.text, values))})"

    def _module(self, name: str) -> str:
        """All of a user's module and of those that it imports; of others their name."""
        path = file_of(name)
        if path is None:
            return name
        if (seen := self._number(path)) is not None:
            return seen
        code = _read(path.read_text(encoding="utf-8"), name)
        return f"{code.text} {self._imports(code)}"

    def _imports(self, code: _Code) -> list[str]:
        return [self._module(name) for name in sorted(code.imported) if is_users(name)]

    def _constant(self, constant: _Constant) -> str:
        if (seen := self._number(constant)) is not None:
            return seen
        code, scope = _assigned(constant), vars(sys.modules[constant.module])
        used = [f"{name}: {self.text(scope[name])}" for name in sorted(code.names & scope.keys() - {constant.name})]
        return f"{code.text} {used}"

    def _counts(self, one: Any) -> bool:
        module = one.__module__ or ""
        if id(one) in self._given or package_of(module) in self._packages or is_users(module):
            return True
        return self._is_within(module)

    def _is_within(self, module: str) -> bool:
        return any(module == name or module.startswith(f"{name}.") for name in self._within)

    def _definition(self, one: Any) -> str:
        if not self._counts(one):
            return f"{one.__module__}.{one.__qualname__}"
        code = _code(one) or _unreadable(one)
        held = self._held(one) if isinstance(one, type) else self._given_to(one)
        used = sorted([*self._used(one, code), *held], key=lambda item: item[0])
        # Without the module: a script that runs is __main__.
        values = [f"{name}: {self.text(value)}" for name, value in used]
        return f"{one.__qualname__}: {code.text} {self._imports(code)} {values}"

    def _used(self, one: Any, code: _Code) -> Iterator[tuple[str, Any]]:
        """The globals that the source names, and what it takes of raymu's modules."""
        scope = getattr(one, "__globals__", None) or vars(sys.modules[one.__module__])
        origins = _origins(one.__module__)
        for name in code.names & scope.keys():
            yield name, self._fixed(origins.get(name) or one.__module__, name, scope[name])
        for chain in code.dotted:
            root, *rest = chain.split(".")
            owner = scope.get(root)
            for place, name in enumerate(rest, start=1):
                if not isinstance(owner, types.ModuleType) or package_of(owner.__name__) != "raymu":
                    break
                module, owner = owner.__name__, getattr(owner, name, None)
                if not isinstance(owner, types.ModuleType):
                    yield f"{root}.{'.'.join(rest[:place])}", self._fixed(module, name, owner)

    def _fixed(self, module: str, name: str, value: Any) -> Any:
        """The value, but for containers of raymu their place, and nothing where that does not count."""
        if not isinstance(value, (dict, list, set)) or package_of(module) != "raymu":
            return value
        return _Constant(module, name) if self._is_within(module) else None

    def _given_to(self, function: Function) -> Iterator[tuple[str, Any]]:
        """Default values, what an enclosing function gave, and attributes."""
        yield "defaults of it", (function.__defaults__, function.__kwdefaults__)
        yield from _enclosed(function).items()
        yield from vars(function).items()

    def _held(self, one: type) -> Iterator[tuple[str, Any]]:
        """A class's bases, its attributes, and what was given to its methods."""
        yield "bases of it", one.__bases__
        for name, value in vars(one).items():
            function = _unbound(value)
            if isinstance(function, Function):
                if "__create_fn__" in inspect.unwrap(function).__qualname__:
                    continue  # of a dataclass
                if function.__qualname__.startswith(f"{one.__qualname__}."):  # its text is in the class's
                    yield f"{name}()", tuple(self._given_to(function))
                else:
                    yield name, function
            elif not name.startswith("__") and name not in NOT_CODE:
                yield name, value
