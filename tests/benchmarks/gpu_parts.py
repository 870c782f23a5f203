"""The parts of gpu.py: each measures one thing on the device that this process has, and tells a report."""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from engine import BARE, ENGINE, MEAN, STD, Case, Figures, images_of, join, run, scenario_of
from imagenet import write_class
from probe import cheap, strong
from torch import Tensor
from torch.nn.functional import cross_entropy

from raymu import devices, engines, memory, reference_models, splits
from raymu.data import arrays, folders, published
from raymu.engines import Options
from raymu.evaluation.moments import Moments
from raymu.methods import get, names
from raymu.models import architectures
from raymu.scenario import SCENARIOS, Recipe, Scenario
from raymu.splits import Data, Split
from raymu.trial import run_trial
from raymu.tuning.samplers import random as random_sampler

DEVICE = reference_models.default_device()
REPOSITORY = Path(__file__).parent.parent.parent
TESTS = ("probe", "metrics", "engine", "method", "trial", "data", "encoded")
FIGURES = ("val_retain_acc", "val_forget_acc", "val_probe_forget_acc", "test_probe_forget_acc", "val_mia_auc", "score")
OF_PAPER = ("test_retain_acc", "test_forget_acc", "test_probe_retain_acc", "test_probe_forget_acc")
TINY = (("fp32", "salun", "linear"), ("bf16", "ssd", "linear"))
FIVE = ("salun", "random_label", "neggrad_plus", "scrub", "unsir")
WARM_UP, PROFILED = 5, 3  # steps


# 1: the tests of what computes


def tests(report: Any, options: argparse.Namespace) -> None:
    """Files of the test suite, on the device."""
    for name in ("data",) if options.tiny else TESTS:
        file = REPOSITORY / "tests" / f"test_{name}.py"
        with tempfile.TemporaryDirectory() as directory:
            outcome = Path(directory) / "outcome.xml"
            pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={outcome}"]
            pytest += ["-n", "0"] if options.tiny else ["-n", "4", "--timeout", "60"]  # one that hangs costs no other
            started = time.monotonic()
            subprocess.run([*pytest, str(file)], cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=False)
            cases = list(ElementTree.parse(outcome).iter("testcase")) if outcome.exists() else []
        wrong = {case.get("name"): (case.find("failure"), case.find("error")) for case in cases}
        messages = {
            str(test): next(what.get("message", "")[:300] for what in found if what is not None)
            for test, found in wrong.items()
            if any(what is not None for what in found)
        }
        seconds = round(time.monotonic() - started, 1)
        report.add(file=file.name, tests=len(cases), failed=len(messages), seconds=seconds, messages=messages)


# 2: all methods, beside the CPU


def methods(report: Any, options: argparse.Namespace) -> None:
    """Each method on the digits, in fp32 and bf16, with both heads: figures here and on the CPU, from one original,
    which the CPU trains.
    """
    known, cases = SCENARIOS["digits"], list[tuple[Scenario, str, str]]()
    epochs = 1 if options.tiny else known.recipe.epochs
    for precision in ("fp32", "bf16"):
        recipe = dataclasses.replace(known.recipe, precision=precision, epochs=epochs)
        scenario = dataclasses.replace(known, name=f"gpu-{precision}", recipe=recipe)
        cases += [(scenario, name, head) for name in names() for head in ("linear", "cmf")]
    if options.tiny:
        cases = [case for case in cases if (case[0].recipe.precision, *case[1:]) in TINY]
    with on_cpu() as pool:
        awaited = [pool.submit(row_of, case) for case in cases]
        for case, other in zip(cases, awaited, strict=True):
            row, expected = row_of(case), other.result()
            apart = {key: row[key] - expected[key] for key in FIGURES if None not in (row[key], expected[key])}
            worst = max(apart, key=lambda key: abs(apart[key]), default="")
            both = (("", row), ("cpu_", expected))
            costs = {f"{where}{cost}": round(of[cost], 3) for where, of in both for cost in ("unlearn_s", "evaluate_s")}
            scenario, name, head = case
            figures = {key: row[key] for key in FIGURES}
            said = {"status": row["status"], "error": row["error"] or expected["error"]}
            found = {"method": name, "head": head, "precision": scenario.recipe.precision} | said | costs | figures
            report.add(**found, most_apart=worst, by=apart.get(worst))


