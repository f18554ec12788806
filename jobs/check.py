"""Check a packed dataset against its index, on any number of workers, which may come and go at any time."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from get3d_cluster.core.job import Position, Resources
from get3d_cluster.errors import DifferenceError
from get3d_cluster.runtime.run_folder import read_json, write_json
from get3d_cluster.runtime.session import ItemWork, Session
from get3d_cluster.storage.local import write_atomic
from jobs.pack import shard_order

if TYPE_CHECKING:
    from get3d_cluster.data.check import Finding

KIND = "items"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Find missing, damaged and duplicate images; ends with exit code 6 if there are any."""

    data: str = field(metadata={"location": True})
    """Folder or URL of a packed dataset."""
    images: Path | None = None
    """Rendered folder it was packed from: also find what is not in the dataset; null: look at the dataset alone."""
    synsets: tuple[str, ...] = ()
    """Categories of `images` that were packed; empty means all there are. Quote ids in YAML."""
    lists: tuple[Path, ...] = ()
    """Lists of the models of `images` that were packed, as `pack` had them; empty means all."""
    splits: tuple[str, ...] = ()
    """Rows of all.csv that were packed, as `pack` had them; empty means all."""
    allow_duplicates: bool = False
    """Models that are there twice are no mistake."""
    resources: Resources = field(default_factory=Resources)
    """What one attempt asks of the scheduler."""


def make(config: Config, session: Session) -> ItemWork:
    """Build the work of one worker. Raises: UsageError if there is no dataset; StorageError if it is out of reach."""
    return CheckWork(config, session)


class CheckWork:
    """One worker's part: reads its shards, then helps others from their end, then says what all have found.

    Workers do not wait for each other: two may at worst read the same last shard.
    """

    def __init__(self, config: Config, session: Session) -> None:
        from get3d_cluster.data.check import by_shard
        from get3d_cluster.data.format import read_index
        from get3d_cluster.data.source import open_source
        from preprocess.lists import read_lists

        self._config = config
        self._wanted = read_lists(config.lists, config.splits)
        self._session = session
        self._source = open_source(config.data)
        self._index = read_index(config.data)
        self._numbers = by_shard(self._index)
        self._folder = session.run.path / "check"
        self._left = shard_order(len(self._index.shards), session.rank, session.world_size)
        self._checked: set[int] = set()
        self._is_told = False

    def position(self) -> Position:
        numbers = range(len(self._index.shards))
        self._checked |= {n for n in numbers if n not in self._checked and self._found(n) is not None}
        return Position(
            step=len(self._checked),
            num_steps=len(self._index.shards),
            images=sum(len(self._numbers[number]) for number in self._checked),
        )

    def is_done(self) -> bool:
        return self._is_told

    def step(self) -> None:
        """Check one shard, or pass over one that was checked; after the last, tell.

        Raises: DifferenceError if anything is wrong.
        """
        from get3d_cluster.data.check import check_shard

        if not self._left:
            self._tell()
            return
        number = self._left[0]
        if self._found(number) is None:
            samples = [self._index.samples[each] for each in self._numbers[number]]
            found = check_shard(self._source, self._index.shards[number], samples)
            self._keep(number, found)
        del self._left[0]

    def close(self) -> None:
        """Nothing is held between steps."""

    def _tell(self) -> None:
        from get3d_cluster.data.check import Finding, duplicates, not_packed, summary

        found = [Finding(**row) for n in range(len(self._index.shards)) for row in self._found(n) or ()]
        found += not_packed(self._index, self._rendered())
        if not self._config.allow_duplicates:
            found += duplicates(self._index)
        listed = self._session.run.path / "check.jsonl"
        write_atomic(listed, "".join(json.dumps(asdict(finding)) + "\n" for finding in found).encode())
        self._is_told = True
        if self._session.is_lead:
            self._session.events.write("checked", images=len(self._index.samples), findings=len(found))
        if found:
            raise DifferenceError(
                f"{self._config.data}: of {len(self._index.samples):,} images {summary(found)}",
                f"all are listed in {listed}; packing again under a new --name mends what is damaged or missing",
            )

    def _rendered(self) -> Sequence[str]:
        from preprocess.pack import rendered_keys

        config = self._config
        return rendered_keys(config.images, config.synsets, self._wanted) if config.images else ()

    def _found(self, number: int) -> list[dict[str, Any]] | None:
        """Return what is known of a shard, or None. What was wrong in an earlier attempt is looked at anew."""
        path = self._path(number)
        if not path.is_file():
            return None
        told = read_json(path)
        is_ours = told["attempt"] == self._session.attempt or not told["found"]
        return told["found"] if told["fingerprint"] == self._index.fingerprint and is_ours else None

    def _keep(self, number: int, found: "Sequence[Finding]") -> None:
        rows = [asdict(finding) for finding in found]
        told = {"fingerprint": self._index.fingerprint, "attempt": self._session.attempt, "found": rows}
        write_json(self._path(number), told)

    def _path(self, number: int) -> Path:
        return self._folder / f"{Path(self._index.shards[number].name).stem}.json"
