"""Summaries of the methods, one line each. They are read from the source, since an import of torch takes seconds."""

import ast
import functools
import pkgutil
from importlib.metadata import entry_points
from pathlib import Path

METHODS = Path(__file__).parent.parent / "methods"


@functools.cache
def summaries() -> dict[str, str]:
    """First line of every method's file by the method's name; of an installed package's, where it comes from."""
    own = [module.name for module in pkgutil.iter_modules([str(METHODS)])]
    packages = {entry.name: f"Of an installed package: {entry.value}" for entry in entry_points(group="raymu.methods")}
    return dict(sorted({**packages, **{name: _summary(METHODS / f"{name}.py") for name in own}}.items()))


def _summary(file: Path) -> str:
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]
