"""What people get to see of a training, and when. Clocks decide here; no state of the training is touched.

Letters: N shapes, K views, H = W pixels, S times finer images of the geometry.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from get3d_cluster.core.job import Position
from get3d_cluster.core.philox import Phase, key_of
from get3d_cluster.get3d.camera import camera_position, clip_matrices
from get3d_cluster.get3d.generator import Generator, Shapes
from get3d_cluster.get3d.mapping import Latents
from get3d_cluster.get3d.raster import visibility
from get3d_cluster.get3d.raster.surface import to_clip
from get3d_cluster.train import random
from get3d_cluster.train.classes import draw_classes, in_turn
from get3d_cluster.train.phases import draw_cameras

Look = Callable[[Generator, Position], Mapping[str, float]]
"""Shows the averaged generator to people and returns numbers for the row of this step, if any."""

ELEVATION_DEG = 15.0
"""Height of the cameras of sheets and turntables: upstream's for evaluation."""


class Watch:
    """Looks at the start, at the end, and in between as often as ``every_s`` and the budget allow."""

    def __init__(
        self,
        look: Look,
        every_s: float,
        budget: float,
        clock: Callable[[], float] = time.monotonic,
        rewind: Callable[[Position], None] | None = None,
    ) -> None:
        """``rewind`` takes back what was shown of later steps, once the training has gone back to a position."""
        self._look = look
        self._rewind = rewind
        self._every_s = every_s
        self._budget = budget
        self._clock = clock
        self._due_s = clock() + every_s
        self._is_warm = False

    def look(self, average: Generator, position: Position, *, last: bool) -> dict[str, float]:
        """Look if it is time to; return the numbers found."""
        begun_s = self._clock()
        if not (position.step == 0 or last or begun_s >= self._due_s):
            return {}
        found = dict(self._look(average, position))
        ended_s = self._clock()
        self._due_s = ended_s + max(self._every_s, self._rest_s(ended_s - begun_s))
        return found

    def rewind(self, position: Position) -> None:
        """Let what was shown of steps after ``position`` be taken back."""
        if self._rewind:
            self._rewind(position)

    def _rest_s(self, cost_s: float) -> float:
        """Return how long to wait so that looking stays within the budget; the first look compiles and loads."""
        counted_s = cost_s if self._is_warm else 0.0
        self._is_warm = True
        return counted_s / self._budget


@dataclass(frozen=True, kw_only=True, slots=True)
class Portraits:
    """N shapes seen from K cameras."""

    colours: NDArray[np.float32]
    """[K, N, H, W, 4] in [0, 1], premultiplied"""
    meshes: list[tuple[NDArray[np.float32], NDArray[np.int32]]]
    """N times vertices [V, 3] world and faces [F, 3]"""
    triangle_ids: list[NDArray[np.int32]]
    """N times [K, S H, S W]: 0 = empty, i + 1 = face i"""
    to_camera: NDArray[np.float32]
    """[K, 3] world"""
    supersampling: int


@torch.no_grad()
def portraits(
    generator: Generator,
    latents: Latents,
    cameras: Tensor,  # [K, 2] azimuth, polar, radians; the same for all shapes
    *,
    image_size_px: int = 0,  # 0: the generator's own
    supersampling: int = 3,
) -> Portraits:
    """Render shapes in colour, and find the triangles that their geometry shows."""
    size = image_size_px or generator.config.render.image_size_px
    shapes = generator.shapes(latents)
    views = [_premultiplied(generator, shapes, latents, camera, size) for camera in cameras]
    meshes = [shapes.meshes.mesh(i) for i in range(len(shapes.meshes))]
    fine = size * supersampling
    return Portraits(
        colours=torch.stack(views).permute(0, 1, 3, 4, 2).cpu().numpy(),
        meshes=[(verts.cpu().numpy(), faces.cpu().numpy()) for verts, faces in meshes],
        triangle_ids=[_triangle_ids(generator, mesh, cameras, fine) for mesh in meshes],
        to_camera=camera_position(cameras[:, 0], cameras[:, 1]).cpu().numpy(),
        supersampling=supersampling,
    )


