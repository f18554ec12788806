"""Finds a worker that hangs: shows each worker's heartbeat, and ends a process in which nothing moves any more.

Life is a step, a change of phase, or an exchange with the other workers that came to its end. A thread counts its own
ticks without life, not the clock, so that a process that was stopped and goes on (SIGSTOP, SLURM's suspend, a laptop
that slept) does not age. At the limit all workers of the attempt write down their stacks, and leave with exit code 124.

Which worker hangs is told by the exchanges: all workers make the same ones in the same order, so those that began the
fewest did not come to the one in which the others wait.

Limits: a thread of Python cannot run while C code keeps the interpreter to itself for good. The other workers then find
that one and leave, without its stacks (a C thread could write them, but crashes a process that was stopped and goes on:
it reads frames while they change); a worker alone stays until its time limit. A process in the kernel's uninterruptible
sleep ends when that does. Imports before the configuration is read are not watched.
"""

import contextlib
import ctypes
import faulthandler
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from get3d_cluster.dist.group import Group
from get3d_cluster.errors import ExitCode, Get3dError
from get3d_cluster.runtime import env, failures
from get3d_cluster.runtime.events import EventLog
from get3d_cluster.runtime.failures import Failure
from get3d_cluster.runtime.run_folder import RunFolder, read_json, write_json
from get3d_cluster.storage.local import create

_T = TypeVar("_T")
Phase = Literal["starting", "step", "measuring", "saving", "leaving"]
Part = Literal["step", "save", "data"]

TICK_S = 1.0
SHOW_S = 5.0
"""Between two heartbeats on disk."""
TELL_S = 60.0
"""What a hung worker gets to write down its stacks; its storage may be what hangs."""
PEERS_S = 15.0
"""What it waits of that for the stacks of the others."""
PY_SPY_S = 20.0
SLOW_S = 600.0
"""Imports, compiling, loading, measuring and saving take their time however short a step is: the worker that is at it
gets so long at least."""
VERDICT = "hung.json"
MOST_NAMES = 4
_PR_SET_PTRACER = 0x59616D61


