"""Modules of Python, of installed packages, of raymu and of the user."""

import functools
import importlib.util
import sys
import sysconfig
from pathlib import Path
from typing import Any

INSTALLED = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib"))
SITES = {"site-packages", "dist-packages"}  # also another environment's, which a .pth file adds


def is_own(module: str) -> bool:
    """Whether it is raymu's or the user's, not one of Python or of an installed package."""
    return package_of(module) == "raymu" or is_users(module)


def package_of(module: str) -> str:
    """Name of the package that a module belongs to."""
    return module.partition(".")[0]


@functools.cache
def is_users(module: str) -> bool:
    """Whether it is neither raymu's, Python's nor of an installed package."""
    return file_of(module) is not None


def file_of(module: str) -> Path | None:
    """The file of a user's module, imported or not."""
    package = package_of(module)
    if package == "raymu" or (package != module and _place(package) is None):
        return None  # asked first, since to look for a module imports its package
    place = _place(module)
    return place if place is not None and place.suffix == ".py" else None


def _place(module: str) -> Path | None:
    """The file of a module or, of a package without one, its folder; None if it is Python's or installed."""
    found: Any = sys.modules.get(module)
    try:
        spec = importlib.util.find_spec(module) if found is None else None
    except (ImportError, ValueError):
        spec = None
    origin = getattr(found, "__file__", None) or getattr(spec, "origin", None)
    folders = getattr(found, "__path__", None) or getattr(spec, "submodule_search_locations", None) or [None]
    place = origin or next(iter(folders))
    path = None if place is None else Path(place).resolve()
    installed = path is not None and (str(path).startswith(INSTALLED) or SITES & set(path.parts))
    return None if installed else path
