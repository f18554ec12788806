from hypothesis import given
from hypothesis import strategies as st

from get3d_cluster.core.shards import blocks_of, fold, merge, shards_of


def shape(left: str, right: str) -> str:
    return f"({left}+{right})"


def tree_of(num_shards: int, world_size: int) -> str:
    partials = []
    for rank in range(world_size):
        shards = shards_of(rank, world_size, num_shards)
        leaves = [((shard, 0), str(shard)) for shard in shards]
        stack = merge(leaves, shape)
        assert [block for block, _ in stack] == blocks_of(shards)
        partials += stack
    return fold(partials, shape)


@given(st.integers(1, 40), st.data())
def test_the_order_of_additions_is_the_same_for_any_number_of_workers(num_shards, data):
    world_size = data.draw(st.integers(1, num_shards))
    assert tree_of(num_shards, world_size) == tree_of(num_shards, 1)


def test_the_tree_of_eight_is_balanced_and_that_of_six_folds_the_rest_from_the_right():
    assert tree_of(8, 3) == "(((0+1)+(2+3))+((4+5)+(6+7)))"
    assert tree_of(7, 1) == "(((0+1)+(2+3))+((4+5)+6))"


@given(st.integers(1, 64), st.data())
def test_every_shard_has_exactly_one_worker_and_loads_differ_by_one_at_most(num_shards, data):
    world_size = data.draw(st.integers(1, num_shards))
    parts = [shards_of(rank, world_size, num_shards) for rank in range(world_size)]
    assert [shard for part in parts for shard in part] == list(range(num_shards))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
