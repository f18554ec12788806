"""Real images as the discriminator sees them. Letters: N images, H = W resolution.

Colours are premultiplied by coverage, on black: 0 where there is nothing, as the renderer makes them. The background of
a batch is therefore -1 in RGB and 0 in the mask. Images of another size are resized premultiplied and with the mask,
by area averaging (Pillow's BOX) to a smaller size and bilinearly to a larger one, so that edges stay consistent.
"""

import io
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from get3d_cluster.core.cameras import condition_of
from get3d_cluster.data.format import PackedImages
from get3d_cluster.errors import UsageError

Mask = Literal["coverage", "binary"]
Pixels = npt.NDArray[np.uint8]


class ImageDataset:
    """A packed dataset as batches; decoded images are kept in memory up to ``cache_mb``."""

    def __init__(
        self, folder: Path, resolution: int, mask: Mask = "coverage", cache_mb: int = 512, device: str = "cpu"
    ) -> None:
        self._images = PackedImages(folder)
        self._resolution = resolution
        self._mask = mask
        self._device = device
        self._cache = _Cache(max_images=cache_mb * 2**20 // (4 * resolution**2))
        angles = [condition_of(sample.rotation_deg, sample.elevation_deg) for sample in self._images.samples]
        self._cameras = torch.tensor(angles, dtype=torch.float64).to(torch.float32)

    def __len__(self) -> int:
        return len(self._images)

    @property
    def fingerprint(self) -> str:
        """Name of exactly these images and cameras, in this order; part of a checkpoint."""
        return self._images.fingerprint

    def batch(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return images [N, 4, H, W] float32 and their cameras [N, 2] float32.

        RGB lies in [-1, 1]; the fourth channel is the mask in [0, 1]. A camera is (azimuth, polar) in radians.

        Raises: UsageError naming shard and key of an image that cannot be read.
        """
        numbers = [int(number) for number in indices]
        pixels = torch.from_numpy(np.stack([self._pixels(number) for number in numbers]))
        images = (
            pixels.to(self._device)
            .permute(0, 3, 1, 2)
            .to(torch.float32, memory_format=torch.contiguous_format)
        )
        images[:, :3].div_(127.5).sub_(1)
        images[:, 3].div_(255)
        return images, self._cameras[numbers].to(self._device)

    def _pixels(self, number: int) -> Pixels:
        kept = self._cache.get(number)
        if kept is None:
            kept = self._decoded(number)
            self._cache.put(number, kept)
        return kept

    def _decoded(self, number: int) -> Pixels:
        data, sample = self._images.read(number), self._images.samples[number]
        try:
            with Image.open(io.BytesIO(data)) as image:
                pixels = np.asarray(image.convert("RGBA"))
        except (OSError, ValueError) as error:
            shard = self._images.index.shards[sample.shard].name
            raise UsageError(
                f"{sample.key} in {self._images.folder / shard} is not an image Pillow can read: {error}",
                "render this model again, then pack again",
            ) from error
        return prepared(pixels, self._resolution, self._mask)


def prepared(
    rgba: Pixels,  # [H, W, 4] straight alpha
    resolution: int,
    mask: Mask,
) -> Pixels:  # [resolution, resolution, 4] premultiplied
    """Premultiply on black, resize, and turn alpha into the mask (binary: any coverage counts as covered)."""
    coverage = rgba[..., 3:].astype(np.uint16)
    if mask == "binary":
        coverage = np.where(coverage > 0, 255, 0).astype(np.uint16)
    colours = (rgba[..., :3] * coverage + 127) // 255
    pixels = np.concatenate([colours, coverage], axis=-1).astype(np.uint8)
    if rgba.shape[:2] == (resolution, resolution):
        return pixels
    pixels = _resized(pixels, resolution)
    if mask == "binary":
        pixels[..., 3] = np.where(pixels[..., 3] > 0, 255, 0)
    return pixels


def _resized(pixels: Pixels, resolution: int) -> Pixels:
    """Resize channel by channel: Pillow would divide RGBA by alpha on the way."""
    kind = Image.Resampling.BOX if resolution < pixels.shape[0] else Image.Resampling.BILINEAR
    size = (resolution, resolution)
    channels = [Image.fromarray(np.ascontiguousarray(pixels[..., c])).resize(size, kind) for c in range(4)]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


class _Cache:
    """The images used last, at most ``max_images``."""

    def __init__(self, max_images: int) -> None:
        self._max_images = max_images
        self._kept: OrderedDict[int, Pixels] = OrderedDict()

    def get(self, number: int) -> Pixels | None:
        if number in self._kept:
            self._kept.move_to_end(number)
        return self._kept.get(number)

    def put(self, number: int, pixels: Pixels) -> None:
        if self._max_images < 1:
            return
        self._kept[number] = pixels
        if len(self._kept) > self._max_images:
            self._kept.popitem(last=False)
