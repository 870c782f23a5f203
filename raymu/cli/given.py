"""The file of `raymu run --config`: a row, or what a person wrote in its place."""

import re
from pathlib import Path
from typing import Any

import yaml

from raymu.cli.flags import text_of
from raymu.errors import InputError
from raymu.values import unknown

AS_IN_JSON = {  # what YAML reads as no text; to YAML 1.1 010 is 8, 1:30 is 90 and 1e-05 a text
    "null": "null|~|",
    "bool": "true|false",
    "int": "-?(0|[1-9][0-9]*)",
    "float": "-?(0|[1-9][0-9]*)([.][0-9]+)?([eE][-+]?[0-9]+)?",
}
BY_HAND = (  # what a file for --config may say that is no row
    "scenario",
    "forget",
    "forget_share",
    "model_seed",
    "method",
    "head",
    "train",
    "config",
    "objective",
    "seed",
    "threads",
    "workers",
    "engine",
)


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
    # A name that is a list, a tag of another kind, a number of too many digits: PyYAML leaves them to Python.
    except (yaml.YAMLError, TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise InputError(f"{path} needs a `config` with hyperparameters, as `raymu best --yaml` prints it")
    if "scenario_hash" not in content:
        for name in content.keys() - set(BY_HAND):
            raise InputError(f"{path}: {unknown('field', str(name), list(BY_HAND))}")
    return content
