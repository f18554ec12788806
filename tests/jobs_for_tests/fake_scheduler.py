"""A scheduler that starts nothing: what it was told is in ``calls``, what it answers in ``standings`` by run name."""

from collections.abc import Sequence
from typing import ClassVar

from get3d_cluster.core.job import Cause, Outcome, Resources
from get3d_cluster.errors import SchedulerError, UsageError
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers.base import Standing, StopReason


class FakeScheduler:
    calls: ClassVar[list[tuple]] = []
    standings: ClassVar[dict[str, Standing]] = {}
    endings: ClassVar[dict[tuple[str, int], Outcome]] = {}
    """What is known of attempts that left no word."""
    asked: ClassVar[list[tuple]] = []
    """Every question, in order."""
    opened: ClassVar[int] = 0

    @classmethod
    def reset(cls) -> None:
        cls.calls = []
        cls.standings = {}
        cls.endings = {}
        cls.asked = []
        cls.opened = 0

    def __init__(self) -> None:
        type(self).opened += 1

    def plan(self, run: RunFolder, resources: Resources, after: Sequence[RunFolder] = ()) -> str:
        if resources.nodes > 100:
            raise UsageError(
                f"resources.nodes={resources.nodes} can never be met here", "at most 100: nodes=100"
            )
        return f"{resources.nodes} nodes after {[other.name for other in after]}"

    def submit(
        self, run: RunFolder, resources: Resources, after: Sequence[RunFolder] = (), delay_s: float = 0
    ) -> str:
        if run.name == "refused":
            raise SchedulerError("the scheduler refused", "ask it why")
        self.calls.append(("submit", run.name, resources.nodes, [other.name for other in after]))
        self.standings[run.name] = Standing(state="pending", job="17", why="waits for cores")
        return "17"

    def standing(self, run: RunFolder) -> Standing:
        self.asked.append(("standing", run.name))
        return self.standings.get(run.name, Standing(state="absent"))

    def stop_reason(self, run: RunFolder, attempt: int) -> StopReason:
        return StopReason(cause=Cause.PREEMPTED)

    def stop(self, run: RunFolder, cause: Cause, *, now: bool = False) -> None:
        self.calls.append(("stop", run.name, str(cause), now))
        self.standings.pop(run.name, None)

    def requeue(self, run: RunFolder, resources: Resources, delay_s: float = 0) -> None:
        self.calls.append(("requeue", run.name))

    def post_mortem(self, run: RunFolder, attempt: int) -> Outcome | None:
        self.asked.append(("post_mortem", run.name, attempt))
        return self.endings.get((run.name, attempt))
