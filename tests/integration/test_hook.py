"""Real workers over gloo: equal bits, a dead worker, a flipped bit, the example of the docs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def on_workers(folder: Path, world: int, *words: str) -> list[tuple[int, str]]:
    """Return exit code and last line of each worker."""
    folder.mkdir()
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.hook_one_rank", folder, str(rank), str(world), *words],
            cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    texts = [worker.communicate(timeout=120)[0] for worker in workers]
    codes = [worker.returncode for worker in workers]
    return list(zip(codes, [(text.splitlines() or [""])[-1] for text in texts], strict=True))


def test_gradients_have_the_same_bits_on_one_to_four_workers_unless_the_library_adds(tmp_path: Path) -> None:
    found = {world: on_workers(tmp_path / str(world), world, "sums") for world in (1, 2, 3, 4)}
    for rows in found.values():
        assert rows == [(0, rows[0][1])] * len(rows)
    exact, narrow, library, flat = zip(*(rows[0][1].split() for rows in found.values()), strict=True)
    assert set(exact) == set(flat) == {exact[0]}
    assert set(narrow) == {narrow[0]} != set(exact)
    assert library[0] == exact[0], "one worker alone adds along the tree"
    assert library[2] != exact[0], "three workers would not hit the same bits by chance"


def test_a_dead_worker_is_noticed_by_the_others_within_seconds(tmp_path: Path) -> None:
    *others, dead = on_workers(tmp_path / "run", 3, "killed")
    assert dead[0] == -9
    for code, line in others:
        assert code == 0
        assert line.startswith("True RuntimeError"), line


@pytest.mark.parametrize(
    ("world", "said"), [(3, "rank 1 has other bits"), (2, "no majority of the workers agrees")]
)
def test_a_flipped_bit_holds_the_run_on_all_workers_and_names_the_rank(
    tmp_path: Path, world: int, said: str
) -> None:
    for code, line in on_workers(tmp_path / "run", world, "flipped", "1"):
        assert code == 0
        assert line.startswith(f"93 step 7: {said}"), line
        assert line.endswith("1 of 3 tensors, first b; all were equal at step 3")


def test_the_example_gives_the_same_weights_on_two_workers_and_on_one() -> None:
    found = {line.partition(":")[2] for world in (1, 2) for line in example(world)}
    assert len(found) == 1, found


def example(world: int) -> list[str]:
    import torch

    here = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True)  # as torchrun does: no port is guessed
    place = {
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(here.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "PYTHONPATH": str(ROOT),
    }
    workers = [
        subprocess.Popen(
            [sys.executable, ROOT / "docs/examples/hook_loop.py"],
            env=ENVIRONMENT | place | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    lines = [worker.communicate(timeout=100)[0].strip() for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * world
    assert all(line.startswith(f"worker {rank} of {world}: loss 0.0") for rank, line in enumerate(lines)), (
        lines
    )
    return lines
