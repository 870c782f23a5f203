"""Every method ends with the same weights in one process and under DeepSpeed with two workers, at every ZeRO stage."""

import copy
import dataclasses
import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from raymu import data, engines, models, references
from raymu import method as methods
from raymu.engines import Options
from raymu.engines.options import STAGES
from raymu.errors import InputError
from raymu.method import Method
from raymu.scenario import SCENARIOS, Recipe
from raymu.workers import ALONE, Workers

WORKERS = 2
IMAGES = 61  # so that the workers' shares differ
SCENARIO = dataclasses.replace(
    SCENARIOS["digits-vit"],
    name="parity",
    recipe=Recipe(lr=0.05, epochs=3, batch_size=16, augment=True),
    forget=(3, 8),
)
LR = {"unsir": 1e-3, "gradient_ascent": 1e-2}  # Adam, and an ascent that must not diverge; the others 0.02
# How far weights may be apart, as a share of how far they moved. Plain rounding is 1e-6. Class-mean features centre
# and scale what is rounded; conjugate gradients and Adam, where a gradient is 0 but for rounding, amplify it.
TOLERANCE = {"cmf": 5e-3, "influence": 2e-2, "unsir": 5e-2}


def cases() -> dict[str, Method]:
    """Every method with every head and trained part that it allows, for an epoch a phase, with steps that count."""
    found = {}
    for name in methods.names():
        for head, train in (("linear", "all"), ("cmf", "all"), ("linear", "classifier")):
            cls: Any = methods.get(name)
            try:
                cls.check_options(head, train)
            except InputError:
                continue
            config = {knob: LR.get(name, 0.02) for knob in cls.ranges() if knob.endswith("lr")}
            config |= {knob: 1 for knob in cls.ranges() if knob.endswith("epochs")}
            found[f"{name}-{head}-{train}"] = cls.from_config(config, head=head, train=train)
    return found


CASES = cases()
EVERY = dict.fromkeys(CASES, STAGES)
# Every kind of step at every stage (clipped, of two parts, with frozen weights, by Adam), the rest at one of them.
QUICK = {name: (place % 4,) for place, name in enumerate(CASES) if "linear-all" in name or name == "scrub-cmf-all"}
QUICK |= {"neggrad_plus-linear-all": STAGES, "salun-linear-all": STAGES}


def setting() -> tuple[torch.nn.Module, data.Data]:
    """An original that has learnt a little, and its data."""
    whole = data.load(SCENARIO, torch.device("cpu"))
    chosen = torch.arange(IMAGES)
    images = dataclasses.replace(whole, train=whole.train.subset(chosen), forget=whole.forget[chosen], workers=ALONE)
    original = models.build(SCENARIO, seed=1)
    engines.make(original, images, SCENARIO, seed=1).run(references.Train(lr=0.05, epochs=3))
    return original, images


def unlearned(
    method: Method, original: torch.nn.Module, images: data.Data, options: Options
) -> dict[str, torch.Tensor]:
    model = copy.deepcopy(original) if method.start == "original" else models.build(SCENARIO, seed=0)
    engine = engines.make(model, images, SCENARIO, seed=3, options=options)
    engine.run(method)
    return {name: tensor.detach().clone() for name, tensor in engine.model.state_dict().items()}


def in_workers(work: Callable[..., Any], directory: Path, *arguments: Any) -> list[Any]:
    """What `work(*arguments)` returns in each of the workers of a process group. It has to be JSON."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_worker, args=(rank, directory, work, arguments)) for rank in range(WORKERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * WORKERS
    return [json.loads((directory / f"{rank}.json").read_text()) for rank in range(WORKERS)]


def _worker(rank: int, directory: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=WORKERS)
    (directory / f"{rank}.json").write_text(json.dumps(work(*arguments)))
    dist.destroy_process_group()


def distances(chosen: dict[str, tuple[int, ...]]) -> dict[str, list[float]]:
    """How far the weights moved in one process, and how far from there they end at each stage, at most."""
    original, alone = setting()
    shared = dataclasses.replace(alone, workers=Workers())
    found = {}
    for name, stages in chosen.items():
        expected = unlearned(CASES[name], original, alone, Options())
        found[name] = [_apart(_backbone(expected), original.state_dict())] + [
            _apart(expected, unlearned(CASES[name], original, shared, Options(workers=WORKERS, zero=stage)))
            for stage in stages
        ]
    return found


def _apart(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    return max((tensor - others[name]).abs().max().item() for name, tensor in some.items())


def _backbone(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the wrapper that a CMF head is."""
    inner = {name.removeprefix("backbone."): tensor for name, tensor in state.items() if name.startswith("backbone.")}
    return inner or state


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "chosen", [pytest.param(QUICK, id="quick"), pytest.param(EVERY, marks=pytest.mark.long, id="every")]
)
def test_weights_are_those_of_one_process(chosen, tmp_path) -> None:
    first, second = in_workers(distances, tmp_path, chosen)
    assert first.keys() == second.keys() == chosen.keys()
    for name in chosen:
        moved, *apart = first[name]
        allowed = max(share for kind, share in {"": 1e-5, **TOLERANCE}.items() if kind in name)
        assert moved > 1e-3, name
        assert max(apart) < allowed * moved, (name, moved, apart)
        assert max(second[name][1:]) < allowed * moved, (name, moved, second[name])
