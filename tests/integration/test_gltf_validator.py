"""What the Khronos validator says of our GLB files. Needs node and `npm install --no-save gltf-validator` (here, or
anywhere that NODE_PATH names)."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from get3d_cluster.export.atlas import textured_mesh
from get3d_cluster.export.files import write_glb
from get3d_cluster.export.simplify import simplified
from get3d_cluster.get3d import tets

ROOT = Path(__file__).parents[2]
JUDGE = """
const fs = require("fs"), path = process.argv[1];
require("gltf-validator").validateBytes(new Uint8Array(fs.readFileSync(path)), { maxIssues: 20 })
  .then(report => console.log(JSON.stringify(report)), error => { console.error(error); process.exit(1); });
"""


def judged(path: Path) -> dict[str, Any]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("GLB FILES ARE NOT VALIDATED: node is not installed")
    done = subprocess.run(
        [node, "-e", JUDGE, path], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    if "Cannot find module 'gltf-validator'" in done.stderr:
        pytest.skip("GLB FILES ARE NOT VALIDATED: npm install --no-save gltf-validator")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def by_place(points: torch.Tensor) -> torch.Tensor:
    return points + 0.5


def tetrahedral_noise() -> tuple[np.ndarray, np.ndarray]:
    grid = tets.bcc_grid(8)
    sdf = torch.randn(1, len(grid.vertices), generator=torch.Generator().manual_seed(0))
    vertices, faces = tets.marching_tets(grid.vertices[None], tets.close_boundary(sdf, grid), grid).mesh(0)
    return vertices.numpy().astype(np.float32), faces.numpy().astype(np.int32)


def ball(level: int) -> tuple[np.ndarray, np.ndarray]:
    sphere = trimesh.creation.icosphere(level, radius=0.4)
    return np.asarray(sphere.vertices, np.float32), np.asarray(sphere.faces, np.int32)


@pytest.mark.parametrize("kind", ["ball", "small", "noise", "simplified", "odd texture"])
def test_the_khronos_validator_finds_neither_errors_nor_warnings_nor_hints(kind: str, tmp_path: Path) -> None:
    vertices, faces = (
        tetrahedral_noise() if kind in ("noise", "simplified") else ball(0 if kind == "small" else 3)
    )
    if kind == "simplified":
        vertices, faces = simplified(vertices, faces, len(faces) // 3)
    mesh = textured_mesh(vertices, faces, by_place, 57 if kind == "odd texture" else 128)
    write_glb(tmp_path / "shape.glb", mesh)
    report = judged(tmp_path / "shape.glb")
    told = [(issue["code"], issue["severity"]) for issue in report["issues"]["messages"]]
    information = 2
    assert told == ([("IMAGE_NPOT_DIMENSIONS", information)] if kind == "odd texture" else [])
    assert report["info"]["totalTriangleCount"] == len(mesh.faces)
    assert report["info"]["hasTextures"]


def test_a_broken_file_is_found_broken(tmp_path: Path) -> None:
    mesh = textured_mesh(*ball(1), by_place, 16)
    mesh.normals[0] *= 3
    write_glb(tmp_path / "shape.glb", mesh)
    assert judged(tmp_path / "shape.glb")["issues"]["numErrors"] > 0
