"""Whether a configuration fits the images it is to learn from: their cameras, their background, and their size.

Found before the first step, since a training that looks from elsewhere than the photographer, or whose shapes have no
room for what it sees, runs for days and learns little. All workers look at the same images and decide alike.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from get3d_cluster.core.cameras import fitting_scale, side_seen
from get3d_cluster.data.dataset import ImageDataset
from get3d_cluster.errors import UsageError
from get3d_cluster.get3d.camera import world_to_camera
from get3d_cluster.get3d.config import GeneratorConfig
from get3d_cluster.train.config import TrainerConfig

TOLERANCE_DEG = 2.0
"""Cameras may stand this far outside of the range that is drawn from."""
LEAST_SHARE = 0.5
"""Of the range that is drawn from, the cameras of a dataset have to span; checked from ``MANY`` images on."""
MANY = 100
MOST_GAP_DEG = 60.0
"""Between neighbouring azimuths of a dataset's cameras; checked from ``MANY`` images on."""
ROUNDING_DEG = 0.01
"""Six views all around are 60 degrees apart, in float32 radians a little more."""
MOST_ROOM = 2.0
"""Times the size of what the images show that the box may have; checked from ``MANY`` images on."""
MOST_OUTSIDE = 0.02
"""Share of the pixels of objects that may lie where no shape can be."""
MOST_IMAGES, MOST_PX = 32, 64


def check_fit(config: TrainerConfig, dataset: ImageDataset) -> None:
    """Compare the configuration with all cameras and with some images. Raises: UsageError with what to set."""
    check_cameras(90 - torch.rad2deg(dataset.cameras[:, 1]), config.data.elevation_range_deg)
    if not config.data.allow_azimuth_gap:
        check_azimuths(torch.rad2deg(dataset.cameras[:, 0]))
    spread = torch.linspace(0, len(dataset) - 1, min(MOST_IMAGES, len(dataset))).long().unique()
    images, cameras = dataset.batch(spread.tolist())
    masks = small_masks(images[:, 3])
    check_background(masks)
    check_box(masks, cameras, config.generator)
    if len(dataset) >= MANY:
        check_room(small_masks(images[:, 3], F.max_pool2d), config.generator)


def check_cameras(
    elevations_deg: Tensor,  # [N]
    drawn_deg: tuple[float, float],
) -> None:
    """Make sure that images are drawn from where the real ones were taken. Raises: UsageError."""
    low, high = elevations_deg.min().item(), elevations_deg.max().item()
    way_out = f"set data.elevation_range_deg=[{math.floor(low)}, {math.ceil(high)}]"
    said = f"data.elevation_range_deg=[{drawn_deg[0]:g}, {drawn_deg[1]:g}]"
    if low < drawn_deg[0] - TOLERANCE_DEG or high > drawn_deg[1] + TOLERANCE_DEG:
        raise UsageError(
            f"{said} leaves out cameras of the dataset: they lie from {low:.1f} to {high:.1f}", way_out
        )
    if len(elevations_deg) >= MANY and high - low < LEAST_SHARE * (drawn_deg[1] - drawn_deg[0]):
        raise UsageError(
            f"{said} is far wider than the cameras of the dataset, which lie from {low:.1f} to {high:.1f}",
            way_out,
        )


def check_azimuths(azimuths_deg: Tensor) -> None:  # [N]
    """Make sure that the real images were taken from all around, as generated ones are. Raises: UsageError."""
    if len(azimuths_deg) < MANY:
        return
    around = (azimuths_deg.double() % 360).sort().values
    gaps = torch.cat([around[1:], around[:1] + 360]) - around
    gap, place = gaps.max(dim=0)
    if gap.item() > MOST_GAP_DEG + ROUNDING_DEG:
        begin, end = around[place].item(), (around[place] + gap).item() % 360
        raise UsageError(
            f"no camera of the dataset stands between azimuths {begin:.1f} and {end:.1f} degrees, a gap of "
            f"{gap.item():.0f}; generated images are taken from all around",
            "add views from there, or set data.allow_azimuth_gap=true to train all the same",
        )


def check_background(masks: Tensor) -> None:  # [N, H, W] coverage
    """Make sure that there is something to see, and something around it. Raises: UsageError."""
    share = masks.mean(dim=(1, 2))
    if bool((share > 0.999).all()):
        raise UsageError(
            f"none of {len(masks)} images has a background: their alpha is full everywhere",
            "render or cut out the objects with a transparent background, and pack them again",
        )
    if bool((share == 0).all()):
        raise UsageError(
            f"all of {len(masks)} images are empty: their alpha is 0 everywhere",
            "look at the images, and render them again",
        )


