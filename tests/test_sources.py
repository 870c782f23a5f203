"""Every method against its source, by an independent computation, and the traps that others fell into."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from raymu import splits, training
from raymu.data.images import Pixels
from raymu.engines.optimizers import MOMENTUM, WEIGHT_DECAY
from raymu.engines.pytorch import Engine
from raymu.methods import neggrad_plus
from raymu.methods.bad_teacher import BadTeacher
from raymu.methods.finetune import Finetune
from raymu.methods.gradient_ascent import GradientAscent
from raymu.methods.influence import Influence
from raymu.methods.neggrad_plus import NegGradPlus
from raymu.methods.random_label import RandomLabel
from raymu.methods.salun import SalUn, largest, saliency
from raymu.methods.scrub import Scrub
from raymu.methods.ssd import SSD
from raymu.methods.svd import SVD, layer_inputs
from raymu.methods.unsir import UNSIR
from raymu.models import architectures, cmf, inference
from raymu.run import Batch
from raymu.scenario import SCENARIOS, Recipe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(digits, digits_data):
    """A ResNet that has learnt the digits for three epochs, to be copied."""
    model = architectures.build(digits, seed=1)
    Engine(model, digits_data, digits, seed=1).run(training.TrainOriginal(lr=0.05, epochs=3))
    return model


@pytest.fixture
def model(trained):
    return copy.deepcopy(trained)


def ready(model, loaded, method, scenario=SCENARIOS["digits"]) -> Engine:
    """An engine as a method finds it, before its first step."""
    engine = Engine(model, loaded, scenario, seed=0)
    engine._method, engine._end_of_epoch = method, lambda epoch: None
    return engine


class Recorder(Engine):
    """Keeps, for every step, the images that the model was asked about in it, and the gradients, and takes no step."""

    def run(self, method, *rest):
        self.steps: list[tuple[list[torch.Tensor], dict[str, torch.Tensor]]] = []
        asked: list[torch.Tensor] = []
        self._asked = asked

        def ask(module, inputs) -> None:
            if module.training:  # a teacher is a copy in eval mode
                asked.append(inputs[0])

        hook = self.model.register_forward_pre_hook(ask)
        super().run(method, *rest)
        hook.remove()

    def _step(self, step):
        self._optimizer.zero_grad()
        for part in step if isinstance(step, tuple) else (step,):
            self._add_gradient(part)
        self.steps.append((list(self._asked), {name: w.grad.clone() for name, w in self.weights().items()}))
        self._asked.clear()


def gradient(model, loss) -> dict[str, torch.Tensor]:
    names, weights = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, weights), strict=True))


def true_labels(loaded, images) -> torch.Tensor:
    """The labels of normalised training images, found by comparing pixels."""
    known = loaded.train.read()
    position = torch.cdist(images.flatten(1), known.flatten(1)).argmin(1)
    return loaded.train.targets[position]


def assert_same(got, expected, tolerance=1e-4) -> None:
    for name in expected:
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(got[name], expected[name], rtol=tolerance, atol=tolerance * scale + 1e-8)


# Finetune, gradient ascent, random label, retrain (in test_trial.py)


def test_finetune_descends_on_the_retain_set(model, digits_data, digits) -> None:
    recorder = Recorder(model, digits_data, digits, seed=0)
    recorder.run(Finetune(epochs=1))
    for (images,), got in recorder.steps[:2]:
        labels = true_labels(digits_data, images)
        assert digits.forget[0] not in labels
        assert_same(got, gradient(model, cross_entropy(model(images), labels)))


def test_gradient_ascent_climbs_on_the_forget_set_with_a_clipped_gradient(model, digits_data, digits) -> None:
    for clip in (1e-3, 1e9):
        recorder = Recorder(model, digits_data, digits, seed=0)
        recorder.run(GradientAscent(epochs=1, clip=clip))
        for (images,), got in recorder.steps:
            assert set(true_labels(digits_data, images).tolist()) == set(digits.forget)
            climb = gradient(model, cross_entropy(model(images), torch.full((len(images),), digits.forget[0])))
            norm = math.sqrt(sum(tensor.square().sum().item() for tensor in climb.values()))
            assert_same(got, {name: -tensor * min(1, clip / norm) for name, tensor in climb.items()})


def test_random_label_is_never_right_on_forgotten_samples(digits, digits_data, model) -> None:
    """Fix: the draw leaves out the true label. Drawn among all classes, one in ten would be right."""
    scenario = dataclasses.replace(digits, forget=(), forget_share=0.1)
    engine = ready(model, dataclasses.replace(digits_data, forgotten=()), RandomLabel(), scenario)
    labels = torch.arange(10).repeat(900)
    seeds = torch.randint(2**62, labels.shape, generator=torch.Generator().manual_seed(0))
    drawn = engine.random_labels(Batch(labels, labels, labels == labels, labels, seeds))
    assert not (drawn == labels).any()
    counts = torch.zeros(10, 10).index_put_((labels, drawn), torch.ones(len(labels)), accumulate=True)
    assert (counts + torch.eye(10) * 100 - 100).abs().max() < 50


# SalUn


def test_saliency_is_the_summed_absolute_gradient(model, digits_data) -> None:
    """Against numerical differentiation of the loss, one batch at a time, at a few weights of several layers."""
    model.eval().double()
    train = digits_data.train
    rows = digits_data.forget.nonzero().squeeze(1)
    parameters = dict(model.named_parameters())
    sums = saliency(ready(model, _double(digits_data), SalUn()))
    assert set(sums) == set(parameters)

    def loss(batch: torch.Tensor) -> float:
        images = train.subset(batch).read().double()
        return -model(images).log_softmax(1)[:, train.labels[train.index[batch]]].diagonal().sum().item()

    batches = rows.tensor_split(-(-len(rows) // 64))
    with torch.no_grad():
        for name in ("conv1.0.weight", "layer2.0.bn1.bias", "layer4.0.conv2.weight", "fc.weight", "fc.bias"):
            flat = parameters[name].view(-1)
            for position in (0, len(flat) // 2):
                value, total = flat[position].item(), 0.0
                for batch in batches:
                    flat[position] = value + 1e-6
                    above = loss(batch)
                    flat[position] = value - 1e-6
                    total += abs(above - loss(batch)) / 2e-6
                    flat[position] = value
                assert sums[name].view(-1)[position].item() == pytest.approx(total, rel=1e-4, abs=1e-6), name


def _double(data):
    """The same data, normalised in double precision."""
    images = copy.copy(data.train.images)
    images.mean, images.std = images.mean.double(), images.std.double()
    return dataclasses.replace(data, train=dataclasses.replace(data.train, images=images))


def test_saliency_leaves_the_model_as_it_was(model, digits_data) -> None:
    """Fix: the pass runs in eval mode. In train mode it would move the BatchNorm statistics."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    saliency(ready(model.train(), digits_data, SalUn()))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_largest_takes_the_share_over_all_tensors_together() -> None:
    saliency = {"a": torch.tensor([[5.0, 1.0], [2.0, 2.0]]), "b": torch.tensor([9.0, 2.0])}
    masks = largest(saliency, 0.5)
    assert masks["a"].tolist() == [[True, False], [True, False]]  # of the three equal ones, the first
    assert masks["b"].tolist() == [True, False]
    assert sum(mask.sum().item() for mask in largest(saliency, 0.99).values()) == 5


