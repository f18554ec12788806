"""Notices to stop: signals set a flag and start the clock, nothing else. The only place that installs handlers."""

import contextlib
import os
import signal
import threading
import time
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class Notices:
    """Remembers the stop signals of this process.

    A Python handler runs only between bytecodes, seconds late while C++ code holds the main thread; a thread on the
    wake-up descriptor records the moment at once.
    """

    def __init__(self) -> None:
        self.received: list[tuple[int, float]] = []
        """Signal number and monotonic time of each notice, in order."""
        self._lock = threading.Lock()

    def install(self) -> None:
        """Listen for the stop signals from now on. Main thread only."""
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(read_end,), daemon=True, name="notices").start()
        for number in STOP_SIGNALS:
            signal.signal(number, _do_nothing)
        with contextlib.suppress(AttributeError):
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    @property
    def requested(self) -> bool:
        """Whether this process was told to stop."""
        return bool(self.received)

    @property
    def is_urgent(self) -> bool:
        """Whether it was told more than once."""
        return len(self.received) > 1

    @property
    def first_s(self) -> float | None:
        """Monotonic time of the first notice."""
        return self.received[0][1] if self.received else None

    @property
    def signal_name(self) -> str:
        """Name of the first signal, for the log."""
        return signal.Signals(self.received[0][0]).name if self.received else ""

    def request(self) -> None:
        """Stop as if a signal had come: for loops that decide it themselves."""
        self._note(int(signal.SIGTERM))

    def ignore(self) -> None:
        """Stop listening: from here on nothing may interrupt leaving."""
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _watch(self, read_end: int) -> None:
        while True:
            for number in os.read(read_end, 64):
                if number in STOP_SIGNALS:
                    self._note(number)

    def _note(self, number: int) -> None:
        with self._lock:
            self.received.append((number, time.monotonic()))


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    """The wake-up descriptor has told the watching thread already; the handler only keeps the process alive."""
