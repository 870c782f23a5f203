"""Where a trial stands after an epoch, kept so that a process that dies costs no more than the epoch in flight."""

import contextlib
import hashlib
import json
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor

from raymu.run import Tensors
from raymu.storage import Location, read_bytes, write_bytes
from raymu.workers import Workers

STATE = "state.json"
MISSING = bytes(32)  # in place of a hash
OF_ALL = ("weights", "best")  # what all workers have alike, and the first one writes


class State(NamedTuple):
    """Where an engine stands after an epoch.

    Attributes:
        epoch, images, spared_s: counts, see `raymu.engines.pytorch.Engine`.
        cycled: the batches that each `Run.cycle` has given so far.
        weights: the network's, buffers included.
        optimizer: this worker's part of the optimizer's state.
        best: the network's weights after the best epoch so far, of what looks for one; empty: it does not.
    """

    epoch: int
    images: int
    spared_s: float
    cycled: list[int]
    weights: Tensors
    optimizer: Tensors
    best: Tensors


@dataclass(frozen=True)
class Checkpoints:
    """A trial's directory for them. It holds the last one alone: `state.json`, written when the rest is there, and the
    directory that it names, with the network's weights, now and at its best, and every worker's part of the optimizer's
    state.

    Everything is done by all workers together.

    Attributes:
        location: the directory, one that the workers of a later try can read as well.
    """

    location: Location

    def save(self, state: State, row: dict[str, Any], workers: Workers) -> None:
        """Keep this state, with the trial's row so far, in the place of the one before; that one stays if the disk is
        full or the storage does not answer, since a trial is worth more than its checkpoint.
        """
        folder = self.location / f"epoch-{state.epoch}"
        mine = self._write(folder, f"optimizer-{workers.rank}", state.optimizer)
        digests = [bytes(one).hex() for one in workers.gather(torch.tensor([list(mine)])).tolist()]
        if workers.rank == 0:
            digests += [self._write(folder, name, getattr(state, name)).hex() for name in OF_ALL]
            if MISSING.hex() not in digests:
                with contextlib.suppress(OSError):
                    self._replace(folder, state, row, digests)

    def _replace(self, folder: Location, state: State, row: dict[str, Any], digests: list[str]) -> None:
        before = self._state()
        content = {
            "folder": folder.name,
            "epoch": state.epoch,
            "images": state.images,
            "spared_s": state.spared_s,
            "cycled": state.cycled,
            "digests": digests,
            "row": row,
        }
        sealed = {"sha256": _digest(content), "state": content}
        write_bytes(self.location, STATE, json.dumps(sealed).encode())
        if before is not None and before["folder"] != folder.name:
            folder.filesystem.delete_dir((self.location / before["folder"]).path)

    def load(self, workers: Workers) -> tuple[State, dict[str, Any]] | None:
        """The last state and row; None if there is none, it is damaged, or other workers wrote it."""
        content = workers.broadcast(self._state() if workers.rank == 0 else None)
        if content is None or len(content["digests"]) != workers.count + len(OF_ALL):
            return None
        folder, digests = self.location / content["folder"], content["digests"]
        names = {f"optimizer-{workers.rank}": digests[workers.rank]}
        names |= dict(zip(OF_ALL, digests[workers.count :], strict=True))
        tensors = [self._read(folder, name, digest) for name, digest in names.items()]
        whole = [one for one in tensors if one is not None]
        damaged = torch.tensor(len(tensors) - len(whole))
        workers.sum(damaged)
        if damaged:
            return None
        counts = {count: content[count] for count in ("epoch", "images", "spared_s", "cycled")}
        optimizer, weights, best = whole
        return State(**counts, weights=weights, optimizer=optimizer, best=best), content["row"]

    def clear(self) -> None:
        """Nothing of it is needed again."""
        with contextlib.suppress(OSError):
            self.location.filesystem.delete_dir(self.location.path)

    def _state(self) -> Any:
        """What `state.json` holds; None where it is missing, cannot be read or is damaged."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            sealed = json.loads(read_bytes(self.location, STATE))
            if sealed["sha256"] == _digest(sealed["state"]):
                return sealed["state"]
        return None

    def _write(self, folder: Location, name: str, tensors: dict[str, Tensor]) -> bytes:
        """Its SHA-256, or MISSING."""
        content = save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
        try:
            folder.filesystem.create_dir(folder.path)
            write_bytes(folder, f"{name}.safetensors", content)
        except OSError:
            return MISSING
        return hashlib.sha256(content).digest()

    def _read(self, folder: Location, name: str, digest: str) -> dict[str, Tensor] | None:
        try:
            content = read_bytes(folder, f"{name}.safetensors")
        except OSError:
            return None
        return load(content) if hashlib.sha256(content).hexdigest() == digest else None


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
