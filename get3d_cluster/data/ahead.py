"""Values made by threads before they are asked for. Torch-free."""

import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Slot(Generic[T]):
    """What is known of one number."""

    is_begun: bool = False
    value: T | None = None
    error: BaseException | None = None


def _is_done(slot: _Slot[T]) -> bool:
    return slot.value is not None or slot.error is not None


class Ahead(Generic[T]):
    """Calls ``make`` for the numbers to come, on threads that live while there is something to do.

    At most ``most`` values are held. One caller asks; in a forked child the threads of the parent are not missed.
    """

    def __init__(self, make: Callable[[int], T], *, threads: int, most: int) -> None:
        self._make = make
        self._most_threads = threads
        self._most = most
        self._begin_anew()

    def expect(self, numbers: Iterable[int]) -> None:
        """Make what will be asked for next, in this order; forget what is no longer among it."""
        self._notice_fork()
        wanted = dict.fromkeys(numbers)
        with self._changed:
            for number in [number for number in self._slots if number not in wanted]:
                del self._slots[number]  # a thread that makes it now does so in vain
            self._waiting[:] = [number for number in self._waiting if number in wanted]
            self._add(wanted)

    def hurry(self, numbers: Iterable[int]) -> None:
        """Make these as well, which are asked for now."""
        self._notice_fork()
        with self._changed:
            self._add(dict.fromkeys(numbers))

    def take(self, number: int) -> T:
        """Return the value of ``number`` and hold it no longer; make it here if no thread has begun it.

        Raises: what ``make`` raises.
        """
        self._notice_fork()
        with self._changed:
            slot = self._slots.get(number)
            if slot is not None and slot.is_begun:
                self._changed.wait_for(partial(_is_done, slot))
            self._slots.pop(number, None)
        if slot is None or not slot.is_begun:
            return self._make(number)
        if slot.error is not None:
            raise slot.error
        assert slot.value is not None
        return slot.value

    def _add(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if len(self._slots) >= self._most or not self._most_threads:
                break
            if number not in self._slots:
                self._slots[number] = _Slot()
                self._waiting.append(number)
        for _ in range(min(self._most_threads, len(self._waiting)) - self._num_threads):
            self._num_threads += 1
            threading.Thread(target=self._work, args=(self._changed,), daemon=True, name="read-ahead").start()

    def _work(self, changed: threading.Condition) -> None:
        while begun := self._next(changed):
            self._fill(*begun)
            with changed:
                changed.notify_all()

    def _next(self, changed: threading.Condition) -> tuple[int, _Slot[T]] | None:
        """Begin the first number that is still wanted; None if there is none, and the thread ends."""
        with changed:
            while self._waiting:
                number = self._waiting.pop(0)
                slot = self._slots.get(number)
                if slot is not None and not slot.is_begun:
                    slot.is_begun = True
                    return number, slot
            self._num_threads -= 1
            return None

    def _fill(self, number: int, slot: _Slot[T]) -> None:
        try:
            slot.value = self._make(number)
        except BaseException as error:  # noqa: BLE001  raised where the value is asked for
            slot.error = error

    def _notice_fork(self) -> None:
        if os.getpid() != self._pid:
            self._begin_anew()

    def _begin_anew(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._slots: dict[int, _Slot[T]] = {}
        self._waiting: list[int] = []
        self._num_threads = 0
