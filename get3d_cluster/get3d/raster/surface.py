"""What the generator needs of a render: points of the surface, and a mask with and without gradient."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from get3d_cluster.get3d.raster.antialias import Blends, blend, blends
from get3d_cluster.get3d.raster.fragments import Fragments, barycentrics, fragments, interpolate, to_image
from get3d_cluster.get3d.raster.meshes import Meshes, pack
from get3d_cluster.get3d.raster.silhouette import Mode
from get3d_cluster.get3d.raster.topology import topology
from get3d_cluster.get3d.raster.visibility import visibility


@dataclass(frozen=True, kw_only=True, slots=True)
class Surface:
    """One render of B images. Row 0 is the top. Axes: P covered pixels."""

    frag: Fragments
    position: Tensor  # [P, 3] world, differentiable in the vertices
    hard: Tensor  # [B, H, W, 1] 1 where covered, else 0
    soft: Tensor  # [B, H, W, 1] antialiased: the outline's gradient to the vertices
    depth: Tensor  # [P] z/w, detached
    blends: Blends  # what made `soft` of `hard`; `blend(colour, surface.blends.detach())` does the same to colours


def render_surface(
    verts: Tensor,  # [V, 3] world
    tri: Tensor,  # [F, 3] int32
    clip_matrix: Tensor,  # [B, 4, 4] world to clip
    size: tuple[int, int],
    *,
    mode: Mode = "walk",
    backend: str = "auto",
) -> Surface:
    """Render one mesh from B cameras."""
    pos_clip = to_clip(verts[None], clip_matrix[:, None])
    ids = visibility(pos_clip, tri, size, backend=backend)
    return _render(verts[None], pos_clip, tri, ids, mode, backend)


def render_meshes(
    meshes: Meshes | Sequence[tuple[Tensor, Tensor]],
    clip_matrices: Tensor,  # [N, 4, 4] world to clip, one camera a mesh
    size: tuple[int, int],
    *,
    mode: Mode = "walk",
    backend: str = "auto",
) -> Surface:
    """Render N meshes of any topology, each from its own camera, in one call.

    Each image is bit for bit the one that `render_surface` makes of its mesh alone.
    """
    packed = meshes if isinstance(meshes, Meshes) else pack(meshes)
    if len(clip_matrices) != len(packed):
        raise ValueError(
            f"clip_matrices {list(clip_matrices.shape)} must hold one camera for each of {len(packed)} meshes"
        )
    counts = packed.vert_ranges[:, 1].to(clip_matrices.device)
    each = clip_matrices.repeat_interleave(counts, dim=0, output_size=len(packed.verts))
    pos_clip = to_clip(packed.verts, each)
    ids = visibility(pos_clip, packed.faces, size, ranges=packed.face_ranges, backend=backend)
    return _render(packed.verts, pos_clip, packed.faces, ids, mode, backend)


def to_clip(
    verts: Tensor,  # [..., 3] world
    matrix: Tensor,  # [..., 4, 4] broadcast against verts
) -> Tensor:  # [..., 4]
    """Project points. Sums are written out: the last bits of a matrix product may depend on its size."""
    x, y, z = (verts[..., i : i + 1] for i in range(3))
    return x * matrix[..., 0] + y * matrix[..., 1] + z * matrix[..., 2] + matrix[..., 3]


def _render(
    verts: Tensor, pos_clip: Tensor, tri: Tensor, tri_id: Tensor, mode: Mode, backend: str
) -> Surface:
    frag = fragments(tri_id, pos_clip, tri)
    bary, depth = barycentrics(frag, pos_clip)
    hard = to_image(frag, torch.ones_like(depth)[:, None])
    topo = topology(tri, pos_clip.shape[-2], backend=backend)
    outline = blends(frag, depth, pos_clip, tri, topo, mode=mode, backend=backend)
    return Surface(
        frag=frag,
        position=interpolate(frag, bary, verts),
        hard=hard,
        soft=blend(hard, outline),
        depth=depth,
        blends=outline,
    )
