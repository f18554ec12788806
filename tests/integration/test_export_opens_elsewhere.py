"""What we export, opened by a program we did not write."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from get3d_cluster.export.atlas import textured_mesh
from get3d_cluster.export.files import write_glb, write_obj
from get3d_cluster.export.mesh import TexturedMesh
from get3d_cluster.export.pictures import shade
from get3d_cluster.export.simplify import simplified
from get3d_cluster.export.views import Lens, textured_views
from get3d_cluster.get3d import tets
from get3d_cluster.get3d.camera import FOV_DEG, RADIUS, camera_position, clip_matrices
from get3d_cluster.get3d.raster import render_surface
from tests.generate_setup import generated, trained

SIZE_PX = 192
CAMERAS = torch.tensor([[0.6, 1.3], [2.9, 1.1], [4.6, 1.55]])
"""Azimuth and polar angle, radians."""
BLENDER_PYTHON = Path(__file__).parents[2] / ".venv-render" / "bin" / "python"

LOOK = """
import json, sys
import bpy
bpy.ops.wm.read_factory_settings(use_empty=True)
path = sys.argv[1]
if path.endswith(".glb"):
    bpy.ops.import_scene.gltf(filepath=path)
else:
    bpy.ops.wm.obj_import(filepath=path, forward_axis="NEGATIVE_Z", up_axis="Y")
(shape,) = [o for o in bpy.data.objects if o.type == "MESH"]
mesh = shape.data
image = next(n.image for m in mesh.materials for n in m.node_tree.nodes if n.type == "TEX_IMAGE")
width, height = image.size
pixels = image.pixels[:]
layer = mesh.uv_layers[0].data
faces = []
for face in mesh.polygons:
    u = sum(layer[k].uv[0] for k in face.loop_indices) / 3
    v = sum(layer[k].uv[1] for k in face.loop_indices) / 3
    at = 4 * (int(v * height) * width + int(u * width))
    to_world = shape.matrix_world
    faces.append([list(to_world @ face.center), list(to_world.to_3x3() @ face.normal), pixels[at:at + 3]])
print("FOUND " + json.dumps({"size": [width, height], "faces": faces}))
"""


RENDER = """
import math, sys
import bpy
import mathutils
path, out, size, fov_deg, radius, *angles = sys.argv[1:]
bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.ops.import_scene.gltf(filepath=path)
for material in bpy.data.materials:
    nodes = material.node_tree.nodes
    image = next(n for n in nodes if n.type == "TEX_IMAGE")
    bare = nodes.new("ShaderNodeEmission")
    material.node_tree.links.new(image.outputs["Color"], bare.inputs["Color"])
    target = next(n for n in nodes if n.type == "OUTPUT_MATERIAL")
    material.node_tree.links.new(bare.outputs["Emission"], target.inputs["Surface"])
