"""Weights from anybody's file, as a state dict that a network takes whole, or one line on why it does not."""

import difflib
import errno
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from raymu.errors import InputError
from raymu.models.cmf import CMF
from raymu.models.inference import heads
from raymu.storage import is_no_file

WRAPPERS = (  # what training code puts around a state dict and before its names; of several the first is taken
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "_orig_mod",
    "backbone",
    "weights",
    "params",
    "ema",
    "model_ema",
    "ema_state_dict",
    "state_dict_ema",
)
COUNTERS = ("num_batches_tracked", "n_averaged")  # no answer of a network depends on them
SHOWN = 3  # names of a kind in a message


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict in a file, by name, on the CPU: of a safetensors file, or of one that `torch.save`
    wrote, of which tensors and plain containers alone are unpickled.

    It may lie within mappings and lists, beside an epoch or an optimizer's state: it is the mapping that holds most
    tensors. Where others hold at least half as many, such as a moving average, the one whose name comes first in
    WRAPPERS is taken. Of these names, those that all of its tensors begin with are removed.

    Raises:
        InputError: the file cannot be read, holds no tensors, or two state dicts of which none is the one.
    """
    tensors = _state_dict(path)
    while (prefix := _shared_prefix(tensors)) in WRAPPERS:
        tensors = _without(prefix, tensors)
    return tensors


def load(model: nn.Module, path: Path, what: str, kept: Sequence[int] = (), among: int = 0) -> dict[str, Tensor]:
    """A file's state dict that fits the model exactly: its names, shapes and types, on the CPU. The model is not
    changed.

    A first part that all names share is removed where more of the model's names are found then. Floating-point numbers
    of another precision are converted. Counters that are missing are 0, and a weight that the model has under two names
    needs to be there once.

    Args:
        what: what the model is, in messages: "resnet18".
        kept: outputs of a head that alone are kept, as those of the model, in this order; empty: all.
        among: number of outputs of such a head; one that has only those of the model is taken whole. 0: any number.

    Raises:
        InputError: see `read`; or it does not fit, for all the reasons that are named.
    """
    tensors, expected = _state_dict(path), model.state_dict()
    best = tensors
    while prefix := _shared_prefix(tensors):
        tensors = _without(prefix, tensors)
        if len(tensors.keys() & expected.keys()) > len(best.keys() & expected.keys()):
            best = tensors
    given = {name: tensor for name, tensor in best.items() if not _is_counter(name)}
    twins = _twins(expected)
    for name in expected:
        if _is_counter(name):
            counter = best.get(name)
            is_usable = counter is not None and not counter.is_floating_point() and counter.shape == ()
            given[name] = counter if counter is not None and is_usable else torch.zeros((), dtype=torch.long)
        elif name not in given and (known := [twin for twin in twins[name] if twin in given]):
            given[name] = given[known[0]]
    for name in of_heads(model) if kept else ():
        if name in given and given[name].ndim and among in (0, len(given[name])):
            if max(kept) >= len(given[name]):
                raise InputError(f"{path}: its head has the outputs 0..{len(given[name]) - 1}, so none is {max(kept)}")
            given[name] = given[name][list(kept)]
    if misfits := list(_misfits(model, expected, given)):
        raise InputError(f"{path} does not fit {what}: {'; '.join(misfits)}")
    return {name: given[name].detach().to(weight.dtype).contiguous() for name, weight in expected.items()}


def _state_dict(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, with the names that it has there; see `read`."""
    found = list(_tensors_within(_content(path), (), set()))
    if not found:
        raise InputError(f"{path} holds no tensors by name; save model.state_dict()")
    most = max(len(tensors) for _, tensors in found)
    large = {place: tensors for place, tensors in found if 2 * len(tensors) >= most}
    first, *others = sorted(large, key=_rank)
    if others and _rank(others[0]) == _rank(first):
        names = " and ".join(".".join(place) for place in (first, others[0]))
        raise InputError(f"{path} holds several state dicts, {names}; save the one that is meant alone")
    for name, tensor in large[first].items():
        if tensor.is_meta or tensor.is_quantized or tensor.layout is not torch.strided:
            raise InputError(f"{path}: {name} is quantized, sparse or empty; save plain tensors")
    return large[first]


