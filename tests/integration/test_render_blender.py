"""What Blender itself makes of a model: depth, normals, formats, what it leaves behind, how its memory grows."""

import hashlib
import importlib.util
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from get3d_cluster.core.cameras import FOV_RAD, RADIUS, blender_position, cam_to_world, quaternion
from preprocess.blender import Blender
from preprocess.images import ImageConfig, worker_settings
from tests.launching import wait_until

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
BLENDER = ROOT / ".venv-render" / "bin" / "python"
SIZE = 64
IMAGE = {"resolution": SIZE, "num_views": 2, "samples": 4, "adaptive_threshold": 0.0, "denoise": "none"}
IMAGE |= {"longest_side": 0.7, "lights": "studio", "view_transform": "Standard"}

spec = importlib.util.spec_from_file_location("ugly_models", TESTS / "ugly_models.py")
ugly = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ugly)


def start(folder: Path, out: str, temporary: Path, **image) -> subprocess.Popen:
    values = {"models": str(folder / "models"), "out": str(folder / out), "run": str(folder / f"run-{out}")}
    values |= {"blender": str(BLENDER), "image": IMAGE | image, "rank": 0, "world_size": 1}
    settings = folder / f"{out}.json"
    settings.write_text(json.dumps(values))
    command = [sys.executable, str(TESTS / "render_one_rank.py"), str(settings)]
    places = {
        "PYTHONPATH": str(ROOT),
        "PATH": "/usr/bin:/bin",
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(temporary),
    }
    return subprocess.Popen(command, env=places)


def files(out: Path) -> dict[str, str]:
    paths = [
        path for name in ("img", "depth", "normal", "camera") for path in sorted((out / name).rglob("*.*"))
    ]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def words(path: Path, channels: int) -> np.ndarray:
    png = path.read_bytes()
    length = struct.unpack(">I", png[33:37])[0]
    lines = np.frombuffer(zlib.decompress(png[41 : 41 + length]), np.uint8).reshape(SIZE, -1)
    steps = lines[:, 1:].reshape(SIZE, SIZE, 2 * channels)
    return (
        np.cumsum(steps, axis=1, dtype=np.uint8).reshape(SIZE, -1).view(">u2").reshape(SIZE, SIZE, channels)
    )


def hits(low: np.ndarray, high: np.ndarray, view: dict) -> tuple[np.ndarray, np.ndarray]:
    """Return depth [H, W] and normal [H, W, 3], in the axes of the file, of a box; nan where it is missed."""
    pose = np.array(cam_to_world(view["rotation_deg"], view["elevation_deg"], RADIUS))
    steps = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1
    across, down = np.meshgrid(steps * np.tan(FOV_RAD / 2), steps * np.tan(FOV_RAD / 2))
    rays = np.stack([across, -down, -np.ones_like(across)], -1) @ pose[:3, :3].T  # depth 1 along the view
    with np.errstate(divide="ignore"):
        ends = np.stack([(low - pose[:3, 3]) / rays, (high - pose[:3, 3]) / rays])
    near, far = ends.min(axis=0), ends.max(axis=0)
    depth, axis = near.max(axis=-1), near.argmax(axis=-1)
    depth[depth > far.min(axis=-1)] = np.nan
    normal = np.zeros_like(rays)
    np.put_along_axis(normal, axis[..., None], -np.sign(np.take_along_axis(rays, axis[..., None], -1)), -1)
    x, y, z = np.moveaxis(normal, -1, 0)
    return depth, np.stack([x, z, -y], -1)


