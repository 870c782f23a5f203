"""`raymu methods`, `raymu scenarios` and `raymu doctor`: what there is."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from raymu.cli.flags import JsonFlag
from raymu.cli.program import app, console
from raymu.errors import InputError
from raymu.values import STORAGE


@app.command()
def methods(
    as_json: JsonFlag = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of docs/methods.md.")] = False,
) -> None:
    """List the unlearning methods, their hyperparameters, published values and ranges."""
    from raymu.method import shown
    from raymu.methods import get, markdown_table, names

    known = dict(_loadable(names(), get))
    described = []
    for name, cls in known.items():
        described.append(
            {
                "name": name,
                "paper": cls.paper,
                "needs": list(cls.needs),
                "forgets": ["classes"] if cls.classes_only else ["classes", "samples"],
                "hyperparameters": {
                    field.name: {
                        "default": field.default,
                        **(dataclasses.asdict(field.metadata["range"]) if field.metadata["range"] else {}),
                        "doc": field.metadata["doc"],
                    }
                    for field in cls.hyperparameters("cmf").values()
                },
                "published": [
                    {"dataset": dataset, "head": head, "name": called, "config": dict(values)}
                    for (dataset, head, called), values in cls.published.items()
                ],
            }
        )
    if as_json:
        typer.echo(json.dumps(described, indent=2))
        return
    if as_markdown:
        typer.echo(markdown_table())
        return
    for name, cls in known.items():
        console.print(Text.assemble((name, "bold"), f"  {cls.paper}"))
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2), show_header=False)
        for field in cls.hyperparameters().values():
            search, doc = field.metadata["range"] or "fixed", field.metadata["doc"]
            table.add_row(field.name, shown(field.default), str(search), doc)
        for (dataset, head, called), values in cls.published.items():
            setting = " ".join(f"{key}={shown(value)}" for key, value in values.items())
            table.add_row(f"{dataset} {head}", called, "", setting)
        console.print(table, highlight=False)
    console.print(
        "Hyperparameters: default, range that a sweep covers, meaning. Below them what is published by dataset and"
        " head: what the authors' code says, which is the published setting, and what the paper's table says where it"
        " differs, for the architecture that they trained on that dataset. Elsewhere the setting for CIFAR-10 is the"
        " fallback. With --head cmf, temperature (1, 1..64 log) is"
        " searched as well."
    )


@app.command()
def scenarios(
    as_json: JsonFlag = False,
    memory: Annotated[
        bool, typer.Option("--memory", help="How much there is to forget, as far as the cache knows references.")
    ] = False,
    init: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a scenario file (.toml) for your own images, from what is found."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="With --init: your images, a directory, a URI or an npz file.")
    ] = None,
    original: Annotated[Path | None, typer.Option(help="With --init: the weights of your trained model.")] = None,
    architecture: Annotated[
        str | None, typer.Option(help="With --init: timm's name of the model, or your own, resnet20.py:ResNet20.")
    ] = None,
) -> None:
    """List the scenarios: what has to be forgotten. Or write a file with one of yours."""
    from raymu import scenarios as there

    if init is not None:
        _init(init, data, original, architecture)
        return
    if data or original or architecture:
        raise InputError("--data, --original and --architecture go with --init FILE")
    known = list(dict(_loadable(there.names(), there.get)).values())
    memories: list[dict[str, Any]] = [{} for _ in known]
    if memory:
        from raymu import fixed_points, reference_models

        memories = [reference_models.known_memory(task) for task in known]
    if as_json:
        tasks = [task.as_dict() for task in known]
        for task, found in zip(tasks, memories, strict=True) if memory else ():
            task["memory"] = fixed_points.in_json(found)
        typer.echo(json.dumps(tasks, indent=2))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("scenario", "dataset", "architecture", "forget", "memory on test" if memory else "training"):
        table.add_column(heading, no_wrap=heading == "scenario")
    for task, found in zip(known, memories, strict=True):
        recipe = task.recipe
        last = f"{recipe.epochs} epochs, {recipe.optimizer}, lr {recipe.lr:g}, batch {recipe.batch_size}"
        if memory:
            last = of_test.shown.partition(": ")[2] if (of_test := found.get("test")) else "not known"
        table.add_row(task.name, task.dataset_name, task.pretrained or task.architecture_name, task.forgotten, last)
    console.print(table, highlight=False)
    if memory:
        console.print(
            "memory: by how much the attacker's AUC on the original is above the retrained model's; where it is not"
            " known, raymu references --scenario NAME trains both",
            highlight=False,
        )


def _init(path: Path, data: str | None, original: Path | None, architecture: str | None) -> None:
    """Write a scenario file, read it, and say how often its original is right."""
    from raymu.drafts import draft
    from raymu.scenarios import SUFFIX, read
    from raymu.study import accuracies

    if path.suffix != SUFFIX or data is None:
        raise InputError("--init takes a file NAME.toml, and --data where your images are")
    text = draft(data, original, architecture, path.parent)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    try:
        task = read(path)
    except InputError:
        path.unlink()
        raise
    console.print(f"{path}:\n\n{text}", highlight=False, soft_wrap=True)
    if original is None:
        return
    for part, (accuracy, images) in accuracies(task).items():
        console.print(f"original: {100 * accuracy:.2f} % of {images:,} {part} images right", highlight=False)
    console.print(
        f"If you know it to be better, it sees other images than it was trained on: look at mean, std, size and crop"
        f" in {path}, and at the order of the classes.",
        highlight=False,
        soft_wrap=True,
    )


def _loadable(names: Iterable[str], get: Callable[[str], Any]) -> Iterator[tuple[str, Any]]:
    """Things by name; what a package brings that cannot be loaded is said and left out."""
    for name in names:
        try:
            yield name, get(name)
        except InputError as error:
            typer.echo(f"left out: {error}", err=True)


@app.command()
def doctor(
    storage: Annotated[Path, typer.Option(help="Directory of all sweeps.")] = Path(STORAGE),
) -> None:
    """Say what works on this machine, and what is missing."""
    from raymu.cli.doctor import examine

    colours = {"ok": "green", "optional": "yellow", "missing": "red"}
    states = []
    for finding in examine(storage):
        states.append(finding.state)
        state = finding.state, colours[finding.state]
        console.print(Text.assemble(state, " ", (finding.what, "bold"), f": {finding.detail}"), soft_wrap=True)
    if "missing" in states:
        sys.exit(1)
