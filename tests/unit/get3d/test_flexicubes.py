"""Dual marching cubes with weights: closed manifolds of the right kind, outward, convergent, and differentiable."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from get3d_cluster.errors import UsageError
from get3d_cluster.get3d import flexicubes as module
from get3d_cluster.get3d import generator as generators
from get3d_cluster.get3d import tets
from get3d_cluster.get3d.config import GeneratorConfig, GridConfig, MappingConfig, RenderConfig, TrunkConfig
from get3d_cluster.get3d.extraction import Weights
from get3d_cluster.get3d.flexicubes import (
    CUBE_EDGES,
    CubeGrid,
    cube_grid,
    equal_weights,
    flexicubes,
    squashed,
)
from get3d_cluster.get3d.generator import Generator
from get3d_cluster.get3d.raster.meshes import Meshes

GRID = cube_grid(12)


def sphere(points: Tensor, radius: float = 0.3) -> Tensor:
    return radius - points.norm(dim=-1)


def torus(points: Tensor, radius: float = 0.28, tube: float = 0.12) -> Tensor:
    ring = points[..., [0, 2]].norm(dim=-1) - radius
    return tube - torch.stack([ring, points[..., 1]], dim=-1).norm(dim=-1)


def extracted(
    sdf: Tensor, grid: CubeGrid = GRID, weights: Weights | None = None, *, in_four: bool = True
) -> Meshes:
    weigh = None if weights is None else lambda _sample, _corners: weights
    positions = grid.vertices.to(sdf).expand(len(sdf), -1, -1)
    return flexicubes(positions, sdf, grid, weigh, in_four=in_four).meshes


def wild_weights(num: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Weights:
    return squashed(3 * torch.randn(num, 21, generator=torch.Generator().manual_seed(seed), dtype=dtype))


def num_cut(sdf: Tensor, grid: CubeGrid = GRID) -> int:
    return len(module._cut_cubes(module._cubed(sdf > 0, grid.cells), grid.cells).case)


def is_manifold(verts: Tensor, faces: Tensor) -> bool:
    """Say whether every edge has two faces, that run along it in opposite directions, and every vertex one fan."""
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).long()
    there, back = (a * len(verts) + b for a, b in (edges.t(), edges.flip(1).t()))
    if len(there.unique()) < len(there) or not torch.equal(there.sort().values, back.sort().values):
        return False
    following = {(a, b): (a, c) for f in faces.tolist() for a, b, c in (f, f[1:] + f[:1], f[2:] + f[:2])}
    spokes: dict[int, list[tuple[int, int]]] = {}
    for spoke in following:
        spokes.setdefault(spoke[0], []).append(spoke)
    for around in spokes.values():
        spoke, count = following[around[0]], 1
        while spoke != around[0]:
            spoke, count = following[spoke], count + 1
        if count < len(around):
            return False
    return len(spokes) == len(verts)


def euler(verts: Tensor, faces: Tensor) -> int:
    return len(verts) - len(faces) // 2


def volume(verts: Tensor, faces: Tensor) -> float:
    a, b, c = (verts[faces[:, i].long()].double() for i in range(3))
    return float((a * torch.linalg.cross(b, c)).sum() / 6)


@pytest.mark.parametrize("in_four", [True, False])
@pytest.mark.parametrize("is_weighted", [True, False])
@pytest.mark.parametrize(("shape", "characteristic"), [(sphere, 2), (torus, 0)])
def test_a_body_is_a_closed_manifold_of_its_genus_with_outward_faces(
    shape: object, characteristic: int, is_weighted: bool, in_four: bool
) -> None:
    sdf = shape(GRID.vertices)[None]  # type: ignore[operator]
    weights = wild_weights(num_cut(sdf)) if is_weighted else None
    mesh = extracted(sdf, weights=weights, in_four=in_four).mesh(0)
    assert is_manifold(*mesh)
    assert euler(*mesh) == characteristic
    exact = 4 / 3 * math.pi * 0.3**3 if characteristic else 2 * math.pi**2 * 0.28 * 0.12**2
    assert 0.6 * exact < volume(*mesh) < 1.1 * exact


@pytest.mark.parametrize("in_four", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_a_field_of_noise_gives_a_closed_manifold(seed: int, in_four: bool) -> None:
    """Noise has every case, and faces that alternate on both sides by the hundred."""
    sdf = torch.randn(2, len(GRID.vertices), generator=torch.Generator().manual_seed(seed))
    meshes = extracted(tets.close_boundary(sdf, GRID), in_four=in_four)
    assert len(meshes) == 2
    assert all(is_manifold(*meshes.mesh(i)) for i in range(2))


def test_without_the_other_way_across_a_face_noise_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above."""
    monkeypatch.setattr(module, "_choices", lambda _sample, _place, case, *_: torch.zeros_like(case))
    sdf = torch.randn(1, len(GRID.vertices), generator=torch.Generator().manual_seed(0))
    assert not is_manifold(*extracted(tets.close_boundary(sdf, GRID)).mesh(0))


