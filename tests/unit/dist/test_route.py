"""Who adds what: every shard once, on one owner, along the tree."""

import doctest
import math

import pytest

from get3d_cluster.dist import route
from get3d_cluster.dist.placement import Placement


def test_the_examples_hold():
    assert doctest.testmod(route).failed == 0


@pytest.mark.parametrize(
    ("world_size", "local_size"), [(2, 1), (4, 2), (8, 4), (12, 4), (6, 2), (32, 8), (64, 16)]
)
def test_stages_inside_nodes_come_first_and_stay_there(world_size, local_size):
    for rank in range(world_size):
        chain = route.stages(rank, world_size, 2 * world_size, local_size)
        assert math.prod(len(stage.peers) for stage in chain) == world_size
        inside = [stage.is_inside for stage in chain]
        assert inside == sorted(inside, reverse=True)
        for stage in chain:
            assert stage.peers[stage.place] == rank
            same_node = len({peer // local_size for peer in stage.peers}) == 1
            assert stage.is_inside == same_node


def test_all_peers_of_a_stage_see_the_same_stage():
    for world_size, num_shards in ((8, 8), (12, 24), (5, 7), (9, 9)):
        chains = [route.stages(rank, world_size, num_shards, 4) for rank in range(world_size)]
        for rank, chain in enumerate(chains):
            for number, stage in enumerate(chain):
                for peer in stage.peers:
                    other = chains[peer][number]
                    assert (other.peers, other.blocks) == (stage.peers, stage.blocks), (rank, peer)


@pytest.mark.parametrize("num_shards", [1, 2, 6, 7, 8])
def test_rounding_takes_whole_levels_from_the_top(num_shards):
    none, some, every = (route.rounding(num_shards, levels) for levels in (0, 1, 99))
    assert (none.sums, none.root) == (frozenset(), False)
    assert some.sums == ({(0, num_shards)} if num_shards > 1 else set())
    assert len(every.sums) == num_shards - 1


def test_placement_knows_who_sits_together():
    def facts(nodes):
        placement = Placement(nodes=tuple(nodes))
        return placement.is_contiguous, placement.local_size

    assert facts("aabb") == (True, 2)
    assert facts("abab") == (False, 1)
    assert facts("aab") == (True, 1)
    assert facts("abba") == (False, 1)
    assert facts("aaaa") == (True, 4)