@pytest.mark.parametrize("salient", [0.1, 0.5])
def test_salun_moves_no_weight_outside_its_mask(model, digits_data, digits, salient) -> None:
    """Fix: values are put back after every step. A masked gradient alone lets weight decay and momentum move them."""
    original = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    masks = largest(saliency(ready(copy.deepcopy(model), digits_data, SalUn())), salient)
    Engine(model, digits_data, digits, seed=0).run(SalUn(lr=0.05, epochs=2, salient=salient))
    inside = moved = 0
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter[~masks[name]], original[name][~masks[name]]), name
        inside += masks[name].sum().item()
        moved += (parameter != original[name]).sum().item()
    assert inside == int(salient * sum(value.numel() for value in original.values()))
    assert moved > 0.95 * inside


# NegGrad+


def test_neggrad_plus_steps_as_on_a_quadratic(digits, digits_data, monkeypatch) -> None:
    """One weight per class w_c, loss (w_y - y)^2 / 2: both gradients are known, and so is Nesterov's first step."""

    class Weights(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.linspace(-3, 4, 10))

        def forward(self, images):
            return self.w.expand(len(images), 10)

        def get_classifier(self):
            return self

    def quadratic(logits, labels):
        return (logits.gather(1, labels[:, None])[:, 0] - labels).square().mean() / 2

    monkeypatch.setattr(neggrad_plus, "cross_entropy", quadratic)
    whole = dataclasses.replace(digits, recipe=Recipe(lr=0.1, epochs=1, batch_size=10_000))
    retain, forget = digits_data.train.targets[~digits_data.forget], digits_data.train.targets[digits_data.forget]
    for ascent, clip in ((0.5, 1e9), (2.0, 0.3)):
        model = Weights()
        start = model.w.detach().clone()
        descent, climb = torch.zeros(10), torch.zeros(10)
        for label in range(10):
            descent[label] = (retain == label).float().mean() * (start[label] - label)
            climb[label] = -ascent * (forget == label).float().mean() * (start[label] - label)
        climb *= min(1.0, clip / climb.norm().item())
        total = descent + climb + WEIGHT_DECAY * start
        Engine(model, digits_data, whole, seed=0).run(NegGradPlus(lr=0.1, epochs=1, ascent=ascent, clip=clip))
        torch.testing.assert_close(model.w.detach(), start - 0.1 * (1 + MOMENTUM) * total)


