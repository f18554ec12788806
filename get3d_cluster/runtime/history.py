"""What a checkpoint tells of the training behind it, beside the state: its ``meta``."""

from collections.abc import Mapping
from typing import Any

from get3d_cluster.core.job import Position
from get3d_cluster.runtime.fingerprint import not_bitwise_rows
from get3d_cluster.runtime.session import Session


class History:
    """How long a run trained in all attempts, where its bits may part, and where it went back."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.active_s = 0.0
        self.on: dict[str, Any] = {}
        """Numeric environment of this attempt."""
        self.not_bitwise: list[dict[str, Any]] = []
        """Where the run went on in another numeric environment, oldest first. Rank 0 only."""
        self.rollbacks: list[dict[str, int]] = []
        """From which step it went back to which, oldest first."""

    def go_on_from(self, meta: Mapping[str, Any]) -> None:
        """Take over what the checkpoint tells from which the run goes on; nothing: it begins."""
        self.active_s = float(meta.get("active_s", 0.0))
        self.rollbacks = [dict(row) for row in meta.get("rollbacks", ())]

    def compare_environment(self, meta: Mapping[str, Any], step: int) -> list[dict[str, Any]]:
        """Return what is new of where bits may part, now that the run goes on at ``step`` from ``meta``."""
        self.not_bitwise = not_bitwise_rows(meta, self.on, step, self._session.attempt)
        return self.not_bitwise[len(meta.get("not_bitwise", ())) :]

    def go_back(self, step: int, meta: Mapping[str, Any]) -> None:
        """Go on from ``meta`` at an earlier ``step`` within this attempt: where bits may part, they may from there."""
        self.go_on_from(meta)
        self.not_bitwise = [{**row, "step": min(row["step"], step)} for row in self.not_bitwise]

    def rollbacks_told(self) -> dict[str, int]:
        """Return what people are told of how often the training went back, and of the last time."""
        if not self.rollbacks:
            return {}
        last = {f"rolled_back_{key}": value for key, value in self.rollbacks[-1].items()}
        return {"rollbacks": len(self.rollbacks), **last}

    def meta(self, position: Position) -> dict[str, Any]:
        """Return what a checkpoint made at ``position`` tells."""
        return {
            "epoch": position.epoch,
            "images": position.images,
            "active_s": self.active_s,
            "attempt": self._session.attempt,
            "world_size": self._session.world_size,
            "on": self.on,
            **({"not_bitwise": self.not_bitwise} if self.not_bitwise else {}),
            **({"rollbacks": self.rollbacks} if self.rollbacks else {}),
            **self._session.run.identity(),
        }
