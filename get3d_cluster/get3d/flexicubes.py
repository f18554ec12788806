"""Dual marching cubes with learned weights: a vertex for each patch of the surface in a cube, a quad for each crossing.

Signs: **sdf > 0 is inside**, as in ``tets``; faces are counter-clockwise seen from outside. Corner i of a cube lies at
(i & 1, i >> 1 & 1, i >> 2 & 1); its edges are ordered by axis, then by their lower corner; face 2 a + s is the lower
(s = 0) or upper one of axis a. N samples, V grid vertices, A cubes that the surface cuts.

A face whose corners alternate can be crossed in two ways. By default its inside corners are kept apart. Where that
would let one vertex of either cube stand for both crossings of their common face, four quads would meet in one edge;
there both cubes take the other way, which cuts either loop in two. So every edge has two faces (the problem, and this
kind of remedy: Wenger 2013). All tables are derived here.

Source: Shen et al. 2023 (FlexiCubes); Nielson 2004 (dual marching cubes).
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from get3d_cluster.get3d.extraction import Extraction, Weigh, Weights
from get3d_cluster.get3d.raster.meshes import Meshes, ranges_of

CUBE_EDGES = tuple((low, low | 1 << axis) for axis in range(3) for low in range(8) if not low >> axis & 1)
NUM_WEIGHTS = 21
_TINY = 1e-12
"""Added to squared distances, whose root would have no gradient at 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CubeGrid:
    """A regular grid of cubes that fills the box +-0.5; vertices are ordered by x, then y, then z."""

    cells: int
    centre: int  # index of the vertex at the origin
    vertices: Tensor  # [V, 3]
    edges: Tensor  # [E, 2] int64, lower index first
    boundary: Tensor  # [V] bool: lies on the surface of the box

    def to(self, target: torch.device | str) -> "CubeGrid":
        """Return the grid on another device."""
        moved = {name: getattr(self, name).to(target) for name in ("vertices", "edges", "boundary")}
        return replace(self, **moved)

    def is_empty(self, inside: Tensor) -> Tensor:  # [N, V] -> [N] bool
        """Say which samples have no quad: those at an edge on the surface of the box lack cubes on one side."""
        return ~torch.stack([cut.flatten(1).any(dim=1) for cut in _cuts(_cubed(inside, self.cells))]).any(
            dim=0
        )

    def extract(
        self,
        positions: Tensor,  # [N, V, 3] grid vertices after deformation
        sdf: Tensor,  # [N, V] positive inside
        weigh: Weigh | None = None,  # None: all weights equal
        *,
        in_four: bool = True,
    ) -> Extraction:
        """Extract the zero level set by dual marching cubes."""
        return flexicubes(positions, sdf, self, weigh, in_four=in_four)


