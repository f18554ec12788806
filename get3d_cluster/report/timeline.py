"""Where the attempts of a run lie in time, as rectangles and marks to draw. Pure.

Waiting in a queue may take a thousand times as long as an attempt, so long waits are drawn shortened.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from get3d_cluster.report.reading import Ending, Event, RunFacts

WIDTH = 1000.0
"""Width of the drawing; heights are up to the page."""

LONGEST_WAIT = 0.05
"""Longest drawn wait, as a share of the time in attempts."""

MARK_WIDTH = 15.0

MARKS = {
    "attempt-start": "start",
    "resume": "resume",
    "notice": "notice",
    "save": "save",
    "suspend": "suspend",
    "finish": "finish",
    "crash": "crash",
    "rollback": "rollback",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """One event of an attempt."""

    x: float
    kind: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One attempt."""

    attempt: int
    x: float
    width: float
    cause: str
    """How it ended; ``running`` without a word about that."""
    pid: int
    start_t: float
    seconds: float
    marks: tuple[Mark, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wait:
    """Time between two attempts."""

    x: float
    width: float
    seconds: float
    shortened: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """All attempts on one time axis."""

    bars: tuple[Bar, ...]
    waits: tuple[Wait, ...]


def timeline(facts: RunFacts) -> Timeline:
    """Lay out the attempts that left events."""
    spans = {
        number: _span(events, facts.endings.get(number)) for number, events in _by_attempt(facts).items()
    }
    axis = _Axis(spans.values())
    bars = [_bar(number, spans[number], events, facts, axis) for number, events in _by_attempt(facts).items()]
    return Timeline(bars=tuple(bars), waits=axis.waits())


class _Axis:
    """Time to x, with long waits shortened."""

    def __init__(self, spans: Iterable[tuple[float, float]]) -> None:
        self._busy = _merged(spans)
        busy_s = sum(end - start for start, end in self._busy)
        gaps = [b[0] - a[1] for a, b in zip(self._busy, self._busy[1:], strict=False)]
        self._gaps = gaps
        self._drawn = [min(gap, LONGEST_WAIT * busy_s) for gap in gaps]
        self._scale = WIDTH / max(1e-6, busy_s + sum(self._drawn))

    def x(self, t: float) -> float:
        passed = 0.0
        for index, (start, end) in enumerate(self._busy):
            if t <= end:
                return self._scale * (passed + max(0.0, t - start))
            passed += end - start + (self._drawn[index] if index < len(self._drawn) else 0.0)
        return self._scale * passed

    def waits(self) -> tuple[Wait, ...]:
        rows = zip(self._busy, self._gaps, self._drawn, strict=False)
        return tuple(
            Wait(x=self.x(end), width=self._scale * drawn, seconds=gap, shortened=drawn < gap)
            for (_, end), gap, drawn in rows
        )


def _by_attempt(facts: RunFacts) -> dict[int, list[Event]]:
    rows = {number: [e for e in facts.events if e.attempt == number] for number in facts.attempts}
    return {number: events for number, events in rows.items() if events}


def _span(events: Sequence[Event], ending: Ending | None) -> tuple[float, float]:
    start, last = events[0].t, events[-1].t
    return start, max(last, start + (ending.seconds if ending else 0.0))


def _merged(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _bar(
    number: int, span: tuple[float, float], events: Sequence[Event], facts: RunFacts, axis: _Axis
) -> Bar:
    ending = facts.endings.get(number)
    start, end = span
    return Bar(
        attempt=number,
        x=axis.x(start),
        width=axis.x(end) - axis.x(start),
        cause=ending.cause if ending else "running",
        pid=next((e.pid for e in events if e.rank == 0 and e.pid), events[0].pid),
        start_t=start,
        seconds=end - start,
        marks=_spread([_mark(e, start, axis) for e in _shown(events)], axis.x(start)),
    )


def _shown(events: Sequence[Event]) -> list[Event]:
    """Rank 0 speaks for all ranks, except about what it did not hear itself."""
    own = [e for e in events if e.rank == 0 and e.name in MARKS]
    others = [e for e in events if e.rank != 0 and e.name in {"notice", "crash"}]
    heard = {e.name for e in own}
    first = {e.name: e for e in reversed(others) if e.name not in heard}
    return sorted([*own, *first.values()], key=lambda e: e.t)


def _spread(marks: Sequence[Mark], first_x: float) -> tuple[Mark, ...]:
    """Move marks that would hide each other apart, earlier ones to the left; saves are thin and stay."""
    wide = [m for m in marks if m.kind != "save"]
    places = [m.x for m in wide]
    for index in range(len(places) - 2, -1, -1):
        places[index] = min(places[index], places[index + 1] - MARK_WIDTH)
    for index in range(len(places)):
        places[index] = max(places[index], places[index - 1] + MARK_WIDTH if index else first_x)
    moved = [replace(mark, x=x) for mark, x in zip(wide, places, strict=True)]
    return (*(m for m in marks if m.kind == "save"), *moved)


def _mark(event: Event, start: float, axis: _Axis) -> Mark:
    details = ", ".join(f"{key} {_short(value)}" for key, value in _ordered(event.fields))
    return Mark(
        x=axis.x(event.t),
        kind=MARKS[event.name],
        text=f"{event.name} after {event.t - start:.1f} s, pid {event.pid}"
        + (f": {details}" if details else ""),
    )


def _ordered(fields: Mapping[str, object]) -> list[tuple[str, object]]:
    return sorted(fields.items(), key=lambda item: (item[0] != "step", item[0]))


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    text = str(value)
    return text if len(text) <= 48 else text[:45] + "..."
