"""How runs stand: facts are read from the run folder and the scheduler, the row of a run is a pure function of them."""

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from get3d_cluster.cli.output import duration, table
from get3d_cluster.config import read_section
from get3d_cluster.core.job import Cause, JobSpec, Outcome, RetryConfig, RunState
from get3d_cluster.core.policy import Action, after_attempt
from get3d_cluster.errors import Get3dError
from get3d_cluster.runtime.env import ProcessId
from get3d_cluster.runtime.lease import read_lease
from get3d_cluster.runtime.run_folder import RunFolder, read_json
from get3d_cluster.schedulers import open_scheduler
from get3d_cluster.schedulers.base import Standing

FRESH_S = 30.0
"""Progress younger than this is that of a living attempt, even one that was started by hand."""
TAIL_BYTES = 65_536
FAILURES = frozenset({Cause.CRASHED, Cause.HUNG, Cause.DIVERGED, Cause.REFUSED})
ENDED = frozenset(
    {RunState.DONE, RunState.SUSPENDED, RunState.HELD, RunState.CANCELLED, RunState.FAILED, RunState.LOST}
)
"""Nothing happens any more until a person does something."""
_STOPPED = {str(Cause.SUSPENDED): RunState.SUSPENDED, str(Cause.CANCELLED): RunState.CANCELLED}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the files and the scheduler say of a run now."""

    name: str
    path: str
    spec: JobSpec | None
    """None: spec.json cannot be read."""
    is_done: bool
    standing: Standing
    attempts: Sequence[int] = ()
    outcomes: Sequence[Outcome] = ()
    progress: dict[str, Any] = field(default_factory=dict)
    progress_age_s: float | None = None
    saved_step: int = 0
    saved_age_s: float | None = None
    retry: RetryConfig = field(default_factory=RetryConfig)
    held: str = ""
    """Why the scheduler gave the run up until a person resumes it (hold.json)."""
    stopped: str = ""
    """Cause with which a person stopped it while no attempt could record that (stopped.json)."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of ``status``; its fields are those of ``--json``."""

    name: str
    path: str
    job: str
    kind: str
    scheduler: str
    state: str
    why: str
    epoch: int
    step: int
    num_steps: int
    images: int
    percent: float | None
    eta_s: float | None
    attempt: int
    preempted: int
    failed: int
    last_cause: str
    saved_step: int
    saved_age_s: float | None
    hosts: Sequence[str]


def rows(runs: Sequence[RunFolder]) -> list[Row]:
    """Return the rows of ``runs``; a run that cannot be read has one too, which says so."""
    return [row_of(gather(run)) for run in runs]


def gather(run: RunFolder) -> Facts:
    """Read everything about ``run`` that ``status`` shows; missing and torn files count as empty."""
    try:
        spec = run.spec()
    except (Get3dError, TypeError) as error:
        standing = Standing(state="unknown", why=str(error))
        return Facts(name=run.name, path=str(run.path), spec=None, is_done=run.is_done(), standing=standing)
    now = time.time()
    progress = _progress(run)
    saved_step, saved_t = _newest_checkpoint(run)
    return Facts(
        name=run.name,
        path=str(run.path),
        spec=spec,
        is_done=run.is_done(),
        standing=_standing(run, spec),
        attempts=run.attempts(),
        outcomes=_outcomes(run),
        progress=progress,
        progress_age_s=now - progress["t"] if "t" in progress and not _is_abandoned(run) else None,
        saved_step=saved_step,
        saved_age_s=max(0.0, now - saved_t) if saved_t else None,
        retry=_retry(run),
        held=_word(run.hold_path, "why"),
        stopped=_word(run.stopped_path, "cause"),
    )


def row_of(facts: Facts) -> Row:
    """Return the line of one run."""
    state, why = state_of(facts)
    step, num_steps = facts.progress.get("step", facts.saved_step), facts.progress.get("num_steps", 0)
    spec, outcomes = facts.spec, facts.outcomes
    hosts = facts.standing.hosts or (outcomes[-1].hosts if outcomes and state != RunState.PENDING else ())
    return Row(
        name=facts.name,
        path=facts.path,
        job=spec.job if spec else "",
        kind=spec.kind if spec else "",
        scheduler=spec.scheduler if spec else "",
        state=str(state),
        why=why,
        epoch=facts.progress.get("epoch", 0),
        step=step,
        num_steps=num_steps,
        images=facts.progress.get("images", 0),
        percent=round(100 * step / num_steps, 1) if num_steps else None,
        eta_s=_eta_s(facts, step, num_steps) if state is RunState.RUNNING else None,
        attempt=max(facts.attempts, default=0),
        preempted=sum(outcome.cause is Cause.PREEMPTED for outcome in outcomes),
        failed=sum(outcome.cause in FAILURES for outcome in outcomes),
        last_cause=str(outcomes[-1].cause) if outcomes else "",
        saved_step=facts.saved_step,
        saved_age_s=facts.saved_age_s,
        hosts=hosts,
    )


def state_of(facts: Facts) -> tuple[RunState, str]:
    """Return what the run is doing, and why in one phrase."""
    if facts.is_done or facts.spec is None:
        return (RunState.DONE, "") if facts.is_done else (RunState.LOST, facts.standing.why)
    last = facts.outcomes[-1] if facts.outcomes else None
    if facts.standing.state == "running":
        return RunState.RUNNING, facts.standing.why
    if facts.standing.state == "pending":
        return _pending_state(facts, last)
    return _absent_state(facts, last)


