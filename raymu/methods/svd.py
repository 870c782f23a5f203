"""SVD, gradient-free class forgetting: remove the directions that only the forget set's activations use."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from raymu.method import Method, Range, Step, fixed, tuned
from raymu.run import Part, Run, Subset

Layer = nn.Conv2d | nn.Linear

ROUNDING = 1e-4  # of a layer's largest output; float32 leaves some 1e-6


class SVD(Method):
    """No training: in every convolutional and linear layer, take from the weights the directions of the layer's input
    that the forget set uses and the retain set does not.

        M(alpha) = U diag(alpha s / ((alpha - 1) s + 1)) U^T,  s = each direction's share of the input's energy
        P = I - (M_forget - M_forget M_retain),  W <- W P^T

    U and s come from the second moments of the layer's inputs (a convolution's: its patches), in float64. Reads a
    sample of forget and of retain images, balanced by class, in eval mode: BatchNorm statistics do not move. An
    architecture with a layer whose output is not its weight times its input (timm's "same" padding), or whose weight is
    used without it, is refused.

    Differs from the source: settings follow Gao et al., AISTATS 2026; Kodge et al. search both alphas. Gao et al.
    read augmented images, here they never are. Their retain sample is the first images of every class but the first
    forgotten one, so it holds the other forget classes; here it is drawn, without any of them. Their forget sample is
    drawn without regard to class. From a k x k convolution's input, where it is larger, they cut a window of 3k x 3k at
    random, the same for the whole batch, and pad it anew; at most 10,000 patches are drawn from it, here all patches of
    the whole input are taken. As published, their code projects only the classifier of a ResNet; here every layer is.
    """

    paper: ClassVar[str] = "Kodge et al., TMLR 2024"
    published: ClassVar[dict[Any, Any]] = {
        ("cifar10", "linear", "code"): {"alpha_r": 100.0, "alpha_f": 3.0, "samples": 900},
        ("cifar10", "linear", "table"): {"alpha_r": 1000.0, "alpha_f": 30.0, "samples": 900},
        ("cifar100", "linear", "code"): {"alpha_r": 1000.0, "alpha_f": 30.0, "samples": 990},
        ("tinyimagenet", "linear", "code"): {"alpha_r": 30.0, "alpha_f": 10.0, "samples": 999},
    }
    trains: ClassVar[bool] = False

    alpha_r: float = tuned(100.0, Range(10.0, 3000.0, "log"), "how much of the retain set's weak directions is kept")
    alpha_f: float = tuned(3.0, Range(1.0, 300.0, "log"), "how much of the forget set's weak directions is removed")
    samples: int = fixed(900, "images of the forget set, and of the retain set, at most, but one a class")

    @classmethod
    def check_model(cls, sample: Callable[[], tuple[nn.Module, Tensor]]) -> None:
        model, images = sample()
        layers = layers_of(model)
        unseen = dict(layers)

        def compare(name: str, layer: Layer, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            unseen.pop(name, None)
            vectors = layer_inputs(layer, inputs[0])
            made = vectors @ layer.weight.view(len(vectors), -1, vectors.shape[-1]).mT  # (G, N, outputs / G)
            rows = output.flatten(2).mT if isinstance(layer, nn.Conv2d) else output
            rows = rows.reshape(-1, layer.weight.shape[0])
            rows = rows - layer.bias if layer.bias is not None else rows
            said = rows.view(len(rows), len(made), -1).transpose(0, 1)
            if made.shape != said.shape or (made - said).abs().max() > ROUNDING * said.abs().max():
                raise ValueError(f"its layer {name.removesuffix('.weight')} is more than its weight times its input")

        with hooked(layers, compare):
            model(images)
        if unseen:
            raise ValueError(f"it uses {next(iter(unseen))} without its layer, so what it reads is not seen")

    def unlearn(self, run: Run) -> Iterator[Step]:
        forget, retain = (
            run.cached(f"inputs-{part}", partial(self._directions, run, part), of_logits=False, samples=self.samples)
            for part in ("forget", "retain")
        )

        def projected(name: str, weight: Tensor) -> Tensor:
            if f"{name}.share" not in retain:
                return weight
            removed = scaled_projection(forget, name, self.alpha_f)
            kept = scaled_projection(retain, name, self.alpha_r)
            flat = weight.double().view(len(kept), -1, kept.shape[-1])
            flat = flat - flat @ (removed - removed @ kept).mT
            return flat.view_as(weight).to(weight.dtype)

        run.edit(projected)
        yield from ()

    def _directions(self, run: Run, part: Part) -> dict[str, Tensor]:
        per_class = max(1, self.samples // len(run.classes(part)))
        return input_directions(run, run.sample(part, per_class, seed=run.scenario.seed))


def input_directions(run: Run, subset: Subset) -> dict[str, Tensor]:
    """For every layer's weight NAME: `NAME.basis` (G, D, D), orthonormal columns, and `NAME.share` (G, D), the share of
    the energy of its input along each. G are a convolution's groups, D is the length of the input of one output.
    """
    layers = {name: layer for name, layer in layers_of(run.model).items() if name in run.weights()}
    moments: dict[str, Tensor] = {}

    def add(name: str, layer: Layer, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        vectors = layer_inputs(layer, inputs[0].detach()).double()
        moments[name] = moments.get(name, 0) + vectors.mT @ vectors

    with torch.no_grad(), hooked(layers, add):
        for batch in run.scan(subset):
            run.model(batch.images)
    run.sum(*moments.values())
    directions = {}
    for name, moment in moments.items():
        energy, basis = np.linalg.eigh(moment.cpu().numpy())  # PyTorch's fails on moments of low rank
        share = torch.from_numpy(energy).clamp(min=0)
        directions[f"{name}.basis"] = torch.from_numpy(basis).to(moment.device)
        directions[f"{name}.share"] = (share / share.sum(-1, keepdim=True)).to(moment.device)
    return directions


def layers_of(model: nn.Module) -> dict[str, Layer]:
    """The layers that SVD projects, by the name of their weight."""
    return {f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, Layer)}


@contextlib.contextmanager
def hooked(layers: Mapping[str, Layer], call: Callable[..., None]) -> Iterator[None]:
    """Call a function with name, layer, inputs and output whenever one of the layers is used."""
    hooks = [layer.register_forward_hook(partial(call, name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def layer_inputs(layer: Layer, inputs: Tensor) -> Tensor:
    """The vectors (G, N, D) that a layer's weight, seen as (G, outputs / G, D), is multiplied with."""
    if isinstance(layer, nn.Conv2d):
        patches = unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
        vectors = patches.mT.reshape(-1, layer.groups, patches.shape[1] // layer.groups)
        return vectors.transpose(0, 1)
    return inputs.reshape(1, -1, inputs.shape[-1])


def scaled_projection(directions: dict[str, Tensor], name: str, alpha: float) -> Tensor:
    """M(alpha), of shape (G, D, D)."""
    basis, share = directions[f"{name}.basis"], directions[f"{name}.share"]
    importance = alpha * share / ((alpha - 1) * share + 1)
    return (basis * importance.unsqueeze(-2)) @ basis.mT
