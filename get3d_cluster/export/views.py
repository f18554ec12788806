"""Pictures of what is in the files: a mesh with its texture, or with any colours, seen from cameras on a sphere.

Letters: V vertices, F faces, K cameras, H = W pixels, C numbers a vertex, P points.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from get3d_cluster.export.mesh import Faces, Floats, TexturedMesh
from get3d_cluster.export.pictures import downsampled, shade
from get3d_cluster.get3d.camera import FOV_DEG, RADIUS, camera_position, clip_matrices
from get3d_cluster.get3d.raster import barycentrics, fragments, interpolate, to_image, visibility
from get3d_cluster.get3d.raster.surface import to_clip

ColourOf = Callable[[Tensor], Tensor]
"""What a vertex carries, interpolated, [P, C], to RGB in [0, 1], [P, 3]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lens:
    """How a picture is taken."""

    size_px: int
    supersampling: int = 2
    """Samples along either side of a pixel."""
    radius: float = RADIUS
    fov_deg: float = FOV_DEG


@dataclass(frozen=True, kw_only=True, slots=True)
class Views:
    """One mesh from K cameras, in colour and as geometry alone."""

    colours: Floats
    """[K, H, W, 4] in [0, 1], premultiplied; the last channel is the silhouette"""
    geometry: Floats
    """[K, H, W, 4] likewise"""


def textured_views(
    mesh: TexturedMesh,
    cameras: Tensor,  # [K, 2] azimuth, polar, radians
    lens: Lens,
) -> Views:
    """Look at a mesh through its texture, as other programs will: without any light in colour."""
    texture = torch.from_numpy(mesh.texture.astype(np.float32) / 255.0)
    return views(mesh.vertices, mesh.faces, mesh.uv, lambda uv: looked_up(texture, uv), cameras, lens)


def views(  # a mesh, its colours, and a camera
    vertices: Floats,  # [V, 3] world
    faces: Faces,  # [F, 3]
    carried: Floats,  # [V, C] what colours are made from
    colour_of: ColourOf,
    cameras: Tensor,  # [K, 2] azimuth, polar, radians
    lens: Lens,
) -> Views:
    """Look at a surface from several cameras; each pixel of K pictures is computed alone, one picture at a time."""
    places = torch.from_numpy(vertices)
    tri, attributes = torch.from_numpy(faces), torch.from_numpy(np.ascontiguousarray(carried))[None]
    colours, ids = [], []
    for camera in cameras.cpu().float().split(1):
        picture, seen = _view(places, tri, attributes, colour_of, camera, lens)
        colours.append(picture)
        ids.append(seen)
    geometry = np.stack(list(_shaded(places, tri, ids, cameras, lens)))
    return Views(colours=np.concatenate(colours), geometry=geometry)


def looked_up(
    texture: Tensor,  # [S, S, 3]
    uv: Tensor,  # [P, 2] in [0, 1], v upwards
) -> Tensor:  # [P, 3]
    """Read a texture between its texel centres, and beyond the outermost as at these: bilinear, clamped."""
    size = len(texture)
    places = torch.stack([uv[:, 0], 1 - uv[:, 1]], dim=1) * size - 0.5
    low = places.floor()
    (right, down), corner = (places - low).unbind(dim=1), low.long()
    columns = [(corner[:, 0] + k).clamp(0, size - 1) for k in range(2)]
    rows = [(corner[:, 1] + k).clamp(0, size - 1) for k in range(2)]
    upper, lower = (
        texture[row, columns[0]].lerp(texture[row, columns[1]], right[:, None].to(texture)) for row in rows
    )
    return upper.lerp(lower, down[:, None].to(texture))


@torch.no_grad()
def _view(
    places: Tensor, tri: Tensor, attributes: Tensor, colour_of: ColourOf, camera: Tensor, lens: Lens
) -> tuple[Floats, NDArray[np.int32]]:  # [1, H, W, 4], [1, S H, S W]
    fine = lens.size_px * lens.supersampling
    matrix = clip_matrices(camera[:, 0], camera[:, 1], radius=lens.radius, fov_deg=lens.fov_deg)
    pos_clip = to_clip(places[None], matrix[:, None])
    ids = visibility(pos_clip, tri, (fine, fine))
    frag = fragments(ids, pos_clip, tri)
    bary, _ = barycentrics(frag, pos_clip)
    colours = colour_of(interpolate(frag, bary, attributes)).float().clamp(0, 1).cpu()
    opaque = torch.cat([colours, torch.ones(len(colours), 1)], dim=1)
    picture = to_image(frag, opaque).double().numpy()
    return downsampled(picture, lens.supersampling), ids.numpy()


def _shaded(
    places: Tensor, tri: Tensor, ids: list[NDArray[np.int32]], cameras: Tensor, lens: Lens
) -> Iterator[Floats]:
    stands = camera_position(cameras[:, 0].cpu(), cameras[:, 1].cpu(), lens.radius).numpy()
    for own, stand in zip(ids, stands, strict=True):
        yield shade(places.numpy(), tri.numpy(), own[0], stand, supersampling=lens.supersampling)
