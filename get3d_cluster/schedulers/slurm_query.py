"""Questions to SLURM: the only place that runs squeue, scontrol show, sacct and sacctmgr show.

Each call has a short timeout, and one more try after an error or an empty answer, which a busy controller gives.
"""

import contextlib
import os
import pwd
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from get3d_cluster.errors import SchedulerError
from get3d_cluster.runtime import env
from get3d_cluster.schedulers.slurm_plan import Promise, QueueRow, expand_nodes, promise_of, worst_of

TIMEOUT_S = 3.0
PAUSE_S = 0.2
QUEUE_FRESH_S = 1.0
"""How long an answer of squeue is used again, since `status` asks for many runs at once."""
TROUBLE_FRESH_S = 5.0
"""The same for a failure, so that `status` of many runs does not wait for each."""
WAY_OUT = (
    "try again in a minute; if it stays, ask the administrator whether slurmctld is up (`scontrol ping`)"
)
NO_PROGRAM = (
    "run this on a login node of the cluster, or load its SLURM module so that the program is on PATH"
)

SEPARATOR = "\x1f"
QUEUE_FIELDS = ("A", "F", "K", "T", "r", "N", "k", "S", "E")
PAST_FIELDS = ("JobID", "State", "ExitCode", "NodeList", "Start", "End")
LATER_FIELDS = ("FailedNode", "Restarts")
"""Fields of sacct that 22.05 does not know yet."""

FREE_TEXT = re.compile("JobName|(Admin|System)?Comment|Command|WorkDir|Std(Err|In|Out)|SubmitLine|Extra")
"""Fields of a job that may hold spaces and equals signs."""
AFTER_NAME = re.compile(r"UserId=.*\(\d+\)")
AFTER_FREE_TEXT = re.compile(
    "((Admin|System)?Comment|Command|WorkDir|Std(Err|In|Out)|SubmitLine|Extra|Power|Tres\\w+|MemPerTres|CpusPerTres|"
    "NtasksPerTRES|MailUser|MailType|SELinuxContext|StepMgrEnabled|OOMKillStep)=.*"
)
"""Fields that may follow one of free text, as ``name=value``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PastRow:
    """One incarnation of a job in the accounting: it gets another with each requeue."""

    job: str
    """12, or 12_3 for an array element."""
    state: str
    exit_code: str = ""
    nodes: tuple[str, ...] = ()
    failed_nodes: tuple[str, ...] = ()
    start: str = ""
    end: str = ""
    restarts: int | None = None
    """None: this version of SLURM does not record it."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a program of SLURM said."""

    code: int
    out: str
    err: str


_queue: list[tuple[float, dict[str, list[QueueRow]] | SchedulerError]] = []
"""The newest answer of squeue, with the monotonic time until which it holds."""


def job_record(job: str, *, timeout_s: float = TIMEOUT_S) -> dict[str, str]:
    """Return the fields of ``scontrol show job``; {} if the controller no longer knows the job.

    Raises: SchedulerError if it does not answer.
    """
    try:
        text = ask(["scontrol", "show", "job", "-o", job], expects="JobId=", timeout_s=timeout_s)
    except SchedulerError as error:
        if _is_unknown_job(error.what):
            return {}
        raise
    records = [parse_record(line) for line in text.splitlines() if line.startswith("JobId=")]
    # A whole array is shown for the number of the array, which one of its elements has as its own.
    exact = [record for record in records if job in (record.get("JobId"), _element_name(record))]
    return next(iter(exact or records), {})


def jobs_of(comment: str, *, timeout_s: float = TIMEOUT_S) -> list[QueueRow]:
    """Return this user's jobs in the queue that were submitted with ``comment``. Raises: as ``all_jobs``."""
    return all_jobs(timeout_s=timeout_s).get(comment, [])


def all_jobs(*, timeout_s: float = TIMEOUT_S) -> dict[str, list[QueueRow]]:
    """Return this user's jobs in the queue by their comment; an answer is used again for a second.

    Raises: SchedulerError if the controller does not answer.
    """
    now = time.monotonic()
    if not _queue or _queue[0][0] < now:
        answer = _ask_queue(timeout_s)
        fresh_s = TROUBLE_FRESH_S if isinstance(answer, SchedulerError) else QUEUE_FRESH_S
        _queue[:] = [(time.monotonic() + fresh_s, answer)]
    kept = _queue[0][1]
    if isinstance(kept, SchedulerError):
        raise SchedulerError(kept.what, kept.way_out)
    return kept


def forget() -> None:
    """Ask squeue anew the next time: the queue was just changed."""
    _queue.clear()


