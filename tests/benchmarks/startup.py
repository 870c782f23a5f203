"""What it takes until a trial of two workers trains: by Ray Train, by a new worker group, and by one that stayed.

Run it as `python tests/benchmarks/startup.py`. Each line is the median over rounds that alternate between the three.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from raymu import engines, splits
from raymu.distributed.nodes import Driver, driving
from raymu.distributed.session import session
from raymu.distributed.worker_groups import in_group
from raymu.engines import Options
from raymu.methods.finetune import Finetune
from raymu.models import architectures
from raymu.scenario import SCENARIOS
from raymu.storage import locate
from raymu.workers import Workers

SCENARIO = SCENARIOS["digits-vit"]


class Ready(BaseException):
    """The first step would be next."""


def start(options: Options) -> None:
    """Everything that a trial does before its first step."""
    torch.set_num_threads(options.threads)
    images = dataclasses.replace(splits.load(SCENARIO, torch.device("cpu")), workers=Workers())
    engine = engines.make(architectures.build(SCENARIO, seed=0), images, SCENARIO, seed=0, options=options)

    def stop(step: object) -> None:
        raise Ready

    engine._step = stop  # type: ignore[assignment, method-assign]
    try:
        engine.run(Finetune(epochs=1))
    except Ready:
        return


class First:
    """What an actor of Tune is: the process of a trial's first worker."""

    def start(self, driver: Driver, options: Options) -> None:
        in_group(driver, options, "start", start, options)


def main() -> None:
    """Print the table."""
    import ray  # after raymu, which says that Ray asks for a token
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--zero", type=int, default=2)
    given = arguments.parse_args()
    options = Options(workers=2, zero=given.zero)

    def by_ray_train() -> None:
        scaling = ScalingConfig(num_workers=options.workers)
        run = RunConfig(storage_path=tempfile.mkdtemp(), name="startup")
        TorchTrainer(lambda: start(options), scaling_config=scaling, run_config=run).fit()

    def by(driver: Driver, first: Any) -> Callable[[], None]:
        return lambda: ray.get(first.start.remote(driver, options))

    took: dict[str, list[float]] = {"Ray Train": [], "a new worker group": [], "one that stayed": []}

    def measure(kind: str, begin: Callable[[], None]) -> None:
        before = time.perf_counter()
        begin()
        took[kind].append(time.perf_counter() - before)

    with session(None), tempfile.TemporaryDirectory() as shared, driving(locate(shared), None) as driver:
        for _ in range(given.rounds):
            measure("Ray Train", by_ray_train)
            placement = placement_group([{"CPU": 1}] * options.workers)
            strategy = PlacementGroupSchedulingStrategy(placement, placement_group_bundle_index=0)
            first = ray.remote(First).options(num_cpus=1, scheduling_strategy=strategy).remote()
            measure("a new worker group", by(driver, first))
            measure("one that stayed", by(driver, first))
            remove_placement_group(placement)
    for kind, seconds in took.items():
        print(f"{kind:20} {statistics.median(seconds):6.2f} s  ({', '.join(f'{one:.2f}' for one in seconds)})")


if __name__ == "__main__":
    main()
