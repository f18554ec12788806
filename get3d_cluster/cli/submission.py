"""From a command to a queued run: resolve, compare with what is there, make the folder, hand it to the scheduler."""

import contextlib
import dataclasses
import difflib
import secrets
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from get3d_cluster.cli.runs import check_name, find_run
from get3d_cluster.cli.snapshot import write_snapshot
from get3d_cluster.config import (
    Difference,
    JobModule,
    anchored,
    differences,
    find_job,
    job_configs_dir,
    load,
    read_run_config,
    read_section,
    save_text,
    show,
    updated_text,
)
from get3d_cluster.core.job import JobSpec, Resources
from get3d_cluster.errors import SchedulerError, StorageError, UsageError
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers import open_scheduler
from get3d_cluster.schedulers.base import Scheduler, Standing
from get3d_cluster.storage.local import write_atomic

ABANDONED_S = 3600.0
"""After this long a folder that was being written belongs to a submission that was killed."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a person typed after ``submit``, ``plan`` or ``run``."""

    job: str
    runs_dir: Path
    name: str = ""
    file: str = ""
    """Path of a YAML file, or the name of one beside the jobs."""
    cluster: str = ""
    """Scheduler; empty: the one the run had, or local."""
    after: Sequence[str] = ()
    allow_config_change: bool = False
    overrides: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A request with everything looked up and checked; nothing was done yet."""

    run: RunFolder
    job_name: str
    job: JobModule
    config: Any
    resources: Resources
    cluster: str
    scheduler: Scheduler
    after: Sequence[RunFolder]
    changed: Sequence[Difference]
    """How the configuration differs from that of the run that is there; empty for a new run."""

    @property
    def exists(self) -> bool:
        return self.run.spec_path.is_file()


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """What became of a submission."""

    state: str
    """``done``, ``pending``, ``running``: it was so already. ``queued``, ``continued``: queued just now."""
    job: str = ""
    """The scheduler's own name for it."""
    why: str = ""


def prepare(request: Request) -> Prepared:
    """Look everything up and check it; no side effect.

    Raises: UsageError for an unknown job, run, key or scheduler, and for a key that this run may not change.
    """
    job = find_job(request.job)
    file = config_file(request.file) if request.file else None
    config = anchored(load(job.Config, file, request.overrides), Path.cwd())
    name = check_name(request.name or (file.stem if file else request.job.rpartition(".")[2]))
    run = RunFolder(request.runs_dir / name)
    spec = _spec_of(run, request.job)
    cluster = request.cluster or (spec.scheduler if spec else "local")
    changed = differences(read_run_config(job.Config, run.config_path), config) if spec else []
    if not request.allow_config_change:
        _refuse_changes(run, changed)
    return Prepared(
        run=run,
        job_name=request.job,
        job=job,
        config=config,
        resources=getattr(config, "resources", Resources()),
        cluster=cluster,
        scheduler=open_scheduler(cluster),
        after=[find_run(request.runs_dir, after) for after in request.after],
        changed=changed,
    )


def submit(prepared: Prepared) -> Submitted:
    """Queue the run, or say why there is nothing to do: it is done, or on its way already.

    Raises: UsageError, SchedulerError, StorageError.
    """
    run = prepared.run
    if run.is_done():
        return Submitted(state="done")
    prepared.scheduler.plan(run, prepared.resources, prepared.after)
    if not prepared.exists and _create(prepared):
        return Submitted(state="queued", job=_queue(prepared))
    standing = open_scheduler(run.spec().scheduler).standing(run)  # it may be on its way with another one
    if standing.state in ("pending", "running"):
        _refuse_changes_of_a_live_run(run, prepared.changed, standing)
        return Submitted(state=standing.state, job=standing.job, why=standing.why)
    _refuse_unknown(run, standing)
    _update(prepared)
    return Submitted(state="continued", job=_queue(prepared))


def resume(run: RunFolder) -> Submitted:
    """Queue an unfinished run again as it is. Raises: SchedulerError."""
    if run.is_done():
        return Submitted(state="done")
    scheduler = open_scheduler(run.spec().scheduler)
    standing = scheduler.standing(run)
    if standing.state in ("pending", "running"):
        return Submitted(state=standing.state, job=standing.job, why=standing.why)
    _refuse_unknown(run, standing)
    resources = read_section(Resources, run.config_path, "resources")
    return Submitted(state="continued", job=scheduler.submit(run, resources))


