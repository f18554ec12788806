"""Decisions about SLURM. Pure: what sbatch is asked for, what SLURM's words mean, what a cluster promises a job.

Facts: the manual pages of SLURM 22.05 to 25.x, and its answers on a cluster of four nodes.
"""

import math
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Any

from get3d_cluster.core.job import Cause, Outcome, Resources
from get3d_cluster.errors import ExitCode, UsageError
from get3d_cluster.schedulers.base import Standing, StopReason

SIGNAL_EARLY_S = 60
"""SLURM sends the warning before a time limit up to this much earlier than asked (manual of sbatch, --signal)."""
LONGEST_SIGNAL_S = 65535
START_S = 60.0
"""What an attempt needs before its first step: imports, meeting of the workers, reading a checkpoint."""
NO_ARRAY_LIMIT = 2**31 - 1
"""More than any array has elements; submitit takes the smaller of the two."""

OURS = {
    "signal": "set resources.grace_s",
    "open-mode": "leave it out: the log is always appended to, or a requeue would empty it",
    "comment": "leave it out: jobs are found again by it; write remarks with --admin-comment or --wckey",
    "array": "set resources.array and resources.array_limit",
    "output": "leave it out: logs are in the run's folder, read them with `launch.py logs`",
    "error": "leave it out: logs are in the run's folder, read them with `launch.py logs`",
    "requeue": "leave it out: every job here asks to be requeued",
    "no-requeue": "leave it out: set retry.max_without_progress=1 for a run that never comes back",
    "dependency": "use the runs it comes after: launch.py submit JOB --after RUN",
    "parsable": "leave it out: submitit reads sbatch's usual answer",
    "quiet": "leave it out: submitit reads sbatch's usual answer",
    "wait": "leave it out: use `launch.py run` to stay attached",
    "wrap": "leave it out: the batch script is ours; shell lines go into resources.setup",
    "test-only": "use `launch.py plan`",
    "clusters": "log in on that cluster and submit there",
}
"""Flags of sbatch that would break an attempt, and what to use in their place."""
SRUN_OURS = {
    "kill-on-bad-exit": "leave it out: the workers save together although one of them leaves first",
    "output": "leave it out: each rank has a log file of its own",
    "error": "leave it out: each rank has a log file of its own",
}
SRUN_SHORT = {"-K": "kill-on-bad-exit", "-o": "output", "-e": "error"}


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueRow:
    """One line of squeue: a job, an array element that runs, or all elements of an array that wait."""

    job: str
    """The job's own number."""
    array_job: str = ""
    """The number of the array, or ``job`` again."""
    task: str = ""
    """Element of the array, or several as 5-39%4; empty if it is no array."""
    state: str = ""
    reason: str = ""
    nodes: str = ""
    comment: str = ""
    start: str = ""
    """When it started or is expected to, as SLURM prints it."""
    dependency: str = ""

    @property
    def name(self) -> str:
        """What scontrol and scancel take for it."""
        return f"{self.array_job}_{self.task}" if self.task.isdigit() else self.array_job or self.job


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Elements ``offset`` to ``offset + count`` of a run's array, as one SLURM array from 0."""

    offset: int
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Promise:
    """What a cluster promises a job of one partition and QOS."""

    mode: str = "OFF"
    """PreemptMode: OFF, REQUEUE, CANCEL or SUSPEND."""
    grace_s: float = 0.0
    """GraceTime: what a preempted job gets at least between the notice and the end."""
    kill_wait_s: float = 30.0
    """KillWait: between the last TERM and the kill."""
    user_signal: bool = False
    """preempt_send_user_signal: a preemption sends the signal of --signal, in place of TERM."""
    requeue: bool = True
    """JobRequeue: whether jobs are requeued that do not ask for it."""
    max_time_min: int = 0
    """Longest time limit, or 0."""
    default_time_min: int = 0
    """Time limit of a job that asks for none; 0 is ``max_time_min``."""
    max_array_size: int = 1001
    """Elements in one array."""
    partition: str = ""
    qos: str = ""
    preempt_type: str = ""
    version: str = ""

    @property
    def window_s(self) -> float:
        """Seconds from the notice of a preemption to the kill, at least."""
        return self.grace_s + self.kill_wait_s

    @property
    def is_preemptable(self) -> bool:
        return self.mode != "OFF"


