"""Where the time of a run went: what share of it made progress, and what took the rest.

From events.jsonl, the outcomes and the heartbeats, up to the last sign of life. The lowest rank of an attempt speaks
for all: 0, but in an array, whose elements have attempts of their own. Without the numbers that the loops write today,
as in runs of older versions, what lies between the start and the end of an attempt counts as steps, redone ones in
proportion.
"""

import contextlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from get3d_cluster.core.job import Cause, Outcome
from get3d_cluster.errors import Get3dError
from get3d_cluster.runtime.run_folder import RunFolder, read_json
from get3d_cluster.runtime.watchdog import Heartbeat, read_heartbeat, read_heartbeats

STOPPED = (Cause.SUSPENDED, Cause.CANCELLED, Cause.REFUSED, Cause.DIVERGED)
"""Causes after which a run waits for a person, not for machines."""

_EVENTS = (
    "attempt-start",
    "start",
    "resume",
    "notice",
    "save",
    "suspend",
    "crash",
    "finish",
    "hung",
    "rollback",
)
_WANTED = re.compile(rb'"event":\s*"(' + "|".join(_EVENTS).encode() + rb')"')
"""A run that has written a million other events is shown as fast as one that has not."""
MOST_SAVES = 20
"""Of an attempt; one that comes back from an older checkpoint than these is told in proportion."""
_LARGEST = 1e15


@dataclass(frozen=True, kw_only=True, slots=True)
class Goodput:
    """Where time went, in seconds; all parts together are the whole time."""

    productive_s: float = 0.0
    """In steps whose results were kept, without what they waited for data."""
    waiting_s: float = 0.0
    """Waiting for data in those steps."""
    redone_s: float = 0.0
    """In steps that were done again, or will be, since no checkpoint holds them, or the training diverged in them."""
    saving_s: float = 0.0
    """In saves, while nothing was computed."""
    starting_s: float = 0.0
    """From the start of the process to the first step: imports, meeting, loading."""
    other_s: float = 0.0
    """Leaving; and what a crash, a kill or a hang cut short."""
    queued_s: float = 0.0
    """Waiting for machines before an attempt, and for a back-off."""
    stopped_s: float = 0.0
    """Before an attempt, stopped by a person or waiting for one."""

    def __add__(self, other: "Goodput") -> "Goodput":
        values = {
            field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)
        }
        return Goodput(**values)

    @property
    def wall_s(self) -> float:
        """The whole time but for that in which a person had it stopped."""
        return math.fsum(getattr(self, field.name) for field in fields(self)) - self.stopped_s

    @property
    def share(self) -> float | None:
        """Productive part of the wall time; None before there is any."""
        return self.productive_s / self.wall_s if self.wall_s > 0.0 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Total:
    """Goodput of a run."""

    attempts: Mapping[int, Goodput]
    """By number, each with the wait before it."""

    @property
    def total(self) -> Goodput:
        """Sum over the attempts; those of an array's elements overlap in time."""
        return sum(self.attempts.values(), Goodput())

    @property
    def share(self) -> float | None:
        """Productive part of the wall time; None before the first attempt."""
        return self.total.share


def goodput_of(run: RunFolder) -> Total:
    """Return where the time of ``run`` went, as far as its files tell; torn or missing ones are left out."""
    rows = _rows(run.events_path)
    numbers = {number for row in rows if (number := int(_number(row.get("attempt")))) > 0}
    attempts = sorted(numbers.union(run.attempts()))
    outcomes = {number: outcome for number in attempts if (outcome := _outcome(run, number))}
    beats = {number: beat for number in attempts if (beat := _beat(run.attempt_dir(number)))}
    spec: dict[str, Any] = {}
    with contextlib.suppress(Get3dError):
        spec = read_json(run.spec_path)
    return goodput(
        attempts, rows, outcomes, beats, _unix(spec.get("created")), is_items=spec.get("kind") == "items"
    )


def goodput(
    attempts: Sequence[int],
    rows: Sequence[Mapping[str, Any]],
    outcomes: Mapping[int, Outcome],
    beats: Mapping[int, Heartbeat],
    created_t: float | None,
    *,
    is_items: bool = False,
) -> Total:
    """Return where the time went, from the facts of all ``attempts``, ascending.

    ``created_t`` is the Unix time of the submission; items are never done again, as far as files tell.
    """
    by_attempt: dict[int, list[Mapping[str, Any]]] = {number: [] for number in attempts}
    for row in rows:
        by_attempt.get(int(_number(row.get("attempt"))), []).append(row)
    lanes: dict[int | None, list[_Attempt]] = {}
    for number in attempts:
        facts = _Attempt(number, by_attempt[number], outcomes.get(number), beats.get(number))
        lanes.setdefault(facts.element, []).append(facts)
    found: dict[int, Goodput] = {}
    for lane in lanes.values():
        found |= _of_lane(lane, created_t, is_items=is_items)
    return Total(attempts=dict(sorted(found.items())))


