"""The contract: what holds for every method that is found, with every head, on a ResNet and on ViTs."""

import copy
import dataclasses
import functools
import math
import re

import pytest
import torch
from conftest import DEVICE, REPOSITORY

from raymu import devices, methods, splits, training
from raymu.engines.pytorch import Engine
from raymu.errors import Diverged, InputError
from raymu.evaluation import evaluate_quickly
from raymu.method import Method, Range, tuned
from raymu.methods.random_label import RandomLabel
from raymu.methods.retrain import Retrain
from raymu.models import architectures
from raymu.scenario import SCENARIOS, Recipe

ALL = [methods.get(name) for name in methods.names()]
OPTIONS = [("linear", "all"), ("cmf", "all"), ("linear", "classifier")]
SLOW = ("influence", "svd", "unsir")  # they take half of the time of all
ARCHITECTURES = {
    "resnet": {"architecture": "test_resnet"},  # BatchNorm
    "vit": {"architecture": "test_vit", "model_args": (("patch_size", 4),)},  # LayerNorm, class token
}
AVERAGE_POOLING = {"architecture": "test_vit2", "model_args": (("patch_size", 4),)}


def allows(method: type[Method], head: str, train: str) -> bool:
    try:
        method.check_options(head, train)
    except InputError:
        return False
    return True


def marks(method: type[Method]) -> list[pytest.MarkDecorator]:
    return [pytest.mark.long] if method.name() in SLOW else []


METHODS = [pytest.param(method, id=method.name(), marks=marks(method)) for method in ALL]
CASES = [
    pytest.param(method, head, train, id=f"{method.name()}-{head}-{train}", marks=marks(method))
    for method in ALL
    for head, train in OPTIONS
    if allows(method, head, train)
]


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
    files = {path.stem for path in (REPOSITORY / "raymu" / "methods").glob("*.py")} - {"__init__"}
    assert set(methods.names()) == files
    assert [method.name() for method in ALL] == methods.names()
    assert len(ALL) >= 12


def test_there_is_a_script_for_every_method() -> None:
    scripts = {path.stem for path in (REPOSITORY / "sweeps").glob("*.py")}
    assert scripts == {*methods.names(), "all"}


@pytest.mark.parametrize("method", ALL, ids=lambda method: method.name())
class TestEveryMethod:
    def test_says_what_it_is(self, method) -> None:
        text = method.__doc__
        assert method.paper
        assert "Reads " in text
        assert "BatchNorm statistics" in text  # what happens to them is decided for every method, and said
        assert "Differs from the source" in text

    @pytest.mark.parametrize("head", ["linear", "cmf"])
    @pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=lambda scenario: scenario.name)
    def test_published_setting_is_whole_and_lies_in_the_range(self, method, scenario, head) -> None:
        published = method.published_config(scenario, head)
        assert set(published) == set(method.hyperparameters(head))
        assert all(published[name] in search for name, search in method.ranges(head).items())
        assert method.from_config(published, head=head).config == published

    def test_published_settings_lie_in_the_range(self, method) -> None:
        for (dataset, head, name), setting in method.published.items():
            assert dataset in ("cifar10", "cifar100", "tinyimagenet")
            assert name in ("code", "code (one class)", "code (several classes)", "table")
            assert all(value in method.ranges(head)[knob] for knob, value in setting.items() if knob not in FIXED)

    @pytest.mark.parametrize("head", ["linear", "cmf"])
    @pytest.mark.parametrize("forget", [(0,), (0, 1)])
    def test_what_the_authors_ran_comes_before_what_their_table_says(self, method, head, forget) -> None:
        for scenario in SCENARIOS.values():
            settings = method.settings(dataclasses.replace(scenario, forget=forget), head)
            assert len(settings) <= 2
            assert not list(settings)[1:] or list(settings)[1] == "table"
            assert len({str(setting) for setting in settings.values()}) == len(settings)  # named where they differ

    def test_wrong_hyperparameters_are_refused(self, method) -> None:
        known = next(iter(method.hyperparameters()))
        with pytest.raises(InputError, match=f"did you mean '{known}'"):
            method.from_config({f"{known}x": 1.0})
        for wrong in ("fast", -1, math.nan, math.inf):
            with pytest.raises(InputError, match="number"):
                method.from_config({known: wrong})


