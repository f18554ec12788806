"""Which sizes of micro-shards there are, which one to take, and a table of what was measured. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NEARLY = 0.95
"""Of the fastest: as fast, and the smallest such size leaves more memory and lets more workers take part."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What a step of one worker takes with one size, or why it failed."""

    shard_size: int
    step_s: float = 0.0
    r1_s: float = 0.0
    memory_bytes: int = 0
    device_bytes: int = 0
    failed: str = ""

    def images_per_s(self, batch_size: int, r1_interval: int) -> float:
        """Return images a second of all workers, each of which takes this long for its part of a batch; 0: failed."""
        return 0.0 if self.failed else batch_size / (self.step_s + self.r1_s / r1_interval)

    def fits(self, memory_share: float) -> bool:
        """Say whether it leaves the rest of a GPU's memory alone."""
        limit = memory_share * self.device_bytes if self.device_bytes else float("inf")
        return not self.failed and self.memory_bytes <= limit


def can_be(batch_size: int, shard_size: int, group: int, num_workers: int) -> bool:
    """Say whether a batch can be cut like this, for so many workers, and micro-shards into groups that are compared."""
    is_cut = 0 < shard_size <= batch_size and batch_size % shard_size == 0
    return (
        is_cut
        and batch_size // shard_size >= num_workers
        and (shard_size <= group or shard_size % group == 0)
    )


def candidates(batch_size: int, group: int, num_workers: int) -> tuple[int, ...]:
    """Return all sizes that can be.

    >>> candidates(32, 4, 2)
    (1, 2, 4, 8, 16)
    """
    return tuple(n for n in range(1, batch_size + 1) if can_be(batch_size, n, group, num_workers))


def suggested(
    rows: Sequence[Measured], rates: Mapping[int, float], memory_share: float, group: int
) -> int | None:
    """Return the smallest size that fits and is nearly as fast as the fastest; None: none fits.

    Sizes below the group compare fewer images with each other, which trains otherwise: only if no other fits.
    """
    fitting = [row.shard_size for row in rows if row.fits(memory_share)]
    eligible = [size for size in fitting if size >= group] or fitting[-1:]
    if not eligible:
        return None
    fastest = max(rates[size] for size in eligible)
    return min(size for size in eligible if rates[size] >= NEARLY * fastest)


def table(
    rows: Sequence[Measured], rates: Mapping[int, float], batch_size: int, num_workers: int, best: int | None
) -> str:
    """Return what a person reads."""
    head = (
        "| batch.shard_size | batch.num_shards | images/s | a step, s | R1 adds, s | memory, GiB | |\n|"
        + "---|" * 7
    )
    lines = [_line(row, rates[row.shard_size], batch_size, best) for row in rows]
    about = f"{batch_size} images a step, {num_workers} workers, the network left out.\n"
    return "\n".join([about, head, *lines, "", _advice(batch_size, best), ""])


def _line(row: Measured, rate: float, batch_size: int, best: int | None) -> str:
    cut = f"| {row.shard_size} | {batch_size // row.shard_size} |"
    if row.failed:
        return f"{cut} | | | | {row.failed} |"
    numbers = f"{rate:.2f} | {row.step_s:.3f} | {row.r1_s:.3f} | {row.memory_bytes / 2**30:.2f}"
    return f"{cut} {numbers} | {'suggested' if row.shard_size == best else ''} |"


def _advice(batch_size: int, best: int | None) -> str:
    if best is None:
        return "No size fits: take precision.amp=bf16, smaller images, or a GPU with more memory."
    return f"Start the training with batch.shard_size={best} batch.num_shards={batch_size // best}"
