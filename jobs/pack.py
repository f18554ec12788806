"""Pack rendered images into shards, on any number of workers, which may come and go at any time."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from get3d_cluster.core.job import Position, Resources
from get3d_cluster.errors import StorageError
from get3d_cluster.runtime.session import ItemWork, Session

if TYPE_CHECKING:
    from preprocess.pack import Plan

KIND = "items"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Pack a folder of rendered images into a dataset for training."""

    images: Path
    """Rendered folder: holds img/<synset>/<model>/ and camera/<synset>/<model>/."""
    out: Path
    """Folder of the packed dataset: index.json and shard-00000.tar and so on."""
    synsets: tuple[str, ...] = ()
    """Categories to pack, such as ["02958343"]; empty means all there are. Quote ids in YAML."""
    lists: tuple[Path, ...] = ()
    """Files that say which models to pack: one id a line, <synset>/<id>, or ShapeNet's all.csv; empty means all."""
    splits: tuple[str, ...] = ()
    """Rows of all.csv to pack, such as ["train", "val"]; empty means all."""
    shard_mb: int = 64
    """Size at which a shard is closed; it is held in memory while it is packed."""
    store: Literal["auto", "png", "tiff"] = "auto"
    """Images as rendered, or as TIFF with zstd: same pixels, decoded faster; auto: TIFF from 256 px on."""
    resources: Resources = field(default_factory=Resources)
    """What one attempt asks of the scheduler."""

    def __post_init__(self) -> None:
        if not 1 <= self.shard_mb <= 8192:
            raise ValueError(f"shard_mb={self.shard_mb} must be between 1 and 8192")


def make(config: Config, session: Session) -> ItemWork:
    """Build the work of one worker. Raises: UsageError if an image or camera is missing, or ``out`` is taken."""
    from preprocess import pack
    from preprocess.lists import read_lists

    wanted = read_lists(config.lists, config.splits)
    plan = pack.planned(config.images, config.shard_mb, config.synsets, config.store, wanted)
    pack.open_folder(config.out, plan)
    return PackWork(plan, config.out, session)


class PackWork:
    """One worker's part: packs its shards, then helps others from their end, then writes the index.

    Workers do not wait for each other: two may at worst pack the same last shard, with the same bytes.
    """

    def __init__(self, plan: "Plan", out: Path, session: Session) -> None:
        self._plan = plan
        self._out = out
        self._session = session
        self._packed: set[int] = set()
        self._left = shard_order(len(plan.shards), session.rank, session.world_size)

    def position(self) -> Position:
        from preprocess import pack

        numbers = range(len(self._plan.shards))
        self._packed |= {
            n for n in numbers if n not in self._packed and pack.is_packed(self._out, self._plan, n)
        }
        return Position(
            step=len(self._packed),
            num_steps=len(self._plan.shards),
            images=sum(self._plan.num_images(number) for number in self._packed),
        )

    def is_done(self) -> bool:
        from preprocess import pack

        return not self._left and pack.is_finished(self._out, self._plan)

    def step(self) -> None:
        """Pack one shard, or pass over a finished one; after the last, write the index."""
        from preprocess import pack

        if self._left:
            number = self._left[0]
            if not pack.is_packed(self._out, self._plan, number, check_digest=True):
                self._pack(number)
            del self._left[0]
        if not self._left and not pack.is_finished(self._out, self._plan):
            index = pack.write_index(self._out, self._plan)
            missing = self._plan.not_there
            told: dict[str, Any] = (
                {"listed_but_not_there": len(missing), "first": missing[:5]} if missing else {}
            )
            self._session.events.write(
                "packed", images=len(index.samples), fingerprint=index.fingerprint, **told
            )

    def _pack(self, number: int) -> None:
        """Pack a shard, unless another worker does so first: who writes the index then clears away what we write."""
        from preprocess import pack

        try:
            pack.pack_shard(self._out, self._plan, number)
        except StorageError:
            if not pack.is_packed(self._out, self._plan, number):
                raise

    def close(self) -> None:
        """Nothing is held between steps."""


def shard_order(num_shards: int, rank: int, world_size: int) -> list[int]:
    """Return all shards in the order in which a worker looks at them: its own, then the others from the back.

    >>> shard_order(6, 1, 3)
    [2, 3, 5, 4, 1, 0]
    """
    first, last = (each * num_shards // world_size for each in (rank, rank + 1))
    others = [*range(last, num_shards), *range(first)]
    return [*range(first, last), *sorted(others, key=lambda number: (number < first, -number))]