def row_of(case: tuple[Scenario, str, Any]) -> dict[str, Any]:
    """A method at its published setting."""
    scenario, name, head = case
    chosen = get(name)
    config = chosen.published_config(scenario, head)
    return run_trial(scenario, chosen.from_config(config, head=head), seed=0)[0]


@contextlib.contextmanager
def on_cpu() -> Iterator[ProcessPoolExecutor]:
    """A few processes that see no GPU."""
    count = min(8, max(1, len(os.sched_getaffinity(0)) // 2))
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_hide_gpus) as pool:
        yield pool


def _hide_gpus() -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


# 3: milliseconds a step


class Enough(Exception):
    """All steps that were asked for were taken."""


class Stopwatch:
    """Called after every step: the first ones do not count, the next are timed, the last are looked into.

    Attributes:
        found: milliseconds a step; operations that a step gives to the device; on a GPU the milliseconds in which it
            has some, and the share of its time in which it has none.
    """

    def __init__(self, count: int) -> None:
        self._first, self._timed, self._last = WARM_UP, WARM_UP + count, WARM_UP + count + PROFILED
        self._taken, self.found = 0, dict[str, float]()

    def __call__(self) -> None:
        self._taken += 1
        if self._taken == self._first:
            self._started = devices.now(DEVICE)
        elif self._taken == self._timed:
            self.found["ms"] = round(1e3 * (devices.now(DEVICE) - self._started) / (self._timed - self._first), 3)
            kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
            self._profile = torch.profiler.profile(activities=kinds if DEVICE.type == "cuda" else kinds[:1])
            self._profile.__enter__()
        elif self._taken == self._last:
            devices.now(DEVICE)
            self._profile.__exit__(None, None, None)
            self._look()
            raise Enough

    def _look(self) -> None:
        events = self._profile.events() or []
        kernels = [
            event
            for event in events
            if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
        ]
        given = kernels or [event for event in events if event.name.startswith("aten::")]
        self.found["operations"] = round(len(given) / PROFILED, 1)
        if kernels:
            busy = sum(event.time_range.elapsed_us() for event in kernels) / 1e3 / PROFILED
            self.found |= {"busy_ms": round(busy, 3), "gap": round(max(0.0, 1 - busy / self.found["ms"]), 3)}


def steps(report: Any, options: argparse.Namespace) -> None:
    """ResNet-18 with the CIFAR stem at batches of 128: a bare loop, with each option that may speed it up; the engine;
    five methods.
    """
    size, batch, count = (16, 2, 2) if options.tiny else (32, 128, 40)
    scenario = resnet(batch)
    loaded = some_forgotten(images_of(Case(scenario, size, count + 10, 1, 1)))
    bare = ("", "tf32", "channels_last", "bf16", "fused")
    for option in bare[::3] if options.tiny else bare:
        report.add(what=f"bare {option}".strip(), **timed(count, bare_steps, scenario, loaded, option))
    engine = [(precision, name) for precision in ("fp32", "bf16") for name in ("finetune", *FIVE)]
    for precision, name in engine[::4] if options.tiny else engine:
        chosen = dataclasses.replace(scenario, recipe=dataclasses.replace(scenario.recipe, precision=precision))
        what = f"{'engine' if name == 'finetune' else name}, {precision}"
        report.add(what=what, **timed(count, engine_steps, chosen, loaded, name))
    if not options.tiny:  # last: it compiles for a minute
        report.add(what="bare compiled", **timed(count, bare_steps, scenario, loaded, "compiled"))


def timed(count: int, take: Callable[..., None], *arguments: Any) -> dict[str, Any]:
    """What a stopwatch finds; or what kept it from that."""
    stopwatch = Stopwatch(count)
    try:
        take(stopwatch, *arguments)
    except Enough:
        return stopwatch.found
    except Exception as error:  # the others are measured all the same
        return {"error": f"{type(error).__name__}: {str(error)[:200]}"}
    return {"error": "it ended too early"}


def resnet(batch: int) -> Scenario:
    """ResNet-18 on random images in memory, of which the forget set is what `some_forgotten` says."""
    scenario = scenario_of("resnet18", batch, "fp32", 32, 4)
    return dataclasses.replace(scenario, forget=(0,), cifar_stem=True)


def some_forgotten(loaded: Data) -> Data:
    """A tenth of the images."""
    forget = torch.arange(len(loaded.train), device=loaded.device) % 10 == 0
    return dataclasses.replace(loaded, forget=forget)


def bare_steps(stopwatch: Stopwatch, scenario: Scenario, loaded: Data, option: str) -> None:
    """Those of a plain loop, until the stopwatch has enough."""
    with rounding(tf32=option == "tf32"):
        train_plainly(stopwatch, scenario, loaded, option)


@contextlib.contextmanager
def rounding(*, tf32: bool) -> Iterator[None]:
    """Context in which TensorFloat-32 is on or off; the rows that follow have torch's default."""
    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = tf32
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value


def train_plainly(stopwatch: Stopwatch, scenario: Scenario, loaded: Data, option: str) -> None:
    """Steps of a plain loop, one after the other."""
    layout = torch.channels_last if option == "channels_last" else torch.contiguous_format
    model: Any = architectures.build(scenario, 0).to(DEVICE).train().to(memory_format=layout)
    forward = torch.compile(model) if option == "compiled" else model
    fused = option == "fused"
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, 0.9, nesterov=True, weight_decay=5e-4, fused=fused)
    pixels, labels = loaded.train.images.pixels, loaded.train.labels  # type: ignore[attr-defined]
    mean, std = (torch.tensor(value, device=DEVICE).view(-1, 1, 1) for value in (MEAN, STD))
    while True:
        for rows in torch.randperm(len(labels)).to(DEVICE).split(scenario.recipe.batch_size):
            images = pixels[rows].float().div_(255).sub_(mean).div_(std).contiguous(memory_format=layout)
            optimizer.zero_grad()
            with torch.autocast(DEVICE.type, torch.bfloat16, option == "bf16"):
                logits = forward(images)
            cross_entropy(logits.float(), labels[rows]).backward()
            optimizer.step()
            stopwatch()


