"""Models that were trained elsewhere: a user's own original, and perhaps a retrained model, in the place of those that
raymu would train.

A scenario names one by a digest of its weights, which are copied into the cache, so that other nodes have them and the
file may be moved.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from raymu import cache
from raymu.errors import InputError
from raymu.models import architectures, checkpoint
from raymu.scenario import NONE, Scenario

FILE = "model.safetensors"


def keep(scenario: Scenario, file: Path) -> str:
    """Digest of a file's weights, 12 hex digits, for `Scenario.original` or `Scenario.retrained`.

    Args:
        scenario: whose architecture they have to fit, with all classes of the data.
        file: safetensors, or what `torch.save` wrote of a state dict.

    Raises:
        InputError: the file cannot be read, or does not fit, or with its weights an image has no finite logits.
    """
    model = architectures.build(scenario, 0)
    fitting = checkpoint.load(model, file, scenario.architecture_name, scenario.original_rows)
    _try(scenario, model, fitting, file)
    digest = _digest(fitting)
    cache.once(_entry(digest), lambda unfinished: cache.save_tensors(unfinished / FILE, fitting))
    return digest


def _try(scenario: Scenario, model: nn.Module, fitting: dict[str, Tensor], file: Path) -> None:
    """Have the model, with these weights, read two random images."""
    images = torch.randn((2, *scenario.format.shape), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), architectures.refusal(scenario, f"does not work with the weights of {file}"):
        model.load_state_dict(fitting)
        if not model.eval()(images).isfinite().all():
            raise ValueError("its logits are not finite")


def weights(scenario: Scenario, digest: str) -> dict[str, Tensor]:
    """The weights of that digest, on the CPU: for the scenario's classes alone, where it has not all of them.

    Raises:
        InputError: they are neither in the cache nor in its mirror.
    """
    model, among = architectures.build(scenario, 0), scenario.source.num_classes
    return checkpoint.load(model, _found(digest), scenario.architecture_name, scenario.classes, among)


def prepare(scenario: Scenario) -> None:
    """Have the models that a scenario brings in the cache, and in its mirror.

    Raises:
        InputError: see `weights`.
    """
    for digest in (scenario.original, scenario.retrained):
        if digest not in ("", NONE):
            _found(digest)


def _found(digest: str) -> Path:
    """File with the weights of that digest."""
    entry = _entry(digest)
    if not cache.find(entry):
        raise InputError(f"the weights {digest} are not in the cache any more: name the scenario's file again")
    return entry / FILE


def _entry(digest: str) -> Path:
    return cache.root() / "weights" / f"given-{digest}"


def _digest(weights: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:12]
