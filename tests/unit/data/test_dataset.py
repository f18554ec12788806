import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from get3d_cluster.data.config import ReadConfig
from get3d_cluster.data.dataset import ImageDataset, prepared
from get3d_cluster.data.format import (
    INDEX_NAME,
    Index,
    Member,
    Sample,
    Shard,
    digest_of,
    index_bytes,
    write_shard,
)
from get3d_cluster.errors import UsageError


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def dataset_of(folder: Path, files: list[bytes], resolution: int = 8) -> Path:
    members = [Member(name=f"s/m/{i:03d}.png", data=data) for i, data in enumerate(files)]
    data, places = write_shard(members)
    (folder / "shard-00000.tar").write_bytes(data)
    samples = [
        Sample(
            key=f"s/m/{i:03d}",
            shard=0,
            offset=offset,
            size=size,
            xxh3_64=digest_of(files[i]),
            rotation_deg=90.0 * i,
            elevation_deg=10.0 * i,
        )
        for i, (offset, size) in enumerate(places)
    ]
    shard = Shard(name="shard-00000.tar", size=len(data), xxh3_64=digest_of(data))
    (folder / INDEX_NAME).write_bytes(
        index_bytes(Index(resolution=resolution, shards=(shard,), samples=tuple(samples)))
    )
    return folder


@pytest.fixture
def random_files() -> list[bytes]:
    rng = np.random.Generator(np.random.PCG64(0))
    return [png(rng.integers(0, 256, (8, 8, 4), dtype=np.uint8)) for _ in range(4)]