@pytest.mark.parametrize("method", METHODS)
def test_ends_of_the_ranges_are_finite_or_a_divergence(method, small) -> None:
    scenario, images, original = small("resnet")
    for end in ("low", "high"):
        config = {name: getattr(search, end) for name, search in method.ranges().items()}
        config.update({name: 1 for name in config if name.endswith("epochs")})
        engine = Engine(start(method, original, scenario), images, scenario, seed=0)
        try:
            engine.run(method.from_config(config))
        except Diverged:
            continue
        assert all(weight.isfinite().all() for weight in engine.model.parameters())


FIXED = {
    name for method in ALL for name, field in method.hyperparameters("cmf").items() if field.metadata["range"] is None
}


@pytest.fixture(scope="module")
def small(digits):
    """A scenario of 60 training images that forgets two classes, its data, and an original that has learnt a little."""

    @functools.cache
    def make(architecture: str):
        recipe = Recipe(lr=0.02, epochs=5, batch_size=8)
        scenario = dataclasses.replace(
            digits, name="small", forget=(3, 8), recipe=recipe, **ARCHITECTURES[architecture]
        )
        whole = splits.load(scenario, DEVICE)
        chosen = torch.arange(60)
        images = dataclasses.replace(whole, train=whole.train.subset(chosen), forget=whole.forget[chosen])
        original = architectures.build(scenario, seed=1).to(DEVICE)
        with devices.cpu_threads(1):
            Engine(original, images, scenario, seed=1).run(training.TrainOriginal(lr=recipe.lr, epochs=recipe.epochs))
        return scenario, images, original

    return make


def start(method: type[Method], original: torch.nn.Module, scenario) -> torch.nn.Module:
    return copy.deepcopy(original) if method.start == "original" else architectures.build(scenario, seed=0).to(DEVICE)


class Reads(Engine):
    """An engine that counts on its own how many images of the training set were read, and its scans."""

    read = scans = 0

    def _read(self, batches):
        for batch in super()._read(batches):
            self.read += len(batch.labels)
            yield batch

    def scan(self, part):
        self.scans += 1
        yield from super().scan(part)