def cluster_facts(partition: str, qos: str, *, timeout_s: float = TIMEOUT_S) -> Promise:
    """Return what the cluster promises a job of ``partition`` (empty: its default one) and ``qos``.

    Raises: SchedulerError if the controller does not answer or does not know the partition.
    """
    config = parse_config(ask(["scontrol", "show", "config"], expects="KillWait", timeout_s=timeout_s))
    answer = ask(["scontrol", "show", "partition", "-a", "-o"], expects="PartitionName=", timeout_s=timeout_s)
    records = [parse_record(line) for line in answer.splitlines() if line.startswith("PartitionName=")]
    by_qos = config.get("PreemptType", "").endswith("qos")
    record = _qos(qos, timeout_s) if qos or by_qos else None
    return worst_of([promise_of(config, chosen, record) for chosen in _chosen(records, partition)])


def past(job: str, *, timeout_s: float = TIMEOUT_S) -> list[PastRow]:
    """Return every incarnation of a job that the accounting knows, oldest first; [] if it does not answer."""
    with contextlib.suppress(SchedulerError):
        return _past(job, PAST_FIELDS + LATER_FIELDS, timeout_s)
    return []


def down_nodes(names: Sequence[str], *, timeout_s: float = TIMEOUT_S) -> tuple[str, ...]:
    """Return those of the nodes that SLURM counts as down now; () if it does not answer."""
    command = ["sinfo", "-N", "-o", "%N %t", "-n", ",".join(names)]
    with contextlib.suppress(SchedulerError):
        rows = [line.split() for line in ask(command, timeout_s=timeout_s).splitlines()[1:]]
        down = {row[0] for row in rows if len(row) == 2 and row[1].startswith(("down", "fail"))}
        return tuple(name for name in names if name in down)
    return ()


def ask(command: Sequence[str], *, expects: str = "", timeout_s: float = TIMEOUT_S) -> str:
    """Run a program of SLURM and return what it prints; try once more if it fails or prints nothing, not if it is late.

    An answer without ``expects`` is none either: what a busy controller leaves out must not read as "no such job".

    Raises: SchedulerError naming the command and what it said.
    """
    trouble = ""
    for attempt in range(2):
        time.sleep(PAUSE_S * attempt)
        try:
            answer = _run(command, timeout_s)
        except subprocess.TimeoutExpired:
            trouble = f"gave no answer in {timeout_s:g} s"
            break
        except OSError as error:
            raise SchedulerError(f"`{command[0]}` cannot be run: {error.strerror}", NO_PROGRAM) from error
        if answer.code == 0 and answer.out.strip() and expects in answer.out:
            return answer.out
        said = " ".join((answer.err or answer.out).split())[:300]
        trouble = f"ended with {answer.code} and said: {said}" if said else "printed nothing"
        if _is_unknown_job(said) or _is_unknown_field(said):
            break
    shown = " ".join(command).replace(SEPARATOR, "|")
    raise SchedulerError(f"`{shown}` {trouble}", WAY_OUT)


def parse_record(line: str) -> dict[str, str]:
    """Return the fields of one line of ``scontrol show -o``; values may hold spaces and equals signs."""
    record: dict[str, str] = {}
    key = ""
    for token in line.strip().split(" "):
        name, equals, value = token.partition("=")
        is_field = bool(equals) and re.fullmatch(r"[A-Za-z][\w/:]*", name) is not None and name not in record
        if FREE_TEXT.fullmatch(key):
            is_field &= bool((AFTER_NAME if key == "JobName" else AFTER_FREE_TEXT).fullmatch(token))
        if is_field:
            key = name
            record[key] = value
        elif key:
            record[key] += f" {token}"
    return {name: value.strip() for name, value in record.items()}