class _Attempt:
    """What is known of an attempt."""

    def __init__(
        self,
        number: int,
        rows: Sequence[Mapping[str, Any]],
        outcome: Outcome | None,
        beat: Heartbeat | None,
    ) -> None:
        self.number = number
        self._rows = [row for row in rows if _number(row.get("t"))]
        self._beat = beat
        lead = min((_number(row.get("rank")) for row in self._rows), default=0.0)
        led = [row for row in self._rows if _number(row.get("rank")) == lead]
        self._saves = [row for row in led if row.get("event") == "save"]
        self._told = [row for row in led if row.get("event") in ("save", "rollback")]
        self.went_back_to = [_number(row.get("to")) for row in self._told if row["event"] == "rollback"]
        self._seconds = _number(outcome.seconds) if outcome else 0.0
        self.cause = outcome.cause if outcome else None
        self.element = outcome.element if outcome else _first(self._rows, "element")
        ready = next((row for row in led if row.get("event") in ("start", "resume")), None)
        self.ready_t = _number(ready["t"]) if ready else None
        self.start_step = _number(ready.get("step")) if ready else None
        self._since_s = _number(ready.get("since_s")) if ready else 0.0
        self._is_old = beat is None and not any("step_s" in row for row in self._saves)
        self._end_step = _number(outcome.end_step) if outcome else self._last_step()
        self.saved_step = _number(outcome.saved_step) if outcome else None

    def span(self, before_t: float | None) -> tuple[float, float]:
        """Return when it began and ended, in Unix time; one that left no sign of life begins at ``before_t``."""
        times = [_number(row["t"]) for row in self._rows if row.get("event") != "notice"]
        ends = list(times)
        if self.ready_t is not None:
            times.append(self.ready_t - self._since_s)
        if self._beat and _number(self._beat.t):
            times.append(_number(self._beat.begun_t) or _number(self._beat.t))
            ends.append(_number(self._beat.t))
        begin_t = min(times, default=before_t or 0.0)
        return begin_t, max([*ends, begin_t + self._seconds])

    def save_s(self) -> float:
        if self._is_old:
            return math.fsum(_number(row.get("seconds")) for row in self._saves)
        told = [
            _number(row.get("save_s")) + _number(row.get("stall_s", row.get("seconds")))
            for row in self._saves[-1:]
        ]
        return max([*told, _number(self._beat.save_s) if self._beat else 0.0])

    def steps(self, end_t: float, kept_to: float | None) -> tuple[float, float, float]:
        """Return the seconds in kept steps, what of them waited for data, and those in steps done again."""
        if self.ready_t is None or self.start_step is None:
            return 0.0, 0.0, 0.0
        points, lost_s = self._points(end_t)
        _, step_s, data_s = points[-1]
        if kept_to is not None and kept_to < points[-1][0]:
            kept_s, kept_data_s = _at(points, kept_to)
        else:
            kept_s, kept_data_s = step_s, data_s
        return kept_s, min(kept_data_s, kept_s), step_s - kept_s + lost_s

    def _points(self, end_t: float) -> tuple[list[tuple[float, float, float]], float]:
        """Return steps done, and the seconds that they and their waits for data took so far; in order.

        And the seconds in steps before a roll-back, which do not count among them.
        """
        assert self.start_step is not None
        assert self.ready_t is not None
        start = (self.start_step, 0.0, 0.0)
        if self._is_old:
            steps_s = max(0.0, end_t - self.ready_t - self.save_s())
            return [start, (max(self._end_step, self.start_step), steps_s, 0.0)], 0.0
        told: list[Mapping[str, Any]] = [*self._told, *([asdict(self._beat)] if self._beat else [])]
        points, lost_s, lost_data_s = [start], 0.0, 0.0
        for row in told:
            step, step_s, data_s = (_number(row.get(key)) for key in ("step", "step_s", "data_s"))
            step_s, data_s = step_s - lost_s, data_s - lost_data_s
            if step >= points[-1][0] and step_s >= points[-1][1]:
                points.append((step, step_s, data_s))
            if row.get("event") == "rollback":
                to = _number(row.get("to"))
                kept_s, kept_data_s = _at(points, to)
                lost_s, lost_data_s = lost_s + step_s - kept_s, lost_data_s + data_s - kept_data_s
                points = [*(point for point in points if point[0] < to), (to, kept_s, kept_data_s)]
        return points, lost_s

    def _last_step(self) -> float:
        return max((_number(row.get("step")) for row in self._rows), default=0.0)


