"""Unlearning methods, one file each. A new file is found by its name; there is nothing to register."""

import pkgutil
from importlib.metadata import EntryPoint

from raymu import plugins
from raymu.method import Method, shown


def names() -> list[str]:
    """Every method of raymu and of installed packages, and of the user's files that were loaded, by name."""
    return sorted(plugins.all_of(Method, _own()))


def get(name: str) -> type[Method]:
    """Method of that name, of raymu, of a package or in a file of the user's (see `raymu.plugins`).

    Raises:
        InputError: there is none; the message names the nearest.
    """
    found: type[Method] = plugins.find(Method, name, _own())
    return found


def _own() -> dict[str, EntryPoint]:
    """Methods in `raymu/methods/`, each the one that its file defines."""
    return {
        module.name: EntryPoint(module.name, f"raymu.methods.{module.name}", "raymu.methods")
        for module in pkgutil.iter_modules(__path__)
    }


def markdown_table() -> str:
    """Every method of raymu's with its hyperparameters, published value (for CIFAR-10) and range: docs/methods.md."""
    lines = ["| method | paper | reads | hyperparameters: default -> range |", "|---|---|---|---|"]
    for name in sorted(_own()):
        cls = get(name)
        knobs = []
        for field in cls.hyperparameters().values():
            default = shown(field.default)
            search = field.metadata["range"]
            knobs.append(f"{field.name} {default}" + (f" -> {search}" if search else ""))
        lines.append(f"| {name} | {cls.paper} | {' and '.join(cls.needs)} | {'; '.join(knobs)} |")
    return "\n".join(lines)
