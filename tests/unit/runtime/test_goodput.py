"""Where the time of a run went, against histories written by hand with known answers."""

import json
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from get3d_cluster.core.job import Cause, JobSpec, Outcome
from get3d_cluster.runtime.goodput import Goodput, goodput_of
from get3d_cluster.runtime.run_folder import RunFolder, write_json
from get3d_cluster.runtime.watchdog import Heartbeat, heartbeat_path

SUBMITTED_T = 1_767_225_600.0
SUBMITTED = "2026-01-01T00:00:00+00:00"


class History:
    """Writes the files of a run; times are seconds since the submission."""

    def __init__(self, path: Path, kind: str = "steps") -> None:
        self.run = RunFolder(path)
        path.mkdir()
        self.run.write_spec(JobSpec(name="r", job="train", kind=kind, created=SUBMITTED))

    def event(self, t: float, event: str, attempt: int, **fields: object) -> None:
        row = {"t": SUBMITTED_T + t, "event": event, "attempt": attempt, "rank": 0, "pid": 1, **fields}
        with self.run.events_path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def save(self, t: float, attempt: int, step: int, step_s: float, save_s: float, **more: float) -> None:
        """A save of two seconds at ``step``, which ends at ``t``; ``save_s`` went into earlier ones."""
        fields = {"data_s": 0.0} | more
        self.event(t, "save", attempt, step=step, seconds=2.0, step_s=step_s, save_s=save_s, **fields)

    def outcome(self, attempt: int, cause: Cause, saved: int, end: int, **more: object) -> None:
        self.run.write_outcome(
            Outcome(attempt=attempt, cause=cause, exit_code=0, saved_step=saved, end_step=end, **more)
        )

    def beat(
        self, t: float, attempt: int, step: int, step_s: float, save_s: float = 0.0, rank: int = 0
    ) -> None:
        beat = Heartbeat(
            rank=rank,
            node="n",
            t=SUBMITTED_T + t,
            begun_t=0.0,
            phase="step",
            step=step,
            beats=1,
            exchanges=0,
            is_waiting=False,
            is_hung=False,
            step_s=step_s,
            save_s=save_s,
            data_s=0.0,
        )
        write_json(heartbeat_path(self.run.attempt_dir(attempt), rank), asdict(beat))


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "run")


def parts(goodput: Goodput) -> dict[str, float]:
    return {name: round(value, 6) for name, value in asdict(goodput).items() if value}


def preempted_twice(history: History) -> None:
    history.event(103, "attempt-start", 1)
    history.event(110, "start", 1, step=0, since_s=10)
    history.save(161, 1, 50, 49.0, 0.0)
    history.save(212, 1, 98, 98.0, 2.0, data_s=8.0)
    history.event(213, "suspend", 1, step=98)
    history.outcome(1, Cause.PREEMPTED, 98, 98, seconds=105)
    history.event(520, "resume", 2, step=98, since_s=20)
    history.save(572, 2, 148, 50.0, 0.0)
    history.event(572, "suspend", 2, step=148)
    history.outcome(2, Cause.PREEMPTED, 148, 148, seconds=60)
    history.event(582, "resume", 3, step=148, since_s=10)
    history.save(684, 3, 248, 100.0, 0.0)
    history.event(685, "finish", 3, step=248)
    history.outcome(3, Cause.FINISHED, 248, 248, seconds=100)


def test_two_preemptions_lose_no_steps_and_all_parts_add_up(history: History) -> None:
    preempted_twice(history)
    found = goodput_of(history.run)
    assert parts(found.attempts[1]) == {
        "queued_s": 100,
        "starting_s": 10,
        "productive_s": 90,
        "waiting_s": 8,
        "saving_s": 4,
        "other_s": 1,
    }
    assert parts(found.attempts[2]) == {
        "queued_s": 287,
        "starting_s": 20,
        "productive_s": 50,
        "saving_s": 2,
    }
    assert parts(found.attempts[3]) == {"starting_s": 10, "productive_s": 100, "saving_s": 2, "other_s": 1}
    assert found.total.wall_s == pytest.approx(685)
    assert found.share == found.total.share == pytest.approx(240 / 685)


