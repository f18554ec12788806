"""The three lines with states that another process writes: killed, stopped, on one rank and two."""

import contextlib
import signal
import time
from pathlib import Path

import pytest

from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.errors import StorageError
from get3d_cluster.runtime.checkpoint import Checkpoints
from get3d_cluster.runtime.checkpoint_files import name_of
from get3d_cluster.storage import open_storage
from tests.programs import Program, ends_of, running_all

SLOW_S = 0.1
"""Pause per step of a loop that must not be over before it is told to stop."""
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


def ranks(
    folder: Path, world: int = 1, pause_s: float = 0.0
) -> contextlib.AbstractContextManager[list[Program]]:
    folder.mkdir(exist_ok=True)
    (folder / "meet").unlink(missing_ok=True)
    return running_all(*(("-c", LOOP, folder, rank, world, pause_s) for rank in range(world)))


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> str:
    with ranks(tmp_path_factory.mktemp("straight") / "a") as (loop,):
        code, lines, err = loop.end()
    assert code == 0, err
    return lines[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_loop_whose_states_are_written_beside_it_comes_to_the_same_end(
    tmp_path: Path, straight: str, number: signal.Signals
) -> None:
    with ranks(tmp_path / "a", pause_s=SLOW_S) as (loop,):
        loop.line("step 14")
        loop.send(number)
        assert loop.end().code == (75 if number == signal.SIGTERM else -number)
    with ranks(tmp_path / "a") as (loop,):
        begun = int(loop.line("starts").split()[1])
        assert begun >= (14 if number == signal.SIGTERM else 1)
        code, lines, err = loop.end()
    assert code == 0, err
    assert lines[-1] == straight


def test_two_ranks_write_one_checkpoint_together(tmp_path: Path) -> None:
    with ranks(tmp_path / "a", 2, SLOW_S) as both:
        both[0].line("step 14")
        both[1].send(signal.SIGTERM)
        assert [end.code for end in ends_of(both)] == [75, 75]
    storage = open_storage(tmp_path / "a" / "state" / "checkpoints")
    loaded = Checkpoints(storage, CheckpointConfig(), lambda: None).load()
    assert loaded is not None
    assert loaded.step >= 14
    files = {
        path.name for path in (tmp_path / "a" / "state" / "checkpoints" / name_of(loaded.step)).iterdir()
    }
    assert any("+0001" in file for file in files)
    with ranks(tmp_path / "a", 2) as both:
        ends = ends_of(both)
    assert [end.code for end in ends] == [0, 0], ends
    assert ends[0].lines[-1].split()[:3] == ends[1].lines[-1].split()[:3]


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
