"""A reducer whose group is watched: what it waits for counts as an exchange."""

import torch

from get3d_cluster.dist.config import ReductionConfig
from get3d_cluster.dist.tree import GradientReducer, PhasePlan
from get3d_cluster.runtime.watchdog import CountedGroup, Pulse
from tests.workers_in_memory import network_of, on_all


def test_every_phase_is_one_exchange_begun_when_this_worker_waits_and_ended_when_all_is_there():
    def work(plain):
        pulse = Pulse()
        group = CountedGroup(plain, pulse)
        p = torch.nn.Parameter(torch.zeros(100))
        network = network_of(group, ReductionConfig(bucket_mb=1e-4))
        reducer = GradientReducer(PhasePlan("p", [("p", p)]), group, 2, network=network)
        before, beats = pulse.exchanges, pulse.beats
        seen = []
        for _ in range(3):
            reducer.start()
            p.sum().backward()
            reducer.add()
            seen.append(pulse.exchanges - before)
            reducer.finish()
        return seen, pulse.exchanges - before, pulse.beats - beats, pulse.is_waiting

    assert on_all(2, work)[0] == [([0, 1, 2], 3, 3, False)] * 2
