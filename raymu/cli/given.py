"""A row, or what a person wrote in its place, as `raymu run --config` takes it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from raymu.cli.flags import DEFAULT_SCENARIO, given_values, text_of
from raymu.errors import InputError
from raymu.values import unknown

if TYPE_CHECKING:  # they import torch and Ray, which `raymu --help` does not need
    from raymu.engines.options import Options
    from raymu.scenario import Scenario

MOST_NAMED = 5  # of what differs between two rows
OF_SCENARIO = ("forget", "forget_share", "model_seed")  # what a row also says outside its scenario_fields
OF_RUN = ("method", "head", "train", "config", "objective", "seed", "threads", "workers", "engine")
AS_IN_JSON = {  # what YAML reads as no text; to YAML 1.1 010 is 8, 1:30 is 90 and 1e-05 a text
    "null": "null|~|",
    "bool": "true|false",
    "int": "-?(0|[1-9][0-9]*)",
    "float": "-?(0|[1-9][0-9]*)([.][0-9]+)?([eE][-+]?[0-9]+)?",
}
BY_HAND = ("scenario", *OF_SCENARIO, *OF_RUN)  # what a file for --config may say that is no row


def scenario_in(row: Mapping[str, Any], name: str | None) -> "Scenario":
    """The scenario of that name, or else the row's own."""
    from raymu.scenario import Scenario
    from raymu.scenario import get as get_scenario

    if name is not None:
        return get_scenario(name)
    if "scenario_hash" not in row:  # written by hand
        changes = {field: row[field] for field in OF_SCENARIO if field in row}
        if {"forget", "forget_share"} & changes.keys():
            changes = {"forget": (), "forget_share": 0.0, **changes}
        return Scenario.from_dict({**get_scenario(row.get("scenario", DEFAULT_SCENARIO)).as_dict(), **changes})
    if "scenario_fields" not in row:
        raise InputError(
            f"the row names its scenario, {row['scenario']}, but does not hold it, since raymu 0.1 made it: raymu run"
            " --config takes such a row, with --scenario and where need be --forget"
        )
    task = Scenario.from_dict(row["scenario_fields"])
    if task.hash != row["scenario_hash"]:
        raise InputError(f"the row was changed: its scenario_fields are not those of {row['scenario_hash']}")
    for field, value in {"scenario": task.name, **{one: task.as_dict()[one] for one in OF_SCENARIO}}.items():
        if row.get(field, value) != value:
            raise InputError(f"the row was changed: its {field} is {row[field]}, in its scenario_fields {value}")
    return task


def differences_to(given: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """Differences between a given row and the row of the same trial run again, as "column is X there, Y here"."""
    from raymu.trial import IDENTITY, MADE_WITH

    if "scenario_hash" in given and "scenario_fields" not in given:
        return ["raymu 0.1 made the row, which does not say by what code"]
    if any(given.get(key) != row[key] for key in IDENTITY if key not in MADE_WITH):
        return []  # another trial was asked for
    if given.get("status") == "stopped":
        return [f"its trial was stopped after {given['epochs']} epochs, this one went on for {row['epochs']}"]
    keys = [*MADE_WITH, *(key for key in row if key.startswith(("val_", "test_", "train_"))), "score"]
    differ = [key for key in keys if key in given and given[key] != row[key] and given.get("status") == "completed"]
    return [f"{key} is {given[key]} there, {row[key]} here" for key in differ[:MOST_NAMED]]


def options_in(row: Mapping[str, Any], **given: Any) -> "Options":
    """Options that carried out the row's trial, with the given ones in their place."""
    from raymu.engines.options import ENGINES, Options

    engine = row.get("engine", "pytorch")
    if engine not in list(ENGINES):
        raise InputError(unknown("engine", str(engine), list(ENGINES)))
    said = {
        "threads": row.get("threads"),
        "workers": row.get("workers"),
        "zero": ENGINES[engine],
        "deepspeed": row.get("deepspeed"),
    }
    if said["deepspeed"] or given.get("deepspeed"):
        said["zero"] = None
    return Options(**{**given_values(said), **given_values(given)})


def read_row(path: Path | None) -> dict[str, Any]:
    """The mapping in a YAML or JSON file; empty for None."""
    if path is None:
        return {}

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            pairs = [[self.construct_object(one, deep=True) for one in pair] for pair in node.value]
            names = [name for name, _ in pairs]
            if twice := [name for name in names if names.count(name) > 1]:
                raise InputError(f"{path} says {twice[0]} twice")
            return dict(pairs)

    Loader.yaml_implicit_resolvers = {}
    for kind, words in AS_IN_JSON.items():
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"({words})$"), None)
    try:
        content = yaml.load(text_of(path) or "", Loader)
    except (yaml.YAMLError, TypeError) as error:  # TypeError: a name that is a list
        raise InputError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise InputError(f"{path} needs a `config` with hyperparameters, as `raymu best --yaml` prints it")
    if "scenario_hash" not in content:
        for name in content.keys() - set(BY_HAND):
            raise InputError(f"{path}: {unknown('field', str(name), list(BY_HAND))}")
    return content
