"""The run folder: what lies where, and its small JSON files. Human-readable, relocatable, one writer at a time."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from get3d_cluster.core.job import Cause, JobSpec, Outcome
from get3d_cluster.errors import Get3dError, StorageError, UsageError
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.storage.local import clean_folder, write_atomic

RESTORE = "restore the file from a copy of the run"


class RunFolder:
    """Paths of a run below ``path``, and its facts."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.config_path = self.path / "config.yaml"
        self.spec_path = self.path / "spec.json"
        self.code_dir = self.path / "code"
        self.lease_path = self.path / "lease.json"
        self.leases_dir = self.path / "leases"
        self.done_path = self.path / "DONE"
        self.progress_path = self.path / "progress.json"
        self.hold_path = self.path / "hold.json"
        self.stopped_path = self.path / "stopped.json"
        self.attempts_dir = self.path / "attempts"
        self.checkpoints_dir = self.path / "checkpoints"
        self.events_path = self.path / "events.jsonl"
        self.metrics_path = self.path / "metrics.jsonl"
        self.slurm_dir = self.path / "slurm"
        self.samples_dir = self.path / "samples"
        self.meshes_dir = self.path / "meshes"
        self.dataset_dir = self.path / "dataset"
        self.reals_path = self.dataset_dir / "real.png"
        self.cameras_path = self.dataset_dir / "cameras.json"
        self.report_path = self.path / "report.html"

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Return the run at ``path``. Raises: UsageError if there is none."""
        run = cls(path)
        if not run.spec_path.is_file():
            raise UsageError(
                f"{path} is no run: it has no spec.json", "list runs with: python launch.py status"
            )
        return run

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.name

    @property
    def key(self) -> str:
        """A name that no other run has: the same for every path that leads to the folder."""
        real = os.path.realpath(self.path)
        return f"{Path(real).name}-{hashlib.sha256(real.encode()).hexdigest()[:8]}"

    def import_root(self) -> Path:
        """Return where workers import from: the snapshot, or else the repository of this very package.

        A run that is only planned gets its snapshot when it is submitted.
        """
        is_planned = not self.spec_path.is_file()
        return self.code_dir if self.code_dir.is_dir() or is_planned else Path(__file__).resolve().parents[2]

    def spec(self) -> JobSpec:
        """Return what the run is. Raises: UsageError if spec.json cannot be read."""
        data = read_json(self.spec_path)
        known = {field.name for field in dataclasses.fields(JobSpec)}
        try:
            values = {key: value for key, value in data.items() if key in known}
            return JobSpec(**values | {"after": tuple(values.get("after", ()))})
        except TypeError as error:
            raise UsageError(
                f"{self.spec_path} lacks {str(error).rpartition(':')[2].strip()}", RESTORE
            ) from error

    def write_spec(self, spec: JobSpec) -> None:
        write_json(self.spec_path, dataclasses.asdict(spec))

    def attempts(self) -> list[int]:
        """Return the numbers of the attempts so far, ascending."""
        if not self.attempts_dir.is_dir():
            return []
        return sorted(int(path.name) for path in self.attempts_dir.iterdir() if path.name.isdigit())

    def attempt_dir(self, attempt: int) -> Path:
        return self.attempts_dir / f"{attempt:04d}"

    def new_attempt(self) -> int:
        """Create the folder of the next attempt; two callers never get the same number."""
        self.attempts_dir.mkdir(parents=True, exist_ok=True)
        number = max(self.attempts(), default=0)
        while True:
            number += 1
            try:
                self.attempt_dir(number).mkdir()
            except FileExistsError:
                continue
            return number

    def log_path(self, attempt: int, rank: int) -> Path:
        return self.attempt_dir(attempt) / f"rank{rank:04d}.log"

    def outcome(self, attempt: int) -> Outcome | None:
        """Return how ``attempt`` ended, or None if it has not, or left no word."""
        path = self.attempt_dir(attempt) / "outcome.json"
        if not path.is_file():
            return None
        data = read_json(path)
        known = {field.name for field in dataclasses.fields(Outcome)}
        values = {key: value for key, value in data.items() if key in known}
        lists = {name: tuple(values.get(name, ())) for name in ("hosts", "failed_hosts")}
        return Outcome(**values | lists | {"cause": Cause(values["cause"])})

    def outcomes(self, element: int | None = None) -> list[Outcome]:
        """Return the outcomes of all ended attempts, oldest first; with ``element`` those of it alone."""
        found = [outcome for attempt in self.attempts() if (outcome := self.outcome(attempt))]
        return found if element is None else [outcome for outcome in found if outcome.element == element]

    def write_outcome(self, outcome: Outcome) -> None:
        write_json(self.attempt_dir(outcome.attempt) / "outcome.json", dataclasses.asdict(outcome))

    def identity(self) -> dict[str, str]:
        """Return what this run computes with: the SHA-256 of its configuration and the commit of its code."""
        code = self.path / "code.json"
        config = self.config_path.read_bytes() if self.config_path.is_file() else b""
        commit = str(read_json(code).get("commit", "")) if code.is_file() else ""
        return {"config_sha256": hashlib.sha256(config).hexdigest(), "commit": commit}

    def code_digest(self) -> str:
        """Return what tells the run's copy of the code from another one; empty for a run without."""
        code = self.path / "code.json"
        return str(read_json(code).get("digest", "")) if code.is_file() else ""

    def is_done(self) -> bool:
        return self.done_path.is_file()

    def notice_path(self, attempt: int) -> Path:
        """File in which a scheduler says why it is about to stop ``attempt``: cause and grace_s."""
        return self.attempt_dir(attempt) / "notice.json"

    def is_stopped(self, attempt: int) -> bool:
        """Say whether a person stopped the run, or ``attempt`` was told to leave, in so many files."""
        return self.stopped_path.is_file() or self.notice_path(attempt).is_file()

    def release(self) -> None:
        """Forget that the run was held (hold.json) or stopped while it waited (stopped.json): it is wanted again."""
        self.hold_path.unlink(missing_ok=True)
        self.stopped_path.unlink(missing_ok=True)

    def clean(self, *, is_one_writer: bool = False) -> None:
        """Remove what writers left in the run's own folders when they were killed.

        ``is_one_writer``: nobody but the caller writes pictures and meshes, so that the newest remains go, too.
        """
        for folder in (self.path, self.leases_dir, *map(self.attempt_dir, self.attempts())):
            clean_folder(folder)
        for folder in (self.samples_dir, self.meshes_dir, self.dataset_dir):
            clean_folder(folder, is_ours=is_one_writer, is_deep=True)

    def saved_step(self) -> int:
        """Return how far the run would come back: its newest checkpoint by name, or the items it has done."""
        if self.progress_path.is_file() and self.spec().kind == "items":
            return int(read_json(self.progress_path).get("step", 0))
        if not self.checkpoints_dir.is_dir():
            return 0
        names = [path.name for path in self.checkpoints_dir.glob("step-*") if path.name[5:].isdigit()]
        return max((int(name[5:]) for name in names), default=0)

    def reached_step(self, attempt: int) -> int:
        """Return the last step that ``attempt`` is known to have done; those beyond ``saved_step`` are done again.

        Rows and progress count only if it was this attempt that began last: before that they tell of an older one.
        """
        saved = self.saved_step()
        begun = [row for row in read_rows(self.events_path) if row.get("event") in ("start", "resume")]
        if not begun or begun[-1].get("attempt") != attempt:
            return saved
        told = read_rows(self.metrics_path)[-1:]
        with contextlib.suppress(Get3dError):
            progress = read_json(self.progress_path)
            told += [progress] if progress.get("attempt") == attempt else []
        return max([saved, *(int(row.get("step", 0)) for row in told)])


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object.

    Raises: UsageError naming the file if it is missing or not one; StorageError if the disk does not give it.
    """
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        if error.errno in (errno.EIO, errno.ESTALE):
            raise StorageError(
                f"cannot read {path}: {error.strerror}", "mend the disk or mount it again"
            ) from error
        raise UsageError(f"cannot read {path}: {error.strerror}", "is this the folder of a run?") from error
    except ValueError as error:
        raise UsageError(f"{path} is not valid JSON: {error}", RESTORE) from error
    if not isinstance(data, dict):
        raise UsageError(f"{path} holds no JSON object", RESTORE)
    return data


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Replace a JSON file atomically."""
    write_atomic(path, (json.dumps(data, indent=2, sort_keys=True) + "\n").encode())
