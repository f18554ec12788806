import pytest
import torch

from get3d_cluster.core.shards import shards_of
from get3d_cluster.dist.group import SoloGroup
from get3d_cluster.dist.tree import GradientReducer, PhasePlan, TreeSum


class Together:
    """Ranks of one process: each all_gather is answered with what the others pushed before (two passes)."""

    def __init__(self, rank, world_size, board):
        self.rank, self.world_size, self._board = rank, world_size, board

    def all_gather(self, tensor):
        self._board[self.rank] = tensor.clone()
        if len(self._board) < self.world_size:
            raise StopIteration
        return [self._board[rank] for rank in range(self.world_size)]


def vectors(num_shards):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1000, generator=generator) * 10.0**shard for shard in range(num_shards)]


def total_on(world_size, num_shards):
    board = {}
    for rank in reversed(range(world_size)):
        tree = TreeSum(Together(rank, world_size, board), num_shards)
        for shard in shards_of(rank, world_size, num_shards):
            tree.push(vectors(num_shards)[shard].clone())
        try:
            return tree.total()
        except StopIteration:
            continue
    raise AssertionError


@pytest.mark.parametrize("num_shards", [2, 3, 6, 8])
def test_the_sum_has_the_same_bits_on_any_number_of_workers(num_shards):
    one = total_on(1, num_shards)
    for world_size in range(2, num_shards + 1):
        assert torch.equal(total_on(world_size, num_shards), one)


def test_the_bits_are_those_of_the_tree_and_not_of_a_fold_from_the_left():
    a, b, c, d = vectors(4)
    assert torch.equal(total_on(2, 4), (a + b) + (c + d))
    assert not torch.equal(total_on(2, 4), ((a + b) + c) + d)


def test_gradients_are_averaged_over_shards_and_a_missing_one_counts_as_zero():
    used, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))
    reducer = GradientReducer(
        PhasePlan("p", [("used", used), ("unused", unused)], num_extras=1), SoloGroup(), 2
    )
    used.grad = torch.full((2,), 99.0)
    for shard in reducer.start():
        (used * (shard + 1)).sum().backward()
        reducer.add(torch.tensor(10.0 * shard))
    extras = reducer.finish()
    assert used.grad.tolist() == [1.5, 1.5]
    assert unused.grad.tolist() == [0, 0, 0]
    assert extras.tolist() == [5.0]
