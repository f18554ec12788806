"""Notices to stop: signals set a flag and start the clock, nothing else. The only place that installs handlers."""

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
BURST_S = 1.0
"""Signals so close to the first one are the same notice: SLURM sends several within a tenth of a second."""


class Notices:
    """Remembers the stop signals of this process.

    A Python handler runs only between bytecodes, seconds late while C++ code holds the main thread; a thread on the
    wake-up descriptor records the moment at once.
    """

    def __init__(self) -> None:
        self.received: list[tuple[int, float]] = []
        """Signal number and monotonic time of each notice, in order."""
        self._lock = threading.Lock()
        self._patience_s: float | None = None
        self._is_answered = self._is_ignoring = False
        self._former: dict[int, Any] = {}
        self._former_fd = self._write_end = -1
        self._thread: threading.Thread | None = None

    def install(self, patience_s: float | None = None) -> None:
        """Listen for the stop signals from now on. Main thread only.

        With ``patience_s`` a second Ctrl-C, or a second SIGTERM to a loop that has not called ``answer`` since the
        first, ends the process at once if the first is so many seconds old: nobody is locked in with a program that
        does not look.
        """
        self._patience_s = patience_s
        read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._former_fd = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, args=(read_end,), daemon=True, name="notices")
        self._thread.start()
        for number in STOP_SIGNALS:
            self._former[number] = signal.signal(number, _do_nothing)
        with contextlib.suppress(AttributeError):
            self._former[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def uninstall(self) -> None:
        """Stop listening: signals do again what they did before ``install``. Main thread only."""
        if self._thread is None:
            return
        for number, handler in self._former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._former_fd)
        os.close(self._write_end)
        self._thread.join()
        self._thread = None

    @property
    def requested(self) -> bool:
        """Whether this process was told to stop. Asked in each step, so it also takes back what a library took."""
        if self._thread is not None and threading.current_thread() is threading.main_thread():
            self._take_back()
        return bool(self.received)

    @property
    def is_urgent(self) -> bool:
        """Whether it was told more than once."""
        return bool(self.received) and self.received[-1][1] - self.received[0][1] > BURST_S

    def recall(self, record: Path) -> None:
        """Take the signals that came before ``install``: one line each in ``record`` with the name and the time.

        Whoever started this process keeps the record and forwards what comes, so that nothing falls in between.
        """
        with self._lock:
            self.received = sorted(self.received + _recorded(record), key=lambda notice: notice[1])

    def take(self, number: int = signal.SIGUSR1) -> None:
        """Take a notice that came by another way than a signal, such as a file that was there at the start."""
        self._note(number)

    @property
    def first_s(self) -> float | None:
        """Monotonic time of the first notice."""
        return self.received[0][1] if self.received else None

    @property
    def signal_name(self) -> str:
        """Name of the first signal, for the log."""
        return signal.Signals(self.received[0][0]).name if self.received else ""

    def answer(self) -> None:
        """Say that the notice was seen and the process is about to leave."""
        self._is_answered = True

    def ignore(self) -> None:
        """Stop listening: from here on nothing may interrupt leaving."""
        self._is_ignoring = True
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _take_back(self) -> None:
        """Listen again where another handler lets a signal kill or ignores it, or another descriptor hears of it."""
        if self._is_ignoring:
            return
        deaf = [n for n in STOP_SIGNALS if signal.getsignal(n) in (signal.SIG_DFL, signal.SIG_IGN, None)]
        for number in deaf:
            signal.signal(number, _do_nothing)
        another = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False) != self._write_end
        if deaf or another:
            names = ", ".join(signal.Signals(number).name for number in deaf) or "the wake-up descriptor"
            print(f"a library had taken {names}; notices are heard again", file=sys.stderr, flush=True)

    def _watch(self, read_end: int) -> None:
        while numbers := os.read(read_end, 64):
            for number in numbers:
                if number in STOP_SIGNALS:
                    self._note(number)
        os.close(read_end)

    def _note(self, number: int) -> None:
        with self._lock:
            now = time.monotonic()
            if self._is_over(number, now):
                _end_at_once(number)
            self.received.append((number, now))

    def _is_over(self, number: int, now_s: float) -> bool:
        """Say whether this signal finds the patience for the same one before it at its end."""
        first_s = next((then_s for before, then_s in self.received if before == number), now_s)
        is_meant = number == signal.SIGINT or (number == signal.SIGTERM and not self._is_answered)
        return is_meant and self._patience_s is not None and now_s - first_s > self._patience_s


def _recorded(record: Path) -> list[tuple[int, float]]:
    """Return the signals in ``record``, by the monotonic clock; lines that make no sense are left out."""
    found = []
    with contextlib.suppress(OSError):
        for line in record.read_text(errors="replace").splitlines():
            name, _, seconds = line.partition(" ")
            with contextlib.suppress(KeyError):
                number = int(signal.Signals[f"SIG{name}"])
                then = float(seconds) if seconds.replace(".", "", 1).isdigit() else time.time()
                found.append((number, time.monotonic() - max(0.0, time.time() - then)))
    return found


def _end_at_once(number: int) -> None:
    """End the process from any thread, whatever the main one is doing, with the exit code that a shell shows."""
    text = f"{signal.Signals(number).name} came a second time: ends at once, without saving; what was saved stands\n"
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())
    os._exit(128 + number)


def _do_nothing(_number: int, _frame: object) -> None:
    """The wake-up descriptor has told the watching thread already; the handler only keeps the process alive."""
