"""Everything on a GPU that is pretended (see pretended_gpu.py): devices, types, and reads by the host."""

import dataclasses

import pytest
import torch
from pretended_gpu import pretended_gpu
from torch import Tensor

from raymu import data, engines, method, models
from raymu.scenario import Recipe, Scenario

GPU, CPU = torch.device("cuda"), torch.device("cpu")
FAST = {"epochs": 1, "steps": 3, "samples": 50, "iterations": 3}  # hyperparameters that cost time


def scenario(digits: Scenario, precision: str, batch_size: int = 256) -> Scenario:
    recipe = Recipe(lr=0.05, epochs=1, batch_size=batch_size, precision=precision)
    return dataclasses.replace(digits, name="gpu", recipe=recipe)


def unlearned(name: str, head: str, chosen: Scenario, device: torch.device) -> dict[str, Tensor]:
    """The weights that a method ends with."""
    cls = method.get(name)
    fast = {key: value for key, value in FAST.items() if key in cls.hyperparameters()}
    config = cls.published_config(chosen, head) | fast
    engine = engines.make(models.build(chosen, seed=1).to(device), data.load(chosen, device), chosen, seed=0)
    engine.run(cls.from_config(config, head=head))
    return {key: weight.detach().cpu() for key, weight in engine.model.state_dict().items()}


@pytest.mark.parametrize(("precision", "head"), [("fp32", "linear"), ("bf16", "cmf")])
@pytest.mark.parametrize("name", method.names())
def test_every_method_does_on_a_gpu_what_it_does_on_a_cpu(name, precision, head, digits, monkeypatch) -> None:
    chosen = scenario(digits, precision)
    expected = unlearned(name, head, chosen, CPU)
    with pretended_gpu(monkeypatch) as counts:
        found = unlearned(name, head, chosen, GPU)
    assert counts["operations"] > 100
    for key, weight in expected.items():
        torch.testing.assert_close(found[key], weight, msg=key)