def parameters(  # noqa: PLR0913  each is a fact of another owner
    resources: Resources,
    *,
    name: str,
    comment: str,
    setup: Sequence[str],
    teardown: Sequence[str],
    begin_s: float = 0,
    dependency: str = "",
    exclude: Sequence[str] = (),
    folders: Sequence[str] = (),
) -> dict[str, Any]:
    """Translate into what ``submitit.SlurmExecutor.update_parameters`` takes.

    ``setup`` holds the lines of ``resources.setup`` where they belong. ``exclude`` is added to ``resources.exclude``;
    ``folders`` are what a container sees besides ``resources.mounts``. Without a time limit sbatch gets no --time at
    all, so that the partition's own limit holds: UNLIMITED would wait forever in a partition that has one.

    Raises: UsageError naming a flag in ``resources.sbatch`` or ``resources.srun`` that would break the attempt.
    """
    flags = sbatch_flags(resources.sbatch)
    excluded = dict.fromkeys(part for part in (resources.exclude, flags.pop("exclude", ""), *exclude) if part)
    ours: dict[str, Any] = {"requeue": True}
    if begin_s > 0:
        ours["begin"] = f"now+{math.ceil(begin_s)}"
    gpus = resources.workers_per_node * resources.gpus_per_worker
    return {
        "job_name": name,
        "comment": comment,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.workers_per_node,
        "cpus_per_task": resources.cpus_per_worker,
        "gpus_per_node": gpus or None,
        "mem": f"{resources.memory_gb}G" if resources.memory_gb else None,
        "time": resources.time_limit_min or None,  # None: submitit leaves the flag out
        "partition": resources.partition or None,
        "qos": resources.qos or None,
        "account": resources.account or None,
        "constraint": resources.constraint or None,
        "exclude": ",".join(excluded) or None,
        "dependency": dependency or None,
        "wckey": None,
        "signal_delay_s": signal_s(resources.grace_s),
        "stderr_to_stdout": True,
        "array_parallelism": resources.array_limit or NO_ARRAY_LIMIT,
        "setup": list(setup),
        "teardown": list(teardown),
        "srun_args": srun_arguments(resources, folders),
        "additional_parameters": {**ours, **flags},
    }


def signal_s(grace_s: float) -> int:
    """Return the seconds of --signal for a notice ``grace_s`` before the end."""
    return min(max(1, math.ceil(grace_s)), LONGEST_SIGNAL_S)


def sbatch_flags(flags: Sequence[str]) -> dict[str, Any]:
    """Return ``flags`` ("--name=value" or "--name") in submitit's words.

    Raises: UsageError if one is not in the long form or would break the attempt.
    """
    known: dict[str, Any] = {}
    for flag in flags:
        name, equals, value = flag.partition("=")
        if not re.fullmatch(r"--[a-z][a-z0-9-]*", name):
            raise UsageError(f"resources.sbatch has {flag!r}", "write it in its long form: --name=value")
        _check_not_ours("sbatch", flag, name[2:], OURS)
        # submitit's own keys: with a hyphen the flag would be written twice, and the later line would win.
        known[name[2:].replace("-", "_")] = value if equals else True
    return known


def srun_arguments(resources: Resources, folders: Sequence[str]) -> list[str]:
    """Return the flags of srun: ours, those of the container, those of the user last, so that they win.

    Raises: UsageError as ``parameters``.
    """
    for flag in resources.srun:
        name = SRUN_SHORT.get(flag[:2], flag.partition("=")[0].removeprefix("--"))
        _check_not_ours("srun", flag, name, SRUN_OURS)
    # srun takes --cpus-per-task no longer from sbatch since 22.05 (its release notes).
    ours = ["--kill-on-bad-exit=0", f"--cpus-per-task={resources.cpus_per_worker}"]
    runtime, _, image = resources.container.partition(":")
    if runtime == "pyxis":
        mounts = [_mount(folder) for folder in _seen(resources, folders)]
        ours.append(f"--container-image={image}")
        ours += [f"--container-mounts={','.join(mounts)}"] if mounts else []
    return [*ours, *resources.srun]


