import torch
from torch import Tensor
from torch.testing import assert_close

from get3d_cluster.get3d.camera import clip_matrices
from get3d_cluster.get3d.raster import (
    Fragments,
    barycentrics,
    fragments,
    interpolate,
    render_surface,
    to_image,
    visibility,
)
from get3d_cluster.get3d.raster.surface import to_clip
from get3d_cluster.get3d.tets import bcc_grid, marching_tets

TRIANGLE = torch.tensor([[0, 1, 2]], dtype=torch.int32)


def covered(pos: Tensor, tri: Tensor, size: tuple[int, int]) -> Fragments:
    return fragments(visibility(pos, tri, size), pos, tri)


def blob() -> tuple[Tensor, Tensor]:
    grid = bcc_grid(10)
    scaled = grid.vertices * torch.tensor([1.0, 1.3, 0.8])
    return marching_tets(grid.vertices[None], (0.3 - scaled.norm(dim=1))[None], grid).mesh(0)


def slanted_scene() -> tuple[Tensor, Tensor]:
    """Return two images of three slanted triangles, w from 1 to 4, float64."""
    generator = torch.Generator().manual_seed(2)
    pos = torch.rand(2, 9, 4, generator=generator, dtype=torch.float64) * 2 - 1
    pos[..., 3] = 1 + 3 * torch.rand(2, 9, generator=generator, dtype=torch.float64)
    pos[..., :2] *= pos[..., 3:] * 1.3
    return pos, torch.arange(9, dtype=torch.int32).view(3, 3)


def test_weights_belong_to_their_corners_in_order() -> None:
    size = (64, 64)
    corners = torch.tensor([[4.5, 4.5], [60.5, 4.5], [4.5, 60.5]], dtype=torch.float64)
    pos = torch.cat([corners / 64 * 2 - 1, torch.zeros(3, 1), torch.ones(3, 1)], dim=1)[None]
    frag = covered(pos, TRIANGLE, size)
    bary, _ = barycentrics(frag, pos)
    image = to_image(frag, bary)[0]
    assert_close(image[11, 18], torch.tensor([0.625, 0.25, 0.125]).double(), atol=1e-12, rtol=0)
    assert_close(image[46, 11], torch.tensor([0.125, 0.125, 0.75]).double(), atol=1e-12, rtol=0)
    values = torch.tensor([[[5.0], [7.0], [11.0]]]).double()
    expected = bary @ values[0]
    assert_close(interpolate(frag, bary, values), expected)


def test_fragments_list_pixels_row_by_row_with_their_place() -> None:
    verts, faces = blob()
    pos = to_clip(verts[None], clip_matrices(torch.tensor([0.2, 1.0]), torch.tensor([1.2, 1.3]))[:, None])
    frag = covered(pos, faces, (12, 17))
    assert torch.equal(frag.idx, (frag.batch * 12 + frag.py) * 17 + frag.px)
    assert (frag.idx.diff() > 0).all()
    assert torch.equal(frag.tri_id.reshape(-1)[frag.idx].long(), frag.tri + 1)
    assert torch.equal(frag.vert, faces[frag.tri].long() + frag.batch[:, None] * len(verts))


def test_a_constant_stays_constant_and_the_background_is_exactly_the_fill() -> None:
    verts, faces = blob()
    surface = render_surface(verts, faces, clip_matrices(torch.tensor([0.2]), torch.tensor([1.2])), (48, 48))
    pos = to_clip(verts[None], clip_matrices(torch.tensor([0.2]), torch.tensor([1.2]))[:, None])
    bary, _ = barycentrics(surface.frag, pos)
    ones = interpolate(surface.frag, bary, torch.ones(1, len(verts), 2))
    assert_close(ones, torch.ones_like(ones), atol=1e-6, rtol=0)
    image = to_image(surface.frag, ones, fill=-3.0)
    outside = surface.hard[..., 0] == 0
    assert (image[outside] == -3.0).all()
    assert (to_image(surface.frag, ones)[outside] == 0).all()


def test_perspective_interpolation_equals_the_ray_through_the_plane() -> None:
    size = (32, 24)
    plane = torch.tensor(
        [[-1.0, -1, -1], [1, -1, -1], [1, 9, -10], [-1, 9, -10]], dtype=torch.float64
    )  # y + z = -2..-1
    pos = torch.cat([plane[:, :2], plane.new_zeros(4, 1), -plane[:, 2:]], dim=1)[
        None
    ]  # w = -z: a pinhole, focal 1
    tri = torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32)
    frag = covered(pos, tri, size)
    bary, _ = barycentrics(frag, pos)
    hit = interpolate(frag, bary, plane[None])
    px, py = frag.px.double(), frag.py.double()
    ray = torch.stack([(px + 0.5) / 12 - 1, (py + 0.5) / 16 - 1, -torch.ones_like(px)], dim=1)
    # The plane through the four points: y = -1 - (z + 1) * 10 / 9.
    distance = (-1 - 10 / 9) / (ray[:, 1] + 10 / 9 * ray[:, 2])
    assert len(hit) > 100
    assert_close(hit, ray * distance[:, None], rtol=1e-9, atol=1e-9)


