"""Supervisor of one attempt on this machine: starts its workers, waits for them, and writes down how they ended.

Started by the queue as ``python -m get3d_cluster.schedulers.local_attempt RUN ATTEMPT`` in a session of its own; it
survives the queue process and brings it back if it is gone. It never decides that an attempt has to stop.
"""

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from get3d_cluster.core.job import Cause, Outcome, Resources
from get3d_cluster.errors import ExitCode, SchedulerError, StorageError
from get3d_cluster.runtime import env, failures
from get3d_cluster.runtime.env import ProcessId, WorkerEnv
from get3d_cluster.runtime.run_folder import RunFolder, write_json
from get3d_cluster.schedulers import local_files as files
from get3d_cluster.schedulers.ending import (
    ORDERLY_CODES,
    Ending,
    Exit,
    cause_of,
    corrected,
    first_failure,
    is_told,
    last_words_of,
    missing_outcome,
)
from get3d_cluster.schedulers.local_files import Order, Processes, QueueFolder
from get3d_cluster.schedulers.local_machine import session_members, signal_groups
from get3d_cluster.schedulers.notes import Notice, read_notice, write_notice

POLL_S = 0.05
QUEUE_CHECK_S = 5.0
STORAGE_RETRY_S = 2.0
PEER_TERM_S = 3.0
"""After a worker failed, what the others get to leave by themselves before TERM."""
PEER_KILL_S = 5.0
"""Between that TERM and KILL."""
_log = logging.getLogger(__name__)


def worker_command(run: RunFolder, python: str) -> list[str]:
    """Return the command of every worker of ``run``; ``python`` empty means the interpreter that runs this."""
    return [python or sys.executable, "-m", "get3d_cluster.worker", str(run.path)]


def place(order: Order, attempt: int, rank: int) -> WorkerEnv:
    """Return who worker ``rank`` is; ranks fill one node after the other."""
    return WorkerEnv(
        rank=rank,
        local_rank=rank % order.resources.workers_per_node,
        world_size=order.resources.num_workers,
        node=rank // order.resources.workers_per_node,
        attempt=attempt,
        scheduler_job=order.job,
    )


def gpus_of(order: Order, rank: int) -> str:
    """Return CUDA_VISIBLE_DEVICES of worker ``rank``, empty if it computes on the CPU."""
    each = order.resources.gpus_per_worker
    return ",".join(order.gpus[rank * each : (rank + 1) * each])


def due_for_peers(
    exits: Sequence[Exit], grace_s: float, now: float, *, noticed: bool
) -> Literal["wait", "term", "kill"]:
    """Say what the workers that still live have to get because of those that ended; exit code 0 moves nobody."""
    dues = [
        end.at + (grace_s if noticed or end.code in ORDERLY_CODES else PEER_TERM_S)
        for end in exits
        if end.code != 0
    ]
    due = min(dues, default=None)
    if due is None or now < due:
        return "wait"
    return "kill" if now >= due + PEER_KILL_S else "term"


def supervise(run: RunFolder, attempt: int) -> None:
    """Run the attempt to its end. Returns at once if another supervisor has it."""
    order = files.read_order(run, attempt)
    processes = Processes(supervisor=ProcessId.mine(), started=time.monotonic(), start_step=run.saved_step())
    if not files.claim(run, attempt, processes):
        return
    try:
        workers = _start_workers(run, attempt, order, processes)
    except OSError as error:
        _signal_workers(processes.supervisor, signal.SIGKILL)
        message = f"cannot start the workers: {error}"
        _log.error("%s", message)
        _write_refusal(run, attempt, order.resources, message)
        return
    exits = _watch(run, attempt, order.resources, workers)
    _signal_workers(processes.supervisor, signal.SIGKILL)  # children that the workers left behind
    _write_ending(run, attempt, processes, exits)


def _start_workers(
    run: RunFolder, attempt: int, order: Order, processes: Processes
) -> dict[int, subprocess.Popen[bytes]]:
    """Start all workers, one process group for each node, and write down who they are."""
    command = worker_command(run, run.spec().python)
    code = run.import_root()
    workers: dict[int, subprocess.Popen[bytes]] = {}
    for rank in range(order.resources.num_workers):
        leader = workers.get(rank - rank % order.resources.workers_per_node)
        with run.log_path(attempt, rank).open("ab") as log:
            workers[rank] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=code,
                env=_worker_environment(code, order, place(order, attempt, rank)),
                process_group=leader.pid if leader else 0,
            )
    known = tuple(
        files.Worker(rank=rank, process=ProcessId.of(worker.pid)) for rank, worker in workers.items()
    )
    files.write_processes(run, attempt, replace(processes, workers=known, all_started=True))
    return workers


