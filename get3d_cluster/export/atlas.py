"""From a coloured surface to one texture: cut into charts, look up each texel's colour, fill the gutters.

Letters: V vertices, F faces, W vertices after cutting, S texture size in pixels, P points.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.ndimage
import torch
import xatlas
from numpy.typing import NDArray
from torch import Tensor

from get3d_cluster.errors import UsageError
from get3d_cluster.export.mesh import Faces, Floats, Pixels, TexturedMesh, vertex_normals, without_slivers
from get3d_cluster.get3d.raster import barycentrics, fragments, interpolate, visibility

ColourAt = Callable[[Tensor], Tensor]
"""Points on the surface, [P, 3] world, to RGB in [0, 1], [P, 3]."""

POINTS_PER_QUERY = 65536
"""Texels asked for at once; bounds the memory of the texture field, not the result."""

GUTTER_PX = 4
"""Texels between charts of a large texture: enough for its first two mipmaps. Small ones have none to spare."""
LARGE_PX = 512

_DIVERGED = "the generator has diverged: export from an older checkpoint (launch.py checkpoints RUN)"


class NoSurfaceError(UsageError):
    """A shape that nothing can be made of: empty, or with numbers that are not finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Atlas:
    """A surface cut into charts that lie side by side in the unit square."""

    vmapping: NDArray[np.int64]
    """[W] the vertex that each vertex after cutting is a copy of"""
    faces: Faces
    """[F, 3] into the W vertices"""
    uv: Floats
    """[W, 2] in [0, 1], v upwards"""


def textured_mesh(
    vertices: Floats,  # [V, 3] world
    faces: Faces,  # [F, 3]
    colour_at: ColourAt,
    size: int,
) -> TexturedMesh:
    """Cut a surface into charts and bake what ``colour_at`` says into a texture of ``size`` pixels squared.

    Faces without an area are left out.

    Raises: NoSurfaceError if there is no surface, or positions or colours are not finite.
    """
    atlas = unwrap(vertices, faces, size)
    cut = vertices[atlas.vmapping]
    return TexturedMesh(
        vertices=cut,
        faces=atlas.faces,
        uv=atlas.uv,
        texture=bake(colour_at, cut, atlas, size=size),
        normals=vertex_normals(vertices, faces)[atlas.vmapping],
    )


def unwrap(
    vertices: Floats,  # [V, 3]
    faces: Faces,  # [F, 3]
    size: int = 1024,
) -> Atlas:
    """Cut a surface into charts with little distortion and pack them into the unit square.

    Faces without an area are left out. Between charts there is room for the filters that read a texture of ``size``
    pixels squared.

    Raises: NoSurfaceError if there is no surface, or a vertex is not finite.
    """
    solid = check_surface(vertices, faces)
    cutter = xatlas.Atlas()
    cutter.add_mesh(np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(solid, np.uint32))
    cutter.generate(pack_options=_packing(size))
    vmapping, cut, uv = cutter[0]
    return Atlas(vmapping=vmapping.astype(np.int64), faces=cut.astype(np.int32), uv=uv.astype(np.float32))


def bake(
    colour_at: ColourAt,
    vertices: Floats,  # [W, 3] world, after cutting
    atlas: Atlas,
    *,
    size: int,
    points_per_query: int = POINTS_PER_QUERY,
) -> Pixels:  # [S, S, 3]
    """Ask ``colour_at`` for the colour of each texel that lies in a chart; other texels copy the nearest one.

    Copying keeps the seams invisible, since bilinear filters reach over the border of a chart.
    """
    rows, columns, points = surface_points(vertices, atlas, size)
    texture = np.zeros((size, size, 3), np.uint8)
    covered = np.zeros((size, size), bool)
    covered[rows, columns] = True
    texture[rows, columns] = colours_of(colour_at, points, points_per_query)
    return dilate(texture, covered)


def surface_points(
    vertices: Floats,  # [W, 3] world, after cutting
    atlas: Atlas,
    size: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], Tensor]:  # [P], [P], [P, 3]
    """Return row, column and place on the surface of each texel whose centre lies in a chart."""
    uv = torch.from_numpy(atlas.uv)
    # row 0 of an image is the top and clip y grows with the row; v grows upwards
    flat = torch.stack([2 * uv[:, 0] - 1, 1 - 2 * uv[:, 1], torch.zeros(len(uv)), torch.ones(len(uv))], dim=1)
    pos_clip, tri = flat[None], torch.from_numpy(atlas.faces)
    frag = fragments(visibility(pos_clip, tri, (size, size)), pos_clip, tri)
    bary, _ = barycentrics(frag, pos_clip)
    points = interpolate(frag, bary, torch.from_numpy(vertices)[None])
    return frag.py.numpy().astype(np.int64), frag.px.numpy().astype(np.int64), points


def dilate(
    texture: Pixels,  # [S, S, 3]
    covered: NDArray[np.bool_],  # [S, S]
) -> Pixels:  # [S, S, 3]
    """Give each texel that is not covered the colour of the nearest one that is, if there is one."""
    if not covered.any():
        return texture
    nearest = scipy.ndimage.distance_transform_edt(~covered, return_distances=False, return_indices=True)
    return np.ascontiguousarray(texture[tuple(nearest)])


def _packing(size: int) -> xatlas.PackOptions:
    options = xatlas.PackOptions()
    options.resolution = size
    options.padding = GUTTER_PX if size >= LARGE_PX else 1
    options.bilinear = True
    options.create_image = False
    return options


def check_surface(
    vertices: Floats,  # [V, 3]
    faces: Faces,  # [F, 3]
) -> Faces:  # [G, 3]
    """Return the faces that have an area.

    Raises: NoSurfaceError if there is none, or a vertex is not finite.
    """
    if not np.isfinite(vertices).all():
        raise NoSurfaceError(
            f"{int((~np.isfinite(vertices)).any(axis=1).sum())} of {len(vertices)} vertices are not finite",
            _DIVERGED,
        )
    solid = without_slivers(vertices, faces)
    if not len(solid):
        raise NoSurfaceError(
            f"the shape is empty: {len(faces)} faces, none with an area",
            "choose another seed, or export from a checkpoint that was trained longer",
        )
    return solid


@torch.no_grad()
def colours_of(
    colour_at: ColourAt,
    points: Tensor,  # [P, 3] world
    points_per_query: int = POINTS_PER_QUERY,
) -> Pixels:  # [P, 3]
    """Ask ``colour_at`` for colours and round them to bytes.

    Raises: NoSurfaceError if one is not finite.
    """
    chunks = [colour_at(chunk).clamp(0, 1).cpu() for chunk in points.split(points_per_query)]
    colours = torch.cat([torch.zeros(0, 3), *chunks])
    if not colours.isfinite().all():
        raise NoSurfaceError("the texture field gives colours that are not finite", _DIVERGED)
    return (colours.double() * 255.0 + 0.5).floor().to(torch.uint8).numpy()
