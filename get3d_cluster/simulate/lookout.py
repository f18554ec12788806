"""What can be seen of an attempt from outside, by its files alone: which phase it is in, and when it has begun."""

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from get3d_cluster.errors import Get3dError
from get3d_cluster.runtime.run_folder import RunFolder, read_json
from get3d_cluster.runtime.watchdog import read_heartbeat

TAIL_BYTES = 8192
ASIDE = ".writing-"
MANIFEST = "manifest.json"


class Lookout:
    """Follows the next attempt of a run: make it before the attempt begins."""

    def __init__(self, run: RunFolder, clock: Callable[[], float] = time.monotonic) -> None:
        self._run = run
        self._clock = clock
        self.begun_s = clock()
        self._offset = run.events_path.stat().st_size if run.events_path.exists() else 0
        self._samples_before = _names(run.samples_dir)
        self._checkpoints_before = _names(run.checkpoints_dir)
        self._attempt = 0
        self._is_loading = False
        self.resumed_step: int | None = None
        """Step at which the attempt began to train."""
        self.ready_s: float | None = None
        """Seconds from the start until the state was loaded."""
        self.first_step_s: float | None = None
        """Seconds from the start until a step was done and logged."""

    def follow(self, attempt: int) -> None:
        """Say which attempt it is."""
        self._attempt = attempt

    def look(self) -> None:
        """Take notice of what the attempt has told since the last look."""
        for row in self._new_events():
            self._is_loading |= row.get("event") == "attempt-start"
            if row.get("event") in ("start", "resume"):
                self.resumed_step, self.ready_s = int(row["step"]), self._clock() - self.begun_s
        if self.first_step_s is None and self.resumed_step is not None and self.step() > self.resumed_step:
            self.first_step_s = self._clock() - self.begun_s

    def step(self) -> int:
        """Return the last step that is known to be done."""
        logged = int(_last_row(self._run.metrics_path).get("step", 0))
        progress = self._progress()
        is_new = progress.get("attempt") == self._attempt
        return max(logged, int(progress.get("step", 0))) if is_new else logged

    def has_done_a_step(self, fraction: float) -> bool:
        """Say whether this attempt did a step, and the run is so far."""
        return self.first_step_s is not None and self.fraction() >= fraction

    def fraction(self) -> float:
        """Return how far the run is, 0 to 1."""
        return self.step() / max(1, int(self._progress().get("num_steps", 0)))

    def is_saving(self) -> bool:
        """Say whether a checkpoint is being written, or one came that was not there before."""
        return bool(_names(self._run.checkpoints_dir) - self._checkpoints_before)

    def is_publishing(self) -> bool:
        """Say whether a checkpoint is whole but not yet told of, or an old one is going."""
        folder = self._run.checkpoints_dir
        new = _names(folder) - self._checkpoints_before
        return any(not name.startswith(ASIDE) or (folder / name / MANIFEST).exists() for name in new)

    def is_showing(self) -> bool:
        """Say whether a sheet is being written, or one came that was not there before."""
        return bool(_names(self._run.samples_dir) - self._samples_before)

    def is_measuring(self) -> bool:
        """Say whether rank 0 measures what it trained."""
        return self._at_work() == "measuring"

    def has_outcome(self) -> bool:
        """Say whether the attempt wrote down how it ended."""
        return (self._run.attempt_dir(self._attempt) / "outcome.json").exists()

    def forget(self) -> None:
        """Count as new only what comes from now on."""
        self._samples_before = _names(self._run.samples_dir)
        self._checkpoints_before = _names(self._run.checkpoints_dir)

    def phase(self) -> str:
        """Return what rank 0 is doing now, as far as files tell."""
        self.look()
        if self.has_outcome():
            return "leaving"
        if self.resumed_step is None:
            return "loading" if self._is_loading else "imports"
        at_work = self._at_work()
        if at_work in ("leaving", "measuring"):
            return at_work
        folder = self._run.checkpoints_dir
        aside = [name for name in _names(folder) - self._checkpoints_before if name.startswith(".")]
        if aside or at_work == "saving":
            is_whole = any((folder / name / MANIFEST).exists() for name in aside) or not aside
            return "publishing" if is_whole and self.is_publishing() else "saving"
        if any(name.startswith(ASIDE) for name in _names(self._run.samples_dir) - self._samples_before):
            return "preview"
        return "step" if self.first_step_s is not None else "first step"

    def _at_work(self) -> str:
        heartbeat = read_heartbeat(self._run.attempt_dir(self._attempt), 0)
        return heartbeat.phase if heartbeat else ""

    def _progress(self) -> dict[str, Any]:
        with contextlib.suppress(Get3dError):
            return read_json(self._run.progress_path)
        return {}

    def _new_events(self) -> list[dict[str, Any]]:
        """Return whole lines that came since the last call."""
        with contextlib.suppress(OSError), self._run.events_path.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._offset += len(whole)
            return [row for line in whole.splitlines() if (row := _row(line))]
        return []


def _last_row(path: Path) -> dict[str, Any]:
    """Return the last whole row of a JSON-lines file without reading all of it."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        for line in reversed(file.read().splitlines()):
            if row := _row(line):
                return row
    return {}


def _row(line: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        row = json.loads(line)
        return row if isinstance(row, dict) else {}
    return {}


def _names(folder: Path) -> set[str]:
    with contextlib.suppress(OSError):
        return {path.name for path in folder.iterdir()}
    return set()
