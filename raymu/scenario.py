"""What has to be forgotten: a dataset, a model, how it is trained, and the forget set."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from raymu import plugins
from raymu.architecture import Architecture, named
from raymu.data.dataset import Dataset, Format
from raymu.data.published import DATASETS
from raymu.errors import InputError
from raymu.values import (
    NOT_NEGATIVE,
    SHARE,
    Bounds,
    conform,
    content_hash,
    forget_set_in_words,
    subset_in_words,
)

# Fields that hashes did not always have.
LATER = ("original", "original_rows", "retrained", "train_share", "classes", "forget_samples")
RATE = Bounds(0, 1e30, above=True)  # beyond it 32 bits overflow
NONE = "none"  # in the place of a retrained model
# What timm would take for a model, but data, recipe or `pretrained` say: weights from a file have no part in the hash.
NO_ARGUMENTS = ("num_classes", "in_chans", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path")


@dataclass(frozen=True)
class Recipe:
    """How the original and the retrained model are trained: 5 epochs of warm-up, then cosine to 1e-5 (Gao et al.,
    AISTATS 2026, appendix).

    Attributes:
        lr: peak learning rate.
        epochs: passes over the training set, at most.
        batch_size: images per step, for unlearning as well.
        patience: epochs without a better validation accuracy after which training stops, and keep the best weights;
            None trains all epochs and keeps the last.
        augment: random crops and horizontal flips, for unlearning as well: crops after 4 pixels of padding where
            images are small (`raymu.data.images`), random resized ones where they are photographs
            (`raymu.data.encoded`).
        optimizer: "sgd" or "adamw"; see `Engine.epochs`. Methods of unlearning choose their own.
        precision: "fp32", or "bf16" for the network's matrix products and convolutions in bfloat16 (torch.autocast),
            for unlearning and evaluation as well. Weights, losses and all that is measured are float32.

    Raises:
        InputError: a value that cannot work.
    """

    lr: float
    epochs: int
    batch_size: int = 128
    patience: int | None = None
    augment: bool = False
    optimizer: Literal["sgd", "adamw"] = "sgd"
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        conform(self, "recipe: ", lr=RATE, epochs=Bounds(1), batch_size=Bounds(1), patience=Bounds(1))


@dataclass(frozen=True, eq=False)
class Scenario:
    """A frozen unlearning task. Its `hash` names everything that is cached for it.

    Attributes:
        name: what `--scenario` takes.
        dataset: one of `raymu.data.published.DATASETS` by name, or any other as an object.
        architecture: timm's name of one, or any other as an object.
        model_args: further arguments of the architecture, such as (("patch_size", 4),).
        pretrained: timm's name, with its tag, of the weights that both references start from, such as
            "vit_base_patch16_224.mae"; empty: from random ones. They must not have seen a label (see
            `raymu.models.pretrained`).
        original: digest of an original that was trained elsewhere (see `raymu.models.given`); empty: one is trained.
        original_rows: outputs that the classes are, in their order, of models in files which have further outputs, as
            an original for ImageNet where the data are ten of its classes; empty: such files have these classes alone.
        retrained: likewise of a retrained model; or "none": there is none, and nothing is compared with it.
        cifar_stem: replace a ResNet's 7x7 stride-2 stem and its max-pooling by one 3x3 stride-1 convolution.
        recipe: how the references are trained.
        forget: the classes to forget, all their samples.
        forget_share: instead of classes, so large a share (in 0..1) of the training samples, drawn evenly.
        forget_samples: instead of classes, the training samples of a list, with their number and a digest (see
            `raymu.data.listed`); of a list with scores those that score highest, as many as `forget_share` says.
        val_share: share of the training images held out for validation, unless the dataset brings such a set.
        test_share: share held out for test; 0 where the dataset brings a test set.
        train_share: share of the other training images that models are trained on, in (0, 1].
        classes: the classes whose images alone are used, in all splits; empty: all. A model has an output for each, in
            the order of their numbers. Everywhere else a class has its number in the dataset.
        seed: draws the split, and the samples to forget.
        model_seed: draws the initial weights and the order of training images of the references: which of several
            originals, trained independently of each other on the same images, is meant.
        data: which images and labels, such as "3f2a9c41be02: 1,797 training images of 10 classes", and by what they are
            read where that is not raymu's code alone. `raymu.splits.prepare` fills it in; empty: those that the
            dataset had when it was prepared last.

    Equal scenarios are written in one way: `forget` is sorted and has no class twice, `model_args` are sorted.

    Raises:
        InputError: a value that cannot work.
    """

    name: str
    dataset: str | Dataset
    architecture: str | Architecture
    recipe: Recipe
    forget: tuple[int, ...] = ()
    forget_share: float = 0.0
    forget_samples: str = ""
    model_args: tuple[tuple[str, Any], ...] = ()
    pretrained: str = ""
    original: str = ""
    original_rows: tuple[int, ...] = ()
    retrained: str = ""
    cifar_stem: bool = False
    val_share: float = 0.1
    test_share: float = 0.0
    train_share: float = 1.0
    classes: tuple[int, ...] = ()
    seed: int = 0
    model_seed: int = 0
    data: str = ""

    def __post_init__(self) -> None:
        shares = dict.fromkeys(("forget_share", "val_share", "test_share"), Bounds(0, 1)) | {"train_share": SHARE}
        numbers = dict.fromkeys(("forget", "classes", "original_rows", "seed", "model_seed"), NOT_NEGATIVE)
        conform(self, "scenario: ", **shares, **numbers)
        if self.val_share + self.test_share >= 1:
            raise InputError("scenario: val_share and test_share leave nothing to train on")
        object.__setattr__(self, "forget", tuple(sorted(set(self.forget))))
        for field, one in (("classes", self.classes), ("original_rows", self.original_rows)):
            if twice := [number for number in one if one.count(number) > 1]:
                raise InputError(f"scenario: {twice[0]} is there twice in {field}")
        if len(self.classes) == 1:
            raise InputError(f"scenario: a classifier needs two classes, not class {self.classes[0]} alone")
        object.__setattr__(self, "classes", tuple(sorted(self.classes)))
        if not isinstance(self.recipe, Recipe):
            raise InputError(f"scenario: recipe has to be a Recipe, not {self.recipe!r}")
        object.__setattr__(self, "model_args", _arguments(self.model_args))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Scenario":
        """The scenario of which `as_dict` returned these fields.

        Raises:
            InputError: they are no scenario's fields.
        """
        try:
            rest = {"recipe": Recipe(**fields["recipe"]), "model_args": tuple(fields["model_args"].items())}
            return cls(**{**fields, **rest})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"these are not the fields of a scenario: {error}") from error

    @property
    def hash(self) -> str:
        """12 hex digits over every field."""
        return content_hash(self.as_dict())

    @property
    def forgotten(self) -> str:
        """The forget set in words: "class 8", "classes cat, dog", "10 % of the samples" or "50 listed samples"."""
        return forget_set_in_words(self.as_dict(), self.source.class_names)

    @property
    def subset(self) -> str:
        """The part of the data in words: " (classes cat, dog alone, 10 % of the training images)"; empty: all."""
        return subset_in_words(self.as_dict(), self.source.class_names)

    @property
    def forgets_samples(self) -> bool:
        """Whether single samples are forgotten, and no classes."""
        return bool(self.forget_share or self.forget_samples)

    @property
    def title(self) -> str:
        """What has to be forgotten, in a line: "digits (classes 0, 1, 2 alone), forgetting class 1"."""
        return f"{self.name}{self.subset}, forgetting {self.forgotten}"

    def forgetting(self, **forget_set: Any) -> "Scenario":
        """The scenario with another forget set.

        Args:
            forget_set: `forget`, `forget_share`, `forget_samples`; what is left out stays.

        Raises:
            InputError: a value that cannot work; or its retrained model was trained elsewhere, without the set that it
                has now.
        """
        other = dataclasses.replace(self, **forget_set)
        if self.retrained not in ("", NONE) and other != self:
            raise InputError(
                f"the retrained model of {self.name} is one without {self.forgotten}: another forget set needs another"
                " retrained model, named in another scenario file"
            )
        return other

    def as_dict(self) -> dict[str, Any]:
        """All fields in JSON's types; but LATER ones only where they say something, since hashes are older."""
        fields: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for field in dataclasses.fields(self):
            if field.name in LATER and fields[field.name] == field.default:
                del fields[field.name]
        return {
            **{name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()},
            "dataset": self.dataset_name,
            "architecture": self.architecture_name,
            "recipe": dataclasses.asdict(self.recipe),
            "model_args": dict(self.model_args),
        }

    @property
    def has_retrained(self) -> bool:
        """Whether there is a retrained model to compare with."""
        return self.retrained != NONE

    @property
    def dataset_name(self) -> str:
        """Name of its dataset."""
        return self.dataset if isinstance(self.dataset, str) else self.dataset.name

    @property
    def architecture_name(self) -> str:
        """Name of its architecture."""
        return self.architecture if isinstance(self.architecture, str) else self.architecture.name

    @property
    def source(self) -> Dataset:
        """Its dataset as an object.

        Raises:
            InputError: there is none of that name; the message names the nearest.
        """
        if isinstance(self.dataset, Dataset):
            return self.dataset
        found: Dataset = plugins.find(Dataset, self.dataset, DATASETS)
        return found

    @property
    def num_classes(self) -> int:
        """Number of its classes, and of its models' outputs."""
        return len(self.classes) or self.source.num_classes

    @property
    def format(self) -> Format:
        """What its network sees of its images."""
        return self.source.format(self.transform)

    def transform(self) -> dict[str, Any]:
        """How photographs become its network's input (see Architecture)."""
        return self.network.transform(self.pretrained, **dict(self.model_args))

    @property
    def network(self) -> Architecture:
        """Its architecture as an object."""
        return self.architecture if isinstance(self.architecture, Architecture) else named(self.architecture)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scenario) and self.as_dict() == other.as_dict()

    def __hash__(self) -> int:
        return hash(self.hash)

    def __getstate__(self) -> dict[str, Any]:
        """What travels to other processes: objects, since these may not know what a name stands for here."""
        return {**vars(self), "dataset": self.source, "architecture": self.network}


