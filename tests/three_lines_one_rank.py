"""One rank of a loop with the three lines: python -m tests.three_lines_one_rank FOLDER RANK WORLD PAUSE_S.

The ranks meet over gloo by the file FOLDER/meet; each draws batches of its own.
"""

import hashlib
import os
import sys
import time
from pathlib import Path

import torch

from get3d_cluster import checkpoint

NUM_STEPS = 60

folder, rank, world, pause_s = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
torch.set_num_threads(1)
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=world
)
torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [20, 40])
torch.manual_seed(rank)

_, start, _ = checkpoint.init(model, optimizer, schedule, path=folder / "state")
print("starts", start, flush=True)
for step in range(start, NUM_STEPS):
    x = torch.rand(8, 4)
    optimizer.zero_grad()
    (model(x) - x.prod(dim=1, keepdim=True)).square().mean().backward()
    for parameter in model.parameters():
        torch.distributed.all_reduce(parameter.grad)
    optimizer.step()
    schedule.step()
    time.sleep(pause_s)
    print("step", step + 1, flush=True)
    checkpoint.try_save(0, step + 1)
checkpoint.finish()
weights = b"".join(parameter.detach().numpy().tobytes() for parameter in model.parameters())
print("finished", hashlib.sha256(weights).hexdigest(), torch.rand(1).item(), flush=True)
torch.distributed.barrier()
sys.stdout.flush()
os._exit(0)  # as a worker leaves: a thread of gloo may still be about