def worker_command(resources: Resources, python: str, task_script: str, folders: Sequence[str]) -> str:
    """Return what srun starts on each task, before ``-m submitit...``, quoted for the shell.

    In a container that is the container's own python3. Raises: UsageError for a folder that no mount can name.
    """
    runtime, _, image = resources.container.partition(":")
    words = ["sh", task_script]
    if runtime == "apptainer":
        words += ["apptainer", "exec", *(["--nv"] if resources.gpus_per_worker else [])]
        for folder in _seen(resources, folders):
            words += ["--bind", folder]
        # Apptainer is written in Go, which starts a program with signals at their defaults again.
        words += [image, "sh", "-c", 'trap "" TERM USR1 USR2 INT; exec "$@"', "sh"]
    return shlex.join([*words, "python3" if runtime else python])


def chunks(count: int, max_array_size: int) -> list[Chunk]:
    """Split ``count`` elements into arrays of about equal size, none larger than ``max_array_size``.

    MaxArraySize is the largest index + 1, so that each array counts from 0. Equal, since one element left over would
    be a job without an array.
    """
    if count < 1:
        return []
    num = math.ceil(count / max(1, max_array_size))
    bounds = [count * index // num for index in range(num + 1)]
    return [Chunk(offset=low, count=high - low) for low, high in pairwise(bounds)]


def cause_of(
    record: Mapping[str, str],
    restarts: int,
    *,
    kill_wait_s: float,
    now: float,
    warning_s: float = 30.0,
    past_state: str = "",
    promised_s: float | None = None,
) -> StopReason:
    """Say why a running attempt was told to stop, from the fields of ``scontrol show job``.

    ``restarts`` is SLURM_RESTART_COUNT of the attempt, ``now`` in seconds since 1970, ``warning_s`` what --signal
    asked for. ``past_state`` is the word of sacct for this incarnation, if it is known: only that tells a preemption
    without GraceTime from a requeue by hand, since the record is that of the next start already (seen with 22.05).
    ``promised_s`` is GraceTime, which counts where a job without a time limit has no EndTime to bring forward.
    PREEMPTED when in doubt: then the run is saved and comes back for free.
    """
    left_s = seconds_until(record.get("EndTime", ""), now) if record.get("JobState") == "RUNNING" else 0.0
    if left_s is None and promised_s is not None:
        left_s = _left_of(promised_s, record.get("PreemptTime", ""), now)
    to_kill_s = None if left_s is None else left_s + kill_wait_s
    if _is_preempted(record):
        return StopReason(cause=Cause.PREEMPTED, grace_s=to_kill_s)
    if record.get("JobState") == "RUNNING":
        is_near = left_s is not None and left_s <= signal_s(warning_s) + 2 * SIGNAL_EARLY_S
        return StopReason(cause=Cause.TIME_LIMIT, grace_s=to_kill_s) if is_near else _IN_DOUBT
    cause = _cause_of_leaving(record, restarts)
    if cause is Cause.REQUEUED and past_state in _ENDINGS:
        cause = ending_of(past_state)[0]
    return StopReason(cause=cause, grace_s=kill_wait_s) if cause else _IN_DOUBT


_IN_DOUBT = StopReason(cause=Cause.PREEMPTED)


def _cause_of_leaving(record: Mapping[str, str], restarts: int) -> Cause | None:
    """Return why a job leaves that SLURM no longer calls running; None if it does not say."""
    state, reason = record.get("JobState", ""), record.get("Reason", "")
    if state == "NODE_FAIL" or reason == "NodeDown":
        return Cause.NODE_FAILURE
    if _number(record.get("Restarts", ""), restarts) > restarts:
        return Cause.REQUEUED
    if state == "TIMEOUT" or reason == "TimeLimit":
        return Cause.TIME_LIMIT
    return Cause.CANCELLED if state.startswith(("COMPLETING", "CANCELLED")) else None


_ENDINGS: Mapping[str, tuple[Cause, str]] = {
    "PREEMPTED": (Cause.PREEMPTED, "preempted by SLURM"),
    "NODE_FAIL": (Cause.NODE_FAILURE, "a node failed"),
    "BOOT_FAIL": (Cause.NODE_FAILURE, "a node did not boot"),
    "LAUNCH_FAILED": (Cause.NODE_FAILURE, "a node could not start the job"),
    "RECONFIG_FAIL": (Cause.NODE_FAILURE, "a node could not be set up for the job"),
    "TIMEOUT": (Cause.TIME_LIMIT, "the time limit was reached"),
    "DEADLINE": (Cause.CANCELLED, "its --deadline has passed, after which SLURM starts it no more"),
    "OUT_OF_MEMORY": (Cause.CRASHED, "out of memory: raise resources.memory_gb"),
    "REQUEUED": (Cause.REQUEUED, "requeued by hand or by SLURM"),
    "EXPEDITING": (Cause.REQUEUED, "requeued by SLURM"),
    "REQUEUE_FED": (Cause.REQUEUED, "requeued by the federation"),
    "REQUEUE_HOLD": (Cause.REQUEUED, "requeued and held: scontrol release lets it go"),
    "SPECIAL_EXIT": (Cause.REQUEUED, "requeued and held (SPECIAL_EXIT): scontrol release lets it go"),
    "REVOKED": (Cause.FENCED, "another cluster of the federation started it"),
    "COMPLETED": (Cause.CRASHED, "ended without saying how, exit code 0"),
}


def ending_of(state: str, exit_code: str = "") -> tuple[Cause, str]:
    """Return why an attempt without an outcome ended, from the words of sacct or scontrol, and a phrase for people.

    ``exit_code`` is SLURM's "code:signal". PREEMPTED if SLURM says nothing that is known: it costs no crash budget.
    """
    word = state.split(maxsplit=1)[0].rstrip("+") if state.strip() else ""
    if word == "CANCELLED":
        who = state.partition(" by ")[2].strip()
        by = {"": "", "0": " by an administrator (root)"}.get(who, f" by user {who}")
        return Cause.CANCELLED, f"cancelled{by} in SLURM"
    if word == "FAILED":
        return _failure(exit_code)
    return _ENDINGS.get(word, (Cause.PREEMPTED, f"SLURM does not say how it ended ({state or 'no record'})"))


_STARTING_STATES = frozenset({"CONFIGURING", "POWER_UP_NODE"})
_LEAVING_STATES = frozenset({"COMPLETING", "STAGE_OUT", "SIGNALING"})
RUNNING_STATES = _STARTING_STATES | _LEAVING_STATES | {"RUNNING", "STOPPED", "SUSPENDED", "RESIZING"}
HELD_STATES = frozenset({"SPECIAL_EXIT", "REQUEUE_HOLD", "RESV_DEL_HOLD"})
PENDING_STATES = HELD_STATES | frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "EXPEDITING"})
_STATE_PHRASES = {
    "COMPLETING": "is leaving",
    "STOPPED": "stopped by SLURM, its memory kept",
    "SUSPENDED": "frozen by SLURM, its memory kept",
    "CONFIGURING": "its nodes are being started",
    "POWER_UP_NODE": "its nodes are being started",
}
_REASONS: Mapping[str, str] = {
    "Priority": "jobs of higher priority go first",
    "Resources": "waits for free nodes",
    "Nodes": "waits for free nodes",
    "Dependency": "waits for another job",
    "DependencyNeverSatisfied": "waits for a job that failed and will never start; cancel and submit it again",
    "BeginTime": "its start time has not come",
    "JobHeldUser": "held by its owner",
    "JobHeldAdmin": "held by an administrator",
    "JobHoldMaxRequeue": "held: requeued too often",
    "launch failed requeued held": "held: SLURM could not start it on its nodes",
    "job requeued in held state": "held: requeued by hand with a hold",
    "job requeued in special exit state": "held: requeued by hand with a hold",
    "PartitionTimeLimit": "asks for more time than the partition allows; lower resources.time_limit_min",
    "PartitionNodeLimit": "asks for more nodes than the partition allows; lower resources.nodes",
    "PartitionConfig": "asks for more than the partition allows",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition starts no jobs now",
    "ReqNodeNotAvail": "nodes it needs are down, drained or reserved",
    "NodeDown": "a node it needs is down",
    "BadConstraints": "no node has what it asks for; change resources.constraint",
    "JobArrayTaskLimit": "as many elements run as resources.array_limit allows",
    "Licenses": "waits for a licence",
    "Reservation": "waits for its reservation",
    "Cleaning": "its previous start is still being cleared away",
    "Prolog": "its nodes are being prepared",
    "InvalidAccount": "the account is not valid; set resources.account",
    "InvalidQOS": "the QOS is not valid; set resources.qos",
    "AccountNotAllowed": "the account may not use the partition; set resources.account",
    "QOSNotAllowed": "the QOS may not use the partition; set resources.qos",
    "ExcNodeList": "too few nodes are left besides the excluded ones",
    "None": "SLURM has not looked at it yet",
    "WaitingForScheduling": "SLURM has not looked at it yet",
    "": "SLURM has not looked at it yet",
}
_HELD = re.compile(r"[Hh]eld|JobHold|special exit|SPECIAL_EXIT|_HOLD")


