"""Pretrained weights: where they come from, what is refused, and that training starts from them."""

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from test_encoded import CLASSES, SCENARIO, write_photos, write_shards

from raymu import cache, reference_models, splits, training
from raymu.data import folders, published
from raymu.engines.optimizers import DECOUPLED_DECAY
from raymu.engines.pytorch import Engine
from raymu.errors import InputError
from raymu.method import Method, Step
from raymu.methods.retrain import Retrain
from raymu.models import architectures, inference, pretrained
from raymu.objective import HMEAN
from raymu.scenario import SCENARIOS, Recipe
from raymu.trial import check, run_trial

NAME = "test_vit.r160_in1k"
TUNED = dataclasses.replace(
    SCENARIO, name="tuned", pretrained=NAME, recipe=Recipe(lr=1e-3, epochs=2, batch_size=16, optimizer="adamw")
)
CLOSED = "http://127.0.0.1:9"
HEAD = {"head.weight", "head.bias"}
MILLIONS = {"imagenet-vit_s": 22, "imagenet-vit_b": 86.6, "imagenet-vit_l": 304, "imagenet-vit_h": 632}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(published.DATASETS, "photos", folders.EncodedDataset("photos", CLASSES))


def network_weights(**changed: Any) -> dict[str, torch.Tensor]:
    """All weights of a network at the published size but its head's, which is that of another data set."""
    with torch.random.fork_rng():
        torch.manual_seed(77)
        network = timm.create_model("test_vit", num_classes=7)
    return {name: tensor for name, tensor in {**network.state_dict(), **changed}.items() if tensor is not None}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Without a head, as weights from self-supervision are."""
    path = tmp_path / "mine.safetensors"
    save_file(network_weights(**dict.fromkeys(HEAD)), path)
    return path


# The scenarios


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=lambda scenario: scenario.name)
def test_every_scenario_fits_together(scenario) -> None:
    check(scenario, Retrain, HMEAN)
    dataset = published.DATASETS[scenario.dataset]
    with torch.device("meta"):
        model: Any = architectures.build(scenario, 0)
        features, logits = inference.features_and_logits(model, torch.empty(2, *scenario.format.shape))
    assert logits.shape == (2, dataset.num_classes)
    assert features.shape == (2, model.head_hidden_size)
    if scenario.name in MILLIONS:
        assert scenario.format.shape == (3, 224, 224)
        count = sum(weight.numel() for weight in model.parameters())
        assert count / 1e6 == pytest.approx(MILLIONS[scenario.name], rel=0.01)


def test_scenarios_of_imagenet_start_without_labels_and_hold_out_as_many_images_as_there_are_for_test() -> None:
    for name in MILLIONS:
        scenario = SCENARIOS[name]
        assert scenario.pretrained.rpartition(".")[2] in ("mae", "dino")  # no supervised weights
        assert timm.get_pretrained_cfg(scenario.pretrained).num_classes == 0
        assert round(scenario.val_share * 1_281_167) == 50_000


def test_the_start_is_part_of_what_a_scenario_is() -> None:
    others = (
        dataclasses.replace(TUNED, pretrained=""),
        dataclasses.replace(TUNED, recipe=dataclasses.replace(TUNED.recipe, optimizer="sgd")),
    )
    assert len({TUNED.hash, *(other.hash for other in others)}) == 3


def test_images_are_normalised_as_the_pretrained_weights_are_used_to() -> None:
    """Fix: the weights' own transform. timm's default for the architecture, of Google's weights, has a mean of 0.5."""
    scenario = SCENARIOS["imagenet-vit_b"]
    assert scenario.transform()["mean"] == (0.485, 0.456, 0.406)
    assert dataclasses.replace(scenario, pretrained="").transform()["mean"] == (0.5, 0.5, 0.5)


