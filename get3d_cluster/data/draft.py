"""A first configuration for images of one's own: what a folder holds, what is wrong with it, and what fits it.

Looks at a rendered folder (``img/<synset>/<model>/NNN.png`` beside ``camera/<synset>/<model>/elevation.npy``) or at a
packed dataset. Torch-free.
"""

import io
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image

from get3d_cluster.core.cameras import FOV_RAD, RADIUS, fitting_scale, side_seen
from get3d_cluster.data.format import INDEX_NAME, PackedImages, Sample, read_index
from get3d_cluster.data.rendered import image_name, read_angles
from get3d_cluster.errors import UsageError

Item = TypeVar("Item")
LEAST_PX, MOST_PX = 64, 1024
MOST_OPENED = 200
"""Image files that are opened; names and cameras are all looked at."""
MOST_NAMED = 5
CELLS = {64: 12, 128: 18, 256: 24, 512: 36}
"""Cells of the grid that suit a size of images; at 1024 px upstream's tet_res 90."""
SMALL = 1000
"""Models below which a dataset counts as small."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What a folder holds."""

    is_packed: bool
    num_models: int
    num_images: int
    views: tuple[int, int]
    """Fewest and most of a model."""
    sizes_px: tuple[int, ...]
    """Sides of the images looked at, smallest first."""
    elevation_deg: tuple[float, float]
    num_opened: int
    """Images whose alpha was looked at."""
    reach: float
    """How far from the middle of an image objects reach, as a share of half its side; 0: none shows anything."""
    troubles: tuple[str, ...]
    """What is wrong, in words; a training would not begin, or learn something else."""

    @property
    def image_size_px(self) -> int:
        """The size to train at: the largest power of two that no image falls short of."""
        smallest = max(LEAST_PX, min(self.sizes_px))
        return int(min(MOST_PX, 2 ** int(math.log2(smallest))))

    def lines(self) -> list[str]:
        """Return what was found, for people."""
        few, most = self.views
        low, high = self.elevation_deg
        counted = f"{few}" if few == most else f"{few} to {most}"
        sizes = ", ".join(f"{size}" for size in self.sizes_px[:MOST_NAMED])
        return [
            f"{self.num_models:,} models, {self.num_images:,} images, {counted} of each model",
            f"images of {sizes} px; cameras from {low:.1f} to {high:.1f} degrees above the horizon",
            *self.troubles,
        ]


def survey(folder: Path) -> Survey:
    """Look through a folder. Raises: UsageError saying what is missing and what was found instead."""
    if (folder / INDEX_NAME).is_file():
        return _packed(folder)
    models = _models(folder)
    seen = [(model, *_views(folder, model)) for model in models]
    troubles = [f"{model}: {trouble}" for model, _, _, trouble in seen if trouble]
    opened = [image for _, images, _, _ in seen for image in images]
    sizes, reaches, wrong = _looked_at(_spread(opened))
    angles = [angle for _, _, found, _ in seen for angle in found]
    if not angles or not sizes:
        raise UsageError(
            f"{folder} holds no model with images and cameras: {_few([*troubles, *wrong])}",
            "render with: python launch.py run render models=<models> out=<this folder>",
        )
    counts = [len(images) for _, images, _, _ in seen if images]
    return Survey(
        is_packed=False,
        num_models=len(counts),
        num_images=sum(counts),
        views=(min(counts), max(counts)),
        sizes_px=tuple(sorted(sizes)),
        elevation_deg=(min(angles), max(angles)),
        num_opened=len(reaches),
        reach=max(reaches),
        troubles=tuple(_cut([*troubles, *wrong])),
    )


