"""What reading a large dataset costs. Run by hand, on an idle machine.

    python tests/benchmarks/imagenet.py /tmp/imagenet

Makes a simulated ImageNet in the directory, unless it is there (5 GB; some minutes): 22,000 JPEGs of 1,000 classes, as
large as ImageNet's (500 x 375, about 110 KB), once as folders and once as shards. Then, side by side: the time to index
them; images a second of the loader, on shards and on folders, and of torchvision's ImageFolder with a DataLoader, with
the same transform, batch size and number of processes, taking turns; resident memory through a pass; the time to the
first batch of ten classes that have to be forgotten; and the share of its time that a model waits for images.
"""

import argparse
import io
import multiprocessing
import os
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from raymu import devices, reference_models, splits
from raymu.models import architectures
from raymu.scenario import Recipe, Scenario

CLASSES, PER_CLASS, PER_SHARD = 1000, {"train": 20, "val": 2}, 1000
BATCH = 128
DEVICE = reference_models.default_device()


# The simulated ImageNet


def field(random: np.random.Generator) -> np.ndarray:
    """Noise (375, 500, 3) whose power falls with frequency as a photograph's does, of mean 0 and variance 1."""
    rows, columns = np.fft.fftfreq(375)[:, None], np.fft.rfftfreq(500)
    spectrum = np.fft.rfft2(random.standard_normal((3, 375, 500))) / np.maximum(np.hypot(rows, columns), 2e-3)
    grey = np.fft.irfft2(spectrum, (375, 500))
    grey = grey.mean(0, keepdims=True) * 2 + grey  # colours go together
    return ((grey - grey.mean()) / grey.std()).transpose(1, 2, 0).astype(np.float32)


def write_class(directory: Path, label: int) -> None:
    """All images of a class, as folders."""
    random = np.random.default_rng(label)
    fields = [field(random) for _ in range(4)]
    for part, count in PER_CLASS.items():
        folder = directory / "folders" / part / f"n{label:08d}"
        folder.mkdir(parents=True)
        for number in range(count):
            one, other = (fields[index] for index in random.choice(4, 2, replace=False))
            other = np.roll(other, tuple(random.integers(0, 375, 2)), (0, 1))
            texture = random.normal(0, 6, one.shape[:2])[..., None]
            pixels = 120 + 35 * one + 35 * other + texture
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / f"n{label:08d}_{part}{number}.JPEG", quality=87)


def write_shards(directory: Path) -> None:
    """The same images in random order, as WebDataset keeps them."""
    (directory / "shards").mkdir()
    for part in PER_CLASS:
        files = sorted((directory / "folders" / part).glob("*/*.JPEG"))
        order = np.random.default_rng(0).permutation(len(files))
        for number, chosen in enumerate(np.split(order, range(PER_SHARD, len(files), PER_SHARD))):
            with tarfile.open(directory / "shards" / f"{part}-{number:04d}.tar", "w") as archive:
                for index in chosen:
                    archive.add(files[index], f"{files[index].stem}.jpg")
                    label = str(int(files[index].parent.name[1:])).encode()
                    member = tarfile.TarInfo(f"{files[index].stem}.cls")
                    member.size = len(label)
                    archive.addfile(member, io.BytesIO(label))


def make(directory: Path) -> None:
    """Both forms, unless they are there."""
    if (directory / "complete").exists():
        return
    for part in ("folders", "shards"):
        shutil.rmtree(directory / part, ignore_errors=True)
    with multiprocessing.get_context("spawn").Pool() as pool:
        pool.starmap(write_class, ((directory, label) for label in range(CLASSES)))
    write_shards(directory)
    (directory / "complete").touch()


# What is measured


def load(directory: Path, form: str, scenario: Scenario, processes: int) -> splits.Data:
    splits.prepare(scenario, directory / form)
    return splits.load(scenario, DEVICE, processes)


def batches(
    loaded: splits.Data, rows: Tensor, seed: int, size: int = BATCH, count: int | None = None
) -> Iterator[Tensor]:
    """Shuffled, augmented images of the training split, as a method reads them; the first so many."""
    random, split = torch.Generator().manual_seed(seed), loaded.train
    chosen = split.index.cpu()[rows.cpu()]
    chosen = chosen[split.images.shuffle(chosen, random)][:count]
    seeds = torch.randint(2**62, (len(chosen),), generator=random)
    return split.images.read(zip(chosen.split(size), seeds.split(size), strict=True))


def image_folder(directory: Path, scenario: Scenario) -> torch.utils.data.Dataset:
    from timm.data import create_transform
    from torchvision.datasets import ImageFolder

    options = {"is_training": True, "color_jitter": None, "auto_augment": None}
    return ImageFolder(directory / "folders" / "train", create_transform(**scenario.transform(), **options))


def loader(source: torch.utils.data.Dataset, processes: int, count: int) -> Iterable:
    """Its images, in random order; the first so many: what a pass reads ahead would disturb the next measurement."""
    return torch.utils.data.DataLoader(
        source,
        BATCH,
        sampler=torch.utils.data.RandomSampler(source, num_samples=count),
        num_workers=processes,
        persistent_workers=True,
    )


class Speed(NamedTuple):
    """Images a second, and CPU time an image in ms of all processes, which others on the machine disturb less."""

    rate: float
    cpu: float


def speed(images: Iterable[Tensor]) -> Speed:
    """Over all these images."""
    started, before = time.perf_counter(), sum(family(cpu_seconds))
    seen = sum(len(batch) for batch in images)
    return Speed(seen / (time.perf_counter() - started), 1e3 * (sum(family(cpu_seconds)) - before) / seen)