def test_positions_project_back_to_their_pixel_centres() -> None:
    verts, faces = blob()
    matrix = clip_matrices(torch.tensor([0.7, 4.0]), torch.tensor([1.2, 1.4]))
    surface = render_surface(verts, faces, matrix, (64, 48))
    clip = to_clip(surface.position, matrix[surface.frag.batch])
    pixel = (clip[:, :2] / clip[:, 3:] * 0.5 + 0.5) * torch.tensor([48.0, 64.0])
    centre = torch.stack([surface.frag.px, surface.frag.py], dim=1) + 0.5
    assert (pixel - centre).abs().max() < 1e-3
    assert_close(clip[:, 2] / clip[:, 3], surface.depth, atol=1e-5, rtol=0)
    assert not surface.depth.requires_grad


def test_the_nearest_of_all_hits_is_seen() -> None:
    """Cast a ray through every pixel (Moeller and Trumbore 1997) and compare the hit nearest to the camera."""
    verts, faces = (x.double() if x.is_floating_point() else x for x in blob())
    azimuth, polar = torch.tensor([0.7]).double(), torch.tensor([1.2]).double()
    matrix = clip_matrices(azimuth, polar)
    surface = render_surface(verts, faces, matrix, (20, 20))
    centre = torch.stack([surface.frag.px, surface.frag.py], dim=1).double() * 0.1 + 0.05 - 1
    inverse = torch.linalg.inv(matrix[0])

    def unproject(z: float) -> Tensor:
        clip = torch.cat([centre, torch.full_like(centre[:, :1], z), torch.ones_like(centre[:, :1])], dim=1)
        world = clip @ inverse.T
        return world[:, :3] / world[:, 3:]

    origin = unproject(0.0)
    way = unproject(0.9) - origin
    a, b, c = verts[faces.long()].unbind(1)
    cross = torch.linalg.cross(way[:, None], (c - a)[None])
    scale = (cross * (b - a)).sum(-1)
    offset = origin[:, None] - a
    u = (offset * cross).sum(-1) / scale
    turned = torch.linalg.cross(offset, (b - a).expand_as(offset))
    v = (turned * way[:, None]).sum(-1) / scale
    t = (turned * (c - a)).sum(-1) / scale
    nearest = torch.where((u >= 0) & (v >= 0) & (u + v <= 1), t, torch.inf).amin(dim=1)
    hit = nearest.isfinite()
    assert hit.float().mean() > 0.98  # the rest are outline pixels that snapping let in
    assert_close((origin + way * nearest[:, None])[hit], surface.position[hit], atol=1e-3, rtol=0)


def test_weights_sum_to_one_even_for_slivers_thinner_than_the_subpixel_grid() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.rand(200, 2, generator=generator) * 1.6 - 0.8
    way = torch.rand(200, 2, generator=generator) - 0.5
    thin = torch.stack(
        [start, start + way, start + 0.3 * way + 0.004 * torch.randn(200, 2, generator=generator)], 1
    )
    pos = torch.cat([thin.reshape(-1, 2), torch.zeros(600, 1), torch.ones(600, 1)], dim=1)[
        None
    ].requires_grad_()
    tri = torch.arange(600, dtype=torch.int32).view(-1, 3)
    frag = covered(pos, tri, (64, 64))
    bary, depth = barycentrics(frag, pos)
    assert len(bary) > 100
    assert_close(bary.sum(dim=1), torch.ones(len(bary)), atol=1e-4, rtol=0)
    assert bary.abs().max() <= 1.5001
    bary.square().sum().backward()
    assert pos.grad is not None
    assert pos.grad.isfinite().all()
    assert depth.isfinite().all()


def test_gradients_of_weights_and_attributes_are_right_to_second_order() -> None:
    pos, tri = slanted_scene()
    frag = covered(pos, tri, (7, 6))
    assert len(frag.idx) > 20
    attr = torch.rand(2, 9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def shade(position: Tensor, attribute: Tensor) -> Tensor:
        return to_image(frag, interpolate(frag, barycentrics(frag, position)[0], attribute))

    inputs = (pos.requires_grad_(), attr.requires_grad_())
    assert torch.autograd.gradcheck(shade, inputs)
    assert torch.autograd.gradgradcheck(shade, inputs)


def test_one_attribute_shared_by_all_images_equals_copies_of_it() -> None:
    pos, tri = slanted_scene()
    frag = covered(pos, tri, (16, 16))
    bary, _ = barycentrics(frag, pos)
    attr = torch.rand(1, 9, 3, dtype=torch.float64)
    assert torch.equal(interpolate(frag, bary, attr), interpolate(frag, bary, attr.expand(2, -1, -1)))
