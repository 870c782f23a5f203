"""A trial whose process dies goes on from its last epoch and ends as one that nothing happened to."""

import dataclasses

import pytest
from test_parity import CASES, SCENARIO, in_workers, setting

from raymu import engines, models
from raymu.checkpoint import Checkpoints
from raymu.engines import Engine, Options
from raymu.results.store import locate
from raymu.workers import Workers


class Killed(BaseException):
    """What ends a process in these tests."""


def lengthened(name: str):
    """Three epochs; of two phases three each."""
    method = CASES[name]
    return dataclasses.replace(method, **{knob: 3 for knob in method.ranges() if knob.endswith("epochs")})


def interrupted(name: str, options: Options, images, original, place) -> list[float]:
    """How far the weights of a run that was interrupted at every epoch end from those of one that was not."""
    method, workers = lengthened(name), Workers()

    def start() -> Engine:
        model = models.build(SCENARIO, seed=0)
        if method.start == "original":
            model.load_state_dict(original.state_dict())
        return engines.make(model, images, SCENARIO, seed=3, options=options)

    whole = start()
    whole.run(method)
    expected = whole.model.state_dict()
    apart = []
    for last in range(1, method.total_epochs + 1):
        checkpoints = Checkpoints(locate(place / f"{name}-{options.engine}-{last}"))
        first = start()

        def die(epoch: int, first=first, checkpoints=checkpoints, last=last) -> None:
            if epoch == last:
                checkpoints.save(first.state(), {}, workers)
                raise Killed

        with pytest.raises(Killed):
            first.run(method, die)
        state, _ = checkpoints.load(workers)
        second, ends = start(), []
        second.resume(state)
        second.run(method, ends.append)
        assert ends == list(range(last + 1, method.total_epochs + 1))
        assert (second.epoch, second.images) == (whole.epoch, whole.images)
        got = second.model.state_dict()
        apart.append(max((got[key] - expected[key]).abs().max().item() for key in expected))
    return apart


@pytest.mark.parametrize("name", ["salun-cmf-all", "neggrad_plus-linear-all", "scrub-linear-all", "unsir-linear-all"])
def test_an_engine_goes_on_where_another_stood(name, tmp_path) -> None:
    """To the bit: momentum, frozen weights, the place in an endless cycle, the teacher, the second of two phases."""
    original, images = setting()
    assert set(interrupted(name, Options(), images, original, tmp_path)) == {0.0}


def sharded(directory: str) -> list[float]:
    from pathlib import Path

    original, images = setting()
    shared = dataclasses.replace(images, workers=Workers())
    return [
        max(interrupted(name, Options(workers=2, zero=stage), shared, original, Path(directory)))
        for name, stage in (
            ("neggrad_plus-linear-all", 0),
            ("salun-linear-all", 1),
            ("unsir-linear-all", 2),
            ("salun-linear-all", 3),
        )
    ]


def test_workers_go_on_with_their_parts_of_the_optimizer(tmp_path) -> None:
    for apart in in_workers(sharded, tmp_path, str(tmp_path)):
        assert max(apart) == 0.0
