"""How a trial is carried out. It changes its speed and memory, and of its figures the last digits."""

import json
from dataclasses import dataclass
from typing import Any

from raymu.errors import InputError
from raymu.values import NOT_NEGATIVE, SHARE, Bounds, checked, conform, unknown

STAGES = (0, 1, 2, 3)
MOST = 4096  # threads or workers, of which no machine has more
ENGINES = {"pytorch": None, **{f"zero-{stage}": stage for stage in STAGES}}  # ZeRO's stage, by the word in rows
DECIDED = {  # by the method, the scenario or the engine
    "optimizer": "the method chooses it",
    "scheduler": "the method chooses the learning rate",
    "gradient_clipping": "the method clips",
    "gradient_accumulation_steps": "a step of a method is one step",
    "train_batch_size": "the scenario's recipe says it",
    "train_micro_batch_size_per_gpu": "the scenario's recipe says it",
    "fp16": "the scenario's recipe says the precision",
    "bf16": "the scenario's recipe says the precision",
    "torch_autocast": "the scenario's recipe says the precision",
}
PASSED = (  # of a DeepSpeed configuration: what changes speed and memory alone
    "zero_optimization",
    "aio",
    "comms_logger",
    "dump_state",
    "flops_profiler",
    "gradient_predivide_factor",
    "memory_breakdown",
    "prescale_gradients",
    "wall_clock_breakdown",
)
INEXACT = ("zenflow", "zero_quantized_gradients", "zero_quantized_nontrainable_weights", "zero_quantized_weights")


@dataclass(frozen=True)
class Options:
    """What carries out a trial.

    Attributes:
        threads: CPU threads of each worker.
        workers: processes, each with its share of every batch, and with its own GPU where there are any.
        zero: stage of DeepSpeed's ZeRO, what is shared out among the workers while a method trains: 0 nothing, 1 the
            optimizer's state, 2 gradients, too, 3 weights, too. None: 1 where there are several workers; where there is
            one, PyTorch alone.
        offload: keep the optimizer's state in the CPU's memory.
        checkpointing: compute activations anew in the backward pass instead of keeping them.
        deepspeed: a DeepSpeed configuration, as JSON, that replaces the one made from `zero` and `offload`. Its fields
            are among `PASSED`.
        checkpoint_s: seconds after which the end of an epoch is worth a checkpoint.
        cores: CPU cores of each worker, for what changes no figure: the processes that decode its images, and the
            threads of an offloaded optimizer's step. None: on GPUs the node's cores per GPU, else as many as threads.
        gpu_share: the share of a GPU, and of its memory, that a worker may use.

    Raises:
        InputError: no such stage, a configuration with a field that is not passed on, or both a configuration and what
            it replaces.
    """

    threads: int = 1
    workers: int = 1
    zero: int | None = None
    offload: bool = False
    checkpointing: bool = False
    deepspeed: str | None = None
    checkpoint_s: float = 30.0
    cores: int | None = None
    gpu_share: float = 1.0

    def __post_init__(self) -> None:
        stages = Bounds(min(STAGES), max(STAGES))
        several = dict.fromkeys(("threads", "workers", "cores"), Bounds(1, MOST))
        conform(self, zero=stages, checkpoint_s=NOT_NEGATIVE, gpu_share=SHARE, **several)
        if self.offload and not self.stage:
            raise InputError("offload needs ZeRO stage 1, 2 or 3")
        if self.deepspeed is not None:
            if self.zero is not None or self.offload:
                raise InputError("a DeepSpeed configuration says the ZeRO stage and what is offloaded itself")
            _check(self._given(), stages)

    @property
    def stage(self) -> int | None:
        """Of ZeRO; None: DeepSpeed is not used."""
        if self.deepspeed is not None:
            return int(self._given().get("zero_optimization", {}).get("stage", 0))  # looked at by `_check`
        return (1 if self.workers > 1 else None) if self.zero is None else self.zero

    @property
    def engine(self) -> str:
        """In a word, as it stands in rows: "pytorch", or "zero-" and the stage."""
        return "pytorch" if self.stage is None else f"zero-{self.stage}"

    @property
    def deepspeed_config(self) -> dict[str, Any]:
        """The user's, or one that is made from the other attributes."""
        if self.deepspeed is not None:
            return self._given()
        sharding: dict[str, Any] = {"stage": self.stage}
        if self.offload:
            sharding["offload_optimizer"] = {"device": "cpu"}
        return {"zero_optimization": sharding}

    def _given(self) -> dict[str, Any]:
        try:
            config = json.loads(self.deepspeed or "")
        except ValueError as error:
            raise InputError(f"DeepSpeed configuration: {error}") from error
        if not isinstance(config, dict):
            raise InputError("a DeepSpeed configuration has to be a JSON object")
        return config


def _check(config: dict[str, Any], stages: Bounds) -> None:
    """InputError for what is not passed on: DeepSpeed itself takes no notice of a field that it does not know."""
    for field in config:
        if field in DECIDED:
            raise InputError(f"DeepSpeed configuration: leave {field} out, {DECIDED[field]}")
        if field not in PASSED:
            raise InputError(unknown("field of a DeepSpeed configuration", field, list(PASSED)))
    sharding = config.get("zero_optimization", {})
    if not isinstance(sharding, dict):
        raise InputError(f"zero_optimization has to be an object, not {sharding!r}")
    checked("zero_optimization.stage", sharding.get("stage", 0), int, stages)
    if inexact := [field for field in INEXACT if sharding.get(field)]:
        raise InputError(f"DeepSpeed configuration: leave {inexact[0]} out, the weights would be others")


DEFAULTS = Options()
