import math

import numpy as np
import pytest
import torch
from scipy.spatial import Delaunay
from torch import Tensor

from get3d_cluster.get3d.camera import camera_position, clip_matrices
from get3d_cluster.get3d.raster import Meshes, render_meshes, render_surface, visibility
from get3d_cluster.get3d.raster.visibility_torch import CHUNK
from get3d_cluster.get3d.tets import bcc_grid, close_boundary, marching_tets

BACKENDS = ["numba", "torch"]
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def at_pixels(points: object, size: tuple[int, int], depth: object = 0.0, w: object = 1.0) -> Tensor:
    """Return [1, V, 4] float64 clip positions of points given as (column, row) in pixels."""
    xy = torch.as_tensor(points, dtype=torch.float64)
    w = torch.as_tensor(w, dtype=torch.float64).expand(len(xy))
    z = torch.as_tensor(depth, dtype=torch.float64).expand(len(xy))
    extent = torch.tensor([size[1], size[0]], dtype=torch.float64)
    return (
        torch.cat([xy / extent * 2 - 1, z[:, None], torch.ones_like(z[:, None])], dim=1)[None]
        * w[None, :, None]
    )


def triangles(*corners: tuple[int, int, int]) -> Tensor:
    return torch.tensor(corners, dtype=torch.int32).reshape(-1, 3)


def coverage_count(points: object, tri: Tensor, size: tuple[int, int], backend: str) -> Tensor:
    """Return how many triangles own each pixel, each drawn alone."""
    each = torch.stack([torch.arange(len(tri)), torch.ones(len(tri), dtype=torch.int64)], dim=1)
    ids = visibility(at_pixels(points, size)[0], tri, size, ranges=each, backend=backend)
    return (ids > 0).sum(dim=0)


def brute_force(pos: Tensor, tri: Tensor, size: tuple[int, int]) -> Tensor:
    """Decide every pixel against every triangle in exact integers; depth in plain float64."""
    x, y, z, w = pos.double().numpy().T
    xs = np.rint((x / w * 0.5 + 0.5) * (256 * size[1])).astype(int)
    ys = np.rint((y / w * 0.5 + 0.5) * (256 * size[0])).astype(int)
    gy, gx = np.mgrid[0 : size[0], 0 : size[1]] * 256 + 128
    best, ids = np.full(size, np.inf), np.zeros(size, np.int32)
    for f, corners in enumerate(tri.tolist()):
        i, j, k = corners
        area = (xs[j] - xs[i]) * (ys[k] - ys[i]) - (ys[j] - ys[i]) * (xs[k] - xs[i])
        if area == 0:
            continue
        if area < 0:
            j, k, area = k, j, -area
        inside, depth = np.ones(size, bool), np.zeros(size)
        for a, b, c in ((j, k, i), (k, i, j), (i, j, k)):
            ex, ey = xs[b] - xs[a], ys[b] - ys[a]
            edge = ex * (gy - ys[a]) - ey * (gx - xs[a])
            inside &= (edge > 0) | ((edge == 0) & (ey < 0 or (ey == 0 and ex < 0)))
            depth += edge / area * (z[c] / w[c])
        nearer = inside & (depth < best) & (np.abs(depth) <= 1)
        best[nearer], ids[nearer] = depth[nearer], f + 1
    return torch.from_numpy(ids)


def noisy_meshes(seed: int, num_meshes: int = 3) -> Meshes:
    """Return closed meshes full of folds, slivers and hidden layers."""
    grid = bcc_grid(6)
    noise = torch.randn(num_meshes, len(grid.vertices), generator=torch.Generator().manual_seed(seed))
    return marching_tets(grid.vertices.expand(num_meshes, -1, -1), close_boundary(noise, grid), grid)


def cameras(num: int) -> Tensor:
    return clip_matrices(torch.linspace(0.1, 5.0, num), torch.linspace(0.6, 1.5, num))


# Fill rule


@each_backend
@pytest.mark.parametrize("winding", [(0, 1, 2), (0, 2, 1)])
def test_one_triangle_by_hand_with_row_zero_at_clip_y_minus_one(
    backend: str, winding: tuple[int, int, int]
) -> None:
    pos = at_pixels([(1, 1), (6, 1), (1, 6)], (8, 8))
    assert pos[0, 0, 1] == -0.75
    # The centres of the slanted edge x + y = 7 lie on it; it is a right edge, so they are out.
    rows = ["........", ".####...", ".###....", ".##.....", ".#......", "........", "........", "........"]
    expected = torch.tensor([[int(c == "#") for c in row] for row in rows], dtype=torch.int32)
    assert torch.equal(visibility(pos, triangles(winding), (8, 8), backend=backend)[0], expected)


