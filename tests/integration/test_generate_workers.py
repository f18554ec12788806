"""Generation by real processes: any number of workers, killed at any time, write the same bytes."""

import json
import random
import time
from pathlib import Path

import pytest

from get3d_cluster.runtime.run_folder import RunFolder
from tests import workers
from tests.generate_setup import trained
from tests.launching import wait_until

SMALL = (
    "num_shapes=16",
    "texture_px=32",
    "view_px=16",
    "turntable_every=3",
    "turntable_frames=3",
    "w_avg_samples=50",
    "max_faces=60",
    "mixing=0.5",
    "mp4=off",
    "matrix.shapes=[0,2]",
    "matrix.steps=2",
    "matrix.view_px=16",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return trained(tmp_path_factory.mktemp("generate"))


def started(run: RunFolder, folder: Path, name: str) -> RunFolder:
    settings = [*SMALL, f"run={run.path}", f"out={folder / name}"]
    return workers.make_run(folder / f"run-{name}", "generate", *settings)


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".writing-")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_two_workers_killed_in_the_middle_write_what_one_writes(run: RunFolder, tmp_path: Path) -> None:
    calm = started(run, tmp_path, "calm")
    assert workers.wait(workers.start(calm, 1)) == [0], workers.logs(calm)
    rough = started(run, tmp_path, "rough")
    both = workers.start(rough, 2)
    wait_until(lambda: len(list((tmp_path / "rough").glob("*.json"))) >= 2, 90)
    time.sleep(0.1 * random.Random(0).random())
    for worker in both:
        worker.kill()
        worker.wait()
    assert not (tmp_path / "rough" / "index.json").exists()
    assert workers.wait(workers.start(rough, 2)) == [0, 0], workers.logs(rough)
    assert contents(tmp_path / "rough") == contents(tmp_path / "calm")
    index = json.loads((tmp_path / "rough" / "index.json").read_text())
    assert len(index["shapes"]) == 16
    assert index["matrix"] == "matrix.png"
