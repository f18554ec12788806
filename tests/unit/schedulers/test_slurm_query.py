"""Questions to SLURM, answered by small programs in its place: what 22.05.8 prints, and how it fails."""

import os
import stat
import time
from pathlib import Path

import pytest

from get3d_cluster.errors import SchedulerError
from get3d_cluster.schedulers import slurm_query

RECORD = (
    "JobId=1 JobName=my job a=b JobState=DONE UserId=x UserId=root(0) GroupId=root(0) MCS_label=N/A "
    "Priority=4294901759 Nice=0 Account=root QOS=normal JobState=RUNNING Reason=None Dependency=(null) Requeue=1 "
    "Restarts=2 BatchFlag=1 Reboot=0 ExitCode=0:0 TimeLimit=365-00:00:00 StartTime=2026-11-23T03:25:51 "
    "EndTime=2027-11-23T03:25:51 PreemptTime=None AllocNode:Sid=localhost:9896 ReqNodeList=(null) "
    "NodeList=node[1-2] NewInLaterVersions=5 CPUs/Task=1 ReqB:S:C:T=0:0:*:* TRES=cpu=2,node=2,billing=2 "
    "NtasksPerN:B:S:C=0:0:*:* Features=(null) Command=/runs/my folder/b.sh x=1 WorkDir=/runs/my folder "
    "Comment=get3d:a b=c JobState=DONE  StdErr=/runs/my folder/o.txt StdIn=/dev/null StdOut=/runs/o.txt Power= "
)
ARRAY = """\
JobId=22 ArrayJobId=15 ArrayTaskId=2 ArrayTaskThrottle=3 JobName=b.sh UserId=root(0) JobState=RUNNING NodeList=node2
JobId=15 ArrayJobId=15 ArrayTaskId=3-29%3 ArrayTaskThrottle=3 JobName=b.sh UserId=root(0) JobState=PENDING NodeList=
"""
QUEUE = """\
JOBID|ARRAY_JOB_ID|ARRAY_TASK_ID|STATE|REASON|NODELIST|COMMENT|START_TIME|DEPENDENCY
15|15|1,4-29|PENDING|JobArrayTaskLimit||get3d:arr|N/A|(null)
23|15|3|RUNNING|None|node3|get3d:arr|2026-11-23T03:28:44|(null)
7|7|N/A|PENDING|Dependency||get3d:dep|N/A|afterok:6(unfulfilled)
19|19|N/A|PENDING|ReqNodeNotAvail, UnavailableNodes:node4||(null)|N/A|(null)
CLUSTER: toy
""".replace("|", "\x1f")
CONFIG = """\
Configuration data as of 2026-11-23T03:30:00
JobRequeue              = 1
KillWait                = 5 sec
MaxArraySize            = 1001
PreemptMode             = REQUEUE
PreemptType             = preempt/{by}
SchedulerParameters     = sched_interval=1,bf_continue
SlurmctldParameters     = idle_on_node_suspend,preempt_send_user_signal
SLURM_VERSION           = 22.05.8

Slurmctld(primary) at vm is UP
"""
PARTITIONS = """\
PartitionName=low Default=YES DefaultTime=NONE GraceTime=10 MaxTime=UNLIMITED PreemptMode=REQUEUE State=UP
PartitionName=high Default=NO DefaultTime=NONE GraceTime=0 MaxTime=1-00:00:00 PreemptMode=OFF State=UP
PartitionName=cancel Default=NO DefaultTime=NONE GraceTime=60 MaxTime=UNLIMITED PreemptMode=CANCEL State=UP
"""
PAST = """\
JobID|State|ExitCode|NodeList|Start|End
15_1|NODE_FAIL|0:0|node[3-4]|2026-11-23T03:28:40|2026-11-23T03:28:44
15_1|CANCELLED by 0|0:15|None assigned|Unknown|Unknown
""".replace("|", "\x1f")
QUICK_S = 0.3