def told_failures(output: str, begin: str) -> tuple[str, ...]:
    r"""Return the nodes that srun called failed in a batch output, after the line that starts with ``begin``.

    >>> told_failures("attempt 1 of run on node1\nsrun: error: Node failure on node1", "attempt 1 of run on ")
    ('node1',)
    """
    said = re.findall(r"^srun: error: Node failure on (\S+)", output.rpartition(begin)[2], re.MULTILINE)
    return tuple(dict.fromkeys(node for names in said for node in expand_nodes(names)))


def last_cancellation(output: str) -> str:
    """Return the state that slurmstepd's last words in a batch output amount to, or an empty text.

    >>> last_cancellation("error: *** JOB 7 ON node1 CANCELLED AT 2026-11-23T03:00:00 DUE TO PREEMPTION ***")
    'PREEMPTED'
    """
    said = re.findall(r"\*\*\* JOB \S+ ON \S+ CANCELLED AT \S+(?: DUE TO ([A-Z ]+?))? ?\*\*\*", output)
    states = {
        "PREEMPTION": "PREEMPTED",
        "TIME LIMIT": "TIMEOUT",
        "JOB REQUEUE": "REQUEUED",
        "NODE FAILURE": "NODE_FAIL",
    }
    return states.get(said[-1], "CANCELLED") if said else ""


