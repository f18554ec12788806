"""The local scheduler with real processes: what it shares out, and what kills of any of its parts leave behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from get3d_cluster.core.job import Cause, Resources
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.run_folder import RunFolder, read_json
from get3d_cluster.schedulers import local_files, open_scheduler
from get3d_cluster.schedulers.local import LocalScheduler
from get3d_cluster.schedulers.local_files import QueueFolder
from get3d_cluster.schedulers.local_machine import session_members
from tests.integration.fake_attempts import causes, ended, make_run, release, started, told, wait_for
from tests.integration.scheduler_contract import LONG, SchedulerContract
from tests.workers import PLAIN, logs, wait_for_step
from tests.workers import make_run as make_real_run

ROOT = Path(__file__).parents[2]
QUICK_RETRY = "retry:\n  backoff_s: 0.2\n  max_crashes: 2\n"
SUBMIT = """
import sys; from pathlib import Path
from get3d_cluster.core.job import Resources; from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers import open_scheduler
open_scheduler("local").submit(RunFolder(Path(sys.argv[1])), Resources())
"""


@pytest.fixture
def scheduler(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch
) -> Iterator[LocalScheduler]:
    folder = tmp_path_factory.mktemp("queue")
    monkeypatch.setenv("GET3D_QUEUE", str(folder))
    monkeypatch.setenv("GET3D_SLOTS", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    local = open_scheduler("local")
    assert isinstance(local, LocalScheduler)
    yield local
    kill_queue(local.folder)
    for spec in tmp_path.glob("*/spec.json"):
        kill_attempts(RunFolder(spec.parent))


class TestLocalScheduler(SchedulerContract):
    pass


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def kill_queue(folder: QueueFolder) -> None:
    process = folder.process()
    if process and process.is_alive():
        kill(process.pid)
        wait_for(lambda: not process.is_alive())


def kill_attempts(run: RunFolder) -> None:
    for attempt in run.attempts():
        processes = local_files.read_processes(run, attempt)
        if processes:
            members = session_members(processes.supervisor)
            if processes.supervisor.is_alive():
                kill(processes.supervisor.pid)
            for member in members:
                kill(member.pid)


def supervisor_of(run: RunFolder, attempt: int) -> local_files.Processes:
    return wait_for(
        lambda: (found := local_files.read_processes(run, attempt)) and found.all_started and found
    )


def is_absent(scheduler: LocalScheduler, run: RunFolder) -> bool:
    return scheduler.standing(run).state == "absent"


def test_runs_share_slots_and_the_third_waits_and_says_so(scheduler, tmp_path):
    runs = [make_run(tmp_path / f"run{index}", LONG) for index in range(3)]
    for run in runs:
        scheduler.submit(run, Resources())
    started(runs[0], 1)
    started(runs[1], 1)
    wait_for(lambda: scheduler.standing(runs[2]).why == "waits for 1 of 2 slots")
    assert [scheduler.standing(run).state for run in runs[:2]] == ["running", "running"]
    release(runs[1])
    release(runs[2])
    ended(runs[2], 1)
    first_end = runs[1].done_path.stat().st_mtime
    assert (runs[2].attempt_dir(1) / "started.0").stat().st_mtime > first_end
    assert scheduler.standing(runs[0]).state == "running"


def test_nodes_are_process_groups_and_threads_follow_the_request(scheduler, tmp_path):
    run = make_run(tmp_path / "run")
    scheduler.submit(run, Resources(nodes=2))
    first, second = started(run, 1, 0), started(run, 1, 1)
    assert first["group"] != second["group"]
    assert [worker["env"]["GET3D_NODE"] for worker in (first, second)] == ["0", "1"]
    assert [worker["env"]["LOCAL_RANK"] for worker in (first, second)] == ["0", "0"]
    assert first["env"]["OMP_NUM_THREADS"] == "1"
    ended(run, 1)
    other = make_run(tmp_path / "other")
    scheduler.submit(other, Resources(workers_per_node=2))
    assert started(other, 1, 0)["group"] == started(other, 1, 1)["group"]


def test_suspend_gives_notice_then_kills_after_the_grace(scheduler, tmp_path):
    run = make_run(tmp_path / "run", {"*": {"seconds": 60, "on_term": "ignore"}})
    scheduler.submit(run, Resources(workers_per_node=2, grace_s=1.5))
    worker = started(run, 1, rank=1)
    scheduler.stop(run, Cause.SUSPENDED)
    notice = told(run, 1, rank=1)
    assert notice["notice"]["grace_s"] == 1.5
    outcome = ended(run, 1)
    assert time.time() - notice["at"] > 1.3
    assert (outcome.cause, outcome.exit_code) == (Cause.SUSPENDED, 76)
    assert "SIGKILL" in outcome.message
    assert read_json(run.attempt_dir(1) / "exit.json")["codes"] == {"0": -9, "1": -9}
    assert not Path(f"/proc/{worker['pid']}").exists()
    wait_for(lambda: is_absent(scheduler, run))


def test_stop_with_now_overtakes_a_grace_that_runs_already(scheduler, tmp_path):
    run = make_run(tmp_path / "run", {"*": {"seconds": 60, "on_term": "ignore"}})
    scheduler.submit(run, Resources(grace_s=600))
    started(run, 1)
    scheduler.stop(run, Cause.SUSPENDED)
    told(run, 1)
    scheduler.stop(run, Cause.CANCELLED, now=True)
    assert ended(run, 1).cause is Cause.CANCELLED


def test_time_limit_gives_notice_and_the_run_comes_back(scheduler, tmp_path):
    run = make_run(tmp_path / "run", {"1": {"seconds": 60, "save": 5}})
    scheduler.submit(run, Resources(time_limit_min=0.02))  # type: ignore[arg-type]  a limit that a test can wait for
    assert ended(run, 2).cause is Cause.FINISHED
    assert causes(run) == [Cause.TIME_LIMIT, Cause.FINISHED]


def test_resume_of_a_run_that_is_still_leaving_is_not_lost(scheduler, tmp_path):
    run = make_run(tmp_path / "run", {"1": {"seconds": 60, "on_term": "ignore"}})
    scheduler.submit(run, Resources(grace_s=1))
    started(run, 1)
    scheduler.stop(run, Cause.SUSPENDED)
    told(run, 1)
    scheduler.submit(run, Resources())
    assert ended(run, 2).cause is Cause.FINISHED


def test_killed_queue_process_neither_stops_nor_forgets_a_run(scheduler, tmp_path):
    run = make_run(tmp_path / "run", LONG)
    waiting = make_run(tmp_path / "waiting")
    scheduler.submit(run, Resources(workers_per_node=2))
    scheduler.submit(waiting, Resources())
    started(run, 1, 1)
    kill_queue(scheduler.folder)
    assert scheduler.standing(run).state == "running"
    release(run)
    assert ended(run, 1).cause is Cause.FINISHED
    assert ended(waiting, 1).cause is Cause.FINISHED
    assert run.attempts() == [1]


def test_supervisor_brings_a_killed_queue_back_without_any_client(scheduler, tmp_path):
    run = make_run(tmp_path / "run", LONG)
    waiting = make_run(tmp_path / "waiting")
    scheduler.submit(run, Resources(workers_per_node=2))
    scheduler.submit(waiting, Resources())
    started(run, 1, 1)
    kill_queue(scheduler.folder)
    release(run)
    assert ended(waiting, 1).cause is Cause.FINISHED


def test_stop_asked_for_while_no_queue_lives_is_obeyed(scheduler, tmp_path):
    run = make_run(tmp_path / "run", LONG)
    scheduler.submit(run, Resources())
    started(run, 1)
    kill_queue(scheduler.folder)
    scheduler.stop(run, Cause.SUSPENDED)
    assert ended(run, 1).cause is Cause.SUSPENDED


def test_workers_of_a_killed_supervisor_may_save_and_the_run_comes_back(scheduler, tmp_path):
    run = make_run(tmp_path / "run", {"1": {"seconds": 60, "save": 3}})
    scheduler.submit(run, Resources(workers_per_node=2))
    supervisor = supervisor_of(run, 1).supervisor
    started(run, 1, 0), started(run, 1, 1)
    kill(supervisor.pid)
    assert told(run, 1, 0)["notice"]["cause"] == "node-failure"
    assert ended(run, 2).cause is Cause.FINISHED
    assert causes(run) == [Cause.NODE_FAILURE, Cause.FINISHED]


def test_deaf_workers_of_a_killed_supervisor_do_not_run_on(scheduler, tmp_path):
    run = make_run(tmp_path / "run", {"1": {"seconds": 60, "on_term": "ignore"}})
    scheduler.submit(run, Resources(workers_per_node=2, grace_s=0.5))
    supervisor = supervisor_of(run, 1).supervisor
    started(run, 1, 0), started(run, 1, 1)
    kill(supervisor.pid)
    assert ended(run, 1).cause is Cause.NODE_FAILURE
    assert session_members(supervisor) == []
    assert ended(run, 2).cause is Cause.FINISHED


def test_killed_worker_is_a_crash_that_names_its_rank_backs_off_and_is_held_in_the_end(scheduler, tmp_path):
    run = make_run(tmp_path / "run", {"*": {"seconds": 60}}, QUICK_RETRY)
    scheduler.submit(run, Resources(workers_per_node=2))
    for attempt in (1, 2):
        started(run, attempt, 0)
        kill(started(run, attempt, 1)["pid"])
        assert told(run, attempt, 0)["notice"]["cause"] == "crashed"
        assert ended(run, attempt).cause is Cause.CRASHED
        exits = read_json(wait_for_exit(run, attempt))
        assert exits["first_failure"] == {"rank": 1, "code": -9}
    wait_for(lambda: is_absent(scheduler, run))
    assert "2 crashes" in read_json(run.path / "hold.json")["why"]
    assert scheduler.standing(run).why.startswith("held: 2 crashes")
    assert run.attempts() == [1, 2]
    (run.path / "script.json").write_text("{}")
    scheduler.submit(run, Resources())
    assert ended(run, 3).cause is Cause.FINISHED
    assert not (run.path / "hold.json").exists()


def test_outcome_names_the_rank_whose_kill_rank_0_did_not_survive(scheduler, tmp_path):
    run = make_run(tmp_path / "run", {"1": {"seconds": 60, "on_term": "ignore"}}, "retry: {backoff_s: 0.1}")
    scheduler.submit(run, Resources(workers_per_node=2))
    started(run, 1, 1)
    kill(started(run, 1, 0)["pid"])
    assert "rank 0 was killed by SIGKILL" in ended(run, 1).message
    assert (ended(run, 1).cause, ended(run, 1).exit_code) == (Cause.CRASHED, 1)
    assert ended(run, 2).cause is Cause.FINISHED


def wait_for_exit(run: RunFolder, attempt: int) -> Path:
    path = run.attempt_dir(attempt) / "exit.json"
    wait_for(path.exists)
    return path


def test_crashed_run_says_how_long_it_backs_off(scheduler, tmp_path):
    run = make_run(tmp_path / "run", {"1": {"exits": {"0": 1}}}, "retry: {backoff_s: 30}")
    scheduler.submit(run, Resources())
    assert ended(run, 1).message.startswith("rank 0 exited 1")
    wait_for(lambda: scheduler.standing(run).why == "backing off 30 s (crashed)")
    scheduler.submit(run, Resources())
    assert ended(run, 2).cause is Cause.FINISHED


def test_higher_priority_preempts_the_lower_run_which_returns(scheduler, tmp_path):
    low = make_run(tmp_path / "low", {"1": {"seconds": 60, "save": 1}})
    high = make_run(tmp_path / "high", {"*": {"seconds": 0.5}})
    scheduler.submit(low, Resources(workers_per_node=2))
    started(low, 1, 1)
    scheduler.submit(high, Resources(priority=5))
    ended(high, 1)
    assert ended(low, 1).cause is Cause.PREEMPTED
    assert ended(low, 2).cause is Cause.FINISHED
    assert (low.attempt_dir(2) / "started.0").stat().st_mtime > high.done_path.stat().st_mtime


def test_submission_outlives_the_shell_that_made_it(scheduler, tmp_path):
    run = make_run(tmp_path / "run", LONG)
    shell = subprocess.Popen(
        ["bash", "-c", '"$0" -c "$1" "$2"; sleep 60', sys.executable, SUBMIT, str(run.path)],
        cwd=ROOT,
        start_new_session=True,
    )
    started(run, 1)
    os.killpg(shell.pid, signal.SIGHUP)
    os.killpg(shell.pid, signal.SIGKILL)
    shell.wait()
    release(run)
    assert ended(run, 1).cause is Cause.FINISHED


def test_dependent_of_a_cancelled_run_waits_and_says_why(scheduler, tmp_path):
    first = make_run(tmp_path / "first", LONG)
    second = make_run(tmp_path / "second")
    scheduler.submit(first, Resources())
    scheduler.submit(second, Resources(), after=[first])
    started(first, 1)
    scheduler.stop(first, Cause.CANCELLED)
    wait_for(lambda: scheduler.standing(second).why == "waits for run first, which is not queued (cancelled)")


def test_cancel_of_a_pending_run_is_noted_until_it_is_submitted_again(scheduler, tmp_path):
    run = make_run(tmp_path / "run")
    scheduler.submit(run, Resources(), delay_s=30)
    scheduler.stop(run, Cause.CANCELLED)
    wait_for(lambda: is_absent(scheduler, run))
    assert scheduler.standing(run).why == "cancelled"
    scheduler.submit(run, Resources())
    ended(run, 1)
    assert not (run.path / "stopped.json").exists()


def test_queue_process_leaves_when_idle_and_returns_on_demand(scheduler, tmp_path):
    run = make_run(tmp_path / "run")
    scheduler.submit(run, Resources())
    ended(run, 1)
    process = wait_for(scheduler.folder.process)
    wait_for(lambda: not process.is_alive())
    assert not scheduler.folder.process_path.exists()
    assert scheduler.standing(run).state == "absent"
    assert not scheduler.folder.process_path.exists()
    again = make_run(tmp_path / "again")
    scheduler.submit(again, Resources())
    ended(again, 1)


def test_concurrent_submissions_lose_nothing_and_share_one_queue_process(scheduler, tmp_path):
    runs = [make_run(tmp_path / f"run{index}") for index in range(5)]
    commands = [[sys.executable, "-c", SUBMIT, str(run.path)] for run in runs]
    clients = [subprocess.Popen(command, cwd=ROOT) for command in commands]
    assert [client.wait(60) for client in clients] == [0] * 5
    for run in runs:
        assert ended(run, 1).cause is Cause.FINISHED
    assert [run.attempts() for run in runs] == [[1]] * 5


def test_requeue_by_a_leaving_worker_makes_no_second_attempt(scheduler, tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", {"1": {"seconds": 60, "save": 1}})
    scheduler.submit(run, Resources())
    started(run, 1)
    monkeypatch.setenv("GET3D_ATTEMPT", "1")
    scheduler.requeue(run, Resources())
    scheduler.requeue(run, Resources())
    monkeypatch.delenv("GET3D_ATTEMPT")
    scheduler.stop(run, Cause.PREEMPTED)
    assert ended(run, 2).cause is Cause.FINISHED
    wait_for(lambda: is_absent(scheduler, run))
    assert run.attempts() == [1, 2]


def test_deleted_run_folder_does_not_stop_the_queue(scheduler, tmp_path):
    gone = make_run(tmp_path / "gone")
    scheduler.submit(gone, Resources(), delay_s=1.0)
    wait_for(lambda: scheduler.folder.job(local_files.job_id(gone)))
    gone.path.rename(tmp_path / "elsewhere")
    other = make_run(tmp_path / "other")
    scheduler.submit(other, Resources())
    ended(other, 1)
    wait_for(lambda: is_absent(scheduler, gone))


def test_interpreter_that_does_not_exist_is_refused_not_retried(scheduler, tmp_path):
    run = make_run(tmp_path / "run")
    spec = read_json(run.spec_path) | {"python": "/nonexistent/python"}
    local_files.write_json(run.spec_path, spec)
    scheduler.submit(run, Resources())
    outcome = ended(run, 1)
    assert outcome.cause is Cause.REFUSED
    assert "/nonexistent/python" in outcome.message
    wait_for(lambda: is_absent(scheduler, run))


@pytest.mark.long
def test_real_run_survives_preemption_and_a_killed_worker(scheduler, tmp_path):
    run = make_real_run(
        tmp_path / "run",
        PLAIN,
        "num_steps=60",
        "step_s=0.05",
        "retry.backoff_s=0.1",
        "resources.workers_per_node=2",
    )
    scheduler.submit(run, Resources(workers_per_node=2))
    wait_for_step(run, 10)
    scheduler.stop(run, Cause.PREEMPTED)
    first = wait_for(lambda: run.outcome(1), "first outcome", 30)
    assert (first.cause, first.exit_code) == (Cause.PREEMPTED, 75), logs(run)
    wait_for_step(run, first.saved_step + 5)
    kill(supervisor_of(run, 2).workers[1].process.pid)
    wait_for(run.is_done, "the end of the run", 60)
    wait_for(lambda: run.outcome(3), "last outcome", 10)
    assert causes(run) == [Cause.PREEMPTED, Cause.CRASHED, Cause.FINISHED]
    steps = [row["step"] for row in read_rows(run.metrics_path)]
    assert steps == sorted(set(steps))
    assert steps[-1] == 60
    wait_for(lambda: scheduler.standing(run).state == "absent")
