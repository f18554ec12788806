"""What this machine has to give, and the processes of an attempt on it."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from get3d_cluster.runtime import env
from get3d_cluster.schedulers.local_plan import Capacity

SMI_TIMEOUT_S = 20


def capacity() -> Capacity:
    """Return the cores and GPUs that the local scheduler gives out here."""
    return Capacity(slots=env.num_slots(), gpus=visible_gpus())


def visible_gpus() -> tuple[str, ...]:
    """Return the GPUs this process may use, as CUDA_VISIBLE_DEVICES names them; does not import torch."""
    chosen = env.child_environment({}).get("CUDA_VISIBLE_DEVICES")
    return chosen_gpus(chosen) if chosen is not None else _installed_gpus()


def chosen_gpus(text: str) -> tuple[str, ...]:
    """Return the entries of CUDA_VISIBLE_DEVICES; as in CUDA, a negative number ends the list.

    >>> chosen_gpus("0,2,-1,3")
    ('0', '2')
    """
    gpus: list[str] = []
    for entry in text.split(","):
        if not entry.strip() or entry.strip().startswith("-"):
            break
        gpus.append(entry.strip())
    return tuple(gpus)


def _installed_gpus() -> tuple[str, ...]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        listing = subprocess.run(
            [program, "-L"], capture_output=True, text=True, timeout=SMI_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    lines = [line for line in listing.stdout.splitlines() if line.startswith("GPU ")]
    return tuple(str(index) for index in range(len(lines))) if listing.returncode == 0 else ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A live process of a session."""

    pid: int
    group: int


def session_members(leader: env.ProcessId) -> list[Member]:
    """Return the live processes of the session that ``leader`` opened, without itself, even if it is dead by now.

    A number is not given out again while a session bears it. Were it reused nevertheless, the new leader's start
    time, or members older than ours, would tell.
    """
    if leader.host != env.host() or leader.boot != env.boot_id() or not leader.start:
        return []
    if env.process_start(leader.pid) not in ("", leader.start):
        return []
    return [
        Member(pid=pid, group=group)
        for pid, group, session, start in _processes()
        if session == leader.pid and pid != leader.pid and start >= int(leader.start)
    ]


def signal_groups(members: Iterable[Member], number: signal.Signals, spare_group: int) -> None:
    """Send ``number`` to the groups of ``members``; in ``spare_group``, the supervisor's own, to single processes."""
    members = list(members)
    for group in sorted({member.group for member in members} - {spare_group}):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
    for member in members:
        if member.group == spare_group:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(member.pid, number)


def _processes() -> Iterator[tuple[int, int, int, int]]:
    """Yield pid, group, session and start time of every process that is not a zombie; fields of proc(5) stat."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            stat = (folder / "stat").read_text()
        except OSError:
            continue
        fields = stat.rpartition(")")[2].split()
        if fields[0] not in ("Z", "X"):
            yield int(folder.name), int(fields[2]), int(fields[3]), int(fields[19])