def test_a_crash_does_the_steps_after_the_last_save_again(history: History) -> None:
    history.event(10, "start", 1, step=0, since_s=10)
    history.save(62, 1, 100, 50.0, 0.0)
    history.beat(92, 1, 140, 80.0, save_s=2.0)
    history.event(95, "crash", 1, step=140)
    history.outcome(1, Cause.CRASHED, 100, 140)
    assert parts(goodput_of(history.run).attempts[1]) == {
        "starting_s": 10,
        "productive_s": 50,
        "redone_s": 30,
        "saving_s": 2,
        "other_s": 3,
    }
    history.event(115, "resume", 2, step=100, since_s=10)
    history.save(167, 2, 200, 50.0, 0.0)
    found = goodput_of(history.run)
    assert found.attempts[1].redone_s == pytest.approx(30)
    assert parts(found.attempts[2]) == {
        "queued_s": 10,
        "starting_s": 10,
        "productive_s": 50,
        "saving_s": 2,
    }


def test_a_damaged_checkpoint_makes_older_steps_redone_too(history: History) -> None:
    history.event(0, "start", 1, step=0)
    history.save(12, 1, 10, 10.0, 0.0)
    history.save(24, 1, 20, 20.0, 2.0)
    history.event(30, "resume", 2, step=20)
    history.save(42, 2, 30, 10.0, 0.0)
    history.event(50, "resume", 3, step=10)
    found = goodput_of(history.run).attempts
    assert [(item.productive_s, item.redone_s) for item in found.values()] == [(10, 10), (0, 10), (0, 0)]


def test_an_hour_in_which_a_person_had_it_stopped_is_no_part_of_the_wall(history: History) -> None:
    history.event(0, "start", 1, step=0)
    history.save(52, 1, 50, 50.0, 0.0)
    history.event(52, "suspend", 1, step=50)
    history.outcome(1, Cause.SUSPENDED, 50, 50)
    history.event(3652, "resume", 2, step=50, since_s=0)
    history.save(3704, 2, 100, 50.0, 0.0)
    found = goodput_of(history.run)
    assert found.total.stopped_s == 3600
    assert found.total.queued_s == 0
    assert found.share == pytest.approx(100 / 104)


def test_a_hang_and_a_kill_without_a_word_count_as_neither_steps_nor_queue(history: History) -> None:
    history.event(0, "start", 1, step=0)
    history.beat(100, 1, 60, 60.0)
    history.outcome(1, Cause.HUNG, 0, 60, seconds=100)
    assert parts(goodput_of(history.run).attempts[1]) == {"redone_s": 60, "other_s": 40}
    history.outcome(2, Cause.CRASHED, 0, 0, seconds=7)
    (history.run.attempt_dir(3)).mkdir()
    found = goodput_of(history.run).attempts
    assert parts(found[2]) == {"starting_s": 7}
    assert parts(found[3]) == {}


def test_a_run_of_an_older_version_is_told_in_proportion(history: History) -> None:
    history.event(5, "attempt-start", 1)
    history.event(10, "start", 1, step=0)
    history.event(52, "save", 1, step=40, seconds=2.0)
    history.event(112, "crash", 1, step=100)
    history.outcome(1, Cause.CRASHED, 40, 100, seconds=107)
    history.event(120, "attempt-start", 2)
    history.event(122, "resume", 2, step=40)
    history.event(182, "save", 2, step=100, seconds=2.0)
    history.event(182, "finish", 2, step=100)
    history.outcome(2, Cause.FINISHED, 100, 100)
    found = goodput_of(history.run).attempts
    assert parts(found[1]) == {
        "queued_s": 5,
        "starting_s": 5,
        "productive_s": 40,
        "redone_s": 60,
        "saving_s": 2,
    }
    assert parts(found[2]) == {"queued_s": 8, "starting_s": 2, "productive_s": 58, "saving_s": 2}


