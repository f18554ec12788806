"""The loops in one process: what they write and when they leave."""

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from get3d_cluster.core.job import Cause, CheckpointConfig, Position
from get3d_cluster.errors import FencedError, UsageError
from get3d_cluster.runtime import fingerprint
from get3d_cluster.runtime.checkpoint import (
    Checkpoints,
    list_checkpoints,
    load_optimizer,
    optimizer_state,
)
from get3d_cluster.runtime.ending import End
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.items import run_items
from get3d_cluster.runtime.loop import run_steps
from get3d_cluster.runtime.session import Session
from get3d_cluster.schedulers.base import StopReason
from get3d_cluster.storage import open_storage
from tests.sessions import session_of

PREEMPTED = StopReason(cause=Cause.PREEMPTED, grace_s=30.0)
IN_TIME = StopReason(cause=Cause.PREEMPTED, grace_s=1e9)


@dataclass
class Count:
    """Work of ten steps that gets a notice in the fourth; of both kinds."""

    session: Session
    told_at: int = 4
    done: int = 0

    def position(self) -> Position:
        return Position(step=self.done, num_steps=10, epoch=0, images=self.done)

    def is_done(self) -> bool:
        return self.done >= 10

    def step(self) -> None:
        self.done += 1
        self.session.metrics.write(self.done)
        if self.done == self.told_at:
            self.session.notices.received.append((int(signal.SIGUSR1), 0.0))

    def state(self) -> dict[str, int]:
        return {"done": self.done}

    def load(self, state: dict[str, int]) -> None:
        self.done = state["done"]

    def close(self) -> None:
        self.session.events.write("closed")


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return session_of(tmp_path, attempt=3)


def checkpoints_of(session: Session) -> Checkpoints:
    return Checkpoints(open_storage(session.run.checkpoints_dir), CheckpointConfig(), lambda: None)


def events_of(session: Session) -> list[dict]:
    return read_rows(session.run.events_path)


def test_a_notice_is_written_once_before_the_save_with_its_reason(session: Session) -> None:
    asked = []

    def reason() -> StopReason:
        asked.append(1)
        return StopReason(cause=Cause.PREEMPTED, grace_s=1e9)

    ended = run_steps(Count(session), session, checkpoints_of(session), CheckpointConfig(), reason)
    assert (ended.end, ended.saved_step, len(asked)) == (End.SUSPENDED, 4, 1)
    rows = events_of(session)
    assert [row["event"] for row in rows] == ["start", "notice", "save"]
    notice = rows[1]
    assert (notice["cause"], notice["signal"], notice["grace_s"]) == ("preempted", "SIGUSR1", 1e9)
    assert (notice["step"], notice["ranks"], notice["attempt"]) == (4, [0], 3)
    assert notice["t"] < rows[0]["t"]  # the clock of the notice, not of the end of the step


def test_items_tell_of_a_notice_before_they_put_down_what_they_hold(session: Session) -> None:
    assert run_items(Count(session), session, lambda: PREEMPTED).end is End.SUSPENDED
    rows = events_of(session)
    assert [row["event"] for row in rows] == ["start", "notice", "closed"]
    assert (rows[1]["cause"], rows[1]["signal"], rows[1]["step"]) == ("preempted", "SIGUSR1", 4)


def test_work_that_comes_to_its_end_tells_of_no_notice(session: Session) -> None:
    assert run_items(Count(session, told_at=10), session, lambda: PREEMPTED).end is End.FINISHED
    assert [row["event"] for row in events_of(session)] == ["start", "closed"]


def test_a_fenced_attempt_leaves_at_the_next_step_and_writes_nothing_more(session: Session) -> None:
    work = Count(session)
    with pytest.raises(FencedError, match="not 3"):
        run_steps(
            work,
            session,
            checkpoints_of(session),
            CheckpointConfig(),
            lambda: PREEMPTED,
            lambda: work.done >= 4,
        )
    assert [row["step"] for row in read_rows(session.run.metrics_path)] == [1, 2, 3, 4]
    assert [row["event"] for row in events_of(session)] == ["start"]


def test_a_resume_with_other_code_says_so_in_the_chain(session: Session) -> None:
    code = session.run.path / "code.json"
    code.write_text('{"digest": "abc"}')
    for told_at in (4, 6):  # the same code again is no change
        work = Count(session, told_at=told_at)
        run_steps(work, session, checkpoints_of(session), CheckpointConfig(), lambda: IN_TIME)
        session.notices.received.clear()
    code.write_text('{"digest": "def"}')
    ended = run_steps(Count(session), session, checkpoints_of(session), CheckpointConfig(), lambda: IN_TIME)
    assert ended.not_bitwise_from == 6
    changes = [row["changed"] for row in events_of(session) if row["event"] == "environment"]
    assert changes == [{"code": ["abc", "def"]}]


