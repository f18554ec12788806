"""Tetrahedral grid, marching tetrahedra and what keeps a signed distance field sane.

Signs: **sdf > 0 is inside**; exactly 0 counts as outside. Triangles come out counter-clockwise seen from
outside. Axes: N samples, V grid vertices, T tetrahedra, E edges. Corners of a tetrahedron are 0..3 in
positive orientation (det(v1 - v0, v2 - v0, v3 - v0) > 0); its six edges are ordered as in `TET_EDGES`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from get3d_cluster.get3d.extraction import Extraction, Weigh
from get3d_cluster.get3d.flexicubes import CubeGrid
from get3d_cluster.get3d.raster.meshes import Meshes, ranges_of

TET_EDGES = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))

BOUNDARY_SDF = -1e-3
"""Largest value `close_boundary` leaves on the boundary: small beside what a network emits, yet not 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TetGrid:
    """A body-centred cubic tetrahedral grid that fills the box +-0.5.

    The flattest ones, on the boundary, are 0.41 / cells wide; so moving every vertex by less than 0.2 / cells
    (Euclidean) inverts none.
    """

    cells: int
    centre: int  # index of the vertex at the origin
    vertices: Tensor  # [V, 3]
    tets: Tensor  # [T, 4] int64, all of positive volume
    edges: Tensor  # [E, 2] int64, lower index first, sorted
    tet_edges: Tensor  # [T, 6] int64 into `edges`, in the order of TET_EDGES
    boundary: Tensor  # [V] bool: lies on the surface of the box

    def is_empty(self, inside: Tensor) -> Tensor:  # [N, V] -> [N] bool
        """Say which samples have no surface."""
        return inside.all(dim=1) | ~inside.any(dim=1)

    def extract(
        self,
        positions: Tensor,  # [N, V, 3] grid vertices after deformation
        sdf: Tensor,  # [N, V] positive inside
        _weigh: Weigh | None = None,
        *,
        in_four: bool = True,  # noqa: ARG002 - there are no quads, and no weights
    ) -> Extraction:
        """Extract the zero level set by marching tetrahedra."""
        nothing = sdf.new_zeros(())
        return Extraction(marching_tets(positions, sdf, self), nothing, nothing)

    def to(self, target: torch.device | str) -> "TetGrid":
        """Return the grid on another device."""
        return replace(
            self,
            vertices=self.vertices.to(target),
            tets=self.tets.to(target),
            edges=self.edges.to(target),
            tet_edges=self.tet_edges.to(target),
            boundary=self.boundary.to(target),
        )


def bcc_grid(cells: int) -> TetGrid:
    """Build the grid of `cells` cubes a side: cube corners and cube centres.

    Four tetrahedra stand around each inner cube face (its two centres and one of its edges); a face of the
    boundary gets two, with a diagonal that alternates like a chessboard. With an even count that makes the
    grid mirror-symmetric in x, y and z, and puts a vertex at the origin.

    Raises: ValueError if `cells` is odd or below 2.
    """
    if cells < 2 or cells % 2:
        raise ValueError(f"cells={cells} must be an even number of at least 2")
    doubled = _doubled_positions(cells)  # integers in half cells: exact, and the mirror image is exact too
    tets = _positive(torch.cat([_inner_tets(cells), _boundary_tets(cells)]), doubled)
    edges, tet_edges = _unique_edges(tets, len(doubled))
    return TetGrid(
        cells=cells,
        centre=int((doubled == 0).all(dim=1).nonzero()),
        vertices=(doubled.double() / (2 * cells)).float(),
        tets=tets,
        edges=edges,
        tet_edges=tet_edges,
        boundary=(doubled.abs() == cells).any(dim=1),
    )


def _lattice(*counts: int) -> Tensor:
    """Return [prod(counts), 3] int64: all index triples, last fastest."""
    return torch.cartesian_prod(*[torch.arange(count) for count in counts]).reshape(-1, 3)