def test_elements_of_an_array_wait_and_work_beside_each_other(tmp_path: Path) -> None:
    history = History(tmp_path / "run", kind="items")
    for attempt, element, begin in ((1, 0, 10), (2, 1, 20), (3, 0, 150)):
        history.event(begin, "start", attempt, step=0, rank=element)
        history.beat(begin + 100, attempt, 5, 100.0, rank=element)
        history.outcome(attempt, Cause.PREEMPTED, 5, 5, seconds=100, element=element)
    found = goodput_of(history.run).attempts
    assert [(item.queued_s, item.productive_s) for item in found.values()] == [
        (10, 100),
        (20, 100),
        (40, 100),
    ]


def test_of_several_ranks_the_lowest_is_counted_and_the_others_are_not_added(tmp_path: Path) -> None:
    history = History(tmp_path / "run", kind="items")
    for rank, begin in ((1, 5), (0, 10)):
        history.event(begin, "start", 1, step=0, rank=rank)
        history.beat(110, 1, 5, 90.0 + rank, rank=rank)
    found = goodput_of(history.run).attempts[1]
    assert parts(found) == {"queued_s": 5, "starting_s": 5, "productive_s": 90, "other_s": 10}


def test_a_torn_last_line_and_lines_that_are_no_rows_are_left_out(history: History) -> None:
    preempted_twice(history)
    whole = goodput_of(history.run)
    with history.run.events_path.open("a") as file:
        file.write('[1, "event": "save"]\n{"event": "save", "attempt": "x", "t": true}\n')
        file.write('{"event": "save", "attempt": 3}\n{"t": 1e300, "event": "save", "attempt": 3}\n')
        file.write('{"t": 1767226300.0, "event": "save", "att')
    assert goodput_of(history.run) == whole


def test_nothing_is_known_before_the_first_attempt(history: History, tmp_path: Path) -> None:
    assert goodput_of(history.run).share is None
    assert goodput_of(RunFolder(tmp_path / "nowhere")).share is None


def test_a_run_with_a_hundred_thousand_other_events_is_read_fast(history: History) -> None:
    preempted_twice(history)
    whole = goodput_of(history.run)
    line = json.dumps({"t": SUBMITTED_T, "event": "skipped", "attempt": 2, "rank": 0, "what": ["x" * 50]})
    with history.run.events_path.open("a") as file:
        file.write(100_000 * (line + "\n"))
    begun_s = time.process_time()
    assert goodput_of(history.run) == whole
    assert time.process_time() - begun_s < 0.5


def test_steps_before_a_roll_back_were_done_in_vain(history: History) -> None:
    """Steps 0 to 100 in 100 s, back to 40, and on to 90 in 50 s more; then, in attempt 2, back to 60 at once."""
    history.event(0, "attempt-start", 1)
    history.event(0, "start", 1, step=0, since_s=0)
    history.save(40, 1, 40, 40.0, 0.0)
    history.event(100, "rollback", 1, step=100, to=40, step_s=100.0, data_s=0.0, number=1)
    history.save(150, 1, 90, 150.0, 0.0)
    history.outcome(1, Cause.PREEMPTED, 90, 90, seconds=150)
    (first,) = goodput_of(history.run).attempts.values()
    assert (first.productive_s, first.redone_s) == (90.0, 60.0)
    history.event(150, "attempt-start", 2)
    history.event(150, "resume", 2, step=90, since_s=0)
    history.event(160, "rollback", 2, step=100, to=60, step_s=10.0, data_s=0.0, number=2)
    history.save(200, 2, 100, 50.0, 0.0)
    history.outcome(2, Cause.PREEMPTED, 100, 100, seconds=50)
    one, two = goodput_of(history.run).attempts.values()
    assert (one.productive_s, one.redone_s) == (60.0, 90.0)
    assert (two.productive_s, two.redone_s) == (40.0, 10.0)