def draft(found: Survey, images: Path, packed: Path) -> str:
    """Return a YAML file that trains on ``packed``, with the reason of every value."""
    size, low, high = (
        found.image_size_px,
        math.floor(found.elevation_deg[0]),
        math.ceil(found.elevation_deg[1]),
    )
    grid = "tet_res: 90" if size == MOST_PX else f"cells: {CELLS[size]}"
    small = found.num_models < SMALL
    return "\n".join(
        [
            f"# First draft for {images}: {found.num_models:,} models, {found.num_images:,} images.",
            "# All keys and what they mean: python launch.py config train",
            "data:",
            f"  path: {json.dumps(str(packed))}",  # in quotes: YAML reads some characters otherwise
            "  # 64 px: coverage keeps thin parts; larger: upstream's binary masks",
            f"  mask: {'coverage' if size == LEAST_PX else 'binary'}",
            "  # where the cameras of these images stand, in degrees above the horizon",
            f"  elevation_range_deg: [{low}, {high}]",
            "# the most images that are shown; a rough shape needs about 1,000,000, good ones 4 to 8 million",
            f"num_images: {4_000_000 if small else 20_000_000}",
            "batch:",
            "  # the most workers that this run can ever use; any number up to it gives the same bits",
            "  num_shards: 8",
            "  shard_size: 4",
            "generator:",
            "  grid:",
            "    # finer grids make finer meshes and cost memory and time",
            f"    {grid}",
            "    # side of the box that shapes live in: 1.0 for objects of longest side 0.9, 0.8 for 0.7",
            *_scale_lines(found),
            "  render:",
            f"    image_size_px: {size}",
            f"    antialias_rgb: {'true' if size == LEAST_PX else 'false'}",
            "discriminator:",
            f"  image_size_px: {size}",
            "loss:",
            "  # for 1024 px and 32 images a step, and scaled to what is above; 40 cars, 80 motorbikes, 400 chairs;",
            "  # larger if training diverges or shapes all look alike",
            f"  gamma_rgb: {80.0 if small else 40.0}",
            f"  gamma_mask: {80.0 if small else 40.0}",
            "  gamma_scale: pixels_per_batch",
            "watch:",
            "  psi: 0.7",
            "",
        ]
    )


def _scale_lines(found: Survey) -> list[str]:
    """Return the side of the box for cameras where this draft has them: at ``generator.render``'s defaults."""
    if not found.reach:
        return [f"    # none of {found.num_opened} images shows anything: look at them", "    scale: 1.0"]
    return [
        f"    # a guess: holds what {found.num_opened} images show, if their cameras stood {RADIUS:g} from the middle,",
        f"    # with a field of view of {math.degrees(FOV_RAD):.4g} degrees (render.radius, render.fov_deg)",
        f"    scale: {fitting_scale(side_seen(found.reach)):g}",
    ]


# A packed dataset


def _packed(folder: Path) -> Survey:
    index = read_index(folder)
    counts = Counter(_model_of(sample) for sample in index.samples)
    angles = [sample.elevation_deg for sample in index.samples]
    images = PackedImages(folder)
    reaches = [_reach_of(Image.open(io.BytesIO(images.read(place)))) for place in _spread(range(len(images)))]
    return Survey(
        is_packed=True,
        num_models=len(counts),
        num_images=len(index.samples),
        views=(min(counts.values()), max(counts.values())),
        sizes_px=(index.resolution,),
        elevation_deg=(min(angles), max(angles)),
        num_opened=len(reaches),
        reach=max(reaches),
        troubles=(),
    )


def _model_of(sample: Sample) -> str:
    return sample.key.rpartition("/")[0]


# A rendered folder


def _models(folder: Path) -> list[str]:
    """Return <synset>/<model> of all models. Raises: UsageError."""
    root = folder / "img"
    if not root.is_dir():
        raise UsageError(f"{folder} has no folder img: {_instead(folder)}", _layout(folder))
    found = [f"{synset.name}/{model.name}" for synset in _folders(root) for model in _folders(synset)]
    if not found:
        raise UsageError(f"{root} has no folders <synset>/<model>: {_instead(root)}", _layout(folder))
    return found