def _worker_environment(code: Path, order: Order, worker: WorkerEnv) -> dict[str, str]:
    variables = env.worker_variables(worker, order.resources.cpus_per_worker, gpus_of(order, worker.rank))
    inherited = env.child_environment({}).get("PYTHONPATH", "")
    return env.child_environment(variables | {"PYTHONPATH": files.search_path(code, inherited)})


def _watch(
    run: RunFolder, attempt: int, resources: Resources, workers: dict[int, subprocess.Popen[bytes]]
) -> list[Exit]:
    """Wait until all workers are gone; see to it that none stays behind a failed one, and that there is a queue."""
    me = ProcessId.mine()
    exits: list[Exit] = []
    done: Literal["wait", "term", "kill"] = "wait"
    next_check = time.monotonic() + QUEUE_CHECK_S
    while len(exits) < len(workers):
        time.sleep(POLL_S)
        now = time.monotonic()
        exits += _new_exits(workers, exits, now)
        due = due_for_peers(exits, resources.grace_s, now, noticed=is_told(read_notice(run, attempt)))
        if due != done and len(exits) < len(workers):
            _move_peers(run, attempt, exits, due, me)
            done = due
        if now >= next_check:
            _attend_queue()
            next_check = now + QUEUE_CHECK_S
    return exits


def _new_exits(workers: dict[int, subprocess.Popen[bytes]], exits: Sequence[Exit], now: float) -> list[Exit]:
    known = {end.rank for end in exits}
    codes = {rank: worker.poll() for rank, worker in workers.items() if rank not in known}
    return [Exit(rank=rank, code=code, at=now) for rank, code in codes.items() if code is not None]


def _move_peers(
    run: RunFolder, attempt: int, exits: Sequence[Exit], due: Literal["wait", "term", "kill"], me: ProcessId
) -> None:
    """Send the workers that are left what is due; say why first, or they would take it for a preemption."""
    if due == "wait":
        return
    if not run.notice_path(attempt).exists():
        cause = cause_of(first_failure(exits), is_done=False)
        write_notice(run, attempt, Notice(cause=cause, grace_s=PEER_KILL_S))
    _signal_workers(me, signal.SIGTERM if due == "term" else signal.SIGKILL)


def _signal_workers(me: ProcessId, number: signal.Signals) -> None:
    signal_groups(session_members(me), number, spare_group=me.pid)


def _write_ending(run: RunFolder, attempt: int, processes: Processes, exits: Sequence[Exit]) -> None:
    """Write exit.json, and outcome.json unless rank 0 did; on a full disk once there is space."""
    while True:
        try:
            return _write_ending_now(run, attempt, processes, exits)
        except (OSError, StorageError) as error:
            _log.warning("%s; tries again in %g s", error, STORAGE_RETRY_S)
            time.sleep(STORAGE_RETRY_S)


def _write_ending_now(run: RunFolder, attempt: int, processes: Processes, exits: Sequence[Exit]) -> None:
    end = first_failure(exits)
    codes = {str(item.rank): item.code for item in sorted(exits, key=lambda item: item.rank)}
    first = {"rank": end.rank, "code": end.code} if end else None
    write_json(run.attempt_dir(attempt) / "exit.json", {"codes": codes, "first_failure": first})
    written = run.outcome(attempt)
    if written is not None:
        if corrected(written, end) != written:
            run.write_outcome(corrected(written, end))
        return
    failure = failures.first(run.attempt_dir(attempt))
    ending = Ending(
        attempt=attempt,
        exits=tuple(exits),
        notice=read_notice(run, attempt),
        start_step=processes.start_step,
        saved_step=run.saved_step(),
        end_step=run.reached_step(attempt),
        seconds=time.monotonic() - processes.started,
        world_size=len(exits),
        is_done=run.is_done(),
        hosts=(env.host(),),
        failure="\n".join(failure.lines) if failure else "",
        last_words=last_words_of(run.log_path(attempt, end.rank)) if end else "",
    )
    run.write_outcome(missing_outcome(ending))


def _write_refusal(run: RunFolder, attempt: int, resources: Resources, message: str) -> None:
    step = run.saved_step()
    outcome = Outcome(
        attempt=attempt,
        cause=Cause.REFUSED,
        exit_code=ExitCode.USAGE,
        start_step=step,
        end_step=step,
        saved_step=step,
        message=message,
        world_size=resources.num_workers,
        hosts=(env.host(),),
    )
    run.write_outcome(outcome)


def _attend_queue() -> None:
    folder = QueueFolder(env.queue_folder())
    try:
        folder.attend()
    except SchedulerError as error:
        _log.warning("%s; %s", error.what, error.way_out)


def main(arguments: Sequence[str]) -> int:
    """Supervise attempt ``arguments[1]`` of the run at ``arguments[0]``."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    supervise(RunFolder(Path(arguments[0])), int(arguments[1]))
    _attend_queue()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
