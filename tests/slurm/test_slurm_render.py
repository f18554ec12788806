"""The render job as a job array: whatever is preempted, the images are those of a worker that nobody disturbed."""

import hashlib
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from get3d_cluster.runtime.run_folder import RunFolder
from tests.integration.test_render_kill import write_box
from tests.launching import ROOT, launch
from tests.slurm.cluster import Cluster
from tests.slurm.items import causes_by_element, events, submit, wait_done

pytestmark = [pytest.mark.slurm, pytest.mark.long, pytest.mark.timeout(900)]
TESTS = ROOT / "tests"
BLENDER = ROOT / ".venv-render" / "bin" / "python"


def images(out: Path) -> dict[str, str]:
    """Return the digest of each published file, by its path."""
    files = [path for part in ("img", "camera") for path in sorted((out / part).rglob("*")) if path.is_file()]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def endings(out: Path) -> Counter[str]:
    """Return how often each model was counted as ended."""
    rows = [json.loads(line) for line in (out / "render.jsonl").read_text().splitlines()]
    return Counter(row["model"] for row in rows)


def disturb(cluster: Cluster, run: RunFolder, seed: int, times: int) -> None:
    """Take random nodes away at random moments, ``times`` of them while the run works."""
    rng = random.Random(seed)
    for _ in range(times):
        time.sleep(rng.uniform(0.5, 4.0))
        if run.is_done():
            return
        node = f"node{rng.randrange(cluster.nodes) + 1}"
        high = cluster.preempt(node, rng.uniform(0.2, 2.0))
        cluster.wait_state(high, "RUNNING", "COMPLETING", "COMPLETED")


def calm(folder: Path, models: Path, blender: Path, *words: str) -> Path:
    """Render the models by one worker that nobody disturbs; return where."""
    out = folder / "calm"
    common = [f"models={models}", f"out={out}", f"blender={blender}", *words]
    queue = ["env", f"GET3D_QUEUE={folder / 'queue'}", "OMP_NUM_THREADS=1"]
    command = [
        *queue,
        sys.executable,
        "launch.py",
        "run",
        "render",
        "--runs",
        str(folder / "local"),
        "--name",
        "calm",
    ]
    done = subprocess.run(
        [*command, *common], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return out


def test_a_third_of_a_render_arrays_elements_is_preempted_and_no_image_shows_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    program = tmp_path / "fake-blender"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{TESTS}/fake_blender_worker.py" "$@"\n')
    program.chmod(0o755)
    names = [*(f"slow-{number}" for number in range(37)), "crash-once", "crash", "edge"]
    for where in ("models", "models-calm"):
        for name in names:
            folder = tmp_path / where / "02958343" / name
            folder.mkdir(parents=True)
            (folder / "model.obj").write_text("v 0 0 0\nf 1 1 1\n")
    image = ["image.resolution=32", "image.num_views=24", "image.samples=1"]
    wanted = calm(tmp_path, tmp_path / "models-calm", program, *image)
    out = tmp_path / "rough"
    where = [f"models={tmp_path / 'models'}", f"out={out}", f"blender={program}"]
    run = submit(cluster, tmp_path, "r", *where, *image, "array=12", job="render")
    cluster.wait_until(lambda: list(out.rglob("*.png")), "the elements render")
    disturb(cluster, run, seed=11, times=6)
    wait_done(cluster, run, seconds=300)
    assert images(out) == images(wanted)
    assert len([name for name in images(out) if name.endswith(".png")]) == 38 * 24
    assert endings(out) == Counter(names)  # each once, the quarantined ones, too
    verdicts = {path.stem for path in (out / "quarantine").rglob("*.json")}
    assert verdicts == {"crash", "edge"}
    preempted = [element for element, causes in causes_by_element(run).items() if "preempted" in causes]
    assert len(preempted) >= 4
    assert len(events(run, "finish")) == 1
    row = json.loads(launch("status", run.path, "--json").stdout)[0]
    assert (row["state"], row["step"], row["failed"]) == ("DONE", 40, 0)


@pytest.mark.blender
def test_blender_itself_renders_the_same_bits_in_an_array_that_is_preempted(
    cluster: Cluster, tmp_path: Path
) -> None:
    for name in "abcdefgh":
        write_box(tmp_path, name)
    image = ["image.resolution=64", "image.num_views=12", "image.samples=8", "image.longest_side=0.5"]
    wanted = calm(tmp_path, tmp_path / "models", BLENDER, *image)
    out = tmp_path / "rough"
    where = [f"models={tmp_path / 'models'}", f"out={out}", f"blender={BLENDER}"]
    run = submit(cluster, tmp_path, "r", *where, *image, "array=4", job="render")
    cluster.wait_until(lambda: list(out.rglob("*.png")), "the elements render")
    disturb(cluster, run, seed=3, times=3)
    wait_done(cluster, run, seconds=300)
    assert images(out) == images(wanted)
    assert len([name for name in images(out) if name.endswith(".png")]) == 8 * 12
    assert endings(out) == Counter("abcdefgh")
    assert any("preempted" in causes for causes in causes_by_element(run).values())
