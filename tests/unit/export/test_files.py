import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from get3d_cluster.errors import StorageError, UsageError
from get3d_cluster.export.atlas import textured_mesh
from get3d_cluster.export.files import glb_bytes, obj_text, write_glb, write_obj, write_ply
from get3d_cluster.export.mesh import TexturedMesh


@pytest.fixture(scope="module")
def mesh() -> TexturedMesh:
    sphere = trimesh.creation.icosphere(2, radius=0.4)
    return textured_mesh(
        np.asarray(sphere.vertices, np.float32), np.asarray(sphere.faces, np.int32), _by_place, size=128
    )


def _by_place(points: torch.Tensor) -> torch.Tensor:
    return points / 0.8 + 0.5


def surface_of(scene: trimesh.Scene) -> trimesh.Trimesh:
    (surface,) = scene.geometry.values()
    return surface


def colour_error(surface: trimesh.Trimesh, image: Image.Image) -> float:
    """Largest difference, in bytes, between the texture at the faces' centres and what was baked there."""
    pixels = np.asarray(image.convert("RGB")).astype(int)
    uv = surface.visual.uv[surface.faces].mean(axis=1)
    size = len(pixels)
    found = pixels[((1 - uv[:, 1]) * size).astype(int), (uv[:, 0] * size).astype(int)]
    expected = (surface.vertices[surface.faces].mean(axis=1) / 0.8 + 0.5) * 255
    return float(np.abs(found - expected).max())


def test_a_glb_opens_with_its_texture_in_the_right_place(mesh: TexturedMesh, tmp_path: Path) -> None:
    write_glb(tmp_path / "deep" / "shape.glb", mesh)
    surface = surface_of(trimesh.load(tmp_path / "deep" / "shape.glb", process=False))
    material = surface.visual.material
    assert (len(surface.vertices), len(surface.faces)) == (len(mesh.vertices), len(mesh.faces))
    np.testing.assert_array_equal(surface.vertices.astype(np.float32), mesh.vertices)
    np.testing.assert_allclose(surface.vertex_normals, mesh.normals, atol=1e-6)
    assert material.baseColorTexture.size == (128, 128)
    assert (material.metallicFactor, material.roughnessFactor) == (0.0, 0.8)
    assert colour_error(surface, material.baseColorTexture) < 8


def test_a_glb_is_well_formed_and_holds_everything_in_one_file(mesh: TexturedMesh) -> None:
    data = glb_bytes(mesh)
    magic, version, length, json_length = struct.unpack("<4sIII", data[:16])
    assert (magic, version, length) == (b"glTF", 2, len(data))
    text = data[20 : 20 + json_length]
    assert b'"NORMAL"' in text
    assert b'"uri"' not in text
    assert b"image/png" in text


def test_an_obj_opens_with_its_texture_in_the_right_place(mesh: TexturedMesh, tmp_path: Path) -> None:
    write_obj(tmp_path / "a", "shape-1", mesh)
    (tmp_path / "a").rename(tmp_path / "moved")
    surface = trimesh.load(tmp_path / "moved" / "shape-1.obj", process=False)
    surface = surface_of(surface) if isinstance(surface, trimesh.Scene) else surface
    assert len(surface.faces) == len(mesh.faces)
    assert surface.visual.material.image.size == (128, 128)
    assert colour_error(surface, surface.visual.material.image) < 8


def test_every_index_of_an_obj_exists(mesh: TexturedMesh) -> None:
    lines = [line.split() for line in obj_text("x", mesh).splitlines()]
    counts = {kind: sum(line[0] == kind for line in lines) for kind in ("v", "vt", "vn", "f")}
    assert counts == {"v": len(mesh.uv), "vt": len(mesh.uv), "vn": len(mesh.uv), "f": len(mesh.faces)}
    used = np.array([[corner.split("/") for corner in line[1:]] for line in lines if line[0] == "f"]).astype(
        int
    )
    assert used.min() == 1
    assert used.max() == len(mesh.uv)
    np.testing.assert_array_equal(used[..., 0] - 1, mesh.faces)


def test_positions_in_an_obj_are_exact_to_float32(mesh: TexturedMesh) -> None:
    rows = [line.split()[1:] for line in obj_text("x", mesh).splitlines() if line.startswith("v ")]
    np.testing.assert_allclose(np.array(rows, np.float32), mesh.vertices, rtol=1e-6)


def test_the_same_mesh_gives_the_same_bytes(mesh: TexturedMesh, tmp_path: Path) -> None:
    assert glb_bytes(mesh) == glb_bytes(mesh)
    for name in ("a", "b"):
        write_obj(tmp_path / name, "shape", mesh)
    files = ["shape.mtl", "shape.obj", "shape.png"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == files
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


@pytest.mark.parametrize("name", ["", "a b", "../x", "a/b", "stuhl-ä", "a\nb"])
def test_names_that_an_obj_cannot_carry_are_refused(mesh: TexturedMesh, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="not portable"):
        write_obj(tmp_path, name, mesh)
    assert not list(tmp_path.iterdir())


def test_the_obj_appears_only_once_its_material_is_there(
    mesh: TexturedMesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    from get3d_cluster.export import files as module

    real = module.write_atomic

    def watching(path: Path, data: bytes) -> None:
        seen.append(sorted(p.name for p in tmp_path.iterdir()))
        real(path, data)

    monkeypatch.setattr(module, "write_atomic", watching)
    write_obj(tmp_path, "shape", mesh)
    assert seen == [[], ["shape.png"], ["shape.mtl", "shape.png"]]


def test_a_folder_that_is_a_file_is_a_storage_error(mesh: TexturedMesh, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"shape\.glb"):
        write_glb(tmp_path / "file" / "shape.glb", mesh)


def test_a_ply_holds_the_surface_in_one_piece_with_its_colours(tmp_path: Path) -> None:
    sphere = trimesh.creation.icosphere(2, radius=0.4)
    vertices, faces = np.asarray(sphere.vertices, np.float32), np.asarray(sphere.faces, np.int32)
    normals = (vertices / 0.4).astype(np.float32)
    colours = ((vertices / 0.8 + 0.5) * 255).astype(np.uint8)
    write_ply(tmp_path / "shape.ply", vertices, normals, colours, faces)
    read = trimesh.load(tmp_path / "shape.ply", process=False)
    np.testing.assert_array_equal(read.vertices.astype(np.float32), vertices)
    np.testing.assert_array_equal(read.faces, faces)
    np.testing.assert_array_equal(read.visual.vertex_colors[:, :3], colours)
    np.testing.assert_allclose(read.vertex_normals, normals, atol=1e-6)
    assert read.is_watertight


def test_indices_of_a_large_mesh_take_four_bytes_and_of_a_small_one_two(mesh: TexturedMesh) -> None:
    count = 65_536
    flat = np.zeros((count, 3), np.float32)
    large = TexturedMesh(
        vertices=flat,
        faces=np.array([[0, 1, count - 1]], np.int32),
        uv=flat[:, :2],
        texture=np.zeros((2, 2, 3), np.uint8),
        normals=flat + np.array([0, 0, 1], np.float32),
    )
    assert b'"componentType":5125' in glb_bytes(large)
    assert b'"componentType":5123' in glb_bytes(mesh)
