"""Our rasterizer against programs of others: OpenGL (Mesa's llvmpipe) and ray casting (Embree).

OpenGL is asked through EGL, without a display. Where it is missing the tests say so and are skipped;
`make test` installs it as root on Debian or Ubuntu (docker/mesa.sh).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from get3d_cluster.get3d.camera import camera_position, clip_matrices
from get3d_cluster.get3d.raster import barycentrics, fragments, interpolate, to_image, visibility
from get3d_cluster.get3d.raster.surface import to_clip
from tests.solids import mesh_of

AZIMUTH, POLAR = torch.tensor([0.3, 2.1, 4.4]), torch.tensor([1.3, 0.9, 1.5])
VIEWS = clip_matrices(AZIMUTH, POLAR)

VERTEX_SHADER = """
#version 330
in vec4 clip;
in vec3 place;
out vec3 at;
void main() { gl_Position = clip; at = place; }
"""
FRAGMENT_SHADER = """
#version 330
in vec3 at;
layout(location = 0) out int face;
layout(location = 1) out vec4 seen;
void main() { face = gl_PrimitiveID + 1; seen = vec4(at, gl_FragCoord.z * 2.0 - 1.0); }
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """What a rasterizer saw of one view; row 0 is clip y = -1."""

    ids: Tensor  # [H, W] 0 = empty, i + 1 = triangle i
    place: Tensor  # [H, W, 3] interpolated attribute
    depth: Tensor  # [H, W] z/w


@pytest.fixture(scope="module")
def gl() -> Iterator[Any]:
    try:
        import moderngl

        context = moderngl.create_standalone_context(backend="egl")
    except Exception as error:  # of whatever kind: of the module, of EGL, of a driver
        pytest.skip(f"NOT COMPARED WITH OPENGL: {error}; as root on Debian or Ubuntu: sh docker/mesa.sh")
    yield context
    context.release()


def by_opengl(
    gl: Any,
    clip: Tensor,  # [V, 4]
    tri: Tensor,  # [F, 3]
    place: Tensor,  # [V, 3]
    size: tuple[int, int],
) -> Picture:
    extent = size[::-1]
    face, seen = gl.texture(extent, 1, dtype="i4"), gl.texture(extent, 4, dtype="f4")
    target = gl.framebuffer([face, seen], gl.depth_renderbuffer(extent))
    target.use()
    target.clear()
    program = gl.program(vertex_shader=VERTEX_SHADER, fragment_shader=FRAGMENT_SHADER)
    corners = torch.cat([clip, place], dim=1).float().contiguous().numpy()
    indices = tri.contiguous().numpy()
    array = gl.vertex_array(
        program, [(gl.buffer(corners.tobytes()), "4f 3f", "clip", "place")], gl.buffer(indices.tobytes())
    )
    gl.disable(gl.CULL_FACE)
    gl.enable(gl.DEPTH_TEST)
    gl.depth_func = "<"
    array.render()
    ids = np.frombuffer(face.read(), np.int32).reshape(size).copy()
    values = np.frombuffer(seen.read(), np.float32).reshape(*size, 4).copy()
    for each in (array, program, target, face, seen):
        each.release()
    return Picture(
        ids=torch.from_numpy(ids),
        place=torch.from_numpy(values[..., :3]),
        depth=torch.from_numpy(values[..., 3]),
    )


def by_us(clip: Tensor, tri: Tensor, place: Tensor, size: tuple[int, int], backend: str) -> Picture:
    pos = clip[None]
    frag = fragments(visibility(pos, tri, size, backend=backend), pos, tri)
    bary, depth = barycentrics(frag, pos)
    return Picture(
        ids=frag.tri_id[0],
        place=to_image(frag, interpolate(frag, bary, place[None]))[0],
        depth=to_image(frag, depth[:, None])[0, ..., 0],
    )


def assert_alike(ours: Picture, theirs: Picture, clip: Tensor, tri: Tensor) -> None:
    """Demand the same mask and, but for a few pixels on edges, the same ids; depth and place where ids agree."""
    assert torch.equal(ours.ids > 0, theirs.ids > 0)
    covered = ours.ids > 0
    assert covered.sum() > 100
    other = covered & (ours.ids != theirs.ids)
    assert other.sum() <= max(2, 0.001 * covered.sum())
    assert edge_distance_px(ours.ids, clip, tri)[other].lt(0.02).all()
    same = covered & ~other
    assert_close(ours.depth[same], theirs.depth[same], atol=2e-5, rtol=0)
    assert_close(ours.place[same], theirs.place[same], atol=1e-3, rtol=0)
    assert (ours.place[same] - theirs.place[same]).abs().mean() < 1e-5


