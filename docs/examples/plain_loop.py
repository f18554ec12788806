"""A whole torch training that survives being stopped. Run it, press Ctrl-C, run it again.

python docs/examples/plain_loop.py runs/plain [SECONDS_PER_STEP SECONDS_BETWEEN_CHECKPOINTS]
"""

import hashlib
import sys
import time

import torch

from get3d_cluster import checkpoint

NUM_EPOCHS, STEPS_PER_EPOCH = 5, 20

torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
path = sys.argv[1]
pause_s, every_s = (float(word) for word in sys.argv[2:4] or ("0.05", "60"))

config = checkpoint.CheckpointConfig(every_s=every_s)
start_epoch, start_step, others = checkpoint.init(
    model, optimizer, path=path, others={"best": 1e9}, config=config
)
print(f"starts at epoch {start_epoch}, step {start_step}, best loss {others['best']:.4g}", flush=True)
for epoch in range(start_epoch, NUM_EPOCHS):
    for step in range(start_step if epoch == start_epoch else 0, STEPS_PER_EPOCH):
        x = torch.rand(64, 2)
        loss = (model(x) - x.prod(dim=1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        others["best"] = min(others["best"], loss.item())
        time.sleep(pause_s)
        checkpoint.try_save(epoch, step + 1, others)
    print(f"epoch {epoch} is done", flush=True)
checkpoint.finish()

weights = b"".join(parameter.detach().numpy().tobytes() for parameter in model.parameters())
print(f"finished: best loss {others['best']:.6g}, weights {hashlib.sha256(weights).hexdigest()[:16]}")
