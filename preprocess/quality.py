"""What makes a rendered view fit for training, and the bytes it is stored as. Pure: arrays and bytes only.

Blender says "finished" to missing textures, empty models and full disks alike, so each view is judged by its pixels.
"""

import hashlib
import io
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

Pixels = NDArray[np.uint8]
"""[H, W, 4] red, green, blue, alpha; straight alpha."""

PNG_LEVEL = 3
"""zlib level of stored images: below 1 % of the time of a render; higher ones gain a tenth of the size."""
OPAQUE = 128
"""Alpha from which a pixel's colour is judged."""
MAGENTA_SPREAD = 8
"""Blender paints a missing texture (1, 0, 1): red and blue differ by less than this after lighting."""
MAGENTA_DARKEST = 48


@dataclass(frozen=True, kw_only=True, slots=True)
class Gates:
    """What a view must satisfy; a model with one view that does not is quarantined."""

    __changeable__: ClassVar[bool] = True

    min_coverage: float = 0.005
    """Smallest share of the image that the object covers; empty and collapsed models fall below."""
    max_coverage: float = 0.95
    """Largest share of the image that the object covers."""
    max_magenta: float = 0.02
    """Largest share of the object in the colour of a missing texture; 1 accepts models that are truly magenta."""
    min_brightness: float = 0.01
    """Smallest mean brightness of the object, 0 to 1; broken normals and not-a-number coordinates render black."""
    max_edge: float = 0.02
    """Largest share of the frame's outermost pixels that the object covers. GET3D's size of 0.9 lets corners of boxy
    cars touch the frame; 0 accepts none of it."""

    max_dropped_faces: float = 0.1
    """Largest share of a file's faces that Blender may have dropped as malformed."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_coverage < self.max_coverage <= 1:
            raise ValueError(
                f"min_coverage={self.min_coverage} must be below max_coverage={self.max_coverage}, both in [0, 1]"
            )

    def without_magenta(self) -> "Gates":
        """Return the same gates for images in which magenta is wanted where a texture is missing."""
        return replace(self, max_magenta=1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Defect:
    """Why a view is not fit for training."""

    code: str
    message: str


def decode(data: bytes) -> Pixels:
    """Return the pixels of an image file. Raises: ValueError if it is damaged, cut short or not RGBA with 8 bits."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.mode != "RGBA":
                raise ValueError(f"the image is {image.mode}, not RGBA with 8 bits")
            return np.array(image, dtype=np.uint8)
    except (OSError, SyntaxError, UnidentifiedImageError) as error:
        raise ValueError(f"the image is damaged: {error}") from error


def encode(pixels: Pixels) -> bytes:
    """Return ``pixels`` as a PNG file without metadata: equal pixels give equal bytes (Blender's hold times)."""
    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(file, "PNG", compress_level=PNG_LEVEL)
    return file.getvalue()


def without_hidden_colour(pixels: Pixels) -> Pixels:
    """Return a copy with black where alpha is 0: a linear resize mixes hidden colour into the silhouette."""
    return np.where(pixels[..., 3:] > 0, pixels, np.uint8(0))


def coverage(pixels: Pixels) -> float:
    """Return the share of the image that the object covers; a half-covered pixel counts half."""
    return float(np.mean(pixels[..., 3], dtype=np.float64)) / 255


def magenta_share(pixels: Pixels) -> float:
    """Return the share of the object's opaque pixels in the colour of a missing texture."""
    red, green, blue = pixels[pixels[..., 3] >= OPAQUE][:, :3].astype(np.int16).T
    weaker = np.minimum(red, blue)
    magenta = (np.abs(red - blue) < MAGENTA_SPREAD) & (weaker >= MAGENTA_DARKEST) & (4 * green <= weaker)
    return float(magenta.mean()) if magenta.size else 0.0


def brightness(pixels: Pixels) -> float:
    """Return the mean of the object's opaque pixels, 0 to 1."""
    opaque = pixels[pixels[..., 3] >= OPAQUE][:, :3]
    return float(opaque.mean()) / 255 if opaque.size else 0.0


def edge_share(pixels: Pixels) -> float:
    """Return the share of the frame's outermost pixels that the object covers."""
    alpha = pixels[..., 3]
    frame = np.concatenate([alpha[0], alpha[-1], alpha[1:-1, 0], alpha[1:-1, -1]])
    return float(np.mean(frame >= OPAQUE))


def defect_of(pixels: Pixels, resolution: int, gates: Gates) -> Defect | None:
    """Return the first reason not to train on a view, or None."""
    if pixels.shape != (resolution, resolution, 4):
        return Defect(code="size", message=f"the image is {pixels.shape}, not {(resolution, resolution, 4)}")
    covered, edge = coverage(pixels), edge_share(pixels)
    magenta, light = magenta_share(pixels), brightness(pixels)
    allowed = f"allowed: {gates.min_coverage} to {gates.max_coverage}"
    checks = (
        ("blank", covered == 0, "nothing is visible: it is transparent, or a stray vertex makes it tiny"),
        ("edge", edge > gates.max_edge, f"the object covers {edge:.1%} of the frame's edge: it is cut off"),
        (
            "coverage",
            not gates.min_coverage <= covered <= gates.max_coverage,
            f"the object covers {covered:.4f} of the image, {allowed}",
        ),
        (
            "magenta",
            magenta > gates.max_magenta,
            f"{magenta:.1%} of the object is magenta: a texture is missing",
        ),
        ("black", light < gates.min_brightness, f"the mean brightness of the object is {light:.4f}"),
    )
    return next((Defect(code=code, message=message) for code, failed, message in checks if failed), None)


def sha256_of_pixels(pixels: Pixels) -> str:
    """Return the digest of the decoded image: equal across versions of zlib, where the file's may differ."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
