"""From a command to a queued run: resolve, compare with what is there, make the folder, hand it to the scheduler."""

import contextlib
import dataclasses
import difflib
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from get3d_cluster.cli.endings import write_post_mortems
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
CODE = ("code", "code.json", "code.patch")
"""What a snapshot of the code consists of."""
NONE = "none"
"""In place of a name after --after: wait for no run any more."""


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
    """Runs that must be DONE first; empty: those that were named before; ``none``: no run any more."""
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
    is_after_changed: bool
    """Whether a run that is there is asked to wait for other runs from now on."""
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


def prepare(request: Request, before: Sequence[Prepared] = ()) -> Prepared:
    """Look everything up and check it; no side effect. ``before`` are the links of a chain up to this one.

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
    after = _parents(request, run, spec, [link.run for link in before])
    resources = getattr(config, "resources", Resources())
    if resources.array and job.KIND != "items":
        raise UsageError(
            f"resources.array={resources.array}: a {request.job} run has no items that elements could share out",
            "leave it out (array=0); the workers of such a run are nodes x workers_per_node",
        )
    return Prepared(
        run=run,
        job_name=request.job,
        job=job,
        config=config,
        resources=resources,
        cluster=cluster,
        scheduler=open_scheduler(cluster),
        after=after,
        is_after_changed=spec is not None and bool(request.after or before) and _paths(after) != spec.after,
        changed=changed,
    )


def prepare_chain(requests: Sequence[Request]) -> list[Prepared]:
    """Prepare each link, which comes after the one before it; no side effect. Raises: UsageError as ``prepare``."""
    links: list[Prepared] = []
    for request in requests:
        links.append(prepare(request, links))
    return links


def submit_chain(links: Sequence[Prepared]) -> Iterator[Submitted]:
    """Check all links, then queue one after another. Raises: as ``submit``; if a check fails, nothing was queued."""
    standings = [check(link) for link in links]
    for link, standing in zip(links, standings, strict=True):
        yield _submit(link, standing)


def check(prepared: Prepared) -> Standing:
    """Return how the run stands with its scheduler, if it could be submitted now; no side effect.

    Raises: UsageError, SchedulerError.
    """
    run = prepared.run
    if run.is_done():
        return Standing(state="absent")
    prepared.scheduler.plan(run, prepared.resources, prepared.after)
    if not prepared.exists:
        if run.path.exists():
            raise _no_run(run.path)
        return Standing(state="absent")
    standing = open_scheduler(run.spec().scheduler).standing(run)  # it may be on its way with another one
    if standing.state in ("pending", "running"):
        _refuse_changes_of_a_live_run(prepared, standing)
    _refuse_unknown(run, standing)
    return standing


def submit(prepared: Prepared) -> Submitted:
    """Queue the run, or say why there is nothing to do: it is done, or on its way already.

    Raises: UsageError, SchedulerError, StorageError.
    """
    return _submit(prepared, check(prepared))


def resume(run: RunFolder, *, is_new_code: bool = False) -> Submitted:
    """Queue an unfinished run again as it is, after the runs it came after; ``is_new_code``: with the code from here.

    Raises: SchedulerError, StorageError, UsageError.
    """
    if run.is_done():
        return Submitted(state="done")
    spec = run.spec()
    scheduler = open_scheduler(spec.scheduler)
    standing = scheduler.standing(run)
    if standing.state in ("pending", "running"):
        if is_new_code:
            way_out = f"python launch.py suspend {run.name}; then give the same command"
            raise UsageError(f"run {run.name} is {standing.state}; its code cannot change now", way_out)
        return Submitted(state=standing.state, job=standing.job, why=standing.why)
    _refuse_unknown(run, standing)
    write_post_mortems(run)
    if is_new_code:
        _renew_code(run)
    after = _still_there(run, [RunFolder(Path(path)) for path in spec.after])
    _rewrite(run, dataclasses.replace(spec, after=_paths(after)))
    resources = read_section(Resources, run.config_path, "resources")
    return Submitted(state="continued", job=scheduler.submit(run, resources, after))


def _submit(prepared: Prepared, standing: Standing) -> Submitted:
    if prepared.run.is_done():
        return Submitted(state="done")
    if not prepared.exists:
        if _create(prepared):
            return Submitted(state="queued", job=_queue(prepared))
        standing = check(prepared)  # somebody else was faster
    if standing.state in ("pending", "running"):
        return Submitted(state=standing.state, job=standing.job, why=standing.why)
    write_post_mortems(prepared.run)
    _update(prepared)
    return Submitted(state="continued", job=_queue(prepared))


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


def _parents(
    request: Request, run: RunFolder, spec: JobSpec | None, before: Sequence[RunFolder]
) -> list[RunFolder]:
    """Return the runs that come first: those named, the link before, or those of old. Raises: UsageError."""
    if run.path in [link.path for link in before]:
        raise UsageError(f"two links of the chain are the run {run.name}", "give each its own --name NAME")
    if not request.after and not before:
        return _still_there(run, [RunFolder(Path(path)) for path in spec.after]) if spec else []
    named = [name for name in request.after if name != NONE]
    links = {link.name: link for link in before}
    found = [links[name] if name in links else find_run(request.runs_dir, name) for name in named]
    unique = {str(parent.path): parent for parent in [*found, *before[-1:]]}
    for parent in unique.values():
        _refuse_circle(run, parent)
    return list(unique.values())


def _still_there(run: RunFolder, parents: Sequence[RunFolder]) -> list[RunFolder]:
    """Return the ``parents``; those that were tidied away since count as DONE once ``run`` has begun.

    Raises: UsageError if one is missing before that.
    """
    missing = [parent for parent in parents if not parent.spec_path.is_file()]
    if missing and not run.saved_step():
        what = f"{run.name} comes after {missing[0].path}, which is not there"
        raise UsageError(what, "bring that folder back, or submit it again with --after RUN or --after none")
    return [parent for parent in parents if parent not in missing]


def _refuse_circle(run: RunFolder, parent: RunFolder) -> None:
    """Raises: UsageError if ``parent``, or one that it comes after, waits for ``run``."""
    waiting, seen = [str(parent.path)], set[str]()
    while waiting:
        path = waiting.pop()
        if path == str(run.path):
            raise UsageError(
                f"{run.name} would wait for itself", f"--after {parent.name} cannot be: it comes later"
            )
        if path not in seen and (Path(path) / "spec.json").is_file():
            waiting += RunFolder(Path(path)).spec().after
        seen.add(path)


def _paths(runs: Sequence[RunFolder]) -> tuple[str, ...]:
    return tuple(str(run.path) for run in runs)


def _refuse_changes(run: RunFolder, changed: Sequence[Difference]) -> None:
    fixed = [item for item in changed if not item.changeable]
    if fixed:
        listing = ", ".join(_shown(item) for item in fixed[:4]) + (", ..." if len(fixed) > 4 else "")
        way_out = (
            "take the old values, or another --name, or --allow-config-change (then it is not the same run)"
        )
        raise UsageError(f"run {run.name} was begun with other values: {listing}", way_out)


def _refuse_changes_of_a_live_run(prepared: Prepared, standing: Standing) -> None:
    changes = [_shown(item) for item in prepared.changed[:4]]
    if prepared.is_after_changed:
        changes.append(f"after={', '.join(parent.name for parent in prepared.after) or NONE}")
    if changes:
        name = prepared.run.name
        way_out = f"python launch.py suspend {name}; then give the same command"
        raise UsageError(
            f"run {name} is {standing.state}; it cannot change {', '.join(changes)} now", way_out
        )


def _refuse_unknown(run: RunFolder, standing: Standing) -> None:
    if standing.state == "unknown":
        raise SchedulerError(
            f"the scheduler does not say whether {run.name} runs: {standing.why}",
            "nothing was submitted, so that it never runs twice; try again later",
        )


def _shown(item: Difference) -> str:
    return f"{item.path}={show(item.new)} (was {show(item.old)})"


def create(prepared: Prepared, fill: Callable[[RunFolder], None]) -> None:
    """Make the folder of a new run with what ``fill`` writes into it, without queueing it; whole or not at all.

    Raises: UsageError if there is such a run, StorageError, and what ``fill`` raises.
    """
    run = prepared.run
    if run.path.exists() or not _create(prepared, fill):
        raise UsageError(
            f"{run.path} exists already", "choose another name: --name NAME, or another folder: --runs DIR"
        )


def _create(prepared: Prepared, fill: Callable[[RunFolder], None] = lambda _: None) -> bool:
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
        fill(aside)
        return _publish(aside.path, run.path)
    except OSError as error:
        what = f"cannot write {run.path}: {error.strerror or error}"
        raise StorageError(what, "free space there, or choose another folder: --runs DIR") from error
    finally:
        shutil.rmtree(aside.path, ignore_errors=True)


def _renew_code(run: RunFolder) -> None:
    """Give the run a copy of the code as it is here; the one of before stays in old-code, by its last attempt."""
    aside = run.path / f".new-code-{secrets.token_hex(4)}"
    old = run.path / "old-code" / f"{max(run.attempts(), default=0):04d}-{secrets.token_hex(2)}"
    try:
        aside.mkdir()
        write_snapshot(aside, without=[run.path.parent])
        old.mkdir(parents=True)
        for folder, target in (
            (run.path, old),
            (aside, run.path),
        ):  # killed in between: the repository's code is used
            for name in CODE:
                if (folder / name).exists():
                    (folder / name).rename(target / name)
    except OSError as error:
        what = f"cannot write {run.path}: {error.strerror or error}"
        raise StorageError(what, "free space there, then give the same command") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _publish(aside: Path, path: Path) -> bool:
    try:
        aside.rename(path)
    except OSError:
        if (path / "spec.json").is_file():
            return False
        if path.exists():
            raise _no_run(path) from None
        raise
    return True


def _no_run(path: Path) -> UsageError:
    return UsageError(
        f"{path} exists and is no run", "choose another name: --name NAME, or another folder: --runs DIR"
    )


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
        after=_paths(prepared.after),
    )


def _update(prepared: Prepared) -> None:
    """Write down what the run changes as it comes back: allowed keys, the scheduler, the runs it waits for."""
    run, spec = prepared.run, prepared.run.spec()
    if prepared.changed:
        old = read_run_config(prepared.job.Config, run.config_path)
        text = updated_text(run.config_path.read_text(encoding="utf-8"), old, prepared.config)
        write_atomic(run.config_path, text.encode())
    _rewrite(run, dataclasses.replace(spec, scheduler=prepared.cluster, after=_paths(prepared.after)))


def _rewrite(run: RunFolder, spec: JobSpec) -> None:
    if spec != run.spec():
        run.write_spec(spec)


def _queue(prepared: Prepared) -> str:
    return prepared.scheduler.submit(prepared.run, prepared.resources, prepared.after)
