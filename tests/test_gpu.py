"""Everything on a GPU that is pretended (see pretended_gpu.py): devices, types, and reads by the host."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pretended_gpu import Refused, pretended_gpu
from torch import Tensor

from raymu import engines, methods, splits
from raymu.data import arrays, published
from raymu.evaluation import baseline, evaluate, evaluate_quickly
from raymu.evaluation.probe import LinearProbe
from raymu.method import Method
from raymu.models import architectures
from raymu.scenario import Recipe, Scenario

GPU, CPU = torch.device("cuda"), torch.device("cpu")
QUICK = {"epochs": 1, "impair_epochs": 1, "repair_epochs": 1, "noise_batches": 2, "samples": 50, "damping": 1.0}


@pytest.fixture
def few(digits: Scenario, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    """The digits' first 240 images, 120 of them to train on."""
    known = published.DATASETS["digits"]

    def read(directory: Path) -> arrays.Arrays:
        return {name: array[:240] for name, array in known.read(directory).items()}

    monkeypatch.setitem(published.DATASETS, "few", dataclasses.replace(known, name="few", read=read, files=False))
    return dataclasses.replace(digits, name="few", dataset="few", val_share=0.25, test_share=0.25)


def changed(scenario: Scenario, **recipe: Any) -> Scenario:
    return dataclasses.replace(scenario, recipe=Recipe(lr=0.05, epochs=1, **{"batch_size": 64, **recipe}))


def unlearned(name: str, head: str, chosen: Scenario, device: torch.device) -> dict[str, Tensor]:
    """The weights that a method ends with."""
    engine = engines.make(architectures.build(chosen, seed=1).to(device), splits.load(chosen, device), chosen, seed=0)
    engine.run(quick_method(name, head, chosen))
    return {key: weight.detach().cpu() for key, weight in engine.model.state_dict().items()}


def quick_method(name: str, head: Any, chosen: Scenario, **changed: Any) -> Method:
    cls = methods.get(name)
    fast = {key: value for key, value in QUICK.items() if key in cls.hyperparameters()}
    return cls.from_config(cls.published_config(chosen, head) | fast | changed, head=head)


def test_the_pretended_gpu_refuses_what_a_gpu_does(monkeypatch) -> None:
    with pretended_gpu(monkeypatch) as counts:
        there = torch.ones(3, device="cuda")
        with pytest.raises(Refused, match="others on the CPU"):
            there + torch.ones(3)
        with pytest.raises(Refused, match="no NumPy array"):
            there.numpy()
        with torch.autocast("cuda", torch.bfloat16):
            product = there[None] @ there[:, None]
            assert (product.dtype, product.sum().dtype) == (torch.bfloat16, torch.float32)
        assert (there[there > 0].sum().item(), there.cpu().device) == (3, CPU)
    del counts["operations"]
    assert counts == {"aten.index": 1, "aten._local_scalar_dense": 1, "to the CPU": 1}


SLOW = ("influence", "svd", "unsir")  # they take half of the time of all
NAMES = [pytest.param(name, marks=[pytest.mark.long] if name in SLOW else []) for name in methods.names()]


@pytest.mark.parametrize(
    ("precision", "head"), [("fp32", "linear"), pytest.param("bf16", "cmf", marks=pytest.mark.long)]
)
@pytest.mark.parametrize("name", NAMES)
def test_every_method_does_on_a_gpu_what_it_does_on_a_cpu(name, precision, head, few, monkeypatch) -> None:
    chosen = changed(few, precision=precision)
    expected = unlearned(name, head, chosen, CPU)
    with pretended_gpu(monkeypatch) as counts:
        found = unlearned(name, head, chosen, GPU)
    assert counts["operations"] > 100
    for key, weight in expected.items():
        torch.testing.assert_close(found[key], weight, msg=key)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_measures_what_a_cpu_does(few, monkeypatch, precision) -> None:
    chosen = changed(few, precision=precision)

    def measured(device: torch.device) -> dict[str, Any]:
        loaded = splits.load(chosen, device)
        trained = {
            which: architectures.build(chosen, seed).to(device) for seed, which in enumerate(("original", "retrained"))
        }
        row = evaluate(trained["original"], loaded, baseline(trained, loaded))
        return {**row, **{f"look_{key}": value for key, value in evaluate_quickly(trained["original"], loaded).items()}}

    expected = measured(CPU)
    with pretended_gpu(monkeypatch):
        found = measured(GPU)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit", "resnet18"])
def test_what_is_measured_is_exact_whatever_the_network_computes_in(architecture, few, monkeypatch) -> None:
    """A probe in bfloat16 is a weak one, which flatters unlearning."""
    chosen = dataclasses.replace(changed(few, precision="bf16"), architecture=architecture)
    loaded, model = splits.load(chosen, CPU), architectures.build(chosen, seed=0)
    given = []

    class Seen(LinearProbe):
        def __init__(self, features, labels, *more) -> None:
            super().__init__(features, labels, *more)
            given.append((features, labels, self._weights))

    monkeypatch.setattr(sys.modules["raymu.evaluation.evaluate"], "LinearProbe", Seen)
    evaluate(model, loaded, baseline({"original": model, "retrained": model}, loaded))
    ((features, labels, weights),) = given
    assert features.dtype == torch.float32
    assert torch.equal(LinearProbe(features, labels)._weights, weights)


@pytest.mark.parametrize("name", NAMES)
def test_no_step_of_training_waits_for_the_gpu(name, few, monkeypatch) -> None:
    """The host reads as often where there are four times the steps."""
    counts = []
    for batch_size in (64, 16):
        with pretended_gpu(monkeypatch) as counted:
            unlearned(name, "linear", changed(few, batch_size=batch_size), GPU)
        counts.append({key: count for key, count in counted.items() if key != "operations"})
    assert counts[0] == counts[1]


def operations(name: str, chosen: Scenario, monkeypatch: pytest.MonkeyPatch, **changed: Any) -> int:
    """How many a step gives to the GPU: the second one, as the optimizer's state is made in the first."""
    with pretended_gpu(monkeypatch) as counts:
        engine = engines.make(architectures.build(chosen, seed=1).to(GPU), splits.load(chosen, GPU), chosen, seed=0)
        step, seen = engine._step, list[int]()

        def counted(losses: Any) -> None:
            before = counts["operations"]
            step(losses)
            seen.append(counts["operations"] - before)

        monkeypatch.setattr(engine, "_step", counted)
        engine.run(quick_method(name, "linear", chosen, **changed))
    return seen[1]


@pytest.mark.long
def test_masks_and_clipping_take_a_handful_of_operations(few, monkeypatch) -> None:
    """However many weights there are: of the architecture here, and of a ResNet-18."""
    plain, known = changed(few, batch_size=16), []
    for chosen in (plain, dataclasses.replace(plain, architecture="resnet18", cifar_stem=True)):
        masked = operations("salun", chosen, monkeypatch) - operations("random_label", chosen, monkeypatch)
        clipped = operations("neggrad_plus", chosen, monkeypatch) - operations(
            "neggrad_plus", chosen, monkeypatch, clip=None
        )
        known.append((masked, clipped))
    (masked, _), (of_many, _) = known
    assert masked == of_many <= 4
    assert max(clipped for _, clipped in known) <= 4
