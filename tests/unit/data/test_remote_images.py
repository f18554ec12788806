"""A dataset behind a URL: the same images, copied to this machine's disk, whatever happens to the copies."""

import pickle
from pathlib import Path

import pytest
import torch

from get3d_cluster.data import source as source_module
from get3d_cluster.data.cache import PieceCache
from get3d_cluster.data.config import ReadConfig
from get3d_cluster.data.dataset import ImageDataset
from get3d_cluster.data.format import PackedImages, digest_of
from get3d_cluster.errors import StorageError, UsageError
from tests.train_setup import dataset as make_dataset

NUM_IMAGES = 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "data")


@pytest.fixture
def cache(tmp_path: Path) -> PieceCache:
    return PieceCache(tmp_path / "cache", 10**6)


def url(folder: Path) -> str:
    return f"file://{folder}"


class Spoiling:
    """Stands before a source and spoils the first reads of images."""

    def __init__(self, inner, count: int, how) -> None:
        self.inner, self.count, self.how, self.reads = inner, count, how, 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def read(self, name, offset=0, size=None):
        data = self.inner.read(name, offset, size)
        if size is None:
            return data
        self.reads += 1
        if self.reads <= self.count:
            return self.how(data)
        return data


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def out_of_reach(_data: bytes) -> bytes:
    raise StorageError("s3://bucket/shard is out of reach", "check the network")


def test_images_cameras_and_fingerprint_are_those_of_the_folder(folder: Path, cache: PieceCache) -> None:
    near, far = PackedImages(folder), PackedImages(url(folder), cache)
    assert far.fingerprint == near.fingerprint
    assert list(far.samples) == list(near.samples)
    assert [far.read(i) for i in range(NUM_IMAGES)] == [near.read(i) for i in range(NUM_IMAGES)]


def test_what_was_read_once_is_not_fetched_again_by_any_process(folder: Path, cache: PieceCache) -> None:
    first = PackedImages(url(folder), cache)
    before = [first.read(i) for i in range(NUM_IMAGES)]
    again = PackedImages(url(folder), PieceCache(cache.folder, 10**6))
    again._source = Spoiling(again._source, 10**6, out_of_reach)
    assert [again.read(i) for i in range(NUM_IMAGES)] == before


def test_a_damaged_copy_is_fetched_again_and_replaced(folder: Path, cache: PieceCache) -> None:
    images = PackedImages(url(folder), cache)
    good = images.read(0)
    copy = cache._path(f"{digest_of(good)}-{len(good)}")
    for bad in (flipped(good), good[:5], b""):
        copy.write_bytes(bad)
        assert images.read(0) == good
        assert copy.read_bytes() == good


def test_bytes_damaged_on_their_way_are_fetched_once_more(folder: Path, cache: PieceCache) -> None:
    images = PackedImages(url(folder), cache)
    images._source = Spoiling(images._source, 1, flipped)
    assert digest_of(images.read(3)) == images.samples[3].xxh3_64
    assert images._source.reads == 2


def test_what_stays_damaged_is_named_and_never_kept(folder: Path, cache: PieceCache) -> None:
    images = PackedImages(url(folder), cache)
    images._source = Spoiling(images._source, 10**6, flipped)
    with pytest.raises(
        UsageError, match=r"02958343/0000/003 in file://.*shard-00000.tar is damaged"
    ) as caught:
        images.read(3)
    assert "run check" in caught.value.way_out
    assert images._source.reads == 2
    assert not list(cache.folder.glob("*/*"))


def test_a_store_out_of_reach_is_told_with_the_image_that_was_wanted(folder: Path, cache: PieceCache) -> None:
    images = PackedImages(url(folder), cache)
    images._source = Spoiling(images._source, 10**6, out_of_reach)
    with pytest.raises(StorageError, match="cannot read 02958343/0000/003: s3://bucket/shard"):
        images.read(3)


@pytest.mark.parametrize("threads", [0, 1, 6])
@pytest.mark.parametrize("cache_gb", [0.0, 2e-6, 1.0])
def test_batches_are_the_same_bits_with_any_threads_and_any_cache(
    folder: Path, tmp_path: Path, threads: int, cache_gb: float
) -> None:
    read = ReadConfig(threads=threads, memory_mb=0, cache=tmp_path / "cache", cache_gb=cache_gb)
    far, near = ImageDataset(url(folder), 8, read=read), ImageDataset(folder, 8)
    order = [n * 7 % NUM_IMAGES for n in range(2 * NUM_IMAGES)]
    for start in range(0, len(order), 5):
        far.expect(order[start : start + 15])
        for found, wanted in zip(
            far.batch(order[start : start + 5]), near.batch(order[start : start + 5]), strict=True
        ):
            assert torch.equal(found, wanted)


def test_what_is_expected_is_read_before_it_is_asked_for(folder: Path, tmp_path: Path) -> None:
    far = ImageDataset(url(folder), 8, read=ReadConfig(threads=4, memory_mb=0, cache_gb=0))
    source = far._images._source = Spoiling(far._images._source, 0, flipped)
    far.expect(range(10))
    for number in range(10):
        far._ahead.take(number)
    assert source.reads == 10
    far.batch([11, 12])
    assert source.reads == 12


def test_a_copy_in_a_spawned_process_gives_the_same_batches(folder: Path, tmp_path: Path) -> None:
    far = ImageDataset(url(folder), 8, read=ReadConfig(cache=tmp_path / "cache"))
    far.expect(range(10))
    there = pickle.loads(pickle.dumps(far))
    assert torch.equal(there.batch([3, 4])[0], far.batch([3, 4])[0])
    assert there.fingerprint == far.fingerprint


def test_a_missing_dataset_or_shard_is_told_when_it_is_opened(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing/index.json is missing"):
        PackedImages(f"{url(folder)}/nothing")
    (folder / "shard-00000.tar").unlink()
    with pytest.raises(UsageError, match=r"shard-00000\.tar"):
        PackedImages(url(folder))


def test_fsspec_is_not_imported_for_a_folder(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(source_module, "RemoteSource", None)
    assert not PackedImages(folder).is_remote