def check_kind(scenario: Any) -> None:
    """Look whether something is a Scenario.

    Raises:
        InputError: it is not; the message says how to have one.
    """
    if not isinstance(scenario, Scenario):
        raise InputError(
            "a scenario is a raymu.Scenario, such as raymu.scenarios.get('digits') or raymu.scenarios.get('pets.toml'),"
            f" not {scenario!r}"
        )


def _arguments(given: Any) -> tuple[tuple[str, Any], ...]:
    """Further arguments of a model, sorted by name, each a number, a text, or several of them."""
    pairs = [(name, tuple(value) if isinstance(value, list) else value) for name, value in given]
    for name, value in pairs:
        if name in NO_ARGUMENTS or [other for other, _ in pairs].count(name) > 1:
            raise InputError(
                f"scenario: model_args cannot hold {name}" + (" twice" if name not in NO_ARGUMENTS else "")
            )
        for one in value if isinstance(value, tuple) else (value,):
            if not isinstance(one, int | float | str) or one != one:
                raise InputError(f"scenario: {name} among model_args has to be a number or a text, not {value!r}")
    return tuple(sorted(pairs))


# Fine-tuning of a ViT by He et al. (MAE, CVPR 2022, Table 9; rates: FINETUNE.md of their code), as far as a recipe
# can say it. They have a rate for every block, lr x decay^k; here all have the geometric mean of those: 1.2e-4 for
# ViT-B, 1.1e-4 for ViT-L, 3.5e-5 for ViT-H. Of their augmentation there are crops and flips alone, hence the
# patience.
_FINE_TUNING = Recipe(
    lr=1e-4, epochs=100, batch_size=1024, patience=10, augment=True, optimizer="adamw", precision="bf16"
)