def family(of: Callable[[int], float], process: int | None = None) -> tuple[float, float]:
    """A figure of this process, and the sum of it over all it started."""
    process = process or os.getpid()
    threads = Path(f"/proc/{process}/task").glob("*/children")
    children = [int(child) for thread in threads for child in thread.read_text().split()]
    return of(process), sum(sum(family(of, child)) for child in children)


def cpu_seconds(process: int) -> float:
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def resident(process: int) -> float:
    """Memory in MiB, of which what is shared counts in parts (PSS)."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def waiting(images: Iterator[Tensor], compute: float | torch.nn.Module) -> tuple[float, float]:
    """The share of the time that a model waits for images, and images a second. The first batch does not count."""
    first = next(images)
    waited, seen, started = 0.0, 0, time.perf_counter()
    batch: Tensor | None = first
    while batch is not None:
        if isinstance(compute, float):
            time.sleep(len(batch) / compute)
        else:
            compute(batch).square().mean().backward()
        seen += len(batch)
        before = time.perf_counter()
        batch = next(images, None)
        waited += time.perf_counter() - before
    whole = devices.now(DEVICE) - started
    return waited / whole, seen / whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--images", type=int, default=1280, help="a measurement of speed")
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    make(options.directory)
    sizes = [path.stat().st_size for path in (options.directory / "folders").rglob("*.JPEG")]
    print(f"{len(sizes)} images of {statistics.mean(sizes) / 1e3:.0f} KB, {CLASSES} classes")
    scenario = Scenario(
        name="imagenet-simulated",
        dataset="imagenet",
        architecture="vit_small_patch16_224",
        recipe=Recipe(lr=0.1, epochs=1, augment=True),
        forget=tuple(range(0, CLASSES, CLASSES // 10)),
    )
    with tempfile.TemporaryDirectory() as cache:
        os.environ["RAYMU_CACHE"] = cache
        measure(options, scenario)


def measure(options: argparse.Namespace, scenario: Scenario) -> None:
    directory, processes = options.directory, options.processes
    ours = {}
    for form in ("folders", "shards"):
        started = time.perf_counter()
        ours[form] = load(directory, form, scenario, processes)
        built = time.perf_counter() - started
        started = time.perf_counter()
        ours[form] = load(directory, form, scenario, processes)
        print(f"index and split of {form}: {built:.2f} s, again {time.perf_counter() - started:.2f} s")
    one, other = (ours[form].train for form in ours)
    assert set(one.images.keys[one.index.cpu().numpy()]) == set(other.images.keys[other.index.cpu().numpy()])

    started = time.perf_counter()
    loaded = splits.load(scenario, DEVICE, processes)
    first = next(batches(loaded, loaded.forget.nonzero().squeeze(1), 0))
    print(f"from nothing to the first {len(first)} of the {int(loaded.forget.sum())} images of 10 classes:", end=" ")
    print(f"{time.perf_counter() - started:.2f} s, of which the processes' start is most", end="; ")
    started = time.perf_counter()
    next(batches(loaded, loaded.forget.nonzero().squeeze(1), 1))
    print(f"once they run {time.perf_counter() - started:.2f} s")

    theirs = loader(image_folder(directory, scenario), processes, options.images)
    speeds: dict[str, list[Speed]] = {"ImageFolder": [], "shards": [], "folders": []}
    every = torch.arange(len(loaded.train))
    for repetition in range(-1, options.repetitions):  # the first starts the processes, and does not count
        speeds["ImageFolder"].append(speed(images for images, _ in theirs))
        for form, loaded in ours.items():
            speeds[form].append(speed(batches(loaded, every, repetition + 1, count=options.images)))
    speeds = {name: found[1:] for name, found in speeds.items()}
    print(f"images/s, {processes} processes, batches of {BATCH}, {options.images} images a measurement:")
    for name, found in speeds.items():
        rate, cpu = (statistics.median(column) for column in zip(*found, strict=True))
        each = " ".join(f"{one.rate:.0f}" for one in found)
        print(f"  {name:12} median {rate:4.0f} images/s, {cpu:.2f} ms of CPU an image   ({each})")
    del theirs

    print("memory (PSS, MiB) of this process and of those that decode, through a pass over the training set:")
    seen, step = 0, len(every) // 6
    for number, images in enumerate(batches(ours["shards"], every, 0)):
        if seen // step != (seen + len(images)) // step or number == 4:
            print("  after {:6d} images: {:5.0f} + {:5.0f}".format(seen + len(images), *family(resident)))
        seen += len(images)

    rate = statistics.median(one.rate for one in speeds["shards"])
    pixels = torch.zeros((BATCH, *loaded.train.images.shape), dtype=torch.uint8, device=DEVICE)
    started = time.perf_counter()
    for _ in range(10):
        loaded.train.images.normalise(pixels)
    took = 1e3 * (time.perf_counter() - started) / 10 / BATCH
    print(f"the share of time that a model waits for images ({took:.2f} ms an image are for normalising them here):")
    for share in (0.5, 0.8, 1.0):
        images = batches(ours["shards"], every, 0, count=2 * options.images)
        found, reached = waiting(images, share * rate)
        print(f"  one that takes {share * rate:4.0f} images/s (it sleeps): {found:6.1%}, {reached:.0f} images/s")
    torch.set_num_threads(processes)
    model = architectures.build(scenario, 0).to(DEVICE)
    size, count = (BATCH, 2 * options.images) if DEVICE.type == "cuda" else (16, 96)
    found, reached = waiting(batches(ours["shards"], every, 0, size=size, count=count), model)
    print(f"  a ViT-S that is trained here ({DEVICE.type}): {found:6.1%}, {reached:.1f} images/s")


if __name__ == "__main__":
    main()
