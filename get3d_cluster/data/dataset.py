"""Real images as the discriminator sees them. Letters: N images, H = W resolution.

Colours are premultiplied by coverage, on black: 0 where there is nothing, as the renderer makes them. The background of
a batch is therefore -1 in RGB and 0 in the mask. Images of another size are resized premultiplied and with the mask,
by area averaging (Pillow's BOX) to a smaller size and bilinearly to a larger one, so that edges stay consistent.
"""

import io
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from get3d_cluster.core.cameras import condition_of
from get3d_cluster.data.ahead import Ahead
from get3d_cluster.data.cache import PieceCache, default_folder
from get3d_cluster.data.config import ReadConfig
from get3d_cluster.data.format import PackedImages, Sample
from get3d_cluster.data.source import Location
from get3d_cluster.errors import UsageError

Mask = Literal["coverage", "binary"]
Pixels = npt.NDArray[np.uint8]
Numbers = Sequence[int] | npt.NDArray[np.int64]

_GB = 10**9
_FORMATS = ("PNG", "TIFF")


class ImageDataset:
    """A packed dataset as batches. What is read ahead, kept or copied changes the speed and never the bits."""

    def __init__(
        self,
        location: Location,
        resolution: int,
        mask: Mask = "coverage",
        read: ReadConfig | None = None,
        device: str = "cpu",
    ) -> None:
        self._made_from = (location, resolution, mask, read, device)
        read = read or ReadConfig()
        self._images = PackedImages(location, open_cache(location, read))
        self._device = device
        self._cache = _Cache(max_images=read.memory_mb * 2**20 // (4 * resolution**2))
        decoder = _Decoder(self._images, resolution, mask)
        self._ahead = Ahead(
            decoder.pixels, threads=read.threads, most=read.ahead_mb * 2**20 // (4 * resolution**2)
        )
        angles = [condition_of(rotation, elevation) for rotation, elevation in self.angles_deg()]
        self._cameras = torch.tensor(angles, dtype=torch.float64).to(torch.float32)

    def __reduce__(self) -> tuple[Any, ...]:  # threads and connections stay behind
        return ImageDataset, self._made_from

    def __len__(self) -> int:
        return len(self._images)

    @property
    def fingerprint(self) -> str:
        """Name of exactly these images and cameras, in this order; part of a checkpoint."""
        return self._images.fingerprint

    @property
    def cameras(self) -> Tensor:  # [N, 2] float32 on the CPU: azimuth, polar, radians
        """Where each image was taken from."""
        return self._cameras

    def angles_deg(self) -> list[tuple[float, float]]:
        """Return rotation and elevation of every image's camera."""
        return self._images.angles_deg()

    @property
    def samples(self) -> Sequence[Sample]:
        """Key and camera of every image."""
        return self._images.samples

    def expect(self, indices: Iterable[int] | npt.NDArray[np.int64]) -> None:
        """Say what the next batches will ask for, in their order: it is read and decoded meanwhile.

        Says nothing about earlier calls: what is not named again is forgotten.
        """
        self._ahead.expect(number for number in map(int, indices) if number not in self._cache)

    def batch(self, indices: Numbers) -> tuple[Tensor, Tensor]:
        """Return images [N, 4, H, W] float32 and their cameras [N, 2] float32.

        RGB lies in [-1, 1]; the fourth channel is the mask in [0, 1]. A camera is (azimuth, polar) in radians.

        Raises: UsageError naming shard and key of an image that cannot be read; StorageError if its place is out of
        reach.
        """
        numbers = [int(number) for number in indices]
        self._ahead.hurry(number for number in numbers if number not in self._cache)
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
            kept = self._ahead.take(number)
            self._cache.put(number, kept)
        return kept


def open_cache(location: Location, read: ReadConfig) -> PieceCache | None:
    """Return the copies on this machine that go with a remote dataset; None if there are none to be."""
    if "://" not in str(location) or not read.cache_gb:
        return None
    return PieceCache(read.cache or default_folder(), int(read.cache_gb * _GB))


class _Decoder:
    """Makes pixels of packed images; for any number of threads."""

    def __init__(self, images: PackedImages, resolution: int, mask: Mask) -> None:
        self._images = images
        self._resolution = resolution
        self._mask = mask

    def pixels(self, number: int) -> Pixels:
        data = self._images.read(number)
        try:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                return prepared(image, self._resolution, self._mask)
        except (OSError, ValueError, SyntaxError) as error:  # Pillow raises SyntaxError for broken PNG chunks
            sample = self._images.samples[number]
            raise UsageError(
                f"{sample.key} in {self._images.place_of(sample)} is not an image Pillow can read: {error}",
                "render this model again, then pack again",
            ) from error


def prepared(
    image: "Image.Image",  # straight alpha
    resolution: int,
    mask: Mask,
) -> Pixels:  # [resolution, resolution, 4] premultiplied
    """Premultiply on black, resize, and turn alpha into the mask (binary: any coverage counts as covered)."""
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    is_same_size = image.size == (resolution, resolution)
    if mask == "binary":
        pixels = _all_or_nothing(np.array(image))
        if is_same_size:
            return pixels
        image = Image.frombuffer("RGBa", image.size, pixels, "raw", "RGBa", 0, 1)
        return _all_or_nothing(_resized(image, resolution))
    image = image.convert("RGBa")  # premultiplied, rounded to the nearest
    return np.asarray(image) if is_same_size else _resized(image, resolution)


def _all_or_nothing(pixels: Pixels) -> Pixels:
    """Cover what is covered at all, and clear the rest, in place: whole pixels at a time, little end first."""
    whole = pixels.view("<u4")
    covered = whole > 0x00FFFFFF
    whole |= 0xFF000000
    whole *= covered
    return pixels


def _resized(image: "Image.Image", resolution: int) -> Pixels:
    kind = Image.Resampling.BOX if resolution < image.height else Image.Resampling.BILINEAR
    return np.array(image.resize((resolution, resolution), kind))


class _Cache:
    """The images used last, at most ``max_images``."""

    def __init__(self, max_images: int) -> None:
        self._max_images = max_images
        self._kept: OrderedDict[int, Pixels] = OrderedDict()

    def __contains__(self, number: int) -> bool:
        return number in self._kept

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