def parse_config(text: str) -> dict[str, str]:
    """Return the lines ``Name = value`` of ``scontrol show config``."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {name.strip(): value.strip() for name, equals, value in pairs if equals}


def parse_queue(text: str) -> list[QueueRow]:
    """Return the rows of squeue in ``QUEUE_FIELDS``, without its header and whatever else it prints."""
    rows = [line.split(SEPARATOR) for line in text.splitlines()]
    return [
        QueueRow(
            job=row[0].strip(),
            array_job=row[1].strip(),
            task="" if row[2].strip() in {"N/A", "(null)"} else row[2].strip(),
            state=row[3].strip(),
            reason=row[4].strip(),
            nodes=row[5].strip(),
            comment=row[6].strip(),
            start=row[7].strip(),
            dependency="" if row[8].strip() == "(null)" else row[8].strip(),
        )
        for row in rows
        if len(row) == len(QUEUE_FIELDS) and row[0].strip().isdigit()
    ]


def _ask_queue(timeout_s: float) -> dict[str, list[QueueRow]] | SchedulerError:
    # With its header, an answer without jobs is told apart from no answer; -a shows hidden partitions too.
    command = ["squeue", "--me", "-a", "-o", SEPARATOR.join(f"%{field}" for field in QUEUE_FIELDS)]
    try:
        text = ask(command, expects=SEPARATOR, timeout_s=timeout_s)
    except SchedulerError as error:
        return error
    jobs: dict[str, list[QueueRow]] = {}
    for row in parse_queue(text):
        jobs.setdefault(row.comment, []).append(row)
    return jobs


def _environment() -> dict[str, str]:
    """Return the environment without the user's own formats and filters, so that answers look as expected."""
    wanted = env.child_environment({"SLURM_TIME_FORMAT": "standard", "SLURM_BITSTR_LEN": "0", "LC_ALL": "C"})
    return {
        name: value
        for name, value in wanted.items()
        if not name.startswith(("SQUEUE_", "SACCT_", "SCONTROL_"))
    }


def _run(command: Sequence[str], timeout_s: float) -> _Answer:
    # A session of its own: a site's wrapper script must not hold our pipe after its time is over.
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=_environment(),
        start_new_session=True,
    )
    with process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return _Answer(process.returncode, out, err)


def _is_unknown_job(said: str) -> bool:
    return re.search(r"Invalid job id|Job \S+ not found", said) is not None


def _is_unknown_field(said: str) -> bool:
    return "Invalid field requested" in said


def _element_name(record: Mapping[str, str]) -> str:
    return f"{record.get('ArrayJobId', '')}_{record.get('ArrayTaskId', '')}"


def _chosen(records: Sequence[dict[str, str]], partition: str) -> list[dict[str, str]]:
    known = {record.get("PartitionName", ""): record for record in records}
    if not partition:
        default = [record for record in records if record.get("Default") == "YES"]
        if not default:
            raise SchedulerError(
                "the cluster has no default partition",
                f"set resources.partition to one of: {', '.join(known)}",
            )
        return default[:1]
    names = [name.strip() for name in partition.split(",")]
    if missing := [name for name in names if name not in known]:
        raise SchedulerError(
            f"resources.partition={partition}: the cluster has no partition {missing[0]}",
            f"choose one of: {', '.join(known)}",
        )
    return [known[name] for name in names]


def _qos(name: str, timeout_s: float) -> dict[str, str] | None:
    """Return the record of a QOS, of the user's default one if ``name`` is empty; None if the accounting is silent."""
    try:
        name = name or _default_qos(timeout_s)
        fields = ("Name", "GraceTime", "PreemptMode", "MaxWall")
        command = ["sacctmgr", "-n", "-P", "show", "qos", name, f"format={','.join(fields)}"]
        rows = [line.split("|") for line in ask(command, timeout_s=timeout_s).splitlines()]
    except SchedulerError:
        return None
    return next((dict(zip(fields, row, strict=True)) for row in rows if len(row) == len(fields)), None)


def _default_qos(timeout_s: float) -> str:
    command = [
        "sacctmgr",
        "-n",
        "-P",
        "show",
        "assoc",
        f"user={pwd.getpwuid(os.getuid()).pw_name}",
        "format=DefaultQOS",
    ]
    with contextlib.suppress(SchedulerError):
        names = [line.strip() for line in ask(command, timeout_s=timeout_s).splitlines() if line.strip()]
        return names[0] if names else "normal"
    return "normal"


def _past(job: str, fields: Sequence[str], timeout_s: float) -> list[PastRow]:
    command = ["sacct", "-D", "-X", "-P", "-j", job, "-o", ",".join(fields), f"--delimiter={SEPARATOR}"]
    try:
        text = ask(command, expects=SEPARATOR, timeout_s=timeout_s)
    except SchedulerError as error:
        known = [field for field in fields if f'"{field}"' not in error.what]
        if not _is_unknown_field(error.what) or len(known) == len(fields):
            raise
        return _past(job, known, timeout_s)
    rows = [line.split(SEPARATOR) for line in text.splitlines()[1:]]
    return [_past_row(dict(zip(fields, row, strict=True))) for row in rows if len(row) == len(fields)]


def _past_row(row: Mapping[str, str]) -> PastRow:
    restarts = row.get("Restarts", "")
    return PastRow(
        job=row["JobID"],
        state=row["State"],
        exit_code=row["ExitCode"],
        nodes=expand_nodes(row["NodeList"]),
        failed_nodes=expand_nodes(row.get("FailedNode", "")),
        start=row["Start"],
        end=row["End"],
        restarts=int(restarts) if restarts.isdigit() else None,
    )
