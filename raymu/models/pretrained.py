"""What training starts from: random weights, or pretrained ones with a new head.

Both references start from the same weights, and the retrained one goes on without the forget set. It shows what is
known without that only if the weights it started from have never seen the labels that are to be forgotten: pretrained
ones have to come from self-supervision, such as MAE or DINO, not from training on ImageNet's classes. They have seen
its images, though, and the forget set's as well: "retrained" means here that no label of it was ever learnt.
"""

import filecmp
import shutil
import textwrap
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from raymu import cache
from raymu.architecture import Timm
from raymu.errors import InputError
from raymu.models import architectures
from raymu.scenario import Scenario

FILE = "model.safetensors"


def prepare(scenario: Scenario, file: Path | None = None) -> None:
    """Copy the scenario's pretrained weights into the cache, unless they are there or it has none.

    Args:
        file: a safetensors file that holds them; None: they are downloaded from the Hugging Face hub.

    Raises:
        InputError: the hub cannot be reached, or has them only in files that would have to be unpickled; the file is
            none of these weights, or others are in the cache; or the scenario has no pretrained weights.
    """
    if not scenario.pretrained:
        if file is not None:
            raise InputError(f"--weights {file}: {scenario.name} starts from random weights")
        return

    def build(unfinished: Path) -> None:
        source = file or _download(scenario.pretrained)
        _load(scenario, architectures.build(scenario, 0), source)
        shutil.copyfile(source, unfinished / FILE)

    copy = cache.once(_entry(scenario), build) / FILE
    try:
        is_other = file is not None and not filecmp.cmp(file, copy, shallow=False)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    if is_other:
        raise InputError(f"{file} is not what {scenario.pretrained} was before; remove {copy.parent} first")


def digest(scenario: Scenario) -> str:
    """12 hex digits over the scenario's pretrained weights; empty where it has none.

    Raises:
        InputError: see `prepare`.
    """
    prepare(scenario)
    return str(cache.load_json(_entry(scenario) / cache.HASHES)[FILE][:12]) if scenario.pretrained else ""


def start(scenario: Scenario, seed: int) -> nn.Module:
    """The scenario's architecture before its first epoch, on the CPU.

    What is not pretrained depends on `seed` alone: the head, and a CIFAR stem; without pretrained weights, everything.

    Raises:
        InputError: see `prepare`.
    """
    model = architectures.build(scenario, seed)
    if scenario.pretrained:
        prepare(scenario)
        _load(scenario, model, _entry(scenario) / FILE)
    return model


def _entry(scenario: Scenario) -> Path:
    return cache.root() / "weights" / scenario.pretrained


def _download(name: str) -> Path:
    """The weights' safetensors file, in the cache of huggingface_hub."""
    import timm
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    config: Any = timm.get_pretrained_cfg(name)
    repository = config.hf_hub_id
    if repository is None:
        raise InputError(f"{name} is not on the Hugging Face hub; name a safetensors file with --weights")
    url = hf_hub_url(repository, FILE)
    try:
        if not isinstance(try_to_load_from_cache(repository, FILE), str):
            get_hf_file_metadata(url)  # asks once; the download would ask for a minute and more
        return Path(hf_hub_download(repository, FILE))
    except Exception as error:  # of whatever kind, as the network fails
        raise InputError(
            f"the weights {name} could not be downloaded ({' '.join(str(error).split())}). Fetch {url} elsewhere, and"
            " name the file with --weights."
        ) from error


def _load(scenario: Scenario, model: nn.Module, path: Path) -> None:
    """Give the model all weights of the file but the classifier's. timm fits them to the images: it resamples position
    embeddings for another size, and adapts the first layer to another number of channels.
    """
    import timm

    config: Any = timm.get_pretrained_cfg(scenario.pretrained)
    heads = (config.classifier,) if isinstance(config.classifier, str) else config.classifier

    def is_new(name: str) -> bool:
        return name.rpartition(".")[0] in heads

    try:
        tensors = cache.load_tensors(path, torch.device("cpu"))
        pretrained = {name: tensor for name, tensor in tensors.items() if not is_new(name)}
        head = {name: tensor for name, tensor in model.state_dict().items() if is_new(name)}
        arguments = Timm(scenario.architecture_name).arguments(
            scenario.num_classes, scenario.format.shape, **dict(scenario.model_args)
        )
        # Of as many classes as the model, so that timm is strict.
        given: dict[str, Any] = {"state_dict": pretrained | head, "num_classes": arguments["num_classes"]}
        fitted = timm.create_model(scenario.pretrained, pretrained=True, pretrained_cfg_overlay=given, **arguments)
        model.load_state_dict(fitted.state_dict())
    except SafetensorError as error:
        raise InputError(f"{path} is no safetensors file: {error}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # what timm makes of a wrong file depends on the architecture
        first = str(error).strip().splitlines()[:2][-1].strip()  # of all that does not fit, after a heading
        raise InputError(f"{path} does not fit {scenario.pretrained}: {textwrap.shorten(first, 160)}") from error