def standing_of(rows: Sequence[QueueRow]) -> Standing:
    """Return what the queue says of a run: of one job, of several, or of the elements of arrays."""
    running = [row for row in rows if row.state in RUNNING_STATES]
    pending = [row for row in rows if row.state in PENDING_STATES]
    if not running and not pending:
        return Standing(state="absent")
    live = running + pending
    jobs = dict.fromkeys(row.array_job or row.job for row in (running or pending))
    hosts = dict.fromkeys(node for row in running for node in expand_nodes(row.nodes))
    if any(row.task for row in live):
        why = _array_why(running, pending)
    else:
        why = _running_why(running[0], tuple(hosts)) if running else pending_why(pending[0])
    state = "running" if running else "pending"
    return Standing(state=state, why=why, job=",".join(jobs), hosts=tuple(hosts))


def pending_why(row: QueueRow) -> str:
    """Return what a job waits for, in words and in SLURM's word, and how a held one is released."""
    full = row.reason.strip("() ")
    raw = full if " " in full.partition(",")[0] else full.partition(",")[0]  # some are sentences
    raw = raw.replace("_", " ") if raw.startswith("launch") else raw
    is_held = row.state in HELD_STATES or bool(_HELD.search(raw))
    if is_held and raw in {"", "None"}:
        raw = row.state
    words = _REASONS.get(raw) or ("held by SLURM" if is_held else _limit_words(raw))
    if raw.startswith("Nodes required"):
        words, raw = _REASONS["ReqNodeNotAvail"], "Nodes"
    if raw == "ReqNodeNotAvail" and ":" in full:
        words += f": {full.rpartition(':')[2]}"
    if raw == "BeginTime" and row.start not in {"", "N/A"}:
        words = f"starts at {row.start}"
    if raw == "Dependency" and row.dependency not in {"", "(null)"}:
        words = f"waits for {row.dependency}"
    return f"{words} [{raw or 'None'}]" + (f"; scontrol release {row.name}" if is_held else "")


def count_tasks(task: str) -> int:
    """Return how many array elements ``task`` names; 1 for a job that is no array.

    >>> count_tasks("3,5-39%4"), count_tasks("0-8:4"), count_tasks("")
    (36, 3, 1)
    """
    parts = task.strip("[]").partition("%")[0].split(",")
    matches = [re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part) for part in parts]
    return sum(
        len(range(int(match[1]), int(match[2] or match[1]) + 1, int(match[3] or 1))) if match else 1
        for match in matches
    )