def _of_lane(lane: Sequence[_Attempt], created_t: float | None, *, is_items: bool) -> dict[int, Goodput]:
    """Return the goodput of attempts that followed each other."""
    found: dict[int, Goodput] = {}
    before_t, before_cause = created_t, None
    for index, attempt in enumerate(lane):
        begin_t, end_t = attempt.span(before_t)
        gap_s = max(0.0, begin_t - before_t) if before_t else 0.0
        is_stopped = before_cause in STOPPED
        kept_to = None if is_items else _kept_to(attempt, lane[index + 1 :])
        kept_s, data_s, redone_s = attempt.steps(end_t, kept_to)
        starting_s = (attempt.ready_t if attempt.ready_t is not None else end_t) - begin_t
        saving_s = attempt.save_s()
        rest_s = (end_t - begin_t) - math.fsum([starting_s, kept_s, redone_s, saving_s])
        found[attempt.number] = Goodput(
            productive_s=kept_s - data_s,
            waiting_s=data_s,
            redone_s=redone_s,
            saving_s=saving_s,
            starting_s=max(0.0, starting_s),
            other_s=max(0.0, rest_s),
            queued_s=0.0 if is_stopped else gap_s,
            stopped_s=gap_s if is_stopped else 0.0,
        )
        before_t, before_cause = max(end_t, before_t or 0.0), attempt.cause
    return found


def _kept_to(attempt: _Attempt, later: Sequence[_Attempt]) -> float | None:
    """Return the step beyond which the work of ``attempt`` is done again; None if nothing is known to be."""
    resumed = [other.start_step for other in later if other.start_step is not None]
    resumed += [to for other in later for to in other.went_back_to]
    if resumed:
        return min(resumed)
    return None if attempt.cause is Cause.FINISHED else attempt.saved_step


def _at(points: Sequence[tuple[float, float, float]], step: float) -> tuple[float, float]:
    """Return the seconds at ``step``, between known ones in proportion."""
    for (step_0, a_0, b_0), (step_1, a_1, b_1) in pairwise(points):
        if step_0 <= step <= step_1 and step_1 > step_0:
            share = (step - step_0) / (step_1 - step_0)
            return a_0 + share * (a_1 - a_0), b_0 + share * (b_1 - b_0)
    return 0.0, 0.0


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        data = path.read_bytes()
    except OSError:
        return []
    rows = []
    for line in _needed(data.splitlines()):
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            rows += [row] if isinstance(row, dict) else []
    return rows


def _needed(lines: Sequence[bytes]) -> list[bytes]:
    """Return the lines that tell of time; of saves that count what went before, the last ones in a row are enough."""
    needed: list[bytes] = []
    saves: list[bytes] = []
    for line in lines:
        found = _WANTED.search(line)
        if found and found[1] == b"save" and b'"step_s"' in line:
            saves.append(line)
        elif found:
            needed += [*saves[-MOST_SAVES:], line]
            saves.clear()
    return needed + saves[-MOST_SAVES:]


def _outcome(run: RunFolder, attempt: int) -> Outcome | None:
    with contextlib.suppress(Get3dError, ValueError, KeyError, TypeError):  # torn, or of another version
        return run.outcome(attempt)
    return None


def _beat(folder: Path) -> Heartbeat | None:
    return read_heartbeat(folder, 0) or next(iter(read_heartbeats(folder)), None)


def _first(rows: Sequence[Mapping[str, Any]], key: str) -> int | None:
    return next((int(_number(row[key])) for row in rows if row.get(key) is not None), None)


def _unix(created: object) -> float | None:
    try:
        moment = datetime.fromisoformat(str(created))
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _number(value: object) -> float:
    """Return ``value`` if it is a number of reasonable size, else 0."""
    is_number = isinstance(value, int | float) and abs(value) < _LARGEST
    return float(value) if is_number else 0.0  # type: ignore[arg-type]  # mypy forgets the check
