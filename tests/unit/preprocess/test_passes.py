"""Depth and normals: Blender's file is read, what is stored has the units that the documentation says."""

import importlib.util
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preprocess.passes import depth_words, encode_words, normal_words, read_exr

spec = importlib.util.spec_from_file_location(
    "fake_blender_worker", Path(__file__).parents[2] / "fake_blender_worker.py"
)
fake = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fake)


def seen(size: int = 4) -> np.ndarray:
    pixels = np.full((size, size, 4), 255, np.uint8)
    pixels[0, 0, 3] = 0
    return pixels


def decoded(png: bytes) -> np.ndarray:
    """Decode 16-bit PNG with filter 1: Pillow keeps 8 bits of colour images."""
    width, height, depth, kind = struct.unpack(">IIBB", png[16:26])
    assert depth == 16
    channels = {0: 1, 2: 3}[kind]
    length = struct.unpack(">I", png[33:37])[0]
    lines = np.frombuffer(zlib.decompress(png[41 : 41 + length]), np.uint8).reshape(height, -1)
    assert (lines[:, 0] == 1).all()
    steps = lines[:, 1:].reshape(height, width, 2 * channels)
    return (
        np.cumsum(steps, axis=1, dtype=np.uint8)
        .reshape(height, -1)
        .view(">u2")
        .reshape(height, width, channels)
    )


def test_the_channels_of_blender_s_file_are_read() -> None:
    channels = read_exr(fake.passes(5))
    assert sorted(channels) == ["Depth.Z", "Normal.X", "Normal.Y", "Normal.Z"]
    np.testing.assert_array_equal(channels["Depth.Z"], np.full((5, 5), 1.2, np.float32))
    assert channels["Normal.Z"].min() == 1


def test_every_truncation_and_other_files_are_refused() -> None:
    data = fake.passes(4)
    for length in [*range(0, 200, 3), len(data) - 1]:
        with pytest.raises(ValueError):
            read_exr(data[:length])
    with pytest.raises(ValueError, match="compressed"):
        read_exr(data.replace(b"compression\0kind\0\1\0\0\0\0", b"compression\0kind\0\1\0\0\0\3"))


def test_depth_is_in_steps_of_the_scene_s_unit_and_nothing_is_zero() -> None:
    words = depth_words(read_exr(fake.passes(4)), seen())
    assert words[0, 0] == 0
    assert words[1, 1] == round(1.2 * 16384)
    far = depth_words({"Depth.Z": np.full((4, 4), 1e10, np.float32)}, seen())
    assert far[1, 1] == 0  # an antialiased edge whose ray hit nothing


def test_normals_are_in_the_axes_of_the_file_and_nothing_is_zero() -> None:
    words = normal_words(read_exr(fake.passes(4)), seen())
    assert words[0, 0].tolist() == [0, 0, 0]
    none = normal_words({f"Normal.{axis}": np.zeros((4, 4), np.float32) for axis in "XYZ"}, seen())
    assert not none.any()
    np.testing.assert_allclose((words[1, 1] - 1.0) / 65534 * 2 - 1, [0, 1, 0], atol=2e-5)  # Blender's Z is up


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_sixteen_bits_are_stored_exactly_and_the_same_each_time(shape: tuple) -> None:
    words = np.random.default_rng(0).integers(0, 65536, shape, dtype=np.uint16)
    png = encode_words(words)
    assert encode_words(words) == png
    np.testing.assert_array_equal(decoded(png).reshape(shape), words)


def test_other_programs_read_the_files(tmp_path: Path) -> None:
    words = np.arange(35, dtype=np.uint16).reshape(5, 7) * 1800
    (tmp_path / "a.png").write_bytes(encode_words(words))
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), words)
    (tmp_path / "b.png").write_bytes(encode_words(np.stack([words] * 3, axis=-1)))
    with Image.open(tmp_path / "b.png") as image:
        assert image.size == (7, 5)
        image.load()
