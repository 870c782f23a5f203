"""Things that have a name: raymu's own, those that packages bring, and those in a user's file.

Methods, datasets, architectures, metrics, objectives and scenarios travel to other processes as objects. A name stands
for one of them on a command line, in a scenario and in a row. A package brings its own by entry points of the groups
`raymu.methods`, `raymu.datasets`, `raymu.architectures`, `raymu.metrics`, `raymu.objectives` and `raymu.scenarios`.
"""

import functools
import hashlib
import importlib.util
import logging
import sys
import traceback
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from raymu.errors import InputError, described
from raymu.values import unknown

_loaded: dict[str, ModuleType] = {}  # the user's files, by their names as modules


def find(kind: Any, name: str, own: Mapping[str, Any]) -> Any:
    """Thing of that kind and name, or the one in a file of the user's: "path/to/own.py", or where it has several
    "path/to/own.py:NAME". A method is a class, everything else an object.

    Args:
        kind: its base class.
        own: raymu's own, by name; an entry point stands for what it loads.

    Raises:
        InputError: there is none; the message names the nearest. Or it cannot be loaded.
    """
    what = kind.__name__.lower()
    if is_file(name):
        path, _, wanted = name.partition(":")
        found = _defined_in(load(Path(path)), kind, own, alone=True)
        if wanted not in ("", *found) or (not wanted and len(found) != 1):
            raise InputError(f"{path} defines the {what}s {', '.join(found) or '-'}; name one as {path}:NAME")
        return found[wanted or next(iter(found))]
    known = all_of(kind, own)
    if name not in list(known):  # YAML may say anything, also what has no hash
        raise InputError(unknown(what, name, list(known)))
    thing = known[name]
    return _load(kind, thing, own) if isinstance(thing, EntryPoint) else thing


def all_of(kind: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """Everything of a kind by name, or an entry point that loads it: raymu's `own`, then what packages bring, then what
    stands in the user's files which this process has loaded, and in the script or notebook that it runs.
    """
    group = f"raymu.{kind.__name__.lower()}s"
    packages = _of_packages(group, tuple(sys.path))
    for name in packages.keys() & own.keys():
        _warn(f"left out: {packages[name].value} of {group} has the name of raymu's own {name}")
    found = {**packages, **own, **_defined_in(sys.modules["__main__"], kind, own)}
    for module in _loaded.values():
        files = _defined_in(module, kind, own)
        for name in files.keys() & own.keys():
            _warn(f"{name} is the {kind.__name__.lower()} of {module.__file__} now, and not raymu's")
        found |= files
    return found


def is_file(name: str) -> bool:
    """Whether a name stands for a file: "path/to/own.py" or "path/to/own.py:NAME"."""
    return str(name).partition(":")[0].endswith(".py")


def load(path: Path) -> ModuleType:
    """Module that a file of the user's is, run once a process. From now on what it defines is found by name. Modules
    beside it can be imported, as where Python runs it.

    Raises:
        InputError: there is no such file, or it raises something.
    """
    name = f"own_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise InputError(f"there is no file {path}")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(path.parent.resolve()))
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException as error:  # whatever the user's own code raises
            del sys.modules[name]
            if isinstance(error, KeyboardInterrupt):
                raise
            raise InputError(f"{path} cannot be run: {described(error)}") from error
    return _loaded.setdefault(name, sys.modules[name])


def add(module: ModuleType) -> None:
    """Have what a module defines found by name from now on."""
    sys.modules[module.__name__] = _loaded[module.__name__] = module


def loaded() -> list[ModuleType]:
    """The user's files that this process has loaded."""
    return list(_loaded.values())


def raised_in(error: BaseException) -> str:
    """'own.py, line 12': the last line of a user's file that an error came through. Empty: through none."""
    files = {module.__file__ for module in _loaded.values()}
    lines = [one for one in traceback.extract_tb(error.__traceback__) if one.filename in files]
    return f"{lines[-1].filename}, line {lines[-1].lineno}" if lines else ""


def name_of(thing: Any) -> str:
    """Name of a thing; a method has it as a class. Empty: it has none."""
    name = getattr(thing, "name", "")
    return str(name() if callable(name) else name)


@functools.cache
def _of_packages(group: str, path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """Entry points of a group. To look for them takes 20 ms, and a trial asks several times."""
    # Python's own class: where the package importlib_metadata is imported, it finds the entry points as its class.
    return {entry.name: EntryPoint(entry.name, entry.value, entry.group) for entry in entry_points(group=group)}


@functools.cache  # once a process
def _warn(line: str) -> None:
    logging.getLogger(__name__).warning(line)


def _load(kind: Any, entry: EntryPoint, own: Mapping[str, Any]) -> Any:
    what = f"{kind.__name__.lower()} {entry.name} ({entry.value})"
    try:
        thing = entry.load()
    except Exception as error:  # whatever a package raises
        raise InputError(f"{what} cannot be loaded: {described(error)}") from error
    found = {name_of(thing): thing}
    if isinstance(thing, ModuleType):
        found = _defined_in(thing, kind, own)
    elif not (isinstance(thing, type) and issubclass(thing, kind)) and not isinstance(thing, kind):
        raise InputError(f"{what} is no {kind.__name__}, but {thing!r}")
    if entry.name not in found:  # rows would name what nobody finds
        raise InputError(f"{what} has the name {', '.join(found) or '-'}: the entry point has to be called so, too")
    return found[entry.name]


def _defined_in(module: ModuleType, kind: Any, own: Mapping[str, Any], *, alone: bool = False) -> dict[str, Any]:
    """What a module defines of a kind, by name; also what its objects hold, as a scenario its dataset. What it imports
    of raymu's own does not count.

    Raises:
        InputError: there are two of one name, if `alone`.
    """
    values = [one for one in vars(module).values() if all(one is not known for known in own.values())]
    held = [one for value in values if not isinstance(value, type) for one in getattr(value, "__dict__", {}).values()]
    found: dict[str, Any] = {}
    for one in (*held, *values):
        if _is_one(one, kind, module) and (name := name_of(one)):
            if alone and found.get(name, one) != one:
                raise InputError(f"{module.__file__} defines two {kind.__name__.lower()}s {name}")
            found[name] = one
    return found


def _is_one(value: Any, kind: Any, module: ModuleType) -> bool:
    if not isinstance(value, type):
        return isinstance(value, kind)
    is_method = issubclass(value, kind) and callable(getattr(value, "name", None))
    return is_method and value.__module__ == module.__name__
