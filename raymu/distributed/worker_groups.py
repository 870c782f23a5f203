"""Several processes for one trial, on a Ray cluster. They stay together from trial to trial."""

import functools
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import ray
import torch.distributed as dist
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raymu import memory, reference_models
from raymu.distributed import nodes
from raymu.distributed.retries import Attempts, Failure
from raymu.distributed.session import Slots
from raymu.distributed.watch import Watch, at_work
from raymu.engines.options import Options
from raymu.errors import NodeError
from raymu.trial import OF_THE_MACHINE
from raymu.workers import Workers

Result = TypeVar("Result")

REMOVAL_S = 5.0  # for Ray to take back the places of what was on its way
GRACE_S = 10.0  # for workers to end after the first one, or after one of them failed


class Stopped(BaseException):
    """The first worker gave up what all of them do, on demand."""


class WorkerGroup:
    """The process that makes it, as the first worker, and an actor for each of the others, in a placement group with a
    bundle for every worker; they form the default group of torch.distributed.

    The others end with this process. One that dies takes this process with it, since it may wait for an answer that
    never comes: whoever started it has to start it again.

    Args:
        placement: where this process runs in the first bundle.

    Attributes:
        ended: whether the others are gone, since a call failed.
    """

    ended = False

    def __init__(self, placement: PlacementGroup | None) -> None:
        assert placement is not None, "workers need a placement group"
        self._size = len(placement.bundle_specs)
        self._others: list[Any] = []
        for rank, bundle in enumerate(placement.bundle_specs[1:], start=1):
            strategy = PlacementGroupSchedulingStrategy(placement, placement_group_bundle_index=rank)
            actor = ray.remote(_Worker).options(
                num_cpus=bundle.get("CPU", 0), num_gpus=bundle.get("GPU", 0), scheduling_strategy=strategy
            )
            self._others.append(actor.remote())
        with socket.socket() as free:
            free.bind(("", 0))
            address = f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"
        joined = [other.join.remote(address, rank, self._size) for rank, other in enumerate(self._others, start=1)]
        _join(address, 0, self._size)
        ray.get(joined)

    def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Let every worker call the function; return what the first one's call returns.

        Raises:
            WorkerError: another worker's call raised, and this one's may have for no other reason.
        """
        calls = [other.call.remote(function, arguments) for other in self._others]
        errors: list[BaseException] = []
        watch = threading.Thread(target=self._watch, args=(calls, errors), daemon=True)
        watch.start()
        try:
            return function(*arguments)
        finally:
            watch.join(GRACE_S)
            if errors or watch.is_alive():
                self._disband()
            if errors:
                raise WorkerError(str(errors[0])) from errors[0]

    def _disband(self) -> None:
        from raymu.engines.deepspeed import leave_group  # loads DeepSpeed, which takes seconds

        self._kill()
        leave_group()

    def _kill(self) -> None:
        self.ended = True
        for other in self._others:
            ray.kill(other)

    def _watch(self, calls: Sequence[Any], errors: list[BaseException]) -> None:
        """Wait for the others. Where one fails, end all, so that what this process waits for ends as well."""
        left = list(calls)
        while left:
            (done,), left = ray.wait(left)
            try:
                ray.get(done)
            except ray.exceptions.RayTaskError as error:
                errors.append(error)
                self._kill()
                return
            except ray.exceptions.RayError:
                if not self.ended:
                    os._exit(1)
                return


class WorkerError(RuntimeError):
    """Another worker failed; the message is its traceback."""


class _Worker:
    """A worker that is not the first."""

    def join(self, address: str, rank: int, size: int) -> None:
        _join(address, rank, size)

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        with suppress(Stopped):
            function(*arguments)


def _join(address: str, rank: int, size: int) -> None:
    reference_models.release()  # it was shared with others, and has to be loaded by all of these together
    backend = "cpu:gloo,cuda:nccl" if ray.get_gpu_ids() else "gloo"
    dist.init_process_group(backend, init_method=address, rank=rank, world_size=size)


def for_all(report: Callable[..., None]) -> Callable[..., None]:
    """A report that the first worker makes for all, who wait for it; where it raises to end the trial, all end."""

    def shared(*arguments: Any) -> None:
        workers = Workers()
        if workers.rank > 0:
            if not workers.broadcast():
                raise Stopped
            return
        try:
            report(*arguments)
        except BaseException:
            workers.broadcast(False)
            raise
        workers.broadcast(True)

    return shared


_group: WorkerGroup | None = None  # of this process


def in_group(
    driver: nodes.Driver, options: Options, what: str, function: Callable[..., Result], *arguments: Any
) -> Result:
    """Let the workers that the options ask for call the function, with the driver's cache, this process being the first
    of them; it runs in a placement group that has a bundle for each. They stay for the next call.

    Args:
        what: they work on, to whoever watches.

    Raises:
        WorkerError: see WorkerGroup.run.
        NodeError: see nodes.settle.
    """
    global _group
    call = functools.partial(_settled, driver, options.gpu_share, what, function)
    if options.stage is None:
        return call(*arguments)
    if _group is None or _group.ended:
        _group = WorkerGroup(ray.util.get_current_placement_group())
    return _group.run(call, *arguments)


def side_by_side(driver: nodes.Driver, watch: Watch, slots: Slots, calls: Sequence[tuple[Any, ...]]) -> None:
    """Make calls, each what it works on, a function and its arguments, on the cluster, as many at once as fit, each by
    the workers of a trial. One whose process dies or hangs, or that the machine fails, is made again as a trial is.

    Raises what one of them raises; NodeError if machines fail it too often.
    """
    waiting = {}
    how: dict[str, Any] = {"num_cpus": slots.bundle["CPU"], "num_gpus": slots.bundle.get("GPU", 0), "max_retries": 0}
    how |= {} if slots.options.stage is None else {"max_calls": 1}  # a group ends with its placement group
    task = ray.remote(**how)(in_group)

    def begin(call: tuple[Any, ...], attempts: Attempts) -> None:
        placement = placement_group(slots.bundles)
        strategy = PlacementGroupSchedulingStrategy(placement, placement_group_bundle_index=0)
        done = task.options(scheduling_strategy=strategy).remote(driver, slots.options, *call)
        waiting[done] = call, attempts, placement

    try:
        for call in calls:
            begin(call, Attempts(begun=1))
        while waiting:
            (done,), _ = ray.wait(list(waiting))
            call, attempts, placement = waiting.pop(done)
            remove_placement_group(placement)
            if (failure := _failure(done, watch, call[0])) is None:
                continue
            if (pause_s := attempts.fail(failure)) is None:
                raise NodeError(f"{call[0]}: {failure}; tried {attempts.begun} times")
            time.sleep(pause_s)
            begin(call, attempts)
    finally:
        left = [placement for _, _, placement in waiting.values()]
        removal = threading.Thread(target=lambda: [*map(remove_placement_group, left)], daemon=True)
        removal.start()
        removal.join(REMOVAL_S)  # Ray may have ended, by the signal that ends this


def _failure(done: Any, watch: Watch, what: str) -> Failure | None:
    """Failure that ended a call; None: it has returned. Raises the call's own error."""
    try:
        nodes.returned(done)
    except OF_THE_MACHINE as error:
        return Failure("machine", f"{type(error).__name__}: {error}")
    except ray.exceptions.RayError as error:
        reason = watch.reason(what)
        return Failure("ended", reason) if reason else Failure.of(f"{type(error).__name__}: {error}")
    return None


def _settled(
    driver: nodes.Driver, gpu_share: float, what: str, function: Callable[..., Result], *arguments: Any
) -> Result:
    with at_work(driver.signs, what):
        nodes.settle(driver)
        memory.limit(gpu_share)
        return function(*arguments)
