"""The three lines with states that another process writes: killed, stopped, on one rank and two."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.errors import StorageError
from get3d_cluster.runtime.checkpoint import Checkpoints
from get3d_cluster.runtime.checkpoint_files import name_of
from get3d_cluster.storage import open_storage

ROOT = Path(__file__).parents[2]
LOOP = """
import hashlib, os, sys, time, torch
from pathlib import Path
from get3d_cluster import checkpoint
folder, rank, world, pause_s = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
torch.set_num_threads(1)
if world > 1:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=world)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 300), torch.nn.Linear(300, 1))
adam = torch.optim.Adam(model.parameters(), lr=0.01)
schedule = torch.optim.lr_scheduler.StepLR(adam, 10)
config = checkpoint.CheckpointConfig(every_steps=3, every_s=0, background_mb=0)
_, start, others = checkpoint.init(model, adam, schedule, path=folder / "state", config=config, others={"seen": 0})
print("starts", start, flush=True)
for step in range(start, 30):
    x = torch.rand(8, 4)  # of generators that are part of the state
    if world > 1:
        torch.distributed.broadcast(x, src=0)
    adam.zero_grad()
    (model(x) - x.prod(dim=1, keepdim=True)).square().mean().backward()
    adam.step()
    schedule.step()
    others["seen"] += 8
    time.sleep(pause_s)
    print("step", step + 1, flush=True)
    checkpoint.try_save(0, step + 1, others)
checkpoint.finish()
weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
print("finished", hashlib.sha256(weights).hexdigest(), others["seen"], torch.rand(1).item(), flush=True)
os._exit(0)
"""


def start(folder: Path, rank: int = 0, world: int = 1, pause_s: float = 0.05) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    words = [sys.executable, "-c", LOOP, str(folder), str(rank), str(world), str(pause_s)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(words, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)


def ended(processes: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    """Return exit codes and last lines."""
    try:
        outs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], [(out.splitlines() or [""])[-1] for out in outs]


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    return next(line for line in process.stdout if text in line)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> str:
    codes, lines = ended([start(tmp_path_factory.mktemp("straight") / "a", pause_s=0)])
    assert codes == [0]
    return lines[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_loop_whose_states_are_written_beside_it_comes_to_the_same_end(
    tmp_path: Path, straight: str, number: signal.Signals
) -> None:
    first = start(tmp_path / "a")
    wait_for(first, "step 14")
    first.send_signal(number)
    codes, _ = ended([first])
    assert codes == [75 if number == signal.SIGTERM else -number]
    again = start(tmp_path / "a")
    begun = int(wait_for(again, "starts").split()[1])
    assert begun >= (14 if number == signal.SIGTERM else 6)
    codes, lines = ended([again])
    assert (codes, lines) == ([0], [straight])


def test_two_ranks_write_one_checkpoint_together(tmp_path: Path) -> None:
    both = [start(tmp_path / "a", rank, 2) for rank in (0, 1)]
    wait_for(both[0], "step 14")
    both[1].send_signal(signal.SIGTERM)
    codes, _ = ended(both)
    assert codes == [75, 75]
    storage = open_storage(tmp_path / "a" / "state" / "checkpoints")
    loaded = Checkpoints(storage, CheckpointConfig(), lambda: None).load()
    assert loaded is not None
    assert loaded.step >= 14
    files = {
        path.name for path in (tmp_path / "a" / "state" / "checkpoints" / name_of(loaded.step)).iterdir()
    }
    assert any("+0001" in file for file in files)
    (tmp_path / "a" / "meet").unlink()
    codes, lines = ended([start(tmp_path / "a", rank, 2, 0) for rank in (0, 1)])
    assert codes == [0, 0]
    assert lines[0].split()[:3] == lines[1].split()[:3]


def test_a_disk_that_refuses_is_told_by_a_later_call(tmp_path: Path) -> None:
    import torch

    from get3d_cluster import checkpoint

    model = torch.nn.Linear(2, 2)
    config = CheckpointConfig(every_steps=1, every_s=0, background_mb=0)
    checkpoint.init(model, torch.optim.SGD(model.parameters()), path=tmp_path / "a", config=config)
    try:
        (tmp_path / "a" / "checkpoints").write_text("in the way")
        assert checkpoint.try_save(0, 1)
        with pytest.raises(StorageError, match="checkpoints"):
            for step in range(2, 1200):
                time.sleep(0.05)
                checkpoint.try_save(0, step)
        (tmp_path / "a" / "checkpoints").unlink()
    finally:
        checkpoint.finish()
    assert (tmp_path / "a" / "checkpoints").is_dir()