@each_backend
@pytest.mark.parametrize(
    "shared",
    [((3.5, 0.0), (3.5, 8.0)), ((0.0, 2.5), (8.0, 2.5)), ((0.0, 0.0), (8.0, 8.0)), ((8.0, 0.0), (0.0, 8.0))],
)
def test_a_shared_edge_through_pixel_centres_belongs_to_one_side(
    backend: str, shared: tuple[tuple[float, float], tuple[float, float]]
) -> None:
    (x0, y0), (x1, y1) = shared
    aside = np.array([y1 - y0, x0 - x1])
    middle = np.array([x0 + x1, y0 + y1]) / 2
    points = [shared[0], shared[1], tuple(middle + 2 * aside), tuple(middle - 2 * aside)]
    count = coverage_count(points, triangles((0, 1, 2), (1, 0, 3)), (8, 8), backend)
    along = [count[int(y), int(x)].item() for x, y in zip(*_centres_on(x0, y0, x1, y1), strict=True)]
    assert along == [1] * 8
    assert count.max() == 1


def _centres_on(x0: float, y0: float, x1: float, y1: float) -> tuple[list[float], list[float]]:
    steps = [(i + 0.5) / 8 for i in range(8)]
    return [x0 + t * (x1 - x0) for t in steps], [y0 + t * (y1 - y0) for t in steps]


@each_backend
def test_a_fan_around_a_pixel_centre_owns_it_once(backend: str) -> None:
    ring = [
        (4.5 + 3 * math.cos(a), 4.5 + 3 * math.sin(a))
        for a in torch.linspace(0, 2 * math.pi, 9)[:-1].tolist()
    ]
    fan = triangles(*[(0, 1 + i, 1 + (i + 1) % 8) for i in range(8)])
    count = coverage_count([(4.5, 4.5), *ring], fan, (9, 9), backend)
    assert count[4, 4] == 1
    assert count.max() == 1


