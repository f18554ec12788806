"""What the Khronos validator says of our GLB files. `make test` gets it with docker/gltf.sh; needs node and npm."""

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
from get3d_cluster.runtime.run_folder import RunFolder
from tests.generate_setup import generated, trained

ROOT = Path(__file__).parents[2]
PACKAGES = ROOT / ".node"
JUDGE = """
const fs = require("fs"), path = process.argv[1];
require("gltf-validator").validateBytes(new Uint8Array(fs.readFileSync(path)), { maxIssues: 20 })
  .then(report => console.log(JSON.stringify(report)), error => { console.error(error); process.exit(1); });
"""


def judged(path: Path) -> dict[str, Any]:
    node = shutil.which("node")
    if node is None or not (PACKAGES / "node_modules" / "gltf-validator").is_dir():
        pytest.skip("GLB FILES ARE NOT VALIDATED: no node, or no gltf-validator; sh docker/gltf.sh gets both")
    done = subprocess.run(
        [node, "-e", JUDGE, path], capture_output=True, text=True, cwd=PACKAGES, timeout=120, check=False
    )
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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return trained(tmp_path_factory.mktemp("generated"))


FEW = ("num_shapes=2", "turntable_every=0", "formats=[glb]")


@pytest.mark.parametrize("wanted", [(), ("max_faces=60",), ("cells=8", "texture_px=64")], ids="-".join)
def test_nor_in_what_the_job_generates(run: RunFolder, wanted: tuple[str, ...], tmp_path: Path) -> None:
    out, index = generated(run, tmp_path, *FEW, *wanted)
    paths = sorted(out.glob("*.glb"))
    assert len(paths) == 2
    for path, shape in zip(paths, index["shapes"], strict=True):
        report = judged(path)
        counts = {name: number for name, number in report["issues"].items() if name.startswith("num")}
        print(f"gltf-validator {report['validatorVersion']}, {path.name} {wanted}: {counts}")
        assert report["issues"]["messages"] == []
        assert 0.8 * shape["num_faces"] <= report["info"]["totalTriangleCount"] <= shape["num_faces"]
        assert report["info"]["hasTextures"]
        assert shape["num_faces"] <= 60 or "max_faces=60" not in wanted


def test_a_broken_file_is_found_broken(tmp_path: Path) -> None:
    mesh = textured_mesh(*ball(1), by_place, 16)
    mesh.normals[0] *= 3
    write_glb(tmp_path / "shape.glb", mesh)
    assert judged(tmp_path / "shape.glb")["issues"]["numErrors"] > 0
