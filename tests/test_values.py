"""Values that cannot work are one line wherever they come in, and what a row says is what ran."""

import dataclasses
import math
from collections.abc import Iterator
from typing import ClassVar, get_type_hints

import numpy as np
import pytest

from raymu import methods
from raymu.distributed.session import Resources
from raymu.engines.options import Options
from raymu.errors import InputError
from raymu.method import Method, Range, Step, fixed, tuned
from raymu.methods.bad_teacher import BadTeacher
from raymu.methods.gradient_ascent import GradientAscent
from raymu.methods.influence import Influence
from raymu.methods.neggrad_plus import NegGradPlus
from raymu.methods.random_label import RandomLabel
from raymu.methods.salun import SalUn
from raymu.methods.scrub import Scrub
from raymu.methods.svd import SVD
from raymu.methods.unsir import UNSIR
from raymu.protocol import Confirmation, Protocol
from raymu.scenario import SCENARIOS, Recipe, Scenario
from raymu.tuning.sweep import Sweep
from raymu.values import SHARE

ALL = [methods.get(name) for name in methods.names()]
DIGITS = SCENARIOS["digits"]
NO_NUMBERS = [True, False, np.True_, None, "", "fast", "nan", "inf", math.nan, math.inf, -math.inf, [1], (1,), {}, 1j]
NO_NUMBERS += [10**400, np.array([1, 2])]


def refused(make, *arguments, **values) -> None:
    with pytest.raises(InputError) as caught:
        make(*arguments, **values)
    assert "\n" not in str(caught.value).replace("array([1, 2])", "")


def numbers(method: type[Method]) -> list[str]:
    return [name for name, field in method.hyperparameters("cmf").items() if not isinstance(field.default, str)]


@pytest.mark.parametrize("method", ALL, ids=lambda method: method.name())
def test_no_hyperparameter_takes_what_is_no_number(method) -> None:
    for name in numbers(method):
        optional = "None" in str(get_type_hints(method)[name])
        for wrong in (value for value in NO_NUMBERS if not (optional and value is None)):
            refused(method.from_config, {name: wrong}, head="cmf" if name == "temperature" else "linear")
            refused(method, **{name: wrong})


@pytest.mark.parametrize("method", ALL, ids=lambda method: method.name())
def test_whole_numbers_are_not_rounded_and_all_have_a_least(method) -> None:
    for name in numbers(method):
        default = method.hyperparameters("cmf")[name].default
        refused(method, **{name: -1})
        refused(method, **{name: -1e-9})
        if isinstance(default, int):
            refused(method, **{name: default + 0.1})
            refused(method, **{name: 0})