class Programs:
    """Programs in place of SLURM's, and a count of how often each was started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, *lines: str) -> None:
        path = self.folder / name
        body = [f'echo "$@" >> {self.folder}/{name}.calls', *lines]
        path.write_text("\n".join(["#!/bin/sh", *body, ""]))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def says(self, name: str, text: str, code: int = 0) -> None:
        (self.folder / f"{name}.out").write_text(text)
        self.write(name, f"cat {self.folder}/{name}.out", f"exit {code}")

    def complains(self, name: str, text: str, code: int = 1) -> None:
        self.write(name, f"echo '{text}' >&2", f"exit {code}")

    def calls(self, name: str) -> list[str]:
        path = self.folder / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(slurm_query, "PAUSE_S", 0.01)
    slurm_query.forget()
    return Programs(tmp_path)


def test_values_with_spaces_and_equals_signs_are_kept_apart(programs):
    programs.says("scontrol", RECORD + "\n")
    record = slurm_query.job_record("1")
    assert record["JobName"] == "my job a=b JobState=DONE UserId=x"
    assert record["UserId"] == "root(0)"
    assert (record["JobState"], record["Reason"], record["Restarts"]) == ("RUNNING", "None", "2")
    assert record["Comment"] == "get3d:a b=c JobState=DONE"
    assert record["Command"] == "/runs/my folder/b.sh x=1"
    assert record["WorkDir"] == "/runs/my folder"
    assert record["StdErr"] == "/runs/my folder/o.txt"
    assert record["NodeList"] == "node[1-2]"
    assert record["NewInLaterVersions"] == "5"
    assert record["TRES"] == "cpu=2,node=2,billing=2"
    assert programs.calls("scontrol")[0] == "show job -o 1"


@pytest.mark.parametrize(("job", "state"), [("15", "PENDING"), ("22", "RUNNING"), ("15_2", "RUNNING")])
def test_the_element_that_is_asked_for_is_found_among_those_of_its_array(programs, job, state):
    programs.says("scontrol", ARRAY)
    assert slurm_query.job_record(job)["JobState"] == state


@pytest.mark.parametrize("said", ["slurm_load_jobs error: Invalid job id specified", "Job 999_7 not found"])
def test_a_job_that_the_controller_forgot_has_no_record_and_is_asked_for_once(programs, said):
    programs.complains("scontrol", said)
    assert slurm_query.job_record("999") == {}
    assert len(programs.calls("scontrol")) == 1


def test_a_controller_that_does_not_answer_is_asked_twice_and_named(programs):
    programs.complains(
        "scontrol", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    )
    with pytest.raises(SchedulerError) as caught:
        slurm_query.job_record("1")
    assert "`scontrol show job -o 1`" in caught.value.what
    assert "Unable to contact" in caught.value.what
    assert "scontrol ping" in caught.value.way_out
    assert len(programs.calls("scontrol")) == 2


def test_an_empty_answer_is_no_answer(programs):
    programs.says("squeue", "")
    with pytest.raises(SchedulerError, match="printed nothing"):
        slurm_query.all_jobs()
    assert len(programs.calls("squeue")) == 2


def test_the_second_try_counts(programs):
    first = f"[ -e {programs.folder}/again ] || {{ touch {programs.folder}/again; exit 1; }}"
    programs.write("scontrol", first, "echo 'JobId=1 JobName=b UserId=u(1) JobState=RUNNING'")
    assert slurm_query.job_record("1")["JobState"] == "RUNNING"


def test_a_late_answer_is_not_waited_for_even_if_a_child_keeps_the_pipe(programs):
    programs.write("squeue", "sleep 60 &", f"echo $! >> {programs.folder}/children", "wait")
    start = time.monotonic()
    with pytest.raises(SchedulerError, match=r"no answer in 0\.3 s"):
        slurm_query.all_jobs(timeout_s=QUICK_S)
    assert time.monotonic() - start < 40  # the child sleeps for 60
    children = (programs.folder / "children").read_text().split()
    assert len(children) == 1
    while any(is_alive(int(child)) for child in children):  # a kill is not over when it returns
        assert time.monotonic() - start < 50
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] not in "ZX"


def test_without_slurm_the_way_out_says_where_to_go(programs, monkeypatch):
    monkeypatch.setenv("PATH", str(programs.folder))
    with pytest.raises(SchedulerError, match="squeue") as caught:
        slurm_query.all_jobs()
    assert "login node" in caught.value.way_out
    assert slurm_query.past("1") == []


def test_the_queue_is_read_once_for_all_runs_of_this_user(programs):
    programs.says("squeue", QUEUE)
    jobs = slurm_query.all_jobs()
    assert set(jobs) == {"get3d:arr", "get3d:dep", "(null)"}
    waiting, running = slurm_query.jobs_of("get3d:arr")
    assert (waiting.task, waiting.state, waiting.reason) == ("1,4-29", "PENDING", "JobArrayTaskLimit")
    assert (running.job, running.array_job, running.task, running.nodes) == ("23", "15", "3", "node3")
    (dependent,) = slurm_query.jobs_of("get3d:dep")
    assert (dependent.task, dependent.dependency, dependent.name) == ("", "afterok:6(unfulfilled)", "7")
    assert slurm_query.jobs_of("get3d:other") == []
    (call,) = programs.calls("squeue")
    assert call.startswith("--me -a -o %A")


def test_the_queue_is_read_again_after_a_second_or_a_change(programs, monkeypatch):
    programs.says("squeue", QUEUE)
    slurm_query.all_jobs()
    slurm_query.forget()
    slurm_query.all_jobs()
    assert len(programs.calls("squeue")) == 2
    monkeypatch.setattr(slurm_query, "QUEUE_FRESH_S", -1.0)
    slurm_query.forget()
    slurm_query.all_jobs()
    slurm_query.all_jobs()
    assert len(programs.calls("squeue")) == 4


def test_an_empty_queue_is_known_from_its_header(programs):
    programs.says("squeue", QUEUE.splitlines()[0] + "\n")
    assert slurm_query.all_jobs() == {}


def test_a_failure_is_remembered_so_that_many_runs_do_not_wait_one_by_one(programs):
    programs.complains("squeue", "slurm_load_jobs error: Socket timed out")
    for _ in range(20):
        with pytest.raises(SchedulerError, match="Socket timed out"):
            slurm_query.jobs_of("get3d:arr")
    assert len(programs.calls("squeue")) == 2


@pytest.mark.parametrize("text", ["garbage\nmore | garbage\n", " \n\n", "\u00e9\x00\n"])
def test_garbage_is_no_answer_and_never_reads_as_a_job_that_is_gone(programs, text):
    for name in ("squeue", "scontrol", "sacct"):
        programs.says(name, text)
    for ask in (
        slurm_query.all_jobs,
        lambda: slurm_query.job_record("1"),
        lambda: slurm_query.cluster_facts("", ""),
    ):
        with pytest.raises(SchedulerError):
            ask()
    assert slurm_query.past("1") == []


def test_lines_of_another_shape_are_passed_over(programs):
    header = QUEUE.splitlines()[0]
    programs.says(
        "squeue", "\n".join(["CLUSTER: toy", header, "a\x1fb", "\x1f" * 8, *QUEUE.splitlines()[1:], ""])
    )
    assert set(slurm_query.all_jobs()) == {"get3d:arr", "get3d:dep", "(null)"}


def test_the_users_own_formats_and_filters_do_not_reach_slurm(programs, monkeypatch):
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    monkeypatch.setenv("SACCT_FORMAT", "JobID")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    monkeypatch.setenv("SLURM_CONF", "/etc/mine.conf")
    programs.write("squeue", f"env > {programs.folder}/environment", "echo garbage")
    with pytest.raises(SchedulerError, match="garbage"):
        slurm_query.all_jobs()
    lines = (programs.folder / "environment").read_text().splitlines()
    assert not [line for line in lines if line.startswith(("SQUEUE_", "SACCT_"))]
    assert {"SLURM_TIME_FORMAT=standard", "SLURM_BITSTR_LEN=0", "SLURM_CONF=/etc/mine.conf"} <= set(lines)


def show(programs: Programs, by: str) -> None:
    (programs.folder / "config").write_text(CONFIG.format(by=by))
    (programs.folder / "partitions").write_text(PARTITIONS)
    programs.write(
        "scontrol",
        f'case "$2" in config) cat {programs.folder}/config;; *) cat {programs.folder}/partitions;; esac',
    )


def test_the_default_partition_is_meant_when_none_is_named(programs):
    show(programs, "partition_prio")
    promise = slurm_query.cluster_facts("", "")
    assert (promise.partition, promise.mode, promise.grace_s, promise.kill_wait_s) == (
        "low",
        "REQUEUE",
        10,
        5,
    )
    assert promise.user_signal
    assert slurm_query.cluster_facts("high", "").mode == "OFF"
    assert slurm_query.cluster_facts("high", "").max_time_min == 1440
    assert programs.calls("sacctmgr") == []


def test_of_several_partitions_the_least_is_promised(programs):
    show(programs, "partition_prio")
    promise = slurm_query.cluster_facts("low,cancel", "")
    assert (promise.mode, promise.grace_s) == ("CANCEL", 10)


def test_a_partition_that_does_not_exist_is_named_with_those_that_do(programs):
    show(programs, "partition_prio")
    with pytest.raises(SchedulerError, match="no partition gpu") as caught:
        slurm_query.cluster_facts("low,gpu", "")
    assert "low, high, cancel" in caught.value.way_out


def test_where_the_qos_preempts_the_users_default_one_is_asked_for(programs):
    show(programs, "qos")
    programs.write(
        "sacctmgr",
        'case "$*" in *assoc*) echo spot;; *" spot "*) echo "spot|00:01:30|cancel|1-00:00:00";; esac',
    )
    promise = slurm_query.cluster_facts("low", "")
    assert (promise.qos, promise.mode, promise.grace_s, promise.max_time_min) == ("spot", "CANCEL", 90, 1440)


def test_a_silent_accounting_leaves_the_clusters_own_mode_and_no_grace(programs):
    show(programs, "qos")
    programs.complains("sacctmgr", "sacctmgr: error: Unable to contact slurmdbd")
    promise = slurm_query.cluster_facts("low", "spot")
    assert (promise.mode, promise.grace_s) == ("REQUEUE", 0)


def test_each_incarnation_of_a_job_is_told_also_by_a_version_without_the_newer_fields(programs):
    (programs.folder / "past").write_text(PAST)
    programs.write(
        "sacct",
        'case "$*" in *FailedNode*) echo "sacct: error: Invalid field requested: \\"FailedNode\\"" >&2; exit 1;;',
        '*Restarts*) echo "sacct: error: Invalid field requested: \\"Restarts\\"" >&2; exit 1;; esac',
        f"cat {programs.folder}/past",
    )
    first, second = slurm_query.past("15_1")
    assert (first.job, first.state, first.nodes, first.restarts) == (
        "15_1",
        "NODE_FAIL",
        ("node3", "node4"),
        None,
    )
    assert (second.state, second.exit_code, second.nodes) == ("CANCELLED by 0", "0:15", ())
    assert len(programs.calls("sacct")) == 3
    assert "-D -X -P -j 15_1" in programs.calls("sacct")[0]


def test_newer_versions_name_the_failed_node_and_count_restarts(programs):
    fields = "\x1f".join([*slurm_query.PAST_FIELDS, *slurm_query.LATER_FIELDS])
    row = "\x1f".join(["7", "NODE_FAIL", "0:0", "n[1-2]", "a", "b", "n2", "3"])
    programs.says("sacct", f"{fields}\n{row}\n")
    (past,) = slurm_query.past("7")
    assert (past.failed_nodes, past.restarts) == (("n2",), 3)


@pytest.mark.parametrize("code", [0, 1])
def test_an_accounting_that_is_off_or_down_is_no_error(programs, code):
    programs.complains("sacct", "Slurm accounting storage is disabled", code)
    assert slurm_query.past("1") == []


def test_nobody_is_left_waiting_for_input(programs):
    programs.write("scontrol", "read line || echo 'JobId=1 JobName=b UserId=u(1) JobState=RUNNING'")
    reading, writing = os.pipe()
    kept = os.dup(0)
    os.dup2(reading, 0)
    try:
        assert slurm_query.job_record("1", timeout_s=2)["JobState"] == "RUNNING"
    finally:
        os.dup2(kept, 0)
        for end in (reading, writing, kept):
            os.close(end)