def test_a_batch_is_premultiplied_on_black_with_coverage_as_mask(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[0, 0] = (200, 100, 0, 255)
    pixels[0, 1] = (200, 100, 0, 51)  # a fifth covered
    pixels[0, 2] = (77, 77, 77, 0)  # hidden colour must not show
    images, cameras = ImageDataset(dataset_of(tmp_path, [png(pixels)]), 8).batch([0])
    assert images.shape == (1, 4, 8, 8)
    assert images.is_contiguous()
    rgb = ((images[0, :3] + 1) * 127.5).round().permute(1, 2, 0)
    assert rgb[0, 0].tolist() == [200, 100, 0]
    assert rgb[0, 1].tolist() == [40, 20, 0]
    assert rgb[0, 2].tolist() == [0, 0, 0]
    assert (images[0, :3, 1:] == -1).all()
    assert images[0, 3, 0, :3].tolist() == pytest.approx([1, 0.2, 0])
    assert cameras.tolist() == [[0, pytest.approx(math.pi / 2)]]


def test_a_binary_mask_takes_any_coverage_as_covered(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[0, 0] = (200, 100, 0, 1)
    images, _ = ImageDataset(dataset_of(tmp_path, [png(pixels)]), 8, mask="binary").batch([0])
    assert images[0, 3].sum() == 1
    assert images[0, 0, 0, 0] == pytest.approx(200 / 127.5 - 1)


def test_cameras_are_azimuth_and_polar_angle(tmp_path: Path, random_files: list[bytes]) -> None:
    _, cameras = ImageDataset(dataset_of(tmp_path, random_files), 8).batch([3, 1])
    expected = torch.tensor([[1.5 * math.pi, math.radians(60)], [0.5 * math.pi, math.radians(80)]])
    torch.testing.assert_close(cameras, expected)


@pytest.mark.parametrize(
    "read",
    [
        ReadConfig(memory_mb=0, threads=0),
        ReadConfig(memory_mb=1, threads=0),
        ReadConfig(memory_mb=0, threads=3),
        ReadConfig(memory_mb=1, threads=1, ahead_mb=0),
    ],
)
def test_the_same_indices_give_the_same_bits_cached_or_not(
    tmp_path: Path, random_files: list[bytes], read: ReadConfig
) -> None:
    dataset = ImageDataset(dataset_of(tmp_path, random_files), 8, read=read)
    first, _ = dataset.batch([2, 0, 2])
    first_again, _ = dataset.batch([2, 0, 2])
    assert torch.equal(first, first_again)
    first.zero_()  # a caller may overwrite its batch
    assert torch.equal(dataset.batch([2, 0, 2])[0], first_again)
    assert torch.equal(first_again[0], first_again[2])


def test_the_cache_is_bounded(tmp_path: Path, random_files: list[bytes]) -> None:
    dataset = ImageDataset(dataset_of(tmp_path, random_files), 8, read=ReadConfig(memory_mb=1))
    dataset._cache._max_images = 2
    dataset.batch([0, 1, 2, 3])
    assert list(dataset._cache._kept) == [2, 3]


def test_a_smaller_size_averages_coverage_and_light_without_a_dark_or_bright_rim() -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :3] = (240, 120, 60, 255)  # the edge falls into the middle of a 2 x 2 block
    pixels[:, 3:] = (255, 255, 255, 0)  # hidden white
    small = prepared(Image.fromarray(pixels), 4, "coverage")
    assert small[0, 0].tolist() == [240, 120, 60, 255]
    assert small[0, 1].tolist() == [120, 60, 30, 128]
    assert small[0, 2].tolist() == [0, 0, 0, 0]


def test_a_larger_size_keeps_colour_below_coverage() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    large = prepared(Image.fromarray(rng.integers(0, 256, (4, 4, 4), dtype=np.uint8)), 16, "coverage").astype(
        int
    )
    assert large.shape == (16, 16, 4)
    assert (large[..., :3] <= large[..., 3:] + 1).all()


def test_a_resized_binary_mask_stays_binary() -> None:
    rng = np.random.Generator(np.random.PCG64(2))
    small = prepared(Image.fromarray(rng.integers(0, 2, (8, 8, 4), dtype=np.uint8) * 200), 4, "binary")
    assert set(np.unique(small[..., 3])) <= {0, 255}


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    good = png(np.zeros((8, 8, 4), np.uint8))
    dataset = ImageDataset(dataset_of(tmp_path, [good, good[:40], b"no image"]), 8)
    for number in (1, 2):
        with pytest.raises(UsageError, match=rf"s/m/00{number} in .*shard-00000.tar is not an image"):
            dataset.batch([number])


def reference(rgba: np.ndarray, resolution: int, mask: str) -> np.ndarray:
    """Return the same pixels in plain arithmetic, channel by channel."""
    coverage = rgba[..., 3:].astype(np.uint16)
    if mask == "binary":
        coverage = np.where(coverage > 0, 255, 0).astype(np.uint16)
    pixels = np.concatenate([(rgba[..., :3] * coverage + 127) // 255, coverage], axis=-1).astype(np.uint8)
    if len(rgba) == resolution:
        return pixels
    kind = Image.Resampling.BOX if resolution < len(rgba) else Image.Resampling.BILINEAR
    size = (resolution, resolution)
    channels = [Image.fromarray(np.ascontiguousarray(pixels[..., c])).resize(size, kind) for c in range(4)]
    pixels = np.stack([np.asarray(channel) for channel in channels], axis=-1)
    if mask == "binary":
        pixels[..., 3] = np.where(pixels[..., 3] > 0, 255, 0)
    return pixels


@pytest.mark.parametrize("mask", ["coverage", "binary"])
@pytest.mark.parametrize("resolution", [4, 5, 16, 23])
def test_pixels_are_those_of_plain_arithmetic(mask, resolution) -> None:
    levels = np.arange(256, dtype=np.uint8)
    pixels = np.stack(
        [levels.repeat(256), np.tile(levels[::-1], 256), levels.repeat(256)[::-1], np.tile(levels, 256)], -1
    ).reshape(256, 256, 4)  # every colour with every coverage
    rng = np.random.Generator(np.random.PCG64(3))
    small = rng.integers(0, 256, (16, 16, 4), dtype=np.uint8)
    for rgba, size in ((pixels, 256), (small, resolution)):
        found = prepared(Image.fromarray(rgba), size, mask)
        np.testing.assert_array_equal(found, reference(rgba, size, mask))
