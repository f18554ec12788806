import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from get3d_cluster.core.job import JobSpec
from get3d_cluster.errors import FencedError
from get3d_cluster.runtime import lease
from get3d_cluster.runtime.env import ProcessId
from get3d_cluster.runtime.events import EventLog, MetricLog, read_rows
from get3d_cluster.runtime.lease import Lease, is_held, read_lease, refuse_second_copy
from get3d_cluster.runtime.run_folder import RunFolder, write_json


def test_the_newer_attempt_owns_the_run_and_the_older_finds_out(tmp_path):
    old, new = Lease(tmp_path / "lease.json", 1), Lease(tmp_path / "lease.json", 2)
    old.acquire()
    old.check()
    new.acquire()
    with pytest.raises(FencedError, match="attempt 2"):
        old.check()
    new.check()
    old.release()
    new.check()
    new.release()


def test_an_older_attempt_cannot_take_it_back(tmp_path):
    Lease(tmp_path / "lease.json", 2).acquire()
    with pytest.raises(FencedError):
        Lease(tmp_path / "lease.json", 1).acquire()


def test_a_late_write_of_an_old_holder_hides_no_newer_one(tmp_path, monkeypatch):
    path = tmp_path / "lease.json"
    old, new = Lease(path, 1), Lease(path, 2)
    old.acquire()
    real = lease.write_json

    def write_late(target: Path, data: dict) -> None:
        if data["fence"] == 1 and not (tmp_path / "leases" / "0002.json").exists():
            new.acquire()
        real(target, data)

    monkeypatch.setattr(lease, "write_json", write_late)
    path.unlink()  # so that the old one writes both files
    old.beat()
    held = read_lease(path)
    assert held is not None
    assert held["fence"] == 2
    new.check()
    with pytest.raises(FencedError, match="attempt 2"):
        old.check()
    old.beat()
    assert old.is_lost
    new.beat()
    assert not new.is_lost
    assert json.loads(path.read_text())["fence"] == 2
    old.release()
    new.release()
    assert json.loads(path.read_text())["released"] is True


def test_of_two_holders_with_one_number_the_second_is_refused(tmp_path):
    first, second = Lease(tmp_path / "lease.json", 1), Lease(tmp_path / "lease.json", 1)
    second.check()  # both look before either takes it
    first.acquire()
    with pytest.raises(FencedError, match="attempt 1"):
        second.acquire()
    with pytest.raises(FencedError):
        second.check()
    first.check()
    first.release()


def test_several_processes_that_take_one_number_at_once_have_one_winner(tmp_path, monkeypatch):
    monkeypatch.setattr(Lease, "check", lambda _: None)  # nobody sees another before it creates its file
    leases = [Lease(tmp_path / "lease.json", 3) for _ in range(8)]
    won = []

    def take(mine: Lease) -> None:
        with contextlib.suppress(FencedError):
            mine.acquire()
            won.append(mine)

    threads = [threading.Thread(target=take, args=(mine,)) for mine in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    won[0].release()


def test_a_lease_whose_writer_was_killed_over_it_still_counts_and_is_nobodys(tmp_path):
    (tmp_path / "leases").mkdir()
    (tmp_path / "leases" / "0002.json").write_text('{"fen')
    with pytest.raises(FencedError, match="attempt 2"):
        Lease(tmp_path / "lease.json", 1).acquire()
    assert is_held(tmp_path / "lease.json", watch_s=0.1) is None


def test_a_live_holder_refuses_a_second_copy_until_it_gives_the_lease_back(tmp_path):
    holder = Lease(tmp_path / "lease.json", 1)
    holder.acquire()
    with pytest.raises(FencedError, match=str(os.getpid())):
        refuse_second_copy(tmp_path / "lease.json")
    holder.release()
    refuse_second_copy(tmp_path / "lease.json")


def test_a_holder_that_died_holds_nothing(tmp_path):
    code = "import sys;from pathlib import Path;from get3d_cluster.runtime.lease import Lease;import os;"
    code += "Lease(Path(sys.argv[1]), 1).acquire(); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "lease.json")], check=False)
    assert json.loads((tmp_path / "lease.json").read_text())["released"] is False
    assert is_held(tmp_path / "lease.json") is None


def test_a_holder_elsewhere_is_judged_by_its_beat(tmp_path):
    holder = Lease(tmp_path / "lease.json", 1)
    holder.acquire()
    path = tmp_path / "leases" / "0001.json"
    data = json.loads(path.read_text())
    holder.release()
    path.write_text(json.dumps(data | {"host": "elsewhere", "released": False}))
    assert is_held(tmp_path / "lease.json", watch_s=0.8) is None


def test_a_reused_process_number_is_not_the_same_process():
    mine = ProcessId.mine()
    assert mine.is_alive()
    assert not ProcessId(host=mine.host, pid=mine.pid, start="1", boot=mine.boot).is_alive()
    assert not ProcessId(host=mine.host, pid=mine.pid, start=mine.start, boot="another boot").is_alive()
    assert ProcessId(host="elsewhere", pid=1, start="1", boot="x").is_alive() is None


def test_a_torn_line_is_skipped_and_the_next_begins_on_its_own(tmp_path):
    path = tmp_path / "events.jsonl"
    EventLog(path, 1, 0).write("a")
    with path.open("a") as file:
        file.write('{"event": "to')
    EventLog(path, 2, 0).write("b")
    assert [row["event"] for row in read_rows(path)] == ["a", "b"]


def test_rows_beyond_the_resumed_step_are_dropped_so_that_none_is_doubled(tmp_path):
    log = MetricLog(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3, 4):
        log.write(step, loss=step)
    log.rewind(2)
    for step in (3, 4, 5):
        log.write(step, loss=-step)
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_how_far_an_attempt_came_is_told_by_its_own_rows_and_progress_only(tmp_path):
    run = RunFolder(tmp_path)
    run.write_spec(JobSpec(name="a", job="train", kind="steps", created="2026-01-01T00:00:00"))
    (run.checkpoints_dir / "step-000000004").mkdir(parents=True)
    metrics = MetricLog(run.metrics_path)
    EventLog(run.events_path, 1, 0).write("start", step=0)
    metrics.write(6)
    assert run.reached_step(1) == 6
    write_json(run.progress_path, {"attempt": 1, "step": 7})
    assert run.reached_step(1) == 7
    assert run.reached_step(2) == 4  # killed before it began
    metrics.rewind(4)
    EventLog(run.events_path, 2, 0).write("resume", step=4)
    assert run.reached_step(2) == 4  # the progress is still the first attempt's
    metrics.write(5)
    assert (run.reached_step(2), run.reached_step(1)) == (5, 4)


def test_two_callers_never_get_the_same_attempt(tmp_path):
    run = RunFolder(tmp_path)
    assert [run.new_attempt(), RunFolder(tmp_path).new_attempt(), run.new_attempt()] == [1, 2, 3]
