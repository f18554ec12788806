"""Ugly models through one job with Blender itself: each ends rendered or with a reason that a person understands."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
BLENDER = ROOT / ".venv-render" / "bin" / "python"
IMAGE = {"resolution": 48, "num_views": 1, "samples": 4, "adaptive_threshold": 0.0, "denoise": "none"}
IMAGE |= {"longest_side": 0.7, "lights": "studio", "view_transform": "Standard"}
FEW = (
    "good",
    "missing-mtl",
    "missing-texture",
    "windows-texture",
    "nan-vertex",
    "no-faces",
    "broken-faces",
    "empty",
)
FEW += (
    "ngon",
    "vertex-colours",
    'it\'s a "good" one; 50% (ok)',
    "z-link-to-good",
    "z-link-to-itself",
    "tiny",
)

spec = importlib.util.spec_from_file_location("ugly_models", TESTS / "ugly_models.py")
ugly = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ugly)


def job(folder: Path, out: str = "out", **image) -> int:
    """Run one worker of the render job to its end; return its exit code."""
    values = {"models": str(folder / "models"), "out": str(folder / out), "run": str(folder / f"run-{out}")}
    values |= {"blender": str(BLENDER), "image": IMAGE | image, "rank": 0, "world_size": 1}
    settings = folder / f"{out}.json"
    settings.write_text(json.dumps(values))
    command = [sys.executable, str(TESTS / "render_one_rank.py"), str(settings)]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, check=False, timeout=900).returncode


def rows(path: Path) -> dict[str, dict]:
    return {
        row["model"]: row
        for row in map(json.loads, path.read_text().splitlines())
        if row["synset"] == ugly.SYNSET
    }


def assert_each_ends_as_it_must(out: Path, endings: dict) -> None:
    failed, left_out = rows(out / "quarantine.jsonl"), rows(out / "left_out.jsonl")
    rendered = {path.name for path in (out / "img" / ugly.SYNSET).iterdir()}
    for name, (reason, words) in endings.items():
        if reason == "left-out":
            assert words in left_out[name]["why"], name
        elif reason:
            assert (name, failed[name]["reason"]) == (name, reason), failed[name]["message"]
            assert words in failed[name]["message"]
        else:
            assert name in rendered, failed.get(name)
    assert rendered | failed.keys() | left_out.keys() == set(endings)
    assert (out / "img" / "03001627" / "good" / "000.png").is_file()  # the same id in another category
    assert "Quarantined" in (out / "summary.html").read_text()
    assert (out / "sheet.png").is_file()


@pytest.mark.blender
def test_ugly_models_end_rendered_or_with_a_reason_and_the_job_finishes(tmp_path: Path) -> None:
    endings = ugly.write(tmp_path / "models", {name: ugly.UGLY[name] for name in FEW})
    assert job(tmp_path) == 0
    assert_each_ends_as_it_must(tmp_path / "out", endings)
    with Image.open(tmp_path / "out" / "img" / ugly.SYNSET / "vertex-colours" / "000.png") as image:
        pixels = np.asarray(image)
    red, green, blue = pixels[pixels[..., 3] > 0][:, :3].mean(axis=0)
    assert green > 2 * max(red, blue)


@pytest.mark.long
@pytest.mark.blender
def test_every_ugly_model_and_a_million_faces_go_through_one_job(tmp_path: Path) -> None:
    endings = ugly.write(tmp_path / "models", ugly.UGLY | ugly.LARGE)
    begun = time.monotonic()
    assert job(tmp_path) == 0
    print(f"{len(endings)} models in {time.monotonic() - begun:.0f} s")
    assert_each_ends_as_it_must(tmp_path / "out", endings)
    # As grey, those that lack a file are rendered; nothing else changes.
    assert job(tmp_path, "grey", missing_texture="grey") == 0
    lenient = {
        name: ("", "") if reason.startswith("missing-") else (reason, words)
        for name, (reason, words) in endings.items()
    }
    assert_each_ends_as_it_must(tmp_path / "grey", lenient)