@each_backend
@pytest.mark.parametrize("seed", range(20))
def test_a_tiling_with_vertices_on_pixel_centres_owns_every_pixel_once(backend: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    frame = [(0, 0), (12, 0), (0, 10), (12, 10)]
    points = np.unique(np.array([*frame, *(rng.integers(1, [24, 20], (14, 2)) / 2)]), axis=0)
    tri = torch.from_numpy(Delaunay(points).simplices.astype(np.int32))
    mixed = torch.where(torch.from_numpy(rng.random(len(tri)) < 0.5)[:, None], tri[:, [0, 2, 1]], tri)
    assert (coverage_count(points, mixed, (10, 12), backend) == 1).all()


@each_backend
@pytest.mark.parametrize("seed", range(20))
def test_random_soup_equals_brute_force_in_exact_integers(backend: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = [(33, 47), (20, 9), (1, 1), (16, 16)][seed % 4]
    pos = torch.rand(2, 90, 4, generator=generator) * 3 - 1.5
    pos[..., 3] = 0.5 + torch.rand(2, 90, generator=generator)
    tri = torch.randint(0, 90, (60, 3), generator=generator, dtype=torch.int32)
    ids = visibility(pos, tri, size, backend=backend)
    assert all(torch.equal(ids[b], brute_force(pos[b], tri, size)) for b in range(2))


# Depth


@each_backend
def test_crossing_planes_swap_at_their_intersection(backend: str) -> None:
    left, right = [(0, 0), (0, 8), (20, 0)], [(-12, 0), (8, 8), (8, 0)]
    depth = [-0.5, -0.5, 0.75, 0.75, -0.5, -0.5]
    ids = visibility(
        at_pixels([*left, *right], (4, 8), depth), triangles((0, 1, 2), (3, 4, 5)), (4, 8), backend=backend
    )
    row = ids[0, 0].tolist()
    assert row == sorted(row)
    assert set(row) == {1, 2}


@each_backend
def test_equal_depth_goes_to_the_lowest_index(backend: str) -> None:
    pos = at_pixels([(-9, -9), (30, 0), (0, 30)], (4, 4))
    ids = visibility(pos, triangles((1, 2, 0), (0, 1, 2), (0, 2, 1)), (4, 4), backend=backend)
    assert (ids == 1).all()


@each_backend
def test_permuting_triangles_permutes_the_ids_and_nothing_else(backend: str) -> None:
    mesh = noisy_meshes(3, 1)
    order = torch.randperm(len(mesh.faces), generator=torch.Generator().manual_seed(0))
    pos = torch.cat([mesh.verts, torch.ones(len(mesh.verts), 1)], dim=1) @ cameras(1)[0].T
    plain = visibility(pos[None], mesh.faces, (40, 40), backend=backend)
    shuffled = visibility(pos[None], mesh.faces[order], (40, 40), backend=backend)
    back = torch.cat([torch.zeros(1, dtype=torch.int64), order + 1])[shuffled.long()]
    # Where two triangles share an edge, equal quantised depth is settled by index; those pixels may differ.
    assert (back != plain).sum() <= 2
    assert torch.equal(back > 0, plain > 0)


@each_backend
def test_what_lies_before_the_near_or_behind_the_far_plane_is_cut_away(backend: str) -> None:
    points, size = [(0, 0), (0, 16), (16, 0), (16, 16)], (4, 16)
    depth = [-1.5, -1.5, 1.5, 1.5]
    ids = visibility(at_pixels(points, size, depth), triangles((0, 1, 2), (1, 3, 2)), size, backend=backend)
    z = (torch.arange(16) + 0.5) / 16 * 3 - 1.5
    assert torch.equal(ids[0, 0] > 0, z.abs() <= 1)


# Degenerate input


@each_backend
def test_unusable_triangles_draw_nothing_and_spoil_nothing(backend: str) -> None:
    size = (8, 8)
    good = at_pixels([(1, 1), (7, 1), (1, 7)], size)[0]
    behind = good * torch.tensor([1.0, 1.0, 1.0, -1.0])
    nowhere, infinite, huge = good.clone(), good.clone(), good.clone()
    nowhere[0, 0], infinite[1, 3], huge[2, 0] = math.nan, math.inf, 1e30
    outside = at_pixels([(20, 20), (30, 20), (20, 30)], size)[0]
    pos = torch.cat([good, behind, nowhere, infinite, huge, outside])[None]
    bad = triangles((0, 0, 1), (0, 0, 0), *[(i, i + 1, i + 2) for i in (3, 6, 9, 12, 15)])
    assert not visibility(pos, bad, size, backend=backend).any()
    ids = visibility(pos, torch.cat([bad, triangles((0, 1, 2))]), size, backend=backend)
    assert torch.equal(ids > 0, visibility(good[None], triangles((0, 1, 2)), size, backend=backend) > 0)
    assert set(ids.unique().tolist()) == {0, len(bad) + 1}


@each_backend
def test_unusable_triangles_leave_gradients_finite_and_zero_for_their_own_vertices(backend: str) -> None:
    camera = camera_position(torch.tensor([0.1]), torch.tensor([0.6]))  # that of cameras(1); w is 0 there
    verts = torch.tensor([[0.1, 0, 0], [0, 0.2, 0], [-0.2, 0, 0.1], [0.3, 0.3, 0.3], [0.3, 0.3, 0.3]])
    verts = torch.cat([verts, 1.2 * camera, camera, torch.tensor([[math.nan, 0, 0], [0, 0, math.inf]])])
    verts.requires_grad_()
    shrunk, behind_cameras = [(3, 4, 3), (3, 3, 3)], [(3, 4, 5), (0, 5, 6), (1, 6, 2)]
    tri = triangles((0, 1, 2), *shrunk, *behind_cameras, (0, 1, 7), (8, 1, 2), (7, 8, 7))
    surface = render_surface(verts, tri, cameras(1), (16, 16), backend=backend)
    assert set(surface.frag.tri.tolist()) == {0}
    (surface.soft.sum() + surface.position.square().sum()).backward()
    assert verts.grad is not None
    assert verts.grad[:7].isfinite().all()
    assert verts.grad[:3].any()
    assert not verts.grad[3:7].any()
    assert not verts.grad[7:].nan_to_num().any()


@each_backend
def test_empty_meshes_are_legal(backend: str) -> None:
    none = (torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int32))
    some = (torch.tensor([[0.2, 0, 0], [0, 0.2, 0], [-0.2, 0, 0]]), triangles((0, 1, 2)))
    surface = render_meshes([none, some, none], cameras(3), (8, 8), backend=backend)
    assert surface.hard.sum(dim=(1, 2, 3)).gt(0).tolist() == [False, True, False]
    assert torch.equal(surface.frag.batch.unique(), torch.tensor([1]))
    lonely = render_surface(*none, cameras(2), (8, 8), backend=backend)
    assert lonely.position.shape == (0, 3)
    assert not lonely.soft.any()


# Layouts, backends, repetition


@each_backend
@pytest.mark.parametrize("mode", ["walk", "standard"])
def test_packed_meshes_render_as_they_do_alone_bit_for_bit(backend: str, mode: str) -> None:
    meshes, views = noisy_meshes(1), cameras(3)
    together = render_meshes(meshes, views, (40, 24), mode=mode, backend=backend)
    for i in range(3):
        verts, faces = meshes.mesh(i)
        alone = render_surface(verts, faces, views[i : i + 1], (40, 24), mode=mode, backend=backend)
        mine = together.frag.batch == i
        assert torch.equal(together.soft[i], alone.soft[0])
        assert torch.equal(together.position[mine], alone.position)
        assert torch.equal(together.depth[mine], alone.depth)


def test_changing_one_mesh_leaves_the_other_images_alone() -> None:
    one, other = [noisy_meshes(2).mesh(i) for i in range(3)], noisy_meshes(5).mesh(0)
    before = render_meshes(one, cameras(3), (32, 32)).soft
    after = render_meshes([one[0], other, one[2]], cameras(3), (32, 32)).soft
    assert torch.equal(before[::2], after[::2])
    assert not torch.equal(before[1], after[1])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mode", ["walk", "standard"])
def test_backends_agree_bit_for_bit_with_their_gradients(seed: int, mode: str) -> None:
    assert torch.equal(*[_gradient(noisy_meshes(seed), mode, backend) for backend in BACKENDS])


def _gradient(meshes: Meshes, mode: str, backend: str) -> Tensor:
    verts = meshes.verts.clone().requires_grad_()
    moved = Meshes(
        verts=verts, faces=meshes.faces, vert_ranges=meshes.vert_ranges, face_ranges=meshes.face_ranges
    )
    surface = render_meshes(moved, cameras(3), (48, 40), mode=mode, backend=backend)
    weight = torch.rand(surface.soft.shape, generator=torch.Generator().manual_seed(0))
    ((surface.soft * weight).sum() + surface.position.square().sum()).backward()
    assert verts.grad is not None
    return torch.cat([surface.soft.detach().reshape(-1), verts.grad.reshape(-1)])


@each_backend
def test_repeats_and_thread_counts_change_no_bit(backend: str) -> None:
    meshes, threads = noisy_meshes(4), torch.get_num_threads()
    first = _gradient(meshes, "walk", backend)
    try:
        for number in (1, 2, 4):
            torch.set_num_threads(number)
            assert torch.equal(first, _gradient(meshes, "walk", backend))
    finally:
        torch.set_num_threads(threads)


def test_cutting_the_work_into_chunks_changes_no_id(monkeypatch: pytest.MonkeyPatch) -> None:
    pos = at_pixels([(0, 0), (64, 0), (0, 64), (64, 64), (32, 80)], (64, 64), [0, 0.1, 0.2, 0.3, -0.2])
    tri = triangles((0, 1, 2), (1, 2, 3), (0, 1, 4), (2, 3, 0))
    whole = visibility(pos, tri, (64, 64), backend="torch")
    assert CHUNK > 64 * 64
    monkeypatch.setattr("get3d_cluster.get3d.raster.visibility_torch.CHUNK", 50)
    assert torch.equal(whole, visibility(pos, tri, (64, 64), backend="torch"))


# Refusals


def test_unusable_arguments_are_named() -> None:
    pos, tri, size = torch.zeros(1, 3, 4), triangles((0, 1, 2)), (4, 4)
    with pytest.raises(TypeError, match="float16"):
        visibility(pos.half(), tri, size)
    with pytest.raises(TypeError, match="int64"):
        visibility(pos, tri.long(), size)
    with pytest.raises(TypeError, match="one device"):
        visibility(pos, tri.to("meta"), size)
    with pytest.raises(ValueError, match=r"size=\(0, 4\)"):
        visibility(pos, tri, (0, 4))
    with pytest.raises(ValueError, match=r"\[3, 4\]"):
        visibility(pos[0], tri, size)
    with pytest.raises(ValueError, match="when ranges are given"):
        visibility(pos, tri, size, ranges=torch.tensor([[0, 1]]))
    with pytest.raises(IndexError, match="beyond the 1 triangles"):
        visibility(pos[0], tri, size, ranges=torch.tensor([[0, 2]]))
    with pytest.raises(IndexError, match="vertex 3"):
        visibility(pos, triangles((0, 1, 3)), size)
    with pytest.raises(IndexError, match="vertex -1"):
        visibility(pos, triangles((0, 1, -1)), size)
    with pytest.raises(ValueError, match="one camera for each of 1 meshes"):
        render_meshes([(torch.zeros(3, 3), tri)], cameras(2), size)


def test_a_missing_backend_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pos, tri = torch.zeros(1, 3, 4), triangles((0, 1, 2))
    monkeypatch.setattr("get3d_cluster.get3d.raster.backends._installed", lambda name: False)
    with pytest.raises(RuntimeError, match="requirements-nvdiffrast"):
        visibility(pos, tri, (4, 4), backend="nvdiffrast")
    with pytest.raises(RuntimeError, match=r"pip install -r requirements\.txt"):
        visibility(pos, tri, (4, 4), backend="numba")
    assert not visibility(pos, tri, (4, 4), backend="auto").any()
    with pytest.raises(ValueError, match='backend="opengl"'):
        visibility(pos, tri, (4, 4), backend="opengl")
