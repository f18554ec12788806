"""What sbatch is asked for and what SLURM's words mean. Texts are those of SLURM 22.05.8 on four nodes."""

import shlex
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from submitit.slurm.slurm import _get_default_parameters, _make_sbatch_string

from get3d_cluster.core.job import Cause, Outcome, Resources
from get3d_cluster.errors import UsageError
from get3d_cluster.schedulers import slurm_plan
from get3d_cluster.schedulers.slurm_plan import Promise, QueueRow

NOW = datetime.fromisoformat("2026-11-23T03:26:25").timestamp()


def asked(resources: Resources, **facts) -> dict:
    return slurm_plan.parameters(
        resources, **{"name": "car", "comment": "get3d:1", "setup": [], "teardown": []} | facts
    )


def script(resources: Resources, command: str = "sh t.sh python", **facts) -> str:
    return _make_sbatch_string(command=command, folder="/runs/car/slurm", **asked(resources, **facts))


def flags(text: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH ")]
    pairs = [line.partition("=") for line in lines]
    assert len({name for name, _, _ in pairs}) == len(pairs), "a flag is written twice"
    return {name: "".join(shlex.split(value)) for name, _, value in pairs}


def srun_words(text: str) -> list[str]:
    return shlex.split(next(line for line in text.splitlines() if line.startswith("srun ")))


@pytest.mark.parametrize(
    ("fields", "flag", "value"),
    [
        ({"nodes": 4}, "nodes", "4"),
        ({"workers_per_node": 8}, "ntasks-per-node", "8"),
        ({"cpus_per_worker": 6}, "cpus-per-task", "6"),
        ({"gpus_per_worker": 1, "workers_per_node": 8}, "gpus-per-node", "8"),
        ({"gpus_per_worker": 2, "workers_per_node": 3}, "gpus-per-node", "6"),
        ({"memory_gb": 64}, "mem", "64G"),
        ({"time_limit_min": 90}, "time", "90"),
        ({"partition": "low,high"}, "partition", "low,high"),
        ({"qos": "spot"}, "qos", "spot"),
        ({"account": "vision"}, "account", "vision"),
        ({"constraint": "a100|h100"}, "constraint", "a100|h100"),
        ({"exclude": "node[3,7-9]"}, "exclude", "node[3,7-9]"),
        ({"grace_s": 0}, "signal", "USR2@1"),
        ({"grace_s": 45.2}, "signal", "USR2@46"),
        ({"grace_s": 100_000}, "signal", "USR2@65535"),
        ({"sbatch": ("--reservation=night",)}, "reservation", "night"),
        ({"sbatch": ("--exclusive",)}, "exclusive", ""),
        ({"sbatch": ("--mail-type=BEGIN,END",)}, "mail-type", "BEGIN,END"),
        ({"sbatch": ("--time=1-00:00:00",), "time_limit_min": 5}, "time", "1-00:00:00"),
        ({"sbatch": ("--job-name=mine",)}, "job-name", "mine"),
        ({"sbatch": ("--gpus-per-node=a100:4",), "gpus_per_worker": 4}, "gpus-per-node", "a100:4"),
        ({"sbatch": ("--cpus-per-task=3",), "cpus_per_worker": 6}, "cpus-per-task", "3"),
        ({"sbatch": ("--exclude=node5",), "exclude": "node1"}, "exclude", "node1,node5"),
        ({}, "comment", "get3d:1"),
        ({}, "job-name", "car"),
        ({}, "requeue", ""),
        ({}, "open-mode", "append"),
    ],
)
def test_each_field_becomes_its_flag_once(fields, flag, value):
    assert flags(script(Resources(**fields)))[flag] == value


def test_what_is_not_asked_for_is_not_written():
    assert set(flags(script(Resources()))) == {
        "comment", "cpus-per-task", "job-name", "nodes", "ntasks-per-node", "open-mode", "output", "requeue", "signal",
    }  # fmt: skip


def test_submitit_knows_every_parameter():
    assert set(asked(Resources())) <= set(_get_default_parameters())


def test_facts_of_the_submission_become_flags():
    text = script(Resources(exclude="n1"), begin_s=3.2, dependency="singleton", exclude=["n2", "n1"])
    assert flags(text)["begin"] == "now+4"
    assert flags(text)["dependency"] == "singleton"
    assert flags(text)["exclude"] == "n1,n2"
    assert "begin" not in flags(script(Resources(), begin_s=0))


@pytest.mark.parametrize(("limit", "expected"), [(3, "0-9%3"), (0, "0-9%10"), (50, "0-9%10")])
def test_an_array_runs_as_many_elements_at_a_time_as_allowed(limit, expected):
    assert flags(script(Resources(array=10, array_limit=limit)))["output"].endswith("%j_0_log.out")
    text = _make_sbatch_string(
        command="c", folder="/r", map_count=10, **asked(Resources(array=10, array_limit=limit))
    )
    assert flags(text)["array"] == expected


def test_the_whole_script_of_a_small_job():
    assert script(Resources(), setup=["python -m start /runs/car"], teardown=["python -m end /runs/car"]) == (
        """\
#!/bin/bash

# Parameters
#SBATCH --comment=get3d:1
#SBATCH --cpus-per-task=1
#SBATCH --job-name=car
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/car/slurm/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@30

# setup
python -m start /runs/car

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/car/slurm/%j_%t_log.out --kill-on-bad-exit=0 --cpus-per-task=1 sh t.sh python


# teardown
python -m end /runs/car"""
    )


def test_the_whole_script_of_a_large_job():
    resources = Resources(
        nodes=4, workers_per_node=8, cpus_per_worker=12, gpus_per_worker=1, memory_gb=900, time_limit_min=1440,
        grace_s=60, partition="gpu", qos="spot", account="vision", constraint="h100&ib", exclude="node[3,7-9]",
        container="pyxis:nvcr.io#torch:1", mounts=("/data:/in", "/scratch"), setup=("module load cuda",),
        sbatch=("--reservation=my night", "--exclusive"), srun=("--cpu-bind=cores",),
    )  # fmt: skip
    folders = ["/runs/car"]
    command = slurm_plan.worker_command(resources, "/usr/bin/python3.11", "/runs/my car/t.sh", folders)
    text = script(
        resources,
        command,
        setup=["module load cuda", "start"],
        teardown=["end"],
        begin_s=10,
        exclude=["bad1"],
        folders=folders,
    )
    assert text == (
        """\
#!/bin/bash

# Parameters
#SBATCH --account=vision
#SBATCH --begin=now+10
#SBATCH --comment=get3d:1
#SBATCH --constraint='h100&ib'
#SBATCH --cpus-per-task=12
#SBATCH --exclude='node[3,7-9],bad1'
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --job-name=car
#SBATCH --mem=900G
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=/runs/car/slurm/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=spot
#SBATCH --requeue
#SBATCH --reservation='my night'
#SBATCH --signal=USR2@60
#SBATCH --time=1440

# setup
module load cuda
start

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/car/slurm/%j_%t_log.out --kill-on-bad-exit=0 --cpus-per-task=12 """
        "'--container-image=nvcr.io#torch:1' --container-mounts=/runs/car:/runs/car,/data:/in,/scratch:/scratch "
        "--cpu-bind=cores sh '/runs/my car/t.sh' python3\n\n\n# teardown\nend"
    )


@pytest.mark.parametrize(
    "flag",
    [
        "--signal=TERM@5", "--open-mode=truncate", "--comment=x", "--array=0-3", "--output=o", "--error=e", "--requeue",
        "--no-requeue", "--dependency=afterok:1", "--sig=TERM@5", "--arr=0-3", "--dep=singleton", "--parsable",
        "--wait", "--test-only", "--clusters=all",
    ],
)  # fmt: skip
def test_a_flag_that_would_break_the_attempt_is_refused_by_name_with_a_way_out(flag):
    with pytest.raises(UsageError) as caught:
        asked(Resources(sbatch=(flag,)))
    assert flag in caught.value.what
    assert len(caught.value.way_out) > 10


@pytest.mark.parametrize("flag", ["-d", "-a0-3", "--name value", "--", "---x"])
def test_a_flag_in_another_form_is_refused(flag):
    with pytest.raises(UsageError, match=r"resources\.sbatch"):
        asked(Resources(sbatch=(flag,)))


@pytest.mark.parametrize(
    "flag", ["--kill-on-bad-exit=1", "-K", "-K1", "--output=x", "-ox", "--error=x", "--kill=1"]
)
def test_a_flag_of_srun_that_would_break_the_attempt_is_refused(flag):
    with pytest.raises(UsageError, match=r"resources\.srun"):
        asked(Resources(srun=(flag,)))


def test_flags_of_srun_come_after_ours_so_that_they_win():
    words = srun_words(script(Resources(cpus_per_worker=4, srun=("--cpus-per-task=2", "-l"))))
    assert words.index("--cpus-per-task=4") < words.index("--cpus-per-task=2") < words.index("-l")


def test_the_workers_start_through_the_task_script_in_or_out_of_a_container():
    command = slurm_plan.worker_command
    assert command(Resources(), "/opt/my py/python", "/r/t.sh", ["/r"]) == "sh /r/t.sh '/opt/my py/python'"
    image = Resources(container="apptainer:docker://a:1", mounts=("/data:/in",))
    words = [
        "sh",
        "/r/t.sh",
        "apptainer",
        "exec",
        "--bind",
        "/r one",
        "--bind",
        "/data:/in",
        "docker://a:1",
        "sh",
        "-c",
        'trap "" TERM USR1 USR2 INT; exec "$@"',
        "sh",
        "python3",
    ]
    assert shlex.split(command(image, "/py", "/r/t.sh", ["/r one"])) == words
    gpu = Resources(container="apptainer:i.sif", gpus_per_worker=1)
    assert "exec --nv i.sif sh" in command(gpu, "/py", "/r/t.sh", [])
    with pytest.raises(UsageError, match="comma"):
        command(gpu, "/py", "/r/t.sh", ["/a,b"])


@given(st.integers(0, 10_000), st.integers(0, 1500))
def test_chunks_cover_every_element_once_within_the_limit_and_none_is_left_alone(count, limit):
    parts = slurm_plan.chunks(count, limit)
    covered = [part.offset + index for part in parts for index in range(part.count)]
    assert covered == list(range(count))
    assert all(1 <= part.count <= max(1, limit) for part in parts)
    if count > 1 and limit > 2:
        assert all(part.count > 1 for part in parts)  # submitit makes no array of one


def seen(state: str = "RUNNING", **fields: str) -> dict[str, str]:
    return {
        "JobState": state, "Reason": "None", "Restarts": "0", "StartTime": "2026-11-23T03:25:51",
        "EndTime": "2027-11-23T03:25:51", "PreemptTime": "None",
    } | fields  # fmt: skip


@pytest.mark.parametrize(
    ("record", "restarts", "cause", "grace_s"),
    [
        # As scontrol printed them at the moment of the signal.
        (seen(EndTime="2026-11-23T03:26:35", PreemptTime="2026-11-23T03:26:25"), 0, Cause.PREEMPTED, 15),
        (seen(EndTime="2026-11-23T03:26:55"), 0, Cause.TIME_LIMIT, 35),
        (seen("COMPLETING", EndTime="2026-11-23T03:26:18"), 0, Cause.CANCELLED, 5),
        (seen("COMPLETING", Restarts="1", EndTime="Unknown"), 0, Cause.REQUEUED, 5),
        (seen("COMPLETING", Restarts="3", EndTime="Unknown"), 3, Cause.CANCELLED, 5),
        (seen("COMPLETING", Restarts="1", Reason="job_requeued_in_held_state"), 0, Cause.REQUEUED, 5),
        (seen("COMPLETING", Reason="TimeLimit"), 0, Cause.TIME_LIMIT, 5),
        (seen("PENDING", Restarts="1"), 0, Cause.REQUEUED, 5),
        (seen("PREEMPTED"), 0, Cause.PREEMPTED, 5),
        (seen("NODE_FAIL", Reason="NodeDown"), 0, Cause.NODE_FAILURE, 5),
        # A time that an earlier incarnation left behind says nothing.
        (seen("COMPLETING", PreemptTime="2026-11-23T03:20:00"), 0, Cause.CANCELLED, 5),
        # In doubt: free of charge.
        ({}, 0, Cause.PREEMPTED, None),
        (seen(), 0, Cause.PREEMPTED, None),
        (seen(EndTime="Unknown"), 0, Cause.PREEMPTED, None),
        (seen(EndTime="Unknown", PreemptTime="2026-11-23T03:26:25"), 0, Cause.PREEMPTED, None),
        ({"JobState": "NEWWORD"}, 0, Cause.PREEMPTED, None),
    ],
)
def test_the_cause_of_a_notice(record, restarts, cause, grace_s):
    reason = slurm_plan.cause_of(record, restarts, kill_wait_s=5, now=NOW)
    assert reason.cause is cause
    assert reason.grace_s == (None if grace_s is None else pytest.approx(grace_s, abs=0.1))


def test_a_job_without_a_time_limit_counts_on_the_promised_grace():
    record = seen(EndTime="Unknown", PreemptTime="2026-11-23T03:26:23")
    reason = slurm_plan.cause_of(record, 0, kill_wait_s=5, now=NOW, promised_s=10)
    assert (reason.cause, reason.grace_s) == (Cause.PREEMPTED, pytest.approx(8 + 5, abs=0.1))
    unasked = slurm_plan.cause_of(seen(EndTime="Unknown"), 0, kill_wait_s=5, now=NOW, promised_s=10)
    assert (unasked.cause, unasked.grace_s) == (Cause.PREEMPTED, None)


@pytest.mark.parametrize(
    ("word", "cause"),
    [("PREEMPTED", Cause.PREEMPTED), ("REQUEUED", Cause.REQUEUED), ("NODE_FAIL", Cause.NODE_FAILURE),
     ("", Cause.REQUEUED), ("RUNNING", Cause.REQUEUED)],
)  # fmt: skip
def test_sacct_tells_a_preemption_without_grace_from_a_requeue_by_hand(word, cause):
    record = seen("COMPLETING", Restarts="1", EndTime="Unknown")
    assert slurm_plan.cause_of(record, 0, kill_wait_s=5, now=NOW, past_state=word).cause is cause


@pytest.mark.parametrize(
    ("state", "exit_code", "cause", "phrase"),
    [
        ("PREEMPTED", "0:0", Cause.PREEMPTED, "preempted"),
        ("NODE_FAIL", "1:0", Cause.NODE_FAILURE, "node failed"),
        ("BOOT_FAIL", "0:0", Cause.NODE_FAILURE, "boot"),
        ("TIMEOUT", "0:0", Cause.TIME_LIMIT, "time limit"),
        ("OUT_OF_MEMORY", "0:125", Cause.CRASHED, "memory_gb"),
        ("CANCELLED by 0", "0:0", Cause.CANCELLED, "administrator"),
        ("CANCELLED by 1000", "0:0", Cause.CANCELLED, "user 1000"),
        ("CANCELLED+", "0:0", Cause.CANCELLED, "cancelled in"),
        ("REQUEUED", "0:0", Cause.REQUEUED, "requeued"),
        ("REQUEUE_HOLD", "0:0", Cause.REQUEUED, "scontrol release"),
        ("SPECIAL_EXIT", "0:0", Cause.REQUEUED, "scontrol release"),
        ("FAILED", "1:0", Cause.CRASHED, "exit code 1"),
        ("FAILED", "0:9", Cause.CRASHED, "signal 9"),
        ("FAILED", "124:0", Cause.HUNG, "hung"),
        ("COMPLETED", "0:0", Cause.CRASHED, "without saying how"),
        ("DEADLINE", "0:0", Cause.CANCELLED, "deadline"),
        ("REVOKED", "0:0", Cause.FENCED, "another cluster"),
        ("", "", Cause.PREEMPTED, "no record"),
        ("SOMETHING_NEW", "", Cause.PREEMPTED, "SOMETHING_NEW"),
    ],
)
def test_the_words_of_an_ended_job(state, exit_code, cause, phrase):
    found, why = slurm_plan.ending_of(state, exit_code)
    assert found is cause
    assert phrase in why


def row(job: str = "12", state: str = "PENDING", reason: str = "None", **fields: str) -> QueueRow:
    return QueueRow(**{"job": job, "array_job": job, "state": state, "reason": reason} | fields)


@pytest.mark.parametrize(
    "state",
    ["RUNNING", "COMPLETING", "STOPPED", "SUSPENDED", "CONFIGURING", "RESIZING", "SIGNALING", "STAGE_OUT"],
)
def test_what_holds_nodes_runs_even_beside_a_waiting_successor(state):
    standing = slurm_plan.standing_of([row("13"), row("12", state, nodes="node[1-2]")])
    assert (standing.state, standing.job, standing.hosts) == ("running", "12", ("node1", "node2"))
    assert "on node1, node2" in standing.why


@pytest.mark.parametrize(
    ("waiting", "words"),
    [
        (row(reason="Priority"), "higher priority go first [Priority]"),
        (row(reason="Resources"), "waits for free nodes [Resources]"),
        (
            row(reason="Dependency", dependency="afterok:6(unfulfilled)"),
            "waits for afterok:6(unfulfilled) [Dep",
        ),
        (row(reason="DependencyNeverSatisfied"), "will never start"),
        (row(reason="BeginTime", start="2026-11-23T03:30:51"), "starts at 2026-11-23T03:30:51 [BeginTime]"),
        (row(reason="JobHeldUser"), "held by its owner [JobHeldUser]; scontrol release 12"),
        (row(reason="JobHeldAdmin"), "scontrol release 12"),
        (row(reason="job requeued in held state"), "scontrol release 12"),
        (row(reason="launch failed requeued held"), "[launch failed requeued held]; scontrol release 12"),
        (row(reason="launch_failed_requeued_held"), "could not start it"),
        (row(state="SPECIAL_EXIT"), "[SPECIAL_EXIT]; scontrol release 12"),
        (row(state="REQUEUE_HOLD", array_job="7", task="3"), "[REQUEUE_HOLD]; scontrol release 7_3"),
        (row(reason="PartitionTimeLimit"), "lower resources.time_limit_min"),
        (row(reason="QOSMaxJobsPerUserLimit"), "limit of the QOS is reached [QOSMaxJobsPerUserLimit]"),
        (row(reason="AssocGrpGRES"), "limit of the account"),
        (row(reason="ReqNodeNotAvail, UnavailableNodes:node4"), "reserved: node4 [ReqNodeNotAvail]"),
        (
            row(
                reason="Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions"
            ),
            "down, drained or reserved [Nodes]",
        ),
        (row(reason="SomethingNew"), "waits [SomethingNew]"),
        (row(reason=""), "not looked at it yet [None]"),
    ],
)
def test_what_a_job_waits_for_in_words_of_people(waiting, words):
    standing = slurm_plan.standing_of([waiting])
    assert standing.state == "pending"
    assert words in standing.why


def test_elements_of_arrays_are_counted():
    rows = [
        row("15", reason="JobArrayTaskLimit", task="3-464%37"),
        *(row(str(100 + i), "RUNNING", array_job="15", task=str(i), nodes=f"node{i % 2}") for i in range(37)),
        row("16", reason="Priority", task="1"),
    ]
    standing = slurm_plan.standing_of(rows)
    assert standing.why.startswith("37 run, 463 wait")
    assert (standing.job, set(standing.hosts)) == ("15", {"node0", "node1"})
    assert slurm_plan.standing_of(rows[:1]).why.startswith("462 wait")


def test_a_job_that_left_is_absent_never_done():
    assert slurm_plan.standing_of([]).state == "absent"
    assert slurm_plan.standing_of([row(state="COMPLETED")]).state == "absent"


@pytest.mark.parametrize(
    ("task", "count"),
    [("", 1), ("7", 1), ("5-39%4", 35), ("1,4-29", 27), ("0-8:4", 3), ("[0-3,7%2]", 5), ("0-37,...", 39)],
)
def test_elements_in_a_task_expression(task, count):
    assert slurm_plan.count_tasks(task) == count


def test_nodes_that_failed_twice_are_named():
    def end(cause: Cause, *failed: str) -> Outcome:
        return Outcome(attempt=1, cause=cause, exit_code=76, failed_hosts=failed)

    outcomes = [end(Cause.NODE_FAILURE, "b", "a", "a"), end(Cause.HUNG, "b"), end(Cause.CRASHED, "a"),
                end(Cause.NODE_FAILURE, "c")]  # fmt: skip
    assert slurm_plan.bad_nodes(outcomes) == ("b",)
    assert slurm_plan.bad_nodes(outcomes, times=1) == ("a", "b", "c")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("node[1-3,7],gpu2", ["node1", "node2", "node3", "node7", "gpu2"]),
        ("r[1-2]n[09-10]x", ["r1n09x", "r1n10x", "r2n09x", "r2n10x"]),
        ("a,b,a", ["a", "b"]),
        ("(null)", []), ("", []), ("None assigned", []),
        ("a[1-2", ["a[1-2"]), ("a[x-2]", ["ax-2"]),
    ],
)  # fmt: skip
def test_lists_of_nodes(text, names):
    assert list(slurm_plan.expand_nodes(text)) == names