def cube_grid(cells: int) -> CubeGrid:
    """Build the grid of ``cells`` cubes a side. Raises: ValueError if ``cells`` is odd or below 2."""
    if cells < 2 or cells % 2:
        raise ValueError(f"cells={cells} must be an even number of at least 2")
    side = torch.arange(cells + 1)
    places = torch.cartesian_prod(side, side, side)
    index = torch.arange(len(places)).view(cells + 1, cells + 1, cells + 1)
    ends = [(index.narrow(a, 0, cells), index.narrow(a, 1, cells)) for a in range(3)]
    return CubeGrid(
        cells=cells,
        centre=int(index[cells // 2, cells // 2, cells // 2]),
        vertices=((2 * places - cells).double() / (2 * cells)).float(),
        edges=torch.cat([torch.stack([a.flatten(), b.flatten()], dim=1) for a, b in ends]),
        boundary=((places == 0) | (places == cells)).any(dim=1),
    )


def flexicubes(
    positions: Tensor,  # [N, V, 3] grid vertices after deformation
    sdf: Tensor,  # [N, V] positive inside
    grid: CubeGrid,
    weigh: Weigh | None = None,  # None: all weights equal
    *,
    in_four: bool = True,  # split quads in four around a centre, as in training, or else in two
) -> Extraction:
    """Extract the zero level set; differentiable in positions, sdf and weights, topology is not."""
    inside = _cubed(sdf.detach() > 0, grid.cells)
    cubes = _cut_cubes(inside, grid.cells)
    weights = weigh(cubes.sample, cubes.corners) if weigh else equal_weights(len(cubes.case), sdf)
    crossings, is_crossed = _crossings(positions, sdf, cubes, weights)
    verts, number = _dual_vertices(crossings, cubes.loops, weights.edges * is_crossed)
    own = number.gather(1, cubes.loops.clamp(min=0))  # [A, 12] the vertex that stands for each crossing
    quads, quad_sample = _quads(inside, cubes, own, grid.cells)
    cube, _ = (number >= 0).nonzero(as_tuple=True)
    split = _in_four if in_four else _in_two
    centres, faces = split(verts, quads, weights.splits[cube])
    sample = torch.cat([cubes.sample[cube], quad_sample[: len(centres)]])
    face_sample = quad_sample.repeat_interleave(len(faces) // max(len(quads), 1))
    return Extraction(
        meshes=_packed(torch.cat([verts, centres]), sample, faces, face_sample, len(sdf)),
        deviation=_deviation(verts, crossings, own, is_crossed),
        weights_square=weights.raw.square().sum() / max(weights.raw.numel(), 1),
    )


def squashed(raw: Tensor) -> Weights:  # [A, 21] beta, alpha, gamma
    """Limit weights so that every vertex stays within its cube. Source: the published training's limits."""
    edges, corners, splits = raw.split([12, 8, 1], dim=1)
    return Weights(
        corners=0.5 * torch.tanh(corners) + 1,
        edges=0.5 * torch.tanh(edges) + 1,
        splits=0.5 * torch.sigmoid(splits[:, 0]) + 0.25,
        raw=raw,
    )


def equal_weights(num: int, like: Tensor) -> Weights:
    """Return the weights of plain dual marching cubes."""
    return squashed(like.new_zeros(num, NUM_WEIGHTS))


# Cubes that the surface cuts


class _Cubes(NamedTuple):
    sample: Tensor  # [A] int64
    place: Tensor  # [A, 3] int64
    corners: Tensor  # [A, 8] int64 grid vertices
    case: Tensor  # [A] int64 bit i: corner i is inside
    loops: Tensor  # [A, 12] int64 which of up to 4 patches an edge belongs to, -1: it is not crossed
    row: Tensor  # [N n^3] int64 place in these arrays, or -1


def _cubed(values: Tensor, cells: int) -> Tensor:  # [N, V] -> [N, n + 1, n + 1, n + 1]
    return values.view(-1, cells + 1, cells + 1, cells + 1)


def _offsets(corner: int) -> tuple[int, int, int]:
    return corner & 1, corner >> 1 & 1, corner >> 2 & 1


def _cut_cubes(inside: Tensor, cells: int) -> _Cubes:
    case = torch.zeros(len(inside), cells, cells, cells, dtype=torch.uint8, device=inside.device)
    for corner in range(8):
        view = inside
        for axis, offset in enumerate(_offsets(corner)):
            view = view.narrow(axis + 1, offset, cells)
        case |= view.to(torch.uint8) << corner
    sample, *place = ((case > 0) & (case < 255)).nonzero(as_tuple=True)
    at = torch.stack(place, dim=1)
    row = torch.full((case.numel(),), -1, dtype=torch.int64, device=inside.device)
    row[_cube_index(sample, at, cells)] = torch.arange(len(sample), device=inside.device)
    corners = torch.stack([_vertex_index(at + at.new_tensor(_offsets(i)), cells) for i in range(8)], dim=1)
    cases = case[(sample, *place)].long()
    entry = cases * 64 + _choices(sample, at, cases, row, cells)
    table = _tables().loops.to(inside.device)
    return _Cubes(sample, at, corners, cases, table[entry].long(), row)


def _cube_index(sample: Tensor, place: Tensor, cells: int) -> Tensor:
    return ((sample * cells + place[:, 0]) * cells + place[:, 1]) * cells + place[:, 2]


def _vertex_index(place: Tensor, cells: int) -> Tensor:
    return (place[:, 0] * (cells + 1) + place[:, 1]) * (cells + 1) + place[:, 2]


def _choices(sample: Tensor, place: Tensor, case: Tensor, row: Tensor, cells: int) -> Tensor:  # [A] 6 bits
    """Decide for every face how it is crossed.

    A choice cuts a loop in each of two cubes, and may thereby mend another face: so the faces between cubes 2 k and
    2 k + 1 of each axis are decided together, then those between 2 k + 1 and 2 k + 2. No cube has two of them.
    """
    pinched = _tables().pinched.to(case.device)
    choice = torch.zeros_like(case)
    for axis in range(3):
        for odd in (0, 1):
            below = ((place[:, axis] % 2 == odd) & (place[:, axis] < cells - 1)).nonzero()[:, 0]
            below = below[pinched[case[below] * 64 + choice[below], 2 * axis + 1]]
            step = place.new_zeros(3)
            step[axis] = 1
            above = row[_cube_index(sample[below], place[below] + step, cells)]
            both = pinched[case[above] * 64 + choice[above], 2 * axis]
            choice[below[both]] |= 1 << (2 * axis + 1)
            choice[above[both]] |= 1 << (2 * axis)
    return choice


# Vertices


def _crossings(
    positions: Tensor, sdf: Tensor, cubes: _Cubes, weights: Weights
) -> tuple[Tensor, Tensor]:  # [A, 12, 3], [A, 12] bool
    """Return where the surface cuts the edges of each cube, by the cube's own weights of its corners (section 4.2)."""
    flat = (cubes.sample[:, None] * sdf.shape[1] + cubes.corners).flatten()
    corner = positions.reshape(-1, 3).index_select(0, flat).view(-1, 8, 3)
    value = sdf.reshape(-1).index_select(0, flat).view(-1, 8) * weights.corners
    low, high = (torch.tensor(ends, device=sdf.device) for ends in zip(*CUBE_EDGES, strict=True))
    s_low, s_high = value.index_select(1, low), value.index_select(1, high)
    is_crossed = cubes.loops >= 0
    share = torch.where(is_crossed, s_low, 0.0) / torch.where(is_crossed, s_low - s_high, 1.0)
    a, b = corner.index_select(1, low), corner.index_select(1, high)
    return a + share[:, :, None] * (b - a), is_crossed


def _dual_vertices(
    crossings: Tensor,  # [A, 12, 3]
    loops: Tensor,  # [A, 12]
    shares: Tensor,  # [A, 12] 0 where an edge is not crossed
) -> tuple[Tensor, Tensor]:  # [D, 3], [A, 4] int64 place among them, or -1
    """Return the weighted mean of the crossings of each patch (section 4.2)."""
    belongs = loops[:, None] == torch.arange(4, device=loops.device)[:, None]
    share = belongs * shares[:, None]
    exists = belongs.any(dim=2)
    total = torch.where(exists, share.sum(dim=2), 1.0)
    means = (share @ crossings) / total[:, :, None]
    number = torch.where(exists, exists.flatten().cumsum(0).view_as(exists) - 1, -1)
    return means[exists], number


def _deviation(verts: Tensor, crossings: Tensor, own: Tensor, is_crossed: Tensor) -> Tensor:
    """Return the mean over vertices of the mean deviation of their distances to crossings (section 4.5)."""
    if not len(verts):
        return verts.sum()
    vertex = own[is_crossed]
    distance = ((verts[vertex] - crossings[is_crossed]).square().sum(dim=1) + _TINY).sqrt()
    count = torch.bincount(vertex, minlength=len(verts)).to(distance.dtype)
    mean = verts.new_zeros(len(verts)).index_add(0, vertex, distance) / count
    return ((distance - mean[vertex]).abs() / count[vertex]).sum() / len(verts)


# Faces


def _cuts(values: Tensor) -> list[Tensor]:  # [N, n + 1, n + 1, n + 1] bool
    """Return for each axis which of its edges change sign, of those that four cubes surround."""
    found = []
    for axis in (1, 2, 3):
        inner = values
        for other in {1, 2, 3} - {axis}:
            inner = inner.narrow(other, 1, values.shape[other] - 2)
        count = values.shape[axis] - 1
        found.append(inner.narrow(axis, 0, count) != inner.narrow(axis, 1, count))
    return found


def _quads(inside: Tensor, cubes: _Cubes, own: Tensor, cells: int) -> tuple[Tensor, Tensor]:  # [Q, 4], [Q]
    """Return the vertices around every crossing, and the sample it belongs to; ordered by axis."""
    quads, samples = [], []
    for axis, cut in enumerate(_cuts(inside)):
        sample, *place = cut.nonzero(as_tuple=True)
        at = torch.stack(place, dim=1) + 1
        at[:, axis] -= 1
        ring = torch.stack([_around(cubes, own, sample, at, axis, side, cells) for side in range(4)], dim=1)
        out = inside[(sample, *at.unbind(1))]  # the lower end is inside: the surface faces along the axis
        quads.append(torch.where(out[:, None], ring, ring.flip(1)))
        samples.append(sample)
    return torch.cat(quads), torch.cat(samples)


def _around(
    cubes: _Cubes, own: Tensor, sample: Tensor, at: Tensor, axis: int, side: int, cells: int
) -> Tensor:  # [Q]
    """Return the vertex in one of the four cubes around an edge, counter-clockwise about its axis."""
    first, second = (axis + 1) % 3, (axis + 2) % 3
    back_first, back_second = ((1, 1), (0, 1), (0, 0), (1, 0))[side]
    cube = at.clone()
    cube[:, first] -= back_first
    cube[:, second] -= back_second
    low = back_first << first | back_second << second
    edge = CUBE_EDGES.index((low, low | 1 << axis))
    return own[cubes.row[_cube_index(sample, cube, cells)], edge]


def _in_four(verts: Tensor, quads: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Split quads around a weighted centre (section 4.2)."""
    corner, weight = verts[quads], gamma[quads]
    one, other = weight[:, 0] * weight[:, 2], weight[:, 1] * weight[:, 3]
    means = (corner[:, 0] + corner[:, 2]) / 2, (corner[:, 1] + corner[:, 3]) / 2
    centres = (one[:, None] * means[0] + other[:, None] * means[1]) / (one + other)[:, None]
    centre = len(verts) + torch.arange(len(quads), device=quads.device)
    faces = [torch.stack([quads[:, i], quads[:, (i + 1) % 4], centre], dim=1) for i in range(4)]
    return centres, torch.stack(faces, dim=1).flatten(0, 1)


def _in_two(verts: Tensor, quads: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Split quads along the diagonal of the larger weights."""
    weight = gamma.detach()[quads]
    turned = weight[:, 0] * weight[:, 2] < weight[:, 1] * weight[:, 3]
    quads = torch.where(turned[:, None], quads.roll(-1, 1), quads)
    return verts[:0], torch.stack([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]], dim=1).flatten(0, 1)


def _packed(verts: Tensor, sample: Tensor, faces: Tensor, face_sample: Tensor, num_samples: int) -> Meshes:
    """Put the vertices and faces of each sample together, in the order they have."""
    order = sample.argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    by_sample = face_sample.argsort(stable=True)
    return Meshes(
        verts=verts.index_select(0, order),
        faces=place[faces[by_sample]].to(torch.int32),
        vert_ranges=ranges_of(torch.bincount(sample, minlength=num_samples).tolist()),
        face_ranges=ranges_of(torch.bincount(face_sample, minlength=num_samples).tolist()),
    )


# Tables


class _Tables(NamedTuple):
    """Entry ``case * 64 + choices``; bit f of the choices: face f keeps outside corners apart."""

    loops: Tensor  # [16384, 12] int8
    pinched: Tensor  # [16384, 6] bool: all four edges of this face belong to one loop


@lru_cache(maxsize=1)
def _tables() -> _Tables:
    loops, pinched = [], []
    for case in range(256):
        ambiguous = sum(1 << face for face in range(6) if len(_crossed(case, face)) == 4)
        known = {choices: _loops(case, choices) for choices in range(64) if choices & ~ambiguous == 0}
        rows = [known[choices & ambiguous] for choices in range(64)]
        loops += rows
        pinched += [
            [ambiguous >> face & 1 == 1 and len({row[e] for e in _ring(face)[1]}) == 1 for face in range(6)]
            for row in rows
        ]
    return _Tables(torch.tensor(loops, dtype=torch.int8), torch.tensor(pinched))


@lru_cache(maxsize=6)
def _ring(face: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the corners around a face, and the edges from each one to the next."""
    axis, side = divmod(face, 2)
    base, p, q = side << axis, 1 << (axis + 1) % 3, 1 << (axis + 2) % 3
    corners = (base, base | p, base | p | q, base | q)
    pairs = [(corners[i], corners[(i + 1) % 4]) for i in range(4)]
    return corners, tuple(CUBE_EDGES.index((min(pair), max(pair))) for pair in pairs)


def _crossed(case: int, face: int) -> list[int]:
    """Return the edges of a face whose ends differ, in their order around it."""
    return [e for e in _ring(face)[1] if (case >> CUBE_EDGES[e][0] & 1) != (case >> CUBE_EDGES[e][1] & 1)]


def _segments(case: int, face: int, choices: int) -> list[tuple[int, int]]:
    """Return which edges the surface joins on a face."""
    edges = _crossed(case, face)
    if len(edges) < 4:
        return [(edges[0], edges[1])] if edges else []
    # Edges i - 1 and i meet in corner i of the ring.
    first_is_inside = case >> _ring(face)[0][0] & 1
    first = 0 if first_is_inside != (choices >> face & 1) else 1
    return [(edges[first - 1], edges[first]), (edges[first + 1], edges[(first + 2) % 4])]


def _loops(case: int, choices: int) -> list[int]:
    """Number the closed loops of crossed edges, by their first edges; -1 for an edge that is not crossed."""
    joined = [pair for face in range(6) for pair in _segments(case, face, choices)]
    label = {edge: edge for pair in joined for edge in pair}
    for _ in label:  # as often as the longest loop could need
        for a, b in joined:
            label[a] = label[b] = min(label[a], label[b])
    firsts = sorted(set(label.values()))
    return [firsts.index(label[edge]) if edge in label else -1 for edge in range(12)]
