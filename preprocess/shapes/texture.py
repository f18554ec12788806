"""The texture of a model: rectangles painted on one oversampled canvas."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

TEXTURE_PX = 512

Array = npt.NDArray[np.float64]
Colour = tuple[float, ...]
"""Red, green and blue, sRGB in [0, 1]."""

_OVERSAMPLING = 2
_MARGIN_PX = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A rectangle of the texture, in texels, whose margin repeats the edge."""

    x: int
    y: int
    width: int
    height: int

    def uv(self, s: Array, t: Array) -> Array:
        """Map (s, t) in [0, 1], t downwards, to texture coordinates [..., 2], v upwards."""
        u = self.x + _MARGIN_PX + s * (self.width - 2 * _MARGIN_PX)
        v = self.y + _MARGIN_PX + t * (self.height - 2 * _MARGIN_PX)
        return np.stack([u / TEXTURE_PX, 1 - v / TEXTURE_PX], axis=-1)

    def paint(self, canvas: Array, colour_at: Callable[[Array, Array], Array]) -> None:
        """Fill the rectangle of ``canvas`` with ``colour_at(s, t)``, [H, W] each, as [H, W, 3]."""
        s, t = _texel_centres(self.width), _texel_centres(self.height)
        canvas[_span(self.y, self.height), _span(self.x, self.width)] = colour_at(*np.meshgrid(s, t))


def canvas_of(colour: Colour) -> Array:
    """Return an oversampled canvas of one colour."""
    return np.full((TEXTURE_PX * _OVERSAMPLING, TEXTURE_PX * _OVERSAMPLING, 3), colour, dtype=np.float64)


def plain(like: Array, colour: Colour) -> Array:
    """Return one colour for each element of ``like``: [..., 3]."""
    return np.full((*like.shape, 3), colour, dtype=np.float64)


def png_bytes(canvas: Array) -> bytes:
    """Average the oversampled canvas and encode it; colours are sRGB values as they stand."""
    n = TEXTURE_PX
    pixels = canvas.reshape(n, _OVERSAMPLING, n, _OVERSAMPLING, 3).mean((1, 3))
    image = Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=6)
    return out.getvalue()


def _texel_centres(size: int) -> Array:
    texels = (np.arange(size * _OVERSAMPLING) + 0.5) / _OVERSAMPLING
    return np.clip((texels - _MARGIN_PX) / (size - 2 * _MARGIN_PX), 0, 1)


def _span(first: int, size: int) -> slice:
    return slice(first * _OVERSAMPLING, (first + size) * _OVERSAMPLING)