scene = bpy.context.scene
lens = bpy.data.cameras.new("camera")
lens.angle = math.radians(float(fov_deg))
camera = bpy.data.objects.new("camera", lens)
scene.collection.objects.link(camera)
scene.camera = camera
scene.render.engine = "CYCLES"
scene.cycles.samples, scene.cycles.use_denoising, scene.cycles.filter_width = 1, False, 0.01
scene.cycles.use_adaptive_sampling = False
scene.render.film_transparent = True
scene.view_settings.view_transform = "Standard"
scene.render.resolution_x = scene.render.resolution_y = int(size)
scene.render.image_settings.color_mode = "RGBA"
for number in range(len(angles) // 2):
    azimuth, polar = map(float, angles[2 * number : 2 * number + 2])
    away = math.sin(polar)
    x, y, z = -away * math.sin(azimuth), math.cos(polar), -away * math.cos(azimuth)
    place = mathutils.Vector((x, -z, y)) * float(radius)  # Blender is Z up
    camera.location = place
    camera.rotation_euler = (-place).to_track_quat("-Z", "Y").to_euler()
    scene.render.filepath = f"{out}{number}.png"
    bpy.ops.render.render(write_still=True)
print("RENDERED")
"""


def _by_place(points: torch.Tensor) -> torch.Tensor:
    return points / 0.8 + 0.5


@pytest.fixture(scope="module")
def mesh() -> TexturedMesh:
    sphere = trimesh.creation.icosphere(2, radius=0.4)
    vertices, faces = np.asarray(sphere.vertices, np.float32), np.asarray(sphere.faces, np.int32)
    return textured_mesh(vertices, faces, _by_place, size=256)


@pytest.mark.blender
@pytest.mark.parametrize("kind", ["glb", "obj"])
def test_blender_finds_shape_texture_and_colours_in_place(
    mesh: TexturedMesh, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "shape.glb"
    if kind == "glb":
        write_glb(path, mesh)
    else:
        path = write_obj(tmp_path, "shape", mesh)
    command = [BLENDER_PYTHON, "-c", LOOK, path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stdout + done.stderr
    found = json.loads(lines[0].removeprefix("FOUND "))
    assert found["size"] == [256, 256]
    assert len(found["faces"]) == len(mesh.faces)
    centres, normals, colours = (np.array([face[k] for face in found["faces"]]) for k in range(3))
    # Blender is Z up: its (x, y, z) is our (x, z, -y)
    ours = np.stack([centres[:, 0], centres[:, 2], -centres[:, 1]], axis=1)
    assert np.abs(colours - (ours / 0.8 + 0.5)).max() < 0.03
    assert (normals * centres).sum(axis=1).min() > 0


def test_no_face_of_a_convex_shape_is_seen_from_behind() -> None:
    sphere = trimesh.creation.icosphere(3, radius=0.45)
    vertices, faces = np.asarray(sphere.vertices, np.float32), np.asarray(sphere.faces, np.int32)
    azimuth, polar = torch.tensor([0.0, 1.1, 2.6, 4.4]), torch.tensor([0.4, 1.2, 1.5, 2.7])
    surface = render_surface(
        torch.from_numpy(vertices), torch.from_numpy(faces), clip_matrices(azimuth, polar), (96, 96)
    )
    ids = surface.frag.tri_id.numpy()
    picture = shade(vertices, faces, ids, camera_position(azimuth, polar).numpy())
    assert (picture[..., 3] == (ids > 0)).all()
    red, _, blue = picture[..., :3][ids > 0].T
    assert (ids > 0).mean() > 0.2
    assert (red < blue).all()


@pytest.mark.blender
def test_blender_renders_a_glb_as_we_do(tmp_path: Path) -> None:
    vertices, faces = simplified(*_lump(), 1500)
    lump = textured_mesh(vertices, faces, _by_place, size=512)
    write_glb(tmp_path / "lump.glb", lump)
    ours = textured_views(lump, CAMERAS, Lens(size_px=SIZE_PX, supersampling=1)).colours
    for own, theirs in zip(ours, in_blender(tmp_path / "lump.glb"), strict=True):
        silhouette, other = own[..., 3] > 0.5, theirs[..., 3] > 0.5
        assert 0.1 < silhouette.mean() < 0.9
        assert difference(silhouette, other) < 0.01
        both = silhouette & other
        error = np.abs(own[both][:, :3] - theirs[both][:, :3]).max(axis=1)
        print(f"colours differ by {np.median(error):.4f} (median)")
        assert np.quantile(error, 0.99) < 0.03


@pytest.mark.blender
def test_what_the_job_generates_stands_in_blender_where_we_put_it(tmp_path: Path) -> None:
    wanted = ("num_shapes=1", "cells=8", "turntable_every=0", "formats=[glb,ply]")
    out, _ = generated(trained(tmp_path), tmp_path, *wanted)
    surface = trimesh.load(out / "shape-00000.ply", process=False)
    seen = render_surface(
        torch.from_numpy(np.array(surface.vertices, np.float32)),
        torch.from_numpy(np.array(surface.faces, np.int32)),
        clip_matrices(*CAMERAS.unbind(dim=1)),
        (SIZE_PX, SIZE_PX),
    )
    for ids, theirs in zip(seen.frag.tri_id.numpy(), in_blender(out / "shape-00000.glb"), strict=True):
        assert (ids > 0).mean() > 0.05
        assert difference(ids > 0, theirs[..., 3] > 0.5) < 0.01


def in_blender(path: Path) -> list[np.ndarray]:
    """Return what Blender makes of a GLB from ``CAMERAS``, [H, W, 4] in [0, 1]."""
    angles = [str(each) for each in CAMERAS.flatten().tolist()]
    options = [str(SIZE_PX), str(FOV_DEG), str(RADIUS), *angles]
    command = [BLENDER_PYTHON, "-c", RENDER, path, path.with_suffix(""), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert "RENDERED" in done.stdout, done.stdout + done.stderr
    pictures = []
    for number in range(len(CAMERAS)):
        with Image.open(f"{path.with_suffix('')}{number}.png") as picture:
            pictures.append(np.asarray(picture.convert("RGBA")) / 255.0)
    return pictures


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the share of the pixels of either silhouette that are not in both."""
    share = float((ours != theirs).sum() / (ours | theirs).sum())
    print(f"silhouettes differ in {(ours != theirs).sum()} of {(ours | theirs).sum()} pixels: {share:.2%}")
    return share


def _lump() -> tuple[np.ndarray, np.ndarray]:
    """Return what marching tetrahedra make of a ball with waves."""
    grid = tets.bcc_grid(12)
    draws = torch.Generator().manual_seed(3)
    waves, heights = torch.randn(12, 3, generator=draws) * 9, torch.randn(12, generator=draws)
    sdf = 0.3 - grid.vertices.norm(dim=1) + 0.05 * (torch.sin(grid.vertices @ waves.T) * heights).sum(dim=1)
    vertices, faces = tets.marching_tets(
        grid.vertices[None], tets.close_boundary(sdf[None], grid), grid
    ).mesh(0)
    return vertices.numpy().astype(np.float32), faces.numpy().astype(np.int32)