@pytest.mark.parametrize("architecture", ["resnet", pytest.param("vit", marks=pytest.mark.long)])
@pytest.mark.parametrize(("method", "head", "train"), CASES)
def test_contract(method, head, train, architecture, small, tmp_path) -> None:
    scenario, images, original = small(architecture)
    instance = method.from_config(method.published_config(scenario, head), head=head, train=train)
    untouched = {name: tensor.clone() for name, tensor in original.state_dict().items()}

    def unlearned(seed: int = 3, cached: bool = False, loaded: splits.Data = images) -> Engine:
        ends: list[int] = []
        engine = Reads(
            start(method, original, scenario),
            loaded,
            scenario,
            seed=seed,
            cache_directory=tmp_path if cached and method.start == "original" else None,
        )
        before = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
        engine.run(instance, ends.append)
        engine.before = before
        # Obeys its epochs.
        assert ends == list(range(1, instance.total_epochs + 1))
        return engine

    def weights(engine: Engine) -> dict[str, torch.Tensor]:
        """Without the wrapper that a CMF head is."""
        state = engine.model.backbone.state_dict() if head == "cmf" else engine.model.state_dict()
        assert all(tensor.isfinite().all() for tensor in state.values())
        return state

    engine = unlearned()
    result = weights(engine)
    changed = {name for name, tensor in result.items() if not torch.equal(tensor, engine.before[name])}

    # Changes weights: with frozen features those of the classifier and nothing else, BatchNorm statistics included.
    named = dict(original.named_parameters())
    classifier = {name for name, weight in named.items() if any(weight is own for own in head_weights(original))}
    assert changed & set(named)
    if train == "classifier":
        assert changed <= classifier
    if head == "cmf":
        assert not changed & classifier
    if not method.trains:
        assert changed <= set(named)  # the passes run in eval mode

    # Reports the images it read.
    assert engine.images == engine.read
    assert engine.images > 0

    # Deterministic, and no different where what it computes is kept; then it is found and not computed again.
    first = unlearned(cached=True)
    second = unlearned(cached=True)
    assert second.scans == 0 or method.start != "original"
    for again in (first, second):
        assert all(torch.equal(tensor, result[name]) for name, tensor in weights(again).items())
        assert again.images == engine.images
    if method.trains:
        other = weights(unlearned(seed=4))
        assert any(not torch.equal(tensor, result[name]) for name, tensor in other.items())

    # Needs no data that it did not declare (a CMF head itself needs all).
    if head == "linear":
        hidden = {"retain": ~images.forget, "forget": images.forget}
        for chosen in (rows for part, rows in hidden.items() if part not in method.needs):
            poisoned = copy.copy(images.train.images)
            poisoned.pixels = poisoned.pixels.clone()
            poisoned.pixels[images.train.index[chosen]] = 255 - poisoned.pixels[images.train.index[chosen]]
            spoilt = dataclasses.replace(images, train=dataclasses.replace(images.train, images=poisoned))
            blind = weights(unlearned(loaded=spoilt))
            assert all(torch.equal(tensor, result[name]) for name, tensor in blind.items())

    # Leaves the original untouched.
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in original.state_dict().items())


def head_weights(model) -> list[torch.nn.Parameter]:
    return list(model.get_classifier().parameters())


@pytest.mark.parametrize(("method", "head", "train"), CASES)
def test_every_epoch_knob_is_obeyed(method, head, train, small) -> None:
    scenario, images, original = small("resnet")
    knobs = [name for name in method.ranges() if name.endswith("epochs")]
    assert bool(knobs) == method.trains
    for knob in knobs:
        config = {**dict.fromkeys(knobs, 1), knob: 2}
        instance = method.from_config(config, head=head, train=train)
        engine = Engine(start(method, original, scenario), images, scenario, seed=0)
        engine.run(instance)
        assert engine.epoch == instance.total_epochs == len(knobs) + 1
        assert 1 <= instance.comparable_from <= instance.total_epochs


@pytest.mark.parametrize(("method", "head", "train"), [case for case in CASES if case.values[0].nested])
def test_a_run_shows_the_ends_of_shorter_ones(method, head, train, small) -> None:
    """To the last bit, whatever changes from epoch to epoch, such as SCRUB's learning rate."""
    scenario, images, original = small("resnet")

    def ends(config: dict[str, float]) -> tuple[Method, dict[int, dict[str, torch.Tensor]]]:
        instance, states = method.from_config(config, head=head, train=train), {}
        engine = Engine(start(method, original, scenario), images, scenario, seed=0)

        def keep(epoch: int) -> None:
            states[epoch] = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}

        engine.run(instance, keep)
        return instance, states

    knobs = [name for name in method.ranges() if name.endswith("epochs")]
    config = {**dict.fromkeys(knobs, 1), method.nested: 5}
    long, states = ends(config)
    shorter = {epoch: long.shorter(epoch) for epoch in range(long.total_epochs + 1)}
    assert {epoch for epoch, setting in shorter.items() if setting} == set(
        range(long.comparable_from, long.total_epochs)
    )
    for epoch in (long.comparable_from, long.total_epochs - 1):  # the last is behind a step of SCRUB's learning rate
        assert shorter[epoch].keys() == {method.nested}
        short, of_short = ends(config | shorter[epoch])
        assert short.total_epochs == epoch
        assert all(torch.equal(of_short[epoch][name], tensor) for name, tensor in states[epoch].items())


