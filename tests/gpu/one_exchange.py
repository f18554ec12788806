"""One worker of a sum: python -m tests.gpu.one_exchange MEETING RANK WORLD DEVICE VIA MODE TIMED TOY WITHOUT.

Prints ``told`` and a line of JSON: the digest of all mean gradients of a few steps, the way they took, and its time.
"""

import hashlib
import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

from tests.gpu.setting import stand_in, wait_for_device

NUM_SHARDS, STEPS, ROUNDS = 6, 3, 7


def gradient(step: int, shard: int, index: int, size: int) -> torch.Tensor:
    """Return what a shard adds, the same on every device; sizes differ by powers of ten, so that order matters."""
    generator = torch.Generator().manual_seed(1000 * step + 10 * shard + index)
    return torch.randn(size, generator=generator) * 10.0 ** (shard % 4)


def digest_of_steps(hook, parameters: list[nn.Parameter], device: str) -> str:
    """Do some steps in which gradients are missing here and there; return the SHA-256 of all mean gradients."""
    digest = hashlib.sha256()
    for step in range(STEPS):
        for parameter in parameters:
            parameter.grad = None
        for shard in hook.shards:
            terms = [
                (p * gradient(step, shard, i, p.numel()).to(device)).sum()
                for i, p in enumerate(parameters)
                if (step + shard + i) % 5
            ]
            torch.stack(terms).sum().backward()
            hook.add(torch.tensor([float(shard)], device=device))
        mean = hook.finish()
        for tensor in (mean, *(p.grad for p in parameters)):
            digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def sum_ms(hook, parameters: list[nn.Parameter], device: str) -> float:
    """Return the median time from the first bucket to the last mean gradient."""
    times = []
    for _ in range(ROUNDS):
        for parameter in parameters:
            parameter.grad = None
        for shard in hook.shards:
            if shard == hook.shards[-1]:
                hook.network.group.any([False])
                wait_for_device(device)
                begun = time.perf_counter()
            torch.stack([p.sum() for p in parameters]).sum().backward()
            hook.add(torch.zeros(1, device=device))
        hook.finish()
        wait_for_device(device)
        times.append((time.perf_counter() - begun) * 1e3)
    return round(statistics.median(times[2:]), 2)


def main(meeting: Path, rank: int, world: int, device: str, via: str, mode: str, *flags: str) -> None:
    timed, toy, without = flags[0] == "1", flags[1] == "1", flags[2]
    stand_in([name for name in without.split(",") if name])
    from get3d_cluster.dist.config import ReductionConfig
    from get3d_cluster.dist.group import meet
    from get3d_cluster.dist.hook import AllReduceHook

    torch.set_num_threads(1)
    group = meet(meeting, rank, world, host="here", device=device, timeout_s=120.0)
    size = 1000 if toy else (10_000_000 if timed else 200_000)
    config = ReductionConfig(mode=mode, via=via, bf16_levels=2, bucket_mb=8.0 if timed else size * 4e-6)
    parameters = [nn.Parameter(torch.zeros(size + i, device=device)) for i in range(6)]
    shards = world if timed else NUM_SHARDS
    hook = AllReduceHook(parameters, group, shards, num_extras=1, config=config)
    told = {**hook.network.describe(), "numbers": sum(p.numel() for p in parameters)}
    if timed:
        told |= {"sum_ms": sum_ms(hook, parameters, device), "digest": ""}
    else:
        told["digest"] = digest_of_steps(hook, parameters, device)
    print("told", json.dumps(told), flush=True)
    group.any([False])  # nobody leaves before all are done
    group.close()


if __name__ == "__main__":
    where, number, count, *rest = sys.argv[1:]
    main(Path(where), int(number), int(count), *rest)
    sys.stdout.flush()
    os._exit(0)  # as a worker leaves: a thread of gloo may still be about
