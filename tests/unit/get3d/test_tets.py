import math
from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from get3d_cluster.errors import UsageError
from get3d_cluster.get3d.config import GridConfig
from get3d_cluster.get3d.tets import (
    TetGrid,
    bcc_grid,
    close_boundary,
    marching_tets,
    repair_empty,
    sdf_entropy,
)


@pytest.fixture(scope="module")
def grid() -> TetGrid:
    return bcc_grid(12)


def positions(grid: TetGrid, num_samples: int = 1) -> Tensor:
    return grid.vertices.expand(num_samples, -1, -1)


def sphere(grid: TetGrid, radius: float) -> Tensor:
    return radius - grid.vertices.norm(dim=1)


def signed_volumes(corners: Tensor) -> Tensor:  # [..., 4, 3]
    a, b, c = (corners[..., i, :] - corners[..., 0, :] for i in (1, 2, 3))
    return (torch.linalg.cross(a, b) * c).sum(-1) / 6


def enclosed_volume(verts: Tensor, faces: Tensor) -> Tensor:
    a, b, c = verts.double()[faces.long()].unbind(1)
    return (torch.linalg.cross(a, b) * c).sum() / 6


def directed_edges(faces: Tensor) -> Counter[tuple[int, int]]:
    pairs = torch.stack([faces, faces.roll(-1, dims=1)], dim=2).reshape(-1, 2).tolist()
    return Counter((a, b) for a, b in pairs)


def assert_closed_and_consistent(faces: Tensor) -> None:
    """Each directed edge occurs once, and so does its reverse."""
    count = directed_edges(faces)
    assert set(count.values()) <= {1}
    assert all((b, a) in count for a, b in count)


# The grid


@pytest.mark.parametrize("cells", [2, 4, 6])
def test_the_tetrahedra_fill_the_box_and_none_is_inverted(cells: int) -> None:
    grid = bcc_grid(cells)
    volumes = signed_volumes(grid.vertices.double()[grid.tets])
    assert len(grid.tets) == 12 * cells**3
    assert len(grid.vertices) == (cells + 1) ** 3 + cells**3
    assert volumes.min() > 0
    assert volumes.sum().item() == pytest.approx(1.0)


def test_faces_are_shared_by_two_tetrahedra_and_single_ones_lie_flat_on_the_box(grid: TetGrid) -> None:
    faces = (
        torch.cat([grid.tets[:, [i for i in range(4) if i != out]] for out in range(4)]).sort(dim=1).values
    )
    unique, count = torch.unique(faces, dim=0, return_counts=True)
    assert set(count.tolist()) == {1, 2}
    corners = grid.vertices[unique[count == 1]]
    on_one_side = (corners.abs() == 0.5).all(dim=1) & (corners[:, 0] == corners[:, 1]).logical_and(
        corners[:, 0] == corners[:, 2]
    )
    assert on_one_side.any(dim=1).all()
    assert len(corners) == 6 * 2 * grid.cells**2


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_grid_is_its_own_mirror_image(grid: TetGrid, axis: int) -> None:
    doubled = (grid.vertices * 2 * grid.cells).round().long()
    side = 2 * grid.cells + 1

    def names(points: Tensor) -> set[tuple[int, ...]]:
        code = (
            ((points[:, 0] + grid.cells) * side + points[:, 1] + grid.cells) * side
            + points[:, 2]
            + grid.cells
        )
        return set(map(tuple, code[grid.tets].sort(dim=1).values.tolist()))

    flipped = doubled.clone()
    flipped[:, axis] *= -1
    assert names(doubled) == names(flipped)


def test_edges_and_the_edge_table_belong_to_the_tetrahedra(grid: TetGrid) -> None:
    ends = grid.edges[grid.tet_edges]  # [T, 6, 2]
    expected = torch.stack(
        [grid.tets[:, [a, b]] for a, b in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))], dim=1
    )
    assert torch.equal(ends, expected.sort(dim=2).values)
    n = grid.cells
    assert len(grid.edges) == 3 * n * (n + 1) ** 2 + 3 * n * n * (n - 1) + 8 * n**3 + 6 * n * n


def test_the_boundary_is_the_surface_of_the_box_and_the_centre_is_the_origin(grid: TetGrid) -> None:
    assert torch.equal(grid.boundary, (grid.vertices.abs() == 0.5).any(dim=1))
    assert grid.vertices[grid.centre].tolist() == [0.0, 0.0, 0.0]


