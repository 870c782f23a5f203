"""Flags and arguments that several commands have."""

import csv
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raymu.errors import InputError
from raymu.values import checked, given_values

if TYPE_CHECKING:  # they import torch and Ray, which `raymu --help` does not need
    from raymu.scenario import Scenario

StorageArgument = Annotated[str, typer.Argument(help="A sweep's directory or URI, or one above it.")]
MethodFlag = Annotated[
    str | None,
    typer.Option(help="Only among the trials of this method: its name, or a file of your own that defines it."),
]
OBJECTIVE_HELP = "Of the score. (default: removal, or hmean where there is no retrained model)"
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SCENARIO_HELP = "What to unlearn: a name (see: raymu scenarios), or a file of yours (.toml)."
ScenarioFlag = Annotated[str | None, typer.Option("--scenario", help=SCENARIO_HELP)]
ForgetFlag = Annotated[str | None, typer.Option(help="Classes to forget, by number or name: 3 or 0,1,2 or tench")]
ShareFlag = Annotated[
    float | None, typer.Option("--forget-share", help="Forget no class, but this share of the training samples: 0.01")
]
ClassesFlag = Annotated[
    str | None, typer.Option(help="Use the images of these classes alone, for a dry run, by number or name: 0,1,2,3,4")
]
TrainShareFlag = Annotated[
    float | None, typer.Option("--train-share", help="Train on this share of the training images alone: 0.1")
]
OwnFlag = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="A file of yours (.py, .toml) with the scenario, dataset, architecture, metric or objective that a row"
        " names. May be repeated.",
    ),
]
MetricFlag = Annotated[
    list[str] | None,
    typer.Option(help="Measure another one: its name, or the file of your own. May be repeated."),
]
LayersFlag = Annotated[bool, typer.Option("--layers", help="Probe every block, not the last features alone.")]
HEAD_HELP = "The model's own linear head, or cmf: class-mean features."
TRAIN_HELP = "Train all weights, or the classifier alone (the control)."
DataFlag = Annotated[
    str | None, typer.Option(help="Where the dataset's files are, or will be downloaded to; of shards also a URI.")
]
WeightsFlag = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        help="Safetensors file with the scenario's pretrained weights. (default: from the Hugging Face hub)",
    ),
]
CPUS_HELP = "CPU cores of a trial or of each of its workers: its threads, and the processes that decode images."
WORKERS_HELP = "Processes that share a trial's work, under DeepSpeed."
WorkersFlag = Annotated[int, typer.Option(help=WORKERS_HELP)]
ZeroFlag = Annotated[int | None, typer.Option(help="What they share out: ZeRO stage 0 to 3. (default: 1)")]
OffloadFlag = Annotated[bool, typer.Option("--offload", help="Keep the optimizer's state in the CPU's memory.")]
CheckpointingFlag = Annotated[
    bool, typer.Option("--gradient-checkpointing", help="Compute activations anew instead of keeping them.")
]
DeepSpeedFlag = Annotated[Path | None, typer.Option(help="A DeepSpeed configuration (JSON) instead of the above.")]


def with_forget(scenario: "Scenario", forget: str | None, share: float | None) -> "Scenario":
    """Scenario with another forget set, if flags ask for one."""
    if share is not None:
        if forget is not None:
            raise InputError("--forget and --forget-share exclude each other")
        if not 0 < share < 1:
            raise InputError(f"--forget-share takes a share between 0 and 1, not {share:g}")
        return scenario.forgetting(forget=(), forget_share=share)
    if forget is None:
        return scenario
    return scenario.forgetting(forget=classes_in(scenario, forget), forget_share=0.0, forget_samples="")


def classes_in(scenario: "Scenario", text: str) -> tuple[int, ...]:
    """Numbers of the classes that a flag's text names, as in "tench,church" or "0,1,2"; a name with a comma in it
    stands in quotes.
    """
    source = scenario.source
    try:
        named = [text] if text in source.class_names else next(csv.reader([text], skipinitialspace=True)) or [text]
    except csv.Error as error:
        raise InputError(f"classes stand in a line, with commas between them, not {text!r}") from error
    names = [name.strip() for name in named]
    numbers = tuple(map(source.class_number, names))
    for name, number in zip(names, numbers, strict=True):
        if name.isdecimal() and number != int(name) < source.num_classes:
            raise InputError(
                f"{name} is the name of class {number} of {source.name}, and the number of class"
                f" {source.class_names[int(name)]}: say which in a scenario file, where the name stands in quotes"
            )
    return numbers


def with_subset(scenario: "Scenario", classes: str | None, train_share: float | None) -> "Scenario":
    """Scenario with a part of its data, if flags ask for one."""
    chosen = None if classes is None else classes_in(scenario, classes)
    return dataclasses.replace(scenario, **given_values({"classes": chosen, "train_share": train_share}))


def numbers_in(flag: str, text: str) -> tuple[int, ...]:
    """Whole numbers in a flag's text, as in "0,1,2"."""
    try:
        return tuple(checked(flag, part, int) for part in text.split(","))
    except InputError as error:
        raise InputError(f"{flag} takes numbers such as 3 or 0,1,2, not {text!r}") from error


def load_own(files: list[Path] | None) -> None:
    """Load the user's files, whose things are found by their names from then on."""
    from raymu import scenarios

    for file in files or []:
        scenarios.load(file)


def text_of(path: Path | None) -> str | None:
    """Text of a file; None for none."""
    try:
        return None if path is None else path.read_text()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text") from error