def check_box(
    masks: Tensor,  # [N, H, W] coverage
    cameras: Tensor,  # [N, 2] azimuth, polar, radians
    config: GeneratorConfig,
) -> None:
    """Make sure that the box of the grid covers the objects in all images. Raises: UsageError."""
    seen, scale = masks > 0.5, config.grid.scale
    outside = _share_outside(seen, cameras, config, scale)
    if outside <= MOST_OUTSIDE:
        return
    fits = next(
        (side for side in _larger(scale) if _share_outside(seen, cameras, config, side) <= MOST_OUTSIDE), None
    )
    what = f"{outside:.0%} of what the images show lies outside of the box of generator.grid.scale={scale:g}"
    way_out = f"set generator.grid.scale={fits:g}, or render" if fits else "render"
    raise UsageError(
        what, f"{way_out} the objects smaller and in the middle (image.longest_side, image.center)"
    )


def check_room(masks: Tensor, config: GeneratorConfig) -> None:  # [N, H, W] coverage, the thinnest parts too
    """Make sure that the objects fill a fair part of the box of the grid. Raises: UsageError."""
    seen, render, scale = masks > 0.5, config.render, config.grid.scale
    if not bool(seen.any()):
        return  # all half transparent: nothing has an outline
    shown = side_seen(_reach(seen), render.radius, math.radians(render.fov_deg))
    if scale > MOST_ROOM * shown:
        raise UsageError(
            f"the box of generator.grid.scale={scale:g} is more than twice as large as what {len(masks)} images show, "
            f"which fits into {shown:.2g}: most of the grid would stay empty",
            f"set generator.grid.scale={fitting_scale(shown):g}",
        )


def _reach(seen: Tensor) -> float:  # [N, H, W] bool
    """Return how far from the middle of an image objects reach, as a share of half its side."""
    size = seen.shape[-1]
    places = torch.cat([seen.any(dim=0).any(dim=0).nonzero(), seen.any(dim=0).any(dim=1).nonzero()])[:, 0]
    return float(torch.maximum(2 * (places + 1) / size - 1, 1 - 2 * places / size).max())


def small_masks(
    masks: Tensor,  # [N, H, W]
    pool: Callable[[Tensor, int], Tensor] = F.avg_pool2d,
) -> Tensor:  # [N, h, w]
    """Return the coverage at a size at which looking costs nothing."""
    return pool(masks[:, None], max(1, masks.shape[-1] // MOST_PX))[:, 0].cpu()


def rays_in_box(
    cameras: Tensor,  # [N, 2] azimuth, polar, radians
    size_px: int,
    config: GeneratorConfig,
    side: float,
) -> Tensor:  # [N, H, W] bool
    """Return which pixels see the cube of ``side`` around the origin."""
    motion = world_to_camera(cameras[:, 0].double(), cameras[:, 1].double(), config.render.radius)
    turn = motion[:, :3, :3]
    at = (torch.arange(size_px, dtype=torch.float64) + 0.5) / size_px * 2 - 1
    y, x = torch.meshgrid(-at, at, indexing="ij")
    half = math.tan(math.radians(config.render.fov_deg) / 2)
    inside = torch.stack([x * half, y * half, -torch.ones_like(x)], dim=-1)
    ways = torch.einsum("nij,hwi->nhwj", turn, inside)
    eyes = (turn[:, 2] * config.render.radius)[:, None, None]
    near_and_far = torch.stack([(-side / 2 - eyes) / ways, (side / 2 - eyes) / ways])
    enters, leaves = near_and_far.amin(dim=0).amax(dim=-1), near_and_far.amax(dim=0).amin(dim=-1)
    return leaves >= enters.clamp(min=0)


def _share_outside(seen: Tensor, cameras: Tensor, config: GeneratorConfig, side: float) -> float:
    """Return the share of object pixels that no point of the box can fill."""
    inside = rays_in_box(cameras.cpu(), seen.shape[-1], config, side)
    return (seen & ~inside).sum().item() / max(1, int(seen.sum()))


def _larger(scale: float) -> list[float]:
    return [round(scale * factor, 2) for factor in (1.1, 1.25, 1.5, 2.0)]