def _content(path: Path) -> Any:
    """What a file holds: tensors and plain containers."""
    if is_no_file(path) and not path.is_dir():
        raise InputError(f"{path} is no file")  # a pipe would be waited for
    try:
        with path.open("rb") as file:
            begin = file.read(9)
        if path.suffix == ".safetensors" or begin.endswith(b"{", 8):
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on TorchScript: an error follows
            return torch.load(path, map_location="cpu", weights_only=True)
    except IsADirectoryError as error:
        raise InputError(f"{path} is a directory; name the file with the weights") from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # torch looked for a part before the file's beginning
            raise InputError(f"{path} is cut off or damaged") from error
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise InputError(f"{path} is no safetensors file, or is cut off: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # torch has no kind of its own for what it cannot read
        said = str(error)
        if isinstance(error, UnpicklingError) and (found := re.search(r"(?:GLOBAL|[Cc]lass) ([\w.]+)", said)):
            reason = f"holds an object, {found[1]}, which is not unpickled; save model.state_dict() alone"
        elif "TorchScript" in said:
            reason = "is a TorchScript program; save model.state_dict()"
        elif begin.startswith(b"PK") and not zipfile.is_zipfile(path):
            reason = "is cut off or damaged"
        elif isinstance(error, EOFError) or "truncated" in said or "corrupted" in said:
            reason = "is empty, cut off or damaged"
        else:
            reason = "is no checkpoint: neither safetensors nor what torch.save writes"
        raise InputError(f"{path} {reason}") from error


def _tensors_within(
    content: Any, place: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Where mappings of names to tensors are in some content, and these tensors."""
    if isinstance(content, list | tuple):
        content = dict(enumerate(content))
    if not isinstance(content, Mapping) or id(content) in seen:
        return
    seen.add(id(content))  # a list may hold itself
    if tensors := {name: one for name, one in content.items() if isinstance(name, str) and isinstance(one, Tensor)}:
        yield place, tensors
    for name, part in content.items():
        yield from _tensors_within(part, (*place, str(name)), seen)


def _rank(place: tuple[str, ...]) -> list[int]:
    return [WRAPPERS.index(name) if name in WRAPPERS else len(WRAPPERS) for name in place]


def _shared_prefix(tensors: Mapping[str, Tensor]) -> str:
    """First part that the names of all tensors but counters share; empty if there is none."""
    parts = {name.partition(".")[::2] for name in tensors if not (_is_counter(name) and "." not in name)}
    prefixes = {first for first, rest in parts}
    return prefixes.pop() if len(prefixes) == 1 and all(rest for _, rest in parts) else ""


def _without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items()}


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in COUNTERS


def _twins(expected: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Names of a model's tensors that are one with each, itself among them."""
    by_place: dict[Any, list[str]] = {}
    for name, tensor in expected.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name
        by_place.setdefault(place, []).append(name)
    return {name: names for names in by_place.values() for name in names}


def _misfits(model: nn.Module, expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Iterator[str]:
    """Reasons why given tensors are not those that the model expects."""
    missing = [name for name in expected if name not in given]
    unknown = [name for name in given if name not in expected]
    ends = of_heads(model)
    known = {name: (given[name], weight) for name, weight in expected.items() if name in given}
    other = {name: pair for name, pair in known.items() if pair[0].shape != pair[1].shape}
    shapes = [f"{name} is {_shape(its)} and not {_shape(ours)}" for name, (its, ours) in other.items()]
    body = [name for name in expected if name not in ends and not _is_counter(name)]
    if 2 * sum(name in known and name not in other for name in body) < len(body):
        said = {"with": unknown, "without": missing, "other shapes:": shapes}
        differences = ", ".join(f"{word} {_some(names)}" for word, names in said.items() if names)
        yield f"it is another architecture's, {differences}"
        return
    if absent := [name for name in missing if name in ends]:
        yield f"it has no head ({_some(absent)})"
    if others := [name for name in missing if name not in ends]:
        yield f"it misses {_some(others)}"
    if unknown:
        nearest = {name: difflib.get_close_matches(name, missing, n=1) for name in unknown}
        shown = (f"{name} (for {near[0]}?)" if near else name for name, near in nearest.items())
        yield f"it has in addition {_some(shown)}"
    classes = {
        (len(its), len(ours))
        for name, (its, ours) in other.items()
        if name in ends and its.ndim and its.shape[1:] == ours.shape[1:]
    }
    if len(classes) == 1:
        its_classes, our_classes = classes.pop()
        yield f"its head has {its_classes} classes, the data {our_classes}"
        shapes = [said for said in shapes if said.partition(" ")[0] not in ends]
    if shapes:
        yield f"other shapes: {_some(shapes)}"
    if kinds := [name for name, (its, ours) in known.items() if _kind(its) != _kind(ours)]:
        yield f"numbers of another kind: {_some(f'{name} ({given[name].dtype})' for name in kinds)}"
    if broken := [
        name for name, (its, ours) in known.items() if name not in kinds and not its.to(ours.dtype).isfinite().all()
    ]:
        yield f"not finite: {_some(broken)}"
    for name, (first, *_) in _twins(expected).items():
        if name != first and name in known and not torch.equal(given[name], given[first]):
            yield f"{first} and {name} are one weight of the network, but differ"


def of_heads(model: nn.Module) -> list[str]:
    """Names of a model's tensors that have a row for each output."""
    places = {layer: name for name, layer in model.named_modules()}
    layers = [*heads(model), *(heads(model.backbone) if isinstance(model, CMF) else [])]
    return [name for layer in layers for name in model.state_dict() if name.startswith(f"{places[layer]}.")]


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _some(names: Iterable[str]) -> str:
    """The first names, and the number of others."""
    known = list(names)
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return ", ".join(known[:SHOWN]) + more


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"
