"""The curves and the latest pictures of a run in TensorBoard, without a gap or a duplicate over attempts.

The truth is metrics.jsonl. Each attempt writes an event file of its own, which begins by telling TensorBoard to forget
all from a step on: from where the last flush of an earlier attempt ended, or from where this attempt resumed if that is
earlier. What lies between is written again. A training that goes back to a checkpoint within an attempt says so, too.
"""

import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from get3d_cluster.errors import StorageError, UsageError
from get3d_cluster.report.cameras import histograms, picture
from get3d_cluster.report.reading import read_cameras
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.run_folder import RunFolder, read_json, write_json

FOLDER, MARK = "tensorboard", "written.json"
_NOT_CURVES = frozenset({"step", "epoch", "images", "seconds"})
NAMES = {"images": "progress/images", "epoch": "progress/epoch"}


class TensorBoard:
    """What one attempt writes for a run; made anew after a resume."""

    def __init__(self, run: RunFolder, attempt: int) -> None:
        """Raises: ImportError if tensorboardX is not installed."""
        import tensorboardX.summary  # noqa: F401  if it is missing, that is noticed here

        self._run = run
        self._folder = run.path / FOLDER
        self._attempt = attempt
        self._file: Path | None = None
        self._size = 0
        """Bytes of whole records; what a full disk cut short lies behind them."""
        self._next = 0
        self._fixed: dict[str, int] = {}
        """Steps at which what never changes was written, by name."""

    def catch_up(self) -> None:
        """Write all rows of metrics.jsonl that are not there yet, and the newest sheet. Raises: StorageError."""
        with _explained(self._folder):
            if self._file is None:
                self._open()
            rows = [row for row in read_rows(self._run.metrics_path) if row.get("step", -1) >= self._next]
            if rows:
                curves = [record for row in rows for record in _row_records(row)]
                step = rows[-1]["step"]
                new = {tag: find(self._run) for tag, find in FIXED.items() if tag not in self._fixed}
                pictures = {"samples": _newest(self._run.samples_dir), **new}
                found = {tag: pixels for tag, pixels in pictures.items() if pixels is not None}
                self._append([*curves, *_picture_records(step, found)])
                self._next = step + 1
                self._fixed |= {tag: step for tag in new if tag in found}
                write_json(self._folder / MARK, {"next": self._next, "fixed": self._fixed})

    def rewind(self, step: int) -> None:
        """Let TensorBoard forget what came after ``step``, to which the run went back. Raises: StorageError."""
        self._next = min(self._next, step + 1)
        self._fixed = _before(self._fixed, self._next)
        with _explained(self._folder):
            if self._file is not None:
                self._append([_start(self._next)])
        forget_after(self._run, step)

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        flushed, fixed = _mark(self._folder)
        self._next = min(flushed, _resumed_at(self._run, self._attempt) + 1)
        self._fixed = _before(fixed, self._next)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{self._attempt:04d}"
        self._file = self._folder / name
        self._append([_record(self._next, file_version="brain.Event:2"), _start(self._next)])

    def _append(self, records: Sequence[bytes]) -> None:
        assert self._file is not None
        with self._file.open("ab") as file:
            file.truncate(self._size)
            for record in records:
                file.write(record)
            file.flush()
            os.fsync(file.fileno())
            self._size = file.tell()


def forget_after(run: RunFolder, step: int) -> None:
    """Note that nothing after ``step`` counts as written. Raises: StorageError."""
    folder = run.path / FOLDER
    with _explained(folder):
        flushed, fixed = _mark(folder)
        if flushed > step + 1:
            write_json(folder / MARK, {"next": step + 1, "fixed": _before(fixed, step + 1)})


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn an error of the disk into one that a person can act on."""
    try:
        yield
    except OSError as error:
        what = f"{folder} cannot be written: {error.strerror or error}"
        raise StorageError(what, "the curves are in metrics.jsonl all the same") from error


def _start(step: int) -> bytes:
    """Return the record at which TensorBoard forgets all from ``step`` on."""
    from tensorboardX.proto.event_pb2 import SessionLog

    return _record(step, session_log=SessionLog(status=SessionLog.START))


def _row_records(row: Mapping[str, Any]) -> list[bytes]:
    from tensorboardX.summary import scalar

    return [_record(row["step"], summary=scalar(name, value)) for name, value in curves_of(row).items()]


def _picture_records(step: int, pictures: Mapping[str, Any]) -> list[bytes]:
    from tensorboardX.summary import image

    return [_record(step, summary=image(tag, pixels, dataformats="HWC")) for tag, pixels in pictures.items()]


def _reals(run: RunFolder) -> Any:  # [H, W, 3] uint8, or None
    with suppress(OSError):
        return np.asarray(Image.open(run.reals_path).convert("RGB"))
    return None


def _cameras(run: RunFolder) -> Any:  # [H, W, 3] uint8, or None
    cameras = read_cameras(run.path)
    return np.asarray(picture(histograms(cameras))) if cameras else None


FIXED = {"samples_real": _reals, "cameras": _cameras}
"""Pictures that never change, and so are written once."""


def _record(step: int, **content: Any) -> bytes:
    """Return an event as TensorBoard reads it: length, its checksum, the event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    data: bytes = Event(wall_time=time.time(), step=step, **content).SerializeToString()
    head = struct.pack("<Q", len(data))
    return head + struct.pack("<I", masked_crc32c(head)) + data + struct.pack("<I", masked_crc32c(data))


def curves_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a row that make curves, named by what they are about."""
    values = {key: value for key, value in row.items() if isinstance(value, (int, float))}
    found = {name: float(values[key]) for key, name in NAMES.items() if key in values}
    norms = dict.fromkeys(("grad", "weight", "update"), "norms")
    groups = {
        "loss": "loss",
        "r1": "loss",
        "logit": "logits",
        "skipped": "progress",
        "rollbacks": "progress",
        **norms,
    }
    for key, value in values.items():
        if key not in _NOT_CURVES:
            found[f"{groups.get(key.partition('_')[0], 'other')}/{key}"] = float(value)
    return found


def _mark(folder: Path) -> tuple[int, dict[str, int]]:
    """Return from which step on nothing is known to be in the files of earlier attempts, and what else is there."""
    with suppress(UsageError, ValueError, TypeError, KeyError, AttributeError):
        mark = read_json(folder / MARK)
        return int(mark["next"]), {str(tag): int(step) for tag, step in mark.get("fixed", {}).items()}
    return 0, {}


def _before(fixed: Mapping[str, int], step: int) -> dict[str, int]:
    return {tag: written for tag, written in fixed.items() if written < step}


def _resumed_at(run: RunFolder, attempt: int) -> int:
    """Return the step that an attempt went on from; -1 if from nothing."""
    steps = [
        int(row.get("step", -1))
        for row in read_rows(run.events_path)
        if row.get("event") == "resume" and row.get("attempt") == attempt
    ]
    return steps[-1] if steps else -1


def _newest(folder: Path) -> Any:  # [H, W, 3] uint8, or None
    sheets = sorted(folder.glob("*.png"))
    with suppress(OSError, IndexError):
        return np.asarray(Image.open(sheets[-1]).convert("RGB"))
    return None