@given(st.text(alphabet="ab1[]-,0", max_size=12))
def test_no_list_of_nodes_is_too_strange(text):
    slurm_plan.expand_nodes(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("10", 10), ("30 sec", 30), ("5 min", 300), ("01:30", 90), ("01:00:00", 3600), ("1-00:00:00", 86400),
     ("1-12", 129600), ("UNLIMITED", None), ("NONE", None), ("INFINITE", None), ("", None), (":", 0)],
)  # fmt: skip
def test_durations(text, value):
    assert slurm_plan.seconds(text) == value


CONFIG = {
    "PreemptType": "preempt/partition_prio", "PreemptMode": "REQUEUE", "KillWait": "5 sec", "JobRequeue": "1",
    "MaxArraySize": "1001", "SlurmctldParameters": "idle_on_node_suspend,preempt_send_user_signal",
    "SchedulerParameters": "bf_continue,max_array_tasks=500", "SLURM_VERSION": "22.05.8",
}  # fmt: skip
LOW = {"PartitionName": "low", "GraceTime": "10", "MaxTime": "2-00:00:00", "DefaultTime": "01:00:00",
       "PreemptMode": "CANCEL"}  # fmt: skip
SPOT = {"Name": "spot", "GraceTime": "00:01:00", "PreemptMode": "requeue", "MaxWall": "1-00:00:00"}


