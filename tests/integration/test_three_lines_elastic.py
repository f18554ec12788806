"""The three lines and the gradient hook in one plain loop: moved over numbers of workers, it keeps its bits."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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


def start(folder: Path, attempt: int, world: int, pause_s: float = 0.1) -> list[subprocess.Popen[str]]:
    folder.mkdir(exist_ok=True)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = [str(folder), str(folder / f"meet{attempt}")]
    return [
        subprocess.Popen(
            [sys.executable, "-c", LOOP, *words, str(rank), str(world), str(pause_s)],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    return next(line for line in process.stdout if line.startswith(text))


def ended(processes: list[subprocess.Popen[str]]) -> tuple[set[int], set[str]]:
    try:
        outs = [process.communicate(timeout=150)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return {process.returncode for process in processes}, {(out.splitlines() or [""])[-1] for out in outs}


@pytest.mark.timeout(400)
def test_from_two_workers_to_three_to_one_it_has_the_bits_of_one(tmp_path: Path) -> None:
    codes, straight = ended(start(tmp_path / "straight", 0, 1, 0.0))
    assert codes == {0}
    workers = start(tmp_path / "moved", 1, 2)
    wait_for(workers[0], "step 6")
    workers[1].send_signal(signal.SIGTERM)
    assert ended(workers)[0] == {75}
    workers = start(tmp_path / "moved", 2, 3)
    assert int(wait_for(workers[0], "starts").split()[1]) >= 6
    wait_for(workers[0], "step 15")
    for worker in workers:
        worker.kill()
    ended(workers)
    (last,) = start(tmp_path / "moved", 3, 1, 0.0)
    begun = int(wait_for(last, "starts").split()[1])
    assert 8 <= begun <= 20
    assert ended([last]) == ({0}, straight)
