"""The engine of several workers: every one has its share of each batch, and DeepSpeed shards what training needs."""

import contextlib
import copy
import logging
import os
from collections.abc import Iterator
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.config import DeepSpeedConfig
from pydantic import ValidationError
from torch import Tensor, nn

from raymu import devices
from raymu.engines.gradients import clipping
from raymu.engines.optimizers import checkpoint_gradients, make_optimizer
from raymu.engines.options import Options
from raymu.engines.pytorch import Engine
from raymu.errors import InputError
from raymu.method import Clipped, Step
from raymu.models.cmf import CMF
from raymu.run import Optimizer

os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists; Ray shows every worker its own GPU alone
logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled first, for no gain here

NEVER = 10**9
BUCKET = 5 * 10**8  # DeepSpeed's own size, in weights
LINEAR = torch.nn.functional.linear


def check(options: Options) -> None:
    """Look whether DeepSpeed accepts the configuration.

    Raises:
        InputError: it refuses a field's value.
    """
    try:
        DeepSpeedConfig(_config(options))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"DeepSpeed configuration: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except Exception as error:  # DeepSpeed's own checks raise what comes
        raise InputError(f"DeepSpeed configuration: {' '.join(str(error).split())}") from error


def _config(options: Options, trained: int = BUCKET) -> dict[str, Any]:
    """DeepSpeed's configuration for a network with this number of trained weights."""
    given = options.deepspeed_config
    bucket = {"reduce_bucket_size": min(BUCKET, trained)}  # which it allocates, however small the model
    return {
        **given,
        "zero_optimization": bucket | given.get("zero_optimization", {}),
        "train_micro_batch_size_per_gpu": 1,  # a number has to be there
        "gradient_clipping": 0.0,  # left out, it is 1.0
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": NEVER,
    }


