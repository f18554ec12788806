"""Pictures for people: contact sheets with captions, shaded geometry, turntables. Numpy and Pillow only.

Letters: R rows, C columns, H W pixels. Images are uint8 or floats in [0, 1]; a fourth channel is coverage,
with the colours premultiplied (over black), as the generator and the data hold them. Row 0 is the top.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from get3d_cluster.export.mesh import Faces, Floats, Pixels
from get3d_cluster.storage.local import write_atomic

Array = NDArray[np.generic]
Colour = tuple[int, int, int]

BACKGROUND: Colour = (205, 208, 212)
"""Light neutral grey: white and black cars both stand out from it, on a dark page as on a light one."""

INK: Colour = (40, 43, 48)
CLAY = (0.30, 0.36, 0.45)
"""Surface colour of shaded geometry, linear; darker than ``BACKGROUND`` in any light."""

READABLE_PX = 144
"""Images smaller than this are enlarged in a contact sheet by a whole factor, each pixel a square."""

LARGEST_FACTOR = 3


def over_background(
    images: Array,  # [..., H, W, 3 or 4] premultiplied
    background: Colour = BACKGROUND,
) -> Pixels:  # [..., H, W, 3]
    """Lay images with coverage over ``background``; images without are only converted.

    Raises: ValueError if there are neither 3 nor 4 channels.
    """
    if images.ndim < 3 or images.shape[-1] not in {3, 4}:
        raise ValueError(f"images must be [..., H, W, 3 or 4], not {list(images.shape)}")
    values = _as_float(images)
    if values.shape[-1] == 3:
        return _as_pixels(values)
    return _as_pixels(values[..., :3] + (1.0 - values[..., 3:]) * (np.array(background) / 255.0))


def contact_sheet(
    images: Array,  # [R, C, H, W, 3 or 4] premultiplied
    *,
    title: str = "",
    row_captions: Sequence[str] = (),  # R or none
    background: Colour = BACKGROUND,
) -> Image.Image:
    """Lay images out in a grid, with a title above and a caption over each row; small images are enlarged.

    Raises: ValueError if the captions are not as many as the rows.
    """
    num_rows, num_columns = images.shape[:2]
    if row_captions and len(row_captions) != num_rows:
        raise ValueError(f"{len(row_captions)} row captions for {num_rows} rows")
    cells = enlarged(over_background(images, background))
    height, width = cells.shape[2:4]
    gap, margin = max(2, width // 48), max(10, width // 16)
    header = 34 if title else 0
    caption = 24 if row_captions else 0
    grid_width = num_columns * (width + gap) - gap
    title_width = round(ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength(title, _font(18)))
    sheet = Image.new(
        "RGB",
        (
            2 * margin + max(grid_width, title_width),
            2 * margin + header + num_rows * (height + gap + caption) - gap,
        ),
        background,
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, margin), title, INK, _font(18))
    for row in range(num_rows):
        top = margin + header + row * (height + gap + caption)
        if row_captions:
            draw.text((margin, top + 3), row_captions[row], INK, _font(14))
        for column in range(num_columns):
            sheet.paste(Image.fromarray(cells[row, column]), (margin + column * (width + gap), top + caption))
    return sheet


def write_png(path: Path, picture: Image.Image | Pixels) -> None:
    """Write a picture as PNG.

    Raises: StorageError if ``path`` cannot be written.
    """
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=6)
    write_atomic(path, buffer.getvalue())


def turntable_gif(
    path: Path,
    frames: Array,  # [N, H, W, 3 or 4] premultiplied
    *,
    fps: float = 12.0,
    background: Colour = BACKGROUND,
) -> None:
    """Write frames as a GIF that loops for ever; small frames are enlarged.

    One palette for all frames, without dithering, or flat areas would flicker. GIF counts time in 1/100 s.

    Raises: ValueError if there is no frame; StorageError if ``path`` cannot be written.
    """
    if not len(frames):
        raise ValueError("a turntable needs at least one frame")
    pictures = [Image.fromarray(frame) for frame in enlarged(over_background(frames, background))]
    palette = _shared_palette(pictures)
    indexed = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures]
    buffer = io.BytesIO()
    indexed[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=indexed[1:],
        duration=10 * max(2, round(100.0 / fps)),
        loop=0,
        optimize=False,
    )
    write_atomic(path, buffer.getvalue())


def shade(
    vertices: Floats,  # [V, 3] world
    faces: Faces,  # [F, 3]
    triangle_ids: NDArray[np.integer],  # [..., H, W] 0 = empty, i + 1 = face i, as `raster.visibility` gives
    cameras: Floats,  # [..., 3] where each camera stands, world
    *,
    supersampling: int = 1,
) -> Floats:  # [..., H / supersampling, W / supersampling, 4] premultiplied, [0, 1]
    """Shade each pixel by the normal of its face: a light at the camera and a weaker sky above.

    Faces seen from behind (a surface turned inside out) come out red, so that the picture shows the fault.

    Raises: ValueError if the image cannot be divided by ``supersampling``.
    """
    normals = face_normals(vertices, faces)
    to_camera = cameras[..., None, :] - vertices[faces].mean(axis=1)  # [..., F, 3]
    facing = (to_camera * normals).sum(axis=-1) / np.linalg.norm(to_camera, axis=-1)
    light = 0.16 + 0.62 * np.abs(facing) + 0.22 * (0.5 + 0.5 * normals[:, 1])
    tint = np.where(facing[..., None] >= 0.0, CLAY, (0.75, 0.12, 0.08))
    palette = _display(tint * light[..., None])  # [..., F, 3]
    return downsampled(_looked_up(palette, triangle_ids), supersampling)


def downsampled(
    images: NDArray[np.float64],  # [..., S H, S W, C]
    factor: int,  # S
) -> Floats:  # [..., H, W, C]
    """Average blocks of ``factor`` x ``factor`` pixels.

    Raises: ValueError if the image cannot be divided so.
    """
    *lead, height, width, channels = images.shape
    if height % factor or width % factor:
        raise ValueError(f"images of {height} x {width} pixels cannot be divided by supersampling={factor}")
    blocks = images.reshape(*lead, height // factor, factor, width // factor, factor, channels)
    return np.asarray(blocks.mean(axis=(-4, -2)), np.float32)


def face_normals(
    vertices: Floats,  # [V, 3]
    faces: Faces,  # [F, 3]
) -> Floats:  # [F, 3]
    """Return unit normals of the faces; zero for a face without an area."""
    a, b, c = vertices[faces].astype(np.float64).transpose(1, 0, 2)
    normals = np.cross(b - a, c - a)
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    unit = np.divide(normals, lengths, out=np.zeros_like(normals), where=lengths > 0.0)
    return np.asarray(unit, np.float32)


def enlarged(
    pictures: Pixels,  # [..., H, W, 3]
) -> Pixels:  # [..., k H, k W, 3]
    """Repeat each pixel of small pictures k = 1, 2 or 3 times, so that people can see them."""
    factor = min(LARGEST_FACTOR, max(1, -(-READABLE_PX // pictures.shape[-2])))
    return pictures.repeat(factor, axis=-3).repeat(factor, axis=-2)


def _looked_up(palette: NDArray[np.float64], triangle_ids: NDArray[np.integer]) -> NDArray[np.float64]:
    lead = palette.shape[:-2]
    opaque = np.concatenate([palette, np.ones((*palette.shape[:-1], 1))], axis=-1)
    table = np.concatenate([np.zeros((*lead, 1, 4)), opaque], axis=-2).reshape(-1, palette.shape[-2] + 1, 4)
    ids = triangle_ids.reshape(len(table), -1)
    return np.take_along_axis(table, ids[..., None].astype(np.int64), axis=1).reshape(*triangle_ids.shape, 4)


def _shared_palette(pictures: Sequence[Image.Image]) -> Image.Image:
    few = pictures[:: max(1, len(pictures) // 8)]
    strip = Image.fromarray(np.concatenate([np.asarray(p) for p in few], axis=0))
    return strip.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def _display(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    # source: IEC 61966-2-1 (sRGB)
    clipped = linear.clip(0.0, 1.0)
    return np.where(clipped <= 0.0031308, 12.92 * clipped, 1.055 * clipped ** (1 / 2.4) - 0.055)


def _as_float(images: Array) -> NDArray[np.float64]:
    scale = 1.0 / 255.0 if images.dtype == np.uint8 else 1.0
    return images.astype(np.float64) * scale


def _as_pixels(values: NDArray[np.float64]) -> Pixels:
    return np.floor(values.clip(0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # inside Pillow: the same on every machine
