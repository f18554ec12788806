"""A worker's end of its checkpoint writer: the memory that both see, and the process that can be started again."""

import contextlib
import json
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from get3d_cluster.runtime.env import child_environment
from get3d_cluster.runtime.notices import STOP_SIGNALS

if TYPE_CHECKING:
    from torch import Tensor

MODULE = "get3d_cluster.runtime.checkpoint_writer"
END_S = 5.0
SPARE_BYTES = 1 << 20
"""States grow a little; to grow the memory means to touch all of it again."""


class WriterDiedError(Exception):
    """The writer is gone in the middle of a save."""


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


class Link:
    """The writer of one worker. Started when it is first needed, and again after it died."""

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the writer unless it runs. It does not hear the signals that stop a worker. Raises: OSError."""
        if self._process and self._process.poll() is None:
            return
        self.kill()
        root = Path(__file__).parents[2]
        blocked = (*STOP_SIGNALS, signal.SIGHUP)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE, str(self._memory.handle)],
                cwd=root,
                env=child_environment({"PYTHONUNBUFFERED": "1"}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=[self._memory.handle],
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def send(self, order: Mapping[str, Any]) -> None:
        """Give an order. Raises: WriterDiedError."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError) as error:
            raise WriterDiedError from error

    def receive(self) -> dict[str, Any]:
        """Wait for the next answer. Raises: WriterDiedError."""
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            line = self._process.stdout.readline()
        except (OSError, ValueError) as error:
            raise WriterDiedError from error
        if not line.endswith("\n"):
            raise WriterDiedError
        answer: dict[str, Any] = json.loads(line)
        return answer

    def interrupt(self) -> None:
        """End the writer while another thread talks with it; ``kill`` has to follow."""
        if process := self._process:
            process.kill()

    def kill(self) -> None:
        """End the writer, whatever it is doing: what it did not publish does not exist."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)  # one that waits for a dead disk ends when that does
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()
