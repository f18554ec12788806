"""Files of the local scheduler: what survives a round trip, and identities that must not be mistaken."""

import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from get3d_cluster.core.job import Cause, Outcome, Resources
from get3d_cluster.errors import SchedulerError, UsageError
from get3d_cluster.runtime.env import ProcessId, boot_id, host
from get3d_cluster.runtime.events import EventLog, MetricLog
from get3d_cluster.runtime.run_folder import RunFolder, write_json
from get3d_cluster.schedulers import local_files as files
from get3d_cluster.schedulers import local_machine, notes, open_scheduler
from get3d_cluster.schedulers.local_files import Kind, Processes, QueueFolder, Request, Worker
from get3d_cluster.schedulers.local_machine import session_members
from get3d_cluster.schedulers.local_plan import Capacity, Job
from get3d_cluster.schedulers.local_queue import LocalQueue, leave, lock, lost_outcome
from get3d_cluster.schedulers.notes import Notice

RESOURCES = Resources(nodes=2, grace_s=1.5, priority=3)


@pytest.fixture
def folder(tmp_path):
    made = QueueFolder(tmp_path / "queue")
    made.create()
    return made


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    return RunFolder(path)


def a_job(run: RunFolder, **facts) -> Job:
    values = {
        "id": files.job_id(run),
        "run": str(run.path),
        "resources": RESOURCES,
        "sequence": 4,
        "boot": boot_id(),
    }
    return Job(**values | facts)


def test_jobs_and_requests_survive_the_round_trip(folder, run):
    job = a_job(run, after=("/a", "/b"), gpus=("0",), stop=Cause.PREEMPTED, kill_at=2.5, attempt=3)
    folder.put(job)
    assert folder.jobs() == [job]
    request = Request(kind=Kind.STOP, run=str(run.path), resources=RESOURCES, cause=Cause.CANCELLED, now=True)
    folder.drop(request)
    assert [files.read_request(path) for path in folder.requests()] == [request]


def test_requests_are_taken_in_the_order_they_were_made(folder, run):
    for delay_s in range(20):
        folder.drop(Request(kind=Kind.SUBMIT, run=str(run.path), delay_s=delay_s))
    found = [files.read_request(path) for path in folder.requests()]
    assert [request.delay_s for request in found if request] == list(range(20))


def test_senseless_request_is_removed_and_the_next_one_served(folder, run):
    for name, text in (("0-a.json", "{"), ("1-b.json", '{"kind": "dance"}'), ("2-c.json", "[]")):
        (folder.inbox / name).write_text(text)
    folder.drop(Request(kind=Kind.SUBMIT, run=str(run.path), resources=Resources(workers_per_node=9)))
    queue = LocalQueue(folder, Capacity(slots=1))
    queue.one_pass()
    assert folder.requests() == []
    assert [job.why for job in queue.jobs.values()] == ["waits for 9 of 1 slots"]


def test_folder_is_closed_to_other_users(folder):
    assert [path.stat().st_mode & 0o777 for path in (folder.path, folder.inbox, folder.jobs_dir)] == [
        0o700
    ] * 3


def test_one_job_for_all_paths_that_lead_to_a_run(tmp_path, run):
    (tmp_path / "link").symlink_to(run.path)
    assert files.job_id(RunFolder(tmp_path / "link")) == files.job_id(run)
    twin = tmp_path / "other" / "run"
    twin.mkdir(parents=True)
    assert files.job_id(RunFolder(twin)) != files.job_id(run)


def test_only_one_supervisor_claims_an_attempt(run):
    attempt = run.new_attempt()
    first = Processes(supervisor=ProcessId.mine(), started=1.0, start_step=7)
    assert files.claim(run, attempt, first)
    assert not files.claim(run, attempt, replace(first, start_step=8))
    assert files.read_processes(run, attempt) == first
    complete = replace(first, workers=(Worker(rank=0, process=ProcessId.mine()),), all_started=True)
    files.write_processes(run, attempt, complete)
    assert files.read_processes(run, attempt) == complete


