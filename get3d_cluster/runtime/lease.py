"""Who owns a run: a lease whose fencing number is the attempt's. Only the holder of the newest may publish.

A new attempt may find an old one alive (a node that the scheduler lost keeps computing). The newer number wins: the
old attempt finds it at its next beat, or before its next publication, and leaves. A copy started by hand yields to a
live holder instead. Liveness is seen by the beat changing, never by comparing clocks of two machines.

Each number has a file of its own, ``leases/0003.json``, that one process can create and only that one writes
afterwards; so whatever an old holder does late, it hides no newer number. ``lease.json`` repeats the newest.
"""

import contextlib
import dataclasses
import json
import secrets
import threading
import time
from pathlib import Path
from typing import Any

from get3d_cluster.errors import FencedError, Get3dError, StorageError, UsageError
from get3d_cluster.runtime.env import ProcessId
from get3d_cluster.runtime.run_folder import read_json, write_json
from get3d_cluster.storage.local import create

BEAT_S = 2.0
WATCH_S = 3 * BEAT_S
NOBODY = {"beat": 0, "released": False, "host": "", "pid": 0, "start": "", "boot": "", "token": ""}
"""What is known of a holder whose file is still being written, or was cut short by a kill."""


class Lease:
    """The lease of one attempt on its run, kept alive by a beating thread. ``path`` is the run's lease.json."""

    def __init__(self, path: Path, fence: int) -> None:
        self._path = path
        self._fence = fence
        self._file = _file(path, fence)
        self._who = dataclasses.asdict(ProcessId.mine()) | {"token": secrets.token_hex(8)}
        self._beat = 0
        self._is_lost = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True, name="lease")

    @property
    def is_lost(self) -> bool:
        """Whether a beat found that a newer attempt owns the run."""
        return self._is_lost

    def acquire(self) -> None:
        """Take the lease. Raises: FencedError if a newer attempt holds it, or another process this very number."""
        self.check()
        if not create(self._file, json.dumps(self._facts()).encode()):
            raise _fenced(read_lease(self._path) or {"fence": self._fence, **NOBODY}, self._fence)
        self.check()
        self._show(self._facts())
        self._thread.start()

    def check(self) -> None:
        """Make sure that this attempt still owns the run. Raises: FencedError if another one does; StorageError."""
        held = read_lease(self._path)
        if held is not None and self._is_another(held):
            raise _fenced(held, self._fence)

    def beat(self) -> None:
        """Show that this attempt lives, or notice that it lost the run. Raises: StorageError."""
        held = read_lease(self._path)
        if held is not None and self._is_another(held):
            self._is_lost = True
            return
        self._beat += 1
        write_json(self._file, self._facts())
        self._show(self._facts())

    def release(self) -> None:
        """Stop beating and mark the lease as given back."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        held = read_lease(self._path)
        if held is not None and held["fence"] == self._fence and not self._is_another(held):
            facts = self._facts() | {"released": True}
            write_json(self._file, facts)
            self._show(facts)

    def _keep_beating(self) -> None:
        while not self._is_lost and not self._stop.wait(BEAT_S):
            with contextlib.suppress(Get3dError):
                self.beat()

    def _facts(self) -> dict[str, Any]:
        return {"fence": self._fence, "beat": self._beat, "t": time.time(), "released": False, **self._who}

    def _is_another(self, held: dict[str, Any]) -> bool:
        """Say whether somebody else holds it. A file of this number that cannot be read now was created by this one."""
        fence: int = held["fence"]
        return fence > self._fence or (fence == self._fence and held["token"] not in ("", self._who["token"]))

    def _show(self, facts: dict[str, Any]) -> None:
        """Repeat ``facts`` in lease.json, unless that says so already but for the beat."""
        shown = _read(self._path)
        if (shown.get("token"), shown.get("released")) != (facts["token"], facts["released"]):
            write_json(self._path, facts)


def read_lease(path: Path) -> dict[str, Any] | None:
    """Return the newest lease of the run whose lease.json is at ``path``, or None if nobody ever held one.

    Raises: StorageError if it cannot be seen which there are.
    """
    shown = _read(path)
    newest = max(_fences(path), default=0)
    if "fence" in shown and shown["fence"] > newest:
        return (
            NOBODY | shown
        )  # of a copy without leases/, or ahead of what a cached list of that folder shows
    return NOBODY | {"fence": newest} | _read(_file(path, newest)) if newest else None


def is_held(path: Path, watch_s: float = WATCH_S) -> dict[str, Any] | None:
    """Return the lease if somebody alive holds it; watches the beat for ``watch_s`` if the holder is elsewhere."""
    held, end = read_lease(path), time.monotonic() + watch_s
    while held is not None and not held["released"]:
        alive = _is_alive(held)
        if alive is not None:
            return held if alive else None
        if time.monotonic() > end:
            return None
        time.sleep(BEAT_S / 4)
        before, held = held, read_lease(path)
        is_same = held is not None and (held["fence"], held["beat"]) == (before["fence"], before["beat"])
        if before["token"] and not is_same:
            return held
    return None


def _is_alive(held: dict[str, Any]) -> bool | None:
    """Say whether the holder lives; None if it is elsewhere, or if its file could not be read just now."""
    holder = ProcessId(host=held["host"], pid=held["pid"], start=held["start"], boot=held["boot"])
    return holder.is_alive() if held["token"] else None


def refuse_second_copy(path: Path) -> None:
    """Refuse to start beside a live holder. Raises: FencedError naming it."""
    held = is_held(path)
    if held is not None:
        raise FencedError(
            f"{path.parent} is being worked on by attempt {held['fence']} on {held['host']} (pid {held['pid']})",
            f"watch it: python launch.py status {path.parent}; or stop it: python launch.py suspend {path.parent}",
        )


def _fenced(held: dict[str, Any], fence: int) -> FencedError:
    who = f"{held['host']} (pid {held['pid']})"
    if held["fence"] == fence:
        return FencedError(f"attempt {fence} of this run is {who} already", "nothing to do: that one goes on")
    return FencedError(
        f"attempt {held['fence']} on {who} owns this run, not {fence}",
        "nothing to do: the newer attempt goes on from the last checkpoint",
    )


def _file(path: Path, fence: int) -> Path:
    return path.parent / "leases" / f"{fence:04d}.json"


def _fences(path: Path) -> list[int]:
    folder = path.parent / "leases"
    try:
        return [int(file.stem) for file in folder.glob("*.json") if file.stem.isdigit()]
    except OSError as error:
        raise StorageError(
            f"cannot read {folder}: {error.strerror or error}", "mend its disk; the run comes back by itself"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    with contextlib.suppress(UsageError, StorageError):
        return read_json(path)
    return {}
