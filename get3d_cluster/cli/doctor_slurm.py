"""What a SLURM cluster promises, what is lost by it, and what to ask its administrator for, a sentence each.

Facts are asked for by ``ask_cluster`` and ``probe``; everything else judges them and is pure.
"""

import json
import math
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from get3d_cluster.cli.checks import Check
from get3d_cluster.cli.output import duration
from get3d_cluster.cli.runs import all_runs
from get3d_cluster.core.job import Resources
from get3d_cluster.errors import Get3dError, SchedulerError
from get3d_cluster.schedulers import slurm_query
from get3d_cluster.schedulers.slurm import longest_save_s
from get3d_cluster.schedulers.slurm_plan import Promise, warnings_of

MOST_PLACES = 40
"""Partitions and QOS that are looked at."""
UNMEASURED_S = 60
"""GraceTime to ask for as long as no save was measured."""
LEAST_GRACE_S = 10
"""What even a run that saves in no time needs until all its workers have heard of the notice."""
MOST_SKEW_S = 5.0
"""Between the clocks of nodes: the probe itself is no more exact than what a shared folder takes to show a file."""
PROBE_WAIT_S = 60
PROBE_S = 150.0
PROBE_SCRIPT = Path(__file__).with_name("probe_node.sh")
HOW_TO_PROBE = (
    "to look at the nodes themselves: python launch.py doctor --probe (two tasks, a minute at most)"
)
NO_SLURM = "on a cluster: log in to its front end, or load its slurm module; on one machine: --cluster local"


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What SLURM says of itself."""

    version: str = ""
    name: str = ""
    controller: str = ""
    promises: Mapping[str, Promise] = field(default_factory=dict)
    """By partition or QOS, as ``partition low``."""
    max_array_size: int = 0
    accounting: str = ""
    """What is wrong with it; empty: it answers."""
    left_out: int = 0
    """Partitions and QOS beyond those looked at."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """What one task of the probe found on its node."""

    host: str
    t: float
    """Its clock when it saw the files of all tasks, or gave up waiting."""
    seen: int
    """Files of other tasks that it could read in the runs folder."""
    wrote: bool
    python: str
    """Version of the interpreter that submits; empty: it is not there."""
    has_torch: bool
    gpus: int


def checks(runs_dir: Path, *, is_probed: bool = False, partition: str = "") -> list[Check]:
    """Look at the SLURM of this machine, if there is one; with ``is_probed`` at two of its nodes as well."""
    missing = [command for command in ("sbatch", "scontrol", "squeue") if not shutil.which(command)]
    if missing:
        return [Check(name="SLURM", state="warn", found=f"no {', '.join(missing)}", what_to_do=NO_SLURM)]
    try:
        cluster = ask_cluster()
    except SchedulerError as error:
        return [Check(name="SLURM", state="warn", found=error.what, what_to_do=error.way_out)]
    save_s = _longest_save_s(runs_dir)
    found = [*cluster_checks(cluster), save_check(save_s)]
    found += [place_check(place, promise, save_s) for place, promise in cluster.promises.items()]
    if not is_probed:
        return [*found, Check(name="nodes", state="note", found="not looked at", what_to_do=HOW_TO_PROBE)]
    try:
        return [*found, *node_checks(probe(runs_dir, partition), runs_dir)]
    except SchedulerError as error:
        return [*found, Check(name="nodes", state="fail", found=error.what, what_to_do=error.way_out)]


def ask_cluster() -> Cluster:
    """Ask the controller and the accounting. Raises: SchedulerError if the controller does not answer."""
    config = slurm_query.parse_config(slurm_query.ask(["scontrol", "show", "config"]))
    text = slurm_query.ask(["scontrol", "show", "partition", "-a", "-o"])
    partitions = [slurm_query.parse_record(line).get("PartitionName", "") for line in text.splitlines()]
    places = {f"partition {name}": (name, "") for name in partitions if name}
    if config.get("PreemptType", "").endswith("qos"):
        places |= {f"QOS {name}": ("", name) for name in _qos_names()}
    promises = {}
    for place, (partition, qos) in list(places.items())[:MOST_PLACES]:
        try:
            promises[place] = slurm_query.cluster_facts(partition, qos)
        except SchedulerError:
            continue  # of a partition that was removed meanwhile, or a QOS where no partition is the default
    return Cluster(
        version=config.get("SLURM_VERSION", ""),
        name=config.get("ClusterName", ""),
        controller=config.get("SlurmctldHost[0]", ""),
        promises=promises,
        max_array_size=int(config.get("MaxArraySize", "0") or 0),
        accounting=_trouble_of_accounting(),
        left_out=max(0, len(places) - MOST_PLACES),
    )


def cluster_checks(cluster: Cluster) -> list[Check]:
    """Judge what holds for the whole cluster."""
    where = ", ".join(part for part in (cluster.name, f"controller {cluster.controller}") if part)
    left_out = f"; {cluster.left_out} more partitions and QOS were not looked at" if cluster.left_out else ""
    size = cluster.max_array_size
    return [
        Check(name="SLURM", state="ok", found=f"{cluster.version} ({where}){left_out}"),
        _accounting_check(cluster.accounting),
        Check(
            name="job arrays",
            state="ok",
            found=f"MaxArraySize {size}: a longer array is submitted as several",
        ),
    ]


def save_check(save_s: float | None) -> Check:
    """Say how long a save takes, against which the grace is judged."""
    if save_s is None:
        text = "a run that has saved once shows whether it fits into the grace; then give this command again"
        return Check(name="time of a save", state="note", found="no run here has saved yet", what_to_do=text)
    return Check(name="time of a save", state="ok", found=f"{save_s:.1f} s at most in the runs here")


def place_check(place: str, promise: Promise, save_s: float | None) -> Check:
    """Judge what a partition or QOS promises a job that is preempted or runs out of time."""
    warnings = warnings_of(promise, Resources(), save_s)
    return Check(
        name=place,
        state="warn" if warnings else "ok",
        found=promise_text(promise),
        what_to_do="; ".join(warnings),
        ask=request_of(place, promise, save_s),
    )


def promise_text(promise: Promise) -> str:
    """Return what a job gets there, in one line of words."""
    limits = [
        f"time limit {duration(60 * promise.max_time_min)}" if promise.max_time_min else "no time limit",
        f"{duration(60 * promise.default_time_min)} unless asked" if promise.default_time_min else "",
    ]
    limit = ", ".join(part for part in limits if part)
    if not promise.is_preemptable:
        return f"never preempted; {limit}"
    notice = "the signal of --signal" if promise.user_signal else "TERM"
    parts = [
        f"preempted by {promise.mode}",
        f"GraceTime {promise.grace_s:g} s + KillWait {promise.kill_wait_s:g} s after {notice}",
        "requeued by default" if promise.requeue else "requeued only if it asks (it does)",
        limit,
    ]
    return "; ".join(parts)


def request_of(place: str, promise: Promise, save_s: float | None) -> str:
    """Return what to ask the administrator for, as one sentence for a mail; empty if nothing is missed."""
    if not promise.is_preemptable:
        return ""
    wishes = []
    needed_s = UNMEASURED_S if save_s is None else max(LEAST_GRACE_S, math.ceil(2 * save_s))
    is_short = promise.grace_s == 0 if save_s is None else promise.window_s < needed_s
    if promise.mode == "SUSPEND":
        wishes.append("PreemptMode=REQUEUE in place of SUSPEND, since suspended jobs keep their GPU memory")
    if promise.mode == "CANCEL":
        wishes.append("PreemptMode=REQUEUE in place of CANCEL, so that preempted jobs keep their number")
    if promise.mode != "SUSPEND" and is_short:
        measured = "which takes some time" if save_s is None else f"which was measured to take {save_s:.0f} s"
        wishes.append(
            f"GraceTime={needed_s} (it is {promise.grace_s:g} now), since our jobs save their state when they are "
            f"preempted, {measured}"
        )
    if promise.mode == "REQUEUE" and not promise.requeue:
        wishes.append("JobRequeue=1, so that preempted jobs come back")
    return f"Could {place} please get {', and '.join(wishes)}?" if wishes else ""


def node_checks(nodes: Sequence[Node], runs_dir: Path) -> list[Check]:
    """Judge what the tasks of the probe found."""
    return [_folder_check(nodes, runs_dir), _clock_check(nodes), _python_check(nodes), _gpu_check(nodes)]


def probe(runs_dir: Path, partition: str = "") -> list[Node]:
    """Start a task on each of two nodes, or on one if there is no second, and return what they found.

    Raises: SchedulerError if SLURM starts none within a minute.
    """
    folder = _existing(runs_dir) / f".probe-{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        return _probed(folder, partition, 2) or _probed(folder, partition, 1, is_last=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def parse_probe(text: str) -> list[Node]:
    """Return what the tasks printed, a JSON object a line; other lines are not theirs."""
    found = []
    for line in text.splitlines():
        try:
            values = json.loads(line)
            found.append(Node(**values))
        except (ValueError, TypeError):
            continue
    return sorted(found, key=lambda node: node.host)


def _probed(folder: Path, partition: str, num: int, *, is_last: bool = False) -> list[Node]:
    command = ["srun", f"-N{num}", f"-n{num}", "--ntasks-per-node=1", "-t1", "-J", "get3d-probe"]
    command += [f"--immediate={PROBE_WAIT_S}", *([f"--partition={partition}"] if partition else [])]
    command += ["sh", str(PROBE_SCRIPT), str(folder), str(num), sys.executable]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SchedulerError(
            f"srun gave no answer: {error}", "look at: squeue --me; then try again"
        ) from error
    nodes = parse_probe(done.stdout)
    if not nodes and is_last:
        said = " ".join(done.stderr.split())[-300:] or f"srun ended with {done.returncode}"
        raise SchedulerError(
            f"no node answered: {said}", "try again when nodes are free, or another one: --partition NAME"
        )
    return nodes


def _folder_check(nodes: Sequence[Node], runs_dir: Path) -> Check:
    hosts = ", ".join(node.host for node in nodes)
    unable = [node.host for node in nodes if not node.wrote]
    blind = [node.host for node in nodes if node.wrote and node.seen < len(nodes) - 1]
    if unable or blind:
        what = (
            f"cannot be written on {', '.join(unable)}" if unable else f"not the same on {', '.join(blind)}"
        )
        return Check(
            name="runs folder on nodes",
            state="fail",
            found=f"{runs_dir} {what}",
            what_to_do="choose a folder that all nodes share and may write: --runs DIR",
            ask=f"Which folder do {hosts} and the login node share, in which jobs may write?",
        )
    shared = "written and read across" if len(nodes) > 1 else "written on"
    return Check(name="runs folder on nodes", state="ok", found=f"{shared} {hosts}")


def _clock_check(nodes: Sequence[Node]) -> Check:
    times = (
        {node.host: node.t for node in nodes} | {"this machine": time.time()}
        if len(nodes) == 1
        else {node.host: node.t for node in nodes}
    )
    skew_s = max(times.values()) - min(times.values())
    if skew_s <= MOST_SKEW_S:
        return Check(name="clocks", state="ok", found=f"agree within {max(1, math.ceil(skew_s))} s")
    ahead = max(times, key=lambda host: times[host])
    return Check(
        name="clocks",
        state="warn",
        found=f"{ahead} is {skew_s:.0f} s ahead of {min(times, key=lambda host: times[host])}",
        what_to_do="nothing breaks, since no clocks are compared; times in logs and the goodput are wrong",
        ask=f"Could the clock of {ahead} please be set by NTP, as it is {skew_s:.0f} s off?",
    )


def _python_check(nodes: Sequence[Node]) -> Check:
    missing = [node.host for node in nodes if not node.python]
    without = [node.host for node in nodes if node.python and not node.has_torch]
    if missing or without:
        what = (
            f"{sys.executable} is not on {', '.join(missing)}"
            if missing
            else f"no torch on {', '.join(without)}"
        )
        text = "make the environment in a folder that the nodes share, or set resources.container"
        return Check(name="Python on nodes", state="fail", found=what, what_to_do=text)
    versions = ", ".join(sorted({node.python for node in nodes}))
    return Check(name="Python on nodes", state="ok", found=f"{versions} at {sys.executable}, with torch")


def _gpu_check(nodes: Sequence[Node]) -> Check:
    found = ", ".join(f"{node.gpus} on {node.host}" for node in nodes)
    return Check(
        name="GPUs on nodes", state="ok", found=f"nvidia-smi shows a job that asks for none: {found}"
    )


def _accounting_check(trouble: str) -> Check:
    if not trouble:
        return Check(name="accounting", state="ok", found="sacct answers")
    return Check(
        name="accounting",
        state="warn",
        found=trouble,
        what_to_do="without it, how a job ended that left no word is read from its output only, which failed nodes are "
        "left out is found less often, and the grace of a QOS is not known",
        ask="Could sacct (slurmdbd) please be made to answer on the login nodes, so that we see why jobs ended?",
    )


def _trouble_of_accounting() -> str:
    try:
        slurm_query.ask(["sacct", "-X", "-S", "now-1minutes", "-o", "JobID,State"])
    except SchedulerError as error:
        return error.what
    return ""


def _qos_names() -> list[str]:
    try:
        return slurm_query.ask(["sacctmgr", "-n", "-P", "show", "qos", "format=Name"]).split()
    except SchedulerError:
        return []


def _longest_save_s(runs_dir: Path) -> float | None:
    found = []
    for run in all_runs(runs_dir):
        try:
            found.append(longest_save_s(run))
        except Get3dError:
            continue
    return max((seconds for seconds in found if seconds is not None), default=None)


def _existing(folder: Path) -> Path:
    """Return ``folder`` or the nearest folder above it that exists and may be written."""
    candidates = (folder.absolute(), *folder.absolute().parents)
    return next((path for path in candidates if os.access(path, os.W_OK)), candidates[0])
