"""The order of what happens on a GPU's stream, with streams and events that only take notes."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from get3d_cluster.core.shards import blocks_of, shards_of
from get3d_cluster.dist import network
from get3d_cluster.dist.config import ReductionConfig
from get3d_cluster.dist.tree import GradientReducer, PhasePlan
from tests.workers_in_memory import network_of, on_all


class Noting:
    """Stands for a stream or an event."""

    notes: list

    def __init__(self, notes):
        self.notes = notes

    def record(self, stream=None):
        self.notes.append("record here" if stream is None else "record beside")

    def wait_event(self, event):
        self.notes.append("wait for event")

    def synchronize(self):
        self.notes.append("synchronize")


@pytest.mark.parametrize("via", ["device", "host"])
@pytest.mark.parametrize(("num_shards", "world_size"), [(4, 2), (8, 3), (6, 3), (4, 4)])
def test_both_ways_have_the_bits_of_one_worker_and_wait_for_what_they_use(
    monkeypatch, via, num_shards, world_size
):
    notes = []
    monkeypatch.setattr(torch.cuda, "Event", lambda: Noting(notes))
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda: SimpleNamespace(wait_event=lambda _: notes.append("go on"))
    )

    def work(group, on_device=True):
        p = torch.nn.Parameter(torch.zeros(1000))
        network = network_of(group, ReductionConfig(bucket_mb=1e-3))
        if on_device:
            network._stream, network.via = Noting(notes), via
            network._pinned = lambda size, dtype: torch.empty(size, dtype=dtype)
        reducer = GradientReducer(PhasePlan("p", [("p", p)]), group, num_shards, network=network)
        for step in range(2):
            for shard in reducer.start():
                g = torch.randn(1000, generator=torch.Generator().manual_seed(10 * step + shard))
                (p * g).sum().backward()
                reducer.add()
            reducer.finish()
        network.close()
        return p.grad.clone()

    alone = on_all(1, lambda group: work(group, on_device=False))[0][0]
    assert not notes
    for result in on_all(world_size, work)[0]:
        assert torch.equal(result, alone)
    buckets = 2 * 4 * world_size
    assert notes.count("wait for event") == notes.count("go on") == notes.count("record here") == buckets
    assert notes.count("synchronize") == (buckets if via == "host" else 0)


@pytest.mark.parametrize(
    ("via", "expected"),
    [("auto", ("host", {"device": 5.0, "host": 4.0})), ("device", ("device", {})), ("host", ("host", {}))],
)
def test_auto_takes_on_all_workers_the_way_whose_slowest_worker_is_the_fastest(monkeypatch, via, expected):
    seconds = {"device": (1.0, 5.0, 2.0), "host": (3.0, 4.0, 3.0)}
    monkeypatch.setattr(network, "has_device_wire", lambda: True)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: None)
    monkeypatch.setattr(network.Network, "_time", lambda self, way: seconds[way][self.group.rank])

    def work(group):
        told = network_of(group, ReductionConfig(via=via), device="cuda").describe()
        return told["via"], told["measured_s"]

    assert on_all(3, work)[0] == [expected] * 3


def test_without_nccl_nothing_is_measured_and_the_way_is_through_the_host(monkeypatch):
    monkeypatch.setattr(network, "has_device_wire", lambda: False)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: None)
    for config in (ReductionConfig(), ReductionConfig(via="device")):
        found = on_all(2, lambda group, c=config: network_of(group, c, device="cuda").describe())[0]
        assert [(told["via"], told["measured_s"]) for told in found] == [("host", {})] * 2


def test_parts_of_a_bucket_go_through_pinned_memory_that_is_made_once(monkeypatch):
    """The first part in a vector of its own, those of workers whose shards are no one block in memory beside."""
    monkeypatch.setattr(torch.cuda, "Event", lambda: Noting([]))
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(wait_event=lambda _: None))

    def work(group):
        made = []

        def pinned(size, dtype):
            made.append(size)
            return torch.empty(size, dtype=dtype)

        p = torch.nn.Parameter(torch.zeros(1000))
        network = network_of(group, ReductionConfig(bucket_mb=1e-3))
        network._stream, network.via, network._pinned = Noting([]), "host", pinned
        reducer = GradientReducer(PhasePlan("p", [("p", p)]), group, 8, network=network)
        counts = []
        for _ in range(3):
            for _ in reducer.start():
                p.sum().backward()
                reducer.add()
            reducer.finish()
            counts.append(sum(made))
        network.close()
        return counts

    parts = [len(blocks_of(shards_of(rank, 3, 8))) for rank in range(3)]
    assert max(parts) > 1
    assert on_all(3, work)[0] == [[1000 * count] * 3 for count in parts]
