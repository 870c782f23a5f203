"""A GPU that is pretended. Its tensors hold their values on the CPU and obey a GPU's rules: what lies on it cannot be
mixed with what does not, and CUDA's autocast decides types. What lets the host wait for a GPU is counted: every read,
and every copy from the CPU that is not asked to go on meanwhile.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from raymu import cache

aten = torch.ops.aten
GPU = torch.device("cuda:0")
COPIES = {aten.copy_, aten._to_copy}
INDEXED = {aten.index, aten.index_put_, aten.index_put, aten._index_put_impl_}
READS = {  # operations that give back a number, or a tensor whose size has to be known
    aten._local_scalar_dense,
    aten.equal,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.unique_dim,
    aten.bincount,
}
IN_FLOAT32 = ("sum", "sum.dim_IntList", "cumsum", "norm.Scalar", "norm.ScalarOpt_dim")  # by autocast on CUDA alone


class Refused(RuntimeError):
    """Error where a real GPU would have raised one."""


class OnGPU(Tensor):
    """A tensor that lies on the GPU; its values are in `held`."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnGPU":
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made: OnGPU = Tensor._make_wrapper_subclass(cls, held.size(), **layout)
        return made

    def __init__(self, held: Tensor) -> None:
        self.held = held

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __repr__(self) -> str:
        return f"OnGPU({self.held})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied = OnGPU(self.held.clone()).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.numpy, Tensor.__array__):
            raise Refused("a tensor on a GPU is no NumPy array")
        if func is Tensor.data_ptr:
            return args[0].held.data_ptr()
        if func is Tensor.tolist:
            _count("tolist")
            return args[0].held.tolist()
        if func is Tensor.to and len(args) > 1 and isinstance(args[1], OnGPU):  # as that one is
            args = (args[0], GPU, args[1].dtype)
        if func in (Tensor.cpu, Tensor.to) and isinstance(args[0], OnGPU):
            device, dtype, *_ = torch._C._nn._parse_to(*args[1:], **kwargs) if func is Tensor.to else ("cpu", None)
            if device is not None and torch.device(device).type == "cpu":
                _count("to the CPU")
                return args[0].detach().held.clone().to(dtype or args[0].dtype)
            if device is not None:
                func, args, kwargs = Tensor.to, (args[0], dtype or args[0].dtype), {}
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Everywhere(TorchDispatchMode):
    """Mode in which tensors that are made on the GPU, or brought there, are `OnGPU`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Numbered(TorchFunctionMode):
    """Mode in which cuda means cuda:0: torch would ask the driver which one is meant."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def numbered(value: Any) -> Any:
            return GPU if isinstance(value, torch.device | str) and str(value) == "cuda" else value

        args, kwargs = tree_map(numbered, (args, kwargs or {}))
        return func(*args, **kwargs)


_counts: Counter[str] = Counter()


def _count(name: str) -> None:
    _counts[name] += 1


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation, as the GPU would carry it out."""
    packet = func.overloadpacket
    if packet is aten._efficientzerotensor:  # the derivative of what does not depend, in forward mode
        return OnGPU(torch.zeros(args[0], dtype=kwargs["dtype"]))
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [leaf for leaf in leaves if isinstance(leaf, OnGPU)]
    made_there = bool(there)  # also where torch itself says the device of a tensor that it knows: that of its values
    kwargs.pop("pin_memory", None)
    if (onto := kwargs.get("device")) is not None and torch.device(onto).type == "cuda":
        made_there, kwargs = True, kwargs | {"device": torch.device("cpu")}
    _check(packet, args, leaves, there)
    if there:
        _counts["operations"] += 1
        if packet in READS or _is_masked(packet, args):
            _count(str(packet))
        if packet is aten.copy_ and not isinstance(args[0], OnGPU):
            _count("to the CPU")
    if packet in COPIES and made_there and len(there) < len(leaves) and not kwargs.get("non_blocking", False):
        _count("from the CPU")

    def bare(value: Any) -> Any:
        return value.held if isinstance(value, OnGPU) else value

    found = func(*tree_map(bare, args), **tree_map(bare, kwargs))
    if not made_there or (packet is aten.copy_ and not isinstance(args[0], OnGPU)):
        return found
    wrapped = tree_map(lambda value: OnGPU(value) if isinstance(value, Tensor) else value, found)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if there else wrapped


def _is_masked(packet: Any, args: Any) -> bool:
    indices = args[1] if packet in INDEXED else ()
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _check(packet: Any, args: Any, leaves: list[Tensor], there: list[Tensor]) -> None:
    elsewhere = [leaf for leaf in leaves if not isinstance(leaf, OnGPU) and leaf.dim()]
    if not (there and elsewhere) or packet in COPIES:
        return
    if (
        packet in INDEXED
        and isinstance(args[0], OnGPU)
        and all(
            not isinstance(leaf, Tensor) or isinstance(leaf, OnGPU) or any(leaf is index for index in args[1])
            for leaf in tree_leaves(args)
        )
    ):
        return  # indices may lie on the CPU
    raise Refused(f"{packet}: some tensors are on {GPU}, others on the CPU")


@contextlib.contextmanager
def pretended_gpu(monkeypatch: Any) -> Iterator[Counter[str]]:
    """Run the body where torch sees one GPU. What is counted: `operations`, and what the host waits for, by name."""
    cuda = torch.cuda
    for name, value in {
        "is_available": True,
        "is_bf16_supported": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": "a pretended GPU",
        "mem_get_info": (2**34, 2**34),
        "max_memory_allocated": 2**27,
        "reset_peak_memory_stats": None,
        "synchronize": None,
        "is_current_stream_capturing": False,
        "manual_seed_all": None,
        "get_rng_state": torch.get_rng_state(),
        "set_rng_state": None,
        "_lazy_init": None,
    }.items():
        monkeypatch.setattr(cuda, name, lambda *args, value=value, **kwargs: value)
    monkeypatch.setattr(cache, "load_file", _load_file)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)  # optimizers ask its streams
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda device, *args, **more: autocast("cpu", *args, **more))
    library = torch.library.Library("aten", "IMPL")
    for name in IN_FLOAT32:
        library.impl(name, _in_float32(name), "AutocastCPU")
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a weight becomes another tensor
    lifts = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    _counts.clear()
    try:
        with _Everywhere(), _Numbered():
            yield _counts
    finally:
        torch._C._set_only_lift_cpu_tensors(lifts)
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
        library._destroy()


def _load_file(path: Path, device: str) -> dict[str, Tensor]:
    """Safetensors makes its tensors by means that no mode sees."""
    torch._C._set_only_lift_cpu_tensors(False)
    with _disable_current_modes():
        loaded = load_file(path)
    torch._C._set_only_lift_cpu_tensors(True)
    return {name: tensor.to(device) for name, tensor in loaded.items()}


def _in_float32(name: str) -> Callable[..., Tensor]:
    packet, _, overload = name.partition(".")
    op = getattr(getattr(aten, packet), overload or "default")

    def run(*args: Any, **kwargs: Any) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)):
            half = args[0].dtype in (torch.bfloat16, torch.float16)
            found: Tensor = op(args[0].float() if half else args[0], *args[1:], **kwargs)
            return found

    return run
