"""Every method ends with the same weights and metrics in one process and under DeepSpeed, at every ZeRO stage."""

import copy
import dataclasses
import functools
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from raymu import data, models, references
from raymu import method as methods
from raymu.engines.local import Engine
from raymu.engines.options import STAGES, Options
from raymu.errors import InputError
from raymu.method import Method
from raymu.scenario import SCENARIOS, Recipe
from raymu.workers import Workers

WORKERS = 2
IMAGES = 61  # so that the workers' shares differ
SCENARIO = dataclasses.replace(
    SCENARIOS["digits"],
    name="parity",
    architecture="test_vit",
    model_args=(("patch_size", 4),),
    recipe=Recipe(lr=0.05, epochs=2, batch_size=16, augment=True),
    forget=(3, 8),
)
LR = {"unsir": 1e-3, "gradient_ascent": 1e-2}  # Adam, and an ascent that must not diverge


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


def run(method: Method, original: torch.nn.Module, images: data.Data, options: Options) -> dict[str, torch.Tensor]:
    engine_class: type[Engine] = Engine
    if options.stage is not None:
        from raymu.engines.deepspeed import DeepSpeed

        engine_class = DeepSpeed
    model = copy.deepcopy(original) if method.start == "original" else models.build(SCENARIO, seed=0)
    engine = engine_class(model, images, SCENARIO, seed=3, options=options)
    engine.run(method)
    return {name: tensor.detach().clone() for name, tensor in engine.model.state_dict().items()}


def work(rank: int, directory: Path) -> None:
    """One worker's part: the same cases at every stage, compared with one process."""
    torch.set_num_threads(1)
    os.environ.update(RAYMU_CACHE=str(directory / "cache"), LOCAL_RANK=str(rank))
    whole = data.load(SCENARIO, torch.device("cpu"))
    chosen = torch.arange(IMAGES)
    alone = dataclasses.replace(whole, train=whole.train.subset(chosen), forget=whole.forget[chosen])
    original = models.build(SCENARIO, seed=1)
    Engine(original, alone, SCENARIO, seed=1).run(references.Train(lr=0.05, epochs=3))
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=WORKERS)
    shared = dataclasses.replace(alone, workers=Workers())
    for name, method in cases().items():
        expected = run(method, original, alone, Options())
        found = {}
        for stage in STAGES:
            got = run(method, original, shared, Options(workers=WORKERS, zero=stage))
            found[stage] = max((got[key] - expected[key]).abs().max().item() for key in expected)
        state = original.state_dict()
        moved = max((expected[key] - state[key]).abs().max().item() for key in expected if key in state) if method.head == "linear" else max(
            (expected[f"backbone.{key}"] - state[key]).abs().max().item() for key in state)
        print(rank, name, f"moved {moved:.1e}", {k: f"{v:.1e}" for k, v in found.items()}, flush=True)


if __name__ == "__main__":
    import tempfile
    d = Path(tempfile.mkdtemp())
    ps = [multiprocessing.get_context("spawn").Process(target=work, args=(r, d)) for r in range(2)]
    [p.start() for p in ps]; [p.join() for p in ps]