def test_unknown_weights_are_named() -> None:
    with pytest.raises(InputError, match=r"unknown pretrained weights 'test_vit.mae'.*test_vit\.r160_in1k"):
        check(dataclasses.replace(TUNED, pretrained="test_vit.mae"), Retrain, HMEAN)


# From a file


def test_everything_but_the_head_is_the_files(file) -> None:
    """The size of the images is another: position embeddings are resampled, all else is as it was, to the bit."""
    pretrained.prepare(TUNED, file)
    given, start, other = (
        network_weights(),
        pretrained.start(TUNED, 0).state_dict(),
        pretrained.start(TUNED, 1).state_dict(),
    )
    assert set(start) == set(given)
    assert start["pos_embed"].shape != given["pos_embed"].shape
    assert torch.equal(start["pos_embed"], other["pos_embed"])
    same = set(given) - HEAD - {"pos_embed"}
    assert all(torch.equal(start[name], given[name]) for name in same)
    assert all(torch.equal(start[name], architectures.build(TUNED, 0).state_dict()[name]) for name in HEAD)
    assert not torch.equal(start["head.weight"], other["head.weight"])


def test_a_head_in_the_file_is_left_and_half_precision_becomes_float32(tmp_path) -> None:
    """Also a head of as many classes as the scenario has: it was trained on them."""
    known = {
        name: torch.ones_like(tensor)
        for name, tensor in architectures.build(TUNED, 0).state_dict().items()
        if name in HEAD
    }
    path = tmp_path / "half.safetensors"
    save_file({name: tensor.half() for name, tensor in network_weights(**known).items()}, path)
    pretrained.prepare(TUNED, path)
    start = pretrained.start(TUNED, 0).state_dict()
    assert all(tensor.dtype == torch.float32 for tensor in start.values())
    assert not (start["head.weight"] == 1).any()
    assert torch.equal(start["norm.weight"], network_weights()["norm.weight"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"norm.bias": None}, r'does not fit test_vit\.r160_in1k: Missing key.* "norm\.bias"'),
        ({"norm.bias": torch.zeros(3)}, r"does not fit .*: size mismatch for norm\.bias: .*\[3\]"),
        ({"norm.scale": torch.zeros(3)}, r'does not fit .*: Unexpected key.* "norm\.scale"'),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, changed, message) -> None:
    path = tmp_path / "wrong.safetensors"
    save_file(network_weights(**changed), path)
    with pytest.raises(InputError, match=message) as error:
        pretrained.prepare(TUNED, path)
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "cache" / cache.VERSION / "weights" / NAME).exists()


def test_what_is_no_safetensors_file_is_never_opened_otherwise(tmp_path) -> None:
    torch.save(network_weights(), tmp_path / "pickle.safetensors")
    with pytest.raises(InputError, match="is no safetensors file"):
        pretrained.prepare(TUNED, tmp_path / "pickle.safetensors")
    with pytest.raises(InputError, match=r"cannot read .*nowhere: No such file"):
        pretrained.prepare(TUNED, tmp_path / "nowhere")


def test_the_cache_holds_one_file_of_a_name(file, tmp_path) -> None:
    pretrained.prepare(TUNED, file)
    pretrained.prepare(TUNED, file)
    other = tmp_path / "other.safetensors"
    save_file({name: tensor + 1 for name, tensor in network_weights().items()}, other)
    with pytest.raises(InputError, match=r"is not what test_vit\.r160_in1k was before; remove .*/weights"):
        pretrained.prepare(TUNED, other)
    file.unlink()
    pretrained.prepare(TUNED)
    assert pretrained.start(TUNED, 0) is not None


def test_random_weights_need_no_file(file) -> None:
    pretrained.prepare(SCENARIO)
    for one, other in zip(
        pretrained.start(SCENARIO, 3).parameters(), architectures.build(SCENARIO, 3).parameters(), strict=True
    ):
        assert torch.equal(one, other)
    with pytest.raises(InputError, match="photos starts from random weights"):
        pretrained.prepare(SCENARIO, file)


# From the hub