def _instead(folder: Path) -> str:
    """Say what a folder holds, where something else was looked for."""
    if not folder.is_dir():
        return "there is no such folder"
    names = sorted(path.name for path in itertools.islice(folder.iterdir(), 1000))
    return f"it holds {_few(names)}" if names else "it is empty"


def _layout(folder: Path) -> str:
    """Return the way out for a folder whose parts lie elsewhere."""
    wanted = "img/<synset>/<model>/000.png and camera/<synset>/<model>/{rotation,elevation}.npy"
    if (folder.parent / "camera").is_dir():
        return f"give the folder above, {folder.parent}, which holds img and camera"
    return f"lay the images out as {wanted}; the job render does"


def _views(folder: Path, model: str) -> tuple[list[Path], list[float], str]:
    """Return images and elevations of a model, and what is wrong with it."""
    files = sorted((folder / "img" / model).iterdir())
    images = [path for path in files if path.suffix == ".png"]
    if not images:
        return [], [], "no .png files"
    elevations, trouble = _angles(folder, f"camera/{model}/elevation.npy", len(images))
    if not trouble:
        _, trouble = _angles(folder, f"camera/{model}/rotation.npy", len(images))
    if not trouble:
        trouble = _misnamed(files, len(images))
    return images, elevations, trouble


def _angles(folder: Path, name: str, count: int) -> tuple[list[float], str]:
    """Return the angles of a model's cameras, and what is wrong with them."""
    try:
        angles = read_angles(folder / name)
    except FileNotFoundError:
        return [], f"{name} is missing"
    except (OSError, ValueError) as error:
        return [], f"{name} cannot be read: {error}"
    return angles.tolist(), f"{count} images, but {len(angles)} cameras" if len(angles) != count else ""


def _misnamed(files: Sequence[Path], count: int) -> str:
    """Say which file keeps a model from being packed; empty if none does."""
    strange = min({path.name for path in files} - {image_name(view) for view in range(count)}, default="")
    return f"{strange} is in its folder, which must hold 000.png, 001.png and so on alone" if strange else ""


def _spread(items: Sequence[Item]) -> Sequence[Item]:
    """Return about ``MOST_OPENED`` of them."""
    return items[:: max(1, -(-len(items) // MOST_OPENED))]


def _looked_at(files: Sequence[Path]) -> tuple[set[int], list[float], list[str]]:
    """Return the sides of images, how far from their middle they show something, and what is wrong with them."""
    sizes: set[int] = set()
    reaches: list[float] = []
    wrong: list[str] = []
    for file in files:
        try:
            with Image.open(file) as image:
                (width, height), has_alpha = image.size, image.mode in {"RGBA", "LA", "PA"}
                reaches.append(_reach_of(image) if has_alpha else 0.0)
        except (OSError, SyntaxError) as error:
            wrong.append(f"{file} cannot be read: {error}")
            continue
        sizes.add(min(width, height))
        if width != height:
            wrong.append(f"{file} is not square: {width} x {height} px")
        if not has_alpha:
            wrong.append(f"{file} has no alpha channel: objects cannot be told from the background")
        if min(width, height) < LEAST_PX:
            wrong.append(f"{file} is smaller than {LEAST_PX} px")
    return sizes, reaches, wrong


def _reach_of(image: Image.Image) -> float:
    """Return how far from the middle an image is covered by half at least, as a share of half its side."""
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha > 127)).getbbox()
    if box is None:
        return 0.0
    left, top, right, bottom = box
    return max(
        *(abs(2 * x / image.width - 1) for x in (left, right)),
        *(abs(2 * y / image.height - 1) for y in (top, bottom)),
    )


def _folders(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.iterdir()) if path.is_dir())


def _cut(lines: Sequence[str]) -> list[str]:
    more = len(lines) - MOST_NAMED
    return [*lines[:MOST_NAMED], *([f"and {more} more of this kind"] if more > 0 else [])]


def _few(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:MOST_NAMED]) + (" and more" if len(listed) > MOST_NAMED else "")