@pytest.mark.parametrize(
    ("method", "values"),
    [
        (SalUn, {"salient": 2}),
        (SalUn, {"salient": 0}),
        (SalUn, {"decay": 1.5}),
        (SalUn, {"saliency": "fan"}),
        (SalUn, {"saliency": 1}),
        (SalUn, {"lr": 0}),
        (SalUn, {"temperature": 0}),
        (RandomLabel, {"clip": 0}),
        (NegGradPlus, {"clip": -1.0}),
        (BadTeacher, {"T": 0}),
        (BadTeacher, {"retain_share": 1.1}),
        (Scrub, {"batch_size": 0}),
        (Scrub, {"T": 0}),
        (SVD, {"samples": 0}),
        (SVD, {"alpha_f": 0}),
        (Influence, {"iterations": 0}),
        (Influence, {"samples": 0}),
        (Influence, {"damping": 0}),
        (UNSIR, {"noise_batches": 0}),
        (UNSIR, {"retain_per_class": 0}),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused(method, values) -> None:
    refused(method, **values)
    refused(dataclasses.replace, method(), **values)


def test_numbers_of_every_kind_become_the_declared_one() -> None:
    for given in ("1e0", "1", 1, 1.0, np.int64(1), np.float32(1), np.uint8(1)):
        config = RandomLabel.from_config({"epochs": given, "lr": given}).config
        assert (config["epochs"], config["lr"]) == (1, 1.0)
        assert (type(config["epochs"]), type(config["lr"])) == (int, float)
    assert GradientAscent(clip=None).clip is None
    assert GradientAscent(clip=2).config["clip"] == 2.0


def test_the_row_says_how_many_epochs_began_with_the_forget_set() -> None:
    assert Scrub(epochs=3, msteps=8).config["msteps"] == 3
    assert Scrub.from_config({"epochs": 1}).config["msteps"] == 1


def test_ones_own_hyperparameters_have_types_and_bounds_too() -> None:
    class Own(RandomLabel):
        paper: ClassVar[str] = "none"
        passes: int = tuned(2, Range(1, 5, "int"), "")
        tilt: float = tuned(0.0, Range(-1.0, 1.0, "linear"), "")
        share: float = tuned(0.5, Range(0.1, 0.9, "linear"), "", SHARE)
        epochs: float = fixed(2.5, "a subclass decides the type")  # type: ignore[assignment]

        def unlearn(self, run) -> Iterator[Step]:
            yield from ()

    assert Own.from_config({"tilt": -3, "passes": "2e0", "epochs": 1}).config["tilt"] == -3.0
    assert type(Own(epochs=1).epochs) is float
    for values in ({"passes": 2.5}, {"passes": 0}, {"share": 1.01}, {"tilt": math.nan}):
        refused(Own, **values)
    with pytest.raises(ValueError, match="outside"):
        tuned(0.5, Range(0.1, 2.0, "linear"), "", SHARE)
    refused(Sweep, Own, DIGITS, space={"passes": Range(1, 2, "linear")})


@pytest.mark.parametrize("arguments", [(1, 2, "logarithmic"), (True, 2, "int"), ("a", 2, "int"), (1, None, "linear")])
def test_a_range_that_is_none_is_refused(arguments) -> None:
    refused(Range, *arguments)


@pytest.mark.parametrize(
    ("name", "search"),
    [
        ("salient", Range(0.5, 1.5, "linear")),
        ("salient", Range(1.5, 3, "linear")),
        ("epochs", Range(0, 3, "int")),
        ("epochs", Range(1, 3, "linear")),
        ("lr", Range(1, 3, "int")),
        ("lr", Range(0, 1, "linear")),
        ("lr", Range(-1, 1, "linear")),
        ("lr", (1e-3, 1e-2)),
        ("saliency", Range(1, 2, "int")),
    ],
)
def test_a_space_beyond_the_bounds_is_refused(name, search) -> None:
    refused(Sweep, SalUn, DIGITS, space={name: search})


@pytest.mark.parametrize(
    "values",
    [
        {"lr": 0},
        {"lr": -0.1},
        {"lr": math.nan},
        {"lr": True},
        {"epochs": 0},
        {"epochs": 1.5},
        {"batch_size": 0},
        {"batch_size": None},
        {"patience": -1},
        {"patience": 0},
        {"augment": "yes"},
        {"augment": 1},
        {"optimizer": "sdg"},
        {"optimizer": "momentum"},
        {"precision": "fp16"},
    ],
    ids=str,
)
def test_a_recipe_that_cannot_train_is_refused(values) -> None:
    refused(dataclasses.replace, DIGITS.recipe, **values)


@pytest.mark.parametrize(
    "values",
    [
        {"val_share": 1.5},
        {"val_share": -0.1},
        {"val_share": 0.6, "test_share": 0.4},
        {"forget_share": 2},
        {"forget": (1.5,)},
        {"forget": (True,)},
        {"forget": (-1,)},
        {"forget": 3},
        {"forget": "3"},
        {"seed": -1},
        {"model_seed": 0.5},
        {"cifar_stem": 1},
        {"name": 3},
    ],
    ids=str,
)
def test_a_scenario_that_cannot_be_is_refused(values) -> None:
    refused(dataclasses.replace, DIGITS, **values)


def test_how_a_scenario_is_written_makes_no_difference() -> None:
    """A rate of 1 and of 1.0, a list and a tuple of classes."""

    def hashed(lr, forget) -> str:
        return Scenario("s", "digits", "test_resnet", Recipe(lr=lr, epochs=1), forget=forget).hash

    assert len({hashed(lr, forget) for lr in (1, 1.0, np.float64(1)) for forget in ((3,), [3], np.array([3]))}) == 1


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Protocol, {"trials": 2.5}),
        (Protocol, {"trials": True}),
        (Protocol, {"trials": math.nan}),
        (Protocol, {"trials": None}),
        (Protocol, {"max_epochs": 1.5}),
        (Protocol, {"max_images": 0}),
        (Protocol, {"search_seeds": (0.5,)}),
        (Protocol, {"search_seeds": (0, True)}),
        (Protocol, {"search_seeds": 3}),
        (Confirmation, {"seeds": 1.5}),
        (Confirmation, {"seeds": True}),
        (Confirmation, {"seeds": 1, "originals": 0.5}),
        (Confirmation, {"seeds": 1, "top": 0}),
        (Confirmation, {"seeds": 1, "forget": (3,)}),
        (Confirmation, {"seeds": 1, "forget": ((0.5,),)}),
        (Options, {"threads": 1.5}),
        (Options, {"threads": True}),
        (Options, {"workers": 0}),
        (Options, {"zero": 4}),
        (Options, {"zero": 1.5}),
        (Options, {"checkpoint_s": -1}),
        (Options, {"checkpoint_s": math.nan}),
        (Options, {"offload": 1, "zero": 1}),
        (Resources, {"gpus_per_worker": math.nan}),
        (Resources, {"gpus_per_worker": "all"}),
        (Resources, {"concurrent": 1.5}),
    ],
    ids=str,
)
def test_a_budget_or_an_engine_that_cannot_be_is_refused(kind, values) -> None:
    refused(kind, **values)


def test_a_budget_that_can_be_is_taken_as_it_was_meant() -> None:
    protocol = Protocol(trials=np.int64(5), search_seeds=[0, 1])  # type: ignore[arg-type]
    assert (protocol.trials, protocol.search_seeds) == (5, (0, 1))
    assert protocol.as_dict() == Protocol(trials=5, search_seeds=(0, 1)).as_dict()
    assert Resources(gpus_per_worker="auto").gpus_per_worker == "auto"
    assert Resources(gpus_per_worker=1).gpus_per_worker == 1.0
