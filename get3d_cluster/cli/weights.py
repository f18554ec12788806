"""Weights from and for other programs. What they are the job knows; here they become a run, or a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from rich.table import Table

from get3d_cluster.cli import submission
from get3d_cluster.cli.output import table
from get3d_cluster.cli.submission import Prepared, Request
from get3d_cluster.config import find_job, job_configs_dir
from get3d_cluster.errors import UsageError
from get3d_cluster.runtime.run_folder import RunFolder

JOB = "train"


class Line(Protocol):
    """One tensor of a file, or one of ours that it lacks."""

    network: str
    theirs: str
    shape: str
    ours: str
    kind: str
    how: str


class Reading(Protocol):
    """A file whose tensors were matched with ours."""

    lines: Sequence[Line]

    def refuse_troubles(self) -> None: ...


class Foreign(Protocol):
    """What ``foreign()`` of a job returns."""

    PRESETS: dict[str, str]
    SETTINGS: tuple[str, ...]
    LICENCE: str

    def read(self, file: Path, config: Any, names: Path | None) -> Reading: ...

    def keep(self, reading: Reading, run: RunFolder) -> None: ...

    def export(self, run: RunFolder, file: Path, step: int | None, names: Path | None) -> Sequence[str]: ...


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file that was read, and the run that it may become."""

    reading: Reading
    prepared: Prepared


def request(file: Path, runs_dir: Path, name: str, config: str, overrides: Sequence[str]) -> Request:
    """Return what to prepare; the configuration is the preset that ``file`` is called after, unless one is given.

    Raises: UsageError if neither tells one.
    """
    foreign = _foreign()
    preset = config or foreign.PRESETS.get(file.stem, "")
    if not preset:
        names = sorted(
            path.stem for path in job_configs_dir().glob("*.yaml") if not path.stem.startswith("render")
        )
        raise UsageError(
            f"which networks {file.name} holds does not follow from its name",
            f"--config FILE, or one of: {', '.join(names)}",
        )
    settings = foreign.SETTINGS if preset in foreign.PRESETS.values() else ()
    return Request(
        job=JOB, runs_dir=runs_dir, name=name or file.stem, file=preset, overrides=(*settings, *overrides)
    )


def refuse_existing(asked: Request) -> None:
    """Raises: UsageError if there is such a run already: better than after reading half a gigabyte."""
    if (asked.runs_dir / asked.name).exists():
        raise UsageError(f"{asked.runs_dir / asked.name} exists already", "choose another name: --name NAME")


def read(file: Path, asked: Request, names: Path | None) -> Found:
    """Read and match. Raises: UsageError if the file cannot be read."""
    prepared = submission.prepare(asked)
    return Found(reading=_foreign().read(file, prepared.config, names), prepared=prepared)


def keep(found: Found) -> list[str]:
    """Make the run; return what to do with it, in words. Raises: UsageError, StorageError."""
    found.reading.refuse_troubles()
    submission.create(found.prepared, lambda run: _foreign().keep(found.reading, run))
    path = found.prepared.run.path
    count = sum(line.kind == "matched" for line in found.reading.lines)
    return [
        f"imported {count} tensors into {path}",
        _foreign().LICENCE,
        f"  python launch.py run generate run={path}",
        f"  python launch.py submit train --config {path / 'config.yaml'} --name NAME init_from={path} data.path=DATA",
    ]


def export(run: RunFolder, file: Path, step: int | None, names: Path | None) -> Sequence[str]:
    """Write the networks of a run into a file that must not be there yet. Raises: UsageError, StorageError."""
    if file.exists():
        raise UsageError(f"{file} exists already", "choose another file, or delete it")
    return _foreign().export(run, file, step, names)


def line_table(lines: Sequence[Line]) -> Table:
    """Return a row for each tensor."""
    rows = [
        (line.network, line.theirs or "-", line.shape, line.ours or "-", line.kind, line.how)
        for line in lines
    ]
    return table(["NET", "THEIRS", "SHAPE", "OURS", "", "WHY"], rows, wrap=["THEIRS", "OURS", "WHY"])


def _foreign() -> Foreign:
    return cast(Foreign, cast(Any, find_job(JOB)).foreign())