def _imagenet(size: str, architecture: str, tag: str, recipe: Recipe) -> Scenario:
    return Scenario(
        name=f"imagenet-vit_{size}",
        dataset="imagenet",
        architecture=architecture,
        pretrained=f"{architecture}.{tag}",
        recipe=recipe,
        forget=tuple(range(10)),  # neighbours, as the paper's sets of several classes of Tiny-ImageNet are
        val_share=50_000 / 1_281_167,  # as many as there are for test: ImageNet's own validation images
    )


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        # scikit-learn's 1,797 handwritten digits. Half of the classes are forgotten, since a network that never saw one
        # class tells it as well from nine others; evaluation sets are large.
        Scenario(
            name="digits",
            dataset="digits",
            architecture="test_resnet",
            recipe=Recipe(lr=0.05, epochs=40, batch_size=64),
            forget=(1, 3, 5, 8, 9),
            val_share=0.35,
            test_share=0.35,
        ),
        # The same with a ViT, which several workers can train.
        Scenario(
            name="digits-vit",
            dataset="digits",
            architecture="test_vit",
            model_args=(("patch_size", 4),),
            recipe=Recipe(lr=0.1, epochs=80, batch_size=32),
            forget=(8,),
            val_share=0.35,
            test_share=0.35,
        ),
        # Shirts look like T-shirts, pullovers, dresses and coats: without having seen one they are told much worse.
        Scenario(
            name="fashion-resnet",
            dataset="fashion",
            architecture="test_resnet",
            recipe=Recipe(lr=0.05, epochs=20, batch_size=64),
            forget=(6,),
            train_share=0.05,
        ),
        # The paper's first setting (Gao et al., Table 1).
        Scenario(
            name="cifar10-resnet18",
            dataset="cifar10",
            architecture="resnet18",
            cifar_stem=True,
            recipe=Recipe(lr=1e-2, epochs=300, patience=50, augment=True),
            forget=(0,),
        ),
        # Its second and third; at 64x64 its code has the CIFAR stem, too.
        Scenario(
            name="cifar100-resnet18",
            dataset="cifar100",
            architecture="resnet18",
            cifar_stem=True,
            recipe=Recipe(lr=1e-2, epochs=300, patience=50, augment=True),
            forget=(0,),
        ),
        Scenario(
            name="tinyimagenet-resnet50",
            dataset="tinyimagenet",
            architecture="resnet50",
            cifar_stem=True,
            recipe=Recipe(lr=5e-2, epochs=300, patience=50, augment=True),
            forget=(2,),
        ),
        # There are no weights by MAE of ViT-S; those by DINO are fine-tuned as ViT-B is.
        _imagenet("s", "vit_small_patch16_224", "dino", _FINE_TUNING),
        _imagenet("b", "vit_base_patch16_224", "mae", _FINE_TUNING),
        _imagenet("l", "vit_large_patch16_224", "mae", dataclasses.replace(_FINE_TUNING, epochs=50)),
        _imagenet("h", "vit_huge_patch14_224", "mae", dataclasses.replace(_FINE_TUNING, epochs=50, lr=4e-5)),
    )
}