@pytest.mark.parametrize("head", ["linear", "cmf"])
def test_a_vit_with_average_pooling_unlearns_and_is_evaluated(head, digits, digits_data) -> None:
    scenario = dataclasses.replace(digits, **AVERAGE_POOLING)
    engine = Engine(architectures.build(scenario, seed=0).to(DEVICE), digits_data, scenario, seed=0)
    engine.run(RandomLabel(head=head, lr=0.01, epochs=1))
    assert engine.model.get_classifier().in_features == 64
    row = evaluate_quickly(engine.model, digits_data)
    assert all(0 <= row[f"val_{part}_acc"] <= 1 for part in ("retain", "probe_forget"))


@pytest.mark.parametrize("method", [case for case in METHODS if not case.values[0].classes_only])
def test_single_samples_can_be_forgotten(method, digits, small) -> None:
    _, _, original = small("resnet")
    scenario = dataclasses.replace(digits, forget=(), forget_share=0.1)
    loaded = splits.load(scenario, DEVICE)
    config = {name: 1 for name in method.ranges() if name.endswith("epochs")}
    engine = Engine(start(method, original, scenario), loaded, scenario, seed=0)
    engine.run(method.from_config(config))
    assert all(weight.isfinite().all() for weight in engine.model.parameters())


def test_options_that_make_no_sense_are_refused() -> None:
    refused = {method.name() for method in ALL if not allows(method, "linear", "classifier")}
    assert refused == {"ssd", "svd", "influence", "retrain"}
    with pytest.raises(InputError, match="ssd trains nothing"):
        methods.get("ssd")(train="classifier")
    with pytest.raises(InputError, match="nothing to train"):
        RandomLabel(head="cmf", train="classifier")
    with pytest.raises(InputError, match="did you mean 'linear'"):
        RandomLabel(head="linea")


def test_the_temperature_is_searched_with_a_cmf_head_alone() -> None:
    assert "temperature" not in RandomLabel.ranges("linear")
    assert "temperature" in RandomLabel.ranges("cmf")
    with pytest.raises(InputError, match="unknown hyperparameter"):
        RandomLabel.from_config({"temperature": 2.0})


def test_a_setting_that_the_paper_does_not_give_is_a_fallback() -> None:
    cifar, digits = SCENARIOS["cifar10-resnet18"], dataclasses.replace(SCENARIOS["digits"], forget=(8,))
    assert RandomLabel.is_published(cifar)
    assert not RandomLabel.is_published(digits)
    assert RandomLabel.published_config(digits, "cmf") == RandomLabel.published_config(cifar, "cmf")
    assert RandomLabel.published_config(cifar, "cmf") == {"lr": 1e-4, "epochs": 4, "clip": 1.0, "temperature": 1.0}
    assert Retrain.published_config(cifar) == {"lr": 1e-2, "epochs": 200}
    assert Retrain.published_config(digits) == {"lr": 0.05, "epochs": 40}  # the recipe of the references
    samples = dataclasses.replace(cifar, forget=(), forget_share=0.1)
    assert not RandomLabel.is_published(samples)
    for other in (
        dataclasses.replace(cifar, architecture="vit_small_patch16_224", cifar_stem=False),
        dataclasses.replace(cifar, recipe=dataclasses.replace(cifar.recipe, batch_size=8)),
    ):
        assert not RandomLabel.is_published(other)
        assert RandomLabel.published_config(other) == RandomLabel.published_config(cifar)
    assert not RandomLabel.is_published(cifar, train="classifier")
    assert RandomLabel.published_config(samples) == RandomLabel.published_config(cifar)