def _doubled_positions(cells: int) -> Tensor:
    corners = 2 * _lattice(cells + 1, cells + 1, cells + 1) - cells
    centres = 2 * _lattice(cells, cells, cells) + 1 - cells
    return torch.cat([corners, centres])


def _corner(index: Tensor, cells: int) -> Tensor:
    return (index[..., 0] * (cells + 1) + index[..., 1]) * (cells + 1) + index[..., 2]


def _centre(index: Tensor, cells: int) -> Tensor:
    return (cells + 1) ** 3 + (index[..., 0] * cells + index[..., 1]) * cells + index[..., 2]


def _face_corners(
    lowest: Tensor,  # [M, 3] index of the corner with the least coordinates
    axis: int,  # the face's normal
    cells: int,
) -> Tensor:  # [M, 4] around the face
    one = torch.eye(3, dtype=torch.int64)
    p, q = one[(axis + 1) % 3], one[(axis + 2) % 3]
    return torch.stack([_corner(lowest + step, cells) for step in (0 * p, p, p + q, q)], dim=1)


def _inner_tets(cells: int) -> Tensor:
    tets = []
    for axis in range(3):
        step = torch.eye(3, dtype=torch.int64)[axis]
        below = _lattice(*(cells - 1 if a == axis else cells for a in range(3)))
        ring = _face_corners(below + step, axis, cells)
        pair = torch.stack([_centre(below, cells), _centre(below + step, cells)], dim=1)
        tets += [torch.cat([pair, ring[:, [i, (i + 1) % 4]]], dim=1) for i in range(4)]
    return torch.cat(tets)


def _boundary_tets(cells: int) -> Tensor:
    tets = []
    for axis in range(3):
        flat = _lattice(*(1 if a == axis else cells for a in range(3)))
        step = torch.eye(3, dtype=torch.int64)[axis]
        odd = flat.sum(dim=1, keepdim=True) % 2 == 1
        for cell, face in ((flat, flat), (flat + (cells - 1) * step, flat + cells * step)):
            ring = _face_corners(face, axis, cells)
            ring = torch.where(odd, ring.roll(1, dims=1), ring)
            centre = _centre(cell, cells)[:, None]
            tets += [torch.cat([centre, ring[:, half]], dim=1) for half in ([0, 1, 2], [0, 2, 3])]
    return torch.cat(tets)


def _positive(tets: Tensor, doubled: Tensor) -> Tensor:
    """Swap two corners of every tetrahedron of negative volume."""
    a, b, c = (doubled[tets[:, 1:]] - doubled[tets[:, :1]]).double().unbind(dim=1)
    negative = (torch.linalg.cross(a, b) * c).sum(dim=1) < 0
    return torch.where(negative[:, None], tets[:, [0, 1, 3, 2]], tets)


