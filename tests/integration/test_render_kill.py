"""Render workers as real processes, killed at any moment: the tree of images ends the same."""

import hashlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from get3d_cluster.core.cameras import FOV_RAD, RADIUS, cam_to_world
from preprocess.quality import magenta_share
from tests.launching import wait_until

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
BLENDER = ROOT / ".venv-render" / "bin" / "python"
VOLATILE = {".staging", "render.jsonl", "quarantine", "summary.html"}


def start(
    folder: Path, out: str, blender: Path, image: dict, rank: int = 0, world_size: int = 1
) -> subprocess.Popen:
    settings = folder / f"settings-{out}-{rank}.json"
    values = {"models": str(folder / "models"), "out": str(folder / out), "run": str(folder / f"run-{out}")}
    values |= {"blender": str(blender), "image": image, "rank": rank, "world_size": world_size}
    settings.write_text(json.dumps(values))
    command = [sys.executable, str(TESTS / "render_one_rank.py"), str(settings)]
    return subprocess.Popen(
        command, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    )


def tree(out: Path) -> dict[str, str]:
    """Digest of each file that counts, by its path."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    kept = [path for path in files if path.relative_to(out).parts[0] not in VOLATILE]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    program = tmp_path / "fake-blender"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{TESTS}/fake_blender_worker.py" "$@"\n')
    program.chmod(0o755)
    return program


def fake_models(folder: Path, count: int) -> None:
    for index in range(count):
        model = folder / "models" / "02958343" / f"slow-{index}"
        model.mkdir(parents=True)
        (model / "model.obj").write_text("v 0 0 0\nf 1 1 1\n")


IMAGE = {"resolution": 32, "num_views": 4, "samples": 1}


def wait_for_images(out: Path, count: int, *workers: subprocess.Popen) -> None:
    """Wait until so many lie there; the workers are killed if there are not."""

    def are_there() -> bool:
        assert all(worker.poll() is None for worker in workers), "a worker ended before it was disturbed"
        return len(list(out.rglob("*.png"))) >= count

    try:
        wait_until(are_there, 100, f"{count} images in {out}")
    except BaseException:
        for worker in workers:
            worker.kill()
        raise


def test_killed_again_and_again_the_images_are_those_of_an_undisturbed_run(
    tmp_path: Path, fake: Path
) -> None:
    fake_models(tmp_path, 14)
    assert start(tmp_path, "calm", fake, IMAGE).wait(60) == 0
    rng = random.Random(0)
    for kills in range(1, 5):
        process = start(tmp_path, "rough", fake, IMAGE)
        wait_for_images(tmp_path / "rough", 4 * kills, process)
        time.sleep(0.06 * rng.random())
        process.kill()
        process.wait()
    assert start(tmp_path, "rough", fake, IMAGE).wait(60) == 0
    assert tree(tmp_path / "rough") == tree(tmp_path / "calm")
    assert len(list((tmp_path / "rough" / "img").rglob("*.png"))) == 56


def test_a_killed_worker_leaves_no_render_process(tmp_path: Path, fake: Path) -> None:
    fake_models(tmp_path, 12)
    process = start(tmp_path, "out", fake, IMAGE)
    wait_for_images(tmp_path / "out", 1, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 1
    process.kill()
    process.wait()
    wait_until(lambda: not Path(f"/proc/{children[0]}").exists())


def test_two_workers_share_the_models_and_the_one_that_dies_is_succeeded(tmp_path: Path, fake: Path) -> None:
    fake_models(tmp_path, 12)
    assert start(tmp_path, "alone", fake, IMAGE).wait(60) == 0
    workers = [start(tmp_path, "pair", fake, IMAGE, rank, 2) for rank in range(2)]
    wait_for_images(tmp_path / "pair", 6, *workers)
    workers[0].kill()
    workers[0].wait()
    assert workers[1].wait(60) == 0
    assert tree(tmp_path / "pair") == tree(tmp_path / "alone")


def test_each_model_is_rendered_by_one_of_the_workers(tmp_path: Path, fake: Path) -> None:
    fake_models(tmp_path, 8)
    workers = [start(tmp_path, "out", fake, IMAGE, rank, 3) for rank in range(3)]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    rows = [json.loads(line) for line in (tmp_path / "out" / "render.jsonl").read_text().splitlines()]
    assert sorted(row["model"] for row in rows) == [f"slow-{index}" for index in range(8)]
    assert len({row["rank"] for row in rows}) > 1


def test_a_notice_ends_a_worker_soon_and_another_number_of_workers_goes_on(
    tmp_path: Path, fake: Path
) -> None:
    fake_models(tmp_path, 24)
    workers = [start(tmp_path, "out", fake, IMAGE, rank, 2) for rank in range(2)]
    wait_for_images(tmp_path / "out", 4, *workers)
    for worker in workers:
        worker.terminate()
    assert [worker.wait(60) for worker in workers] == [0, 0]
    assert len(list((tmp_path / "out" / "img").rglob("*.png"))) < 96
    assert start(tmp_path, "out", fake, IMAGE).wait(100) == 0
    assert len(list((tmp_path / "out" / "img").rglob("*.png"))) == 96


# From here on: Blender itself.

REAL = {
    "resolution": 32,
    "num_views": 2,
    "longest_side": 0.7,
    "samples": 4,
    "denoise": "none",
    "lights": "studio",
}
REAL |= {"view_transform": "Standard", "adaptive_threshold": 0.0}
CORNERS = np.array([(x, y, z) for x in (-0.2, 0.2) for y in (-0.1, 0.15) for z in (-0.5, 0.4)])
FACES = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]


def write_box(folder: Path, name: str, texture: str = "images/t.png") -> None:
    model = folder / "models" / "02958343" / name
    (model / "images").mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(60, 255, (8, 8, 3), dtype=np.uint8)).save(
        model / "images" / "t.png"
    )
    (model / "model.mtl").write_text(f"newmtl body\nKd 1 1 1\nmap_Kd {texture}\n")
    lines = [
        "mtllib model.mtl",
        *(f"v {x} {y} {z}" for x, y, z in CORNERS),
        "vt 0 0",
        "vt 1 0",
        "vt 1 1",
        "vt 0 1",
    ]
    lines += [
        "usemtl body",
        *("f " + " ".join(f"{v + 1}/{t + 1}" for t, v in enumerate(face)) for face in FACES),
    ]
    (model / "model.obj").write_text("\n".join(lines) + "\n")


def facts_of(folder: Path, out: str, name: str) -> dict:
    return json.loads((folder / out / "camera" / "02958343" / name / "object.json").read_text())


@pytest.mark.blender
def test_blender_killed_between_views_gives_the_same_bits(tmp_path: Path) -> None:
    write_box(tmp_path, "a")
    write_box(tmp_path, "b")
    assert start(tmp_path, "calm", BLENDER, REAL).wait(60) == 0
    process = start(tmp_path, "rough", BLENDER, REAL)
    wait_for_images(tmp_path / "rough", 1, process)
    process.kill()
    process.wait()
    assert start(tmp_path, "rough", BLENDER, REAL).wait(60) == 0
    assert tree(tmp_path / "rough") == tree(tmp_path / "calm")


@pytest.mark.blender
def test_order_and_company_do_not_show_in_the_pixels(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_box(tmp_path, name)
    assert start(tmp_path, "all", BLENDER, REAL).wait(60) == 0
    workers = [start(tmp_path, "shared", BLENDER, REAL, rank, 2) for rank in (1, 0)]
    assert [worker.wait(60) for worker in workers] == [0, 0]
    assert tree(tmp_path / "shared") == tree(tmp_path / "all")


@pytest.mark.blender
@pytest.mark.parametrize("preset", ["get3d", "studio"])
def test_the_recorded_cameras_are_those_of_the_images(tmp_path: Path, preset: str) -> None:
    write_box(tmp_path, "a")
    image = REAL | {"resolution": 128, "num_views": 6, "elevation_range_deg": [-20.0, 60.0], "lights": preset}
    assert start(tmp_path, "out", BLENDER, image).wait(60) == 0
    facts = facts_of(tmp_path, "out", "a")
    np.testing.assert_allclose(facts["bbox"], [CORNERS.min(axis=0), CORNERS.max(axis=0)], atol=1e-6)
    scaled = (CORNERS - (CORNERS.min(axis=0) + CORNERS.max(axis=0)) / 2) * 0.7 / np.ptp(CORNERS, axis=0).max()
    world = np.stack([scaled[:, 0], -scaled[:, 2], scaled[:, 1], np.ones(8)], axis=1)
    for view in facts["views"]:
        pose = np.array(cam_to_world(view["rotation_deg"], view["elevation_deg"], RADIUS))
        in_camera = world @ np.linalg.inv(pose).T
        x, y = (in_camera[:, :2] / -in_camera[:, 2:3] / np.tan(FOV_RAD / 2)).T
        expected = np.array([64 + 64 * x.min(), 64 + 64 * x.max(), 64 - 64 * y.max(), 64 - 64 * y.min()])
        with Image.open(tmp_path / "out" / "img" / "02958343" / "a" / view["file"]) as png:
            alpha = np.array(png)[..., 3] > 127
        rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
        seen = np.array([columns[0], columns[-1] + 1, rows[0], rows[-1] + 1])
        assert np.abs(seen - expected).max() < 1.0


@pytest.mark.blender
@pytest.mark.parametrize("transform", ["Standard", "Filmic"])
def test_a_missing_texture_is_named_and_has_the_colour_that_the_gate_knows(
    tmp_path: Path, transform: str
) -> None:
    write_box(tmp_path, "bad", texture="images/none.png")
    write_box(tmp_path, "good")
    assert start(tmp_path, "out", BLENDER, REAL | {"view_transform": transform}).wait(60) == 0
    row = json.loads((tmp_path / "out" / "quarantine.jsonl").read_text())
    assert (row["model"], row["reason"]) == ("bad", "missing-texture")
    assert row["message"] == "none.png, named by model.obj, cannot be read"
    assert facts_of(tmp_path, "out", "good")["missing"] == []
    magenta = REAL | {"view_transform": transform, "missing_texture": "magenta"}
    assert start(tmp_path, "magenta", BLENDER, magenta).wait(60) == 0
    with Image.open(tmp_path / "magenta" / "img" / "02958343" / "bad" / "000.png") as png:
        assert magenta_share(np.array(png)) > 0.5


@pytest.mark.blender
def test_models_without_faces_or_extent_or_materials_are_told(tmp_path: Path) -> None:
    for name, obj in {"points": "v 0 0 0\n", "flat": "v 0 0 0\n" * 3 + "f 1 2 3\n"}.items():
        write_box(tmp_path, name)
        (tmp_path / "models" / "02958343" / name / "model.obj").write_text(obj)
    write_box(tmp_path, "plain")
    obj = tmp_path / "models" / "02958343" / "plain" / "model.obj"
    obj.write_text(obj.read_text().replace("mtllib", "#"))
    assert start(tmp_path, "out", BLENDER, REAL).wait(60) == 0
    rows = map(json.loads, (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines())
    assert {row["model"]: row["reason"] for row in rows} == {
        "points": "no-geometry",
        "flat": "no-extent",
    }
    assert facts_of(tmp_path, "out", "plain")["warnings"] == [
        "uses materials and names no file that has them: it is rendered white"
    ]
