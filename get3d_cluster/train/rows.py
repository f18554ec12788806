"""The rows of metrics.jsonl: numbers of steps, their sums, and how fast it goes."""

from collections.abc import Callable, Mapping

from get3d_cluster.core.job import Position
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.session import Session
from get3d_cluster.train.norms import Row

Numbers = dict[str, float]
"""Of a step, by name."""


class Rows:
    """Turns numbers of steps into rows, on rank 0. Rates leave out sheets and measurements."""

    def __init__(self, session: Session, batch_size: int) -> None:
        self._session = session
        self._batch_size = batch_size
        self._latest: Numbers = {}
        self._steps = 0
        self._seconds = 0.0
        self._total_s: float | None = None

    def add(self, numbers: Numbers, seconds: float) -> None:
        """Keep the numbers of a step; R1's stay until it is computed again."""
        self._latest |= numbers
        self._steps += 1
        self._seconds += seconds

    def write(self, position: Position, extra: Row) -> None:
        """Write a row: sums of heads beside their parts, speed since the last row."""
        if self._total_s is None:
            self._total_s = self._seconds_before()
        self._total_s += self._seconds
        row: Row = {
            "images": position.images,
            "epoch": position.epoch,
            "seconds": self._total_s,
            "images_per_s": self._steps * self._batch_size / max(self._seconds, 1e-9),
            **_totals(self._latest),
            **self._latest,
            **extra,
        }
        self._steps, self._seconds = 0, 0.0
        self._session.metrics.write(position.step, **{key: shortened(value) for key, value in row.items()})

    def _seconds_before(self) -> float:
        """Training time of the attempts before, as far as it was written down."""
        rows = read_rows(self._session.run.metrics_path) if self._session.rank == 0 else []
        return float(rows[-1].get("seconds", 0.0)) if rows else 0.0


def _totals(numbers: Mapping[str, float]) -> Numbers:
    pairs: dict[str, Callable[[], float]] = {
        "loss_g": lambda: numbers["loss_g_rgb"] + numbers["loss_g_mask"],
        "loss_d": lambda: numbers["loss_d_rgb"] + numbers["loss_d_mask"],
        "r1": lambda: numbers["r1_rgb"] + numbers["r1_mask"],
    }
    return {name: total() for name, total in pairs.items() if f"{name}_rgb" in numbers}


def shortened(value: float | str) -> float | str | None:
    """Round for the file; JSON has no word for what is not finite."""
    if isinstance(value, int | str):
        return value
    return float(f"{value:.6g}") if abs(value) < float("inf") else None
