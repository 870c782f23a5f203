"""Joining a Ray cluster, and what a trial gets of it."""

import contextlib
import dataclasses
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import ray
from ray._private import ray_constants, services
from ray._raylet import Config  # type: ignore[attr-defined]
from ray.util.placement_group import placement_group, remove_placement_group

from raymu.engines.options import DEFAULTS, Options
from raymu.errors import InputError
from raymu.values import NOT_NEGATIVE, POSITIVE, Bounds, conform, expanded

os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"  # a sweep says what ended it, and not what failed beside that

CONNECT_TIMEOUT_S = 5.0
TASK_TIMEOUT_S = 60.0
NODE_GROUP = "ray.io/node-group"  # a label of Ray's own
NODE_TIMEOUT_S = 900.0  # for a cloud to start a machine and set it up
LOOK_S = 1.0  # between two looks at a local Ray
TOLD_S = 5.0  # after which this process would know of a signal
ESSENTIAL = {ray_constants.PROCESS_TYPE_RAYLET, ray_constants.PROCESS_TYPE_GCS_SERVER}
MEMORY_MARGIN = 0.2  # of a GPU's memory, beyond what the first trial took
GROWTH = 1.1  # of a GPU's images a second, below which it is not worth twice the trials
LONGEST = 29  # bytes of the path in which a local Ray has its directory; a socket's path may have 107
OTHERS = 0o077  # permissions of others than the owner
MAX_PARTS = 10_000  # of a resource, to Ray


@dataclass(frozen=True)
class Resources:
    """Where a sweep runs and what each trial gets.

    Attributes:
        address: of a Ray cluster to join; None joins the one of this machine (`ray start`, `RAY_ADDRESS`) or, where
            there is none, starts a local one that ends with the sweep.
        options: what carries a trial out; every worker gets the CPU cores that they ask for.
        gpus_per_worker: GPUs, a part of one if trials share it; "auto" to find out which part (see `Sharing`);
            None means 1 where the cluster has any.
        concurrent: trials at once, at most; None means as many as fit. A cluster whose nodes come when they are needed
            grows for this number.
        timeout_s: seconds after which an attempt at a trial is ended, as one whose process died; None: never.
    """

    address: str | None = None
    options: Options = DEFAULTS
    gpus_per_worker: float | Literal["auto"] | None = None
    concurrent: int | None = None
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        conform(self, gpus_per_worker=NOT_NEGATIVE, concurrent=Bounds(1), timeout_s=POSITIVE)
        gpus = self.gpus_per_worker
        if isinstance(gpus, float) and 0 < gpus < 1 / MAX_PARTS:
            raise InputError(f"gpus per worker has to be 0 or at least {1 / MAX_PARTS:g}, not {gpus:g}")
        if isinstance(gpus, float) and gpus > 1 and gpus % 1:
            raise InputError(f"gpus per worker has to be a part of one, or a whole number, not {gpus:g}")
        if self.options.workers > 1 and gpus is not None and (gpus == "auto" or gpus % 1):
            raise InputError(f"workers of one trial cannot share a GPU; {gpus} is for trials of one worker")


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
        """Resources of a trial."""
        return [self.bundle] * self.options.workers

    def __str__(self) -> str:
        given = f"{self.options.cores} CPU" + (f", {self.bundle['GPU']:g} GPU" if "GPU" in self.bundle else "")
        workers = f"{self.options.workers} workers of " if self.options.workers > 1 else ""
        return f"trials at once: {self.number}, each with {workers}{given}"


