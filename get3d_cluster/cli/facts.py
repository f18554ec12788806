"""What the files and the scheduler say of runs: read once for each look, so that ``status`` is a function of it.

A scheduler is opened once a look and may remember what it was told for that long; it is asked how an attempt without a
last word ended for a few runs only, and once for each attempt as long as one is watching.
"""

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from get3d_cluster.config import read_section_or_default
from get3d_cluster.core.job import Cause, JobSpec, Outcome, RetryConfig
from get3d_cluster.errors import Get3dError
from get3d_cluster.runtime.checkpoint_files import meta_in, not_bitwise_from
from get3d_cluster.runtime.env import ProcessId
from get3d_cluster.runtime.goodput import Goodput, goodput_of
from get3d_cluster.runtime.lease import read_lease
from get3d_cluster.runtime.run_folder import RunFolder, read_json
from get3d_cluster.schedulers import open_scheduler
from get3d_cluster.schedulers.base import Scheduler, Standing

MOST_POST_MORTEMS = 8
"""Questions about attempts without a last word in one look at all runs: each may cost the scheduler a second."""
ASK_AGAIN_S = 30.0
"""The accounting hears of an end some time after it."""
TAIL_BYTES = 65_536


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the files and the scheduler say of a run now."""

    name: str
    path: str
    spec: JobSpec | None
    """None: spec.json cannot be read."""
    is_done: bool
    standing: Standing
    silent_s: float | None = None
    """For so long the scheduler has not answered while we watched; None if it answers."""
    attempts: Sequence[int] = ()
    outcomes: Sequence[Outcome] = ()
    """As written by the attempts, oldest first."""
    post_mortem: Outcome | None = None
    """How the newest attempt ended that left no word, as far as the scheduler knows."""
    progress: dict[str, Any] = field(default_factory=dict)
    progress_age_s: float | None = None
    saved_step: int = 0
    saved_age_s: float | None = None
    not_bitwise_from: int | None = None
    """As the newest checkpoint tells."""
    goodput: Goodput = field(default_factory=Goodput)
    """Where the time of all attempts went."""
    retry: RetryConfig = field(default_factory=RetryConfig)
    """Read only where something is decided by it, since YAML is slow."""
    held: str = ""
    """Why the scheduler gave the run up until a person resumes it (hold.json)."""
    stopped: str = ""
    """Cause with which a person stopped it while no attempt could record that (stopped.json)."""


@dataclass
class Inquiry:
    """What was asked while one command looks at runs, be it once or every two seconds."""

    _schedulers: dict[str, Scheduler] = field(default_factory=dict)
    _post_mortems: dict[tuple[str, int], tuple[float, Outcome | None]] = field(default_factory=dict)
    """Answers, with the monotonic time from which one that said nothing is asked for again."""
    _silent_since_s: dict[str, float] = field(default_factory=dict)
    """Monotonic clock, by scheduler."""
    _num_asked: int = 0

    def look(self, runs: Sequence[RunFolder]) -> list[Facts]:
        """Return the facts of ``runs`` now; one that cannot be read has some, too, which say so."""
        self._schedulers.clear()  # what a scheduler object remembers is of one look
        self._num_asked = 0
        return [self._facts(run) for run in runs]

    def _facts(self, run: RunFolder) -> Facts:
        try:
            spec = run.spec()
        except (Get3dError, TypeError) as error:
            standing = Standing(state="unknown", why=str(error))
            return Facts(
                name=run.name, path=str(run.path), spec=None, is_done=run.is_done(), standing=standing
            )
        # In this order a run that ends meanwhile is DONE with all it did, not LOST with half of it.
        standing = self._standing(run, spec)
        attempts, outcomes = run.attempts(), _outcomes(run)
        is_done = run.is_done()
        post_mortem = None if is_done else self._post_mortem(run, standing, attempts, outcomes)
        ends = [*outcomes, *([post_mortem] if post_mortem else [])]
        progress = _progress(run)
        saved_step, saved_t, parted_step = _newest_checkpoint(run)
        now = time.time()
        is_asked = not is_done and _is_retry_asked(standing, ends)
        retry = read_section_or_default(RetryConfig, run.config_path, "retry") if is_asked else RetryConfig()
        return Facts(
            name=run.name,
            path=str(run.path),
            spec=spec,
            is_done=is_done,
            standing=standing,
            silent_s=self._silent_s(spec, standing),
            attempts=attempts,
            outcomes=outcomes,
            post_mortem=post_mortem,
            progress=progress,
            progress_age_s=now - progress["t"] if "t" in progress and not _is_abandoned(run) else None,
            saved_step=saved_step,
            saved_age_s=max(0.0, now - saved_t) if saved_t else None,
            not_bitwise_from=parted_step,
            goodput=goodput_of(run).total,
            retry=retry,
            held=_word(run.hold_path, "why"),
            stopped=_word(run.stopped_path, "cause"),
        )

    def _scheduler(self, name: str) -> Scheduler:
        if name not in self._schedulers:
            self._schedulers[name] = open_scheduler(name)
        return self._schedulers[name]

    def _standing(self, run: RunFolder, spec: JobSpec) -> Standing:
        if run.is_done():
            return Standing(state="absent")
        try:
            return self._scheduler(spec.scheduler).standing(run)
        except Get3dError as error:
            return Standing(state="unknown", why=error.what)

    def _silent_s(self, spec: JobSpec, standing: Standing) -> float | None:
        if standing.state != "unknown":
            self._silent_since_s.pop(spec.scheduler, None)
            return None
        now = time.monotonic()
        return now - self._silent_since_s.setdefault(spec.scheduler, now)

    def _post_mortem(
        self, run: RunFolder, standing: Standing, attempts: Sequence[int], outcomes: Sequence[Outcome]
    ) -> Outcome | None:
        newest = max(attempts, default=0)
        if standing.state != "absent" or not newest or any(outcome.attempt == newest for outcome in outcomes):
            return None
        key, now = (str(run.path), newest), time.monotonic()
        again_s, known = self._post_mortems.get(key, (0.0, None))
        if known is None and now >= again_s and self._num_asked < MOST_POST_MORTEMS:
            self._num_asked += 1
            known = self._scheduler(run.spec().scheduler).post_mortem(run, newest)
            self._post_mortems[key] = (now + ASK_AGAIN_S, known)
        return known


def gather(run: RunFolder) -> Facts:
    """Read everything about ``run`` that ``status`` shows; missing and torn files count as empty."""
    return Inquiry().look([run])[0]


def open_attempts(facts: Facts) -> list[int]:
    """Return the attempts that left no outcome."""
    ended = {outcome.attempt for outcome in facts.outcomes}
    return [attempt for attempt in facts.attempts if attempt not in ended]


def _is_retry_asked(standing: Standing, ends: Sequence[Outcome]) -> bool:
    """Say whether how the run stands depends on how often it may come back."""
    clear = (Cause.FINISHED, Cause.SUSPENDED, Cause.CANCELLED, Cause.REFUSED)
    return standing.state != "running" and any(
        outcome.cause not in clear for outcome in _newest_of_elements(ends)
    )


def _newest_of_elements(ends: Sequence[Outcome]) -> list[Outcome]:
    return list({outcome.element: outcome for outcome in ends}.values())


def _is_abandoned(run: RunFolder) -> bool:
    """Say whether whoever worked on the run last is provably gone: then fresh progress is no sign of life."""
    with contextlib.suppress(Get3dError, KeyError):
        held = read_lease(run.lease_path)
        if held is not None:
            holder = ProcessId(host=held["host"], pid=held["pid"], start=held["start"], boot=held["boot"])
            return bool(held.get("released")) or holder.is_alive() is False
    return False


def _outcomes(run: RunFolder) -> list[Outcome]:
    found = []
    for attempt in run.attempts():
        with contextlib.suppress(Get3dError, ValueError, KeyError, TypeError):  # torn or of another version
            outcome = run.outcome(attempt)
            found += [outcome] if outcome else []
    return found


def _progress(run: RunFolder) -> dict[str, Any]:
    with contextlib.suppress(Get3dError):
        found = read_json(run.progress_path)
        return {key: value for key, value in found.items() if isinstance(value, int | float)}
    return {"step": step} if (step := _last_measured_step(run.metrics_path)) else {}


def _last_measured_step(path: Path) -> int:
    with contextlib.suppress(OSError):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            tail = file.read().decode(errors="replace")
        return max(map(_step_of, tail.splitlines()), default=0)
    return 0


def _step_of(line: str) -> int:
    """Return the step of one row of metrics.jsonl; 0 for a line torn by a kill or cut by the tail."""
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        return int(json.loads(line).get("step", 0))
    return 0


def _newest_checkpoint(run: RunFolder) -> tuple[int, float, int | None]:
    """Return step and time of the newest published checkpoint (zeros: none), and what it tells of its bits."""
    with contextlib.suppress(OSError):
        found = [path for path in run.checkpoints_dir.glob("step-*") if path.name[5:].isdigit()]
        newest = max(found, key=lambda path: int(path.name[5:]), default=None)
        if newest:
            return int(newest.name[5:]), newest.stat().st_mtime, not_bitwise_from(meta_in(newest))
    return 0, 0.0, None


def _word(path: Path, key: str) -> str:
    with contextlib.suppress(Get3dError):
        return str(read_json(path).get(key, ""))
    return ""
