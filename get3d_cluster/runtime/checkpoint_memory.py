"""The memory that a worker shares with its checkpoint writer, and how tensors of any device are copied into it."""

import mmap
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SPARE_BYTES = 1 << 20
"""States grow a little; to grow the memory means to touch all of it again."""


class SharedMemory:
    """Bytes that the writer sees, too. They belong to no file system, and vanish with the two processes."""

    def __init__(self) -> None:
        self.handle = os.memfd_create("get3d-checkpoint")
        self._whole: Any = None
        self._is_pinned = False

    @property
    def num_bytes(self) -> int:
        return 0 if self._whole is None else self._whole.numel()

    def grow(self, num_bytes: int, *, pin: bool = False) -> None:
        """Make room, and touch it: a copy into fresh memory takes five times as long.

        With ``pin`` GPUs copy into it at full speed, if CUDA agrees. Raises: OSError.
        """
        import torch

        if num_bytes <= self.num_bytes:
            return
        self._unpin()
        num_bytes += SPARE_BYTES
        os.ftruncate(self.handle, num_bytes)
        os.posix_fallocate(self.handle, 0, num_bytes)  # now, where it is an error; later it would be a signal
        self._whole = torch.frombuffer(mmap.mmap(self.handle, num_bytes), dtype=torch.uint8)
        self._whole[:: mmap.PAGESIZE] = 0
        if pin:
            cudart: Any = torch.cuda.cudart()
            self._is_pinned = int(cudart.cudaHostRegister(self._whole.data_ptr(), num_bytes, 0)) == 0

    def write(self, place: int, data: bytes) -> None:
        """Put ``data`` there."""
        self._whole.numpy()[place : place + len(data)] = memoryview(data)

    def copy(self, place: int, tensor: "Tensor") -> None:
        """Copy a tensor there, whatever device and strides it has; from a GPU the copy may still be under way."""
        size = tensor.numel() * tensor.element_size()
        if size:
            there = self._whole[place : place + size].view(tensor.dtype).view(tensor.shape)
            there.copy_(tensor.detach(), non_blocking=self._is_pinned)

    def close(self) -> None:
        """Give it back."""
        self._unpin()
        self._whole = None
        os.close(self.handle)

    def _unpin(self) -> None:
        if self._is_pinned:
            import torch

            cudart: Any = torch.cuda.cudart()
            cudart.cudaHostUnregister(self._whole.data_ptr())
            self._is_pinned = False


class _Moment:
    """The host's memory changes when the host says so."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self) -> None:
        pass


class _CudaMoment:
    """Copies from a GPU see what its queue holds now, in a queue of their own."""

    def __init__(self) -> None:
        import torch

        self._now = torch.cuda.Event()
        self._now.record()
        self._stream = torch.cuda.Stream()
        self._inside: Any = None

    def __enter__(self) -> None:
        import torch

        self._stream.wait_event(self._now)
        self._inside = torch.cuda.stream(self._stream)
        self._inside.__enter__()

    def __exit__(self, *error: object) -> None:
        self._inside.__exit__(*error)

    def wait(self) -> None:
        self._stream.synchronize()


def moment_of(tensors: "Mapping[str, Mapping[str, Tensor]]") -> "_Moment | _CudaMoment":
    """Return the moment at which a copy of ``tensors`` that begins now has to see them."""
    return _CudaMoment() if has_cuda(tensors) else _Moment()


def has_cuda(tensors: "Mapping[str, Mapping[str, Tensor]]") -> bool:
    """Say whether any of them lies on a GPU."""
    return any(tensor.is_cuda for named in tensors.values() for tensor in named.values())
