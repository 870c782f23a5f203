"""How many images a second the engines train, beside a bare PyTorch loop. Run by hand, on an idle machine.

    python tests/benchmarks/engine.py

Trains a ViT, or another network, on random images that lie in memory, with SGD, by

- a bare loop (`bare`): what one writes who knows PyTorch, and nothing more. A step takes rows of a shuffled order,
  gathers their uint8 images and labels, normalises, and does forward (under autocast), cross-entropy, backward and
  optimizer step. It has no look at whether the loss is finite, no forget mask and no random number for each image;
- the one-process engine, which carries out Finetune;
- DeepSpeed at the stages of ZeRO, the same method;
- the bare loop once more: how far this is from the first says how far the machine can be trusted.

They take turns, round after round. Each begins with the same weights and takes the same batches, and has an epoch to
warm up before some that are timed; what an engine does once an epoch is included, what it does once is not. Figures are
medians over the rounds, with the smallest and the largest; relative figures compare with the bare loop of the same
round. CPU time is that of the process, which others on the machine disturb less than they disturb images a second.
`initialise` is deepspeed.initialize, the first time and later. `weights apart` is how far from the bare loop's the
weights end, as a share of how far they moved; where that is more than rounding there is an error.

Without a GPU a tiny ViT at 32 x 32 in fp32; with one ViT-B/16 and ViT-L/16 at 224 in bf16. Several workers (one for
each GPU, unless told otherwise) share every batch out; they are processes that start anew for every row. Memory is what
torch allocated on the first worker's GPU, the images included.
"""

import argparse
import gc
import importlib.metadata
import importlib.util
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector

from raymu import devices, engines, memory
from raymu.data.images import Pixels
from raymu.devices import cpu_threads
from raymu.engines import Engine, Options
from raymu.methods.finetune import Finetune
from raymu.models import architectures
from raymu.reference_models import default_device
from raymu.scenario import Recipe, Scenario
from raymu.splits import Data, HeldOut, Split

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES, LR, SEED = 1000, 1e-3, 0
TIMED = 2  # epochs, after one to warm up
BARE, ENGINE, AGAIN = "bare", "engine", "bare, again"
APART = {"fp32": 1e-3, "bf16": 0.1}  # at most, as a share of how far the weights moved

warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's calls


class Case(NamedTuple):
    """What is trained: `steps` batches an epoch."""

    scenario: Scenario
    size: int
    steps: int
    threads: int
    workers: int


class Figures(NamedTuple):
    """Of one run: seconds and CPU seconds of the timed epochs, seconds of deepspeed.initialize, peak memory in bytes,
    and all weights before and after.
    """

    seconds: float
    cpu: float
    initialise: float
    memory: int
    before: Tensor
    after: Tensor


Mark = Callable[[int], None]


def scenario_of(architecture: str, batch_size: int, precision: Any, size: int, patch: int) -> Scenario:
    """A scenario for random images; the size of images and patches is a ViT's."""
    patches = (("img_size", size), ("patch_size", patch)) if architecture.startswith("vit") else ()
    recipe = Recipe(LR, 1, batch_size=batch_size, precision=precision)
    return Scenario(name="benchmark", dataset="imagenet", architecture=architecture, model_args=patches, recipe=recipe)


def images_of(case: Case) -> Data:
    """Random images; all are to be retained."""
    random, count = torch.Generator().manual_seed(SEED), case.steps * case.scenario.recipe.batch_size
    pixels = torch.randint(256, (count, 3, case.size, case.size), generator=random, dtype=torch.uint8)
    labels = torch.randint(CLASSES, (count,), generator=random)
    device = default_device()
    train = Split(Pixels(pixels.to(device), MEAN, STD), labels.to(device), torch.arange(count, device=device))
    none = train.subset(train.index[:0])
    forget = torch.zeros(count, dtype=torch.bool, device=device)
    return Data(train, forget, train, HeldOut(none, none), HeldOut(none, none), CLASSES)


