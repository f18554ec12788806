"""The page that shows meshes: whole without a network, small, and content with torn files."""

import base64
import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from get3d_cluster.report.page import write_report
from get3d_cluster.report.viewer import MOST_SHAPES, TEXTURE_PX, write_viewer


def shape(file: Path, texture_px: int = 1024) -> Path:
    """Write a textured ball."""
    ball = trimesh.creation.icosphere(subdivisions=1, radius=0.4)
    material = trimesh.visual.material.PBRMaterial(
        baseColorTexture=Image.new("RGB", (texture_px, texture_px), "red")
    )
    ball.visual = trimesh.visual.TextureVisuals(uv=ball.vertices[:, :2] + 0.5, material=material)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(ball.export(file_type="glb"))
    return file


def shown(page: Path) -> trimesh.Scene:
    """Return what the page carries."""
    carried = re.search(r'base64_data\\s*=\\s*"([^"]+)"', page.read_text()) or re.search(
        r'"([A-Za-z0-9+/=]{2000,})"', page.read_text()
    )
    assert carried is not None
    return trimesh.load_scene(io.BytesIO(base64.b64decode(carried[1])), file_type="glb")


def run_with(folder: Path, count: int) -> tuple[Path, list[Path]]:
    files = [shape(folder / "meshes" / f"shape-{number:02d}.glb") for number in range(count)]
    return folder, [file.relative_to(folder) for file in files]


def test_the_page_carries_the_shapes_beside_each_other_and_needs_no_network(tmp_path: Path) -> None:
    run, files = run_with(tmp_path, 5)
    assert write_viewer(run, files) == Path("viewer.html")
    scene = shown(tmp_path / "viewer.html")
    assert len(scene.geometry) == 5
    middles = np.array([scene.graph[node][0][:3, 3] for node in scene.graph.nodes_geometry])
    apart = np.linalg.norm(middles[:, None] - middles[None], axis=2)[~np.eye(5, dtype=bool)]
    assert apart.min() > 1
    textures = {mesh.visual.material.baseColorTexture.size for mesh in scene.geometry.values()}
    assert textures == {(TEXTURE_PX, TEXTURE_PX)}
    page = (tmp_path / "viewer.html").read_text()
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page)


def test_torn_and_empty_files_are_left_out(tmp_path: Path) -> None:
    run, files = run_with(tmp_path, 3)
    whole = (tmp_path / files[0]).read_bytes()
    (tmp_path / files[0]).write_bytes(whole[: len(whole) // 2])
    (tmp_path / files[1]).write_bytes(b"")
    assert write_viewer(run, files)
    assert len(shown(tmp_path / "viewer.html").geometry) == 1
    (tmp_path / files[2]).write_bytes(b"glTF")
    (tmp_path / "viewer.html").unlink()
    assert write_viewer(run, files) is None
    assert not (tmp_path / "viewer.html").exists()


def test_only_the_first_shapes_are_shown_and_the_page_is_made_again_only_for_newer_files(
    tmp_path: Path,
) -> None:
    run, files = run_with(tmp_path, MOST_SHAPES + 2)
    write_viewer(run, files)
    page = tmp_path / "viewer.html"
    assert len(shown(page).geometry) == MOST_SHAPES
    before = page.stat().st_mtime_ns
    write_viewer(run, files)
    assert page.stat().st_mtime_ns == before
    later = page.stat().st_mtime + 5
    os.utime(tmp_path / files[0], (later, later))
    write_viewer(run, files)
    assert page.stat().st_mtime_ns != before


@pytest.mark.parametrize("count", [0, 2])
def test_the_report_shows_the_viewer_where_there_are_meshes(tmp_path: Path, count: int) -> None:
    run_with(tmp_path, count)
    (tmp_path / "spec.json").write_text("{}")
    page = write_report(tmp_path).read_text()
    assert ('<iframe src="./viewer.html"' in page) == bool(count)