# What the scripts in the authors' repository say (commit e6e94af), and their table: forgetting one class, or three.
PUBLISHED = [
    ("random_label", "cifar10", "linear", 1, {"lr": 1e-2}, {"lr": 1e-4}),
    ("random_label", "cifar10", "cmf", 1, {"lr": 1e-4, "epochs": 4, "clip": 1.0}, {"lr": 2e-3}),
    ("random_label", "cifar10", "cmf", 3, {"lr": 2e-3}, None),
    ("salun", "cifar10", "linear", 1, {"lr": 1e-2, "saliency": "absolute", "decay": 1.0, "clip": None}, {"lr": 1e-4}),
    ("salun", "cifar100", "linear", 3, {"lr": 3e-3}, {"lr": 1e-3}),
    ("salun", "cifar10", "cmf", 1, {"lr": 2e-4, "epochs": 4, "decay": 0.2, "clip": 1.0}, {"lr": 2e-3}),
    ("neggrad_plus", "cifar10", "linear", 1, {"lr": 1e-3, "ascent": 1.0, "clip": 1.0}, {"lr": 1e-4}),
    ("neggrad_plus", "cifar100", "linear", 1, {"lr": 5e-5}, {"lr": 5e-3}),
    ("neggrad_plus", "cifar100", "linear", 3, {"lr": 1e-4}, {"lr": 5e-3}),
    ("neggrad_plus", "tinyimagenet", "cmf", 1, {"lr": 3e-5, "ascent": 0.5, "clip": 1.0}, None),
    ("scrub", "cifar10", "linear", 1, {"lr": 1e-4, "epochs": 3, "msteps": 2, "T": 4.0, "batch_size": 64}, None),
    ("scrub", "cifar100", "linear", 3, {"lr": 3e-4}, {"lr": 1e-3}),
    ("scrub", "tinyimagenet", "cmf", 1, {"lr": 5e-3}, {"lr": 1e-3}),
    ("unsir", "cifar10", "linear", 1, {"impair_lr": 1e-4, "repair_lr": 5e-5}, {"impair_lr": 5e-5, "repair_lr": 5e-5}),
    ("unsir", "cifar100", "linear", 1, {"impair_lr": 2e-4, "repair_lr": 3e-5}, {"impair_lr": 3e-5, "repair_lr": 3e-5}),
    ("svd", "cifar10", "linear", 1, {"alpha_r": 100.0, "alpha_f": 3.0}, {"alpha_r": 1000.0, "alpha_f": 30.0}),
    ("svd", "cifar100", "linear", 1, {"alpha_r": 1000.0, "alpha_f": 30.0}, None),
]


@pytest.mark.parametrize(("name", "dataset", "head", "classes", "code", "table"), PUBLISHED)
def test_the_published_setting_is_what_the_authors_ran(name, dataset, head, classes, code, table) -> None:
    method = methods.get(name)
    (scenario,) = (task for task in SCENARIOS.values() if task.dataset == dataset)
    scenario = dataclasses.replace(scenario, forget=tuple(range(classes)))
    config = method.published_config(scenario, head)
    assert {key: config[key] for key in code} == code
    assert method.published_as(scenario, head, "all", config).startswith("code")
    second = method.settings(scenario, head).get("table")
    assert (second is None) == (table is None)
    if table is not None:
        assert {key: second[key] for key in table} == table
        assert method.published_as(scenario, head, "all", second) == "table"
    assert method.published_as(scenario, head, "all", {**config, "temperature": 2.0}) is None


@pytest.mark.parametrize("ascent", [1e-4 / 0.9999, 0.05 / 0.95])
def test_kurmanjis_own_settings_of_neggrad_plus_lie_in_its_range(ascent) -> None:
    assert ascent in methods.get("neggrad_plus").ranges()["ascent"]


def test_a_method_of_ones_own_is_named_by_its_class() -> None:
    class MyNegGrad(methods.Method):
        pass

    assert MyNegGrad.name() == "my_neg_grad"


def test_the_readmes_table_is_the_methods_own() -> None:
    readme = (REPOSITORY / "docs" / "methods.md").read_text()
    found = re.search(r"<!-- raymu methods --markdown -->\n(.*?)\n\n", readme, re.DOTALL)
    assert found
    assert found[1] == methods.markdown_table()
