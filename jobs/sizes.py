"""Measure which size of micro-shards suits a training and a machine, before its run is created."""

import time
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from get3d_cluster.core.job import Position
from get3d_cluster.errors import UsageError
from get3d_cluster.runtime.run_folder import read_json, write_json
from get3d_cluster.runtime.session import ItemWork, Session
from get3d_cluster.storage.local import write_atomic
from get3d_cluster.train.config import TrainerConfig
from jobs import train
from jobs._sizes import Measured, can_be, candidates, suggested, table

if TYPE_CHECKING:
    from get3d_cluster.train.cost import Cost, Measuring, Setting

KIND = "items"
POLL_S = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class SizesConfig:
    """What is tried."""

    shard_sizes: tuple[int, ...] = ()
    """Images of a micro-shard; empty: all that cut the images of a step into at least one micro-shard a worker."""
    num_steps: int = 4
    """Steps of each size that are measured with R1, and as many without."""
    memory_share: float = 0.85
    """Of a GPU's memory, a size may take to be suggested: shapes and with them memory change in a training."""

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise UsageError(f"num_steps={self.num_steps} must be at least 1", "leave num_steps out")
        if not 0 < self.memory_share <= 1:
            raise UsageError(
                f"memory_share={self.memory_share:g} must be above 0 and at most 1", "leave memory_share out"
            )


@dataclass(frozen=True, kw_only=True)
class Config(train.Config):
    """Measure images a second and memory by batch.shard_size, for a training with these very keys.

    The images of a step stay the same: batch.num_shards changes along. Writes sizes.md into its run folder. A size is
    tried in a process of its own, with the micro-shards that one of `resources`' workers would compute, without the
    network. Sizes are shared out among the workers, which compute at the same time as in a training.
    """

    sizes: SizesConfig = field(default_factory=SizesConfig)
    """What is tried."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for size in self.sizes.shard_sizes:
            if not can_be(
                self.batch.size, size, self.discriminator.minibatch_group, self.resources.num_workers
            ):
                raise UsageError(
                    f"sizes.shard_sizes has {size}, which does not cut {self.batch.size} images into micro-shards for "
                    f"{self.resources.num_workers} workers, or those into discriminator.minibatch_group="
                    f"{self.discriminator.minibatch_group}",
                    "leave out sizes.shard_sizes",
                )

    @property
    def to_try(self) -> tuple[int, ...]:
        """Sizes of micro-shards, rising."""
        found = self.sizes.shard_sizes or candidates(
            self.batch.size, self.discriminator.minibatch_group, self.resources.num_workers
        )
        return tuple(sorted(found))


def make(config: Config, session: Session) -> ItemWork:
    """Build the work of one worker."""
    return SizesWork(config, session)


class SizesWork:
    """One worker's part: measures every so many-th size, then waits until all are known; the lead tells."""

    def __init__(self, config: Config, session: Session) -> None:
        self._config = config
        self._session = session
        self._folder = session.run.path / "sizes"
        self._measuring: tuple[int, Measuring] | None = None
        self._is_told = False

    def position(self) -> Position:
        done = sum(self._path(size).is_file() for size in self._config.to_try)
        return Position(step=done, num_steps=len(self._config.to_try))

    def is_done(self) -> bool:
        return self._is_told

    def step(self) -> None:
        """Look after the size that is being measured, begin the next one, or tell what all have found."""
        from get3d_cluster.train.cost import Measuring

        if self._measuring:
            self._look_after(*self._measuring)
        elif mine := [size for size in self._mine() if not self._path(size).is_file()]:
            self._measuring = mine[0], Measuring(self._setting(mine[0]))
        elif all(self._path(size).is_file() for size in self._config.to_try):
            self._tell()
        else:
            time.sleep(POLL_S)

    def close(self) -> None:
        """End what is being measured."""
        self._put_down()

    def _look_after(self, size: int, measuring: "Measuring") -> None:
        try:
            found = measuring.result(POLL_S)
        except InterruptedError:  # a notice reached it: this worker leaves, or tries again
            self._put_down()
            return
        if found is not None:
            self._put_down()
            write_json(self._path(size), _row(size, found))

    def _put_down(self) -> None:
        if self._measuring:
            self._measuring[1].end()
            self._measuring = None

    def _mine(self) -> tuple[int, ...]:
        return self._config.to_try[self._session.rank :: self._session.world_size]

    def _setting(self, size: int) -> "Setting":
        from get3d_cluster.train.cost import Setting

        num_shards = self._config.batch.size // size
        of_one = -(-num_shards // self._config.resources.num_workers)
        trained = {each.name: getattr(self._config, each.name) for each in fields(TrainerConfig)}
        batch = replace(self._config.batch, num_shards=of_one, shard_size=size)
        return Setting(
            config=TrainerConfig(**trained | {"batch": batch}),
            device=self._session.device,
            threads=self._config.resources.cpus_per_worker,
            num_steps=self._config.sizes.num_steps,
        )

    def _tell(self) -> None:
        config = self._config
        rows = [Measured(**read_json(self._path(size))) for size in config.to_try]
        rates = {row.shard_size: row.images_per_s(config.batch.size, config.loss.r1_interval) for row in rows}
        best = suggested(rows, rates, config.sizes.memory_share, config.discriminator.minibatch_group)
        if self._session.is_lead:
            text = table(rows, rates, config.batch.size, config.resources.num_workers, best)
            write_atomic(self._session.run.path / "sizes.md", text.encode())
            self._session.events.write("sizes", shard_size=best, images_per_s=rates)
        self._is_told = True

    def _path(self, size: int) -> Path:
        return self._folder / f"{size:05d}.json"


def _row(size: int, found: "Cost | str") -> dict[str, Any]:
    known = {"failed": found} if isinstance(found, str) else asdict(found)
    return {"shard_size": size, **known}
