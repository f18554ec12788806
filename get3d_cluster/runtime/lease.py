"""Who owns a run: a lease whose fencing number is the attempt's. Only the holder of the newest may publish.

A new attempt may find an old one alive (a node that the scheduler lost keeps computing). The newer number wins: the
old attempt finds it before its next publication and leaves. A copy started by hand yields to a live holder instead.
Liveness is seen by the beat changing, never by comparing clocks of two machines.
"""

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

from get3d_cluster.errors import FencedError, Get3dError
from get3d_cluster.runtime.env import ProcessId
from get3d_cluster.runtime.run_folder import read_json, write_json

BEAT_S = 2.0
WATCH_S = 3 * BEAT_S


class Lease:
    """The lease of one attempt on its run, kept alive by a beating thread."""

    def __init__(self, path: Path, fence: int) -> None:
        self._path = path
        self._fence = fence
        self._beat = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True, name="lease")

    def acquire(self) -> None:
        """Take the lease. Raises: FencedError if a newer attempt holds it."""
        self.check()
        self._write()
        self._thread.start()

    def check(self) -> None:
        """Make sure that this attempt still owns the run. Raises: FencedError if a newer one does."""
        held = read_lease(self._path)
        if held is not None and held["fence"] > self._fence:
            raise FencedError(
                f"attempt {held['fence']} on {held['host']} (pid {held['pid']}) owns this run, not {self._fence}",
                "nothing to do: the newer attempt goes on from the last checkpoint",
            )

    def release(self) -> None:
        """Stop beating and mark the lease as given back."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        held = read_lease(self._path)
        if held is not None and held["fence"] == self._fence:
            write_json(self._path, held | {"released": True})

    def _keep_beating(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                held = read_lease(self._path)
                if held is not None and held["fence"] > self._fence:
                    return
                self._write()
            except Get3dError:
                continue

    def _write(self) -> None:
        self._beat += 1
        mine = dataclasses.asdict(ProcessId.mine())
        write_json(
            self._path,
            {"fence": self._fence, "beat": self._beat, "t": time.time(), "released": False, **mine},
        )


def read_lease(path: Path) -> dict[str, Any] | None:
    """Return the lease, or None if nobody ever held one."""
    return read_json(path) if path.is_file() else None


def is_held(path: Path, watch_s: float = WATCH_S) -> dict[str, Any] | None:
    """Return the lease if somebody alive holds it; watches the beat for ``watch_s`` if the holder is elsewhere."""
    held = read_lease(path)
    if held is None or held.get("released"):
        return None
    holder = ProcessId(host=held["host"], pid=held["pid"], start=held["start"], boot=held["boot"])
    alive = holder.is_alive()
    if alive is not None:
        return held if alive else None
    end = time.monotonic() + watch_s
    while time.monotonic() < end:
        time.sleep(BEAT_S / 4)
        now = read_lease(path)
        if now is not None and (now["fence"], now["beat"]) != (held["fence"], held["beat"]):
            return now
    return None


def refuse_second_copy(path: Path) -> None:
    """Refuse to start beside a live holder. Raises: FencedError naming it."""
    held = is_held(path)
    if held is not None:
        raise FencedError(
            f"{path.parent} is being worked on by attempt {held['fence']} on {held['host']} (pid {held['pid']})",
            f"watch it: python launch.py status {path.parent}; or stop it: python launch.py suspend {path.parent}",
        )