def test_moving_vertices_by_less_than_the_promised_limit_inverts_nothing(grid: TetGrid) -> None:
    generator = torch.Generator().manual_seed(1)
    way = torch.nn.functional.normalize(torch.randn(grid.vertices.shape, generator=generator).double(), dim=1)
    moved = grid.vertices.double() + way * (0.2 / grid.cells)
    assert signed_volumes(moved[grid.tets]).min() > 0


@pytest.mark.parametrize("cells", [0, 1, 7, -2])
def test_an_odd_or_empty_grid_is_refused(cells: int) -> None:
    with pytest.raises(ValueError, match=f"cells={cells}"):
        bcc_grid(cells)


def test_resolutions_of_the_paper_map_to_grids_of_like_size() -> None:
    cells = {resolution: GridConfig(tet_res=resolution).num_cells for resolution in range(5, 200)}
    assert [cells[resolution] for resolution in (90, 64, 32)] == [36, 26, 12]
    assert all(count % 2 == 0 and count >= 2 for count in cells.values())
    with pytest.raises(UsageError, match="tet_res=4"):
        GridConfig(tet_res=4)


# Marching tetrahedra


def test_a_sphere_comes_out_closed_outward_and_of_the_right_volume() -> None:
    grid = bcc_grid(24)
    verts, faces = marching_tets(positions(grid), sphere(grid, 0.3)[None], grid).mesh(0)
    assert_closed_and_consistent(faces)
    assert len(verts) - len(directed_edges(faces)) // 2 + len(faces) == 2  # Euler
    assert enclosed_volume(verts, faces).item() == pytest.approx(4 / 3 * math.pi * 0.3**3, rel=0.01)
    assert (verts.norm(dim=1) - 0.3).abs().max() < 0.003


def test_all_sixteen_cases_face_outward() -> None:
    tets = torch.tensor([[0, 1, 2, 3]])
    edges = torch.tensor([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])
    corner = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    one = TetGrid(
        cells=2,
        centre=0,
        vertices=corner,
        tets=tets,
        edges=edges,
        tet_edges=torch.arange(6)[None],
        boundary=torch.ones(4, dtype=torch.bool),
    )
    for case in range(16):
        inside = torch.tensor([bool(case >> i & 1) for i in range(4)])
        verts, faces = marching_tets(corner[None], torch.where(inside, 1.0, -2.0)[None], one).mesh(0)
        assert len(faces) == {0: 0, 1: 1, 2: 2, 3: 1, 4: 0}[int(inside.sum())]
        for a, b, c in verts[faces.long()]:
            height = ((corner - a) * torch.linalg.cross(b - a, c - a)).sum(dim=1)
            assert (height[inside] < 0).all()
            assert (height[~inside] > 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_noise_gives_closed_meshes_when_the_boundary_is_closed(grid: TetGrid, seed: int) -> None:
    noise = torch.randn(2, len(grid.vertices), generator=torch.Generator().manual_seed(seed))
    meshes = marching_tets(positions(grid, 2), close_boundary(noise, grid), grid)
    for i in range(2):
        verts, faces = meshes.mesh(i)
        assert_closed_and_consistent(faces)
        assert enclosed_volume(verts, faces) > 0
        assert faces.min() == 0
        assert faces.max() == len(verts) - 1


def test_a_batch_equals_its_samples_one_by_one(grid: TetGrid) -> None:
    sdf = torch.stack(
        [sphere(grid, 0.3), torch.full_like(sphere(grid, 1), -1.0), sphere(grid, 0.2), sphere(grid, 9.0)]
    )
    moved = positions(grid, 4) + 0.001 * torch.arange(4)[:, None, None]
    together = marching_tets(moved, sdf, grid)
    assert together.face_ranges[:, 1].tolist()[1::2] == [0, 0]
    for i in range(4):
        alone = marching_tets(moved[i : i + 1], sdf[i : i + 1], grid).mesh(0)
        assert all(torch.equal(a, b) for a, b in zip(together.mesh(i), alone, strict=True))


def test_an_exact_zero_counts_as_outside_and_leaves_no_hole(grid: TetGrid) -> None:
    sdf = sphere(grid, 0.25).clone()
    sdf[sdf.abs() < 0.03] = 0.0
    verts, faces = marching_tets(positions(grid), sdf[None], grid).mesh(0)
    assert_closed_and_consistent(faces)
    assert verts.isfinite().all()


def test_vertices_are_differentiable_in_positions_and_field() -> None:
    grid = bcc_grid(2)
    sdf = sphere(grid, 0.3).double()[None].requires_grad_()
    place = positions(grid).double().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p, s: marching_tets(p, s, grid).verts, (place, sdf))


