import math

import pytest
import torch
from scipy.spatial import ConvexHull
from torch import Tensor
from torch.testing import assert_close

from get3d_cluster.get3d.camera import clip_matrices
from get3d_cluster.get3d.raster import (
    Surface,
    antialias,
    barycentrics,
    blend,
    fragments,
    render_surface,
    to_image,
    topology,
    visibility,
)
from get3d_cluster.get3d.raster.surface import to_clip
from get3d_cluster.get3d.tets import bcc_grid, marching_tets
from tests.solids import mesh_of

BACKENDS = ["numba", "torch"]
each_backend = pytest.mark.parametrize("backend", BACKENDS)
SQUARE = torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32)


def flat(points: list[tuple[float, float]], size: tuple[int, int], depth: float = 0.0) -> Tensor:
    """Return [V, 4] float64 clip positions of points given as (column, row) in pixels."""
    xy = torch.tensor(points, dtype=torch.float64) / torch.tensor([size[1], size[0]]) * 2 - 1
    return torch.cat([xy, torch.full_like(xy[:, :1], depth), torch.ones_like(xy[:, :1])], dim=1)


def rectangle(left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def mask(
    pos: Tensor, tri: Tensor, size: tuple[int, int], mode: str = "walk", backend: str = "auto"
) -> Tensor:
    """Return the antialiased mask [B, H, W] of clip positions [B, V, 4]."""
    frag = fragments(visibility(pos, tri, size, backend=backend), pos, tri)
    _, depth = barycentrics(frag, pos)
    hard = to_image(frag, torch.ones_like(depth)[:, None])
    topo = topology(tri, pos.shape[1], backend=backend)
    return antialias(hard, frag, depth, pos, tri, topo, mode=mode, backend=backend)[..., 0]


def ball(num_points: int = 300, radius: float = 0.4) -> tuple[Tensor, Tensor]:
    """Return a convex, closed, outward mesh: the hull of points on a sphere."""
    i = torch.arange(num_points, dtype=torch.float64) + 0.5
    polar, turn = torch.arccos(1 - 2 * i / num_points), math.pi * (1 + 5**0.5) * i
    points = torch.stack(
        [torch.sin(polar) * torch.cos(turn), torch.cos(polar), torch.sin(polar) * torch.sin(turn)], 1
    )
    tri = torch.from_numpy(ConvexHull(points.numpy()).simplices.astype("int32"))
    a, b, c = points[tri.long()].unbind(1)
    inward = (torch.linalg.cross(b - a, c - a) * a).sum(1) < 0
    return radius * points.float(), torch.where(inward[:, None], tri[:, [0, 2, 1]], tri)


def dense_sphere() -> tuple[Tensor, Tensor]:
    grid = bcc_grid(20)
    return marching_tets(grid.vertices[None], (0.3 - grid.vertices.norm(dim=1))[None], grid).mesh(0)


def cameras(num: int) -> Tensor:
    return clip_matrices(torch.arange(num) * 0.8 + 0.2, torch.linspace(1.0, 1.5, num))


# Topology


@each_backend
def test_twins_of_a_closed_mesh_share_the_edge_in_reverse(backend: str) -> None:
    _, tri = ball(60)
    twin = topology(tri, 60, backend=backend).twin.long()
    assert twin.min() >= 0
    half = torch.arange(twin.numel()).view(-1, 3)
    assert torch.equal(twin.reshape(-1)[twin], half)
    start, end = tri.reshape(-1), tri.roll(-1, dims=1).reshape(-1)
    assert torch.equal(start[twin], end.view(-1, 3))
    assert torch.equal(end[twin], start.view(-1, 3))


@each_backend
def test_borders_and_edges_of_three_triangles_have_no_twin(backend: str) -> None:
    open_pair = torch.tensor([[0, 1, 2], [2, 1, 3]], dtype=torch.int32)
    assert topology(open_pair, 4, backend=backend).twin.tolist() == [[-1, 3, -1], [1, -1, -1]]
    book = torch.tensor([[0, 1, 2], [0, 1, 3], [1, 0, 4]], dtype=torch.int32)
    assert (topology(book, 5, backend=backend).twin == -1).all()
    assert topology(torch.zeros(0, 3, dtype=torch.int32), 0, backend=backend).twin.shape == (0, 3)


@pytest.mark.parametrize("seed", range(5))
def test_backends_pair_random_triangles_alike(seed: int) -> None:
    tri = torch.randint(0, 12, (40, 3), dtype=torch.int32, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(*[topology(tri, 12, backend=backend).twin for backend in BACKENDS])


# Coverage


@each_backend
@pytest.mark.parametrize("mode", ["walk", "standard"])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("tenth", range(10))
def test_a_straight_edge_gives_the_covered_fraction_exactly(
    backend: str, mode: str, turned: bool, tenth: int
) -> None:
    edge = 4 + tenth / 10
    points = rectangle(-2, -3, edge, 11)
    points = [(y, x) for x, y in points] if turned else points
    pos = flat(points, (8, 8))[None]
    image = mask(pos, SQUARE, (8, 8), mode, backend)[0]
    line = torch.tensor([1.0, 1, 1, 1, tenth / 10, 0, 0, 0], dtype=torch.float64)
    expected = line[:, None].expand(8, 8) if turned else line[None].expand(8, 8)
    assert_close(image, expected, atol=1e-12, rtol=0)


@each_backend
def test_triangles_of_no_area_along_the_outline_do_not_hide_it(backend: str) -> None:
    """A closed pillow, front and back alike, whose right seam is a strip of two triangles without area."""
    size = (8, 8)
    square = rectangle(-2, -3, 4.3, 11)
    pos = flat([*square, square[1], square[2]], size)[None]
    front, back = [[0, 1, 2], [0, 2, 3]], [[0, 5, 4], [0, 3, 5]]
    strip, its_ends = [[1, 4, 5], [1, 5, 2]], [[0, 4, 1], [2, 5, 3]]
    tri = torch.tensor([*front, *back, *strip, *its_ends], dtype=torch.int32)
    assert topology(tri, 6, backend=backend).twin.min() >= 0
    line = torch.tensor([1.0, 1, 1, 1, 0.3, 0, 0, 0], dtype=torch.float64)
    assert_close(mask(pos, tri, size, backend=backend)[0], line.expand(8, 8), atol=1e-12, rtol=0)


def test_a_slanted_triangle_has_its_area_and_the_gradient_of_its_area() -> None:
    points = torch.tensor([[5.3, 7.1], [55.2, 14.8], [21.7, 49.4]], dtype=torch.float64, requires_grad=True)
    clip = torch.cat([points / 64 * 2 - 1, torch.zeros(3, 1), torch.ones(3, 1)], dim=1)[None]
    a, b, c = points.unbind(0)
    area = ((b - a)[0] * (c - a)[1] - (b - a)[1] * (c - a)[0]) / 2
    total = mask(clip, torch.tensor([[0, 1, 2]], dtype=torch.int32), (64, 64)).sum()
    assert total.item() == pytest.approx(area.item(), rel=1e-3)
    (mine,), (exact,) = torch.autograd.grad(total, points), torch.autograd.grad(area, points)
    assert torch.cosine_similarity(mine.reshape(-1), exact.reshape(-1), dim=0) > 0.999
    assert (mine - exact).norm() < 0.04 * exact.norm()


def test_outline_pixels_come_at_least_eight_times_closer_to_supersampling() -> None:
    tri = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    pos = flat([(5.3, 7.1), (55.2, 14.8), (21.7, 49.4)], (64, 64))[None]
    fine = (visibility(pos, tri, (1024, 1024)) > 0).double()
    true = torch.nn.functional.avg_pool2d(fine[:, None], 16)[:, 0]
    hard = (visibility(pos, tri, (64, 64)) > 0).double()
    outline = (true > 0) & (true < 1)

    def error(image: Tensor) -> float:
        return (image - true)[outline].abs().mean().item()

    assert error(mask(pos, tri, (64, 64))) * 8 < error(hard)


def outline_gradient_share(verts: Tensor, tri: Tensor, size: int, mode: str) -> float:
    """Return d(area)/d(scale) as the mask has it, over that of a fine hard render."""
    scale = torch.ones((), requires_grad=True)
    view = cameras(1)
    surface = render_surface(verts * scale, tri, view, (size, size), mode=mode)
    (slope,) = torch.autograd.grad(surface.soft.sum(), scale)
    lower, upper = (
        (visibility(to_clip((verts * s)[None], view[:, None]), tri, (2048, 2048)) > 0).sum().item()
        for s in (0.98, 1.02)
    )
    return slope.item() / ((upper - lower) / 0.04 * (size / 2048) ** 2)


@pytest.mark.parametrize(("solid", "cells"), [("sphere", 20), ("car", 18), ("car", 30), ("chair", 24)])
@pytest.mark.parametrize("size", [128, 200])
def test_the_walk_keeps_the_outline_gradient(solid: str, cells: int, size: int) -> None:
    assert outline_gradient_share(*mesh_of(solid, cells), size, "walk") == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("solid", ["sphere", "car", "chair"])
def test_the_standard_rule_loses_most_of_the_outline_gradient_where_triangles_are_small(solid: str) -> None:
    verts, tri = mesh_of(solid, 24)
    assert outline_gradient_share(verts, tri, 64, "standard") < 0.5
    assert outline_gradient_share(verts, tri, 64, "walk") == pytest.approx(1.0, abs=0.05)


# Which edges count


def coloured(
    pos: Tensor, tri: Tensor, colours: Tensor, size: tuple[int, int], **choice: str
) -> tuple[Tensor, Tensor]:
    """Return images [B, H, W, C] of one colour a triangle [F, C], as they are and antialiased over all pairs."""
    frag = fragments(visibility(pos, tri, size), pos, tri)
    _, depth = barycentrics(frag, pos)
    image = to_image(frag, colours[frag.tri])
    topo = topology(tri, pos.shape[1])
    return image, antialias(image, frag, depth, pos, tri, topo, pairs="all", **choice)


@each_backend
def test_a_near_square_is_blended_into_the_far_one_behind_it(backend: str) -> None:
    size = (12, 12)
    far, near = flat(rectangle(-1, -1, 13, 13), size, 0.5), flat(rectangle(3.3, 3.3, 8.6, 8.6), size, -0.5)
    colours = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]], dtype=torch.float64)
    tri = torch.cat([SQUARE, SQUARE + 4])
    _, image = coloured(torch.cat([far, near])[None], tri, colours, size, backend=backend)
    row = image[0, 6, :, 1]
    assert_close(
        row, torch.tensor([0, 0, 0, 0.7, 1, 1, 1, 1, 0.6, 0, 0, 0], dtype=torch.float64), atol=1e-12, rtol=0
    )
    assert_close(image.sum(dim=-1), torch.ones(1, 12, 12, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("mode", ["walk", "standard"])
def test_inner_edges_of_a_closed_convex_mesh_are_never_blended(mode: str) -> None:
    verts, tri = ball()
    pos = to_clip(verts[None], cameras(2)[:, None])
    colours = torch.rand(len(tri), 3, generator=torch.Generator().manual_seed(0))
    image, smooth = coloured(pos, tri, colours, (64, 64), mode=mode)
    hit = (image.sum(-1) > 0).float()
    surrounded = torch.nn.functional.avg_pool2d(hit[:, None], 3, 1, 1)[:, 0] > 0.999
    assert surrounded.sum() > 500
    assert torch.equal(image[surrounded], smooth[surrounded])
    assert not torch.equal(image, smooth)


def test_vertices_stored_twice_make_every_edge_a_silhouette() -> None:
    verts, tri = ball()
    split = torch.arange(3 * len(tri), dtype=torch.int32).view(-1, 3)
    colours = torch.rand(len(tri), 3, generator=torch.Generator().manual_seed(0))
    changed = []
    for points, faces in ((verts, tri), (verts[tri.long().reshape(-1)], split)):
        image, smooth = coloured(
            to_clip(points[None], cameras(1)[:, None]), faces, colours, (64, 64), mode="standard"
        )
        changed.append((image != smooth).any(dim=-1).sum().item())
    assert changed[1] > 2 * changed[0]


def test_outlines_are_found_alike_by_coverage_and_by_all_pairs() -> None:
    verts, tri = dense_sphere()
    pos = to_clip(verts[None], cameras(1)[:, None])
    frag = fragments(visibility(pos, tri, (64, 64)), pos, tri)
    _, depth = barycentrics(frag, pos)
    hard, topo = to_image(frag, torch.ones_like(depth)[:, None]), topology(tri, len(verts))
    few, many = (antialias(hard, frag, depth, pos, tri, topo, pairs=pairs) for pairs in ("coverage", "all"))
    assert torch.equal(few, many)


# Gradients


@pytest.mark.parametrize("mode", ["walk", "standard"])
def test_gradients_to_image_and_positions_are_right(mode: str) -> None:
    size = (7, 8)
    pos = torch.cat(
        [flat([(1.2, 0.7), (6.4, 2.3), (2.3, 6.2)], size), flat(rectangle(3.1, 2.2, 7.3, 6.6), size, 0.5)]
    )
    tri = torch.tensor([[0, 1, 2], [3, 4, 5], [3, 5, 6]], dtype=torch.int32)
    pos = pos[None] * torch.tensor([1.0, 1.2, 2.0, 1.0, 1.5, 1.1, 1.3])[None, :, None]
    frag = fragments(visibility(pos, tri, size), pos, tri)
    _, depth = barycentrics(frag, pos)
    topo = topology(tri, pos.shape[1])
    image = torch.rand(1, *size, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def smooth(picture: Tensor, position: Tensor) -> Tensor:
        return antialias(picture, frag, depth, position, tri, topo, mode=mode, pairs="all")

    assert torch.autograd.gradcheck(smooth, (image.requires_grad_(), pos.requires_grad_()))
    (slope,) = torch.autograd.grad(smooth(image, pos).square().sum(), pos)
    assert slope.any()


def test_the_blends_of_a_surface_make_its_mask_and_serve_colours_without_moving_vertices() -> None:
    verts, tri = ball()
    verts.requires_grad_()
    surface = render_surface(verts, tri, cameras(2), (32, 32))
    assert torch.equal(surface.soft, blend(surface.hard, surface.blends))
    colour = to_image(surface.frag, surface.position.detach().requires_grad_())
    smooth = blend(colour, surface.blends.detach())
    assert smooth.requires_grad
    assert torch.autograd.grad(smooth.sum(), verts, allow_unused=True) == (None,)
    weight = blend(surface.hard.expand(-1, -1, -1, 3), surface.blends.detach())
    assert_close(weight[..., :1], surface.soft)


def test_unknown_choices_are_refused() -> None:
    verts, tri = ball(20)
    with pytest.raises(ValueError, match='mode="smooth"'):
        render_surface(verts, tri, cameras(1), (8, 8), mode="smooth")
    surface = render_surface(verts, tri, cameras(1), (8, 8))
    pos = to_clip(verts[None], cameras(1)[:, None])
    with pytest.raises(ValueError, match="topology of 2 triangles"):
        antialias(surface.hard, surface.frag, surface.depth, pos, tri, topology(SQUARE, 4))


# What it is for


def test_a_sphere_is_fitted_to_the_outlines_of_a_box() -> None:
    grid, views, size = bcc_grid(8), cameras(8), (32, 32)
    box = 0.25 - (grid.vertices.abs() / torch.tensor([1.4, 0.7, 1.0])).amax(dim=1)

    def render(sdf: Tensor) -> Surface:
        verts, faces = marching_tets(grid.vertices[None], sdf[None], grid).mesh(0)
        return render_surface(verts, faces, views, size)

    target = render(box).soft
    sdf = (0.25 - grid.vertices.norm(dim=1)).requires_grad_()
    optimizer = torch.optim.Adam([sdf], lr=0.01)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (render(sdf).soft - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
