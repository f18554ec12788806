"""The rehearsal that users are told to trust: it must find what is wrong, and leave nothing behind."""

import subprocess
import sys
from pathlib import Path

import pytest

from get3d_cluster import config as configuration
from get3d_cluster.config import find_job, load
from get3d_cluster.errors import UsageError
from get3d_cluster.runtime.env import queue_folder
from get3d_cluster.simulate import Plan, simulate
from tests.train_setup import CONFIGS, dataset

PAUSE = "step_s=0.05"


def test_a_training_stopped_and_killed_on_other_numbers_of_workers_ends_with_the_same_bits(
    tmp_path: Path, queue: Path
) -> None:
    """GET3D itself, through real workers and signals, over several R1 periods."""
    settings = [f"data.path={dataset(tmp_path / 'data')}", "num_images=240", "checkpoint.every_steps=4"]
    config = configuration.load(find_job("train").Config, CONFIGS / "tiny_test.yaml", settings)
    said: list[str] = []
    plan = Plan(stops=2, worlds=(2, 1), kill_ratio=0.5, seed=4, first=0.2, last=0.8)
    verdict = simulate("train", config, tmp_path / "runs", plan, said.append)
    assert verdict.is_exact, said
    assert [stop.world_size for stop in verdict.stops] == [2, 1]
    assert any("kill -9" in stop.how for stop in verdict.stops)
    assert all(stop.steps_lost <= 4 + 1 for stop in verdict.stops)
    assert not list(queue_folder().glob("inbox/*"))


def test_a_state_with_a_hole_is_found_and_ends_with_6(tmp_path: Path, queue: Path) -> None:
    command = [
        sys.executable,
        "launch.py",
        "simulate",
        "tests.jobs_for_tests.forgetful",
        "num_steps=40",
        PAUSE,
    ]
    done = subprocess.run(
        [*command, "--stops", "1", "--folder", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 6, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_job_without_a_state_and_too_many_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="items"):
        simulate("shapes", None, tmp_path, Plan(), print)
    config = load(find_job("train").Config, CONFIGS / "tiny_test.yaml", ["data.path=x"])
    with pytest.raises(UsageError, match="4 workers at most"):
        simulate("train", config, tmp_path, Plan(worlds=(2, 5)), print)