def config_file(named: str) -> Path:
    """Return the YAML file at the path ``named``, or of that name beside the jobs. Raises: UsageError."""
    folder = job_configs_dir()
    for path in (Path(named), folder / named, folder / f"{named}.yaml"):
        if path.is_file():
            return path
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    near = difflib.get_close_matches(Path(named).stem, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UsageError(
        f"there is no configuration {named}{hint}", f"give a path, or one of: {', '.join(names) or 'none'}"
    )


def _spec_of(run: RunFolder, job: str) -> JobSpec | None:
    if not run.spec_path.is_file():
        return None
    spec = run.spec()
    if spec.job != job:
        raise UsageError(f"run {run.name} is a {spec.job} run, not {job}", "choose another name: --name NAME")
    return spec


def _refuse_changes(run: RunFolder, changed: Sequence[Difference]) -> None:
    fixed = [item for item in changed if not item.changeable]
    if fixed:
        listing = ", ".join(_shown(item) for item in fixed[:4]) + (", ..." if len(fixed) > 4 else "")
        way_out = (
            "take the old values, or another --name, or --allow-config-change (then it is not the same run)"
        )
        raise UsageError(f"run {run.name} was begun with other values: {listing}", way_out)


def _refuse_changes_of_a_live_run(run: RunFolder, changed: Sequence[Difference], standing: Standing) -> None:
    if changed:
        listing = ", ".join(_shown(item) for item in changed[:4])
        way_out = f"python launch.py suspend {run.name}; then give the same command"
        raise UsageError(f"run {run.name} is {standing.state}; it cannot change {listing} now", way_out)


def _refuse_unknown(run: RunFolder, standing: Standing) -> None:
    if standing.state == "unknown":
        raise SchedulerError(
            f"the scheduler does not say whether {run.name} runs: {standing.why}",
            "nothing was submitted, so that it never runs twice; try again later",
        )


def _shown(item: Difference) -> str:
    return f"{item.path}={show(item.new)} (was {show(item.old)})"


def _create(prepared: Prepared) -> bool:
    """Make the run's folder aside and publish it by one rename; False if somebody else was faster."""
    run = prepared.run
    runs_dir = run.path.parent
    _clear_abandoned(runs_dir)
    aside = RunFolder(runs_dir / f".new-{run.name}-{secrets.token_hex(4)}")
    try:
        aside.path.mkdir(parents=True)
        aside.config_path.write_text(save_text(prepared.config), encoding="utf-8")
        write_snapshot(aside.path, without=[runs_dir])
        aside.write_spec(_new_spec(prepared))
        return _publish(aside.path, run.path)
    except OSError as error:
        what = f"cannot write {run.path}: {error.strerror or error}"
        raise StorageError(what, "free space there, or choose another folder: --runs DIR") from error
    finally:
        shutil.rmtree(aside.path, ignore_errors=True)


def _publish(aside: Path, path: Path) -> bool:
    try:
        aside.rename(path)
    except OSError:
        if (path / "spec.json").is_file():
            return False
        if path.exists():
            way_out = "choose another name: --name NAME, or another folder: --runs DIR"
            raise UsageError(f"{path} exists and is no run", way_out) from None
        raise
    return True


def _clear_abandoned(runs_dir: Path) -> None:
    for path in runs_dir.glob(".new-*") if runs_dir.is_dir() else ():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(path, ignore_errors=True)


def _new_spec(prepared: Prepared) -> JobSpec:
    return JobSpec(
        name=prepared.run.name,
        job=prepared.job_name,
        kind=prepared.job.KIND,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        scheduler=prepared.cluster,
        python=sys.executable,
    )


def _update(prepared: Prepared) -> None:
    """Write down what the run changes as it comes back: allowed keys, the scheduler."""
    run, spec = prepared.run, prepared.run.spec()
    if prepared.changed:
        old = read_run_config(prepared.job.Config, run.config_path)
        text = updated_text(run.config_path.read_text(encoding="utf-8"), old, prepared.config)
        write_atomic(run.config_path, text.encode())
    if spec.scheduler != prepared.cluster:
        run.write_spec(dataclasses.replace(spec, scheduler=prepared.cluster))


def _queue(prepared: Prepared) -> str:
    return prepared.scheduler.submit(prepared.run, prepared.resources, prepared.after)