def test_vertices_converge_to_the_sphere() -> None:
    errors = []
    for cells in (8, 16, 32):
        grid = cube_grid(cells)
        verts = extracted(sphere(grid.vertices)[None], grid, in_four=False).verts
        errors.append(float((verts.norm(dim=1) - 0.3).abs().max()))
    assert errors[1] < errors[0] / 2.5
    assert errors[2] < errors[1] / 2.5


def test_the_tables_know_all_cases() -> None:
    tables = module._tables()
    for case in (0, 255):
        assert (tables.loops[case * 64] == -1).all()
    for case in range(256):
        crossed = [(case >> a & 1) != (case >> b & 1) for a, b in CUBE_EDGES]
        assert [label >= 0 for label in tables.loops[case * 64].tolist()] == crossed
    one_corner = tables.loops[64]
    assert one_corner.max() == 0
    assert (one_corner == 0).sum() == 3
    opposite = tables.loops[0b10000001 * 64]
    assert opposite.max() == 1
    checkered = tables.loops[0b01101001 * 64]
    assert checkered.max() == 3
    assert not tables.pinched[64].any()


def test_all_weights_move_what_they_should() -> None:
    sdf = sphere(GRID.vertices)[None]
    plain = equal_weights(num_cut(sdf), sdf)
    base = extracted(sdf, weights=plain)
    num_vertices = len(extracted(sdf, in_four=False).verts)
    wild = wild_weights(num_cut(sdf))
    for name, moves_vertices in (("corners", True), ("edges", True), ("splits", False)):
        changed = extracted(sdf, weights=plain._replace(**{name: getattr(wild, name)}))
        assert torch.equal(changed.faces, base.faces)
        assert torch.equal(changed.verts[:num_vertices], base.verts[:num_vertices]) != moves_vertices
        assert not torch.equal(changed.verts[num_vertices:], base.verts[num_vertices:])


def test_a_cube_by_hand() -> None:
    """One corner inside: a vertex at the mean of three crossings, weighted by the edges, values by corners."""
    grid = cube_grid(2)
    sdf = torch.full((1, 27), -1.0, dtype=torch.float64)
    sdf[0, grid.centre] = 3.0
    plain = equal_weights(8, sdf)
    corners, edges = plain.corners.clone(), plain.edges.clone()
    corners[7, 0] = 0.5  # of the cube from the centre up, in (x, y, z)
    edges[7, CUBE_EDGES.index((0, 1))] = 1.5
    verts = extracted(sdf, grid, plain._replace(corners=corners, edges=edges), in_four=False).verts
    assert torch.allclose(verts[0], torch.full((3,), -0.75 * 0.5 / 3, dtype=torch.float64))
    reach = 0.5 * 1.5 / 2.5
    expected = [1.5 * reach / 3.5, reach / 3.5, reach / 3.5]
    assert verts[7].tolist() == pytest.approx(expected)


def test_gradients_are_right() -> None:
    grid = cube_grid(4)
    generator = torch.Generator().manual_seed(3)
    sdf = torch.randn(1, len(grid.vertices), generator=generator, dtype=torch.float64)
    sdf = torch.where(sdf.abs() < 0.3, 0.3 * sdf.sign(), sdf)
    positions = grid.vertices.double()[None] + 0.02 * torch.rand(1, 125, 3, generator=generator).double()
    raw = torch.randn(num_cut(sdf, grid), 21, generator=generator, dtype=torch.float64)

    def numbers(positions: Tensor, sdf: Tensor, raw: Tensor) -> tuple[Tensor, ...]:
        found = flexicubes(positions, sdf, grid, lambda _sample, _corners: squashed(raw))
        return found.meshes.verts, found.deviation, found.weights_square

    given = [tensor.requires_grad_() for tensor in (positions, sdf, raw)]
    assert torch.autograd.gradcheck(numbers, given, fast_mode=True)


def test_the_deviation_is_that_of_distances_to_crossings() -> None:
    grid = cube_grid(2)
    sdf = torch.full((1, 27), -1.0, dtype=torch.float64)
    sdf[0, grid.centre] = 1.0
    positions = grid.vertices.double()[None]
    even = flexicubes(positions, sdf, grid)
    assert even.deviation.item() == pytest.approx(0, abs=1e-9)
    sdf[0, grid.centre + 1] = -3.0  # the crossing along +z is nearer: at 1/8 instead of 1/4
    uneven = flexicubes(positions, sdf, grid)
    vertex = torch.tensor([1 / 12, 1 / 12, 1 / 24])
    crossings = torch.tensor([[0.25, 0, 0], [0, 0.25, 0], [0, 0, 0.125]])
    distances = (crossings - vertex).norm(dim=1)
    own = (distances - distances.mean()).abs().mean()
    assert uneven.deviation.item() == pytest.approx(own.item() / 2, rel=1e-5)  # four of eight vertices


