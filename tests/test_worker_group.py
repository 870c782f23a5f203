"""Workers of one trial on a real Ray: they stay together, and none waits for one that is gone."""

import dataclasses
import errno
import os
import signal
import sys
import time
from collections.abc import Iterator

import pytest
import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from test_parity import CASES, SCENARIO, setting, unlearned

from raymu import reference_models
from raymu.distributed import retries
from raymu.distributed.nodes import Driver, driving
from raymu.distributed.session import Slots, session
from raymu.distributed.watch import Watch
from raymu.distributed.worker_groups import WorkerError, for_all, in_group, side_by_side
from raymu.engines import Options
from raymu.errors import NodeError
from raymu.scenario import Recipe
from raymu.storage import locate
from raymu.workers import Workers

pytestmark = pytest.mark.cluster
OPTIONS = Options(workers=2)
for module in (__name__, "test_parity"):
    ray.cloudpickle.register_pickle_by_value(sys.modules[module])  # processes of Ray do not find the tests


@ray.remote(num_cpus=1, max_restarts=0)
class First:
    """A process that is the first worker, as an actor of Tune is."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def do(self, function, *arguments):
        return in_group(self._driver, OPTIONS, "test", function, *arguments)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    with session(None), driving(locate(tmp_path_factory.mktemp("shared")), None) as driver:
        yield driver


@pytest.fixture
def watch(driver: Driver) -> Iterator[Watch]:
    with Watch(driver.signs) as watch:
        yield watch


@pytest.fixture
def first(driver):
    placement = placement_group([{"CPU": 1}] * 2)
    strategy = PlacementGroupSchedulingStrategy(placement, placement_group_bundle_index=0)
    yield First.options(scheduling_strategy=strategy).remote(driver)
    remove_placement_group(placement)


def call(first, function, *arguments):
    return ray.get(first.do.remote(function, *arguments), timeout=150)


def total() -> tuple[float, int]:
    """The sum of what workers have, and this one's process."""
    mine = torch.tensor(float(Workers().rank + 1))
    Workers().sum(mine)
    return mine.item(), os.getpid()


def pids() -> list[int]:
    return Workers().gather(torch.tensor([os.getpid()])).tolist()


def test_all_call_and_stay(first) -> None:
    assert call(first, total)[0] == 3
    before = call(first, pids)
    assert len(set(before)) == 2
    assert call(first, pids) == before


def fails_in(rank: int) -> float:
    if Workers().rank == rank:
        raise ValueError(f"no luck in {rank}")
    return total()[0]


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_fails_fails_all_and_the_next_call_has_new_ones(first, rank) -> None:
    """The others would wait for it in a sum."""
    before = call(first, pids)
    with pytest.raises((WorkerError, ValueError), match=f"no luck in {rank}"):
        call(first, fails_in, rank)
    after = call(first, pids)
    assert after[0] == before[0]
    assert after[1] != before[1]


def dies_in(rank: int) -> float:
    if Workers().rank == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    return total()[0]


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_dies_takes_all_with_it(first, rank) -> None:
    """Whoever started the trial, Tune, starts it again."""
    before = call(first, pids)
    with pytest.raises(ray.exceptions.RayActorError):
        call(first, dies_in, rank)
    for pid in before:
        assert not _lives(pid)


def _lives(pid: int) -> bool:
    for _ in range(50):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.1)
    return True


def reports(stop_at: int) -> list[int]:
    seen = []

    def report(number: int) -> None:
        seen.append(number)
        if number == stop_at:
            raise SystemExit

    report_for_all = for_all(report)
    try:
        for number in range(3):
            report_for_all(number)
    except SystemExit:
        seen.append(-1)
    return seen


@pytest.mark.long
def test_what_ends_the_first_ends_all(first) -> None:
    before = call(first, pids)
    assert call(first, reports, 7) == [0, 1, 2]
    assert call(first, reports, 1) == [0, 1, -1]
    assert call(first, pids) == before  # for the next trial


def trains() -> float:
    original, images = setting()
    got = unlearned(CASES["finetune-linear-all"], original, dataclasses.replace(images, workers=Workers()), OPTIONS)
    return sum(tensor.sum().item() for tensor in got.parameters())


@pytest.mark.long
def test_deepspeed_works_in_a_second_group(first) -> None:
    before = call(first, trains)
    with pytest.raises(WorkerError):
        call(first, fails_in, 1)
    assert call(first, trains) == before


def loads() -> float:
    scenario = dataclasses.replace(SCENARIO, name="loads", recipe=Recipe(lr=0.05, epochs=1))
    loaded = reference_models.load(scenario, torch.device("cpu"), OPTIONS)
    count = torch.ones(())
    loaded.data.workers.sum(count)
    return count.item()


@pytest.mark.long
def test_a_new_group_loads_what_only_its_first_worker_has(first) -> None:
    """The others would wait for it to say whether references have to be trained."""
    assert call(first, loads) == call(first, loads) == 2
    with pytest.raises(WorkerError):
        call(first, fails_in, 1)
    assert call(first, loads) == 2


def write(directory: str, name: str) -> None:
    if Workers().rank == 0:
        with open(f"{directory}/{name}", "w") as file:
            file.write(str(total()))
    else:
        total()


@pytest.mark.long
def test_calls_side_by_side(driver, watch, tmp_path) -> None:
    slots = Slots(OPTIONS, {"CPU": 1.0}, 1)
    side_by_side(driver, watch, slots, [(name, write, str(tmp_path), name) for name in "abc"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
    with pytest.raises(Exception, match="no luck in 1"):
        side_by_side(driver, watch, slots, [("test", fails_in, 1)])


def has_room_after(refusals: int, directory: str) -> None:
    tries = len(os.listdir(directory))
    with open(f"{directory}/{tries}", "w"):
        pass
    if tries < refusals:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_call_that_the_machine_fails_is_made_again(driver, watch, tmp_path, monkeypatch) -> None:
    """As a trial is: references are trained by such calls, and a sweep is not over for an outage."""
    monkeypatch.setattr(retries, "RETRIES", 3)  # Ray may give a process to a call that another test is about to end
    monkeypatch.setattr(retries, "PAUSES_S", (0.0, 0.0, 0.0))
    slots = Slots(Options(), {"CPU": 1.0}, 1)
    side_by_side(driver, watch, slots, [("test", has_room_after, 2, str(tmp_path))])
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(NodeError, match=r"^test: OSError: .*No space left on device; tried 4 times"):
        side_by_side(driver, watch, slots, [("test", has_room_after, 9, str(tmp_path))])
    assert len(list(tmp_path.iterdir())) in (6, 7)
