"""A training whose dataset lies behind a URL: the same bits, and the images are there before they are asked for."""

import time
from pathlib import Path
from typing import Any

import fsspec
import pytest

from get3d_cluster.config import anchored, differences
from get3d_cluster.data.order import sample_at
from get3d_cluster.errors import StorageError, UsageError
from get3d_cluster.runtime.checkpoint import state_digest
from tests import train_setup as setup

STEPS = 4
"""Holds R1 phases (every 3), generator phases (every 2) and the end of an epoch (20 images, 8 a step)."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return setup.dataset(tmp_path / "data")


@pytest.fixture
def url(folder: Path, tmp_path: Path) -> str:
    """The same dataset in fsspec's memory, under a name that no other test uses."""
    place = f"memory://{tmp_path.name}/data"
    store = fsspec.filesystem("memory")
    for path in folder.iterdir():
        store.pipe_file(f"{place}/{path.name}", path.read_bytes())
    return place


class Watched:
    """Stands before a source; counts the reads of images, and may be out of reach."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.reads, self.is_away = inner, 0, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        if self.is_away:
            raise StorageError(f"{name} is out of reach", "check the network")
        self.reads += 1
        return self.inner.read(name, offset, size)


def trainer(data: str | Path, tmp_path: Path, name: str, **read: Any) -> Any:
    words = [f"data.read.{key}={value}" for key, value in read.items()]
    words.append(f"data.read.cache={tmp_path / 'cache'}")
    return setup.trainer(setup.tiny_config(data, *words), tmp_path / name)


def digest_after(work: Any, steps: int) -> str:
    for _ in range(steps):
        work.step()
    return state_digest(work.state())


@pytest.mark.parametrize(
    "read",
    [
        {},
        pytest.param({"threads": 8, "memory_mb": 0}, marks=pytest.mark.long),
        {"threads": 0, "ahead_mb": 0, "memory_mb": 0, "cache_gb": 1e-6},
    ],
)
def test_a_url_trains_to_the_digest_of_the_folder(
    folder: Path, url: str, tmp_path: Path, read: dict[str, Any]
) -> None:
    near, far = trainer(folder, tmp_path, "near"), trainer(url, tmp_path, "far", **read)
    assert digest_after(far, STEPS) == digest_after(near, STEPS)


def watched(work: Any) -> Watched:
    source = Watched(work._dataset._images._source)
    work._dataset._images._source = source
    return source


def wait_for_what_is_expected(work: Any) -> int:
    """Return how many images were made ahead, once there are no others to come."""
    slots, end_s = work._dataset._ahead._slots, time.monotonic() + 60
    while any(slot.value is None for slot in slots.values()) and time.monotonic() < end_s:
        time.sleep(0.002)
    return len(slots)


def test_the_images_of_the_next_step_are_read_before_it_begins(url: str, tmp_path: Path) -> None:
    work = trainer(url, tmp_path, "far", cache_gb=0, memory_mb=0)  # what is used is forgotten at once
    source = watched(work)
    work.step()
    assert wait_for_what_is_expected(work) == work.config.batch.size
    reads, source.is_away = source.reads, True
    work.step()  # without R1, which looks at the images once more: asks for nothing that is not there
    assert source.reads == reads
    with pytest.raises(StorageError, match=r"cannot read 02958343/.* out of reach"):
        work.step()


def test_what_is_expected_is_what_a_worker_s_own_shards_ask_for(url: str, tmp_path: Path) -> None:
    work = trainer(url, tmp_path, "far")
    work.step()  # looks at more images, once
    named: list[int] = []
    work._dataset.expect = lambda indices: named.extend(map(int, indices))
    asked: list[int] = []
    batch = work._dataset.batch
    work._dataset.batch = lambda indices: (asked.extend(map(int, indices)), batch(indices))[1]
    for _ in range(3):
        named.clear()
        asked.clear()
        position, size = work.counters.position, work.config.batch.size
        work.step()
        wanted = sample_at(work.config.seed, len(work._dataset), position, 2 * size).tolist()
        assert named == wanted
        assert set(asked) == set(wanted[:size])


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("memory://nowhere/cars", "memory://nowhere/cars/index.json is missing"),
        ("memory://", "memory:// names no place"),
        ("s4://bucket/cars", "s4://bucket/cars cannot be opened: Protocol not known: s4"),
    ],
)
def test_a_url_without_a_dataset_is_named_with_a_way_out(tmp_path: Path, place: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        trainer(place, tmp_path, "far")
    assert caught.value.way_out


def test_a_run_goes_on_with_the_same_images_from_elsewhere_and_not_with_others(
    folder: Path, url: str, tmp_path: Path
) -> None:
    near, far = trainer(folder, tmp_path, "near"), trainer(url, tmp_path, "far")
    changed = differences(anchored(near.config, tmp_path), anchored(far.config, tmp_path))
    assert [(each.path, each.changeable) for each in changed] == [("data.path", True)]
    wanted = digest_after(near, 4)
    far.load(_state_after(folder, tmp_path, 2))
    assert digest_after(far, 2) == wanted
    others = trainer(setup.dataset(tmp_path / "others", tint=9), tmp_path, "others")
    with pytest.raises(UsageError, match="is not what this run was trained on"):
        others.load(_state_after(folder, tmp_path, 2))


def _state_after(folder: Path, tmp_path: Path, steps: int) -> Any:
    work = trainer(folder, tmp_path, "before")
    for _ in range(steps):
        work.step()
    return work.state()
