"""GET3D at toy size through real workers: each step of a run that is killed or moved has the bits of the straight one.

Not only the end is compared: every worker writes down the digest of its whole state (weights, average, both Adams,
counters, strength of the augmentation) after every step of every attempt, those that are done twice included.
"""

import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from get3d_cluster.config import find_job, load
from get3d_cluster.runtime.checkpoint import list_checkpoints
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.run_folder import RunFolder, read_json, write_json
from get3d_cluster.simulate import new_run
from tests import train_setup as setup
from tests.workers import logs, run_to_end, start, stop, wait, wait_for_step

JOB = "tests.jobs_for_tests.digesting"
STEPS = 12
EVERY = 3
"""Steps between checkpoints."""
ADAPTING = ("augment.target=0.3", "augment.interval=2", "augment.adjust_images=640", "augment.p=0.4")
"""The strength of the augmentation moves every two steps, and reaches neither end."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return setup.dataset(tmp_path_factory.mktemp("steps") / "data")


def training(folder: Path, data: Path, *, steps: int, shards: int = 4, more: Sequence[str] = ()) -> RunFolder:
    settings = [
        f"data.path={data}",
        f"batch.num_shards={shards}",
        f"num_images={steps * shards * 2}",
        f"checkpoint.every_steps={EVERY}",
        *ADAPTING,
        *more,
    ]
    return new_run(folder, JOB, load(find_job(JOB).Config, setup.CONFIGS / "tiny_test.yaml", settings))


def digests(run: RunFolder) -> dict[int, str]:
    """Return the digest of each step; all workers and all attempts agree, or this fails."""
    found: dict[int, str] = {}
    for path in sorted(run.path.glob("digests.rank*.jsonl")):
        for row in read_rows(path):
            known = found.setdefault(row["step"], row["digest"])
            assert row["digest"] == known, (
                f"{path.name}: step {row['step']} of attempt {row['attempt']} differs"
            )
    return found


def straight(folder: Path, data: Path, *, steps: int, shards: int) -> dict[int, str]:
    run = training(folder, data, steps=steps, shards=shards)
    run_to_end(run)
    found = digests(run)
    assert list(found) == list(range(1, steps + 1))
    assert len(set(found.values())) == steps
    strengths = {row["augment_p"] for row in read_rows(run.metrics_path)}
    assert len(strengths) > steps // 3
    assert not strengths & {0.0, 0.8}
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, data: Path) -> dict[int, str]:
    return straight(tmp_path_factory.mktemp("alone") / "run", data, steps=STEPS, shards=4)


def killed(run: RunFolder, world_size: int, choose: random.Random, pause_s: float) -> None:
    """Kill all workers before the first checkpoint, and twice at some moment between it and the last step.

    ``pause_s`` after each step: what is written beside the training is published at the end of one of the next steps.
    """
    moments = [choose.randrange(1, EVERY), *(choose.randrange(EVERY, STEPS - 1) for _ in range(2))]
    for attempt, step in enumerate(moments, 1):
        write_json(run.path / "hold.json", {"pause_s": pause_s, "at": STEPS - 1 if attempt > 1 else step})
        workers = start(run, world_size)
        wait_for(run, lambda a=attempt, s=step: has_done(run, world_size, a, s))
        if attempt > 1:
            wait_for(run, lambda: any(run.checkpoints_dir.glob("step-*")))
            time.sleep(choose.uniform(0, 0.2))
        stop(workers, signal.SIGKILL)
        assert wait(workers) == [-signal.SIGKILL] * world_size, logs(run)
    (run.path / "hold.json").unlink()


def has_done(run: RunFolder, world_size: int, attempt: int, step: int) -> bool:
    paths = [run.path / f"digests.rank{rank}.jsonl" for rank in range(world_size)]
    return all(
        any(row["attempt"] == attempt and row["step"] >= step for row in read_rows(path)) for path in paths
    )


def wait_for(run: RunFolder, is_so: Callable[[], bool], timeout_s: float = 90) -> None:
    end_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end_s, logs(run)
        time.sleep(0.02)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("world_size", "background_mb"),
    [(1, 4), (2, 4), (2, 0), pytest.param(4, 4, marks=pytest.mark.long)],
    ids=["1 worker", "2 workers", "2 workers that write a share each", "4 workers"],
)
def test_a_killed_run_has_the_bits_of_the_straight_one_at_every_step(
    tmp_path: Path, data: Path, alone: dict[int, str], world_size: int, background_mb: int
) -> None:
    """Four R1 phases (every 3 steps), six zero steps and six moves of the augmentation (every 2); killed 3 times."""
    run = training(tmp_path / "run", data, steps=STEPS, more=[f"checkpoint.background_mb={background_mb}"])
    pause_s = 0.05 if background_mb else 0.5
    killed(run, world_size, random.Random(world_size + background_mb), pause_s)
    run_to_end(run, world_size)
    assert digests(run) == alone
    resumed = [row["attempt"] for row in read_rows(run.events_path) if row["event"] == "resume"]
    assert resumed == [3, 4], "the second attempt begins anew, the others go on"
    assert changes(run) == [], "the same environment is no change"
    done = [row["step"] for row in read_rows(run.path / "digests.rank0.jsonl")]
    assert len(done) > STEPS, "what was lost before the first checkpoint was done again"
    assert any(run.checkpoints_dir.glob("step-*/*+0001*")) == (background_mb == 0)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("shards", "worlds"), [(8, (4, 2, 8, 3, 1)), (6, (4, 2, 6, 3, 1))], ids=["8 shards", "6 shards"]
)
def test_a_chain_over_numbers_of_workers_has_the_bits_of_one_worker_at_every_step(
    tmp_path: Path, data: Path, shards: int, worlds: tuple[int, ...]
) -> None:
    steps = 2 * len(worlds)
    one = straight(tmp_path / "one", data, steps=steps, shards=shards)
    run = training(tmp_path / "moved", data, steps=steps, shards=shards)
    for number, world_size in enumerate(worlds[:-1]):
        workers = start(run, world_size)
        wait_for_step(run, 2 * number + 1, timeout_s=170)
        stop(workers, signal.SIGTERM, ranks=[random.randrange(world_size)])
        assert wait(workers) == [75] * world_size, logs(run)
    run_to_end(run, worlds[-1])
    assert digests(run) == one
    assert {row["world_size"] for row in read_rows(run.path / "digests.rank0.jsonl")} == set(worlds)


@pytest.mark.timeout(600)
def test_another_number_of_threads_is_told_where_the_bits_may_part(tmp_path: Path, data: Path) -> None:
    """To go on is allowed; from this step on nobody may claim the bits of the straight run."""
    run = training(tmp_path / "run", data, steps=6)
    for threads in (1, 2):
        _set_threads(run, threads)
        workers = start(run)
        wait_for_step(run, len(digests(run)) + 1)
        stop(workers)
        assert wait(workers) == [75], logs(run)
    (told,) = changes(run)
    (resumed,) = (row for row in read_rows(run.events_path) if row["event"] == "resume")
    assert (told["attempt"], told["step"], told["changed"]) == (2, resumed["step"], {"threads": [1, 2]})
    assert f"not bitwise from step {told['step']} on" in run.log_path(2, 0).read_text()
    _set_threads(run, 1)
    run_to_end(run)
    assert [row["changed"] for row in changes(run)] == [{"threads": [1, 2]}, {"threads": [2, 1]}]
    assert read_json(run.done_path)["not_bitwise_from"] == told["step"]
    assert list_checkpoints(run)[-1].not_bitwise_from == told["step"]


def changes(run: RunFolder) -> list[dict[str, Any]]:
    return [row for row in read_rows(run.events_path) if row["event"] == "environment"]


def _set_threads(run: RunFolder, threads: int) -> None:
    text = run.config_path.read_text()
    before = next(line for line in text.splitlines() if "cpus_per_worker" in line)
    head = before.partition(":")[0]
    run.config_path.write_text(text.replace(before, f"{head}: {threads}"))
