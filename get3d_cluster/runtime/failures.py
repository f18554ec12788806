"""Why a worker failed, in at most three lines: what is printed, and what is left for the others of its attempt.

A failing worker takes the others along, since their connection to it closes. It leaves its word in the attempt's
folder (``error.rank0001.json``) before that, so that the outcome tells the reason and not its consequences.
"""

import contextlib
import errno
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from get3d_cluster.errors import ExitCode, Get3dError, StorageError
from get3d_cluster.runtime.run_folder import read_json, write_json

STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)
LONGEST_LINE = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """How one worker failed."""

    rank: int
    exit_code: int
    lines: tuple[str, ...]
    """What is wrong, then the way out."""

    @property
    def is_bug(self) -> bool:
        """Whether nobody foresaw it: its traceback is worth keeping."""
        return self.exit_code == ExitCode.BUG


def failure_of(error: Exception, rank: int, run: Path) -> Failure:
    """Return what there is to say about ``error`` of a worker of the run at ``run``."""
    known = explained(error)
    if known is None:
        what = f"rank {rank}: {type(error).__name__}: {_first_line(str(error))}"
        way_out = f"its traceback is in the log: python launch.py logs {run} --rank {rank}"
        return Failure(rank=rank, exit_code=int(ExitCode.BUG), lines=(what, way_out))
    return Failure(rank=rank, exit_code=int(known.exit_code), lines=tuple(lines_of(known)))


def explained(error: Exception) -> Get3dError | None:
    """Return ``error`` as one that a person can act on, or None if it is a bug."""
    if isinstance(error, Get3dError):
        return error
    if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
        what = f"cannot use {error.filename or 'a file of the run'}: {error.strerror}"
        way_out = (
            "free space there, or mend the disk; nothing saved was lost, and the run comes back by itself"
        )
        return StorageError(what, way_out)
    return None


def lines_of(error: Get3dError) -> list[str]:
    """Return at most two lines of what is wrong, and one with the way out."""
    what = [line for line in error.what.splitlines() if line.strip()]
    return [line[:LONGEST_LINE] for line in (*what[:2], *error.way_out.splitlines()[:1])]


def leave(folder: Path, failure: Failure) -> None:
    """Leave ``failure`` in the folder of an attempt, if that can be written at all."""
    with contextlib.suppress(Get3dError, OSError):
        write_json(folder / f"error.rank{failure.rank:04d}.json", asdict(failure))


def first(folder: Path) -> Failure | None:
    """Return the failure that was left first in the folder of an attempt, or None."""
    found = [(path.stat().st_mtime_ns, failure) for path in _paths(folder) if (failure := _read(path))]
    order = sorted(found, key=lambda item: (item[0], item[1].is_bug, item[1].rank))
    return order[0][1] if order else None


def _paths(folder: Path) -> Sequence[Path]:
    return sorted(folder.glob("error.rank*.json"))


def _read(path: Path) -> Failure | None:
    with contextlib.suppress(Get3dError, KeyError, TypeError, ValueError):
        data = read_json(path)
        return Failure(rank=data["rank"], exit_code=data["exit_code"], lines=tuple(data["lines"]))
    return None


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:LONGEST_LINE]