@pytest.mark.long
@pytest.mark.parametrize("command", ["sweep salun", "run salun --out x"])
def test_a_hub_that_cannot_be_reached_is_said_at_once(raymu, tmp_path, command) -> None:
    """Fix: the hub is asked once before the download, which tries for 23 s where connections are refused."""
    environment = {"HF_ENDPOINT": CLOSED, "HF_HOME": str(tmp_path / "hub")}
    started = time.monotonic()
    printed = raymu(*command.split(), "--scenario", "imagenet-vit_s", **environment)
    assert time.monotonic() - started < 20  # most of it are imports
    assert printed.returncode == 2
    assert "error: the weights vit_small_patch16_224.dino could not be downloaded" in printed.stderr
    assert f"{CLOSED}/timm/vit_small_patch16_224.dino/resolve/main/model.safetensors" in printed.stderr
    assert "--weights" in printed.stderr
    assert len(printed.stderr.splitlines()) == 1


def test_weights_from_the_hub(file, monkeypatch) -> None:
    asked = []

    def download(repository: str, name: str) -> str:
        asked.append((repository, name))
        return str(file)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, name: None)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    for _ in range(2):
        pretrained.prepare(TUNED)
    assert asked == [(f"timm/{NAME}", "model.safetensors")]  # once, and never a file that has to be unpickled


# Training


def test_a_step_of_adamw(digits, digits_data) -> None:
    """Two steps by hand (Loshchilov and Hutter, ICLR 2019, Algorithm 2): the decay is not part of the moments."""

    class Quadratic(Method):
        def unlearn(self, run: Engine) -> Iterator[Step]:
            for _ in run.epochs(1, 0.1, "adamw"):
                for _ in range(2):
                    yield 3 * run.model.get_classifier().weight.square().sum() / 2

    model: Any = architectures.build(digits, 1)
    expected, first, second = model.get_classifier().weight.detach().clone(), 0, 0
    for step in (1, 2):
        gradient = 3 * expected
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        moved = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        expected = expected - 0.1 * (moved + DECOUPLED_DECAY * expected)
    Engine(model, digits_data, digits, seed=0).run(Quadratic())
    torch.testing.assert_close(model.get_classifier().weight.detach(), expected)


def test_both_references_and_retrain_start_from_them_and_unlearning_goes_on(file, tmp_path, monkeypatch) -> None:
    """A whole small scenario on shards. Retraining is the retrained reference, whichever way it is asked for."""
    write_photos(tmp_path / "folders")
    write_shards(tmp_path / "folders", tmp_path / "shards")
    pretrained.prepare(TUNED, file)
    splits.prepare(TUNED, tmp_path / "shards")
    starts, optimizers = [], []
    fit, epochs = training.fit, Engine.epochs

    def spied_fit(model: Any, *arguments: Any) -> int:
        starts.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return fit(model, *arguments)

    def spied_epochs(engine: Engine, count: int, lr: Any, optimizer: str = "sgd") -> Any:
        optimizers.append(optimizer)
        return epochs(engine, count, lr, optimizer)

    monkeypatch.setattr(reference_models, "fit", spied_fit)
    monkeypatch.setattr(Engine, "epochs", spied_epochs)
    row, model = run_trial(TUNED, Retrain.from_config(Retrain.published_config(TUNED)), seed=TUNED.model_seed)
    assert row["status"] == "completed", row["traceback"]
    assert optimizers[:3] == ["adamw"] * 3
    assert len(starts) == 2
    for start in starts:
        assert all(
            torch.equal(tensor, network_weights()[name]) for name, tensor in start.items() if name.startswith("blocks")
        )
    retrained = reference_models.load_model(TUNED, "retrained").state_dict()
    assert all(torch.equal(tensor, retrained[name]) for name, tensor in model.state_dict().items())
    written = json.loads((reference_models.entry_of(TUNED, "original") / "scenario.json").read_text())
    assert written["pretrained"] == NAME
