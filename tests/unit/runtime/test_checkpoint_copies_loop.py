"""A loop with copies behind a URL: what its events tell, and how long its end and a notice wait for the last one."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from get3d_cluster.core.job import Cause, CheckpointConfig, JobSpec
from get3d_cluster.runtime import checkpoint_copies
from get3d_cluster.runtime.checkpoint import Checkpoints, more_tiers
from get3d_cluster.runtime.checkpoint_files import names_in, step_of
from get3d_cluster.runtime.checkpoint_link import Link
from get3d_cluster.runtime.ending import End, Ended
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.loop import run_steps
from get3d_cluster.runtime.session import Session
from get3d_cluster.schedulers.base import StopReason
from get3d_cluster.storage import open_storage
from tests.noticed_work import NoticedWork
from tests.sessions import session_of

SPEC = JobSpec(name="a", job="train", kind="steps", created="2026-01-01T00:00:00")
COPY_S = 1.0


def wait_for(folder: Path, step: int) -> None:
    """Wait for the checkpoint of this step or a later one."""
    end_s = time.monotonic() + 30
    while max((int(path.name[5:]) for path in folder.glob("step-*")), default=0) < step:
        assert time.monotonic() < end_s
        time.sleep(0.002)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return session_of(tmp_path)


@pytest.fixture(autouse=True)
def slow_uploads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each copy take its time."""
    send = Link.send

    def slow(link: Link, order: Any) -> None:
        time.sleep(COPY_S if "to" in order else 0.0)
        send(link, order)

    monkeypatch.setattr(Link, "send", slow)


def checkpoints_of(session: Session, background_mb: float = 0.0) -> Checkpoints:
    url = f"file://{session.run.path / 'far'}"
    config = CheckpointConfig(every_s=0, every_steps=1, background_mb=background_mb, url=url)
    storage = open_storage(session.run.checkpoints_dir)
    return Checkpoints(storage, config, lambda: None, more_tiers(config, SPEC, 1))


def go(session: Session, num_steps: int, told_at: int = 0, grace_s: float | None = None, **how: Any) -> Ended:
    checkpoints, reason = checkpoints_of(session, **how), StopReason(cause=Cause.PREEMPTED, grace_s=grace_s)
    work = NoticedWork(session, num_steps, told_at, step_s=0.02)
    return run_steps(work, session, checkpoints, checkpoints.config, lambda: reason)


def events(session: Session, *names: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(session.run.events_path) if row["event"] in names]


def far(session: Session) -> list[int]:
    return [step_of(name) for name in names_in(checkpoints_of(session).tiers["url"])]


@pytest.mark.parametrize("background_mb", [0.0, 4.0])
def test_periodic_checkpoints_are_published_while_one_is_copied_and_the_end_waits_for_its_own(
    session: Session, monkeypatch: pytest.MonkeyPatch, background_mb: float
) -> None:
    """The first copy moves once a checkpoint of step 30 is there: were that to wait for it, both would."""
    send, folder = Link.send, session.run.checkpoints_dir

    def held_up(link: Link, order: Any) -> None:
        if "to" in order:
            wait_for(folder, 30)
        send(link, order)

    monkeypatch.setattr(Link, "send", held_up)
    ended = go(session, 60, background_mb=background_mb)
    assert (ended.end, ended.saved_step) == (End.FINISHED, 60)
    saves, copies = events(session, "save"), events(session, "copy")
    skipped = {row["step"]: row["newer"] for row in events(session, "copy-skipped")}
    assert len([row for row in saves if row["step"] < 60 and row["t"] < copies[0]["t"]]) >= 3
    steps = [row["step"] for row in saves]
    assert sorted([*(row["step"] for row in copies), *skipped]) == steps
    assert copies[0]["step"] == steps[0]
    assert all(newer > step for step, newer in skipped.items())
    assert copies[-1]["step"] == far(session)[-1] == 60
    loaded = Checkpoints(checkpoints_of(session).tiers["url"], CheckpointConfig(), lambda: None).load()
    assert loaded is not None
    assert loaded.digest == ended.digest


@pytest.mark.parametrize(
    "grace_s, copied", [(60.0, [2, 4]), (None, [2, 4]), (checkpoint_copies.LEAVE_S + 0.3, [])]
)
def test_a_notice_saves_here_first_and_copies_in_the_time_that_is_left(
    session: Session, grace_s: float | None, copied: list[int]
) -> None:
    begun_s = time.monotonic()
    ended = go(session, 1000, told_at=4, grace_s=grace_s)
    assert (ended.end, ended.step, ended.saved_step) == (End.SUSPENDED, 4, 4)
    saved = [row["step"] for row in events(session, "save")]
    assert saved[-1] == 4
    assert far(session)[-1:] == copied[-1:]
    failed = {row["step"]: row["error"] for row in events(session, "copy-failed")}
    assert (4 in failed) == (not copied)
    assert all("left before" in error for error in failed.values())
    assert time.monotonic() - begun_s < 8
    again = checkpoints_of(session).load()
    assert again is not None
    assert (again.step, again.tier) == (4, "run")


def test_a_notice_while_the_end_waits_for_a_copy_is_answered_at_once(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = checkpoint_copies.Copies.wait

    def told_meanwhile(copies: checkpoint_copies.Copies, seconds: float) -> None:
        session.notices.received.append((int(signal.SIGTERM), time.monotonic()))
        wait(copies, seconds)

    monkeypatch.setattr(checkpoint_copies.Copies, "wait", told_meanwhile)
    ended = go(session, 3)
    assert (ended.end, ended.saved_step) == (End.FINISHED, 3)
    assert far(session) == []
    assert 3 in [row["step"] for row in events(session, "copy-failed")]
