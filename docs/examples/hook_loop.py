"""A plain torch model on several workers: the same weights, bit for bit, however many there are.

Start WORLD_SIZE processes, each with its RANK (one machine here; MASTER_ADDR says where rank 0 is):

    for RANK in 0 1; do RANK=$RANK WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29511 \\
        python docs/examples/hook_loop.py & done; wait
    RANK=0 WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=29511 python docs/examples/hook_loop.py
"""

import hashlib

import torch

from get3d_cluster.dist.hook import AllReduceHook

NUM_STEPS, NUM_SHARDS, SHARD_SIZE = 50, 4, 16

torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")  # reads RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT
torch.manual_seed(0)  # equal weights on all workers
model = torch.nn.Sequential(torch.nn.Linear(2, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
hook = AllReduceHook(model.parameters(), num_shards=NUM_SHARDS, num_extras=1)

mean = torch.zeros(1)
for step in range(NUM_STEPS):
    optimizer.zero_grad()
    for shard in hook.shards:
        generator = torch.Generator().manual_seed(NUM_SHARDS * step + shard)  # data by shard, never by rank
        x = torch.rand(SHARD_SIZE, 2, generator=generator)
        loss = (model(x) - x.prod(dim=1, keepdim=True)).square().mean()
        loss.backward()
        hook.add(loss)
    mean = hook.finish()
    optimizer.step()

weights = b"".join(parameter.detach().numpy().tobytes() for parameter in model.parameters())
rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
print(
    f"worker {rank} of {world_size}: loss {mean.item():.6g}, weights {hashlib.sha256(weights).hexdigest()[:16]}"
)
hook.close()
torch.distributed.destroy_process_group()
