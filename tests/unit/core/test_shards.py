import math
import random
from functools import reduce
from operator import add

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


def summed(values: list[float], world_size: int) -> float:
    partials = []
    for rank in range(world_size):
        shards = shards_of(rank, world_size, len(values))
        partials += merge([((shard, 0), values[shard]) for shard in shards], add)
    return fold(partials, add)


@given(st.integers(1, 40), st.data())
def test_the_bits_of_a_sum_are_the_same_for_any_number_of_workers(num_shards, data):
    values = [random.Random(data.draw(st.integers(0, 99))).gauss(0, 1) for _ in range(num_shards)]
    world_size = data.draw(st.integers(1, num_shards))
    assert summed(values, world_size).hex() == summed(values, 1).hex()


def test_additions_from_left_to_right_would_have_other_bits():
    """The control: these sums are not exact, so that their order can be seen at all."""
    draw = random.Random(0)
    values = [draw.gauss(0, 1) for _ in range(8)]
    assert reduce(add, values) != summed(values, 1)


@given(st.integers(1, 300), st.data())
def test_a_worker_holds_few_partial_sums_however_many_shards_it_has(num_shards, data):
    world_size = data.draw(st.integers(1, num_shards))
    for rank in range(world_size):
        shards = shards_of(rank, world_size, num_shards)
        held = 0
        stack = []
        for shard in shards:
            stack = merge([*stack, ((shard, 0), 1)], add)
            held = max(held, len(stack))
        assert held <= 2 * math.log2(len(shards) + 1) + 1
        assert sum(value for _, value in stack) == len(shards)
