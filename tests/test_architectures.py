"""Architectures of timm: those that raymu takes are measured as they answer, the others are refused before training."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import timm
import torch
from benchmarks import architectures
from conftest import REPOSITORY
from packaging.version import Version
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

from raymu import cache, engines, reference_models, splits
from raymu.cli import app
from raymu.data import arrays, published
from raymu.distributed.session import Resources
from raymu.engines.options import Options
from raymu.engines.pytorch import Engine
from raymu.errors import InputError
from raymu.evaluation.layers import check_blocks
from raymu.methods import get
from raymu.models import cmf, compatibility, inference
from raymu.models.architectures import build
from raymu.scenario import SCENARIOS, Recipe, Scenario
from raymu.storage import locate
from raymu.trial import run_trial
from raymu.tuning import driver
from raymu.tuning.driver import run_sweep
from raymu.tuning.sweep import Sweep

CLASSES = 4
IMAGES = 48
CPU = torch.device("cpu")

KINDS = {
    "plain": (32, "test_resnet", {}),
    "two heads, averaged": (32, "deit_tiny_distilled_patch16_224", {"patch_size": 16, "depth": 2}),
    "two branches with a head each": (120, "crossvit_tiny_240", {"img_size": 120}),
    "1x1 convolution as head": (32, "resnetv2_18", {}),
    "BatchNorm before the head": (32, "repvit_m0_9", {}),
    "layers before the last in its classifier": (32, "caformer_s18", {}),
    "tied weights": (32, "coat_tiny", {}),
}
REFUSED = {
    "an auxiliary head": (32, {"architecture": "volo_d1_224"}, "not what its classifier makes of its features"),
    "kept from earlier weights": (32, {"architecture": "levit_128s"}, "computed from the old"),
    "images too small": (16, {"architecture": "convnext_atto"}, "does not read images of 3 x 16 x 16: "),
    "a stem that is no ResNet's": (32, {"architecture": "resnet18d", "cifar_stem": True}, "cifar_stem: resnet18d"),
    "no stem": (32, {"architecture": "test_vit", "cifar_stem": True}, "cifar_stem: test_vit"),
    "an unknown argument": (32, {"architecture": "test_resnet", "model_args": (("patch_size", 4),)}, "'patch_size'"),
    "another size": (32, {"architecture": "vit_tiny_patch16_224", "model_args": (("img_size", 64),)}, "3 x 32 x 32: "),
    "BatchNorm of one value": (
        32,
        {"architecture": "resnet10t", "recipe": Recipe(lr=0.01, epochs=1, batch_size=1)},
        "cannot be trained on batches of 1: ",
    ),
}
ROUNDING = 1e-5
UNUSUAL = [
    "two heads, averaged",
    "BatchNorm before the head",
    pytest.param("1x1 convolution as head", marks=pytest.mark.long),
    pytest.param("tied weights", marks=pytest.mark.long),
]


def images_of(size: int) -> arrays.ArrayDataset:
    """A dataset of noise, brighter from class to class."""

    def read(directory) -> dict[str, np.ndarray]:
        random, labels = np.random.default_rng(0), np.arange(IMAGES) % CLASSES
        noise = random.integers(0, 60, (IMAGES, 3, size, size)) + labels[:, None, None, None] * 45
        return {"train_images": noise.astype(np.uint8), "train_labels": labels}

    return arrays.ArrayDataset(f"noise{size}", CLASSES, 3, size, (0.5,) * 3, (0.3,) * 3, read)


@pytest.fixture
def make(monkeypatch):
    """A scenario of noise, of a name and of data of its own."""

    def make(name: str, size: int = 32, **changes: Any) -> Scenario:
        dataset = f"noise{size}"
        monkeypatch.setitem(published.DATASETS, dataset, images_of(size))
        scenario = Scenario(
            name=re.sub(r"\W+", "-", name),
            dataset=dataset,
            architecture="test_resnet",
            recipe=Recipe(lr=0.01, epochs=1, batch_size=16),
            forget=(1,),
            val_share=0.25,
            test_share=0.25,
        )
        return dataclasses.replace(scenario, **changes)

    return make


@pytest.fixture
def of_kind(make):
    def of_kind(kind: str) -> Scenario:
        size, architecture, arguments = KINDS[kind]
        return make(kind, size, architecture=architecture, model_args=tuple(arguments.items()))

    return of_kind


def timms_own(scenario: Scenario) -> Any:
    """The model as timm makes it: raymu has no part in it."""
    arguments = dict(scenario.model_args)
    if timm.get_pretrained_cfg(scenario.architecture).fixed_input_size:
        arguments.setdefault("img_size", 32)
    return timm.create_model(scenario.architecture, num_classes=CLASSES, **arguments).eval()


@torch.no_grad()
def with_noise(model: nn.Module) -> Any:
    """All weights moved, so that nothing stays at a start of 0."""
    for weight in model.parameters():
        weight += 0.02 * torch.randn_like(weight)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_features_times_matrix_are_the_logits_of_timms_own_model(kind, of_kind) -> None:
    torch.manual_seed(0)
    model = with_noise(timms_own(of_kind(kind)))
    images = torch.randn(5, 3, KINDS[kind][0], KINDS[kind][0])
    with torch.no_grad():
        expected = model(images)
        features, logits = inference.features_and_logits(model, images)
        matrix = inference.head_matrix(model)
    biases = [value for name, value in model.state_dict().items() if name.endswith("bias") and len(value) == CLASSES]
    made = features @ matrix.T + sum(biases) / len(biases)
    for answered in (logits, made):
        assert (answered - expected).abs().max() < ROUNDING * expected.abs().max()
    assert matrix.shape == (CLASSES, features.shape[1])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_passes_before_training(kind, of_kind) -> None:
    """Saved, read, differentiated and trained: `reference_models.train` asks the same."""
    compatibility.check(of_kind(kind))


def test_two_heads_are_two_halves_of_one_matrix(of_kind) -> None:
    """DeiT: the mean of what the head says of the class token, and the other one of the distillation token."""
    torch.manual_seed(0)
    model = with_noise(timms_own(of_kind("two heads, averaged")))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = model.forward_features(images)
        features, logits = inference.features_and_logits(model, images)
        mean = (model.head(tokens[:, 0]) + model.head_dist(tokens[:, 1])) / 2
    torch.testing.assert_close(features, torch.cat([tokens[:, 0], tokens[:, 1]], 1))
    torch.testing.assert_close(
        inference.head_matrix(model), torch.cat([model.head.weight, model.head_dist.weight], 1) / 2
    )
    torch.testing.assert_close(logits, mean)


@pytest.mark.long
@pytest.mark.parametrize("kind", UNUSUAL)
def test_every_kind_unlearns_and_is_measured_as_it_answers(kind, of_kind) -> None:
    scenario = of_kind(kind)
    images = splits.load(scenario, CPU)
    original = reference_models.load_model(scenario, "original").state_dict()
    heads = {"head", "fc", "classifier", "head_dist"}
    for method, options in (
        ("gradient_ascent", {}),  # clips the gradient of all weights
        ("random_label", {"train": "classifier"}),
        ("finetune", {"head": "cmf"}),
    ):
        trial = get(method).from_config({"epochs": 1} | ({"temperature": 8.0} if "head" in options else {}), **options)
        row, model = run_trial(scenario, trial, seed=0)
        assert row["status"] == "completed", row["traceback"]
        if "head" in options:
            assert isinstance(model, cmf.CMF)
            assert model.head.weight.shape == inference.head_matrix(model.backbone).shape
            continue
        assert model is not None
        own = timms_own(scenario)
        own.load_state_dict(model.state_dict())
        for part in ("retain", "forget"):
            split = getattr(images.val, part)
            with torch.no_grad():
                right = (own(split.read()).argmax(1) == split.targets).double().mean()
            assert row[f"val_{part}_acc"] == pytest.approx(right.item())
        moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, original[name])}
        assert moved
        if "train" in options:
            assert all(heads & set(name.split(".")) and name.endswith(("weight", "bias")) for name in moved)
            assert not any(".bn." in name for name in moved)  # what stands before the matrix makes features


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_one_line_before_anything_is_trained(case, make, monkeypatch) -> None:
    def never(*arguments: Any, **rest: Any) -> None:
        raise AssertionError("it is trained")

    monkeypatch.setattr(reference_models, "fit", never)
    size, changes, line = REFUSED[case]
    scenario = make(case, size, **changes)
    with pytest.raises(InputError, match=re.escape(line)) as refused:
        reference_models.train(scenario, "original")
    assert scenario.architecture in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert reference_models.missing(scenario) == list(reference_models.REFERENCES)


@pytest.mark.parametrize(
    ("architecture", "arguments", "reason"),
    [
        ("tf_mobilenetv3_small_minimal_100", {}, "its layer conv_stem is more than its weight times its input"),
        (
            "beit_base_patch16_224",
            {"img_size": 32, "depth": 1, "embed_dim": 32, "num_heads": 2},
            "it uses blocks.0.attn.qkv.weight without its layer, so what it reads is not seen",
        ),
        *((KINDS[kind][1], KINDS[kind][2], "") for kind in ("plain", "1x1 convolution as head", "tied weights")),
    ],
)
def test_svd_takes_no_layer_whose_input_it_does_not_see(architecture, arguments, reason, make, tmp_path) -> None:
    scenario = make("seen", architecture=architecture, model_args=tuple(arguments.items()))
    if not reason:
        compatibility.check(scenario, get("svd"))
        return
    line = f"{architecture} is not what svd works on: {reason}"
    with pytest.raises(InputError, match=f"^{re.escape(line)}$"):
        run_sweep(Sweep(get("svd"), scenario), locate(tmp_path / "sweep"), Resources(), Console(), anyway=True)
    assert reference_models.missing(scenario) == list(reference_models.REFERENCES)


def test_a_sweep_and_a_run_refuse_it_before_ray_and_before_training(make, tmp_path, monkeypatch) -> None:
    def never(*arguments: Any, **rest: Any) -> None:
        raise AssertionError("too late")

    monkeypatch.setattr(driver, "session", never)
    monkeypatch.setattr(reference_models, "train", never)
    scenario = make("refused", architecture="volo_d1_224")
    with pytest.raises(InputError, match="volo_d1_224 has no head of one matrix"):
        run_sweep(Sweep(get("finetune"), scenario), locate(tmp_path / "sweep"), Resources(), Console(), anyway=True)
    monkeypatch.setitem(SCENARIOS, scenario.name, scenario)
    done = CliRunner().invoke(app, ["run", "finetune", "--scenario", "refused", "--out", str(tmp_path / "run")])
    assert isinstance(done.exception, InputError)
    assert "volo_d1_224 has no head of one matrix" in str(done.exception)


def test_a_scenario_of_another_size_is_tried_again(make) -> None:
    """What a process has tried is known by what is tried, not by its name."""
    scenario = make("sizes", architecture="convnext_atto")
    compatibility.check(scenario)
    published.DATASETS[scenario.dataset] = dataclasses.replace(images_of(16), name=scenario.dataset)
    with pytest.raises(InputError, match="3 x 16 x 16"):
        compatibility.check(scenario)


@dataclass
class Made:
    """What a model may do wrong, one thing each."""

    wrong: str

    def __call__(self, name: str, num_classes: int, in_chans: int) -> nn.Module:
        return Wrong(self.wrong, num_classes)


class Wrong(nn.Module):
    def __init__(self, wrong: str, classes: int) -> None:
        super().__init__()
        self.wrong, self.seen = wrong, None
        self.body, self.fc = nn.Linear(3, 8), nn.Linear(8, classes)

    def get_classifier(self) -> nn.Module:
        return nn.Identity() if self.wrong == "no linear layer" else self.fc

    def forward(self, images: torch.Tensor) -> Any:
        features = self.body(images.mean((2, 3))).relu()
        if self.wrong == "images together":
            features = features - features.mean(0) / 2
        logits = self.fc(features[:, None].expand(-1, 2, -1)).mean(1) if self.wrong == "a map" else self.fc(features)
        if self.wrong == "not a matrix":
            return logits.tanh()
        if self.wrong == "two answers in train mode" and self.training:
            return logits, logits
        if self.wrong == "not finite":
            return logits / 0
        if self.wrong == "no gradient":
            return logits.detach()
        if self.wrong == "old weights":
            self.seen = self.body.weight.detach().sum() if self.seen is None else self.seen
            return logits + 0 * self.seen if self.training else self.fc(features + self.seen)
        return logits


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ("no linear layer", "has no head of one matrix: timm names no linear layer"),
        ("a map", "has no head of one matrix: its classifier reads more than one vector"),
        ("not a matrix", "has no head of one matrix: its logits are not"),
        ("images together", "an image's logits depend on the images beside it"),
        ("not finite", "has no head of one matrix"),
        ("no gradient", "cannot be measured: RuntimeError"),
        ("two answers in train mode", "cannot be trained on batches of 2: it does not return 4 logits an image"),
        ("old weights", "cannot be saved and loaded: with new weights"),
    ],
)
def test_each_way_to_be_unfit_is_named(wrong, line, make, monkeypatch) -> None:
    monkeypatch.setattr(timm, "create_model", Made(wrong))
    compatibility._try_out.cache_clear()  # a process tries an architecture once
    with pytest.raises(InputError, match=re.escape(line)):
        compatibility.check(make(wrong))


def test_tied_weights_are_written_and_read(tmp_path) -> None:
    one = torch.arange(6.0).view(2, 3)
    tensors = {"a": one, "same": one, "row": one[1], "turned": one.T, "other": torch.ones(2)}
    cache.save_tensors(tmp_path / "tied.safetensors", tensors)
    found = cache.load_tensors(tmp_path / "tied.safetensors", CPU)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_weights_that_no_logit_depends_on_have_the_gradient_0(digits, digits_data) -> None:
    model: Any = build(digits, seed=1)
    model.unused = nn.Parameter(torch.ones(3))
    method = get("gradient_ascent").from_config({"epochs": 1, "lr": 0.01})
    Engine(model, digits_data, digits, seed=0).run(method)
    decayed = model.unused[0].item()
    assert 0.99 < decayed < 1  # weight decay alone
    engine = Engine(model, digits_data, digits, seed=0)
    engine.run(get("ssd").from_config({"alpha": 1.0}))
    assert torch.equal(model.unused, torch.full((3,), decayed))


def test_what_timm_cannot_checkpoint_or_profile_is_refused(make) -> None:
    scenario = make("parts", architecture="crossvit_tiny_240")
    engines.check(scenario, Options())
    with pytest.raises(InputError, match="crossvit_tiny_240"):
        engines.check(scenario, Options(checkpointing=True))
    with pytest.raises(InputError, match="blocks of crossvit_tiny_240"):
        check_blocks(scenario)


def listed() -> tuple[set[str], set[str]]:
    """The architectures that docs/architectures.md says to work, and those it says to be refused."""
    works, refused = (REPOSITORY / "docs" / "architectures.md").read_text().split("## Refused")
    return set(re.findall(r"`([a-z0-9_]+)`", works.split("## Work")[1])), set(re.findall(r"`([a-z0-9_]+)`:", refused))


@pytest.mark.long
@pytest.mark.timeout(6 * 3600)
def test_every_architecture_below_30_million_weights_is_right_or_refused_as_the_table_says() -> None:
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for name in timm.list_models():
        line = architectures.attempt(name)
        if line["weights"] < architectures.LARGEST:
            assert line.get("difference", 0) < ROUNDING, name
            assert len(line.get("refused", "").splitlines()) <= 1
            found["difference" in line].add(name)
    assert (found[True], found[False]) == listed()


def test_the_table_is_of_these_architectures() -> None:
    works, refused = listed()
    assert not works & refused
    made_with = re.search(r"timm ([\d.]+)", (REPOSITORY / "docs" / "architectures.md").read_text())
    assert made_with is not None
    if Version(timm.__version__) >= Version(made_with[1]):
        assert works | refused <= set(timm.list_models())
    assert {"resnet18", "deit_tiny_distilled_patch16_224", "resnetv2_50", "repvit_m0_9", "coat_tiny"} <= works
    assert "volo_d1_224" in refused
    counts = re.search(r"(\d+) of (\d+) architectures", (REPOSITORY / "docs" / "methods.md").read_text())
    assert counts is not None
    assert [int(count) for count in counts.groups()] == [len(works), len(works | refused)]
