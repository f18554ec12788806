"""Real workers over gloo: the bits of a GET3D training do not depend on how many there are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import train_setup as setup

ROOT = Path(__file__).parents[2]
STEPS = 7
"""More than two R1 phases (every 3 steps) and three zero steps (every 2)."""


def train(folder: Path, data: Path, world: int, steps: int, *overrides: str) -> list[str]:
    """Run ``world`` workers for some steps in ``folder``; return the digests, equal on all of them."""
    folder.mkdir(exist_ok=True)
    (folder / "rendezvous.json").unlink(missing_ok=True)
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    workers = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.train_one_rank",
                folder,
                data,
                str(rank),
                str(world),
                str(steps),
                *overrides,
            ],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    texts = [worker.communicate(timeout=150)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * world
    found = [[line for line in text.splitlines() if line.startswith("digest")] for text in texts]
    assert all(lines == found[0] for lines in found), "workers of one attempt differ"
    assert len(found[0]) == steps
    return found[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return setup.dataset(tmp_path_factory.mktemp("train") / "data")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, data: Path) -> list[str]:
    return train(tmp_path_factory.mktemp("alone"), data, 1, STEPS)


def test_two_workers_give_the_bits_of_one(tmp_path: Path, data: Path, alone: list[str]) -> None:
    assert train(tmp_path / "two", data, 2, STEPS) == alone


def test_a_run_that_moves_from_three_workers_to_one_to_two_keeps_its_bits(
    tmp_path: Path, data: Path, alone: list[str]
) -> None:
    """Three workers share four micro-shards unevenly."""
    folder = tmp_path / "moved"
    moved = [line for world, steps in ((3, 2), (1, 2), (2, 3)) for line in train(folder, data, world, steps)]
    assert moved == alone


def test_the_comparison_would_notice_another_batch(tmp_path: Path, data: Path, alone: list[str]) -> None:
    """The control: as many images in a step, cut into other micro-shards."""
    other = train(tmp_path / "other", data, 1, 1, "batch.num_shards=2", "batch.shard_size=4")
    assert other[0] != alone[0]


def test_reused_fakes_are_as_exact(tmp_path: Path, data: Path) -> None:
    one, two = (train(tmp_path / str(world), data, world, 4, "loss.reuse_fakes=true") for world in (1, 2))
    assert one == two


OPTIONS = (
    "augment.target=0.3", "augment.interval=2", "augment.adjust_images=320", "augment.p=0.4",
    "generator.classes=['02958343','03001627']", "discriminator.num_classes=2",
    "generator.fields.fixed_background=true",
)  # fmt: skip


def test_augmentation_and_classes_are_as_exact_on_one_two_and_four_workers(tmp_path: Path) -> None:
    """Seven steps adapt the augmentation three times, and start again twice in between."""
    data = setup.dataset(tmp_path / "data", synsets=("02958343", "03001627"))
    alone = train(tmp_path / "alone", data, 1, STEPS, *OPTIONS)
    folder = tmp_path / "moved"
    moved = [
        line
        for world, steps in ((4, 3), (1, 1), (2, 3))
        for line in train(folder, data, world, steps, *OPTIONS)
    ]
    assert moved == alone


SEPARATE = (
    "generator.kind=separate", "generator.volume.resolution=8", "generator.volume.channel_base=64",
    "generator.volume.hidden_channels=8",
)  # fmt: skip
FLEXICUBES = ("generator.grid.kind=flexicubes",)


BF16 = ("precision.amp=bf16",)
TOGETHER = ("batch.judge_together=true",)


@pytest.mark.parametrize(
    "overrides",
    [SEPARATE, FLEXICUBES, BF16, (*BF16, *SEPARATE), TOGETHER],
    ids=["separate", "flexicubes", "bf16", "separate in bf16", "judged together"],
)
def test_other_generators_and_precisions_are_as_exact(
    tmp_path: Path, data: Path, overrides: tuple[str, ...]
) -> None:
    """Two steps on two workers, two on one, against one worker throughout."""
    alone = train(tmp_path / "alone", data, 1, 4, *overrides)
    folder = tmp_path / "moved"
    moved = [
        line for world, steps in ((2, 2), (1, 2)) for line in train(folder, data, world, steps, *overrides)
    ]
    assert moved == alone
