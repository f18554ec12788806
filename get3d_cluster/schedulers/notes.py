"""What a scheduler notes in the folder of a run, whichever scheduler it is.

RUN/hold.json                  the run was given up until a person resumes it: why, t
RUN/stopped.json               a person stopped the run while no attempt could record it: cause, t
RUN/attempts/NNNN/notice.json  why an attempt has to leave, written before the signal that makes its workers ask
"""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from get3d_cluster.core.job import Cause
from get3d_cluster.errors import Get3dError
from get3d_cluster.runtime.run_folder import RunFolder, read_json, write_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """Why an attempt was told to stop."""

    cause: Cause
    grace_s: float | None


def write_notice(run: RunFolder, attempt: int, notice: Notice) -> None:
    """Say why ``attempt`` has to leave, before the signal that makes the workers ask."""
    data = {"cause": notice.cause, "grace_s": notice.grace_s, "t": time.time()}
    write_json(run.notice_path(attempt), data)


def read_notice(run: RunFolder, attempt: int) -> Notice | None:
    """Return why ``attempt`` was told to stop, or None if it was not, or nobody can tell."""
    data = read_or_nothing(run.notice_path(attempt)) or {}
    with contextlib.suppress(KeyError, ValueError):
        return Notice(cause=Cause(data["cause"]), grace_s=data.get("grace_s"))
    return None


def hold(run: RunFolder, why: str) -> None:
    """Note in the run folder that it stays away until a person resumes it."""
    write_json(run.hold_path, {"why": why, "t": time.time()})


def note_stopped(run: RunFolder, cause: Cause) -> None:
    """Note a person's stop that no attempt could record."""
    write_json(run.stopped_path, {"cause": cause, "t": time.time()})


def stopped_cause(run: RunFolder) -> Cause | None:
    """Return with which cause a person stopped the run, or None."""
    with contextlib.suppress(KeyError, ValueError):
        return Cause((read_or_nothing(run.stopped_path) or {})["cause"])
    return None


def why_away(run: RunFolder) -> str:
    """Return why the queue gave the run up, or an empty text: what ``hold`` and ``note_stopped`` wrote."""
    held, stopped = read_or_nothing(run.hold_path), read_or_nothing(run.stopped_path)
    if held:
        return f"held: {held.get('why', '')}"
    return str(stopped.get("cause", "")) if stopped else ""


def read_or_nothing(path: Path) -> dict[str, Any] | None:
    """Return a JSON file, or None if it is missing or torn."""
    with contextlib.suppress(Get3dError):
        return read_json(path)
    return None