# SCRUB and bad teacher


def kl(teacher, student, temperature) -> torch.Tensor:
    """T^2 sum p (log p - log q), by its definition."""
    p, q = (logits / temperature for logits in (teacher, student))
    p, q = p.exp() / p.exp().sum(1, keepdim=True), q.exp() / q.exp().sum(1, keepdim=True)
    return temperature**2 * (p * (p.log() - q.log())).sum(1).mean()


def test_scrub_climbs_the_divergence_on_forget_and_descends_it_on_retain(model, digits_data, digits) -> None:
    teacher = copy.deepcopy(model).eval()
    recorder = Recorder(model, digits_data, digits, seed=0)
    recorder.run(Scrub(epochs=2, msteps=1, T=3.0, alpha=0.7, gamma=0.2))
    model.train()
    kinds = []
    for (images,), got in recorder.steps:
        labels, divergence = true_labels(digits_data, images), kl(teacher(images).detach(), model(images), 3.0)
        kinds.append("forget" if digits.forget[0] in labels else "retain")
        assert len(images) <= 64
        expected = (
            -divergence if kinds[-1] == "forget" else 0.7 * divergence + 0.2 * cross_entropy(model(images), labels)
        )
        assert_same(got, gradient(model, expected), 1e-3)
    forget, retain = (sum(kind == part for kind in kinds) for part in ("forget", "retain"))
    first = len(kinds) - retain // 2
    assert kinds == ["forget"] * forget + ["retain"] * retain  # msteps 1: the second epoch has no max step
    assert first > forget


def test_a_step_of_scrub_raises_the_divergence_on_forget_and_lowers_it_on_retain(model, digits_data, digits) -> None:
    """A short step along every gradient, and the divergence of the same images before and after it."""
    teacher = copy.deepcopy(model).eval()
    recorder = Recorder(model, digits_data, digits, seed=0)
    recorder.run(Scrub(epochs=1, msteps=1, alpha=1.0, gamma=0.0))
    model.train()
    for (images,), got in recorder.steps:
        stepped = copy.deepcopy(model)
        norm = math.sqrt(sum(tensor.square().sum().item() for tensor in got.values()))
        with torch.no_grad():
            for name, weight in stepped.named_parameters():
                weight -= 1e-3 * got[name] / norm
            before, after = (kl(teacher(images), student(images), 4.0).item() for student in (model, stepped))
        is_forget = digits.forget[0] in true_labels(digits_data, images)
        assert (after > before) if is_forget else (after < before)


