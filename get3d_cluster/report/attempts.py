"""The attempts of a run as a table: how each came and went, and where the time went. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from get3d_cluster.report.reading import Ending, Event, RunFacts, whole
from get3d_cluster.report.words import clock, duration, link
from get3d_cluster.runtime.goodput import Goodput

INTERRUPTIONS = frozenset({"preempted", "time-limit", "node-failure", "requeued", "suspended"})
FAULTS = frozenset({"crashed", "hung", "diverged", "refused", "unknown"})


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptRow:
    """One line of the table of attempts."""

    number: int
    started: str
    ran: str
    workers: str
    pid: int
    came_back_at: int | None
    """Step of the checkpoint it went on from; None for a start from nothing."""
    steps: str
    lost: int
    cause: str
    tone: str
    exit_code: str
    left_in: str
    """Time from the notice to having left."""
    message: str
    log: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """One part of where the time went."""

    name: str
    tone: str
    seconds: float
    percent: float
    """Of all parts together."""


def attempt_rows(facts: RunFacts) -> list[AttemptRow]:
    """Return the table of attempts, oldest first."""
    return [_attempt_row(attempt, facts) for attempt in facts.attempts]


def steps_lost(facts: RunFacts) -> tuple[int, bool]:
    """Return the steps that were computed more than once, and whether every ended attempt told its last step."""
    ended = facts.attempts if facts.done is not None else facts.attempts[:-1]
    silent = [attempt for attempt in ended if attempt not in facts.endings]
    return sum(_lost_in(ending) for ending in facts.endings.values()), not silent


def time_spent(goodput: Goodput) -> list[Spent]:
    """Return where time went, part by part; parts that took none are left out."""
    parts = (
        ("productive", "good", goodput.productive_s),
        ("waiting for data", "c4", goodput.waiting_s),
        ("done again", "bad", goodput.redone_s),
        ("saving", "c0", goodput.saving_s),
        ("starting", "c3", goodput.starting_s),
        ("leaving or cut short", "plain", goodput.other_s),
        ("queued", "stop", goodput.queued_s),
        ("stopped by a person", "line", goodput.stopped_s),
    )
    total_s = sum(seconds for _, _, seconds in parts)
    return [
        Spent(name=name, tone=tone, seconds=seconds, percent=100.0 * seconds / total_s)
        for name, tone, seconds in parts
        if seconds > 0.0
    ]


def tone(cause: str) -> str:
    """Return how a cause is coloured: good, busy, stop, bad or plain."""
    if cause == "finished":
        return "good"
    if cause in INTERRUPTIONS:
        return "stop"
    if cause in FAULTS:
        return "bad"
    return "busy" if cause == "running" else "plain"


def _attempt_row(attempt: int, facts: RunFacts) -> AttemptRow:
    events = [e for e in facts.events if e.attempt == attempt]
    ending = facts.endings.get(attempt)
    cause = ending.cause if ending else "running" if attempt == facts.attempts[-1] else "no word"
    resume = _first(events, "resume")
    return AttemptRow(
        number=attempt,
        started=clock(events[0].t) if events else "",
        ran=duration(_ran(events, ending)),
        workers=_workers(events, ending),
        pid=next((e.pid for e in events if e.rank == 0), 0),
        came_back_at=whole(resume.fields.get("step")) if resume else None,
        steps=f"{ending.start_step:,} → {ending.end_step:,}" if ending else "",
        lost=_lost_in(ending) if ending else 0,
        cause=cause,
        tone=tone(cause),
        exit_code=str(ending.exit_code) if ending else "",
        left_in=_left_in(events),
        message=ending.message if ending else "",
        log=link(facts.logs[attempt]) if attempt in facts.logs else "",
    )


def _left_in(events: Sequence[Event]) -> str:
    notice, suspend = _first(events, "notice"), _first(events, "suspend")
    return duration(max(0.0, suspend.t - notice.t)) if notice and suspend else ""


def _ran(events: Sequence[Event], ending: Ending | None) -> float:
    seen = events[-1].t - events[0].t if events else 0.0
    return max(seen, ending.seconds if ending else 0.0)


def _workers(events: Sequence[Event], ending: Ending | None) -> str:
    start = _first(events, "attempt-start")
    count = ending.world_size if ending else whole(start.fields.get("world_size")) if start else 0
    hosts = ", ".join(ending.hosts) if ending else str(start.fields.get("host", "")) if start else ""
    return f"{count or '?'} on {hosts}" if hosts else f"{count or '?'}"


def _lost_in(ending: Ending) -> int:
    return 0 if ending.cause == "finished" else max(0, ending.end_step - ending.saved_step)


def _first(events: Sequence[Event], name: str) -> Event | None:
    return next((e for e in events if e.name == name), None)