def test_a_resume_elsewhere_says_what_changed_of_what_decides_bits(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_steps(Count(session), session, checkpoints_of(session), CheckpointConfig(), lambda: IN_TIME)
    session.notices.received.clear()
    here = fingerprint.numeric_fingerprint()
    monkeypatch.setattr(fingerprint, "numeric_fingerprint", lambda _device: here | {"threads": 64})
    ended = run_steps(
        Count(session, told_at=7), session, checkpoints_of(session), CheckpointConfig(), lambda: IN_TIME
    )
    changed = {"threads": [here["threads"], 64]}
    told = [row for row in events_of(session) if row["event"] == "environment"]
    assert [(row["step"], row["changed"]) for row in told] == [(4, changed)]
    assert f"not bitwise from step 4 on: threads {here['threads']} -> 64" in capsys.readouterr().out
    assert ended.not_bitwise_from == 4
    assert checkpoints_of(session).load().meta["not_bitwise"] == [
        {"step": 4, "attempt": 3, "changed": changed}
    ]
    session.notices.received.clear()
    monkeypatch.setattr(fingerprint, "numeric_fingerprint", lambda _device: here)
    ended = run_steps(
        Count(session, told_at=0), session, checkpoints_of(session), CheckpointConfig(), lambda: IN_TIME
    )
    assert ended.not_bitwise_from == 4, "to come back to the first environment brings no bit back"
    rows = checkpoints_of(session).load().meta["not_bitwise"]
    assert [row["step"] for row in rows] == [4, 7]
    assert [info.not_bitwise_from for info in list_checkpoints(session.run)] == [4, 4]


def test_an_attempt_elsewhere_that_left_nothing_marks_nothing(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_steps(Count(session), session, checkpoints_of(session), CheckpointConfig(), lambda: IN_TIME)
    session.notices.received.clear()
    here = fingerprint.numeric_fingerprint()
    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, "numeric_fingerprint", lambda _device: here | {"threads": 64})
        patch.setattr(Count, "step", lambda _: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError, match="killed"):
            run_steps(Count(session), session, checkpoints_of(session), CheckpointConfig(), lambda: IN_TIME)
    assert [row["step"] for row in events_of(session) if row["event"] == "environment"] == [4]
    ended = run_steps(
        Count(session, told_at=0), session, checkpoints_of(session), CheckpointConfig(), lambda: IN_TIME
    )
    assert ended.not_bitwise_from is None
    assert "not_bitwise" not in checkpoints_of(session).load().meta


def test_a_damaged_checkpoint_is_told_in_the_log_and_in_the_event(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    config = CheckpointConfig(every_steps=2, every_s=0)
    run_steps(Count(session, told_at=5), session, checkpoints_of(session), config, lambda: IN_TIME)
    newest = sorted(session.run.checkpoints_dir.glob("step-*"))[-1]
    (newest / "state.json").write_bytes(b"{}")
    session.notices.received.clear()
    run_steps(Count(session, told_at=0), session, checkpoints_of(session), config, lambda: IN_TIME)
    (resumed,) = (row for row in events_of(session) if row["event"] == "resume")
    assert resumed["step"] == 4
    assert f"{newest.name}/state.json is damaged" in resumed["damaged"][0]
    assert resumed["damaged"][0] in capsys.readouterr().out


def test_what_the_work_itself_depends_on_is_compared_as_well(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dependent(Count):
        workers = 4

        def bits_depend_on(self) -> dict[str, int]:
            return {"workers": self.workers}

    def go(told_at: int) -> Any:
        session.notices.received.clear()
        work = Dependent(session, told_at=told_at)
        return run_steps(work, session, checkpoints_of(session), CheckpointConfig(), lambda: IN_TIME)

    assert go(3).not_bitwise_from is None
    assert go(5).not_bitwise_from is None
    monkeypatch.setattr(Dependent, "workers", 2)
    assert go(0).not_bitwise_from == 5
    (told,) = (row for row in events_of(session) if row["event"] == "environment")
    assert told["changed"] == {"workers": [4, 2]}


class Shaped(Count):
    """Work with a layer of so many weights, and an optimizer that is filled by its first step."""

    def __init__(self, session: Session, size: int, told_at: int = 0) -> None:
        super().__init__(session, told_at)
        self.layer = torch.nn.Linear(size, 2)
        self.adam = torch.optim.Adam(self.layer.parameters())

    def step(self) -> None:
        self.layer(torch.ones(self.layer.in_features)).sum().backward()
        self.adam.step()
        super().step()

    def state(self) -> dict[str, Any]:
        return {"net": self.layer.state_dict(), "adam": optimizer_state(self.adam), "done": self.done}

    def load(self, state: dict[str, Any]) -> None:
        load_optimizer(self.adam, state["adam"])
        self.layer.load_state_dict(state["net"])
        self.done = state["done"]


def test_a_checkpoint_of_other_shapes_is_refused_with_names_and_shapes_and_stays(session: Session) -> None:
    def go(size: int, told_at: int = 0) -> Any:
        session.notices.received.clear()
        work = Shaped(session, size, told_at)
        return run_steps(work, session, checkpoints_of(session), CheckpointConfig(), lambda: IN_TIME)

    assert go(3, told_at=4).end is End.SUSPENDED
    before = {path: path.read_bytes() for path in session.run.checkpoints_dir.rglob("*.*")}
    with pytest.raises(UsageError) as caught:
        go(5)
    assert caught.value.exit_code == 2
    assert "net/weight is [2, 3], wanted is [2, 5]" in caught.value.what
    assert "step 4" in caught.value.what
    assert {path: path.read_bytes() for path in session.run.checkpoints_dir.rglob("*.*")} == before
    assert go(3).end is End.FINISHED


def test_a_bug_in_loading_stays_a_bug(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    run_steps(Count(session), session, checkpoints_of(session), CheckpointConfig(), lambda: IN_TIME)
    monkeypatch.setattr(Count, "load", lambda _, state: state["absent"])
    with pytest.raises(KeyError, match="absent"):
        run_steps(Count(session), session, checkpoints_of(session), CheckpointConfig(), lambda: IN_TIME)


def test_a_checkpoint_names_the_configuration_and_the_commit_it_came_from(session: Session) -> None:
    session.run.config_path.write_text("lr: 1\n")
    (session.run.path / "code.json").write_text('{"commit": "abc"}')
    run_steps(Count(session), session, checkpoints_of(session), CheckpointConfig(), lambda: IN_TIME)
    meta = checkpoints_of(session).load().meta
    assert meta["commit"] == "abc"
    assert len(meta["config_sha256"]) == 64


def test_the_pulse_tells_the_phase_at_each_border_and_where_the_time_went(session: Session) -> None:
    seen = []

    class Seen(Count):
        def note(self, where: str) -> None:
            seen.append((where, session.pulse.phase, session.pulse.step))

        def step(self) -> None:
            self.note("step")
            with session.pulse.counting("data"):
                pass
            super().step()

        def state(self) -> dict[str, int]:
            self.note("state")
            return super().state()

    run_steps(
        Seen(session), session, checkpoints_of(session), CheckpointConfig(every_steps=2), lambda: IN_TIME
    )
    assert seen[:5] == [
        ("step", "starting", 0),
        ("state", "step", 1),  # looked at once, to get ready for saves
        ("step", "step", 1),
        ("state", "saving", 2),
        ("step", "step", 2),
    ]
    assert (session.pulse.phase, session.pulse.step) == ("leaving", 4)
    assert session.pulse.seconds["step"] > session.pulse.seconds["data"] > 0.0
    first, last = [row for row in events_of(session) if row["event"] == "save"]
    assert first["save_s"] < 0.02  # its own stall is not counted here
    assert last["save_s"] >= round(first["seconds"], 3) > 0.0
    assert last["step_s"] >= first["step_s"]


def test_work_that_fails_leaves_the_phase_of_leaving(session: Session) -> None:
    class Fails(Count):
        def step(self) -> None:
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        run_steps(Fails(session), session, checkpoints_of(session), CheckpointConfig(), lambda: IN_TIME)
    assert session.pulse.phase == "leaving"
    with pytest.raises(ValueError, match="x"):
        run_items(Fails(session), session)
    assert session.pulse.phase == "leaving"


def test_a_grace_shorter_than_a_save_leaves_the_periodic_checkpoint_and_says_what_is_lost(
    session: Session,
) -> None:
    late = StopReason(cause=Cause.PREEMPTED, grace_s=30.0)  # the notice is as old as this machine's clock
    every_3 = CheckpointConfig(every_steps=3, every_s=0)
    ended = run_steps(Count(session, told_at=5), session, checkpoints_of(session), every_3, lambda: late)
    assert (ended.end, ended.step, ended.saved_step) == (End.SUSPENDED_PERIODIC, 5, 3)
    (told,) = (row for row in events_of(session) if row["event"] == "too-late")
    assert told["steps_lost"] == 2
    assert checkpoints_of(session).load().step == 3


class Forgetful(Count):
    """Work whose state cannot be taken from the fifth step on: code of a user that runs inside a save."""

    def state(self) -> dict[str, int]:
        if self.done >= 5:
            raise ZeroDivisionError("in the middle of a save")
        return super().state()


def test_an_error_of_the_jobs_own_code_inside_a_save_publishes_nothing(session: Session) -> None:
    every_2 = CheckpointConfig(every_steps=2, every_s=0)
    with pytest.raises(ZeroDivisionError):
        run_steps(Forgetful(session, told_at=0), session, checkpoints_of(session), every_2, lambda: IN_TIME)
    assert sorted(path.name for path in session.run.checkpoints_dir.iterdir()) == [
        "step-000000002",
        "step-000000004",
    ]
    assert checkpoints_of(session).load().step == 4


class Watching(Count):
    """Work that looks at each step what was saved before it."""

    def step(self) -> None:
        saved = self.session.run.saved_step()
        assert saved == self.done // 2 * 2, "a save is over before the next step begins"
        super().step()


def test_no_save_is_in_flight_while_a_step_computes(session: Session) -> None:
    every_2 = CheckpointConfig(every_steps=2, every_s=0)
    work = Watching(session, told_at=0)
    ended = run_steps(work, session, checkpoints_of(session), every_2, lambda: IN_TIME)
    assert (ended.end, ended.saved_step) == (End.FINISHED, 10)