def test_bad_teacher_follows_one_teacher_or_the_other(model, digits_data, digits) -> None:
    competent = copy.deepcopy(model).eval()
    recorder = Recorder(model, digits_data, digits, seed=0)
    recorder.run(BadTeacher(T=2.0))
    incompetent = architectures.build(digits, digits.model_seed + 1).eval()
    assert not any(
        torch.equal(a, b) for a, b in zip(incompetent.parameters(), model.parameters(), strict=True) if a.ndim > 1
    )
    model.train()
    for (images,), got in recorder.steps[:3]:
        forget = true_labels(digits_data, images) == digits.forget[0]
        taught = competent(images).detach()
        taught[forget] = incompetent(images[forget]).detach()
        mean = kl(taught, model(images), 2.0) / 2.0**2 / 10  # over all elements
        assert_same(got, gradient(model, mean), 1e-3)


@pytest.mark.parametrize("augment", [False, True])
def test_teachers_are_the_same_kept_or_asked(model, digits_data, digits, augment, tmp_path) -> None:
    scenario = dataclasses.replace(digits, recipe=dataclasses.replace(digits.recipe, augment=augment))
    engine = ready(model, digits_data, BadTeacher(), scenario)
    engine._cache_directory = tmp_path
    batch = next(engine.batches("train"))
    torch.testing.assert_close(engine.teacher("original")(batch), model.eval()(batch.images).detach())
    assert bool(list(tmp_path.iterdir())) == (not augment)


# UNSIR


