"""Which architectures of timm raymu takes: each below 30 million weights, at its own input size, with random weights.

    python tests/benchmarks/architectures.py FOUND.jsonl [--share 0/2] [--only "resnet*"]
    python tests/benchmarks/architectures.py FOUND.jsonl --table docs/architectures.md

The first tries them, and appends a line as each is done; begun again, it goes on. With `--share 0/2` and `--share 1/2`
two processes share the work. The second writes the table. Nothing is downloaded.
"""

import argparse
import datetime
import itertools
import json
import os
import textwrap
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch

from raymu.data.dataset import Dataset, Format
from raymu.data.published import DATASETS
from raymu.errors import InputError
from raymu.models import compatibility, inference
from raymu.scenario import Recipe, Scenario

LARGEST = 30_000_000
CLASSES = 10
NOISE = 0.02  # on all weights: what starts at 0 would hide a difference


@dataclass(frozen=True)
class Native(Dataset):
    """Images that nobody reads, of the size that an architecture was made for."""

    shape: tuple[int, int, int] = (3, 224, 224)

    def format(self, transform: Any) -> Format:
        return Format(self.shape, (0.5,) * self.channels, (0.5,) * self.channels)

    def prepare(self, directory, asked):
        raise NotImplementedError

    def is_ready(self, entry):
        raise NotImplementedError

    def load(self, entry, transform, device, processes):
        raise NotImplementedError


def scenario_of(name: str) -> Scenario:
    """A scenario of `CLASSES` classes with images of the architecture's own size."""
    shape = tuple(timm.get_pretrained_cfg(name).input_size)
    DATASETS["native"] = Native("native", CLASSES, shape[0], shape)
    return Scenario(name=name, dataset="native", architecture=name, recipe=Recipe(lr=0.1, epochs=1), forget=(0,))


def count_weights(name: str) -> int:
    """The number of its weights, without their memory."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in timm.create_model(name, num_classes=CLASSES).parameters())


@torch.no_grad()
def difference(scenario: Scenario) -> float:
    """How far raymu's features times raymu's matrix are from what timm's own model answers, of its largest logit."""
    model = scenario.network.build(CLASSES, scenario.format.shape).eval()
    for weight in model.parameters():
        weight += NOISE * torch.randn_like(weight)
    images = torch.randn(2, *scenario.format.shape)
    expected = model(images)
    features, logits = inference.features_and_logits(model, images)
    heads = inference.heads(model)
    bias = sum(head.bias for head in heads if head.bias is not None) / len(heads)
    made = features @ inference.head_matrix(model).T + bias
    worst = torch.stack([(made - expected).abs().max(), (logits - expected).abs().max()]).max()
    return (worst / expected.abs().max()).item()


def attempt(name: str) -> dict[str, Any]:
    """The architecture's line."""
    torch.manual_seed(0)
    line: dict[str, Any] = {"architecture": name, "family": family(name)}
    line["weights"] = count_weights(name)
    if line["weights"] >= LARGEST:
        return line
    started, scenario = time.perf_counter(), scenario_of(name)
    line["shape"] = list(scenario.format.shape)
    try:
        compatibility.check(scenario)
        line["difference"] = difference(scenario)
    except InputError as error:
        line["refused"] = str(error)
    return line | {"seconds": round(time.perf_counter() - started, 1)}


def family(name: str) -> str:
    """The module of timm that defines it."""
    return timm.model_entrypoint(name).__module__.rpartition(".")[2]


def table(lines: list[dict[str, Any]]) -> str:
    """All lines of architectures small enough, as Markdown."""
    small = sorted(
        (line for line in lines if "seconds" in line), key=lambda line: (line["family"], line["architecture"])
    )
    works = [line for line in small if "difference" in line]
    worst = max(line["difference"] for line in works)
    rest = len(set(timm.list_models()) - {line["architecture"] for line in lines})
    versions = f"timm {timm.__version__}, torch {torch.__version__}, {datetime.date.today():%B %Y}"
    text = [
        "# Architectures",
        f"Every architecture of timm below {LARGEST // 10**6} million weights, tried at its own input size, with random"
        f" weights and {CLASSES} classes ({versions}). {len(works)} of {len(small)} work: raymu's features times its"
        f" matrix are what the model itself answers, up to rounding (at most {worst:.0e} of the largest logit), in eval"
        " mode it can be differentiated, in train mode trained, and its weights come back from a file. The others are"
        " refused before anything is trained, in the line that stands here. Larger ones, and other sizes and arguments,"
        " are tried in the same way when a scenario names them.",
        *([f"Not tried yet: {rest} of timm's architectures, of whatever size."] if rest else []),
        "Made by",
        "    python tests/benchmarks/architectures.py found.jsonl\n"
        "    python tests/benchmarks/architectures.py found.jsonl --table docs/architectures.md",
        "## Work",
        *(
            f"**{name}** ({len(members)}): {', '.join(members)}"
            for name, group in itertools.groupby(works, key=lambda line: line["family"])
            if (members := [f"`{line['architecture']}`" for line in group])
        ),
        "## Refused",
        "\n".join(f"- `{line['architecture']}`: {line['refused']}" for line in small if "refused" in line),
    ]
    paragraphs = [
        textwrap.fill(part, 120, break_on_hyphens=False, break_long_words=False) if part[0] not in " -" else part
        for part in text
    ]
    return "\n\n".join(paragraphs) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("found", type=Path, help="the lines, as JSON")
    parser.add_argument("--share", default="0/1", help="which part of the work: 0/2 is the first half")
    parser.add_argument("--only", default="", help="a pattern of names")
    parser.add_argument("--table", type=Path, help="write the lines as Markdown instead")
    chosen = parser.parse_args()
    done = [json.loads(line) for line in chosen.found.read_text().splitlines()] if chosen.found.exists() else []
    if chosen.table is not None:
        chosen.table.write_text(table(done))
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    first, step = map(int, chosen.share.split("/"))
    names = timm.list_models(chosen.only)[first::step]
    for name in sorted(set(names) - {line["architecture"] for line in done}):
        if child := os.fork():  # a crash ends that process alone
            if status := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
                print(f"{name}: exit code {status}", flush=True)
            continue
        line = attempt(name)
        with chosen.found.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
        os._exit(0)


if __name__ == "__main__":
    main()