@contextlib.contextmanager
def session(address: str | None = None) -> Iterator[None]:
    """Run the body on a Ray cluster that is joined, or on a local one that is started for it, unless Ray is connected
    already.

    Without an address Ray joins the cluster of `RAY_ADDRESS` or `ray start`, never the local one of another sweep. A
    local one listens on loopback alone, has a directory that no other user may read, and no dashboard. Token
    authentication is on, unless `RAY_AUTH_MODE` says otherwise.

    Raises:
        InputError: the cluster cannot be reached, Ray cannot start here, or its token is not this user's alone.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        _check_reachable(address)
    try:
        is_alone = services.canonicalize_bootstrap_address(address) is None  # type: ignore[arg-type]
    except ValueError as error:
        raise InputError(f"{address} is no address of a Ray cluster, such as 10.0.0.1:6379") from error
    _guard_token(is_alone)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with contextlib.ExitStack() as ended:
        directory = ended.enter_context(_directory()) if is_alone else None
        try:
            with _loopback() if is_alone or _is_local(address) else contextlib.nullcontext():
                ray.init(
                    address=address,
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    _temp_dir=directory,
                )
        except SystemExit as error:
            if error.code == signal.SIGTERM and callable(on_sigterm):  # by Ray's own handler
                on_sigterm(signal.SIGTERM, None)
            raise
        except Exception as error:  # of any kind: a node that is not there within 30 s is a bare one
            what = "Ray cannot start" if is_alone else f"cannot join the Ray cluster {address or 'of `ray start`'}"
            raise InputError(f"{what}: {error}") from error
        if is_main := threading.current_thread() is threading.main_thread():
            ended.callback(_set_again, signal.SIGTERM)
        ended.callback(ray.shutdown)
        if is_main:
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own prints a stack
        if is_alone:
            over = threading.Event()
            ended.callback(over.set)
            threading.Thread(target=_end_with_ray, args=(over, directory), daemon=True).start()
        yield


def _set_again(number: int) -> None:
    """Set Python's handler of a signal once more: Ray, when it ends, goes back to the system's and does not say so."""
    signal.signal(number, signal.getsignal(number))


def _end_with_ray(over: threading.Event, directory: str | None) -> None:
    """End this process with a line where the local Ray ends before it is `over`, for want of memory or by `ray stop`.
    Else Ray's own code ends it after a minute, and prints pages. No row is lost: each is stored when its trial ends.
    """
    node: Any = ray._private.worker._global_node
    while not over.wait(LOOK_S):
        dead = ESSENTIAL & {kind for kind, _ in node.dead_processes()}
        # A signal that ended both is told of by the main thread, which ignores further ones.
        if dead and not over.wait(TOLD_S) and signal.getsignal(signal.SIGTERM) != signal.SIG_IGN:
            said = f"Ray has ended here ({', '.join(dead)}); the same command with --resume continues"
            print(f"error: {said}", file=sys.stderr, flush=True)
            node.kill_all_processes(check_alive=False)
            shutil.rmtree(str(directory), ignore_errors=True)
            os._exit(2)


def _guard_token(make: bool) -> None:
    """Have the token of Ray's authentication, which Ray itself writes for all to read, in a file for this user alone.

    Args:
        make: whether one is made where there is none, as for a cluster that starts.

    Raises:
        InputError: it is another user's, who may let others read it, or none can be made.
    """
    Config.initialize("")  # reads RAY_AUTH_MODE anew: Ray may have been imported before raymu
    if os.environ.get("RAY_AUTH_MODE") != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = expanded(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token")
    try:
        if make and not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (
                contextlib.suppress(FileExistsError),
                open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file,
            ):
                file.write(secrets.token_hex(32))
        if path.exists() and path.stat().st_mode & OTHERS and not os.statvfs(path).f_flag & os.ST_RDONLY:
            path.chmod(0o600)  # a secret that Kubernetes mounts is read-only, and the container's alone
    except OSError as error:
        raise InputError(f"Ray's token in {path} has to be this user's alone: {error.strerror}") from error


@contextlib.contextmanager
def _directory() -> Iterator[str]:
    """A directory for a local Ray while it runs, for this user alone: where `RAY_TMPDIR` or `TMPDIR` says, unless that
    is too long for the sockets in it.

    Raises:
        InputError: there can be none.
    """
    asked = os.environ.get("RAY_TMPDIR")
    where = asked or tempfile.gettempdir()
    if len(os.fsencode(where)) > LONGEST:
        if asked:
            raise InputError(f"RAY_TMPDIR has more than {LONGEST} characters, too many for Ray's sockets: {asked}")
        where = "/tmp"
    try:
        made = tempfile.TemporaryDirectory(prefix="ray", dir=where, ignore_cleanup_errors=True)
    except OSError as error:
        raise InputError(f"Ray has no room for its files in {where} (RAY_TMPDIR): {error.strerror}") from error
    with made as directory:
        yield f"{directory}/r"  # Ray opens its own to all, and this one stays closed


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """Have a Ray that starts in the body listen on loopback alone, as it does where it knows no clusters."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _check_reachable(address: str) -> None:
    """Ray itself goes on trying for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # a word of Ray's own, such as "auto"
    try:
        _connect(host, port)
    except OSError as error:
        raise InputError(f"no Ray cluster answers at {address}: {error}") from error


def _is_local(address: str | None) -> bool:
    """Whether an address that answers is one of a Ray which listens on loopback alone, as another process's local one.
    Ray would look for it at the machine's own address.
    """
    host, _, port = (address or "").rpartition(":")
    if host not in ("localhost", "127.0.0.1"):
        return False
    try:
        _connect(services.get_node_ip_address(), port)
    except OSError:
        return True
    return False


def _connect(host: str, port: str) -> None:
    """Connect once. Raises OSError if nobody answers in time."""
    socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()


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


def fit_to_cluster(resources: Resources, wait_s: float = NODE_TIMEOUT_S) -> Slots:
    """Fill in what the resources leave open. Where the cluster has no room yet, but may grow, wait for a node.

    Args:
        wait_s: for how many seconds.

    Raises:
        InputError: the cluster has too little for a single trial, and none came, or nobody says how far it grows.
    """
    available: dict[str, float] = ray.cluster_resources()
    options, gpus = resources.options, resources.gpus_per_worker
    if gpus == "auto":
        gpus = 1.0
    elif gpus is None:
        gpus = 1.0 if available.get("GPU", 0) >= 1 else 0.0
    cores = max(options.cores or (int(gpus * _cores_per_gpu()) if gpus else 0), options.threads)
    options = dataclasses.replace(options, cores=cores, gpu_share=min(gpus, 1.0) or 1.0)
    bundle = {"CPU": float(options.threads)} | ({"GPU": gpus} if gpus else {})  # the other cores nobody waits for
    number = min(  # in whole numbers, as Ray counts: 1.0 // 0.2 is 4
        round(available.get(kind, 0) * MAX_PARTS) // round(count * options.workers * MAX_PARTS)
        for kind, count in bundle.items()
    )
    grows, asked = _has_autoscaler(), resources.concurrent
    slots = Slots(options, bundle, (asked or number) if grows else min(number, asked or number))
    if number < 1:
        if wait_s and grows and asked and _is_ready(slots, wait_s):
            return fit_to_cluster(resources, wait_s=0)  # now that the node's cores are known
        hint = f", and none came in {wait_s / 60:g} minutes" if asked else "; --concurrent says how far it shall grow"
        raise InputError(
            f"a trial needs {options.workers * bundle['CPU']:g} CPUs and {options.workers * gpus:g} GPUs; the Ray"
            f" cluster has {available.get('CPU', 0):g} and {available.get('GPU', 0):g}" + (hint if grows else "")
        )
    return slots


def _cores_per_gpu() -> float:
    """CPU cores for each GPU, on the node that has the fewest; 0 where no node has a GPU."""
    found = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    return min((float(its.get("CPU", 0) / its["GPU"]) for its in found), default=0.0)


class Sharing:
    """How many trials share a GPU, found out by trials: first each has one for itself, then twice as many share it, and
    so on, as long as its memory has room and it gets through more images a second.

    Attributes:
        trials: that share one from now on.
        is_found: whether that stays so.
    """

    def __init__(self) -> None:
        self.trials, self.is_found = 1, False
        self._tried = [(0, 0.0)]  # how many shared one, and its images a second
        self._room = 1

    def settle(self, trials: int) -> None:
        """Keep this number for good."""
        self.trials, self.is_found = trials, True

    def learn(self, rate: float | None, used: float | None) -> None:
        """Take in what trials showed that had the present part.

        Args:
            rate: images a second of one, while all of them ran; None: not all of them trained, perhaps since they had
                too little memory.
            used: the share of a GPU's memory that was taken, which is asked for the first time; None: not known.
        """
        before, speed = self._tried[-1]
        if before == 0 and (rate is None or not used):
            return
        if rate is None:
            self.settle(before)
            return
        self._tried.append((self.trials, self.trials * rate))
        if before == 0:
            self._room = max(1, int(1 / ((used or 1.0) * (1 + MEMORY_MARGIN))))
        elif self._tried[-1][1] < GROWTH * speed:
            self.settle(before)
            return
        self.is_found = self.trials >= self._room
        self.trials = min(2 * self.trials, self._room)

    @property
    def part(self) -> float:
        """Of a GPU, for each trial: one that Ray knows."""
        return int(MAX_PARTS / self.trials) / MAX_PARTS

    def __str__(self) -> str:
        tried = ", ".join(f"{trials} on a GPU: {speed:.0f} images/s" for trials, speed in self._tried[1:])
        return f"{tried}; from now on {self.trials}"


def _has_autoscaler() -> bool:
    """Whether `ray up` or KubeRay started the cluster: they name the kinds of its nodes."""
    return any(NODE_GROUP in node["Labels"] for node in ray.nodes() if node["Alive"])


def _is_ready(slots: Slots, wait_s: float) -> bool:
    """Whether there is room for a trial in time; asking for it is what an autoscaler goes by."""
    room = placement_group(slots.bundles)
    try:
        ready: bool = room.wait(wait_s)
        return ready
    finally:
        remove_placement_group(room)
