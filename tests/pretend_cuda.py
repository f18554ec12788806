"""A device "cuda:0" for machines without one: computes on the CPU, and refuses what CUDA would refuse.

Refused are operations on tensors of two devices, reading a tensor of the device as an array, and, while deterministic
algorithms are asked for, operations that have none on CUDA. Not imitated: kernels, their rounding, memory, streams.
"""

import contextlib
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("cuda:0")

MAY_MIX = ("copy_", "_to_copy", "index", "index_put_", "index_put", "_index_put_impl_")
"""Operations that take tensors of the CPU beside those of the device: copies, and indices."""

NOT_DETERMINISTIC = (
    "grid_sampler_", "upsample_linear", "upsample_bilinear", "upsample_bicubic", "upsample_trilinear",
    "replication_pad", "reflection_pad", "adaptive_avg_pool", "adaptive_max_pool", "avg_pool3d", "max_pool3d",
)  # fmt: skip
"""Whose backward torch's notes on `use_deterministic_algorithms` list as raising an error on CUDA."""
NEVER_DETERMINISTIC = ("histc", "bincount", "put_", "median", "kthvalue")


class OnDevice(torch.Tensor):
    """A tensor that says it lies on the device; its data lie on the CPU. To torch's C++ it is a meta tensor."""

    data_: torch.Tensor
    device = property(lambda _: DEVICE)  # type: ignore[assignment]
    is_cuda = property(lambda _: True)  # type: ignore[assignment]
    is_meta = property(lambda _: False)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, data: torch.Tensor) -> "OnDevice":
        form = {"strides": data.stride(), "storage_offset": data.storage_offset(), "dtype": data.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, data.size(), device="meta", **form)
        made.data_ = data
        return made

    def __repr__(self) -> str:
        return f"OnDevice({self.data_!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copy = self.detach().clone()
        copy.requires_grad_(self.requires_grad)
        copy = torch.nn.Parameter(copy, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copy
        memo[id(self)] = copy
        return copy

    def __getitem__(self, key: Any) -> torch.Tensor:
        """Index; a sequence becomes a tensor here, since a meta tensor's C++ would leave out its numbers."""
        keys = key if isinstance(key, tuple) else (key,)
        return super().__getitem__(
            tuple(torch.tensor(k) if isinstance(k, (list, tuple)) else k for k in keys)
        )

    def data_ptr(self) -> int:
        return self.data_.data_ptr()

    def tolist(self) -> Any:
        return self.data_.tolist()

    def new_tensor(self, values: Any, **options: Any) -> torch.Tensor:
        return torch.tensor(values, **{"dtype": self.dtype, "device": DEVICE, **options})

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Catches what makes tensors on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    here = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    target = kwargs.get("device")
    if here:
        _refuse(name, func, tensors, here)
    there = torch.device(target).type in ("cuda", "meta") if target is not None else bool(here)
    if name == "copy_":
        there = isinstance(args[0], OnDevice)
    plain = {key: value for key, value in kwargs.items() if key != "device"}
    if target is not None:
        plain["device"] = torch.device("cpu")
    result = func(*tree_map(_data, args), **tree_map(_data, plain))
    if not there:
        return args[0] if name == "copy_" else _copied(result, tensors)
    wrapped = tree_map(lambda leaf: OnDevice(leaf) if type(leaf) is torch.Tensor else leaf, result)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if here else wrapped


def _data(leaf: Any) -> Any:
    return leaf.data_ if isinstance(leaf, OnDevice) else leaf


def _copied(result: Any, tensors: list[torch.Tensor]) -> Any:
    """Make sure that what comes back from the device shares no memory with what stays there."""
    held = {t.data_.untyped_storage().data_ptr() for t in tensors if isinstance(t, OnDevice)}

    def own(leaf: Any) -> Any:
        is_held = isinstance(leaf, torch.Tensor) and leaf.untyped_storage().data_ptr() in held
        return leaf.clone() if is_held else leaf

    return tree_map(own, result) if held else result


_real_tensor = torch.tensor


def _tensor(values: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
    """Do what torch.tensor does, whose C++ makes tensors of the device without asking the mode."""
    made = _real_tensor(values, **options)
    return made if device is None else made.to(device)


def _refuse(name: str, func: Any, tensors: list[torch.Tensor], here: list[OnDevice]) -> None:
    others = [t for t in tensors if not isinstance(t, OnDevice) and t.dim() > 0]
    if others and name not in MAY_MIX:
        raise RuntimeError(f"{func}: tensors on cuda:0 and cpu, of {[list(t.shape) for t in others]}")
    if not torch.are_deterministic_algorithms_enabled():
        return
    backward = name.endswith("_backward") and name.startswith(NOT_DETERMINISTIC)
    running = name in ("cumsum", "cumprod") and here[0].is_floating_point()
    if backward or running or name in NEVER_DETERMINISTIC:
        raise RuntimeError(f"{func} does not have a deterministic implementation on CUDA")


class _InOrder:
    """Stands for streams and events where one thing is computed after the other anyway."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take what a stream or an event takes."""

    def record(self, *_: Any) -> None:
        """All before is done."""

    wait_event = wait_stream = synchronize = record


@contextlib.contextmanager
def pretend_cuda() -> Iterator[str]:
    """Make torch believe that there is a device; yields its name."""
    properties = types.SimpleNamespace(total_memory=2**30, uuid="pretended")
    quiet = {
        "_lazy_init": lambda: None,
        "set_device": lambda device: None,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda *_: None,
        "max_memory_allocated": lambda *_: 0,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "is_bf16_supported": lambda *_: True,
        "is_available": lambda: True,
        "get_device_name": lambda *_: "pretended",
        "get_device_properties": lambda *_: properties,
        "Stream": _InOrder,
        "Event": _InOrder,
        "stream": lambda _: contextlib.nullcontext(),
        "current_stream": _InOrder,
    }
    with contextlib.ExitStack() as stack:
        for name, answer in quiet.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        stack.enter_context(mock.patch.object(torch, "tensor", _tensor))
        stack.enter_context(_Mode())
        yield str(DEVICE)