def test_the_promise_is_that_of_the_partition():
    assert slurm_plan.promise_of(CONFIG, LOW, SPOT) == Promise(
        mode="CANCEL", grace_s=10, kill_wait_s=5, user_signal=True, requeue=True, max_time_min=1440,
        default_time_min=60, max_array_size=500, partition="low", qos="spot", preempt_type="preempt/partition_prio",
        version="22.05.8",
    )  # fmt: skip


def test_the_promise_is_that_of_the_qos_where_qos_preempts():
    config = CONFIG | {"PreemptType": "preempt/qos", "PreemptMode": "GANG,SUSPEND"}
    assert (
        slurm_plan.promise_of(config, LOW, SPOT).mode,
        slurm_plan.promise_of(config, LOW, SPOT).grace_s,
    ) == (
        "REQUEUE",
        60,
    )
    assert slurm_plan.promise_of(config, LOW, SPOT | {"PreemptMode": "cluster"}).mode == "SUSPEND"
    unknown = slurm_plan.promise_of(config, LOW, None)
    assert (unknown.mode, unknown.grace_s, unknown.max_time_min) == ("SUSPEND", 0, 2880)


@pytest.mark.parametrize(
    ("config", "partition", "mode"),
    [
        ({"PreemptType": "preempt/none", "PreemptMode": "OFF"}, {"PreemptMode": "OFF"}, "OFF"),
        ({"PreemptType": "preempt/none", "PreemptMode": "GANG"}, {}, "SUSPEND"),
        ({"PreemptType": "preempt/partition_prio", "PreemptMode": "REQUEUE"}, {}, "REQUEUE"),
        ({"PreemptType": "preempt/partition_prio", "PreemptMode": "REQUEUE"}, {"PreemptMode": "OFF"}, "OFF"),
        ({"PreemptType": "preempt/partition_prio", "PreemptMode": "GANG,REQUEUE"}, {"PreemptMode": "GANG,REQUEUE"},
         "REQUEUE"),
        ({}, {}, "OFF"),
    ],
)  # fmt: skip
def test_the_mode_in_effect(config, partition, mode):
    assert slurm_plan.promise_of(config, partition, None).mode == mode


