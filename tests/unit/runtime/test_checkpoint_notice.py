"""A notice while a save is in flight: what there is time for, and what stands afterwards."""

import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from get3d_cluster.core.job import Cause, CheckpointConfig
from get3d_cluster.errors import FencedError
from get3d_cluster.runtime.checkpoint import Checkpoints, list_checkpoints, state_digest
from get3d_cluster.runtime.checkpoint_link import Link, WriterDiedError
from get3d_cluster.runtime.ending import End, Ended, Plan
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.history import History
from get3d_cluster.runtime.loop import run_steps
from get3d_cluster.runtime.session import Session
from get3d_cluster.runtime.step_saves import StepSaves
from get3d_cluster.schedulers.base import StopReason
from get3d_cluster.storage import open_storage
from tests.noticed_work import NoticedWork
from tests.sessions import session_of

EVERY_3 = CheckpointConfig(every_steps=3, every_s=0, background_mb=0)
NO_HURRY = StopReason(cause=Cause.PREEMPTED, grace_s=None)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return session_of(tmp_path)


def checkpoints_of(session: Session) -> Checkpoints:
    return Checkpoints(open_storage(session.run.checkpoints_dir), EVERY_3, lambda: None)


def events(session: Session, *names: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(session.run.events_path) if row["event"] in names]


@pytest.fixture
def slow_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Link.receive
    monkeypatch.setattr(Link, "receive", lambda link: (time.sleep(0.2), real(link))[1])


def go(session: Session, told_at: int) -> Ended:
    return run_steps(
        NoticedWork(session, 10, told_at), session, checkpoints_of(session), EVERY_3, lambda: NO_HURRY
    )


@pytest.mark.usefixtures("slow_writer")
def test_an_older_save_in_flight_is_finished_and_then_the_last_step_is_saved(session: Session) -> None:
    ended = go(session, told_at=4)
    assert (ended.end, ended.step, ended.saved_step) == (End.SUSPENDED, 4, 4)
    assert [(row["step"], row["why"]) for row in events(session, "save")] == [(3, "periodic"), (4, "notice")]
    loaded = checkpoints_of(session).load()
    assert loaded is not None
    assert loaded.digest == ended.digest == state_digest(loaded.state)
    assert torch.equal(loaded.state["net"], torch.full((1000,), 4.0))
    assert loaded.state["counters"] == {"done": 4}


@pytest.mark.usefixtures("slow_writer")
def test_steps_go_on_while_a_save_is_in_flight_and_no_second_one_begins(session: Session) -> None:
    ended = go(session, told_at=0)
    assert (ended.end, ended.saved_step) == (End.FINISHED, 10)
    saves = events(session, "save")
    assert [row["why"] for row in saves] == ["periodic", "end"]  # ten steps are over before the first save is
    assert saves[0]["stall_s"] < 0.2 < saves[0]["seconds"]
    assert [info.state for info in list_checkpoints(session.run, verify=True)] == ["ok", "ok"]


@pytest.mark.usefixtures("slow_writer")
def test_a_short_time_is_used_for_the_last_step_not_for_the_save_in_flight(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepSaves, "plan", lambda *_: Plan.DROP_AND_SAVE)
    assert go(session, told_at=4).saved_step == 4
    assert [info.step for info in list_checkpoints(session.run, verify=True)] == [4]


@pytest.mark.usefixtures("slow_writer")
def test_without_time_for_another_one_the_save_in_flight_is_finished(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepSaves, "plan", lambda *_: Plan.NOTHING)
    ended = go(session, told_at=4)
    assert (ended.end, ended.step, ended.saved_step) == (End.SUSPENDED_PERIODIC, 4, 3)
    assert checkpoints_of(session).load().step == 3


@pytest.mark.parametrize(
    "grace_s, flight, plan",
    [
        (None, None, "save"),
        (100.0, None, "save"),
        (10.0, None, "nothing"),
        (100.0, (3, "run"), "save"),
        (20.0, (3, "run"), "drop-and-save"),
        (20.0, (4, "local"), "drop-and-save"),
        (10.0, (3, "run"), "nothing"),
        (10.0, (4, "run"), "save"),
        (None, (3, "run"), "save"),
    ],
)
def test_the_time_left_decides_what_is_saved(
    session: Session, grace_s: float | None, flight: tuple[Any, ...] | None, plan: str
) -> None:
    work = NoticedWork(session, 10, told_at=0)
    made = StepSaves(work, session, checkpoints_of(session), EVERY_3, History(session))
    work.done, made._longest_save_s = 4, 10.0  # with the safety, a save takes 15 s
    session.notices.received.append((int(signal.SIGUSR1), time.monotonic()))
    made._saver.flight = SimpleNamespace(step=flight[0], tier=flight[1]) if flight else None
    assert made.plan(grace_s) == plan
    assert len(events(session, "too-late")) == (plan == "nothing")


def test_a_writer_that_cannot_live_leaves_the_saving_to_the_worker(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Link, "send", lambda *_: (_ for _ in ()).throw(WriterDiedError))
    ended = go(session, told_at=0)
    assert (ended.end, ended.saved_step) == (End.FINISHED, 10)
    assert events(session, "writer-failed")
    assert checkpoints_of(session).load().step == 10


@pytest.mark.usefixtures("slow_writer")
def test_an_attempt_that_was_overtaken_publishes_nothing_and_leaves(session: Session) -> None:
    def lost() -> None:
        raise FencedError("a newer attempt owns this run")

    checkpoints = Checkpoints(open_storage(session.run.checkpoints_dir), EVERY_3, lost)
    with pytest.raises(FencedError):
        run_steps(NoticedWork(session, 10, 0), session, checkpoints, EVERY_3, lambda: NO_HURRY)
    assert list_checkpoints(session.run) == []
