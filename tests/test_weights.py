"""Weights from anybody's file: what is read from it, and what is said where they do not fit."""

import argparse
import collections
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from raymu.errors import InputError
from raymu.models.checkpoint import load, read

ADAM = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}


def network(**given: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model("test_resnet", **{"num_classes": 10, **given})


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return network()


@pytest.fixture(scope="module")
def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: torch.randn(one.shape) if one.is_floating_point() else one for name, one in model.state_dict().items()
    }


def prefixed(prefix: str, weights):
    return {f"{prefix}{name}": one for name, one in weights.items()}


def refusal_of(path: Path, model: nn.Module) -> str:
    with pytest.raises(InputError) as refused:
        load(model, path, "test_resnet")
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)
    return str(refused.value)


WRITTEN: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda weights: weights,
    "wrapped": lambda weights: {"epoch": 3, "loss": torch.tensor(0.1), "state_dict": weights, "optimizer": ADAM},
    "nested": lambda weights: {"checkpoint": {"model": weights}, "ema": None},
    "parallel and compiled": lambda weights: {"model": prefixed("module._orig_mod.", weights)},
    "of Lightning": lambda weights: {"state_dict": prefixed("model.", weights), "callbacks": {}},
    "of another wrapper": lambda weights: prefixed("classifier_network.", weights),
    "with an average": lambda weights: {
        "ema": {"n_averaged": torch.tensor(4), **prefixed("module.", {name: 2 * one for name, one in weights.items()})},
        "model": weights,
    },
    "an average alone": lambda weights: {"n_averaged": torch.tensor(4), **prefixed("module.", weights)},
    "in a list": lambda weights: [weights, 7],
    "ordered": lambda weights: collections.OrderedDict(weights),
    "as parameters": lambda weights: {
        name: nn.Parameter(one) if one.is_floating_point() else one for name, one in weights.items()
    },
    "in float64": lambda weights: {name: one.double() for name, one in weights.items()},
    "without counters": lambda weights: {name: one for name, one in weights.items() if "num_batches" not in name},
}


@pytest.mark.parametrize("how", WRITTEN)
def test_a_state_dict_is_found_wherever_it_stands(how: str, model: nn.Module, weights, tmp_path: Path) -> None:
    path = tmp_path / "some.pth"
    torch.save(WRITTEN[how](weights), path)
    found = load(model, path, "test_resnet")
    assert list(found) == list(weights)
    for name, one in weights.items():
        assert found[name].dtype == one.dtype
        assert torch.equal(found[name], one), name
    network().load_state_dict(found)


def test_safetensors_and_older_files_are_read_as_well(model: nn.Module, weights, tmp_path: Path) -> None:
    save_file(weights, tmp_path / "new.safetensors")
    (tmp_path / "new.bin").write_bytes((tmp_path / "new.safetensors").read_bytes())  # whatever its name
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for path in tmp_path.iterdir():
        found = load(model, path, "test_resnet")
        assert all(torch.equal(found[name], one) for name, one in weights.items()), path


def test_half_precision_is_converted(model: nn.Module, weights, tmp_path: Path) -> None:
    path = tmp_path / "half.pth"
    torch.save({name: one.half() for name, one in weights.items()}, path)  # the counters as well
    found = load(model, path, "test_resnet")
    assert found["conv1.0.weight"].dtype == torch.float32
    assert torch.equal(found["conv1.0.weight"], weights["conv1.0.weight"].half().float())
    assert found["bn1.num_batches_tracked"].dtype == torch.int64


def test_reading_removes_wrappers_and_no_more(weights, tmp_path: Path) -> None:
    path = tmp_path / "some.pth"
    torch.save({"net": prefixed("module.features.", weights)}, path)
    assert set(read(path)) == set(prefixed("features.", weights))


def test_a_name_of_the_network_is_no_wrapper(tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))

    model, path = Wrapped(), tmp_path / "some.pth"
    for written in (model.state_dict(), prefixed("module.", model.state_dict())):
        torch.save(written, path)
        assert list(load(model, path, "it")) == list(model.state_dict())