class DeepSpeed(Engine):
    """Trains under ZeRO (Rajbhandari et al., SC 2020). What a method computes before the first epoch, and all that is
    evaluated, is computed by plain copies of the whole network, one a worker, each on its share of the images.

    Memory of a worker, beside activations: the whole network once, and what the stage leaves of working weights,
    gradients, master weights and the optimizer's state.
    """

    def _begin(self, optimizer: Optimizer, lr: float) -> None:
        self._plain = self.model
        self._cores = devices.cores(self._options.cores, self._options.threads)
        network = copy.deepcopy(self.model)
        self._trained = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
        self._optimizer = make_optimizer(list(self._trained.values()), optimizer, lr)
        network.register_forward_hook(self._weigh)
        checkpoint_gradients(network, self._options.checkpointing)
        for name, (mask, _) in self._frozen.items():  # before stage 3 makes placeholders of the weights
            self._trained[name].register_hook(mask.mul)
        config = _config(self._options, sum(weight.numel() for weight in self._trained.values()))
        wrapped, *_ = deepspeed.initialize(model=network, optimizer=self._optimizer, config=config)
        self._deepspeed: Any = wrapped
        if self._options.stage == 3 and isinstance(network, CMF):
            # Nobody uses the backbone's own output, whose backward pass would gather these weights.
            for weight in network.backbone.parameters(recurse=False):
                deepspeed.zero.register_external_parameter(network, weight)
        if self._frozen:
            self._freeze()

    def _spread(self, teacher: nn.Module) -> nn.Module:
        if self._options.stage != 3:
            return teacher
        spread: nn.Module = deepspeed.initialize(model=teacher, config=_config(self._options))[0]
        spread.eval()
        return spread

    def _end(self) -> None:
        self.model = self._plain
        self._deepspeed.destroy()
        torch.nn.functional.linear = LINEAR  # stage 3 puts one in its place that has no forward-mode derivative
        del self._deepspeed, self._optimizer, self._trained

    @contextlib.contextmanager
    def _training(self) -> Iterator[None]:
        _copy_buffers(self._plain, self._deepspeed.module)  # a CMF head is made by the plain network
        self.model = self._deepspeed
        yield
        self.model = self._plain
        _copy_buffers(self._deepspeed.module, self._plain)  # BatchNorm statistics follow the batches
        mine, theirs = (dict(network.named_parameters()) for network in (self._plain, self._deepspeed.module))
        sharded = list(theirs.values()) if self._options.stage == 3 else []
        with torch.no_grad(), deepspeed.zero.GatheredParameters(sharded):
            for name, weight in mine.items():
                weight.copy_(theirs[name])

    def _step(self, step: Step) -> None:
        parts, kept = step if isinstance(step, tuple) else (step,), list[Tensor]()
        for part in parts:
            loss, norm = (part.loss, part.norm) if isinstance(part, Clipped) else (part, None)
            self._finite &= loss.detach().isfinite()
            self._deepspeed.backward(loss)
            if norm is None and len(parts) == 1:
                continue
            gradients = self._gradients()
            if norm is not None:
                torch._foreach_mul_(gradients, clipping(norm, self._length(gradients)))
            if kept:
                torch._foreach_add_(gradients, kept)
            if part is not parts[-1]:  # each is clipped on its own, so they are kept apart and added up here
                kept = [gradient.clone() for gradient in gradients]
                self._forget_gradients()
        with devices.cpu_threads(self._cores):
            self._deepspeed.step()

    def _gradients(self) -> list[Tensor]:
        """The piece that this worker has of the gradient, averaged over all workers: what the next step will take."""
        optimizer = self._deepspeed.optimizer
        if not self._options.stage or self._masters()[0].grad is not None:  # the latter where they are offloaded
            return [weight.grad for weight in self._masters()]  # type: ignore[misc]
        return [gradient for group in optimizer.averaged_gradients.values() for gradient in group]

    def _forget_gradients(self) -> None:
        """The next backward pass would add to them where nothing is sharded, or where they are offloaded."""
        if not self._options.stage:
            for weight in self._trained.values():
                weight.grad = None
        for gradient in getattr(self._deepspeed.optimizer, "accumulated_grads_in_cpu", {}).values():
            gradient.zero_()

    def _masters(self) -> list[Tensor]:
        if self._options.stage == 3:
            masters: list[Tensor] = self._deepspeed.optimizer.fp32_partitioned_groups_flat
            return masters
        return [weight for group in self._optimizer.param_groups for weight in group["params"]]

    def _length(self, gradients: list[Tensor]) -> Tensor:
        """The norm of the whole gradient."""
        square = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
        if self._options.stage:
            self._workers.sum(square)
        return square.sqrt()

    def _weigh(self, network: nn.Module, inputs: tuple[Tensor], logits: Tensor) -> None:
        """DeepSpeed averages over workers, whose shares differ by an image: a mean over a share is weighted here, so
        that it becomes the mean over the batch.
        """
        if not logits.requires_grad or self._workers.count == 1:
            return
        share = torch.tensor(float(len(logits)), device=logits.device)
        size = share.clone()
        self._workers.sum(size)
        weight = share * self._workers.count / size
        logits.register_hook(lambda gradient: gradient * weight)

    def _freeze(self) -> None:
        """Set back what must not move between the optimizer's step and the copy that DeepSpeed makes of its outcome."""
        pieces = []
        for name, weight in self._trained.items():
            master, start = self._master(weight)
            chosen = slice(start, start + len(master))
            pieces.append((master, *(tensor.flatten()[chosen].to(master.device) for tensor in self._frozen[name])))

        def set_back(*_: Any) -> None:
            for master, mask, value in pieces:
                torch.where(mask, master, value, out=master)

        self._optimizer.register_step_post_hook(set_back)

    def _master(self, weight: Any) -> tuple[Tensor, int]:
        """The piece that this worker has of a weight's master copy, flat, and where in the weight it begins."""
        if not self._options.stage:
            return weight.data.view(-1), 0
        if self._options.stage == 3:
            optimizer = self._deepspeed.optimizer
            group, place, count = optimizer.grad_position[optimizer.get_param_id(weight)]
            piece, start = (
                optimizer.fp32_partitioned_groups_flat[group].data.narrow(0, place, count),
                count * self._workers.rank,
            )
            return piece[: max(0, weight.ds_numel - start)], start
        if weight._hp_mapping is None:
            return weight.data.new_empty(0), 0
        return weight._hp_mapping.get_hp_fragment().data, weight._hp_mapping.lp_fragment_address.start


def _copy_buffers(network: nn.Module, other: nn.Module) -> None:
    for value, buffer in zip(network.buffers(), other.buffers(), strict=True):
        buffer.copy_(value)


def leave_group() -> None:
    """Leave the process group, so that another one can be joined."""
    if deepspeed.comm.comm.cdb is None:  # DeepSpeed has not seen it
        dist.destroy_process_group()
    else:
        deepspeed.comm.destroy_process_group()
        deepspeed.comm.comm.cdb = None
