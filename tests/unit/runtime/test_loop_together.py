"""What all workers learn at a step, and what is made sure before a save."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from get3d_cluster.core.job import Cause, CheckpointConfig, Position
from get3d_cluster.dist.group import SoloGroup
from get3d_cluster.errors import HeldError
from get3d_cluster.runtime.checkpoint import Checkpoints
from get3d_cluster.runtime.ending import End, Ended
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.loop import run_steps
from get3d_cluster.runtime.session import Ballot, Session
from get3d_cluster.schedulers.base import StopReason
from get3d_cluster.storage import open_storage
from tests.sessions import session_of


class Asked(SoloGroup):
    """Keeps what flags were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[bool]] = []

    def any(self, flags: Sequence[bool]) -> list[bool]:
        self.asked.append(list(flags))
        return list(flags)


@dataclass
class Work:
    """Ten steps; lets the loop's bits ride along, and hears another worker's notice in the fifth."""

    session: Session
    rides: bool
    done: int = 0
    cast: list[list[bool]] = field(default_factory=list)

    def position(self) -> Position:
        return Position(step=self.done, num_steps=10, epoch=0, images=self.done)

    def is_done(self) -> bool:
        return self.done >= 10

    def step(self) -> None:
        if self.rides:
            mine = self.session.ballot.cast()
            self.cast.append(mine)
            self.session.ballot.count([mine[0] or self.done == 4, *mine[1:]])
        self.done += 1

    def state(self) -> dict[str, Any]:
        return {"done": self.done}

    def load(self, state: dict[str, Any]) -> None:
        self.done = state["done"]


class Compared(Work):
    """Work that compares replicas, and finds a difference at one step."""

    wrong_at = -1

    def compare_replicas(self) -> None:
        if self.done == self.wrong_at:
            raise HeldError("rank 1 has other bits")


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return session_of(tmp_path, Asked())


def ended(work: Work, session: Session, **config: Any) -> Ended:
    checkpoints = Checkpoints(open_storage(session.run.checkpoints_dir), CheckpointConfig(), lambda: None)
    reason = StopReason(cause=Cause.PREEMPTED, grace_s=1e9)
    return run_steps(work, session, checkpoints, CheckpointConfig(**config), lambda: reason)


def saves(session: Session) -> list[int]:
    return [row["step"] for row in read_rows(session.run.events_path) if row["event"] == "save"]


def test_bits_that_rode_along_are_heeded_and_not_asked_for_again(session: Session) -> None:
    work = Work(session, rides=True)
    found = ended(work, session, every_s=0.0)
    assert (found.end, found.step, found.saved_step) == (End.SUSPENDED, 5, 5)
    assert len(work.cast) == 5
    asked = session.group.asked.count([False] * Ballot.SIZE)
    assert asked <= 1, "beside who got the notice, the loop asks for nothing"


@pytest.mark.parametrize("rides", [False, True])
def test_periodic_saves_come_at_the_same_steps_either_way(session: Session, rides: bool) -> None:
    work = Work(session, rides=rides)
    ended(work, session, every_steps=2, every_s=0.0)
    assert saves(session) == ([2, 4, 5] if rides else [2, 4, 6, 8, 10])


def test_work_that_adds_nothing_up_is_asked_by_the_loop(session: Session) -> None:
    assert ended(Work(session, rides=False), session, every_s=0.0).end is End.FINISHED
    assert session.group.asked.count([False] * Ballot.SIZE) == 10


def test_outside_of_a_loop_nothing_is_cast() -> None:
    ballot = Ballot()
    assert ballot.cast() == [False] * Ballot.SIZE
    assert ballot.take() is None


def test_no_checkpoint_is_written_of_a_state_that_workers_differ_in(session: Session) -> None:
    work = Compared(session, rides=False)
    work.wrong_at = 4
    with pytest.raises(HeldError, match="rank 1"):
        ended(work, session, every_steps=2, every_s=0.0)
    assert saves(session) == [2]
    assert work.done == 4


def test_the_last_save_is_compared_too(session: Session) -> None:
    work = Compared(session, rides=True)
    work.wrong_at = 5
    with pytest.raises(HeldError, match="rank 1"):
        ended(work, session, every_s=0.0)
    assert saves(session) == []
