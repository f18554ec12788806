"""One worker of a measurement: python -m tests.bench.hook_worker WHAT RANK WORLD ADDRESS PORT [ARGUMENT ...].

Rank 0 prints a line of JSON.
"""

import json
import os
import statistics
import sys
import time

import torch
from torch import nn

from get3d_cluster.dist.config import ReductionConfig
from get3d_cluster.dist.group import TorchGroup
from get3d_cluster.dist.hook import AllReduceHook
from get3d_cluster.dist.network import Network
from tests.bench.emulated_nodes import LINK

NUM_PARAMETERS = 30_000_000
NUM_BLOCKS = 24
FORWARD_S, BACKWARD_S = 1.0, 3.0
BUCKET_MB = 8.0


class _Slow(torch.autograd.Function):
    """An accelerator that takes its time and leaves the processor alone."""

    @staticmethod
    def forward(ctx, x, weight):
        time.sleep(FORWARD_S / NUM_BLOCKS)
        ctx.save_for_backward(weight)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        time.sleep(BACKWARD_S / NUM_BLOCKS)
        (weight,) = ctx.saved_tensors
        return grad, torch.full_like(weight, 1.0 + torch.distributed.get_rank())


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        size = NUM_PARAMETERS // NUM_BLOCKS
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(size)) for _ in range(NUM_BLOCKS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for weight in self.weights:
            x = _Slow.apply(x, weight)
        return x


def step_of(variant: str, rank: int, world: int, node: str):
    """Return a step that computes and averages all gradients."""
    model = Blocks()
    parameters = list(model.parameters())
    x = torch.ones(1, requires_grad=True)

    def forget() -> None:
        for parameter in parameters:
            parameter.grad = None

    if variant == "ddp":
        wrapped = nn.parallel.DistributedDataParallel(model, bucket_cap_mb=BUCKET_MB)

        def step() -> None:
            forget()
            wrapped(x).sum().backward()
    elif variant == "flat":
        vector = torch.empty(NUM_PARAMETERS)

        def step() -> None:
            forget()
            model(x).sum().backward()
            torch.cat([p.grad for p in parameters], out=vector)
            torch.distributed.all_reduce(vector)
            vector.div_(world)
            for parameter, mean in zip(parameters, vector.split(NUM_PARAMETERS // NUM_BLOCKS), strict=True):
                parameter.grad.copy_(mean)
    else:
        config = ReductionConfig(mode=variant, bucket_mb=BUCKET_MB)
        network = Network(TorchGroup(rank, world), config, node=node)
        hook = AllReduceHook(parameters, network.group, network=network)

        def step() -> None:
            forget()
            model(x).sum().backward()
            hook.finish()

    def checked() -> None:
        step()
        mean = (world + 1) / 2
        assert all(bool((p.grad == mean).all()) for p in (parameters[0], parameters[-1]))

    return checked


def emulated(rank: int, world: int, variant: str, node: str, steps: int) -> dict:
    step = step_of(variant, rank, world, node)
    step()
    torch.distributed.barrier()
    sent = _sent_bytes()
    seconds = []
    for _ in range(steps):
        torch.distributed.barrier()
        begun_s = time.monotonic()
        step()
        seconds.append(time.monotonic() - begun_s)
    torch.distributed.barrier()
    time.sleep(0.2)
    return {
        "step_s": statistics.mean(seconds),
        "link_mb": (_sent_bytes() - sent) / steps / 1e6,
        "compute_s": FORWARD_S + BACKWARD_S,
    }


def loopback(rank: int, world: int, rounds: int) -> dict:
    """The tree and the library on one vector, in turn."""
    network = Network(TorchGroup(rank, world), ReductionConfig())
    route = network.route(world)
    vector = torch.full((NUM_PARAMETERS,), 1.0)
    count = round(4 * NUM_PARAMETERS / (BUCKET_MB * 1e6))
    buckets = vector.tensor_split(count)

    def tree() -> None:
        network.lanes.wait([network.launch(route, [((rank, 0), bucket)], None) for bucket in buckets])

    def library() -> None:
        torch.distributed.all_reduce(vector)
        vector.div_(world)

    found = {"tree": [], "library": []}
    for number in range(rounds + 1):
        for name, act in (("tree", tree), ("library", library)):
            torch.distributed.barrier()
            begun_s = time.monotonic()
            act()
            torch.distributed.barrier()
            if number:
                found[name].append(time.monotonic() - begun_s)
    assert bool((vector == 1).all())
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    ratios = [a / b for a, b in zip(found["tree"], found["library"], strict=True)]
    return {
        **{f"{k}_s": v for k, v in medians.items()},
        "ratio": statistics.median(ratios),
        "best_ratio": min(found["tree"]) / min(found["library"]),
        "ratios": ratios,
    }


def _sent_bytes() -> int:
    with open(f"/sys/class/net/{LINK}/statistics/tx_bytes") as file:  # noqa: PTH123
        return int(file.read())


def main(what: str, rank: int, world: int, address: str, port: str, *words: str) -> None:
    torch.set_num_threads(1)
    where = f"tcp://{address}:{port}"
    torch.distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=world)
    found = (
        emulated(rank, world, words[0], words[1], int(words[2]))
        if what == "emulated"
        else loopback(rank, world, int(words[0]))
    )
    if rank == 0:
        print(json.dumps(found), flush=True)
    torch.distributed.barrier()


if __name__ == "__main__":
    mode, number, count, *rest = sys.argv[1:]
    main(mode, int(number), int(count), *rest)
    sys.stdout.flush()
    os._exit(0)
