"""A model card in Hugging Face's format, for an unlearned model that is handed on."""

import importlib.metadata
import platform
import re
from collections.abc import Mapping
from pathlib import PurePath

from huggingface_hub import EvalResult, ModelCardData

from raymu.architecture import Made, Timm
from raymu.data.published import DATASETS
from raymu.objective import score_name
from raymu.results.ranking import AREAS
from raymu.results.tables import COLUMNS, metric
from raymu.row import Row
from raymu.scenario import Scenario

WEIGHTS = "model.safetensors"
VERSIONS = ("raymu", "torch", "timm", "safetensors")
TITLES = {
    "retain": "Retain accuracy",
    "forget": "Forget accuracy",
    "attack": "Area under the attacker's ROC curve",
    "probe-forget": "Linear-probe accuracy on the forget set",
    "NCC-forget": "Nearest-class-centre accuracy on the forget set",
}


def model_card(row: Row, references: Mapping[str, Row] | None, scenario: Scenario, paper: str) -> str:
    """Markdown with YAML front matter, the README.md beside `model.safetensors`.

    Args:
        row: the completed trial that made the model.
        references: the rows "original" and "retrained" to compare with, where they are known.
        scenario: what that trial had to forget; it says how the model is built.
        paper: where the method comes from.
    """
    head = "class-mean features (CMF) as head" if row["head"] == "cmf" else "its own linear head"
    part = "" if row["train"] == "all" else "; its classifier alone was changed, the features are the original's"
    config = [f"- {key}: {'none' if value is None else f'{value!r}'}" for key, value in row["config"].items()]
    of_data, forgotten = _escaped(f"{scenario.dataset_name}{scenario.subset}"), _escaped(scenario.forgotten)
    versions = [f"{package} {importlib.metadata.version(package)}" for package in VERSIONS]
    models = {**(references or {}), "this model": row}
    columns = [f"test_{column}" for column in COLUMNS.values()]
    table = [
        f"| model | {' | '.join(COLUMNS)} |",
        f"|---|{'---:|' * len(COLUMNS)}",
        *(
            f"| {model} | {' | '.join(metric(column, figures.get(column)) for column in columns)} |"
            for model, figures in models.items()
        ),
    ]
    return "\n".join(
        [
            "---",
            f"{_front_matter(row, scenario)}\n---\n",
            f"# {_escaped(row['method'])} on {_escaped(scenario.name)}, without {forgotten}\n",
            f"An image classifier, {_escaped(scenario.pretrained or scenario.architecture_name)} trained on"
            f" {of_data}, that was made to forget {forgotten} by"
            f" {_escaped(row['method'])} ({_escaped(paper)}), with {head}{part}."
            " Made with raymu.\n",
            "## What it still knows\n",
            "On test, accuracies in %:\n",
            *table,
            f"\n{_legend(scenario)}\n",
            "## Setting\n",
            *config,
            f"\nSeed {row['seed']}; {row['epochs']} epochs of unlearning;"
            f" {_escaped(score_name(row['objective']))} on validation: {row['score']:.4f}.\n",
            "## Loading it\n",
            f"```python\n{_snippet(row, scenario)}```\n",
            "## Intended use and limits\n",
            *_limits(scenario),
            "\n## Versions\n",
            f"Python {platform.python_version()}, {', '.join(versions)}.\n",
        ]
    )


def _front_matter(row: Row, scenario: Scenario) -> str:
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=_plain(scenario.dataset_name),
            dataset_name=_plain(f"{scenario.name}, forgetting {scenario.forgotten}"),
            dataset_split="test",
            metric_type="roc_auc" if f"test_{column}" in AREAS else "accuracy",
            metric_name=TITLES[heading],
            metric_value=row[f"test_{column}"],
        )
        for heading, column in COLUMNS.items()
        if row.get(f"test_{column}") is not None
    ]
    is_known = scenario.dataset_name in DATASETS  # the others are on no hub
    data = ModelCardData(
        library_name="timm" if isinstance(scenario.network, Timm) else "pytorch",
        pipeline_tag="image-classification",
        tags=["machine-unlearning", "raymu", _plain(row["method"])],
        datasets=[scenario.dataset_name] if is_known else None,
        metrics=["accuracy"],
        model_name=_plain(f"{row['method']}-{scenario.name}"),
        eval_results=results,
    )
    return data.to_yaml().rstrip()


