"""The three lines and the gradient hook in one plain loop: moved over numbers of workers, it keeps its bits."""

import contextlib
import signal
from pathlib import Path

import pytest

from tests.programs import Program, ends_of, running_all

LOOP = """
import hashlib, os, sys, time, torch
from pathlib import Path
from get3d_cluster import checkpoint
from get3d_cluster.dist.hook import AllReduceHook
folder, meet, pause_s = Path(sys.argv[1]), sys.argv[2], float(sys.argv[5])
rank, world = int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=world)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
adam = torch.optim.Adam(model.parameters(), lr=0.01)
schedule = torch.optim.lr_scheduler.StepLR(adam, 7, 0.5)
config = checkpoint.CheckpointConfig(every_steps=4, every_s=0, background_mb=0)
_, start, others = checkpoint.init(model, adam, schedule, path=folder / "state", config=config, others={"loss": 0.0})
hook = AllReduceHook(model.parameters(), num_shards=4, num_extras=1)
print("starts", start, flush=True)
for step in range(start, 24):
    adam.zero_grad()
    for shard in hook.shards:
        x = torch.rand(8, 4, generator=torch.Generator().manual_seed(4 * step + shard))
        loss = (model(x) - x.prod(dim=1, keepdim=True)).square().mean()
        loss.backward()
        hook.add(loss)
    others["loss"] += hook.finish().item()
    adam.step()
    schedule.step()
    time.sleep(pause_s)
    print("step", step + 1, flush=True)
    checkpoint.try_save(0, step + 1, others)
checkpoint.finish()
weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
print("finished", hashlib.sha256(weights).hexdigest(), others["loss"].hex(), flush=True)
os._exit(0)
"""


def workers(
    folder: Path, attempt: int, world: int, pause_s: float
) -> contextlib.AbstractContextManager[list[Program]]:
    folder.mkdir(exist_ok=True)
    meet = folder / f"meet{attempt}"
    return running_all(*(("-c", LOOP, folder, meet, rank, world, pause_s) for rank in range(world)))


@pytest.mark.timeout(400)
def test_from_two_workers_to_three_to_one_it_has_the_bits_of_one(tmp_path: Path) -> None:
    with workers(tmp_path / "straight", 0, 1, 0.0) as (one,):
        straight = one.end()
    assert straight.code == 0, straight.err
    with workers(tmp_path / "moved", 1, 2, 0.1) as two:
        two[0].line("step 6")
        two[1].send(signal.SIGTERM)
        assert [end.code for end in ends_of(two)] == [75, 75]
    with workers(tmp_path / "moved", 2, 3, 0.1) as three:
        resumed = int(three[0].line("starts").split()[1])
        assert resumed >= 6
        three[0].line("step 15")
        for worker in three:
            worker.kill()
    with workers(tmp_path / "moved", 3, 1, 0.0) as (last,):
        assert resumed <= int(last.line("starts").split()[1]) < 24
        end = last.end()
    assert end.code == 0, end.err
    assert end.lines[-1] == straight.lines[-1]