def test_only_one_queue_process_holds_the_lock(folder):
    held = lock(folder)
    assert held is not None
    folder.announce(Capacity(slots=2))
    assert lock(folder) is None
    held.close()
    again = lock(folder)
    assert again is not None
    again.close()


def test_leaving_queue_stays_for_a_request_whose_client_saw_it_alive(folder, run):
    folder.announce(Capacity(slots=1))
    folder.drop(Request(kind=Kind.SUBMIT, run=str(run.path)))
    assert not leave(folder, Capacity(slots=1))
    assert folder.is_attended()
    folder.requests()[0].unlink()
    assert leave(folder, Capacity(slots=1))
    assert not folder.is_attended()


def test_queue_that_was_killed_is_known_by_more_than_its_number(folder):
    folder.announce(Capacity(slots=3, gpus=("0",)))
    assert folder.is_attended()
    assert folder.capacity() == Capacity(slots=3, gpus=("0",))
    for fake in ({"start": "1"}, {"boot": "another boot"}):
        process = {
            "host": host(),
            "pid": os.getpid(),
            "start": ProcessId.mine().start,
            "boot": boot_id(),
        } | fake
        write_json(folder.process_path, {"process": process, "capacity": {"slots": 3, "gpus": []}})
        assert not folder.is_attended()
        assert folder.capacity() is None


def test_queue_of_another_machine_is_refused_by_name(folder):
    process = {"host": "elsewhere", "pid": 1, "start": "1", "boot": "b"}
    write_json(folder.process_path, {"process": process, "capacity": {"slots": 3, "gpus": []}})
    with pytest.raises(SchedulerError, match="elsewhere"):
        folder.is_attended()


def test_members_of_a_session_are_found_by_leader_start_and_boot():
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(30)'])"
    leader = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    identity = ProcessId.of(leader.pid)
    end = time.monotonic() + 25
    while not (members := session_members(identity)) and time.monotonic() < end:
        time.sleep(0.02)
    assert len(members) == 1
    assert session_members(replace(identity, boot="another boot")) == []
    assert session_members(replace(identity, start="1")) == []
    leader.kill()
    leader.wait()
    assert session_members(identity) == members
    os.kill(members[0].pid, 9)


def test_notice_reads_back_and_nonsense_counts_as_none(run):
    attempt = run.new_attempt()
    assert notes.read_notice(run, attempt) is None
    notes.write_notice(run, attempt, Notice(cause=Cause.TIME_LIMIT, grace_s=2.0))
    assert notes.read_notice(run, attempt) == Notice(cause=Cause.TIME_LIMIT, grace_s=2.0)
    assert open_scheduler("local").stop_reason(run, attempt).grace_s == 2.0
    run.notice_path(attempt).write_text('{"cause": "moon"}')
    assert open_scheduler("local").stop_reason(run, attempt).cause is Cause.PREEMPTED


def test_search_path_holds_one_copy_of_this_package(tmp_path):
    mine = str(files.source_root())
    assert (
        files.search_path(tmp_path, f"{mine}{os.pathsep}/else{os.pathsep}") == f"{tmp_path}{os.pathsep}/else"
    )


def test_restart_of_the_machine_ends_waits_and_counts_as_node_failure(folder, run):
    attempt = run.new_attempt()
    old = Processes(supervisor=replace(ProcessId.mine(), boot="before"), started=1e9, start_step=0)
    files.claim(run, attempt, old)
    folder.put(a_job(run, boot="before", attempt=attempt, started=1e9))
    pending = RunFolder(run.path.parent / "pending")
    pending.path.mkdir()
    folder.put(a_job(pending, boot="before", not_before=1e12, why="backing off", after=("/nowhere",)))
    queue = LocalQueue(folder, Capacity(slots=1))
    queue.load()
    queue.one_pass()
    outcome = run.outcome(attempt)
    assert outcome is not None
    assert (outcome.cause, outcome.message) == (Cause.NODE_FAILURE, "the machine was restarted")
    assert folder.job(files.job_id(pending)).why.startswith("waits for run nowhere")


