"""What a job gets from the layer around it, and what it gives back: the seam between a job and a cluster."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from get3d_cluster.core.job import Position, Resources
from get3d_cluster.dist.group import Group
from get3d_cluster.errors import HeldError
from get3d_cluster.runtime.events import EventLog, MetricLog
from get3d_cluster.runtime.notices import Notices
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.runtime.watchdog import Pulse


class Copying:
    """What of the state is just being copied into a checkpoint."""

    def __init__(self) -> None:
        self._wait: Callable[[Iterable[str]], None] | None = None

    def ask(self, wait: Callable[[Iterable[str]], None]) -> None:
        """Let ``wait_for`` be answered by ``wait``."""
        self._wait = wait

    def wait_for(self, *parts: str) -> None:
        """Return once these top-level names of the state may change: at once, if no save is being copied."""
        if self._wait:
            self._wait(parts)


class Ballot:
    """What each worker has to tell all at a step, such as a notice to stop: one bit each, and whether any raised it.

    Work that adds something up over the workers anyway lets the bits ride along, as ``SIZE`` more numbers:
    ``cast`` once in a step, add them up, and ``count`` what is above zero. For other work the loop asks around itself.
    """

    SIZE = 5

    def __init__(self) -> None:
        self._ask: Callable[[], Sequence[bool]] | None = None
        self._outcome: list[bool] | None = None

    def ask(self, flags: Callable[[], Sequence[bool]]) -> None:
        """Let ``cast`` be answered by ``flags``, ``SIZE`` of them."""
        self._ask = flags

    def cast(self) -> list[bool]:
        """Return this worker's bits."""
        flags = list(self._ask()) if self._ask else [False] * self.SIZE
        assert len(flags) == self.SIZE
        return flags

    def count(self, raised: Iterable[bool]) -> None:
        """Tell which bits any worker raised: the same on all."""
        self._outcome = list(raised)

    def take(self) -> list[bool] | None:
        """Return what was counted since the last time; None if nothing was."""
        outcome, self._outcome = self._outcome, None
        return outcome


@dataclass(frozen=True, kw_only=True)
class Session:
    """One worker's place in one attempt of a run."""

    run: RunFolder
    attempt: int
    group: Group
    resources: Resources
    notices: Notices
    events: EventLog
    metrics: MetricLog
    device: str = "cpu"
    element: int | None = None
    """Number within a job array, whose elements start and end each alone; None: the run is one job."""
    pulse: Pulse = field(default_factory=Pulse)
    """Told of each step by the loops. Work may add to it where it waits: ``with session.pulse.counting("data")``."""
    copying: Copying = field(default_factory=Copying)
    """Asked by work that has ``frozen_parts``, before it changes one."""
    ballot: Ballot = field(default_factory=Ballot)
    """May be cast and counted by work in each step."""

    @property
    def rank(self) -> int:
        return self.group.rank

    @property
    def world_size(self) -> int:
        return self.group.world_size

    @property
    def is_lead(self) -> bool:
        """Whether this worker speaks for its attempt: rank 0, or any element of an array."""
        return self.rank == 0 or self.element is not None


class Work(Protocol):
    """A job of kind ``steps``: all workers advance together; its state is saved and loaded whole."""

    def position(self) -> Position:
        """Return how far it is."""
        ...

    def is_done(self) -> bool:
        """Say whether nothing is left to do."""
        ...

    def step(self) -> None:
        """Do one step. Called on all workers; must leave them with equal state."""
        ...

    def state(self) -> Mapping[str, Any]:
        """Return everything that decides the steps to come, by name.

        Nested mappings with text keys; leaves are tensors or JSON values. Equal on all workers. Whatever is left out
        here makes a resumed run differ from an uninterrupted one.
        """
        ...

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state`` returned in another process."""
        ...


@runtime_checkable
class FrozenWork(Protocol):
    """Work that says before it changes a part of its state: a save copies that part while the next step runs."""

    def frozen_parts(self) -> Sequence[str]:
        """Return top-level names of the state, in the order in which a step changes them.

        For each one ``session.copying.wait_for(name)`` is called in every step before it changes. The other parts
        are copied before the next step begins.
        """
        ...


@runtime_checkable
class ReplicatedWork(Protocol):
    """Work whose workers compare their copies of the state now and then."""

    def agreed_step(self) -> int | None:
        """Return the step at which all copies were last known to be equal; None if there is one copy only."""
        ...


@runtime_checkable
class ComparingWork(Protocol):
    """Work that can compare the copies of its state, which the loop asks for before each save."""

    def compare_replicas(self) -> None:
        """Compare the state over all workers, all of which call it. Raises: HeldError, on all, if it differs."""
        ...


@runtime_checkable
class RecoveringWork(Protocol):
    """Work that may diverge, and then goes back to a checkpoint and on from there with other random numbers.

    All of these are functions of the state and the configuration, so that a run that is stopped anywhere goes the same
    way again.
    """

    def rollback_every_steps(self) -> int:
        """Return the steps between checkpoints to go back to, made at its multiples; 0: it never goes back."""
        ...

    def rollback_step(self) -> int | None:
        """Return the multiple to which it goes back instead of doing another step; None: it goes on."""
        ...

    def why_held(self) -> HeldError | None:
        """Return why it does not go on from ``rollback_step`` once more; None: it does."""
        ...

    def roll_back(self, state: Mapping[str, Any] | None) -> None:
        """Take over what was saved at ``rollback_step`` (None: begin again), and draw other numbers from now on."""
        ...


@runtime_checkable
class DependentWork(Protocol):
    """Work whose bits depend on more than its state and the numeric environment."""

    def bits_depend_on(self) -> Mapping[str, Any]:
        """Return these conditions of this attempt by name, as JSON values. A resume under others is told."""
        ...


class ItemWork(Protocol):
    """A job of kind ``items``: workers share out files, which are the state; they never wait for each other."""

    def position(self) -> Position:
        """Return how many items are done, of how many, over all workers."""
        ...

    def is_done(self) -> bool:
        """Say whether every item has come to its end."""
        ...

    def step(self) -> None:
        """Do one unit of work, at most a few seconds; or wait shortly while other workers hold what is left."""
        ...

    def close(self) -> None:
        """Put down what is held. Called on every way out."""
        ...