@torch.no_grad()
def latents_of(
    generator: Generator,
    purpose: str,
    seed: int,
    samples: Tensor,  # [N] int64
    psi: float = 1.0,
    classes: Tensor | None = None,  # [N] int64; none given: all in turn, if there are any
) -> Latents:
    """Return the styles that a seed stands for: the same for a purpose at any time, apart from the training's."""
    classes = in_turn(samples, len(generator.config.classes)) if classes is None else classes
    key, width = key_of(purpose, str(seed)), generator.config.latent_channels
    z_geo = random.normals(key, 0, Phase.LATENT_GEO, samples, width)
    z_tex = random.normals(key, 0, Phase.LATENT_TEX, samples, width)
    latents = generator.map(z_geo, z_tex, classes)
    return latents if psi == 1.0 else generator.truncate(latents, psi)


@torch.no_grad()
def random_images(
    generator: Generator,
    seed: int,
    count: int,
    elevation_range_deg: tuple[float, float],
    *,
    batch: int = 4,
    longest_px: int = 64,
    labels: Tensor | None = None,  # [dataset] int64: class of each real image, if the generator has classes
) -> Tensor:  # [N, 4, h, w]
    """Render ``count`` random shapes from random cameras, averaged down to ``longest_px``."""
    device, key, images = generator.w_avg_geo.device, key_of("measure", str(seed)), []
    for samples in torch.arange(count, device=device).split(batch):
        cameras = draw_cameras(key, 0, Phase.CAMERA, samples, elevation_range_deg)
        classes = draw_classes(key, 0, Phase.CLASS, samples, labels)
        latents = latents_of(generator, "measure", seed, samples, classes=classes)
        images.append(shrunk(generator.render(latents, cameras).image, longest_px))
    return torch.cat(images)


def shrunk(images: Tensor, longest_px: int) -> Tensor:  # [N, C, H, W]
    """Average images down to ``longest_px``; smaller ones stay as they are."""
    factor = images.shape[-1] // longest_px
    return torch.nn.functional.avg_pool2d(images, factor).cpu() if factor > 1 else images.cpu()


def ring(count: int, first_deg: float = 35.0, device: str | torch.device = "cpu") -> Tensor:  # [K, 2]
    """Return cameras evenly spaced around the object, at ``ELEVATION_DEG``."""
    azimuth = math.radians(first_deg) + torch.arange(count, device=device) * (2 * math.pi / count)
    return torch.stack([azimuth, torch.full_like(azimuth, math.radians(90 - ELEVATION_DEG))], dim=1)


def _premultiplied(
    generator: Generator,
    shapes: Shapes,
    latents: Latents,
    camera: Tensor,  # [2]
    size: int,
) -> Tensor:  # [N, 4, H, W] in [0, 1]
    """Render one view and take the learned background out of it."""
    image = generator.image(shapes, latents, camera.expand(len(latents.geo), 2), size)
    rgb, mask = image[:, :3] / 2 + 0.5, image[:, 3:]
    background = (generator.background / 2 + 0.5)[:, None, None]
    return torch.cat([rgb - (1 - mask) * background, mask], dim=1).clamp(0, 1)


def _triangle_ids(
    generator: Generator, mesh: tuple[Tensor, Tensor], cameras: Tensor, size: int
) -> NDArray[np.int32]:  # [K, size, size]
    verts, faces = mesh
    render = generator.config.render
    matrices = clip_matrices(cameras[:, 0], cameras[:, 1], radius=render.radius, fov_deg=render.fov_deg)
    ids = visibility(to_clip(verts[None], matrices[:, None]), faces, (size, size))
    return ids.cpu().numpy()