def _legend(scenario: Scenario) -> str:
    retain, forget = (
        ("all test images", "forgotten training images")
        if scenario.forgets_samples
        else ("test images of the other classes", f"test images of {_escaped(scenario.forgotten)}")
    )
    return (
        f"*retain* and *forget* are the model's own answers on {retain} and on {forget}. *probe-forget* and"
        " *NCC-forget* are what a linear probe and the nearest class centre tell of the forget set from the model's"
        " frozen features."
        f" *original* was trained on everything{', *retrained* never saw the forget set' * scenario.has_retrained}."
    )


def _limits(scenario: Scenario) -> list[str]:
    limits = [
        "An output near 0 with a high probe is not forgetting: the answer is hidden, the features still tell it, and a"
        " new head brings it back. What the probe reads of the retrained model is what features tell of images that"
        " they never saw; memory is what exceeds it.",
        "No figure here proves that the forgotten data cannot be recovered from the weights, and none is a legal"
        " statement about deletion.",
        "The figures hold for this dataset, this forget set and one seed.",
    ]
    if scenario.forgets_samples:
        limits.insert(
            0,
            "Single samples were forgotten: a forget accuracy near the retrained model's is the aim, not 0, since a"
            " model answers most images right that it never saw.",
        )
    return ["For research on machine unlearning.\n", *(f"- {limit}" for limit in limits)]


def _snippet(row: Row, scenario: Scenario) -> str:
    """Python that loads the weights and answers images; it runs as it stands, in the card's directory."""
    dataset, seen, network = scenario.source, scenario.format, scenario.network
    given = dict(scenario.model_args)
    is_timms = isinstance(network, Timm) and network.make is None
    if isinstance(network, Made) or (isinstance(network, Timm) and is_timms):
        given = network.arguments(scenario.num_classes, seen.shape, **given)
    arguments = "".join(f", {key}={value!r}" for key, value in given.items())
    shape = f"(N, {', '.join(map(str, seen.shape))})"
    is_cmf = row["head"] == "cmf"
    order = f", of the classes {', '.join(map(str, scenario.classes))}," if scenario.classes else ""
    lines = [*(["import timm"] if is_timms else []), "import torch", "from safetensors.torch import load_file"]
    if is_cmf:
        lines += ["", "from raymu.models.cmf import CMF"]
    if is_timms:
        lines += ["", f"model = timm.create_model({network.name!r}{arguments})"]
    elif isinstance(network, Made):
        module, _, made = network.name.partition(":")
        name = PurePath(module.removesuffix(".py")).name
        lines += ["", f"from {name} import {made}", "", f"model = {made}({arguments.removeprefix(', ')})"]
    else:  # in a file of whoever trained it
        call = f"build({scenario.num_classes}, {tuple(seen.shape)}{arguments})"
        lines += ["", f"# the architecture {network.name}, an object of raymu's, has to be at hand", f"model = {call}"]
    if scenario.cifar_stem:
        lines += [
            f"model.conv1 = torch.nn.Conv2d({dataset.channels}, model.conv1.out_channels, 3, 1, 1, bias=False)",
            "model.maxpool = torch.nn.Identity()",
        ]
    if is_cmf:
        lines += [
            f"model = CMF(model, num_classes={scenario.num_classes}, temperature={row['config']['temperature']!r})"
        ]
    lines += [
        f'model.load_state_dict(load_file("{WEIGHTS}"))',
        "model.eval()",
        "",
        f"mean = torch.tensor({list(seen.mean)}).view(-1, 1, 1)",
        f"std = torch.tensor({list(seen.std)}).view(-1, 1, 1)",
        "",
        "",
        "def logits(images):",
        f'    """Logits (N, {scenario.num_classes}){order} of images {shape} with values in 0..1."""',
        "    with torch.no_grad():",
        "        return model((images - mean) / std)",
    ]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Text on one line."""
    return " ".join(text.split())


def _escaped(text: str) -> str:
    """Text on one line that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>#|~$&])", r"\\\1", _plain(text))
