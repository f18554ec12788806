"""One worker of a small sum over gloo: python -m tests.hook_one_rank FOLDER RANK WORLD WHAT [ARGUMENT]."""

import hashlib
import os
import signal
import sys
import time
from pathlib import Path

import torch

from get3d_cluster.dist.config import ReductionConfig
from get3d_cluster.dist.group import Group, meet
from get3d_cluster.dist.hook import AllReduceHook
from get3d_cluster.dist.replicas import check_replicas
from get3d_cluster.errors import HeldError

NUM_SHARDS = 8


def sums(group: Group, mode: str, steps: int = 3) -> str:
    """Return a digest of mean gradients, some of which are missing in some shards."""
    torch.manual_seed(0)
    layers = torch.nn.ModuleList(torch.nn.Linear(64, 64) for _ in range(6))
    config = ReductionConfig(mode=mode, bucket_mb=0.01, bf16_levels=2)
    hook = AllReduceHook(layers.parameters(), group, NUM_SHARDS, num_extras=1, config=config)
    digest = hashlib.sha256()
    for step in range(steps):
        layers.zero_grad()
        for shard in hook.shards:
            x = torch.randn(4, 64, generator=torch.Generator().manual_seed(100 * step + shard))
            for number, layer in enumerate(layers):
                if number != shard:
                    x = layer(x).tanh()
            (loss := x.square().mean()).backward()
            hook.add(loss)
        digest.update(hook.finish().numpy().tobytes())
        for parameter in layers.parameters():
            digest.update(parameter.grad.numpy().tobytes())
    return digest.hexdigest()


def killed(group: Group, rank: int) -> str:
    """Let the last rank die in the middle of a step; say how the others find out, and how fast."""
    p = torch.nn.Parameter(torch.zeros(3_000_000))
    hook = AllReduceHook([p], group, config=ReductionConfig(bucket_mb=1))
    p.sum().backward()
    hook.finish()
    if rank == group.world_size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    p.grad = None
    p.sum().backward()
    begun_s = time.monotonic()
    try:
        hook.finish()
    except RuntimeError as error:
        return f"{time.monotonic() - begun_s < 10} {type(error).__name__} {str(error).splitlines()[0]}"
    return "not noticed"


def flipped(group: Group, rank: int, where: int) -> str:
    """Flip one bit of one weight on one worker."""
    tensors = {"a": torch.ones(5), "b": torch.arange(6, dtype=torch.float64), "c": torch.ones(2).bfloat16()}
    check_replicas(group, tensors, 3)
    if rank == where:
        tensors["b"].view(torch.int64)[2] ^= 1
    try:
        check_replicas(group, tensors, 7, agreed_step=3)
    except HeldError as error:
        return f"{int(error.exit_code)} {error.what}"
    return "not noticed"


def main(folder: Path, rank: int, world: int, what: str, argument: str) -> None:
    group = meet(folder, rank, world, host="here", timeout_s=60.0)
    if what == "sums":
        print(*(sums(group, mode) for mode in ("exact", "exact_bf16", "fast", "flat")))
    elif what == "killed":
        print(killed(group, rank))
    else:
        print(flipped(group, rank, int(argument)))
    sys.stdout.flush()
    if what != "killed":
        group.any([False])


if __name__ == "__main__":
    where, number, count, *rest = sys.argv[1:]
    main(Path(where), int(number), int(count), rest[0], rest[1] if rest[1:] else "")
    os._exit(0)