def test_a_job_for_several_partitions_can_count_on_the_least():
    many = [Promise(mode="REQUEUE", grace_s=5, partition="a", max_time_min=60),
            Promise(mode="CANCEL", grace_s=9, partition="b"), Promise(mode="OFF", partition="c")]  # fmt: skip
    worst = slurm_plan.worst_of(many)
    assert (worst.mode, worst.grace_s, worst.max_time_min, worst.partition) == ("CANCEL", 5, 60, "a,b,c")


GOOD = Promise(
    mode="REQUEUE", grace_s=60, kill_wait_s=30, partition="low", preempt_type="preempt/partition_prio"
)


@pytest.mark.parametrize(
    ("promise", "fields", "save_s", "words"),
    [
        (GOOD, {}, 91, ["a save takes 91 s"]),
        (GOOD, {}, 90, []),
        (GOOD, {}, None, []),
        (Promise(mode="OFF", requeue=False), {"grace_s": 500}, 500, []),
        (Promise(mode="REQUEUE", grace_s=0, kill_wait_s=30), {}, 5, ["GraceTime=0"]),
        (Promise(mode="CANCEL", grace_s=60), {}, 5, ["PreemptMode=CANCEL"]),
        (Promise(mode="CANCEL", grace_s=0), {}, 99, ["a save takes", "GraceTime=0", "PreemptMode=CANCEL"]),
        (Promise(mode="REQUEUE", grace_s=60, requeue=False), {}, 5, ["JobRequeue=0"]),
        (GOOD, {"grace_s": 91}, None, ["resources.grace_s=91 is longer"]),
        (Promise(mode="SUSPEND"), {"grace_s": 500}, 500, ["GPU memory"]),
        (Promise(max_time_min=60), {"time_limit_min": 61}, None, ["lower it to 60"]),
        (Promise(max_time_min=600, default_time_min=30), {}, None, ["DefaultTime=30", ]),
        (Promise(max_time_min=30, default_time_min=30), {}, None, []),
        (Promise(), {"time_limit_min": 2}, 5, ["leaves no time to compute"]),
        (Promise(), {"time_limit_min": 10}, 5, []),
        (Promise(), {"time_limit_min": 10}, 600, ["leaves no time to compute"]),
    ],
)  # fmt: skip
def test_warnings_say_what_may_be_lost_and_the_way_out(promise, fields, save_s, words):
    warnings = slurm_plan.warnings_of(promise, Resources(**fields), save_s)
    assert len(warnings) == len(words)
    for warning, word in zip(warnings, words, strict=True):
        assert word in warning
        assert ": " in warning or "; ask" in warning