def test_a_weight_under_two_names_is_needed_once(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    model[1].weight = model[0].weight
    path, known = tmp_path / "some.pth", model.state_dict()
    torch.save({name: one for name, one in known.items() if name != "1.weight"}, path)
    assert torch.equal(load(model, path, "it")["1.weight"], known["0.weight"])
    torch.save({**known, "1.weight": torch.ones(4, 4)}, path)
    assert "0.weight and 1.weight are one weight of the network, but differ" in refusal_of(path, model)


MISFITS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "classes": (lambda _: network(num_classes=100).state_dict(), "its head has 100 classes, the data 10"),
    "no head": (lambda _: network(num_classes=0).state_dict(), "it has no head (fc.weight, fc.bias)"),
    "renamed": (
        lambda weights: {name.replace("fc.", "fc2."): one for name, one in weights.items()},
        "it has no head (fc.weight, fc.bias); it has in addition fc2.weight (for fc.weight?), fc2.bias (for fc.bias?)",
    ),
    "missing": (
        lambda weights: {name: one for name, one in weights.items() if not name.startswith("conv1.0")},
        "it misses conv1.0.weight",
    ),
    "in addition": (lambda weights: {**weights, "criterion.weight": torch.ones(3)}, "in addition criterion.weight"),
    "channels": (
        lambda _: network(in_chans=1).state_dict(),
        "other shapes: conv1.0.weight is 16 x 1 x 3 x 3 and not 16 x 3 x 3 x 3",
    ),
    "architecture": (lambda _: timm.create_model("test_vit", num_classes=10).state_dict(), "another architecture's"),
    "another size": (
        lambda weights: {name: torch.cat([one, one]) if one.ndim else one for name, one in weights.items()},
        "it is another architecture's, other shapes: conv1.0.weight is 32 x 3 x 3 x 3 and not 16 x 3 x 3 x 3",
    ),
    "a head of one number": (
        lambda weights: {**weights, "fc.bias": torch.tensor(1.0)},
        "fc.bias is one number and not",
    ),
    "infinite": (lambda weights: {**weights, "bn1.weight": torch.full((16,), torch.inf)}, "not finite: bn1.weight"),
    "too large": (
        lambda weights: {**weights, "bn1.weight": torch.full((16,), 1e300, dtype=torch.double)},
        "not finite: bn1.wei",
    ),
    "integers": (
        lambda weights: {**weights, "bn1.weight": torch.ones(16, dtype=torch.int8)},
        "bn1.weight (torch.int8)",
    ),
    "sparse": (lambda weights: {**weights, "bn1.weight": torch.ones(16).to_sparse()}, "save plain tensors"),
    "two": (lambda weights: {"teacher": weights, "student": dict(weights)}, "several state dicts, teacher and student"),
    "none": (lambda _: {"accuracy": 0.9}, "holds no tensors by name"),
    "a tensor": (lambda _: torch.ones(3), "holds no tensors by name"),
    "a model": (lambda _: network(), "an object, timm.models.resnet.ResNet, which is not unpickled; save model.state"),
    "other objects": (lambda weights: {"model": weights, "args": argparse.Namespace()}, "argparse.Namespace"),
}


@pytest.mark.parametrize("what", MISFITS)
def test_what_does_not_fit_is_said(what: str, model: nn.Module, weights, tmp_path: Path) -> None:
    written, said = MISFITS[what]
    path = tmp_path / "some.pth"
    torch.save(written(weights), path)
    refusal = refusal_of(path, model)
    assert said in refusal
    assert len(refusal) - len(str(path)) < 300


def test_all_misfits_are_named_at_once(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "some.pth"
    torch.save({**network(num_classes=7, in_chans=1).state_dict(), "extra": torch.ones(1)}, path)
    refusal = refusal_of(path, model)
    assert "7 classes" in refusal
    assert "conv1.0.weight" in refusal
    assert "extra" in refusal


def test_files_that_are_no_checkpoint_or_are_cut_off_are_refused(model: nn.Module, weights, tmp_path: Path) -> None:
    whole = {"new.pth": {}, "old.pth": {"_use_new_zipfile_serialization": False}}
    for name, options in whole.items():
        torch.save(weights, tmp_path / name, **options)
    save_file(weights, tmp_path / "new.safetensors")
    for name in (*whole, "new.safetensors"):
        content = (tmp_path / name).read_bytes()
        for length in (0, 5, 50, len(content) // 2, len(content) - 1):
            path = tmp_path / f"{length}-{name}"
            path.write_bytes(content[:length])
            assert any(word in refusal_of(path, model) for word in ("cut off", "no checkpoint"))
    for name, content in {
        "page.pth": b"<html>",
        "picture.bin": b"\x89PNG\r\n\x1a\n{",
        "text.safetensors": b"abc",
    }.items():
        (tmp_path / name).write_bytes(content)
        assert "is no " in refusal_of(tmp_path / name, model)
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    assert "is no checkpoint" in refusal_of(tmp_path / "arrays.npz", model)
    assert "is a directory" in refusal_of(tmp_path, model)
    assert "cannot read" in refusal_of(tmp_path / "none.pth", model)
    os.mkfifo(tmp_path / "pipe.pth")
    assert "is no file" in refusal_of(tmp_path / "pipe.pth", model)
    torch.save({name: weight.to(torch.complex64) for name, weight in weights.items()}, tmp_path / "complex.pth")
    assert "numbers of another kind" in refusal_of(tmp_path / "complex.pth", model)


def test_a_list_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict[str, Any] = {"one": torch.ones(1)}
    content["again"] = [content]
    torch.save(content, tmp_path / "some.pth")
    assert list(read(tmp_path / "some.pth")) == ["one"]