def _unique_edges(tets: Tensor, num_vertices: int) -> tuple[Tensor, Tensor]:
    ends = tets[:, torch.tensor(TET_EDGES)]
    key = ends.amin(dim=2) * num_vertices + ends.amax(dim=2)
    unique, place = torch.unique(key, return_inverse=True)
    return torch.stack([unique // num_vertices, unique % num_vertices], dim=1), place


def marching_tets(
    positions: Tensor,  # [N, V, 3] grid vertices after deformation
    sdf: Tensor,  # [N, V] positive inside
    grid: TetGrid,
) -> Meshes:
    """Extract the zero level set of each sample; differentiable in both inputs, topology is not.

    Every table is looked up, nothing is sorted: the cost is one pass over the grid. Samples without a sign
    change give empty meshes. Vertices are in the order of `grid.edges`, faces in the order of `grid.tets`.

    Source: Shen et al. 2021 (DMTet), marching tetrahedra layer.
    """
    if sdf.dim() != 2 or sdf.shape[1] != len(grid.vertices) or positions.shape != (*sdf.shape, 3):
        expected = f"[N, {len(grid.vertices)}, 3] and [N, {len(grid.vertices)}]"
        raise ValueError(f"positions {list(positions.shape)} and sdf {list(sdf.shape)} must be {expected}")
    inside = sdf.detach() > 0
    sample, edge, num_verts = _crossing_edges(inside, grid)
    ends = (sample * sdf.shape[1])[:, None] + grid.edges[edge]
    verts = crossing_points(positions.reshape(-1, 3), sdf.reshape(-1), ends)
    faces, num_faces = _faces(inside, grid, sample * len(grid.edges) + edge)
    return Meshes(
        verts=verts,
        faces=faces,
        vert_ranges=ranges_of(num_verts),
        face_ranges=ranges_of(num_faces),
    )


def crossing_points(
    positions: Tensor,  # [M, 3]
    sdf: Tensor,  # [M] positive inside
    ends: Tensor,  # [K, 2] the two ends of an edge differ in sign
) -> Tensor:  # [K, 3]
    """Return where the surface cuts each edge.

    Source: Shen et al. 2021 (DMTet), linear interpolation of the sign change.
    """
    a, b = (positions.index_select(0, ends[:, i]) for i in (0, 1))
    s_a, s_b = (sdf.index_select(0, ends[:, i]) for i in (0, 1))
    return a + (s_a / (s_a - s_b))[:, None] * (b - a)


def _crossing_edges(inside: Tensor, grid: TetGrid) -> tuple[Tensor, Tensor, list[int]]:
    """Return sample [K], edge [K] and the number of crossings of each sample."""
    ends = _signs(inside, grid.edges).view(torch.int16)
    crossing = (ends != 0) & (ends != 0x0101)
    sample, edge = crossing.nonzero(as_tuple=True)
    return sample, edge, crossing.sum(dim=1).tolist()


def _faces(
    inside: Tensor,  # [N, V] bool
    grid: TetGrid,
    crossings: Tensor,  # [K] sample * E + edge, in the order of the vertices they make
) -> tuple[Tensor, list[int]]:
    num_samples, num_edges = len(inside), len(grid.edges)
    number = torch.zeros(num_samples * num_edges, dtype=torch.int32, device=inside.device)
    number[crossings] = torch.arange(len(crossings), dtype=torch.int32, device=inside.device)

    corners = _signs(inside, grid.tets).view(torch.int32)
    sample, tet = ((corners != 0) & (corners != 0x01010101)).nonzero(as_tuple=True)
    packed = corners[sample, tet]
    active = ((packed | packed >> 7 | packed >> 14 | packed >> 21) & 15).long()  # bit i is corner i
    table = _CASES.to(inside.device)[active]  # [A, 2, 3] local edges, -1 where the second triangle is missing
    used = table[:, :, 0] >= 0
    local = table.clamp(min=0).reshape(-1, 6)
    edge = grid.tet_edges[tet].gather(1, local) + (sample * num_edges)[:, None]
    faces = number[edge].reshape(-1, 2, 3)[used]
    per_sample = torch.zeros(num_samples, dtype=torch.int64, device=inside.device)
    per_sample.index_add_(0, sample, used.sum(dim=1))
    return faces, per_sample.tolist()


def _signs(
    inside: Tensor,  # [N, V] bool
    index: Tensor,  # [K, C]
) -> Tensor:  # [N, K * C] uint8: 1 inside, 0 outside
    """Look signs up, the first of C in the lowest byte when read as integers (on every machine torch runs on).

    Row by row: torch gathers from one row four times faster than from the columns of a matrix.
    """
    flat = index.reshape(-1)
    return torch.stack([row.index_select(0, flat) for row in inside.view(torch.uint8)])


def _case_table() -> Tensor:
    """Derive [16, 2, 3]: up to two triangles of local edges per set of inside corners (bit i is corner i)."""
    return torch.tensor([_case_triangles([i for i in range(4) if case >> i & 1]) for case in range(16)])


def _case_triangles(inside: list[int]) -> list[list[int]]:
    outside = [i for i in range(4) if i not in inside]
    none = [-1, -1, -1]
    if not inside or not outside:
        return [none, none]
    if len(inside) == 2:  # around the quad, neighbours share a corner
        (a, b), (c, d) = inside, outside
        ring = [(a, c), (a, d), (b, d), (b, c)]
    else:
        ring = [(i, o) for i in inside for o in outside]
    ring = ring if _faces_outward(ring, inside, outside) else ring[::-1]
    edges = [TET_EDGES.index((min(pair), max(pair))) for pair in ring]
    triangles = [[edges[0], second, third] for second, third in pairwise(edges[1:])]
    return [*triangles, none][:2]


def _faces_outward(ring: list[tuple[int, int]], inside: list[int], outside: list[int]) -> bool:
    corner = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)

    def mean(corners: Iterable[int]) -> Tensor:
        return corner[list(corners)].mean(dim=0)

    first, second, third = (mean(pair) for pair in ring[:3])
    normal = torch.linalg.cross(second - first, third - first)
    return bool(torch.dot(normal, mean(outside) - mean(inside)) > 0)


_CASES = _case_table()


def sdf_entropy(
    sdf: Tensor,  # [N, V]
    edges: Tensor,  # [E, 2]
) -> Tensor:
    """Return how undecided the signs are: a mean over all edges of the batch whose ends differ in sign.

    Each end is asked, as a logit, for the sign of the other one. 0 where no edge crosses.

    Source: Munkberg et al. 2022, equation 2; Gao et al. 2022 (GET3D), section 3.2.
    """
    inside = sdf.detach() > 0
    sample, edge = (inside[:, edges[:, 0]] != inside[:, edges[:, 1]]).nonzero(as_tuple=True)
    flat = sdf.reshape(-1)
    a, b = (flat.index_select(0, sample * sdf.shape[1] + edges[edge, i]) for i in (0, 1))
    loss = F.binary_cross_entropy_with_logits(a, (b > 0).to(a), reduction="sum")
    loss = loss + F.binary_cross_entropy_with_logits(b, (a > 0).to(b), reduction="sum")
    return loss / max(len(edge), 1)


def repair_empty(
    sdf: Tensor,  # [N, V]
    deformation: Tensor,  # [N, V, 3]
    grid: TetGrid | CubeGrid,
) -> tuple[Tensor, Tensor, Tensor]:  # sdf [N, V], deformation [N, V, 3], penalty [N]
    """Give every sample whose SDF has one sign throughout some surface, and a reason to grow its own.

    Such a sample gets 1 - min(sdf) at the centre and -1 - max(sdf) on the boundary, extremes over the given
    batch; it is detached, so that images of the makeshift surface teach nothing; and its penalty is mean
    |sdf| (with gradient), which drives values towards a sign change. Other samples pass unchanged with
    penalty 0. Call it before `close_boundary`.

    Source: the behaviour of the published GET3D training.
    """
    inside = sdf.detach() > 0
    empty = grid.is_empty(inside)
    low, high = sdf.detach().amin(), sdf.detach().amax()
    makeshift = sdf.detach().masked_fill(grid.boundary, 0.0)
    makeshift = makeshift + grid.boundary * (-1.0 - high)
    makeshift[:, grid.centre] = 1.0 - low
    fixed = torch.where(empty[:, None], makeshift, sdf)
    still = torch.where(empty[:, None, None], deformation.detach(), deformation)
    return fixed, still, sdf.abs().mean(dim=1) * empty


def close_boundary(
    sdf: Tensor,  # [N, V]
    grid: TetGrid | CubeGrid,
) -> Tensor:  # [N, V]
    """Force the surface of the box outside, so that every mesh is closed; forced values get no gradient."""
    return torch.where(grid.boundary, sdf.clamp(max=BOUNDARY_SDF), sdf)