def test_inflating_the_field_grows_the_volume_by_the_area_of_the_sphere(grid: TetGrid) -> None:
    more = torch.zeros((), requires_grad=True)
    verts, faces = marching_tets(positions(grid), (sphere(grid, 0.3) + more)[None], grid).mesh(0)
    (slope,) = torch.autograd.grad(enclosed_volume(verts, faces), more)
    assert slope.item() == pytest.approx(4 * math.pi * 0.3**2, rel=0.03)


def test_a_field_of_another_grid_is_refused(grid: TetGrid) -> None:
    with pytest.raises(ValueError, match=r"sdf \[1, 5\]"):
        marching_tets(positions(grid), torch.zeros(1, 5), grid)


# Keeping the field sane


def test_entropy_of_hand_computed_edges() -> None:
    sdf = torch.tensor([[2.0, -1.0, -3.0]], dtype=torch.float64, requires_grad=True)
    edges = torch.tensor([[0, 1], [1, 2], [0, 2]])  # the middle one does not cross

    def nll(logit: float, positive: bool) -> float:
        return math.log1p(math.exp(-logit if positive else logit))

    expected = (nll(2, False) + nll(-1, True) + nll(2, False) + nll(-3, True)) / 2
    loss = sdf_entropy(sdf, edges)
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert sdf.grad is not None
    assert sdf.grad[0, 0] > 0  # both ends are drawn towards zero
    assert (sdf.grad[0, 1:] < 0).all()


def test_entropy_without_a_crossing_is_zero_not_nan(grid: TetGrid) -> None:
    sdf = torch.ones(2, len(grid.vertices), requires_grad=True)
    loss = sdf_entropy(sdf, grid.edges)
    loss.backward()
    assert loss.item() == 0.0
    assert sdf.grad is not None
    assert not sdf.grad.any()


@pytest.mark.parametrize("value", [-0.5, 0.5])
def test_an_empty_sample_gets_a_surface_a_penalty_and_no_image_gradient(grid: TetGrid, value: float) -> None:
    raw = torch.stack([torch.full_like(sphere(grid, 1), value), sphere(grid, 0.3)]).requires_grad_()
    bend = torch.full((2, len(grid.vertices), 3), 0.001, requires_grad=True)
    sdf, deformation, penalty = repair_empty(raw, bend, grid)
    assert_close(penalty.detach(), torch.tensor([0.5, 0.0]))
    assert sdf[0, grid.centre].item() == pytest.approx(1.0 - raw.min().item())
    assert sdf[0, grid.boundary].unique().item() == pytest.approx(-1.0 - raw.max().item())
    assert torch.equal(sdf[1], raw[1])
    meshes = marching_tets(positions(grid, 2) + deformation, sdf, grid)
    assert len(meshes.mesh(0)[1]) > 0
    meshes.verts.square().sum().backward(retain_graph=True)
    assert raw.grad is not None
    assert bend.grad is not None
    assert not raw.grad[0].any()
    assert not bend.grad[0].any()
    assert raw.grad[1].any()
    raw.grad = None
    penalty.sum().backward()
    assert_close(raw.grad[0], torch.full_like(raw[0], math.copysign(1 / len(grid.vertices), value)))
    assert not raw.grad[1].any()


def test_closing_the_boundary_leaves_the_inside_alone_and_makes_a_full_box_closed(grid: TetGrid) -> None:
    full = torch.ones(1, len(grid.vertices), requires_grad=True)
    sdf = close_boundary(full, grid)
    assert torch.equal(sdf[:, ~grid.boundary], full[:, ~grid.boundary])
    assert (sdf[:, grid.boundary] < 0).all()
    verts, faces = marching_tets(positions(grid), sdf, grid).mesh(0)
    assert_closed_and_consistent(faces)
    assert enclosed_volume(verts, faces).item() == pytest.approx(1.0, rel=0.01)
