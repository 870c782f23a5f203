"""Methods against the authors' loops, written out here with their optimizer, schedule, clipping and masks, in float64
on the same weights and batches. Every loop is also run with a mistake in it, which has to show.
"""

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from raymu import splits
from raymu.engines.pytorch import Engine
from raymu.methods.bad_teacher import BadTeacher
from raymu.methods.finetune import Finetune
from raymu.methods.gradient_ascent import GradientAscent
from raymu.methods.influence import Influence
from raymu.methods.neggrad_plus import NegGradPlus
from raymu.methods.random_label import RandomLabel
from raymu.methods.retrain import Retrain
from raymu.methods.salun import SalUn, saliency
from raymu.methods.scrub import Scrub
from raymu.methods.svd import SVD
from raymu.methods.unsir import UNSIR
from raymu.models import architectures
from raymu.run import Batch
from raymu.scenario import Recipe

SGD = {"momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}  # of Gao et al.
IMAGES = 120
CLASSES = 10


class Tiny(nn.Module):
    """A network with BatchNorm that has timm's interface."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6 * 16, CLASSES)
        self.head_hidden_size = 6 * 16

    def forward_features(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(self.norm(self.conv(images)).relu(), 4)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        return features.flatten(1) if pre_logits else self.fc(features.flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Linear:
        return self.fc


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def scenario(digits):
    """Augmented, so that teachers are asked anew for every batch and nothing is kept in float32."""
    return dataclasses.replace(digits, recipe=Recipe(lr=0.05, epochs=1, batch_size=16, augment=True))


@pytest.fixture(scope="module")
def loaded(digits_data) -> splits.Data:
    """Some of the digits, in float64."""
    chosen = torch.arange(IMAGES)
    images = copy.copy(digits_data.train.images)
    images.mean, images.std = images.mean.double(), images.std.double()
    train = dataclasses.replace(digits_data.train, images=images).subset(chosen)
    return dataclasses.replace(digits_data, train=train, forget=digits_data.forget[chosen])


@pytest.fixture(scope="module")
def original(loaded) -> Tiny:
    """A network that has learnt a little, far from stationary."""
    torch.manual_seed(0)
    model = Tiny().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **SGD)
    for _ in range(20):
        optimizer.zero_grad()
        cross_entropy(model(loaded.train.read()), loaded.train.targets).backward()
        optimizer.step()
    return model


class Recorded(Engine):
    """Keeps the batches that a method was given, with their epoch."""

    def run(self, *arguments: Any) -> None:
        self.seen: list[tuple[int, Batch]] = []
        self.scanned: list[Batch] = []
        super().run(*arguments)

    def batches(self, *arguments: Any, **options: Any) -> Iterator[Batch]:
        for batch in super().batches(*arguments, **options):
            self.seen.append((self.epoch, batch))
            yield batch

    def cycle(self, *arguments: Any) -> Iterator[Batch]:
        for batch in super().cycle(*arguments):
            self.seen.append((self.epoch, batch))
            yield batch

    def scan(self, *arguments: Any) -> Iterator[Batch]:
        for batch in super().scan(*arguments):
            self.scanned.append(batch)
            yield batch


def unlearned(method, original, loaded, scenario, seed=3) -> tuple[Recorded, nn.Module]:
    """The engine after its run, and the network, without the wrapper that a CMF head is."""
    engine = Recorded(copy.deepcopy(original), loaded, scenario, seed=seed)
    engine.run(method)
    model: Any = engine.model
    return engine, model.backbone if method.head == "cmf" else model


def distance(one: nn.Module, other: nn.Module, original: nn.Module) -> float:
    """How far apart two networks are, as a share of how far the first moved: the tensor where that is most."""
    shares = [0.0]
    for name, tensor in one.state_dict().items():
        apart, moved = ((tensor - model.state_dict()[name]).double().norm().item() for model in (other, original))
        assert moved or not apart, name
        shares.append(apart / moved if moved else 0.0)
    return max(shares)


def agree(got: nn.Module, loop: Callable[..., nn.Module], wrong: list[dict[str, Any]], original, tolerance) -> None:
    assert distance(got, loop(), original) < tolerance
    for mistake in wrong:
        assert distance(got, loop(**mistake), original) > 1e-2, mistake


class Means:
    """The CMF head of a network: logits = normalize(normalize(f) - mu) W^T, W and mu fixed until they are made anew."""

    def __init__(self, model: Tiny, loaded: splits.Data) -> None:
        self._model, self._loaded = model, loaded
        self.renew()

    def renew(self) -> None:
        self._model.eval()
        with torch.no_grad():
            unit, labels = self._features(self._loaded.train.read()), self._loaded.train.targets
            self._mu = unit.mean(0)
            means = torch.stack([unit[labels == label].mean(0) for label in range(CLASSES)])
            self._weight = normalize(means - self._mu)
        self._model.train()

    def __call__(self, images: Tensor) -> Tensor:
        return normalize(self._features(images) - self._mu) @ self._weight.T

    def _features(self, images: Tensor) -> Tensor:
        return normalize(self._model.forward_head(self._model.forward_features(images), pre_logits=True))


def body(model: Tiny) -> list[nn.Parameter]:
    """All weights but the head's, which a CMF model does not have."""
    return [*model.conv.parameters(), *model.norm.parameters()]


def epochs(engine: Recorded) -> Iterator[tuple[int, list[Batch]]]:
    for epoch in sorted({epoch for epoch, _ in engine.seen}):
        yield epoch, [batch for number, batch in engine.seen if number == epoch]


@pytest.mark.parametrize(
    ("method", "part", "rates", "clip"),
    [
        pytest.param(Finetune(lr=0.02, epochs=2), "retain", [0.02] * 2, None, id="finetune"),
        pytest.param(GradientAscent(lr=0.02, epochs=3, clip=0.1), "forget", [0.02] * 3, 0.1, id="gradient_ascent"),
        pytest.param(RandomLabel(lr=0.02, epochs=2), "train", [0.02] * 2, None, id="random_label"),
        pytest.param(RandomLabel(lr=0.02, epochs=2, clip=0.1), "train", [0.02] * 2, 0.1, id="random_label-clipped"),
        pytest.param(
            Retrain(lr=0.05, epochs=7), "retain", [0.01, 0.02, 0.03, 0.04, 0.05, 0.025005, 1e-5], None, id="retrain"
        ),
    ],
)
def test_plain_methods_take_the_steps_of_gao(original, loaded, scenario, method, part, rates, clip) -> None:
    """One cross-entropy a step, by SGD with Nesterov momentum and weight decay: down, but for gradient ascent."""
    engine, got = unlearned(method, original, loaded, scenario)

    def sgd(weights: Iterator[nn.Parameter], **changes: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(weights, lr=1.0, **(SGD | changes))

    def loop(make=sgd, clipped=True) -> nn.Module:
        model = copy.deepcopy(original).train()
        optimizer = make(model.parameters())
        for epoch, batches in epochs(engine):
            optimizer.param_groups[0]["lr"] = rates[epoch - 1]
            for batch in batches:
                labels = batch.labels
                if part == "train":
                    labels = torch.where(batch.forget, engine.random_labels(batch), labels)
                loss = cross_entropy(model(batch.images), labels)
                optimizer.zero_grad()
                (-loss if part == "forget" else loss).backward()
                if clip and clipped:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
        return model

    wrong: list[dict[str, Any]] = [{"make": partial(sgd, nesterov=False)}, {"make": torch.optim.Adam}]
    agree(got, loop, wrong + [{"clipped": False}] * bool(clip), original, 1e-9)
    assert distance(got, loop(partial(sgd, weight_decay=0.0)), original) > 1e-6  # little, but more than rounding
    rows = {"train": range(IMAGES), "forget": loaded.forget.nonzero(), "retain": (~loaded.forget).nonzero()}[part]
    for _, batches in epochs(engine):
        assert sorted(row for batch in batches for row in batch.positions.tolist()) == [int(row) for row in rows]


def test_bad_teacher_is_that_of_chundawat(original, loaded, scenario) -> None:
    """`UnlearnerLoss`, `unlearning_step` and the notebook's call: Adam, 30 % of the retain set, kl_div's own mean."""
    temperature = 2.0
    engine, got = unlearned(BadTeacher(lr=1e-3, epochs=2, T=temperature), original, loaded, scenario)
    random = architectures.build(scenario, scenario.model_seed + 1).eval()
    full = copy.deepcopy(original).eval()

    def loop(optimizer=torch.optim.Adam, average="elements") -> nn.Module:
        model = copy.deepcopy(original).train()
        steps = optimizer(model.parameters(), lr=1e-3)
        for _, batch in engine.seen:
            forget = batch.forget.double().unsqueeze(1)
            with torch.no_grad():
                ignorant, knowing = ((teacher(batch.images) / temperature).softmax(1) for teacher in (random, full))
            teacher = forget * ignorant + (1 - forget) * knowing
            student = (model(batch.images) / temperature).log_softmax(1)
            each = teacher * (teacher.log() - student)
            steps.zero_grad()
            (each.mean() if average == "elements" else each.sum() / len(each) * temperature**2).backward()
            steps.step()
        return model

    agree(got, loop, [{"optimizer": lambda w, lr: torch.optim.SGD(w, lr, **SGD)}], original, 1e-9)
    # Adam does not see the scale of a loss but for its epsilon, so the average is compared by the loss itself.
    sizes = [sum(len(batch.positions) for batch in batches) for _, batches in epochs(engine)]
    forget, retain = int(loaded.forget.sum()), int((~loaded.forget).sum())
    assert sizes == [forget + int(0.3 * retain)] * 2
    first, second = ({row for batch in batches for row in batch.positions.tolist()} for _, batches in epochs(engine))
    assert first == second  # drawn once
    assert set(loaded.forget.nonzero().squeeze(1).tolist()) <= first
    other, _ = unlearned(BadTeacher(), original, loaded, scenario, seed=4)
    assert {row for _, batch in other.seen for row in batch.positions.tolist()} != first  # drawn by the trial's seed


def test_bad_teachers_loss_is_averaged_over_all_elements(original, loaded, scenario) -> None:
    class Losses(Recorded):
        def _add_gradient(self, part: Any) -> None:
            self.losses = [*getattr(self, "losses", []), part.item()]
            super()._add_gradient(part)

    engine = Losses(copy.deepcopy(original), loaded, scenario, seed=3)
    engine.run(BadTeacher())
    random, full = architectures.build(scenario, scenario.model_seed + 1).eval(), copy.deepcopy(original).eval()
    batch = engine.seen[0][1]
    taught = torch.where(batch.forget.unsqueeze(1), random(batch.images), full(batch.images)).softmax(1)
    each = taught * (taught.log() - copy.deepcopy(original).train()(batch.images).log_softmax(1))
    assert engine.losses[0] == pytest.approx(each.mean().item(), rel=1e-9)


def test_neggrad_plus_with_class_means_is_that_of_gao(original, loaded, scenario) -> None:
    """`unlearn_naive_CMF`: both losses backward, and then the gradient of the sum is clipped."""
    clip, lr = 0.02, 0.05
    method = NegGradPlus(head="cmf", lr=lr, epochs=2, ascent=0.5, clip=clip)
    engine, got = unlearned(method, original, loaded, scenario)

    def loop(ascent=0.5, clipped="sum") -> nn.Module:
        model = copy.deepcopy(original)
        head = Means(model, loaded)
        optimizer = torch.optim.SGD(body(model), lr=lr, **SGD)
        for _, batches in epochs(engine):
            # The engine gives a retain batch first, and then the forget batch of the same step.
            for retain, forget in zip(batches[::2], batches[1::2], strict=True):
                assert forget.forget.all()
                assert not retain.forget.any()
                optimizer.zero_grad()
                (-ascent * cross_entropy(head(forget.images), forget.labels)).backward()
                if clipped == "ascent":
                    nn.utils.clip_grad_norm_(body(model), clip)
                cross_entropy(head(retain.images), retain.labels).backward()
                if clipped == "sum":
                    nn.utils.clip_grad_norm_(body(model), clip)
                optimizer.step()
            head.renew()
        return model

    agree(got, loop, [{"ascent": 1.0}, {"clipped": "ascent"}, {"clipped": "none"}], original, 1e-5)


def test_neggrad_plus_with_a_linear_head_is_that_of_gao(original, loaded, scenario) -> None:
    """`unlearn_naive`: the ascent's gradient is clipped before the descent's is added."""
    clip, lr = 0.1, 0.01
    engine, got = unlearned(NegGradPlus(lr=lr, epochs=2, clip=clip), original, loaded, scenario)

    def loop(clipped="ascent") -> nn.Module:
        model = copy.deepcopy(original).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, **SGD)
        for _, batches in epochs(engine):
            for retain, forget in zip(batches[::2], batches[1::2], strict=True):
                optimizer.zero_grad()
                (-cross_entropy(model(forget.images), forget.labels)).backward()
                if clipped == "ascent":
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                cross_entropy(model(retain.images), retain.labels).backward()
                if clipped == "sum":
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
        return model

    agree(got, loop, [{"clipped": "sum"}, {"clipped": "none"}], original, 1e-9)


def test_salun_with_class_means_is_that_of_gao(original, loaded, scenario) -> None:
    """`salun_CMF_unlearn`: the mask by ranks, the gradient masked and then clipped, StepLR(3, 0.2). But for one thing:
    what lies outside the mask is put back, as the original's values are kept to the bit here.
    """
    clip, lr = 0.02, 0.05
    method = SalUn(head="cmf", lr=lr, epochs=4, clip=clip, decay=0.2)
    engine, got = unlearned(method, original, loaded, scenario)

    def loop(order="mask, clip", gamma=0.2, summed="absolute") -> nn.Module:
        model = copy.deepcopy(original)
        head, weights = Means(model, loaded), body(model)
        model.eval()
        total = [torch.zeros_like(weight) for weight in weights]
        for batch in engine.scanned:
            loss = cross_entropy(head(batch.images), batch.labels, reduction="sum")
            for sums, gradient in zip(total, torch.autograd.grad(loss, weights), strict=True):
                sums += gradient.abs() if summed == "absolute" else gradient
        flat = -torch.cat([sums.abs().flatten() for sums in total])
        ranks = flat.argsort(stable=True).argsort()
        chosen = (ranks < int(0.5 * len(flat))).double().split([weight.numel() for weight in weights])
        masks = [mask.view_as(weight) for mask, weight in zip(chosen, weights, strict=True)]
        start = [weight.detach().clone() for weight in weights]
        model.train()
        optimizer = torch.optim.SGD(weights, lr=lr, **SGD)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=gamma)
        for _, batches in epochs(engine):
            for batch in batches:
                labels = torch.where(batch.forget, engine.random_labels(batch), batch.labels)
                optimizer.zero_grad()
                cross_entropy(head(batch.images), labels).backward()
                if order == "clip, mask":
                    nn.utils.clip_grad_norm_(weights, clip)
                for weight, mask in zip(weights, masks, strict=True):
                    weight.grad *= mask
                if order == "mask, clip":
                    nn.utils.clip_grad_norm_(weights, clip)
                optimizer.step()
                with torch.no_grad():
                    for weight, mask, value in zip(weights, masks, start, strict=True):
                        weight.copy_(torch.where(mask > 0, weight, value))
            schedule.step()
            head.renew()
        return model

    assert len(engine.scanned) > 0
    agree(got, loop, [{"order": "clip, mask"}, {"gamma": 1.0}], original, 1e-5)


