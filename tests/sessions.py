"""Sessions for tests: a worker's place in an attempt without a scheduler."""

from pathlib import Path
from typing import Any

from get3d_cluster.core.job import JobSpec, Resources
from get3d_cluster.dist.group import Group, SoloGroup
from get3d_cluster.runtime.events import EventLog, MetricLog
from get3d_cluster.runtime.notices import Notices
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.runtime.session import Session


def session_of(folder: Path, group: Group | None = None, attempt: int = 1, **others: Any) -> Session:
    """Return a worker's session in the run in ``folder``, which is made if there is none."""
    group = group or SoloGroup()
    run = RunFolder(folder)
    if not run.spec_path.exists():
        run.path.mkdir(parents=True, exist_ok=True)
        run.write_spec(JobSpec(name="a", job="train", kind="steps", created="2026-01-01T00:00:00"))
    return Session(
        run=run,
        attempt=attempt,
        group=group,
        resources=Resources(),
        notices=Notices(),
        events=EventLog(run.events_path, attempt, group.rank),
        metrics=MetricLog(run.metrics_path, enabled=group.rank == 0),
        **others,
    )
