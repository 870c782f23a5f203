"""Scenarios by name, or in a file of the user's: a trained model, folders of images, and what has to go.

    name = "pets"                              # what stands in rows; default: the file's name
    architecture = "resnet20.py:resnet20"      # or timm's name of one
    original = "resnet20.safetensors"          # trained elsewhere; left out: [recipe] says how one is trained
    retrained = "none"                         # or a file; left out: trained by [recipe], without the forget set
    forget = ["tench"]                         # classes, by name or by number

    [data]
    format = "folders"                         # or shards, npz, parquet
    path = "images"

Every field of `Scenario` may stand there. Paths begin at the file's directory.
"""

import dataclasses
import importlib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from raymu import plugins
from raymu.architecture import Architecture, Made
from raymu.data import formats, listed
from raymu.errors import InputError, described
from raymu.models import given
from raymu.scenario import NONE, SCENARIOS, Recipe, Scenario
from raymu.values import checked, expanded, unknown

SUFFIX = ".toml"
TABLES = ("data", "recipe", "model_args")
RESOLVED = ("original", "retrained", "forget", "classes", "forget_samples")  # said by file or by name
FIELDS = (*(one.name for one in dataclasses.fields(Scenario) if one.name not in ("data", *TABLES)), *TABLES)


def names() -> list[str]:
    """Scenarios of raymu, then of installed packages, by name."""
    known = plugins.all_of(Scenario, SCENARIOS)
    return [*SCENARIOS, *(name for name in known if name not in SCENARIOS)]


def get(name: str) -> Scenario:
    """Scenario of that name, of raymu, of a package or in a file of the user's: one that describes it (.toml), or that
    defines it (see `raymu.plugins`).

    Raises:
        InputError: there is none; the message names the nearest. Or the file says something that cannot work.
    """
    if str(name).endswith(SUFFIX):
        return read(Path(name))
    found: Scenario = plugins.find(Scenario, name, SCENARIOS)
    return found


def load(path: Path) -> None:
    """Have everything that a file of the user's defines found by its name from now on.

    Raises:
        InputError: it cannot be read, or run.
    """
    if path.suffix != SUFFIX:
        plugins.load(path)
        return
    module = ModuleType(str(path.resolve()))
    module.scenario = read(path)  # type: ignore[attr-defined]
    plugins.add(module)


def read(path: Path) -> Scenario:
    """Scenario that a file describes. Its models are copied into the cache, and its images are looked at.

    Raises:
        InputError: it cannot be read, or says something that cannot work; the message begins with its path.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # no TOML, or no text
        raise InputError(f"{path} is no TOML: {error}") from error
    try:
        return _scenario({"name": path.stem, **content}, path.parent)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _scenario(content: Mapping[str, Any], directory: Path) -> Scenario:
    _known("field", content, FIELDS)
    name = checked("name", content["name"], str)
    network = architecture_of(checked("architecture", content.get("architecture"), str), directory)
    arguments = _table(content, "model_args")
    if ("data" in content) == ("dataset" in content):
        raise InputError("it needs a table [data], or the name of a dataset that raymu knows (dataset = ...)")
    kept = {field: content[field] for field in content if field not in (*TABLES, *RESOLVED)}
    task = Scenario(
        **kept
        | {
            "dataset": content.get("dataset", "digits"),
            "architecture": network,
            "recipe": _recipe(content),
            "model_args": tuple(arguments.items()),
        }
    )
    task.network.check(task.pretrained)
    if "data" in content:
        described = formats.dataset(name, _table(content, "data"), directory, task.transform)
        task = dataclasses.replace(task, dataset=described)
    said = dict[str, Any]()
    for field in ("forget", "classes"):
        named = checked(field, content.get(field, ()), tuple[Any, ...])
        said[field] = tuple(task.source.class_number(one) for one in named)
    rows, classes = len(task.original_rows), task.source.num_classes
    if rows not in (0, classes):
        raise InputError(f"original_rows names {rows} outputs, the data have {classes} classes")
    for which in ("original", "retrained"):
        file = checked(which, content.get(which, ""), str)
        said[which] = file if file in ("", NONE) else given.keep(task, directory / expanded(file))
    if samples := checked("forget_samples", content.get("forget_samples", ""), str):
        said["forget_samples"] = listed.keep(directory / expanded(samples))
    if said["original"] == NONE:
        raise InputError("original is a file; left out, it is trained by [recipe]")
    return dataclasses.replace(task, **said)


def architecture_of(name: str, directory: Path) -> str | Architecture:
    """Architecture by name, or what stands in a module: "resnet20.py:resnet20", "torchvision.models:resnet18"."""
    module, _, attribute = name.partition(":")
    if not attribute:
        return name
    file = directory / file_of(name)
    if plugins.is_file(name) or file.is_file():
        held: Any = plugins.load(file)
    else:
        try:
            held = importlib.import_module(module)
        except Exception as error:  # whatever a module raises
            raise InputError(f"architecture {name}: {described(error)}") from error
    made = getattr(held, attribute, None)
    if isinstance(made, Architecture):
        return made
    if not callable(made):
        functions = [key for key, value in vars(held).items() if callable(value) and not key.startswith("_")]
        raise InputError(unknown(f"function of {module}", attribute, functions))
    return Made(name, made)


def file_of(architecture: str) -> Path:
    """File of an architecture's module: "resnet20.py" of "resnet20.py:resnet20" and of "resnet20:resnet20"."""
    module = architecture.partition(":")[0]
    return Path(module if plugins.is_file(architecture) else f"{module}.py")


def _recipe(content: Mapping[str, Any]) -> Recipe:
    """Recipe of a file; one that nothing is trained by has to say no rate and no epochs."""
    table = _table(content, "recipe")
    _known("field of [recipe]", table, tuple(one.name for one in dataclasses.fields(Recipe)))
    trained = [which for which in ("original", "retrained") if not content.get(which)]
    for field in ("lr", "epochs") if trained else ():
        if field not in table:
            raise InputError(f"[recipe] needs {field}: it says how the {' and the '.join(trained)} model is trained")
    return Recipe(**{"lr": 0.01, "epochs": 1, **table})


def _table(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = content.get(name, {})
    if not isinstance(table, dict):
        raise InputError(f"[{name}] has to be a table, not {table!r}")
    return table


def _known(what: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            raise InputError(unknown(what, name, list(known)))