def _absent_state(facts: Facts, last: Outcome | None) -> tuple[RunState, str]:
    """Return how a run stands that no scheduler has."""
    if facts.held:
        return RunState.HELD, f"{facts.held}{_added(_first_line(last))}"
    if facts.stopped in _STOPPED:
        return _STOPPED[facts.stopped], _first_line(last) or f"{facts.stopped} before it started"
    if last is None and not facts.attempts:
        return RunState.NEW, facts.standing.why or "never queued: give the submit command again"
    if last is None or last.attempt < max(facts.attempts):
        return _open_state(facts)
    return _left_state(facts, last)


def status_table(shown: Sequence[Row]) -> Table:
    """Return the rows as a table for people."""
    headers = [
        "NAME",
        "STATE",
        "EPOCH/STEP",
        "%",
        "ETA",
        "ATTEMPT",
        "PREEMPTED",
        "FAILED",
        "LAST-CHECKPOINT",
        "NODES",
    ]
    return table([*headers, "WHY"], [_cells(row) for row in shown], wrap=["WHY", "NODES"])


def one_line(row: Row) -> str:
    """Return the progress of a run as one line, for a person who watches it."""
    percent = "" if row.percent is None else f"  {row.percent:.1f} %"
    eta = f"  {duration(row.eta_s)} left" if row.eta_s is not None else ""
    named = f"attempt {row.attempt}"
    attempt = f"  {named}" if row.attempt and named not in row.why else ""
    return (
        f"{row.name}  {row.state}  {_position(row)}{percent}{eta}{attempt}{f'  {row.why}' if row.why else ''}"
    )


def _pending_state(facts: Facts, last: Outcome | None) -> tuple[RunState, str]:
    came_back = last is not None and last.cause in (Cause.CRASHED, Cause.HUNG)
    waits = came_back and after_attempt(facts.outcomes, facts.retry).delay_s > 0
    if not waits:
        return RunState.PENDING, facts.standing.why
    return RunState.BACKING_OFF, f"{facts.standing.why}{_added(_first_line(last))}"


def _open_state(facts: Facts) -> tuple[RunState, str]:
    """Return how a run stands whose newest attempt left no outcome, although no scheduler runs it."""
    if facts.progress_age_s is not None and facts.progress_age_s < FRESH_S:
        return RunState.RUNNING, facts.standing.why or "started by hand"
    return RunState.LOST, f"attempt {max(facts.attempts)} left no outcome{_added(facts.standing.why)}"


def _left_state(facts: Facts, last: Outcome) -> tuple[RunState, str]:
    """Return how a run stands that neither runs nor waits."""
    message = _first_line(last)
    if last.cause is Cause.SUSPENDED:
        return RunState.SUSPENDED, message or f"saved at step {last.saved_step}"
    if last.cause is Cause.CANCELLED:
        return RunState.CANCELLED, message
    if last.cause is Cause.REFUSED:
        return RunState.FAILED, message
    decision = after_attempt(facts.outcomes, facts.retry)
    if decision.action is Action.HOLD:
        return RunState.HELD, f"{decision.why}{_added(message)}"
    return RunState.LOST, f"left as {last.cause} and is not queued{_added(facts.standing.why or message)}"


def _first_line(outcome: Outcome | None) -> str:
    return outcome.message.splitlines()[0] if outcome and outcome.message else ""


def _added(text: str) -> str:
    return f": {text}" if text else ""


def _eta_s(facts: Facts, step: int, num_steps: int) -> float | None:
    """Return the seconds left. A ``steps`` run counts its active time over all attempts, one of items anew in each."""
    is_items = facts.spec is not None and facts.spec.kind == "items"
    done = step - (facts.outcomes[-1].saved_step if is_items and facts.outcomes else 0)
    active_s = facts.progress.get("active_s", 0.0)
    return active_s / done * (num_steps - step) if done > 0 and active_s and num_steps else None


def _cells(row: Row) -> list[str]:
    return [
        row.name,
        row.state,
        _position(row),
        "-" if row.percent is None else f"{row.percent:.1f}",
        duration(row.eta_s),
        str(row.attempt or "-"),
        str(row.preempted),
        str(row.failed),
        f"{duration(row.saved_age_s)} ago" if row.saved_age_s is not None else "-",
        ",".join(row.hosts) or "-",
        row.why,
    ]


def _position(row: Row) -> str:
    of = f"/{row.num_steps}" if row.num_steps else ""
    return f"{row.step}{of}" if row.kind == "items" else f"{row.epoch} / {row.step}{of}"


def _standing(run: RunFolder, spec: JobSpec) -> Standing:
    try:
        return open_scheduler(spec.scheduler).standing(run)
    except Get3dError as error:
        return Standing(state="unknown", why=error.what)


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


def _newest_checkpoint(run: RunFolder) -> tuple[int, float]:
    """Return step and time of the newest published checkpoint, by its name alone; zeros if there is none."""
    with contextlib.suppress(OSError):
        found = [path for path in run.checkpoints_dir.glob("step-*") if path.name[5:].isdigit()]
        newest = max(found, key=lambda path: int(path.name[5:]), default=None)
        return (int(newest.name[5:]), newest.stat().st_mtime) if newest else (0, 0.0)
    return 0, 0.0


def _word(path: Path, key: str) -> str:
    with contextlib.suppress(Get3dError):
        return str(read_json(path).get(key, ""))
    return ""


def _retry(run: RunFolder) -> RetryConfig:
    try:
        return read_section(RetryConfig, run.config_path, "retry")
    except Get3dError:
        return RetryConfig()
