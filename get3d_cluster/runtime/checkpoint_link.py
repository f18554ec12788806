"""A worker's end of a process beside it, which writes or copies checkpoints and can be started again."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from get3d_cluster.runtime.env import child_environment
from get3d_cluster.runtime.notices import STOP_SIGNALS

END_S = 5.0


class WriterDiedError(Exception):
    """The process is gone in the middle of an order."""


class Link:
    """A process of one worker that obeys orders, one JSON object a line. Started when needed, again after it died."""

    def __init__(self, module: str, memory: int | None = None) -> None:
        """``module`` is what it runs; ``memory`` the descriptor of a memory that both see."""
        self._module = module
        self._memory = memory
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process unless it runs. It does not hear the signals that stop a worker. Raises: OSError."""
        if self._process and self._process.poll() is None:
            return
        self.kill()
        root = Path(__file__).parents[2]
        shared = [] if self._memory is None else [self._memory]
        blocked = (*STOP_SIGNALS, signal.SIGHUP)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module, *(str(handle) for handle in shared)],
                cwd=root,
                env=child_environment({"PYTHONUNBUFFERED": "1"}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=shared,
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
        """End the process while another thread talks with it; ``kill`` has to follow."""
        if process := self._process:
            process.kill()

    def kill(self) -> None:
        """End the process, whatever it is doing: what it did not publish does not exist."""
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