class Pulse:
    """What a worker did last, and where the time of its attempt went. Written by the worker, read by its watchdog."""

    def __init__(self) -> None:
        self.beats = 0
        """Signs of life so far."""
        self.phase: Phase = "starting"
        self.step = 0
        """Steps of the run that are done."""
        self.exchanges = 0
        """Exchanges with the other workers that this one began."""
        self.is_waiting = False
        """Whether it is inside the last of them."""
        self.measurements = 0
        self.seconds: dict[Part, float] = {"step": 0.0, "save": 0.0, "data": 0.0}
        """Time in whole steps, in saves, and waiting for data within steps."""
        self.changed = threading.Event()

    def beat(self, phase: Phase, step: int) -> None:
        """Say that this worker lives, what it does from now on, and how many steps are done."""
        self.beats += 1
        self.step = step
        if phase != self.phase:
            self.phase = phase
            self.changed.set()

    @contextlib.contextmanager
    def counting(self, part: Part) -> Iterator[None]:
        """Add the time of the block to ``part``, if it comes to its end."""
        begun_s = time.monotonic()
        yield
        self.seconds[part] += time.monotonic() - begun_s

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Say that the block is no part of a step: it looks at the training, which waits for it."""
        before = self.phase
        self.beat("measuring", self.step)
        try:
            yield
        finally:
            self.measurements += 1
            self.beat(before, self.step)

    @contextlib.contextmanager
    def exchanging(self) -> Iterator[None]:
        """Count an exchange with the other workers; its end is a sign of life of all of them."""
        self.exchanges += 1
        self.is_waiting = True
        yield
        self.is_waiting = False
        self.beats += 1


class CountedGroup:
    """A group whose exchanges are counted in a pulse."""

    def __init__(self, group: Group, pulse: Pulse) -> None:
        self.rank = group.rank
        self.world_size = group.world_size
        self._group = group
        self._pulse = pulse

    def all_gather(self, tensor: Any) -> list[Any]:
        with self._pulse.exchanging():
            return self._group.all_gather(tensor)

    def any(self, flags: Sequence[bool]) -> list[bool]:
        with self._pulse.exchanging():
            return self._group.any(flags)

    def broadcast(self, value: Any) -> Any:
        with self._pulse.exchanging():
            return self._group.broadcast(value)

    def wait(self, arrival: Callable[[], _T]) -> _T:
        with self._pulse.exchanging():
            return self._group.wait(arrival)

    def close(self) -> None:
        self._group.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class Heartbeat:
    """What a worker last showed: attempts/NNNN/heartbeat.rank0003.json."""

    rank: int
    node: str
    t: float
    """Unix time at which it was written."""
    begun_t: float
    """Unix time at which the process began."""
    phase: str
    step: int
    beats: int
    exchanges: int
    is_waiting: bool
    is_hung: bool
    """Whether it wrote down its stacks and is about to end."""
    step_s: float
    """Seconds of this attempt in whole steps, with what they waited for data."""
    save_s: float
    data_s: float
    measurements: int = 0
    """Of this attempt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Who hangs."""

    ranks: tuple[int, ...]
    """Empty if nothing tells them from the others."""
    hosts: tuple[str, ...]
    """Their nodes, as far as they are known."""
    what: str
    """In words."""


def watch(
    run: RunFolder, attempt: int, rank: int, world_size: int, *, hang_s: float, together: bool
) -> Pulse:
    """Watch this process from now on, and return the pulse by which it has to live.

    ``hang_s`` 0 only shows heartbeats. With ``together`` the workers wait for each other, so that all hang if one does.
    """
    pulse = Pulse()
    Watchdog(pulse, run, attempt, rank, world_size, hang_s=hang_s, together=together).start()
    return pulse


def read_heartbeats(folder: Path) -> list[Heartbeat]:
    """Return what the workers of an attempt last showed in its folder, by rank."""
    ranks = sorted(int(path.stem[-4:]) for path in folder.glob("heartbeat.rank[0-9][0-9][0-9][0-9].json"))
    return [heartbeat for rank in ranks if (heartbeat := read_heartbeat(folder, rank))]


def read_heartbeat(folder: Path, rank: int) -> Heartbeat | None:
    """Return what worker ``rank`` of an attempt last showed, or None if it showed nothing that can be read."""
    with contextlib.suppress(Get3dError, OSError):
        data = read_json(heartbeat_path(folder, rank))
        return Heartbeat(**{field.name: data.get(field.name, 0) for field in fields(Heartbeat)})
    return None


def heartbeat_path(folder: Path, rank: int) -> Path:
    """Return where worker ``rank`` shows its heartbeat in the folder of an attempt."""
    return folder / f"heartbeat.rank{rank:04d}.json"


def stacks_path(folder: Path, rank: int) -> Path:
    """Return where worker ``rank`` writes its stacks when it hangs."""
    return folder / f"stacks.rank{rank:04d}.txt"


def read_verdict(folder: Path) -> Verdict | None:
    """Return who hung in the attempt of ``folder``; None if nobody did, or it is not known yet."""
    with contextlib.suppress(Get3dError, KeyError, TypeError):
        data = read_json(folder / VERDICT)
        return Verdict(ranks=tuple(data["ranks"]), hosts=tuple(data["hosts"]), what=data["what"])
    return None


def verdict(heartbeats: Sequence[Heartbeat], ranks: Sequence[int], hang_s: float) -> Verdict:
    """Say which of the workers ``ranks``, who wait for each other, hang, from what they last showed."""
    silent = sorted(set(ranks) - {heartbeat.rank for heartbeat in heartbeats})
    fewest = min((item.exchanges for item in heartbeats), default=0)
    behind = [item for item in heartbeats if item.exchanges == fewest]
    others = [item for item in heartbeats if item.exchanges > fewest]
    for_s = f"nothing moved for {hang_s:g} s"
    if silent:
        names = ", ".join(f"rank {rank}" for rank in silent[:MOST_NAMES])
        return Verdict(ranks=tuple(silent), hosts=(), what=f"{names} never showed a sign of life")
    if others:
        missed = f"did not come to the exchange of {_place(others[0])}: {for_s}"
        return _verdict_on(behind, f"{_names(behind)} {missed}")
    busy = [item for item in behind if not item.is_waiting]
    if busy:
        return _verdict_on(busy, f"{_names(busy)} hung during {_place(busy[0])}: {for_s}")
    what = f"all {len(ranks)} ranks wait for each other in the exchange of {_place(behind[0])}: {for_s}"
    return Verdict(ranks=(), hosts=(), what=what)


def process_age_s() -> float:
    """Return how long ago this process began; 0 if the system does not say."""
    start = env.process_start(os.getpid())
    if not start:
        return 0.0
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - int(start) / os.sysconf("SC_CLK_TCK"))


class Watchdog:
    """The two threads beside a worker: one counts ticks and touches no file, one shows the heartbeat."""

    def __init__(
        self,
        pulse: Pulse,
        run: RunFolder,
        attempt: int,
        rank: int,
        world_size: int,
        *,
        hang_s: float,
        together: bool,
    ) -> None:
        self._pulse = pulse
        self._run = run
        self._attempt = attempt
        self._folder = run.attempt_dir(attempt)
        self._rank = rank
        self._ranks = range(world_size) if together else range(rank, rank + 1)
        self._hang_s = hang_s
        self._tick_s = min(TICK_S, hang_s / 10) if hang_s else TICK_S
        self._show_s = min(SHOW_S, hang_s / 4) if hang_s else SHOW_S
        self._begun_t = time.time() - process_age_s()
        self._has_stacks = False
        self._is_called = False
        """Whether another worker found that the attempt hangs."""

    def start(self) -> None:
        """Begin to watch."""
        threading.Thread(target=self._keep_showing, daemon=True, name="heartbeat").start()
        if self._hang_s:
            threading.Thread(target=self._count, daemon=True, name="watchdog").start()

    @property
    def _limit_s(self) -> float:
        return self._hang_s if self._pulse.phase == "step" else max(self._hang_s, SLOW_S)

    def _count(self) -> None:
        seen, ticks = -1, 0
        while ticks * self._tick_s < self._limit_s and not self._is_called:
            self._sleep()
            beats = self._pulse.beats
            seen, ticks = beats, 0 if beats != seen else ticks + 1
        teller = threading.Thread(target=self._tell, daemon=True)
        teller.start()
        teller.join(TELL_S)
        os._exit(ExitCode.HUNG)

    def _sleep(self) -> None:
        begun_s = time.monotonic()
        time.sleep(self._tick_s)
        slept_s = time.monotonic() - begun_s
        if slept_s > self._hang_s:
            _say(f"rank {self._rank} did not run for {slept_s:.0f} s, which counts as no hang")

    def _keep_showing(self) -> None:
        while True:
            with contextlib.suppress(Get3dError, OSError):
                self._show()
            self._is_called = len(self._ranks) > 1 and (self._folder / VERDICT).exists()
            self._pulse.changed.wait(self._show_s)
            self._pulse.changed.clear()

    def _show(self) -> None:
        pulse = self._pulse
        heartbeat = Heartbeat(
            rank=self._rank,
            node=env.node_name(),
            t=round(time.time(), 3),
            begun_t=round(self._begun_t, 3),
            phase=pulse.phase,
            step=pulse.step,
            beats=pulse.beats,
            exchanges=pulse.exchanges,
            is_waiting=pulse.is_waiting,
            is_hung=self._has_stacks,
            step_s=round(pulse.seconds["step"], 3),
            save_s=round(pulse.seconds["save"], 3),
            data_s=round(pulse.seconds["data"], 3),
            measurements=pulse.measurements,
        )
        write_json(heartbeat_path(self._folder, self._rank), asdict(heartbeat))

    def _tell(self) -> None:
        """Write stacks and reason; the worker that found it first calls the others and judges for all."""
        with contextlib.suppress(Get3dError, OSError):
            is_first = len(self._ranks) == 1 or create(self._folder / VERDICT, b"{}")
            _write_stacks(stacks_path(self._folder, self._rank))
            self._has_stacks = True
            self._show()
            told = None if is_first else self._told()
            found = told or verdict(self._heartbeats(), self._ranks, self._limit_s)
            lines = (found.what, self._way_out(found))
            _say(*lines)
            failures.leave(self._folder, Failure(rank=self._rank, exit_code=int(ExitCode.HUNG), lines=lines))
            if told is None:
                log = EventLog(self._run.events_path, self._attempt, self._rank)
                log.write("hung", step=self._pulse.step, phase=self._pulse.phase, **asdict(found))
                write_json(self._folder / VERDICT, asdict(found))  # last: the others leave when they read it

    def _told(self) -> Verdict | None:
        """Return what the first worker found, or None if it says nothing for too long."""
        end_s = time.monotonic() + 2 * PEERS_S
        while time.monotonic() < end_s:
            if found := read_verdict(self._folder):
                return found
            time.sleep(min(0.5, self._tick_s))
        return None

    def _heartbeats(self) -> list[Heartbeat]:
        """Return the heartbeats of the attempt once all its workers came to their stacks, or after a while."""
        end_s = time.monotonic() + PEERS_S
        while True:
            found = [item for item in read_heartbeats(self._folder) if item.rank in self._ranks]
            if sum(item.is_hung for item in found) == len(self._ranks) or time.monotonic() > end_s:
                return found
            time.sleep(min(0.5, self._tick_s))

    def _way_out(self, found: Verdict) -> str:
        rank = found.ranks[0] if found.ranks else self._rank
        stacks = stacks_path(self._folder, rank)
        return f"what it was doing: {stacks}; if that may take longer, set retry.hang_s={4 * self._limit_s:g}"


def _write_stacks(path: Path) -> None:
    """Write the stacks of all threads of this process, and those of C code too if py-spy is there."""
    with path.open("w") as file:
        faulthandler.dump_traceback(file, all_threads=True)
    program = shutil.which("py-spy")
    if program is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_long(-1))  # Yama lets only ancestors look otherwise
    command = [program, "dump", "--native", "--pid", str(os.getpid())]
    with contextlib.suppress(subprocess.SubprocessError), path.open("a") as file:
        print(f"\n{' '.join(command)}", file=file, flush=True)
        subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=PY_SPY_S, check=False
        )


def _say(*lines: str) -> None:
    sys.stderr.write("\n".join(lines) + "\n")
    sys.stderr.flush()


def _verdict_on(guilty: Sequence[Heartbeat], what: str) -> Verdict:
    hosts = tuple(sorted({item.node for item in guilty}))
    return Verdict(ranks=tuple(item.rank for item in guilty), hosts=hosts, what=what)


def _place(heartbeat: Heartbeat) -> str:
    places = {
        "starting": "the start",
        "step": f"step {heartbeat.step + 1}",
        "measuring": f"the measurement after step {heartbeat.step}",
        "saving": f"the save of step {heartbeat.step}",
    }
    return places.get(heartbeat.phase, "the exit")


def _names(heartbeats: Sequence[Heartbeat]) -> str:
    return ", ".join(f"rank {item.rank} on {item.node}" for item in heartbeats[:MOST_NAMES])
