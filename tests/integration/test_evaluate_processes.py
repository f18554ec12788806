"""Checkpoints measured by real workers: the same numbers for any number of them, and after any kill."""

import json
import random
from pathlib import Path

import pytest

from get3d_cluster.runtime.run_folder import RunFolder
from tests.launching import wait_until
from tests.trained_run import models, trained
from tests.workers import logs, make_run, start, stop, wait

SETTINGS = (
    "every=true", "num_images=200", "num_shapes=8", "shape_points=128", "light_field=false",
    "kid_subset_size=15", "kid_subsets=25", "num_references=2",
)  # fmt: skip
KILLED = -9


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("evaluate")
    models(folder / "models")
    return trained(folder)


def evaluation(training: RunFolder, folder: Path) -> RunFolder:
    overrides = (
        f"run={training.path}",
        f"out={folder / 'out'}",
        f"references={training.path.parent / 'models'}",
    )
    return make_run(folder / "evaluate", "evaluate", *SETTINGS, *overrides)


def results(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((folder / "out").glob("step-*.json"))]


def files_in(folder: Path) -> int:
    return sum(path.is_file() and "claims" not in path.parts for path in (folder / "out").rglob("*"))


@pytest.fixture(scope="module")
def alone(training: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Results of one worker that nobody disturbed."""
    folder = tmp_path_factory.mktemp("alone")
    run = evaluation(training, folder)
    assert wait(start(run)) == [0], logs(run)
    found = results(folder)
    assert [each["step"] for each in found] == [1, 2]
    return found


def test_two_workers_find_the_same_numbers_as_one(
    training: RunFolder, alone: list[dict], tmp_path: Path
) -> None:
    run = evaluation(training, tmp_path)
    assert wait(start(run, 2)) == [0, 0], logs(run)
    assert results(tmp_path) == alone
    assert "frechet_random_conv" in logs(run)  # the table


def test_killed_twice_the_numbers_are_those_of_an_undisturbed_run(
    training: RunFolder, alone: list[dict], tmp_path: Path
) -> None:
    run = evaluation(training, tmp_path)
    rng = random.Random()
    for _ in range(2):
        wanted = files_in(tmp_path) + rng.randrange(2, 8)
        workers = start(run, 2)
        wait_until(
            lambda workers=workers, wanted=wanted: (
                files_in(tmp_path) >= wanted or all(worker.poll() is not None for worker in workers)
            )
        )
        stop(workers, 9)
        assert set(wait(workers)) <= {KILLED, 0}
    assert wait(start(run)) == [0], logs(run)
    assert results(tmp_path) == alone
