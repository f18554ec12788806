"""Folders of passing files on this machine that do not outlive their process, even when that is killed.

Who is killed cannot clean up, so whoever makes the next folder on the machine removes those whose owner is gone.
"""

import contextlib
import json
import shutil
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from get3d_cluster.runtime.env import ProcessId

PREFIX = "get3d-render-"
NAMELESS_S = 3600.0
"""Age from which a folder that names no owner was left by a process that died while it made it."""
_OWNER = "owner.json"


class Scratch:
    """A folder of this process in the system's temporary folder, made when it is first used."""

    def __init__(self) -> None:
        self._path: Path | None = None

    @property
    def path(self) -> Path:
        if self._path is None:
            remove_abandoned(Path(tempfile.gettempdir()))
            self._path = Path(tempfile.mkdtemp(prefix=PREFIX))
            (self._path / _OWNER).write_text(json.dumps(asdict(ProcessId.mine())))
        return self._path

    def fresh(self, name: str) -> Path:
        """Return an empty folder in it."""
        self.remove(name)
        folder = self.path / name
        folder.mkdir()
        return folder

    def remove(self, name: str) -> None:
        """Remove a folder in it; nothing happens if it is not there."""
        shutil.rmtree(self.path / name, ignore_errors=True)

    def close(self) -> None:
        """Remove it with all that is in it."""
        if self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)
            self._path = None


def remove_abandoned(folder: Path) -> None:
    """Remove what processes left in ``folder`` that are provably gone from this machine."""
    for path in folder.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if _is_abandoned(path):
                shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(path: Path) -> bool:
    try:
        owner = ProcessId(**json.loads((path / _OWNER).read_text()))
    except (FileNotFoundError, ValueError, TypeError):  # killed before it could say who it was
        return time.time() - path.stat().st_mtime > NAMELESS_S
    return owner.is_alive() is False