def edge_distance_px(ids: Tensor, clip: Tensor, tri: Tensor) -> Tensor:  # [H, W]
    """Return how far each pixel centre lies from the edges of the triangle that it sees."""
    height, width = ids.shape
    xy = (clip[:, :2] / clip[:, 3:] * 0.5 + 0.5) * torch.tensor([width, height])
    corners = xy[tri[(ids.long() - 1).clamp(min=0)].long()]
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    offset = torch.stack([columns, rows], dim=-1)[:, :, None] - corners
    way = corners.roll(-1, dims=2) - corners
    cross = way[..., 0] * offset[..., 1] - way[..., 1] * offset[..., 0]
    return (cross.abs() / way.norm(dim=-1).clamp(min=1e-9)).amin(dim=-1)


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize(
    ("solid", "cells", "size"),
    [("sphere", 10, (48, 64)), ("car", 18, (128, 128)), ("chair", 16, (100, 75)), ("car", 30, (256, 256))],
)
def test_opengl_sees_the_same_triangles_depths_and_places(
    gl: Any, solid: str, cells: int, size: tuple[int, int], backend: str
) -> None:
    verts, tri = mesh_of(solid, cells)
    for view in VIEWS:
        clip = to_clip(verts, view)
        theirs = by_opengl(gl, clip, tri, verts, size)
        assert_alike(by_us(clip, tri, verts, size, backend), theirs, clip, tri)


@pytest.mark.parametrize("seed", range(5))
def test_opengl_sees_the_same_of_random_triangles_before_the_camera(gl: Any, seed: int) -> None:
    """Triangles of all windings reach beyond the image and both depth planes; they do not cut one another."""
    generator = torch.Generator().manual_seed(seed)
    count, size = 60, (45, 60)
    w = 0.5 + 2 * torch.rand(count, 3, 1, generator=generator)
    xy = torch.rand(count, 3, 2, generator=generator) * 3 - 1.5
    layer = (torch.randperm(count, generator=generator)[:, None, None] + 0.5) * (2.4 / count) - 1.2
    clip = torch.cat([xy * w, layer * w, w], dim=2).reshape(-1, 4)
    tri = torch.arange(3 * count, dtype=torch.int32).view(-1, 3)
    place = torch.rand(3 * count, 3, generator=generator)
    theirs = by_opengl(gl, clip, tri, place, size)
    assert_alike(by_us(clip, tri, place, size, "torch"), theirs, clip, tri)


def test_opengl_gives_centres_on_shared_edges_to_the_same_triangle(gl: Any) -> None:
    """A chessboard of half pixels: every corner and every edge passes through centres of pixels.

    Of two triangles at a horizontal edge OpenGL may prefer either. Mesa takes the one of larger y, we that of
    smaller y; so it draws upside down here.
    """
    size = (12, 12)
    lattice = torch.arange(25)
    xy = torch.cartesian_prod(lattice, lattice).flip(1) / 12 - 1
    clip = torch.cat([xy, torch.zeros(len(xy), 1), torch.ones(len(xy), 1)], dim=1)
    corner = torch.cartesian_prod(torch.arange(24), torch.arange(24)) @ torch.tensor([25, 1])
    tri = torch.cat(
        [
            torch.stack([corner, corner + 1, corner + 26], 1),
            torch.stack([corner, corner + 26, corner + 25], 1),
        ]
    ).int()
    turned = by_opengl(gl, clip * torch.tensor([1, -1, 1, 1]), tri, clip[:, :3], size)
    ours = by_us(clip, tri, clip[:, :3], size, "numba")
    assert (turned.ids > 0).all()
    assert torch.equal(ours.ids, turned.ids.flip(0))


def test_rays_of_embree_hit_the_same_triangles() -> None:
    from embreex import rtcore_scene
    from embreex.mesh_construction import TriangleMesh

    verts, tri = mesh_of("car", 20)
    size = (96, 96)
    scene = rtcore_scene.EmbreeScene()
    TriangleMesh(scene, verts.numpy(), tri.numpy())
    for view, azimuth, polar in zip(VIEWS, AZIMUTH, POLAR, strict=True):
        clip = to_clip(verts, view)
        ours = by_us(clip, tri, verts, size, "numba")
        origin = camera_position(azimuth[None], polar[None]).numpy().repeat(size[0] * size[1], axis=0)
        hit = scene.run(origin.astype(np.float32), rays(view, origin[0], size))
        theirs = torch.from_numpy(np.asarray(hit)).view(size) + 1
        differ = ours.ids != theirs
        assert differ.sum() < 0.005 * (ours.ids > 0).sum()
        seen = differ & (ours.ids > 0)
        assert edge_distance_px(ours.ids, clip, tri)[seen].lt(0.05).all()  # rays are float32


def rays(view: Tensor, origin: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return unit directions [H * W, 3] float32 through pixel centres."""
    rows, columns = torch.meshgrid(
        *[(torch.arange(extent).double() + 0.5) * (2 / extent) - 1 for extent in size], indexing="ij"
    )
    clip = torch.stack([columns, rows, torch.full_like(rows, 0.9), torch.ones_like(rows)], dim=-1).reshape(
        -1, 4
    )
    world = clip @ torch.linalg.inv(view.double()).T
    way = (world[:, :3] / world[:, 3:]).numpy() - origin
    return np.ascontiguousarray(way / np.linalg.norm(way, axis=1, keepdims=True), dtype=np.float32)
