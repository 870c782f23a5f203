"""What is computed once and shared by every process: datasets, pretrained weights, references, saliency.

Everything below `root()` is derived and may be deleted at any time. An entry is a directory that appears in one
atomic rename, so nobody ever reads half of one, and a file lock keeps two processes from building the same entry.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor

VERSION = "v2"  # raise it when the meaning of anything below changes


def base() -> Path:
    """`$RAYMU_CACHE`, or `~/.cache/raymu`."""
    return Path(os.environ.get("RAYMU_CACHE") or Path.home() / ".cache" / "raymu").expanduser().absolute()


def root() -> Path:
    """The directory of this version's cache."""
    return base() / VERSION


def once(entry: Path, build: Callable[[Path], None]) -> Path:
    """Return the directory `entry`; where it is missing, let `build` fill it first.

    Args:
        entry: the directory's final path.
        build: called with an empty temporary directory to fill. If it raises, nothing is kept.
    """
    if entry.exists():
        return entry
    entry.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(entry.with_name(f".{entry.name}.lock")):
        if not entry.exists():
            unfinished = entry.with_name(f".{entry.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)  # left by a process that was killed
            unfinished.mkdir()
            build(unfinished)
            os.replace(unfinished, entry)
    return entry


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as safetensors (no pickle)."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def load_tensors(path: Path, device: torch.device) -> dict[str, Tensor]:
    """Read a safetensors file; on the CPU its pages are memory-mapped."""
    return load_file(path, device=str(device))


def save_json(path: Path, content: Any) -> None:
    """Write JSON a person can read."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def load_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text())