def bad_nodes(outcomes: Sequence[Outcome], times: int = 2) -> tuple[str, ...]:
    """Return the nodes that failed at least ``times`` attempts."""
    failed = (
        host
        for outcome in outcomes
        if outcome.cause in (Cause.NODE_FAILURE, Cause.HUNG)
        for host in set(outcome.failed_hosts)
    )
    return tuple(sorted(host for host, count in Counter(failed).items() if count >= times))


def promise_of(
    config: Mapping[str, str], partition: Mapping[str, str], qos: Mapping[str, str] | None
) -> Promise:
    """Return what the cluster promises a job of ``partition`` and ``qos``.

    ``config`` and ``partition`` have the fields of ``scontrol show``, ``qos`` those of ``sacctmgr show qos``.
    preempt/partition_prio reads mode and grace from the partition, preempt/qos from the QOS where that sets a mode.
    """
    preempt_type = config.get("PreemptType", "")
    by_qos = preempt_type.endswith("qos")
    words = (qos or {}).get("PreemptMode", "") if by_qos else partition.get("PreemptMode", "")
    grace = (qos or {}).get("GraceTime", "") if by_qos else partition.get("GraceTime", "")
    mode = _mode(words) or _mode(config.get("PreemptMode", "")) or "OFF"
    limits = [minutes(partition.get("MaxTime", "")), minutes((qos or {}).get("MaxWall", ""))]
    sizes = [_number(config.get("MaxArraySize", ""), 1001)]
    if match := re.search(r"max_array_tasks=(\d+)", config.get("SchedulerParameters", "")):
        sizes.append(int(match[1]))
    return Promise(
        mode=mode if preempt_type not in {"", "preempt/none", "(null)"} or mode == "SUSPEND" else "OFF",
        grace_s=seconds(grace) or 0.0,
        kill_wait_s=seconds(config.get("KillWait", "")) or 30.0,
        user_signal="preempt_send_user_signal" in config.get("SlurmctldParameters", "").split(","),
        requeue=config.get("JobRequeue", "1") != "0",
        max_time_min=min((limit for limit in limits if limit), default=0),
        default_time_min=minutes(partition.get("DefaultTime", "")),
        max_array_size=max(1, min(sizes)),
        partition=partition.get("PartitionName", ""),
        qos=(qos or {}).get("Name", ""),
        preempt_type=preempt_type,
        version=config.get("SLURM_VERSION", ""),
    )


_SEVERITY = ("OFF", "SUSPEND", "REQUEUE", "CANCEL")


def worst_of(promises: Sequence[Promise]) -> Promise:
    """Return the least of what several partitions promise, for a job that may start in any of them."""
    worst = max(promises, key=lambda promise: (_SEVERITY.index(promise.mode), -promise.grace_s))
    preemptable = [promise for promise in promises if promise.is_preemptable]
    return replace(
        worst,
        grace_s=min((promise.grace_s for promise in preemptable), default=worst.grace_s),
        max_time_min=min((promise.max_time_min for promise in promises if promise.max_time_min), default=0),
        partition=",".join(promise.partition for promise in promises),
    )


def warnings_of(promise: Promise, resources: Resources, save_s: float | None) -> list[str]:
    """Return what may lose steps or keep the run waiting, each as one sentence with the way out.

    ``save_s`` is how long a save of this run was measured to take; None if it never was.
    """
    return [*_preemption_warnings(promise, resources, save_s), *_time_warnings(promise, resources, save_s)]


def expand_nodes(text: str) -> tuple[str, ...]:
    """Return the names in a list of nodes; () for SLURM's ways to say none.

    >>> expand_nodes("node[1-3,07],gpu2")
    ('node1', 'node2', 'node3', 'node07', 'gpu2')
    """
    if text.strip() in {"", "(null)", "None", "None assigned", "N/A", "Unknown"}:
        return ()
    names = re.findall(r"(?:[^,\[\]]|\[[^\]]*\]?)+", text.strip())
    return tuple(dict.fromkeys(node for name in names for node in _expand(name)))


