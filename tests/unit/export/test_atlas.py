import numpy as np
import pytest
import torch
import trimesh

from get3d_cluster.errors import UsageError
from get3d_cluster.export.atlas import Atlas, bake, dilate, surface_points, textured_mesh, unwrap

SQUARE = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32)
SQUARE_ATLAS = Atlas(
    vmapping=np.arange(4),
    faces=np.array([[0, 1, 2], [0, 2, 3]], np.int32),
    uv=SQUARE[:, :2].copy(),
)


def sphere(level: int = 2) -> tuple[np.ndarray, np.ndarray]:
    mesh = trimesh.creation.icosphere(level, radius=0.4)
    return np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.int32)


def rainbow(points: torch.Tensor) -> torch.Tensor:
    return points / 0.8 + 0.5


def sampled(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Read a texture as a renderer does: bilinear, v upwards, texel centres at half pixels."""
    size = len(texture)
    x, y = uv[:, 0] * size - 0.5, (1 - uv[:, 1]) * size - 0.5
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = (x - left)[:, None], (y - top)[:, None]
    rows, columns = np.clip([top, top + 1], 0, size - 1), np.clip([left, left + 1], 0, size - 1)
    upper = (1 - fx) * texture[rows[0], columns[0]] + fx * texture[rows[0], columns[1]]
    lower = (1 - fx) * texture[rows[1], columns[0]] + fx * texture[rows[1], columns[1]]
    return (1 - fy) * upper + fy * lower


def test_u_goes_right_and_v_goes_up() -> None:
    texture = bake(lambda p: p, SQUARE, SQUARE_ATLAS, size=4)
    assert texture[0, 0].tolist() == [32, 223, 0]  # top left: u = 1/8, v = 7/8
    assert texture[3, 3].tolist() == [223, 32, 0]
    assert texture[3, 0].tolist() == [32, 32, 0]


def test_every_texel_of_a_full_square_is_asked_for_once_at_its_centre() -> None:
    rows, columns, points = surface_points(SQUARE, SQUARE_ATLAS, 8)
    assert len(rows) == 64
    np.testing.assert_allclose(points[:, 0], (columns + 0.5) / 8, atol=1e-6)
    np.testing.assert_allclose(points[:, 1], 1 - (rows + 0.5) / 8, atol=1e-6)


def test_colours_are_rounded_and_kept_within_bytes() -> None:
    wild = bake(lambda p: torch.tensor([[-3.0, 0.5, 1e9]]).expand(len(p), 3), SQUARE, SQUARE_ATLAS, size=2)
    assert wild[0, 0].tolist() == [0, 128, 255]


def test_the_texture_does_not_depend_on_how_many_points_are_asked_for_at_once() -> None:
    asked: list[int] = []

    def colour_at(points: torch.Tensor) -> torch.Tensor:
        asked.append(len(points))
        return points

    whole = bake(colour_at, SQUARE, SQUARE_ATLAS, size=8)
    pieces = bake(colour_at, SQUARE, SQUARE_ATLAS, size=8, points_per_query=10)
    assert asked == [64, 10, 10, 10, 10, 10, 10, 4]
    np.testing.assert_array_equal(whole, pieces)


def test_gutters_copy_the_nearest_covered_texel() -> None:
    texture = np.zeros((5, 5, 3), np.uint8)
    covered = np.zeros((5, 5), bool)
    texture[0, 0], texture[4, 4] = (255, 0, 0), (0, 0, 255)
    covered[0, 0] = covered[4, 4] = True
    filled = dilate(texture, covered)
    assert filled[1, 1].tolist() == [255, 0, 0]
    assert filled[3, 4].tolist() == [0, 0, 255]
    assert (filled.sum(axis=2) == 255).all()


def test_a_black_texel_inside_a_chart_stays_black() -> None:
    texture = np.full((3, 3, 3), 200, np.uint8)
    texture[1, 1] = 0
    np.testing.assert_array_equal(dilate(texture, np.ones((3, 3), bool)), texture)


def test_an_atlas_cuts_the_surface_without_changing_it() -> None:
    vertices, faces = sphere()
    atlas = unwrap(vertices, faces)
    np.testing.assert_array_equal(atlas.vmapping[atlas.faces], faces)
    assert atlas.uv.min() >= 0
    assert atlas.uv.max() <= 1


def test_charts_do_not_overlap() -> None:
    vertices, faces = sphere()
    atlas = unwrap(vertices, faces)
    a, b, c = atlas.uv[atlas.faces].astype(np.float64).transpose(1, 0, 2)
    edge_1, edge_2 = b - a, c - a
    area = np.abs(edge_1[:, 0] * edge_2[:, 1] - edge_1[:, 1] * edge_2[:, 0]).sum() / 2
    rows, _, _ = surface_points(vertices[atlas.vmapping], atlas, 512)
    assert len(rows) / 512**2 == pytest.approx(area, rel=0.01)
    assert area > 0.4


def test_colours_survive_the_way_through_the_texture() -> None:
    vertices, faces = sphere()
    mesh = textured_mesh(vertices, faces, rainbow, size=256)
    inside = mesh.uv[mesh.faces].mean(axis=1)
    expected = rainbow(torch.from_numpy(mesh.vertices[mesh.faces].mean(axis=1))).numpy() * 255
    assert np.abs(sampled(mesh.texture, inside) - expected).max() < 4


def test_seams_are_invisible_to_a_bilinear_filter() -> None:
    vertices, faces = sphere()
    mesh = textured_mesh(vertices, faces, lambda p: torch.full_like(p, 0.8), size=128)
    corners = np.concatenate([mesh.uv, mesh.uv[mesh.faces][:, :2].mean(axis=1)])  # seams run along such edges
    np.testing.assert_allclose(sampled(mesh.texture, corners), 204)


def test_normals_are_smooth_across_seams() -> None:
    vertices, faces = sphere()
    mesh = textured_mesh(vertices, faces, rainbow, size=32)
    assert len(mesh.vertices) > len(vertices)  # there are seams
    assert (mesh.normals * mesh.vertices / 0.4).sum(axis=1).min() > 0.999


def test_the_same_surface_gives_the_same_bytes() -> None:
    first, second = (textured_mesh(*sphere(), rainbow, size=64) for _ in range(2))
    for name in ("vertices", "faces", "uv", "texture", "normals"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()


def test_faces_without_area_do_no_harm() -> None:
    vertices, faces = sphere(1)
    doubled = np.vstack([vertices, vertices[:1]])
    with_slivers = np.vstack([faces, [[0, 0, 1], [0, len(vertices), 1]]]).astype(np.int32)
    mesh = textured_mesh(doubled, with_slivers, rainbow, size=64)
    assert len(mesh.faces) == len(faces)


def test_an_empty_shape_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(UsageError, match="empty: 0 faces") as caught:
        unwrap(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32))
    assert "seed" in caught.value.way_out


def test_positions_and_colours_that_are_not_finite_are_errors() -> None:
    vertices, faces = sphere(1)
    broken = vertices.copy()
    broken[3] = np.nan
    with pytest.raises(UsageError, match="1 of 42 vertices"):
        unwrap(broken, faces)
    with pytest.raises(UsageError, match="colours that are not finite"):
        textured_mesh(vertices, faces, lambda p: p * torch.nan, size=16)


def test_a_texture_field_that_needs_gradients_is_asked_without_them() -> None:
    weight = torch.ones(3, requires_grad=True)

    def colour_at(points: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        return points * weight

    bake(colour_at, SQUARE, SQUARE_ATLAS, size=4)
