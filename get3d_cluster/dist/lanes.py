"""Threads beside the computation that carry buckets to the other workers, one after another."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Step = Callable[[int], Callable[[], None]]
"""Begins what a lane does with a bucket, in one of the lane's slots, and returns what brings it to its end."""
WINDOW = 2
"""Buckets that a lane has begun at once: messages of the next are on their way while those of one are awaited."""


@dataclass(kw_only=True, slots=True)
class Load:
    """A bucket on its way: what each lane does with it, in turn."""

    steps: Sequence[Step]
    is_done: bool = False
    after: list[Callable[[], None]] = field(default_factory=list)
    """What the computation does once it is there, such as to wait for an event of a GPU."""


class Lanes:
    """A pipeline of threads: while one lane has a bucket, the lane before it has the next.

    All workers launch the same loads in the same order. What fails in a lane is raised where the loads are awaited.
    """

    def __init__(self) -> None:
        self._queues: list[queue.SimpleQueue[Load | None]] = []
        self._changed = threading.Condition()
        self._failure: BaseException | None = None

    def launch(self, load: Load) -> None:
        """Send a load on its way."""
        while len(self._queues) < len(load.steps):
            self._open()
        self._pass(load, 0)

    def wait(self, loads: Sequence[Load]) -> None:
        """Return once all ``loads`` are there. Raises: the first thing that failed in any lane, ever."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure or all(load.is_done for load in loads))
            if self._failure:
                raise self._failure
        for load in loads:
            for act in load.after:
                act()

    def close(self) -> None:
        """Let the threads end once they have nothing to do. Nothing may be on its way."""
        for waiting in self._queues:
            waiting.put(None)
        self._queues = []

    def _open(self) -> None:
        lane, waiting = len(self._queues), queue.SimpleQueue[Load | None]()
        self._queues.append(waiting)
        threading.Thread(target=self._run, args=(lane, waiting), daemon=True, name=f"lane-{lane}").start()

    def _run(self, lane: int, waiting: "queue.SimpleQueue[Load | None]") -> None:
        begun: deque[tuple[Load, Callable[[], None]]] = deque()
        count = 0
        while True:
            load = self._next(waiting, is_idle=not begun) if len(begun) < WINDOW else _NOTHING
            if load is None:
                return
            if self._failure:
                begun.clear()
                continue
            try:
                if isinstance(load, Load):
                    begun.append((load, load.steps[lane](count % WINDOW)))
                    count += 1
                else:
                    here, finish = begun.popleft()
                    finish()
                    self._pass(here, lane + 1)
            except BaseException as error:  # noqa: BLE001  raised again in the thread that waits
                with self._changed:
                    self._failure = self._failure or error
                    self._changed.notify_all()

    def _next(self, waiting: "queue.SimpleQueue[Load | None]", *, is_idle: bool) -> "Load | _Nothing | None":
        """Return the next load; nothing if there is none yet and others are begun."""
        try:
            return waiting.get(block=is_idle)
        except queue.Empty:
            return _NOTHING

    def _pass(self, load: Load, lane: int) -> None:
        if lane < len(load.steps):
            self._queues[lane].put(load)
            return
        with self._changed:
            load.is_done = True
            self._changed.notify_all()


class _Nothing:
    pass


_NOTHING = _Nothing()