def bare(model: nn.Module, case: Case, pixels: Tensor, labels: Tensor, seeds: list[int], mark: Mark) -> None:
    """A plain loop. The order of an epoch's images follows from its seed."""
    recipe, device = case.scenario.recipe, pixels.device
    mean, std = (torch.tensor(value, device=device).view(-1, 1, 1) for value in (MEAN, STD))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, nesterov=True, weight_decay=5e-4)
    model.train()
    for epoch, seed in enumerate(seeds, start=1):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).to(device)
        for rows in order.split(recipe.batch_size):
            images = pixels[rows].float().div_(255).sub_(mean).div_(std)
            optimizer.zero_grad()
            cross_entropy(model(images), labels[rows]).backward()
            optimizer.step()
        mark(epoch)


def run(case: Case, row: str | int) -> Figures:
    """Train by a row of the table: a name, or a stage of ZeRO, whose process group has to be there."""
    gc.collect()
    device, marks, initialise = default_device(), dict[int, tuple[float, float]](), list[float]()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    data, model = images_of(case), architectures.build(case.scenario, SEED).to(device)
    before = parameters_to_vector(model.parameters()).detach().cpu()

    def mark(epoch: int) -> None:
        marks[epoch] = devices.now(device), time.process_time()

    memory.reset_peak(device)
    options = Options(threads=case.threads)
    if row in (BARE, AGAIN):
        engine = Engine(model, data, case.scenario, seed=SEED)
        seeds = [engine._batches.draw("pass", epoch, 1) for epoch in range(1, 2 + TIMED)]
        with cpu_threads(case.threads):
            bare(model, case, data.train.images.pixels, data.train.labels, seeds, mark)
    else:
        if row != ENGINE:
            options = Options(threads=case.threads, workers=case.workers, zero=row)
        engine = engines.make(model, data, case.scenario, seed=SEED, options=options)
        with cpu_threads(case.threads), timed_initialise(row, initialise):
            engine.run(Finetune(lr=LR, epochs=1 + TIMED), mark)
    peak = memory.peak(device) or 0
    after = parameters_to_vector(model.parameters()).detach().cpu()
    seconds, cpu = (end - begin for begin, end in zip(marks[1], marks[1 + TIMED], strict=True))
    return Figures(seconds, cpu, sum(initialise), peak, before, after)


@contextmanager
def timed_initialise(row: str | int, seconds: list[float]) -> Iterator[None]:
    """Note how long deepspeed.initialize takes."""
    if row == ENGINE:
        yield
        return
    import deepspeed

    whole = deepspeed.initialize

    def initialize(**arguments: Any) -> Any:
        started = time.perf_counter()
        outcome = whole(**arguments)
        seconds.append(time.perf_counter() - started)
        return outcome

    with mock.patch.object(deepspeed, "initialize", initialize):
        yield


def join(directory: Path, rank: int, size: int) -> None:
    """Become part of a process group."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, init_method=f"file://{directory}/rendezvous", rank=rank, world_size=size)


def run_in_workers(case: Case, stage: int) -> Figures:
    """As `run`, in processes of their own, each with its own GPU if there are any; the first one's figures."""
    context, processes, before = multiprocessing.get_context("spawn"), [], os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = before.split(",") if before else [str(number) for number in range(torch.cuda.device_count())]
    with tempfile.TemporaryDirectory() as directory:
        for rank in range(case.workers):
            if torch.cuda.is_available():
                os.environ["CUDA_VISIBLE_DEVICES"] = visible[rank]
            processes.append(context.Process(target=_worker, args=(Path(directory), rank, case, stage)))
            processes[-1].start()
        if before is None:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise SystemExit(f"a worker failed at stage {stage}")
        return Figures(*torch.load(Path(directory) / "figures"))


def _worker(directory: Path, rank: int, case: Case, stage: int) -> None:
    join(directory, rank, case.workers)
    figures = run(case, stage)
    if rank == 0:
        torch.save(tuple(figures), directory / "figures")
    dist.destroy_process_group()