@pytest.mark.blender
def test_depth_and_normals_are_those_of_the_geometry_and_the_same_after_a_kill(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    ugly.good(tmp_path / "models" / "02958343" / "box")
    wanted = {"passes": ["depth", "normal"]}
    assert start(tmp_path, "calm", temporary, **wanted).wait(120) == 0
    facts = json.loads((tmp_path / "calm/camera/02958343/box/object.json").read_text())
    corners = np.array(ugly.CORNERS)
    scaled = (corners - (corners.min(0) + corners.max(0)) / 2) * 0.7 / np.ptp(corners, axis=0).max()
    world = np.stack([scaled[:, 0], -scaled[:, 2], scaled[:, 1]], -1)
    for view in facts["views"]:
        depth = words(tmp_path / "calm/depth/02958343/box" / view["file"], 1)[..., 0] / 16384
        normal = words(tmp_path / "calm/normal/02958343/box" / view["file"], 3)
        known_depth, known_normal = hits(world.min(0), world.max(0), view)
        with Image.open(tmp_path / "calm/img/02958343/box" / view["file"]) as image:
            mask = np.asarray(image)[..., 3] > 0
        np.testing.assert_array_equal(depth > 0, mask)
        np.testing.assert_array_equal(normal.any(-1), mask)
        both = mask & np.isfinite(known_depth)
        assert both.sum() > 0.97 * mask.sum() > 100
        error = np.abs(depth - known_depth)[both]
        assert np.median(error) < 1e-3
        facing = ((normal[both].astype(float) - 1) / 65534 * 2 - 1) * known_normal[both]
        assert np.mean(facing.sum(-1) > 0.999) > 0.97
    process = start(tmp_path, "rough", temporary, **wanted)
    wait_until(lambda: list((tmp_path / "rough").rglob("000.png")) or process.poll() is not None, 100)
    assert process.poll() is None
    process.kill()
    process.wait()
    left = list(temporary.iterdir())
    assert start(tmp_path, "rough", temporary, **wanted).wait(120) == 0
    assert files(tmp_path / "rough") == files(tmp_path / "calm")
    assert list(temporary.iterdir()) == []
    assert len(left) == 1  # what the killed worker could not remove, its successor has


@pytest.mark.blender
def test_the_same_model_stands_the_same_way_in_every_format(tmp_path: Path) -> None:
    import trimesh

    mesh = trimesh.Trimesh(np.array(ugly.CORNERS), np.array(ugly.FACES), process=False)
    folder = tmp_path / "models" / "boxes"
    folder.mkdir(parents=True)
    for kind in ("obj", "ply"):
        mesh.export(folder / f"{kind}.{kind}")
    lifted = trimesh.transformations.translation_matrix([0, 3, 0])
    scene = trimesh.Scene()
    scene.graph.update("parent", scene.graph.base_frame, matrix=lifted)  # a child moves once, not twice
    scene.add_geometry(
        mesh.copy().apply_translation([0, -3, 0]), node_name="child", parent_node_name="parent"
    )
    scene.export(folder / "glb.glb")
    assert start(tmp_path, "out", tmp_path).wait(120) == 0
    views = {}
    for name in ("obj", "ply", "glb"):
        facts = json.loads((tmp_path / f"out/camera/boxes/{name}/object.json").read_text())
        np.testing.assert_allclose(
            facts["bbox"], [np.min(ugly.CORNERS, 0), np.max(ugly.CORNERS, 0)], atol=1e-5
        )
        views[name] = facts["views"]
    assert views["obj"][0]["rotation_deg"] != views["glb"][0]["rotation_deg"]  # cameras follow the name


@pytest.mark.long
@pytest.mark.blender
def test_the_memory_of_a_worker_does_not_grow_with_its_models(tmp_path: Path) -> None:
    kinds = []
    for index, name in enumerate(("good", "ngon", "vertex-colours", "huge")):
        folder = tmp_path / f"model-{index}"
        ugly.UGLY[name][0](folder)
        kinds.append(next(iter([*folder.glob("model.obj"), *folder.glob("model.ply")])))
    image = ImageConfig(resolution=32, samples=4, denoise="balanced", adaptive_threshold=0.0)
    blender = Blender(BLENDER, tmp_path / "log")
    blender.start()
    blender.hello()
    blender.ask("configure", 60, **worker_settings(image, 1, "cpu", None))
    used_mb = {}
    for number in range(1, 301):
        path = str(kinds[number % len(kinds)])
        blender.ask("load", 60, path=path, longest_side=0.7, center=True)
        for view in range(2):
            place = {
                "position": blender_position(90 * view, 10, RADIUS),
                "quaternion": quaternion(90 * view, 10),
            }
            blender.ask("render", 60, **place, seed=view, out=str(tmp_path / "view.png"), passes="")
        used_mb[number] = _resident_mb(blender.pid)
    blender.kill()
    blender.scratch.close()
    growth = used_mb[300] / used_mb[50] - 1
    print(
        f"resident: {used_mb[1]:.0f}, {used_mb[50]:.0f}, {used_mb[150]:.0f}, {used_mb[300]:.0f} MB; {growth:+.1%}"
    )
    assert growth < 0.05


def _resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
