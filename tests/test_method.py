"""What holds for every method that is found, and for ranges."""

import dataclasses
import itertools
import math

import pytest
import torch

from raymu import method as methods
from raymu import models
from raymu.engines.local import Engine
from raymu.errors import InputError
from raymu.method import Range, tuned
from raymu.methods.retrain import Retrain
from raymu.scenario import SCENARIOS

ALL = [methods.get(name) for name in methods.names()]


@pytest.mark.parametrize(
    ("low", "high", "scale"),
    [(2, 1, "linear"), (1, 1, "linear"), (0, 1, "log"), (-1, 1, "log"), (0.5, 3, "int"), (math.nan, 1, "linear")],
)
def test_a_range_that_cannot_be_searched_is_refused(low: float, high: float, scale: str) -> None:
    with pytest.raises(InputError):
        Range(low, high, scale)


def test_a_range_holds_its_ends_and_int_only_whole_numbers() -> None:
    assert 1 in Range(1, 3, "int")
    assert 3 in Range(1, 3, "int")
    assert 1.5 not in Range(1, 3, "int")
    assert 3.1 not in Range(1, 3, "linear")


def test_a_default_outside_its_range_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="outside"):
        tuned(2.0, Range(0, 1, "linear"), "")


def test_methods_are_found_by_their_file() -> None:
    assert {"salun", "random_label", "retrain", "finetune"} <= set(methods.names())
    assert [method.name() for method in ALL] == methods.names()


@pytest.mark.parametrize("method", ALL, ids=lambda method: method.name())
class TestEveryMethod:
    def test_says_where_it_comes_from(self, method) -> None:
        assert method.__doc__
        assert method.paper

    @pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=str)
    def test_published_setting_lies_in_the_range(self, method, scenario) -> None:
        published = method.published_config(scenario)
        assert set(published) == set(method.ranges())
        assert all(value in method.ranges()[name] for name, value in published.items())

    def test_published_settings_are_of_known_scenarios(self, method) -> None:
        assert set(method.published) <= set(SCENARIOS)

    def test_corners_of_the_space_take_two_finite_steps(self, method, digits, digits_data) -> None:
        ranges = {name: (search.low, search.high) for name, search in method.ranges().items() if name != "epochs"}
        for corner in itertools.product(*ranges.values()):
            instance = method.from_config({**dict(zip(ranges, corner, strict=True)), "epochs": 1})
            model = models.build(digits, seed=0)
            before = [parameter.detach().clone() for parameter in model.parameters()]
            engine = Engine(model, digits_data, batch_size=300, seed=0)
            engine.run(instance)
            assert engine.images > 0
            moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
            assert any(moved)
            assert all(parameter.isfinite().all() for parameter in model.parameters())

    def test_wrong_hyperparameters_are_refused(self, method) -> None:
        with pytest.raises(InputError, match="did you mean 'lr'"):
            method.from_config({"lrr": 1.0})
        with pytest.raises(InputError, match="number"):
            method.from_config({"lr": "fast"})


def test_retrain_falls_back_to_the_recipe() -> None:
    assert Retrain.published_config(SCENARIOS["cifar10-resnet18"]) == {"lr": 1e-2, "epochs": 200}
    assert Retrain.published_config(SCENARIOS["digits"]) == {"lr": 0.05, "epochs": 12}


def test_a_method_of_ones_own_is_named_by_its_class() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class MyNegGrad(methods.Method):
        pass

    assert MyNegGrad.name() == "my_neg_grad"
