"""What a rehearsal found out: each stop, what it cost, and whether the bits are the same."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PHASES = (
    "imports",
    "loading",
    "first step",
    "step",
    "preview",
    "measuring",
    "saving",
    "publishing",
    "leaving",
)
"""What an attempt can be seen doing from outside, in the order in which it does. Workers that meet import torch before,
one that is alone while it loads."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is done to the second run."""

    stops: int = 3
    worlds: tuple[int, ...] = (1,)
    """Numbers of workers, one an attempt, over and over."""
    kill_ratio: float = 0.0
    """Share of the stops that are ``kill -9`` instead of a notice."""
    seed: int = 0
    reference: int = 1
    """Workers of the run that nothing interrupts."""
    first: float = 0.0
    last: float = 0.95
    """Stops that are not at the start of an attempt fall between these fractions of the run."""


@dataclass(frozen=True, kw_only=True)
class Stop:
    """One stop and the way back."""

    world_size: int
    how: str
    phase: str
    """One of ``PHASES``: what rank 0 was seen doing when the last signal was sent."""
    reached_step: int
    """Step that was seen when the signal was sent."""
    left_step: int
    """Step at which the workers left; for a kill the last one they are known to have done."""
    resumed_step: int
    is_kill: bool
    leave_s: float
    """From the signal until no worker was left."""
    recovery_s: float | None = None
    """From the signal until the next attempt had done a step; None if that one was stopped before."""
    start_s: float | None = None
    """From the start of this attempt until it had done a step; None if it was stopped before."""
    pids: tuple[int, ...] = ()

    @property
    def steps_lost(self) -> int:
        """Steps that have to be done again."""
        return max(0, self.left_step - self.resumed_step)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came out."""

    digest: str
    other_digest: str
    stops: tuple[Stop, ...]
    seconds: float
    straight_s: float = 0.0
    """How long the run took that nothing interrupted."""
    num_steps: int = 0
    asked_stops: int = 0
    environments: tuple[dict[str, Any], ...] = ()
    """Where the numeric environment changed on the way: step, and what changed. The bits may differ from there on."""

    @property
    def is_exact(self) -> bool:
        return self.digest == self.other_digest

    @property
    def lost_after_notices(self) -> int:
        """Steps done again after stops of which the workers were told; the promise is none."""
        return sum(stop.steps_lost for stop in self.stops if not stop.is_kill)

    @property
    def lost_after_kills(self) -> int:
        return sum(stop.steps_lost for stop in self.stops if stop.is_kill)

    def summary(self) -> dict[str, Any]:
        """Return the numbers of the whole rehearsal for programs."""
        return {
            "is_exact": self.is_exact,
            "stops": len(self.stops),
            "asked_stops": self.asked_stops,
            "kills": sum(stop.is_kill for stop in self.stops),
            "lost_after_notices": self.lost_after_notices,
            "lost_after_kills": self.lost_after_kills,
            "phases": {phase: len(stops) for phase, stops in _by_phase(self.stops)},
            "worlds": sorted({stop.world_size for stop in self.stops}),
            "median_start_s": {
                str(world): _median([stop.start_s for stop in self.stops if stop.world_size == world])
                for world in sorted({stop.world_size for stop in self.stops})
            },
            "median_recovery_s": _median([stop.recovery_s for stop in self.stops]),
            "seconds": round(self.seconds, 1),
            "straight_s": round(self.straight_s, 1),
        }

    def lines(self) -> list[str]:
        """Return what came out in sentences."""
        kills = sum(stop.is_kill for stop in self.stops)
        notices = len(self.stops) - kills
        short = self.asked_stops - len(self.stops)
        return [
            f"{notices} stops with a notice: {self.lost_after_notices} steps lost; {kills} with kill -9: "
            f"{self.lost_after_kills} steps done again",
            *([f"{short} stops did not fit: make the run longer, or ask for fewer"] if short > 0 else []),
            *(
                f"not bitwise from step {row['step']} on: the numeric environment changed ({_changes(row)})"
                for row in self.environments
            ),
            f"uninterrupted  {self.digest}",
            f"interrupted    {self.other_digest}",
        ]


def changed_environments(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the events of a run from which on its state is not bit for bit the uninterrupted one.

    These are the resumes in another numeric environment that saved something: what an attempt did that left nothing
    behind was done again by the next one.
    """
    furthest: dict[int, int] = {}
    for row in rows:
        if row.get("event") == "save":
            furthest[row["attempt"]] = max(row["step"], furthest.get(row["attempt"], 0))
    return [
        row
        for row in rows
        if row.get("event") == "environment" and furthest.get(row["attempt"], 0) > row["step"]
    ]


STOP_HEADERS = (
    "#",
    "workers",
    "phase",
    "what",
    "left at",
    "came back at",
    "lost",
    "gone after",
    "trains again after",
)
PHASE_HEADERS = ("phase", "stops", "kills", "lost after notices", "lost after kills", "trains again after")


def stop_rows(stops: Sequence[Stop]) -> list[list[str]]:
    """Return a table with a row for each stop, under ``STOP_HEADERS``."""
    return [
        [
            str(number),
            str(stop.world_size),
            stop.phase,
            stop.how,
            str(stop.left_step),
            str(stop.resumed_step),
            str(stop.steps_lost),
            _seconds(stop.leave_s),
            _seconds(stop.recovery_s),
        ]
        for number, stop in enumerate(stops, 1)
    ]


def phase_rows(stops: Sequence[Stop]) -> list[list[str]]:
    """Return a table with a row for each phase, under ``PHASE_HEADERS``."""
    return [
        [
            phase,
            str(len(found)),
            str(sum(stop.is_kill for stop in found)),
            str(sum(stop.steps_lost for stop in found if not stop.is_kill)),
            str(sum(stop.steps_lost for stop in found if stop.is_kill)),
            _seconds(_median([stop.recovery_s for stop in found])),
        ]
        for phase, found in _by_phase(stops)
    ]


def sentence(number: int, asked: int, stop: Stop, left_s: float) -> str:
    """Return the line that is shown when stop ``number`` is over; ``left_s`` is the time the rest will take."""
    lost = f"{stop.steps_lost} steps to do again" if stop.steps_lost else "nothing lost"
    minutes = f", about {left_s / 60:.0f} min left" if left_s >= 90 else ""
    what = f"{stop.how} in phase '{stop.phase}' at step {stop.left_step} on {stop.world_size} workers"
    return f"stop {number} of {asked}: {what}, {lost}{minutes}"


def _by_phase(stops: Sequence[Stop]) -> list[tuple[str, list[Stop]]]:
    found = ((phase, [stop for stop in stops if stop.phase == phase]) for phase in PHASES)
    return [(phase, those) for phase, those in found if those]


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), 2) if known else None


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def _changes(row: dict[str, Any]) -> str:
    return ", ".join(f"{key} {old} -> {new}" for key, (old, new) in row["changed"].items())