def seconds(text: str) -> float | None:
    """Return a duration as SLURM prints it ("30 sec", "1-02:03:04", "05:00", "10") in seconds; None if unlimited.

    >>> seconds("1-02:03:04"), seconds("30 sec"), seconds("UNLIMITED")
    (93784.0, 30.0, None)
    """
    match = re.fullmatch(r"(?:(\d+)-)?([\d:]+)(?: (sec|min)s?)?", text.strip())
    if not match:
        return None
    parts = [float(part or 0) for part in match[2].split(":")]
    if match[1] and len(parts) < 3:
        parts += [0.0] * (3 - len(parts))  # with days, the first is hours
    total = 0.0
    for part in parts:
        total = 60 * total + part
    return (86400.0 * int(match[1] or 0) + total) * (60 if match[3] == "min" else 1)


def minutes(text: str) -> int:
    """Return a time limit as SLURM prints it in whole minutes; 0 if there is none."""
    return int((seconds(text) or 0.0) // 60)


def seconds_until(text: str, now: float) -> float | None:
    """Return the seconds from ``now`` to a local time as SLURM prints it, at least 0; None if it is not known."""
    try:
        return max(0.0, datetime.fromisoformat(text).timestamp() - now)
    except ValueError:
        return None


def _check_not_ours(program: str, flag: str, name: str, ours: Mapping[str, str]) -> None:
    for own, way_out in ours.items():
        if own.startswith(name):  # programs of SLURM take any beginning of a name that is clear
            raise UsageError(f"resources.{program} has {flag!r}, which would break the attempt", way_out)


def _seen(resources: Resources, folders: Sequence[str]) -> list[str]:
    seen = list(dict.fromkeys([*folders, *resources.mounts]))
    if wrong := [folder for folder in seen if "," in folder]:
        raise UsageError(
            f"the folder {wrong[0]!r} has a comma, with which no container can mount it", "use another path"
        )
    return seen


def _mount(folder: str) -> str:
    return folder if ":" in folder else f"{folder}:{folder}"


def _is_preempted(record: Mapping[str, str]) -> bool:
    """Say whether this incarnation was preempted; the time may be left over from an earlier one."""
    when, start = record.get("PreemptTime", ""), record.get("StartTime", "")
    if record.get("JobState") == "PREEMPTED" or record.get("Reason") == "Preempted":
        return True
    if not re.match(r"\d{4}-", when):
        return False
    return not re.match(r"\d{4}-", start) or when >= start


def _left_of(promised_s: float, since: str, now: float) -> float | None:
    """Return the seconds left of a grace that began at ``since``; None if that is not known."""
    try:
        return max(0.0, datetime.fromisoformat(since).timestamp() + promised_s - now)
    except ValueError:
        return None


def _failure(exit_code: str) -> tuple[Cause, str]:
    code, _, number = exit_code.partition(":")
    if code == str(int(ExitCode.HUNG)):
        return Cause.HUNG, f"hung, exit code {code}"
    if number and number != "0":
        return Cause.CRASHED, f"killed by signal {number}"
    return Cause.CRASHED, f"failed, exit code {code}" if code else "failed"


def _running_why(row: QueueRow, hosts: Sequence[str]) -> str:
    phrase = _STATE_PHRASES.get(row.state, "")
    where = f"on {', '.join(hosts)}" if hosts else ""
    return " ".join(part for part in (where, f"{phrase} [{row.state}]" if phrase else "") if part)


def _array_why(running: Sequence[QueueRow], pending: Sequence[QueueRow]) -> str:
    num_running, num_pending = (sum(count_tasks(row.task) for row in rows) for rows in (running, pending))
    counts = [f"{num_running} run"] * bool(num_running) + [f"{num_pending} wait"] * bool(num_pending)
    whys = list(dict.fromkeys(pending_why(row) for row in pending))
    return ", ".join(counts) + (f": {whys[0]}" if whys else "")


def _limit_words(raw: str) -> str:
    if raw.startswith(("QOS", "Qos")):
        return "a limit of the QOS is reached"
    if raw.startswith("Assoc"):
        return "a limit of the account is reached"
    return "waits"


def _number(text: str, default: int) -> int:
    return int(text) if text.isdigit() else default


def _mode(words: str) -> str:
    """Return the mode of a job; GANG alone means that SLURM suspends in turn. Empty: the cluster's default holds."""
    modes = [word for word in words.upper().split(",") if word in {*_SEVERITY, "GANG"}]
    others = [word for word in modes if word != "GANG"]
    return others[0] if others else "SUSPEND" if modes else ""


def _expand(name: str) -> Iterable[str]:
    match = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", name)
    if not match:
        yield name
        return
    for part in match[2].split(","):
        low, dash, high = part.partition("-")
        numbers = (
            [f"{number:0{len(low)}d}" for number in range(int(low), int(high) + 1)]
            if dash and low.isdigit() and high.isdigit()
            else [part]
        )
        for number in numbers:
            for rest in _expand(match[3]):
                yield f"{match[1]}{number}{rest}"


def _preemption_warnings(promise: Promise, resources: Resources, save_s: float | None) -> list[str]:
    where = _where(promise)
    if promise.mode == "OFF":
        return []
    if promise.mode == "SUSPEND":
        return [
            f"{where} has PreemptMode=SUSPEND or GANG, which stops a job's processes but frees none of its GPU memory: "
            "choose another resources.partition or resources.qos for a job with GPUs, "
            "or ask the administrator for PreemptMode=REQUEUE"
        ]
    found = []
    if save_s is not None and save_s > promise.window_s:
        found.append(
            f"a save takes {save_s:.0f} s, but {where} promises {promise.grace_s:g} s of GraceTime and "
            f"{promise.kill_wait_s:g} s of KillWait before the kill: lower checkpoint.every_s, since the newest "
            "periodic checkpoint is what stays, or ask the administrator for a longer GraceTime"
        )
    if promise.grace_s == 0:
        found.append(
            f"{where} has GraceTime=0, so that only KillWait={promise.kill_wait_s:g} s remain between the notice and "
            f"the kill: ask the administrator for GraceTime={max(60, math.ceil(2 * (save_s or 0)))}"
        )
    elif resources.grace_s > promise.window_s and resources.grace_s != Resources().grace_s:
        found.append(
            f"resources.grace_s={resources.grace_s:g} is longer than the {promise.window_s:g} s (GraceTime and "
            f"KillWait) that {where} promises: lower it, or ask the administrator for a longer GraceTime"
        )
    if promise.mode == "CANCEL":
        found.append(
            f"{where} has PreemptMode=CANCEL, which ends a preempted job for good: the run comes back as a successor "
            "job with a new number; ask the administrator for PreemptMode=REQUEUE to keep the number"
        )
    elif not promise.requeue:
        found.append(
            "the cluster has JobRequeue=0: jobs here ask for --requeue themselves, and where that is refused the run "
            "comes back as a successor job; ask the administrator for JobRequeue=1 to keep the number"
        )
    return found


def _time_warnings(promise: Promise, resources: Resources, save_s: float | None) -> list[str]:
    found = []
    asked = resources.time_limit_min
    limit = asked or promise.default_time_min or promise.max_time_min
    needed_s = START_S + max(save_s or 0.0, resources.grace_s) + SIGNAL_EARLY_S
    if promise.max_time_min and asked > promise.max_time_min:
        found.append(
            f"resources.time_limit_min={asked} is more than {_where(promise)} allows, so that the job would wait "
            f"forever: lower it to {promise.max_time_min}"
        )
    elif not asked and promise.default_time_min and promise.default_time_min != promise.max_time_min:
        longest = promise.max_time_min or "the minutes you want"
        found.append(
            f"without resources.time_limit_min each attempt ends after {_where(promise)}'s "
            f"DefaultTime={promise.default_time_min} min and waits in the queue again: set "
            f"resources.time_limit_min={longest}"
        )
    if limit and 60 * limit <= needed_s:
        found.append(
            f"a time limit of {limit} min leaves no time to compute, since start, save and SLURM's early warning take "
            f"about {needed_s:.0f} s: set resources.time_limit_min={math.ceil(needed_s / 60) + 10} or more"
        )
    return found


def _where(promise: Promise) -> str:
    if promise.preempt_type.endswith("qos") and promise.qos:
        return f"QOS {promise.qos}"
    return f"partition {promise.partition}" if promise.partition else "the cluster"
