"""Python programs that tests start, listen to while they run, and end."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

ROOT = Path(__file__).parents[1]


class End(NamedTuple):
    """What is left of a program that has ended: all it printed, whoever has read it before."""

    code: int
    lines: list[str]
    err: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """A running program. It prints to files: no pipe fills, and what was looked at once is still there later."""

    process: subprocess.Popen[bytes]
    out: BinaryIO
    err: BinaryIO

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        """Send a signal; a program that has ended already is an error of the test."""
        assert self.process.poll() is None, f"ended before it got {number.name}: {self._said()}"
        self.process.send_signal(number)

    def line(self, start: str, timeout_s: float = 90) -> str:
        """Wait for the first whole line that begins so, and return it."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            has_ended = self.process.poll() is not None  # before the look: it may print and end in between
            for line in _text(self.out).split("\n")[:-1]:
                if line.startswith(start):
                    return line
            assert not has_ended, f"ended without {start!r}: {self._said()}"
            assert time.monotonic() < deadline_s, f"not in {timeout_s} s: {start!r}: {self._said()}"
            time.sleep(0.01)

    def end(self, timeout_s: float = 120) -> End:
        """Wait for the end."""
        code = self.process.wait(timeout_s)
        return End(code, _text(self.out).splitlines(), _text(self.err))

    def kill(self) -> None:
        """Send SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait()

    def _said(self) -> str:
        return f"{_text(self.out)}\n{_text(self.err)}"


@contextlib.contextmanager
def running(*words: object) -> Iterator[Program]:
    """Start ``python WORDS...`` on one thread without a GPU; kill it on leaving."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            [sys.executable, *map(str, words)], cwd=ROOT, env=environment, stdout=out, stderr=err
        )
        try:
            yield Program(process=process, out=out, err=err)
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def running_all(*commands: tuple[object, ...]) -> Iterator[list[Program]]:
    """Start several, in order."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(running(*command)) for command in commands]


def ends_of(programs: list[Program], timeout_s: float = 120) -> list[End]:
    """Wait for the end of each."""
    return [program.end(timeout_s) for program in programs]


def _text(file: BinaryIO) -> str:
    """Return all that was written, and leave the place at which the program writes alone."""
    number = file.fileno()
    return os.pread(number, os.fstat(number).st_size, 0).decode()
