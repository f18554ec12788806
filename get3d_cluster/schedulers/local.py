"""The scheduler of one user on one machine: a real queue with cores and GPUs as slots, and nothing to administer.

This is the client: it drops requests as files and makes sure that the queue process runs. See ``local_queue``.
"""

from collections.abc import Sequence

from get3d_cluster.core.job import Cause, Outcome, Resources
from get3d_cluster.errors import Get3dError
from get3d_cluster.runtime import env
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers import local_files as files
from get3d_cluster.schedulers import notes
from get3d_cluster.schedulers.base import Standing, StopReason
from get3d_cluster.schedulers.local_files import Kind, QueueFolder, Request
from get3d_cluster.schedulers.local_machine import visible_gpus
from get3d_cluster.schedulers.local_plan import Capacity, Job, check_can_fit, needed


class LocalScheduler:
    """Runs attempts on this machine. ``folder`` defaults to the user's queue."""

    def __init__(self, folder: QueueFolder | None = None) -> None:
        self.folder = folder or QueueFolder(env.queue_folder())

    def plan(self, run: RunFolder, resources: Resources, after: Sequence[RunFolder] = ()) -> str:
        machine = self._capacity(resources)
        check_can_fit(resources, machine)
        need = needed(resources)
        takes = f"{need.slots} of {machine.slots} cores"
        if need.gpus:
            takes += f" and {need.gpus} of {len(machine.gpus)} GPUs"
        limit = f"{resources.time_limit_min} min" if resources.time_limit_min else "none"
        lines = [
            f"local queue {self.folder.path} on {env.host()}",
            f"run         {run.path}",
            f"workers     {resources.num_workers} in {resources.nodes} group(s): {takes}",
            f"time limit  {limit}; {resources.grace_s:g} s from the notice to the kill",
            f"priority    {resources.priority}",
        ]
        if after:
            lines.append(f"after       {', '.join(other.name for other in after)}")
        return "\n".join(lines)

    def submit(
        self, run: RunFolder, resources: Resources, after: Sequence[RunFolder] = (), delay_s: float = 0
    ) -> str:
        check_can_fit(resources, self._capacity(resources))
        run.release()
        paths = tuple(str(other.path) for other in after)
        request = Request(
            kind=Kind.SUBMIT, run=str(run.path), resources=resources, after=paths, delay_s=delay_s
        )
        self.folder.drop(request)
        self.folder.attend()
        return request.job

    def standing(self, run: RunFolder) -> Standing:
        try:
            return self._standing(run)
        except (OSError, Get3dError) as error:
            return Standing(state="unknown", why=str(error))

    def stop_reason(self, run: RunFolder, attempt: int) -> StopReason:
        notice = notes.read_notice(run, attempt)
        if notice is None:
            return StopReason(cause=Cause.PREEMPTED)
        return StopReason(cause=notice.cause, grace_s=notice.grace_s)

    def stop(self, run: RunFolder, cause: Cause, *, now: bool = False) -> None:
        self.folder.drop(Request(kind=Kind.STOP, run=str(run.path), cause=cause, now=now))
        self.folder.attend()

    def requeue(self, run: RunFolder, resources: Resources, delay_s: float = 0) -> None:
        self.folder.drop(Request(kind=Kind.REQUEUE, run=str(run.path), resources=resources, delay_s=delay_s))
        # A worker's environment is that of one rank, not of a queue: its supervisor brings a missing queue back.
        if not env.read_worker_env().attempt:
            self.folder.attend()

    def post_mortem(self, run: RunFolder, attempt: int) -> Outcome | None:  # noqa: ARG002  the protocol's
        """Return None: an attempt's supervisor, or the queue after a restart of the machine, writes how it ended."""
        return None

    def _standing(self, run: RunFolder) -> Standing:
        job = files.job_id(run)
        if not self.folder.is_empty():
            self.folder.attend()
            is_asked_for = self.folder.is_submitted(job)
            known = self.folder.job(job)
            if known is not None:
                return _standing_of(known)
            if is_asked_for:
                return Standing(state="pending", why="just submitted", job=job)
        return Standing(state="absent", why=notes.why_away(run))

    def _capacity(self, resources: Resources) -> Capacity:
        """Return what the queue gives out, or would if it ran; GPUs are looked for only if they are asked for."""
        gpus = visible_gpus() if resources.gpus_per_worker else ()
        return self.folder.capacity() or Capacity(slots=env.num_slots(), gpus=gpus)


def _standing_of(job: Job) -> Standing:
    if not job.is_running:
        return Standing(state="pending", why=job.why or "waits for its turn", job=job.id)
    leaving = f", leaving ({job.stop})" if job.stop else ""
    why = f"attempt {job.attempt} on {env.host()}{leaving}"
    return Standing(state="running", why=why, job=job.id, hosts=(env.host(),))
