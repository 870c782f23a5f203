"""Joining a Ray cluster, and what a trial gets of it."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import ray

from raymu.engines.options import DEFAULTS, Options
from raymu.errors import InputError

CONNECT_TIMEOUT_S = 5.0
TASK_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Resources:
    """Where a sweep runs and what each trial gets.

    Attributes:
        address: of a Ray cluster to join; None joins the one of this machine (`ray start`, `RAY_ADDRESS`) or, where
            there is none, starts a local one that ends with the sweep.
        options: what carries a trial out; every worker gets as many CPU cores as it has threads.
        gpus_per_worker: GPUs, in fractions if need be; None means 1 where the cluster has any.
        concurrent: at most so many trials at once; None means as many as fit.
    """

    address: str | None = None
    options: Options = DEFAULTS
    gpus_per_worker: float | None = None
    concurrent: int | None = None

    def __post_init__(self) -> None:
        if self.gpus_per_worker is not None and self.gpus_per_worker < 0:
            raise InputError(f"gpus per worker has to be at least 0, not {self.gpus_per_worker}")
        if self.concurrent is not None and self.concurrent < 1:
            raise InputError(f"concurrent has to be at least 1, not {self.concurrent}")


class Slots(NamedTuple):
    """What a trial gets, and how many run at once.

    Attributes:
        options: what carries it out.
        bundle: what Ray reserves for each of its workers.
        number: of trials at once.
    """

    options: Options
    bundle: dict[str, float]
    number: int

    @property
    def bundles(self) -> list[dict[str, float]]:
        """Those of a trial."""
        return [self.bundle] * self.options.workers


@contextlib.contextmanager
def session(address: str | None) -> Iterator[None]:
    """Run the body on a Ray cluster that is joined, or on a local one that is started for it, unless Ray is connected
    already.

    Without an address Ray joins the cluster of `RAY_ADDRESS` or `ray start`, never the local one of another sweep.
    Token authentication is on, unless `RAY_AUTH_MODE` says otherwise. A local Ray has no dashboard.

    Raises:
        InputError: the cluster cannot be reached.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        _check_reachable(address)
    try:
        ray.init(address=address, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError, ray.exceptions.AuthenticationError) as error:
        raise InputError(f"cannot join the Ray cluster {address or 'of `ray start`'}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself goes on trying for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # a word of Ray's own, such as "auto"
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise InputError(f"no Ray cluster answers at {address}: {error}") from error


def try_ray() -> dict[str, float]:
    """Run a task on Ray and return what the cluster has ("CPU", "GPU", ...). For `raymu doctor`.

    Raises whatever stops Ray from working.
    """
    with session(None):
        ray.get(ray.remote(_alive).remote(), timeout=TASK_TIMEOUT_S)
        resources: dict[str, float] = ray.cluster_resources()
        return resources


def _alive() -> bool:
    return True


def fit_to_cluster(resources: Resources) -> Slots:
    """Fill in what the resources leave open.

    Raises:
        InputError: the cluster has too little for a single trial.
    """
    available: dict[str, float] = ray.cluster_resources()
    options, gpus = resources.options, resources.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if available.get("GPU", 0) >= 1 else 0.0
    bundle = {"CPU": float(options.threads)} | ({"GPU": gpus} if gpus else {})
    number = int(min(available.get(kind, 0) // (count * options.workers) for kind, count in bundle.items()))
    if number < 1:
        raise InputError(
            f"a trial needs {options.workers * options.threads} CPUs and {options.workers * gpus:g} GPUs; the Ray"
            f" cluster has {available.get('CPU', 0):g} and {available.get('GPU', 0):g}"
        )
    return Slots(options, bundle, min(number, resources.concurrent or number))