def test_lost_attempt_keeps_the_cause_of_the_stop_it_was_told(run):
    processes = Processes(supervisor=ProcessId.mine(), started=0.0, start_step=2)
    told = a_job(run, attempt=1, stop=Cause.SUSPENDED)
    assert lost_outcome(run, told, processes).cause is Cause.SUSPENDED
    assert lost_outcome(run, replace(told, stop=None), processes).cause is Cause.NODE_FAILURE
    assert lost_outcome(run, replace(told, stop=None), None).cause is Cause.CRASHED


def test_what_a_killed_supervisor_left_tells_the_steps_that_are_done_again(run):
    (run.checkpoints_dir / "step-000000010").mkdir(parents=True)
    EventLog(run.events_path, 1, 0).write("start", step=0)
    MetricLog(run.metrics_path).write(13)
    lost = lost_outcome(run, a_job(run, attempt=1), None)
    assert (lost.saved_step, lost.end_step) == (10, 13)


def ended_queue(folder: QueueFolder, run: RunFolder, outcomes: list[Cause], **facts) -> LocalQueue:
    """Return a queue that has just seen the newest of these attempts end."""
    for cause in outcomes:
        run.write_outcome(Outcome(attempt=run.new_attempt(), cause=cause, exit_code=1))
    attempt = len(outcomes)
    gone = Processes(
        supervisor=replace(ProcessId.mine(), start="1"), started=0.0, start_step=0, all_started=True
    )
    files.claim(run, attempt, gone)
    folder.put(a_job(run, attempt=attempt, resources=Resources(), **facts))
    queue = LocalQueue(folder, Capacity(slots=0))
    queue.load()
    queue.one_pass()
    return queue


def test_crashes_before_a_person_resumed_the_run_do_not_count(folder, run):
    run.config_path.write_text("retry: {max_crashes: 3, backoff_s: 60}")
    queue = ended_queue(folder, run, [Cause.CRASHED] * 4, refilled_at=3)
    assert [job.why for job in queue.jobs.values()] == ["backing off 60 s (crashed)"]


def test_spent_crash_budget_holds_the_run(folder, run):
    assert ended_queue(folder, run, [Cause.CRASHED] * 3).jobs == {}
    assert notes.why_away(run) == "held: 3 crashes without a new checkpoint"
    assert folder.jobs() == []


def test_stop_by_a_person_outweighs_a_preemption_that_came_first(folder, run):
    assert ended_queue(folder, run, [Cause.PREEMPTED], stop=Cause.CANCELLED, kill_at=1.0).jobs == {}
    assert notes.why_away(run) == "cancelled"


def test_preempted_run_keeps_its_place_and_one_at_its_time_limit_does_not(folder, tmp_path):
    places = []
    for name, cause in (("first", Cause.PREEMPTED), ("second", Cause.TIME_LIMIT)):
        run = RunFolder(tmp_path / name)
        run.path.mkdir()
        queue = ended_queue(folder, run, [cause])
        places.append(queue.jobs[files.job_id(run)].sequence)
    assert places[0] == 4
    assert places[1] > 4


@pytest.mark.parametrize(
    "text, gpus", [("0,1", ("0", "1")), ("", ()), ("-1", ()), ("GPU-a, 3", ("GPU-a", "3"))]
)
def test_gpus_follow_cuda_visible_devices(monkeypatch, text, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", text)
    assert local_machine.visible_gpus() == gpus


def test_gpus_are_counted_by_nvidia_smi_and_a_failing_one_means_none(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: x)'\necho '  MIG 1g'\necho 'GPU 1: A (UUID: y)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert local_machine.visible_gpus() == ("0", "1")
    program.write_text("#!/bin/sh\necho 'GPU 0: A'\nexit 9\n")
    assert local_machine.visible_gpus() == ()


def test_unknown_scheduler_is_refused_with_the_known_names():
    with pytest.raises(UsageError, match="moab") as caught:
        open_scheduler("moab")
    assert "local" in caught.value.way_out
