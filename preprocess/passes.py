"""Depth and normals beside the images: read from Blender's file, stored as PNG with 16 bits. Pure: bytes and arrays.

Depth is the distance from the camera's plane in steps of 1/16384 of the unit of the scene; 0 where nothing is seen.
Normals are those of the surface in the axes of the model's file and of the trainer (Y up), each coordinate n stored as
1 + (n + 1) / 2 * 65534, so a 0 in all three is where nothing is seen. Both are hard at the silhouette: where alpha is 0
there is nothing, and neither where an antialiased edge is missed by the ray that they come from.
"""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from preprocess.quality import PNG_LEVEL, Pixels

DEPTH_STEPS = 16384
"""Steps of depth in one unit: 4 units in 16 bits; the camera stands 1.2 from the origin."""
FARTHEST = 4.0
NORMAL_STEPS = 65534
EXR_MAGIC = 20000630
_FLOAT = 2
"""Type of a channel with 32-bit floats. Source: OpenEXR file layout."""
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_COLOUR = {1: 0, 3: 2}
"""Colour type by the number of channels: grey, red green blue. Source: PNG specification."""

Floats = NDArray[np.float32]
Words = NDArray[np.uint16]


def read_exr(data: bytes) -> dict[str, Floats]:  # [H, W] each
    """Return the channels of an OpenEXR file by the last two parts of their names, such as ``Depth.Z``.

    Reads what Blender writes on request: one part, scan lines, 32-bit floats, uncompressed.

    Raises: ValueError if it is another kind of file, or cut short.
    """
    try:
        attributes, start = _exr_header(data)
        names = _exr_channels(attributes["channels"])
        low_x, low_y, high_x, high_y = struct.unpack("<4i", attributes["dataWindow"])
        if attributes["compression"] != b"\0":
            raise ValueError("the pass file is compressed")
    except (struct.error, KeyError, IndexError) as error:
        raise ValueError(f"the pass file is damaged: {error}") from error
    height, width = high_y - low_y + 1, high_x - low_x + 1
    line = np.dtype([("y", "<i4"), ("size", "<i4"), ("values", "<f4", (len(names), width))])
    start += 8 * height  # the table of where each line begins; uncompressed ones follow each other
    if len(data) != start + height * line.itemsize:
        raise ValueError("the pass file is cut short")
    rows = np.frombuffer(data, line, height, start)
    values = np.empty((height, len(names), width), np.float32)
    values[rows["y"] - low_y] = rows["values"]
    return {".".join(name.split(".")[-2:]): values[:, index] for index, name in enumerate(names)}


def depth_words(channels: dict[str, Floats], pixels: Pixels) -> Words:  # [H, W]
    """Return the depth of what is seen."""
    depth = channels["Depth.Z"].astype(np.float64)
    is_seen = (pixels[..., 3] > 0) & (depth < FARTHEST)  # Blender writes 1e10 where its ray hit nothing
    steps = np.rint(np.where(is_seen, depth, 0.0) * DEPTH_STEPS)
    return np.where(is_seen, np.clip(steps, 1, 65535), 0).astype(np.uint16)


def normal_words(channels: dict[str, Floats], pixels: Pixels) -> Words:  # [H, W, 3]
    """Return the normals of what is seen, in the axes of the model's file: Blender's (x, y, z) is (x, z, -y) there."""
    x, y, z = (channels[f"Normal.{axis}"].astype(np.float64) for axis in "XYZ")
    normals = np.stack([x, z, -y], axis=-1)
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    is_seen = (pixels[..., 3:] > 0) & (length > 0)
    unit = np.divide(normals, length, out=np.zeros_like(normals), where=is_seen)
    return np.where(is_seen, 1 + np.rint((unit + 1) / 2 * NORMAL_STEPS), 0).astype(np.uint16)


def encode_words(words: Words) -> bytes:
    """Return a PNG file with 16 bits a channel, [H, W] grey or [H, W, 3], without metadata."""
    height, width = words.shape[:2]
    channels = words.shape[2] if words.ndim == 3 else 1
    lines = words.astype(">u2").reshape(height, -1).view(np.uint8)
    step = (
        2 * channels
    )  # bytes of a pixel: each is stored as its difference from the one on its left (filter 1)
    left = np.concatenate([np.zeros((height, step), np.uint8), lines[:, :-step]], axis=1)
    filtered = np.concatenate([np.ones((height, 1), np.uint8), lines - left], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 16, _PNG_COLOUR[channels], 0, 0, 0)
    body = zlib.compress(filtered.tobytes(), PNG_LEVEL)
    return _PNG_SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _exr_header(data: bytes) -> tuple[dict[str, bytes], int]:
    """Return the attributes, and where the header ends."""
    if struct.unpack("<I", data[:4])[0] != EXR_MAGIC:
        raise ValueError("the pass file is no OpenEXR file")
    attributes, at = {}, 8
    while data[at] != 0:
        name, at = _text(data, at)
        _, at = _text(data, at)
        size = struct.unpack("<I", data[at : at + 4])[0]
        attributes[name], at = data[at + 4 : at + 4 + size], at + 4 + size
    return attributes, at + 1


def _exr_channels(data: bytes) -> list[str]:
    names, at = [], 0
    while data[at] != 0:
        name, at = _text(data, at)
        kind = struct.unpack("<i", data[at : at + 4])[0]
        if kind != _FLOAT:
            raise ValueError(f"channel {name} of the pass file is not of 32-bit floats")
        names.append(name)
        at += 16
    return names


def _text(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(b"\0", at)
    return data[at:end].decode(), end + 1