def spread(values: list[float], form: str) -> str:
    """The median, the smallest and the largest."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} .. {max(values):{form}})"


def compare(case: Case, rows: list[str | int], repeats: int) -> None:
    """Print the table."""
    recipe, found = case.scenario.recipe, {row: list[Figures]() for row in rows}
    apart = dict.fromkeys(rows, 0.0)
    for _ in range(repeats):
        for row in rows:
            figures = run(case, row) if isinstance(row, str) or case.workers == 1 else run_in_workers(case, row)
            if row == BARE:
                expected = figures
            moved = (expected.after - expected.before).norm()
            apart[row] = max(apart[row], ((figures.after - expected.after).norm() / moved).item())
            found[row].append(figures._replace(before=torch.empty(0), after=torch.empty(0)))
    print(
        f"\n{case.scenario.architecture}, images {case.size} x {case.size}, batches of {recipe.batch_size},"
        f" {recipe.precision}, CPU threads: {case.threads}; {repeats} rounds of {TIMED} epochs of {case.steps} steps;"
        f" workers under DeepSpeed: {case.workers}"
    )
    last = "GiB" if torch.cuda.is_available() else "CPU time, relative"
    print(f"{'':<12} {'images / s':<27} {'relative':<23} {last:<23} {'initialise':<14} weights apart")
    images = TIMED * case.steps * recipe.batch_size
    for row, runs in found.items():
        pairs = list(zip(found[BARE], runs, strict=True))
        speed = spread([images / figures.seconds for figures in runs], ".1f")
        relative = spread([first.seconds / figures.seconds for first, figures in pairs], ".3f")
        cost = (
            f"{max(figures.memory for figures in runs) / 2**30:.2f}"
            if torch.cuda.is_available()
            else spread([figures.cpu / first.cpu for first, figures in pairs], ".3f")
        )
        first, *later = (figures.initialise for figures in runs)
        initialise = f"{first:.2f}, {statistics.median(later or [first]):.2f} s" if first else ""
        name = row if isinstance(row, str) else f"ZeRO {row}"
        print(f"{name:<12} {speed:<27} {relative:<23} {cost:<23} {initialise:<14} {apart[row]:.1e}", flush=True)
    if max(apart.values()) > APART[recipe.precision]:
        raise SystemExit("the weights end in different places: what is compared is not the same")


def describe() -> str:
    """The machine and what runs on it."""
    names = [name for name in ("torch", "timm", "deepspeed") if importlib.util.find_spec(name)]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    cuda = torch.cuda.is_available()
    device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}" if cuda else f"{cpu_name()}, no GPU"
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs; {device}; {versions}"


def cpu_name() -> str:
    """What the system calls its CPU."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(": ")[2] for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    """Print a table for every model."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a timm name (otherwise ViT-B/16 and ViT-L/16; without a GPU a tiny ViT)")
    parser.add_argument("--image-size", type=int, default=224 if cuda else 32)
    parser.add_argument("--patch-size", type=int, default=16 if cuda else 4, help="of a ViT")
    parser.add_argument("--batch-size", type=int, help="of all workers together (otherwise 128; ViT-L 64; on a CPU 4)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16" if cuda else "fp32")
    parser.add_argument("--steps", type=int, default=20, help="of an epoch")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--stages", type=int, nargs="*", default=[1, 2, 3], help="of ZeRO; none: without DeepSpeed")
    parser.add_argument("--workers", type=int, default=max(1, torch.cuda.device_count()), help="under DeepSpeed")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each worker")
    options = parser.parse_args()
    print(describe(), flush=True)
    stages = options.stages
    if stages and importlib.util.find_spec("deepspeed") is None:
        print("DeepSpeed is not installed: it is left out")
        stages = []
    usual = {"vit_base_patch16_224": 128, "vit_large_patch16_224": 64} if cuda else {"vit_tiny_patch16_224": 4}
    chosen = {options.model: usual.get(options.model, max(usual.values()))} if options.model else usual
    with tempfile.TemporaryDirectory() as directory:
        if stages and options.workers == 1:
            join(Path(directory), 0, 1)
        for model, batch_size in chosen.items():
            scenario = scenario_of(
                model, options.batch_size or batch_size, options.precision, options.image_size, options.patch_size
            )
            case = Case(scenario, options.image_size, options.steps, options.threads, options.workers)
            compare(case, [BARE, ENGINE, *stages, AGAIN], options.repeats)
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