def test_saliency_is_that_of_fan_or_of_gao(original, loaded, scenario) -> None:
    """Signed: |gradient of the CE summed over all forget images|, whatever the batches; absolute: batch by batch."""
    several = dataclasses.replace(scenario, recipe=dataclasses.replace(scenario.recipe, batch_size=4))
    model = copy.deepcopy(original).eval()
    names, weights = zip(*model.named_parameters(), strict=True)

    def gradient(rows: Tensor) -> list[Tensor]:
        images, labels = loaded.train.subset(rows).read(), loaded.train.targets[rows]
        return list(torch.autograd.grad(cross_entropy(model(images), labels, reduction="sum"), weights))

    found = {}
    for kind in ("signed", "absolute"):
        engine = Recorded(model, loaded, several, seed=0)
        engine._method, engine.scanned = SalUn(saliency=kind), []
        found[kind] = saliency(engine, kind)
    forgotten = loaded.forget.nonzero().squeeze(1)
    assert len(engine.scanned) > 1
    signed = dict(zip(names, (each.abs() for each in gradient(forgotten)), strict=True))
    batches = [[each.abs() for each in gradient(batch.positions)] for batch in engine.scanned]
    absolute = dict(zip(names, map(sum, zip(*batches, strict=True)), strict=True))
    for name in names:
        torch.testing.assert_close(found["signed"][name], signed[name], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found["absolute"][name], absolute[name], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(found["signed"]["conv.weight"], found["absolute"]["conv.weight"], rtol=0.01)


@pytest.mark.parametrize("head", ["linear", "cmf"])
def test_scrub_is_that_of_kurmanji(original, loaded, scenario, head) -> None:
    """`train_distill`, `adjust_learning_rate`, SGD without Nesterov; four epochs, the last at a tenth of the rate."""
    lr, temperature, alpha, gamma = 0.02, 4.0, 0.5, 0.99
    method = Scrub(head=head, lr=lr, epochs=4, msteps=2, alpha=alpha, batch_size=16)
    engine, got = unlearned(method, original, loaded, scenario)

    def divergence(student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = ((logits / temperature).log_softmax(1) for logits in (student, teacher))
        return temperature**2 * (teacher.exp() * (teacher - student)).sum() / len(student)

    def loop(nesterov=False, decays=(3, 5, 9)) -> nn.Module:
        model, teacher = copy.deepcopy(original), copy.deepcopy(original)
        student = Means(model, loaded) if head == "cmf" else model.train()
        knowing = Means(teacher, loaded) if head == "cmf" else teacher
        teacher.eval()
        weights = body(model) if head == "cmf" else list(model.parameters())
        optimizer = torch.optim.SGD(weights, lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=nesterov)
        for epoch, batches in epochs(engine):
            for group in optimizer.param_groups:
                group["lr"] = lr * 0.1 ** sum(epoch > end for end in decays)
            parts = [bool(batch.forget.all()) for batch in batches]
            assert parts == sorted(parts, reverse=True)  # the forget set first
            assert any(parts) == (epoch <= 2)
            for batch, climbs in zip(batches, parts, strict=True):
                with torch.no_grad():
                    taught = knowing(batch.images)
                logits = student(batch.images)
                loss = alpha * divergence(logits, taught) + gamma * cross_entropy(logits, batch.labels)
                optimizer.zero_grad()
                (-divergence(logits, taught) if climbs else loss).backward()
                optimizer.step()
            if head == "cmf":
                student.renew()
        return model

    agree(got, loop, [{"nesterov": True}, {"decays": ()}], original, 1e-9 if head == "linear" else 1e-5)


def test_unsir_is_that_of_gao(original, loaded, scenario) -> None:
    """`tarun_unlearn`: noise by 5 x 8 steps of Adam, then two phases, each with an Adam of its own. But for one thing:
    noise stays between black and white.
    """
    rates = {"impair_lr": 2e-3, "repair_lr": 5e-4}
    method = UNSIR(**rates, impair_epochs=2, repair_epochs=2, noise_batches=3, retain_per_class=5)
    engine, got = unlearned(method, original, loaded, scenario)
    (forgotten,) = scenario.forget

    def noise(steps=5 * 8, lr=0.1, weight=0.1) -> Tensor:
        model, known = copy.deepcopy(original).eval(), loaded.train.images
        black, white = ((level - known.mean) / known.std for level in (0, 1))
        images = torch.randn(16, 1, 16, 16, generator=torch.Generator().manual_seed(3)).clamp(black, white)
        optimizer = torch.optim.Adam([images.requires_grad_()], lr=lr)
        for _ in range(steps):
            loss = -cross_entropy(model(images), torch.full((16,), forgotten))
            loss = loss + weight * images.square().flatten(1).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            images.data.clamp_(black, white)
        return images.detach()

    mixed = [(batch.images[batch.positions < 0], batch.labels[batch.positions < 0]) for _, batch in engine.seen]
    images, labels = (torch.cat(parts) for parts in zip(*mixed, strict=True))
    assert (labels == forgotten).all()

    def apart(made: Tensor) -> Tensor:
        return (images[:, None] - made).flatten(2).norm(dim=2)

    assert (apart(noise()).min(1).values < 1e-6).all()
    assert apart(noise()).argmin(1).bincount().tolist() == [3 * 2] * 16  # every image, in either epoch
    for wrong in ({"steps": 20}, {"lr": 0.05}, {"weight": 0.05}):
        assert (apart(noise(**wrong)).min(1).values > 1e-2).any(), wrong

    def loop(impair_lr=2e-3, repair_lr=5e-4, anew=True) -> nn.Module:
        model = copy.deepcopy(original).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=impair_lr)
        for epoch, batches in epochs(engine):
            if epoch == 3:
                before, optimizer = optimizer, torch.optim.Adam(model.parameters(), lr=repair_lr)
                if not anew:
                    optimizer.state = before.state
            for batch in batches:
                optimizer.zero_grad()
                cross_entropy(model(batch.images), batch.labels).backward()
                optimizer.step()
        return model

    wrong_phases = [{"impair_lr": 2e-2}, {"repair_lr": 2e-3}, {"impair_lr": 5e-4}, {"anew": False}]
    agree(got, loop, wrong_phases, original, 1e-9)


def test_svd_reads_as_many_images_of_every_class_as_it_says(original, loaded, scenario) -> None:
    """As many images of the forget set, and of the retain set as many divided by its 9 classes, but at least 1."""
    (forgotten,) = scenario.forget
    for samples, of_retained in ((5, 1), (9, 1), (20, 2)):
        engine, _ = unlearned(SVD(samples=samples), original, loaded, scenario)
        seen = Counter(label for batch in engine.scanned for label in batch.labels.tolist())
        of_forgotten = min(samples, int(loaded.forget.sum()))
        assert seen == {label: of_forgotten if label == forgotten else of_retained for label in range(CLASSES)}


@pytest.mark.long
def test_influence_takes_the_step_of_woodfisher_with_the_whole_inverse(original, loaded, scenario) -> None:
    """The direction of Jia et al., through the Gauss-Newton matrix as a dense one, from an original that is far from
    stationary.
    """
    damping = 1.0
    _, got = unlearned(Influence(damping=damping, scale=2.0), original, loaded, scenario)
    model = copy.deepcopy(original).eval()
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    images, labels = loaded.train.read(), loaded.train.targets
    retained = (~loaded.forget).nonzero().squeeze(1)

    def flat(tensors) -> Tensor:
        return torch.cat([tensor.flatten() for tensor in tensors])

    def gradient(rows: Tensor) -> Tensor:
        return flat(torch.autograd.grad(cross_entropy(model(images[rows]), labels[rows]), list(model.parameters())))

    logits = model(images[retained]).detach()
    jacobian = torch.func.jacrev(lambda values: torch.func.functional_call(model, values, (images[retained],)))(weights)
    rows = torch.cat([each.flatten(2) for each in jacobian.values()], dim=2)  # (N, K, weights)
    chances = logits.softmax(1)
    hessian = torch.diag_embed(chances) - chances.unsqueeze(2) * chances.unsqueeze(1)
    matrix = torch.einsum("nkp,nkl,nlq->pq", rows, hessian, rows) / len(retained)
    matrix += damping * torch.eye(len(matrix))
    forgotten = loaded.forget.nonzero().squeeze(1)
    share = len(forgotten) / IMAGES
    of_forget, of_retain = gradient(forgotten), gradient(retained)
    moved = flat([new.detach() - weights[name] for name, new in got.named_parameters()])
    expected = 2.0 * torch.linalg.solve(matrix, share * (of_forget - of_retain))
    assert (moved - expected).norm() < 1e-2 * expected.norm()
    stationary = 2.0 * torch.linalg.solve(matrix, len(forgotten) * of_forget / len(retained))
    assert (moved - stationary).norm() > 0.1 * expected.norm()


def test_influence_does_not_answer_before_it_converges(original, loaded, scenario) -> None:
    with pytest.raises(RuntimeError, match="do not converge in 3 iterations"):
        unlearned(Influence(damping=1e-4, iterations=3), original, loaded, scenario)