def test_unsir_learns_noise_that_raises_the_classes_loss(model, digits_data, digits) -> None:
    """Fix: noise is clamped. It has to be what a real image can be, and the same for the same seed."""
    engine = ready(model, digits_data, UNSIR(noise_weight=1e-3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    noise = engine._method._noise(engine, 8)
    assert noise.shape == (64, 1, 16, 16)
    # Fix: the noise is learnt in eval mode. In train mode it would move the BatchNorm statistics.
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    everything = torch.arange(len(digits_data.train.labels))
    real = dataclasses.replace(digits_data.train, index=everything).read()
    assert real.min() - 1e-6 <= noise.min() <= noise.max() <= real.max() + 1e-6
    eights = real[digits_data.train.labels == 8]
    plain = torch.randn(64, 1, 16, 16, generator=torch.Generator().manual_seed(0)).clamp(real.min(), real.max())

    def loss(images) -> float:
        return cross_entropy(model(images), torch.full((len(images),), 8)).item()

    assert loss(noise) > loss(plain) + 1
    assert loss(noise) > loss(eights) + 1
    assert torch.equal(noise, engine._method._noise(ready(copy.deepcopy(model), digits_data, engine._method), 8))
    # The penalty holds it back: a heavy one makes it small.
    heavy = UNSIR(noise_weight=1.0)._noise(engine, 8)
    assert heavy.square().sum() < 0.5 * noise.square().sum()


def test_unsir_impairs_with_labelled_noise_and_repairs_without(model, digits_data, digits) -> None:
    method = UNSIR(impair_epochs=1, repair_epochs=2, noise_batches=3, retain_per_class=20)
    noise = method._noise(ready(model, digits_data, method), 8)
    recorder = Recorder(model, digits_data, digits, seed=0)
    recorder.run(method)
    counts = []
    for (*_, images), got in recorder.steps:  # before the first come those that the noise is learnt in
        is_noise = (images[:, None] == noise).all(dim=(2, 3, 4)).any(1)
        labels = torch.where(is_noise, 8, true_labels(digits_data, images))
        counts.append((is_noise.sum().item(), len(images)))
        model.train()
        if len(counts) < 3:
            assert_same(got, gradient(model, cross_entropy(model(images), labels)), 1e-3)
    impair = [count for count in counts if count[0]]
    assert sum(noisy for noisy, _ in impair) == 3 * 64
    assert sum(total for _, total in impair) == 3 * 64 + 9 * 20
    assert sum(total for noisy, total in counts if not noisy) == 2 * 9 * 20
    assert isinstance(recorder._optimizer, torch.optim.Adam)


# SSD


def test_ssd_dampens_exactly_the_weights_that_the_rule_names(model, digits_data, digits) -> None:
    """Weight by weight in plain Python, from gradients that one backward pass a batch leaves."""
    train = digits_data.train
    fishers = []
    twin = copy.deepcopy(model).eval()
    for rows in (torch.where(digits_data.forget)[0], train.targets.argsort(stable=True)):  # class by class
        batches = rows.tensor_split(-(-len(rows) // 64))
        total = {name: torch.zeros_like(weight) for name, weight in twin.named_parameters()}
        for batch in batches:
            twin.zero_grad()
            images = train.subset(batch).read()
            cross_entropy(twin(images), train.labels[train.index[batch]]).backward()
            for name, weight in twin.named_parameters():
                total[name] += weight.grad**2 / len(batches)
        fishers.append(total)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Engine(model, digits_data, digits, seed=0).run(SSD(alpha=5.0, damping=2.0))
    dampened = 0
    for name, tensor in model.state_dict().items():
        if name not in fishers[0]:
            assert torch.equal(tensor, before[name])  # BatchNorm statistics: the passes run in eval mode
            continue
        entries = zip(
            *(t.flatten().tolist() for t in (tensor, before[name], fishers[0][name], fishers[1][name])), strict=True
        )
        for after, weight, of_forget, of_all in entries:
            if math.isclose(of_forget, 5 * of_all, rel_tol=1e-4):
                continue
            if of_forget > 5 * of_all:
                dampened += 1
                assert after == pytest.approx(weight * min(1, 2 * of_all / of_forget), rel=1e-3, abs=1e-9)
            else:
                assert after == weight
    count = sum(weight.numel() for weight in model.parameters())
    assert 0.01 * count < dampened < 0.99 * count


# Tiny linear models on made images


class Linear(nn.Module):
    """Pixels to logits, with timm's interface."""

    def __init__(self, pixels: int, classes: int, bias: bool = True):
        super().__init__()
        self.fc = nn.Linear(pixels, classes, bias=bias)
        self.head_hidden_size = pixels

    def forward_features(self, images):
        return images.flatten(1)

    def forward_head(self, features, pre_logits=False):
        return features if pre_logits else self.fc(features)

    def forward(self, images):
        return self.forward_head(self.forward_features(images))

    def get_classifier(self):
        return self.fc


def made(images: torch.Tensor, labels: torch.Tensor, forget: torch.Tensor, classes: int) -> splits.Data:
    """Data whose training images are these (uint8, N x 1 x H x W), neither centred nor scaled but by 255."""
    train = splits.Split(Pixels(images, (0.0,), (1.0,)), labels, torch.arange(len(images)))
    nothing = splits.HeldOut(train, train)
    return splits.Data(train, forget, train, nothing, nothing, classes)


def test_svd_removes_a_forget_direction_and_keeps_a_retain_one() -> None:
    """An image lights one pixel: of the forget set 3 or 5, of the retain set 7 or 5. So pixels are the directions."""
    images = torch.zeros(40, 1, 4, 4, dtype=torch.uint8)
    flat = images.view(40, 16)
    forget = torch.arange(40) < 10
    even = torch.arange(40) % 2 == 0
    flat[forget & even, 3] = 200
    flat[~forget & even, 7] = 200
    flat[~even, 5] = 150
    labels = torch.where(forget, 0, 1 + torch.arange(40) % 3)
    scenario = dataclasses.replace(SCENARIOS["digits"], forget=(0,))
    model = Linear(16, 4)
    before = copy.deepcopy(model.fc)
    Engine(model, made(images, labels, forget, 4), scenario, seed=0).run(SVD(alpha_f=1e6, alpha_r=1e6))
    after = model.fc.weight
    assert after[:, 3].abs().max() < 1e-3 * before.weight[:, 3].abs().max()
    for pixel in (5, 7, 0):  # shared, retained, unused
        torch.testing.assert_close(after[:, pixel], before.weight[:, pixel], rtol=1e-3, atol=1e-4)
    assert torch.equal(model.fc.bias, before.bias)


def test_svd_scales_directions_by_their_energy() -> None:
    """P = I - (Mf - Mf Mr) with M's eigenvalue alpha s / ((alpha - 1) s + 1), by hand on two pixels."""
    images = torch.zeros(4, 1, 1, 2, dtype=torch.uint8)
    images[:2, 0, 0] = torch.tensor([200, 100], dtype=torch.uint8)
    images[1, 0, 0, 1] = 0
    images[0, 0, 0, 0] = 0  # forget: energies 200^2 and 100^2 along the two pixels
    images[2, 0, 0, 1] = images[3, 0, 0, 1] = 100  # retain: the second pixel alone
    forget = torch.tensor([True, True, False, False])
    labels = torch.tensor([0, 0, 1, 1])
    model = Linear(2, 3)
    before = model.fc.weight.detach().clone()
    scenario = dataclasses.replace(SCENARIOS["digits"], forget=(0,))
    Engine(model, made(images, labels, forget, 3), scenario, seed=0).run(SVD(alpha_f=3.0, alpha_r=5.0))
    share = np.array([0.8, 0.2])
    removed = 3 * share / (2 * share + 1)
    expected = before.numpy() * (1 - np.array([removed[0], removed[1] * (1 - 1.0)]))
    np.testing.assert_allclose(model.fc.weight.detach().numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_svd_sees_a_convolution_as_a_product(groups) -> None:
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=groups, bias=False)
    inputs = torch.randn(5, 4, 8, 8)
    vectors = layer_inputs(layer, inputs)
    outputs = vectors @ layer.weight.view(groups, 6 // groups, -1).mT  # (G, N, outputs / G)
    expected = layer(inputs).permute(0, 2, 3, 1).reshape(-1, groups, 6 // groups).transpose(0, 1)
    torch.testing.assert_close(outputs, expected)


def test_influence_is_what_leaving_the_forget_set_out_changes() -> None:
    """Logistic regression with an L2 penalty, as weight decay is one, on the mean loss, at its optimum by L-BFGS in
    double precision, with and without 2 % of the samples: the step from one optimum comes within 5 % of the other.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 3
    centres = 40 * torch.randn(3, 6, generator=generator)
    pixels = 128 + centres[labels] + 40 * torch.randn(600, 6, generator=generator)
    images = pixels.clamp(0, 255).to(torch.uint8).view(600, 1, 2, 3)
    forget = torch.zeros(600, dtype=torch.bool)
    forget[torch.randperm(600, generator=generator)[:12]] = True
    penalty = 0.01

    def optimum(chosen: torch.Tensor) -> torch.Tensor:
        inputs = (images[chosen].view(-1, 6) / 255).double()
        weight = torch.zeros(3, 6, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight], max_iter=2000, tolerance_grad=1e-12, tolerance_change=0)

        def closure():
            optimizer.zero_grad()
            loss = cross_entropy(inputs @ weight.T, labels[chosen])
            loss = loss + penalty / 2 * weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return weight.detach()

    everything, without = optimum(torch.ones(600, dtype=torch.bool)), optimum(~forget)
    model = Linear(6, 3, bias=False)
    model.fc.weight.data.copy_(everything)
    scenario = dataclasses.replace(SCENARIOS["digits"], forget=(), forget_share=0.02)
    loaded = made(images, labels, forget, 3)
    Engine(model, loaded, scenario, seed=0).run(Influence(samples=600, damping=penalty))
    step, exact = model.fc.weight.detach().double() - everything, without - everything
    assert (step - exact).norm() < 0.05 * exact.norm()
    assert exact.norm() > 1e-3


def test_curvature_is_the_hessian_of_a_linear_classifier() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (30, 1, 2, 2), generator=generator, dtype=torch.uint8)
    labels, forget = torch.arange(30) % 3, torch.arange(30) < 3
    model = Linear(4, 3, bias=False)
    engine = ready(model, made(images, labels, forget, 3), Influence())
    vector = torch.randn(3, 4, generator=generator)
    inputs = images.view(30, 4) / 255

    def loss(weight):
        return cross_entropy(inputs @ weight.T, labels)

    expected = torch.func.jvp(torch.func.grad(loss), (model.fc.weight.detach(),), (vector,))[1]
    got = engine.curvature_product("train", {"fc.weight": vector})
    torch.testing.assert_close(got["fc.weight"], expected)


# Class-mean features


def test_cmf_is_ncc_with_cosine_distance_and_ignores_the_features_scale() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(90, 7)) + 2
    labels = np.arange(90) % 4
    backbone = Linear(7, 4)
    head = cmf.CMF(backbone, 4, temperature=3.0)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    sums = np.stack([unit[labels == label].sum(0) for label in range(4)])
    head.update(torch.from_numpy(sums), torch.from_numpy(np.bincount(labels)))
    mean = unit.mean(0)
    centres = np.stack([unit[labels == label].mean(0) for label in range(4)]) - mean
    queries = generator.normal(size=(50, 7)) + 2
    centred = queries / np.linalg.norm(queries, axis=1, keepdims=True) - mean
    cosine = centred @ centres.T / np.linalg.norm(centred, axis=1)[:, None] / np.linalg.norm(centres, axis=1)
    for scale in (1, 1e-3, 1e3):
        logits = head(torch.from_numpy(scale * queries).float())
        np.testing.assert_allclose(logits.detach().numpy(), 3 * cosine, atol=1e-4)
    assert (logits.argmax(1).numpy() == cosine.argmax(1)).all()


def test_cmf_follows_the_features_after_every_epoch(model, digits_data, digits) -> None:
    """Made from the training set, forget classes too, with true labels, in eval mode."""
    seen = []
    engine = Engine(model, digits_data, digits, seed=0)

    def compare(epoch: int) -> None:
        network = engine.model
        assert isinstance(network, cmf.CMF)
        backbone = copy.deepcopy(network.backbone).eval()
        images = digits_data.train.read()
        with torch.no_grad():
            unit = nn.functional.normalize(backbone.forward_head(backbone.forward_features(images), pre_logits=True))
        of_forget = unit[digits_data.forget].mean(0) - unit.mean(0)
        torch.testing.assert_close(network.head.weight[8], of_forget / of_forget.norm(), rtol=1e-3, atol=1e-4)
        seen.append(network.head.weight.clone())

    engine.run(RandomLabel(head="cmf", lr=0.01, epochs=2), compare)
    assert len(seen) == 2
    assert not torch.equal(*seen)
    # Fix: the head is looked at as z, so that a probe of a CMF model sees what the head sees.
    features, logits = inference.features_and_logits(
        engine.model.eval(), digits_data.train.subset(torch.arange(5)).read()
    )
    torch.testing.assert_close(features.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(logits, engine.model(digits_data.train.subset(torch.arange(5)).read()))


# What the engine keeps methods from


def test_undeclared_data_is_refused(model, digits_data) -> None:
    engine = ready(model, digits_data, Finetune())
    for part in ("forget", "train"):
        with pytest.raises(RuntimeError, match="does not declare"):
            next(engine.batches(part))


def test_what_is_computed_from_the_original_is_asked_for_before_the_first_epoch(model, digits_data) -> None:
    engine = ready(model, digits_data, SalUn())
    engine.epoch = 1
    with pytest.raises(RuntimeError, match="before the first epoch"):
        engine.cached("saliency", dict)


def test_with_the_classifier_alone_batchnorm_stands_still(model, digits_data, digits) -> None:
    """Fix: everything but the classifier stays in eval mode. In train mode its statistics would move."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Engine(model, digits_data, digits, seed=0).run(RandomLabel(train="classifier", lr=0.1, epochs=1))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)}
    assert changed == {"fc.weight", "fc.bias"}


def test_comparable_epochs_wait_for_the_phases() -> None:
    assert Scrub(epochs=5, msteps=2).comparable_from == 3
    assert Scrub(epochs=2, msteps=2).comparable_from == 2
    assert UNSIR(impair_epochs=4, repair_epochs=3).comparable_from == 5
    assert Finetune().comparable_from == 1