def engine_steps(stopwatch: Stopwatch, scenario: Scenario, loaded: Data, name: str) -> None:
    """Those of a method; what it computes before the first one is not among them."""
    cls = get(name)
    settings = {knob: 10 for knob in cls.ranges() if knob.endswith("epochs")} | {"lr": 1e-5}
    known = cls.hyperparameters()
    engine = engines.make(architectures.build(scenario, 0).to(DEVICE), loaded, scenario, seed=0)
    step = engine._step

    def stepped(losses: Any) -> None:
        step(losses)
        stopwatch()

    engine._step = stepped  # type: ignore[method-assign]
    engine.run(cls.from_config({knob: value for knob, value in settings.items() if knob in known}))


# 4: what is measured, at size


def evaluation(report: Any, options: argparse.Namespace) -> None:
    """The probes on features as those of CIFAR-10's ResNet-18 and of ImageNet's ViT-B."""
    sizes = [(2000, 32, 10), (3000, 32, 50)] if options.tiny else [(45_000, 512, 10), (1_230_000, 768, 1000)]
    for count, width, classes in sizes:
        random = torch.Generator(DEVICE).manual_seed(0)
        labels = torch.randint(classes, (count,), generator=random, device=DEVICE)
        centres = 0.25 * torch.randn(classes, width, generator=random, device=DEVICE)
        features = torch.randn(count, width, generator=random, device=DEVICE).add_(centres[labels]).relu_()
        held_out, kept = slice(0, count // 20), slice(count // 20, None)
        for name, fit in {"moments": Moments.of, "cheap": cheap, "strong": strong}.items():
            memory.reset_peak(DEVICE)
            before, started = memory.peak(DEVICE) or 0, devices.now(DEVICE)
            predict: Any = fit(features[kept], labels[kept])
            seconds, accuracy = devices.now(DEVICE) - started, None
            if name != "moments":
                accuracy = round((predict(features[held_out]) == labels[held_out]).double().mean().item(), 4)
            report.add(
                images=count,
                features=width,
                classes=classes,
                what=name,
                seconds=round(seconds, 3),
                accuracy=accuracy,
                peak_gib=round(((memory.peak(DEVICE) or 0) - before) / 2**30, 3),
                features_gib=round(features.nbytes / 2**30, 3),
            )


# 5: ViTs


def vits(report: Any, options: argparse.Namespace) -> None:
    """Images a second of a bare loop and of the engine, which take turns, in the recipe's precision."""
    cases = [("vit_base_patch16_224", 128), ("vit_large_patch16_224", 64)]
    if options.tiny:
        cases = [("vit_tiny_patch16_224", 4)]
    for precision in ("bf16",) if options.tiny else ("bf16", "fp32"):
        for architecture, batch in cases if precision == "bf16" else cases[:1]:  # the large one would take minutes
            case = vit(architecture, batch, precision, options.tiny)
            first = run(case, BARE)
            for row in (ENGINE, BARE, ENGINE, BARE)[: 4 if precision == "bf16" and not options.tiny else 1]:
                report.add(model=architecture, precision=precision, what=row, **beside(first, run(case, row), case))


def beside(first: Figures, figures: Figures, case: Case) -> dict[str, Any]:
    """Speed and memory of a run, and how far from the first one's its weights end, as a share of how far they moved."""
    apart = (figures.after - first.after).norm() / (first.after - first.before).norm()
    return {
        "images_s": round(2 * case.steps * case.scenario.recipe.batch_size / figures.seconds, 1),
        "peak_gib": round(figures.memory / 2**30, 2),
        "weights_apart": f"{apart.item():.1e}",
    }


def vit(architecture: str, batch: int, precision: Any, tiny: bool) -> Case:
    """Of engine.py, at 224 x 224."""
    size, patch, count = (32, 4, 2) if tiny else (224, 16, 15)
    return Case(scenario_of(architecture, batch, precision, size, patch), size, count, 1, 1)


# 6: decoders


def decoders(report: Any, options: argparse.Namespace) -> None:
    """Images a second from JPEGs to the device, by the number of processes that decode them."""
    photos = options.bundle / "photos" if options.bundle else Path("none")
    with tempfile.TemporaryDirectory() as directory:
        if not photos.exists():
            photos = Path(directory)
            for label in range(2 if options.tiny else 20):
                write_class(photos, label)
            photos /= "folders"
        classes = len(list((photos / "train").iterdir()))
        published.DATASETS["photos"] = folders.EncodedDataset("photos", num_classes=classes)
        scenario = Scenario(
            name="photos",
            dataset="photos",
            architecture="vit_base_patch16_224",
            recipe=Recipe(lr=0.1, epochs=1, augment=True),
            forget=(0,),
            val_share=0.2,
        )
        splits.prepare(scenario, photos)
        for processes in (1, 2) if options.tiny else (1, 2, 4, 8, 16, 24):
            split = splits.load(scenario, DEVICE, processes).train
            wanted = 32 if options.tiny else 1500 * min(processes, 4)
            rows = split.index.cpu().repeat(-(-wanted // len(split)))[:wanted]
            seeds = torch.arange(len(rows)) * 2**40

            def read(rows: Tensor, seeds: Tensor, split: Split = split) -> int:
                return sum(map(len, split.images.read(zip(rows.split(64), seeds.split(64), strict=True))))

            read(rows[:64], seeds[:64])  # starts the processes
            started = devices.now(DEVICE)
            count = read(rows, seeds)
            seconds = devices.now(DEVICE) - started
            report.add(processes=processes, images=count, images_s=round(count / seconds, 1), cores=os.cpu_count())


# 7: trials side by side


def side_by_side(report: Any, options: argparse.Namespace) -> None:
    """Images a second of 1, 2, 4, 8 processes that train a ResNet-18 at once, without and with NVIDIA's MPS."""
    numbers = (1, 2) if options.tiny else (1, 2, 4, 8)
    for mps in (False, True):
        if mps and not daemon("-d"):
            report.add(mps=True, error="nvidia-cuda-mps-control does not start")
            return
        try:
            for number in numbers:
                rates = together(number, options)
                share = sum(rates)
                report.add(processes=number, mps=mps, images_s=round(share, 1), each=[round(rate, 1) for rate in rates])
        finally:
            if mps:
                daemon("quit")


def daemon(command: str) -> bool:
    """Tell the daemon of MPS to start or to end."""
    try:
        control = ["nvidia-cuda-mps-control", *(["-d"] if command == "-d" else [])]
        given = None if command == "-d" else command
        return subprocess.run(control, input=given, text=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def together(number: int, options: argparse.Namespace) -> list[float]:
    """Images a second of each of so many processes, which begin at the same moment."""
    context = multiprocessing.get_context("spawn")
    barrier, rates = context.Barrier(number), context.SimpleQueue()
    arguments = (barrier, rates, options.tiny)
    processes = [context.Process(target=_train_along, args=arguments) for _ in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"one of {number} processes failed")
    return [rates.get() for _ in processes]


def _train_along(barrier: Any, rates: Any, tiny: bool) -> None:
    torch.set_num_threads(1)
    size, batch, count = (16, 8, 3) if tiny else (32, 128, 40)
    scenario = resnet(batch)
    loaded, times = some_forgotten(images_of(Case(scenario, size, count, 1, 1))), []

    def mark(epoch: int) -> None:
        if epoch == 1:
            barrier.wait(60)
        times.append(devices.now(DEVICE))

    engine = engines.make(architectures.build(scenario, 0).to(DEVICE), loaded, scenario, seed=0)
    engine.run(get("random_label").from_config({"epochs": 3, "lr": 1e-5}), mark)
    rates.put(2 * len(loaded.train) / (times[2] - times[0]))


# 8: CIFAR-10


def cifar10(report: Any, options: argparse.Namespace) -> None:
    """ResNet-18 by the paper's recipe, as many epochs as the time allows, in bf16; of five methods with both heads the
    published setting, and the best of a few that are drawn from its ranges, by validation, beside it.
    """
    known = SCENARIOS["cifar10-resnet18"]
    if not options.tiny:
        arrays = options.bundle / "cifar10" if options.bundle else None
        if arrays is None or not arrays.exists():
            raise ModuleNotFoundError("the bundle brings no CIFAR-10")
        read = functools.partial(read_sheets, arrays)
    else:
        read = _random_images
    published.DATASETS["cifar10"] = dataclasses.replace(published.DATASETS["cifar10"], read=read, files=False)  # type: ignore[type-var]
    epochs = 1 if options.tiny else 15
    precision: Any = "fp32" if options.tiny else "bf16"
    recipe = dataclasses.replace(known.recipe, epochs=epochs, patience=None, precision=precision)
    scenario = dataclasses.replace(known, name="cifar10-short", recipe=recipe)
    if options.tiny:
        scenario = dataclasses.replace(scenario, architecture="test_resnet", cifar_stem=False)
    carried_out_by = Options(checkpoint_s=0.0)
    for which in reference_models.REFERENCES:
        trained = json.loads(
            (reference_models.train(scenario, which, carried_out_by) / reference_models.TRAINING_FILE).read_text()
        )
        report.add(what=which, epochs=epochs, seconds=round(trained["seconds"], 1))
    reference_models.compare(scenario, carried_out_by)
    for which, row in reference_models.metrics(scenario).items():
        report.add(what=which, **{key: row[key] for key in OF_PAPER})
    names = FIVE[:1] if options.tiny else FIVE
    for round_, name, head in itertools.product(range(2 if options.tiny else 5), names, ("linear", "cmf")):
        chosen: Any = get(name)
        config = chosen.published_config(scenario, head)
        if round_:  # the first is the published one
            drawn = random_sampler.settings(chosen.ranges(head), 4, 0)
            config = config | drawn[round_ - 1]
        row, _ = run_trial(scenario, chosen.from_config(config, head=head), seed=0, options=carried_out_by)
        report.add(
            what="drawn" if round_ else "published",
            method=name,
            head=head,
            config=row["config"],
            status=row["status"],
            seconds=round(row["wall_s"], 1),
            **{key: row[key] for key in OF_PAPER},
            score=row["score"],
        )


def read_sheets(arrays: Path, directory: Path) -> arrays.Arrays:
    """CIFAR-10 as bundle.sh packs it: sheets of 50 x 50 images, and labels."""
    from PIL import Image

    found = arrays.Arrays()
    for part in ("train", "test"):
        sheets = [np.asarray(Image.open(sheet)) for sheet in sorted(arrays.glob(f"{part}-*.webp"))]
        images = [sheet.reshape(-1, 32, 50, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3) for sheet in sheets]
        found[f"{part}_images"] = np.ascontiguousarray(np.concatenate(images).transpose(0, 3, 1, 2))
        found[f"{part}_labels"] = np.load(arrays / f"{part}-labels.npy")
    return found


def _random_images(directory: Path) -> arrays.Arrays:
    random, found = np.random.default_rng(0), arrays.Arrays()
    for part, count in (("train", 400), ("test", 100)):
        found[f"{part}_images"] = random.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        found[f"{part}_labels"] = np.arange(count, dtype=np.int64) % 10
    return found


# 9 and 10: what the bundle brings


def ray(report: Any, options: argparse.Namespace) -> None:
    """Sweeps of the digits whose trials share the GPU."""
    from rich.console import Console

    from raymu.distributed.session import Resources
    from raymu.protocol import Protocol
    from raymu.tuning.driver import run_sweep
    from raymu.tuning.sweep import Sweep

    for share in (0.25,) if options.tiny else ("auto", 0.25, 1.0):
        sweep = Sweep(get("random_label"), SCENARIOS["digits"], Protocol(trials=4 if options.tiny else 8))
        gpus: Any = 0.0 if options.device == "cpu" else share
        with tempfile.TemporaryDirectory() as directory:
            started = time.monotonic()
            rows = run_sweep(sweep, Path(directory) / "sweep", Resources(gpus_per_worker=gpus), Console())
        report.add(
            gpus=share,
            trials=len(rows),
            completed=sum(row["status"] in ("completed", "stopped") for row in rows),
            shares=sorted({row["gpu_share"] for row in rows if row["gpu_share"]}),
            seconds=round(time.monotonic() - started, 1),
            errors=[row["error"] for row in rows if row["error"]][:3],
        )


def deepspeed(report: Any, options: argparse.Namespace) -> None:
    """ZeRO's stages on one GPU, beside the bare loop, and how far from it their weights end."""
    import deepspeed as _  # noqa: F401

    with tempfile.TemporaryDirectory() as directory:
        join(Path(directory), 0, 1)
        names = ["vit_tiny_patch16_224", "vit_base_patch16_224"]
        for architecture in names[:1] if options.tiny else names:
            case = vit(architecture, 4 if options.tiny else 64, "bf16", options.tiny)
            first = run(case, BARE)
            for stage in (BARE, 1, 2, 3):
                report.add(model=architecture, stage=stage, **beside(first, run(case, stage), case))
        torch.distributed.destroy_process_group()