def test_an_empty_sample_among_others_gives_an_empty_mesh() -> None:
    sdf = torch.stack([sphere(GRID.vertices), torch.full((len(GRID.vertices),), -1.0), torus(GRID.vertices)])
    assert GRID.is_empty(sdf > 0).tolist() == [False, True, False]
    meshes = extracted(sdf)
    assert [len(meshes.mesh(i)[1]) > 0 for i in range(3)] == [True, False, True]
    alone = extracted(sdf[2:]).mesh(0)
    assert all(torch.equal(a, b) for a, b in zip(meshes.mesh(2), alone, strict=True))
    nothing = flexicubes(GRID.vertices[None], sdf[1:2], GRID)
    assert len(nothing.meshes.verts) == 0
    assert nothing.deviation == 0


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_empty_sample_is_repaired_with_outward_faces(sign: float) -> None:
    sdf, deformation = torch.full((1, len(GRID.vertices)), sign), torch.zeros(1, len(GRID.vertices), 3)
    fixed, _, penalty = tets.repair_empty(sdf, deformation, GRID)
    mesh = extracted(fixed).mesh(0)
    assert is_manifold(*mesh)
    assert volume(*mesh) > 0
    assert penalty.item() == 1


def test_a_crossing_on_the_outermost_edges_alone_is_no_surface() -> None:
    sdf = torch.full((1, len(GRID.vertices)), -1.0)
    sdf[0, 0] = 1.0  # a corner of the box
    assert GRID.is_empty(sdf > 0).all()
    assert len(extracted(sdf).faces) == 0


FLEXIBLE = GeneratorConfig(
    latent_channels=8,
    mapping=MappingConfig(num_layers=2, lr_multiplier=0.1),
    trunk=TrunkConfig(resolution_px=8, plane_channels=4, channels=(8, 8)),
    grid=GridConfig(kind="flexicubes", cells=8, max_deformation=0.5),
    render=RenderConfig(image_size_px=16),
)


def test_a_generator_teaches_its_weights_and_closes_what_it_exports() -> None:
    torch.manual_seed(0)
    generator = Generator(FLEXIBLE)
    latents = generator.map(torch.randn(2, 8), torch.randn(2, 8))
    rendered = generator.render(latents, torch.tensor([[0.0, 1.3], [2.0, 1.2]]))
    loss = rendered.image[:, 3].square().sum() + rendered.shapes.deviation + rendered.shapes.weights_square
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in generator.weight_field.parameters())
    with torch.no_grad():
        trained, shown = generator.meshes(latents), generator.eval().meshes(latents)
    assert all(is_manifold(*mesh) for mesh in (*trained, *shown))
    assert all(len(a[1]) == 2 * len(b[1]) for a, b in zip(trained, shown, strict=True)), (
        "four and two faces a quad"
    )


def test_the_variant_has_the_published_number_of_parameters() -> None:
    grid = GridConfig(kind="flexicubes", cells=2)
    with torch.device("meta"):
        generator = Generator(GeneratorConfig(grid=grid))
    assert sum(p.numel() for p in generator.weight_field.parameters()) == 30_260_086 - 30_103_425
    assert replace(grid, tet_res=90).num_cells == 90


def test_weights_begin_near_one_and_stay_in_their_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    trunk = TrunkConfig(resolution_px=16, channel_max=64)
    generator = Generator(GeneratorConfig(trunk=trunk, grid=GridConfig(kind="flexicubes", cells=8)))
    kept: list[Weights] = []
    monkeypatch.setattr(generators, "squashed", lambda raw: kept.append(squashed(raw)) or kept[-1])
    with torch.no_grad():
        generator.shapes(generator.map(*torch.randn(2, 4, 512)))
    (first,) = kept
    for weights in (first.corners, first.edges):
        assert len(weights) > 300, "few cubes are cut"
        assert (weights - 1).abs().max() < 0.4
        assert ((weights - 1).abs() < 0.2).float().mean() > 0.9
        assert weights.std() > 0.01
    assert (first.splits - 0.5).abs().max() < 0.1
    far = squashed(torch.tensor([[-100.0] * 21, [100.0] * 21]))
    assert far.corners[:, 0].tolist() == far.edges[:, 0].tolist() == [0.5, 1.5]
    assert far.splits.tolist() == [0.25, 0.75]


def test_mirrored_shapes_are_refused() -> None:
    with pytest.raises(UsageError, match="flexicubes"):
        replace(FLEXIBLE, mirror_x=True)


def test_an_odd_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="cells=3"):
        cube_grid(3)
