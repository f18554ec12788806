"""How an attempt ends: why it was told to, what there is time for before it is killed, and where it stood."""

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from get3d_cluster.core.job import Cause, Position
from get3d_cluster.runtime.session import Session

SAFETY = 1.5
"""A save is begun only if the deadline leaves this many times the longest save so far."""


class End(StrEnum):
    """How a loop ended."""

    FINISHED = "finished"
    SUSPENDED = "suspended"
    SUSPENDED_PERIODIC = "suspended-periodic"
    """The deadline was too short to save: the newest periodic checkpoint stands."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a loop ended, and where."""

    end: End
    start_step: int
    step: int
    saved_step: int
    digest: str = ""
    not_bitwise_from: int | None = None
    """Step from which on the bits may be others than those of the uninterrupted run; None: they are the same."""


class Reason(Protocol):
    """Why an attempt was told to stop."""

    @property
    def cause(self) -> Cause: ...

    @property
    def grace_s(self) -> float | None:
        """Seconds from the notice to the kill, if known."""
        ...


def write_notice(
    session: Session, reason: Reason | None, position: Position, told: list[int], signals: list[str]
) -> None:
    """Write the event ``notice``, at the moment at which this worker got it if it did."""
    first_s = session.notices.first_s
    known: dict[str, Any] = {"cause": reason.cause, "grace_s": reason.grace_s} if reason else {}
    session.events.write(
        "notice",
        age_s=time.monotonic() - first_s if first_s is not None else 0.0,
        **known,
        signal=",".join(signals),
        ranks=told,
        step=position.step,
    )


class Plan(StrEnum):
    """What to do about saving before leaving on a notice."""

    SAVE = "save"
    """After the save in flight, if there is one."""
    DROP_AND_SAVE = "drop-and-save"
    NOTHING = "nothing"
    """But to finish the save in flight: the newest checkpoint stands."""


def plan_for(left_s: float, save_s: float, *, is_it_in_flight: bool, is_older_in_flight: bool) -> Plan:
    """Decide what there is time for in the ``left_s`` before the kill, if a save takes ``save_s``.

    A save in flight is of the step at which the attempt leaves (``is_it_in_flight``), or of an older one.
    """
    one_s = SAFETY * save_s
    if left_s > one_s * (2 if is_older_in_flight else 1):
        return Plan.SAVE
    if is_older_in_flight and left_s > one_s:
        return Plan.DROP_AND_SAVE
    return Plan.SAVE if is_it_in_flight else Plan.NOTHING  # it is on its way, and nothing is faster
