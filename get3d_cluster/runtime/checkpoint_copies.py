"""Copies of a run's checkpoints behind its URL. However slow that place is, the run's own folder never waits for it.

Rank 0 has a process of its own for them, which copies what is published in the run's folder already: it needs no
memory of the training, and no word of the other ranks, whose shares lie there, too. One copy is under way at a time. Of
what is published meanwhile the newest waits; older ones are skipped, and that is told.
"""

import dataclasses
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from get3d_cluster.dist.group import Group
from get3d_cluster.errors import Get3dError
from get3d_cluster.runtime.checkpoint import RUN, Checkpoints
from get3d_cluster.runtime.checkpoint_link import END_S, Link, WriterDiedError
from get3d_cluster.storage.staging import location_of

UPLOADER = "get3d_cluster.runtime.checkpoint_uploader"
FAR = "url"
TRIES = 3
"""Processes that may die over one copy."""
POLL_S = 0.1
PATIENCE_S = 20.0
"""How long a worker that was told to stop, nobody said when it is killed, waits for copies."""
LEAVE_S = 10.0
"""What it needs for leaving, of the time until it is killed: its outcome, and to ask to come back."""
LAST_S = 3600.0
"""How long a worker whose work is done waits for them."""
_LEFT = "the worker left before it was whole"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Copied:
    """How the copy of one checkpoint ended."""

    step: int
    num_bytes: int = 0
    seconds: float = 0.0
    problem: str = ""
    """Why there is none; empty if there is, or if it was skipped."""
    skipped_for: int | None = None
    """Step of the newer one that was copied instead."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Offer:
    step: int
    agreed_step: int | None


class Copies:
    """The copies that one worker makes: rank 0, if there is a URL; all others have none."""

    def __init__(self, checkpoints: Checkpoints, group: Group) -> None:
        self._checkpoints = checkpoints
        self._link = Link(UPLOADER) if group.rank == 0 and FAR in checkpoints.tiers else None
        self._changed = threading.Condition()
        self._waiting: _Offer | None = None
        self._under_way: _Offer | None = None
        self._ended: list[Copied] = []
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def offer(self, step: int, agreed_step: int | None = None) -> None:
        """Have the checkpoint of ``step``, which is published, copied; now, or after the one under way."""
        if self._link is None:
            return
        with self._changed:
            if self._is_closed:
                return
            if self._waiting:
                self._ended.append(Copied(step=self._waiting.step, skipped_for=step))
            self._waiting = _Offer(step=step, agreed_step=agreed_step)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name="copies")
                self._thread.start()
            self._changed.notify_all()

    def held(self) -> list[int]:
        """Return the steps whose checkpoints must stay in the run's folder."""
        with self._changed:
            return [offer.step for offer in (self._under_way, self._waiting) if offer]

    def is_busy(self) -> bool:
        """Say whether a copy is under way, or waits."""
        return bool(self.held())

    def news(self) -> list[Copied]:
        """Return the copies that ended since the last call."""
        with self._changed:
            ended, self._ended = self._ended, []
        return ended

    def wait(self, seconds: float) -> None:
        """Return once nothing is copied any more, or after ``seconds``."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._under_way or self._waiting), seconds)

    def close(self) -> None:
        """Give up what is not copied yet; ``news`` tells of it. What is not whole there is no checkpoint."""
        with self._changed:
            if self._waiting and not self._is_closed:
                self._ended.append(Copied(step=self._waiting.step, problem=_LEFT))
            self._waiting, self._is_closed = None, True
            self._changed.notify_all()
        if self._link and self._thread:
            self._link.interrupt()
            self._thread.join(END_S)
            self._link.kill()

    # The thread

    def _run(self) -> None:
        while offer := self._next():
            copied = self._copied(offer)
            with self._changed:
                self._ended.append(copied)
                self._under_way = None
                self._changed.notify_all()

    def _next(self) -> _Offer | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            self._under_way, self._waiting = self._waiting, None
            return self._under_way

    def _copied(self, offer: _Offer) -> Copied:
        begun_s = time.monotonic()
        answer = self._answer(self._order(offer))
        return Copied(
            step=offer.step,
            num_bytes=answer.get("copied", 0),
            seconds=time.monotonic() - begun_s,
            problem=answer.get("failed", ""),
        )

    def _order(self, offer: _Offer) -> dict[str, Any]:
        tiers = self._checkpoints.tiers
        return {
            "step": offer.step,
            "from": location_of(tiers[RUN]),
            "to": location_of(tiers[FAR]),
            "keep": dataclasses.asdict(self._checkpoints.config),
            "agreed_step": offer.agreed_step,
            "token": secrets.token_hex(4),
        }

    def _answer(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._link is not None
        for _ in range(TRIES):
            if self._is_closed:
                break
            try:
                self._link.start()
                return self._asked(self._link, order)
            except (WriterDiedError, OSError):
                self._link.kill()
        return {
            "failed": _LEFT if self._is_closed else f"{TRIES} processes that copy it died one after the other"
        }

    def _asked(self, link: Link, order: dict[str, Any]) -> dict[str, Any]:
        link.send(order)
        answer = link.receive()
        if "ready" not in answer:
            return answer
        problem = self._why_not()
        link.send({"go": not problem})
        answer = link.receive()
        return {"failed": problem} if problem else answer

    def _why_not(self) -> str:
        """Return why this attempt may not publish any more; empty if it may."""
        try:
            self._checkpoints.check_owner()
        except Get3dError as error:
            return error.what
        return ""


def awaited_until_s(noticed_s: float | None, grace_s: float | None) -> float:
    """Return until when, by the monotonic clock, an attempt that was told to stop may wait for copies."""
    if grace_s is None or noticed_s is None:
        return time.monotonic() + PATIENCE_S
    return noticed_s + grace_s - LEAVE_S


def wait_together(copies: Copies, group: Group, until_s: float, is_called_away: Callable[[], bool]) -> None:
    """Return, on all ranks at one time, once all is copied; or rank 0's clock says ``until_s``; or any is called away.

    The other ranks must not leave before: whoever started them may end rank 0 as well.
    """
    while True:
        is_awaited = copies.is_busy() and time.monotonic() < until_s
        is_awaited, is_over = group.any([is_awaited, is_called_away()])
        if is_over or not is_awaited:
            return
        copies.wait(POLL_S)
