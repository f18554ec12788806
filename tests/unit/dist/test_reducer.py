"""The mean gradients: the same bits however many workers, buckets and missing gradients there are."""

import threading
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from get3d_cluster.core.shards import shards_of
from get3d_cluster.dist.config import ReductionConfig
from get3d_cluster.dist.group import SoloGroup
from get3d_cluster.dist.hook import AllReduceHook
from get3d_cluster.dist.network import Network
from get3d_cluster.dist.tree import GradientReducer, PhasePlan
from get3d_cluster.errors import UsageError
from tests.workers_in_memory import network_of, on_all, parameters

SIZES = ((5, 3), (17,), (1,), (4, 2, 3), (33,))


def gradient(shard, index, shape):
    generator = torch.Generator().manual_seed(1000 * shard + index)
    return torch.randn(shape, generator=generator) * 10.0 ** (shard % 4)


def reduced(group, num_shards, config, missing=frozenset(), nodes=None, steps=1, sizes=SIZES):
    """Return all mean gradients and extras of some steps as one vector."""
    named = parameters(sizes)
    network = network_of(group, config, node=nodes[group.rank] if nodes else "")
    reducer = GradientReducer(PhasePlan("p", named, 2), group, num_shards, network=network)
    found = []
    for step in range(steps):
        for shard in reducer.start():
            present = [(i, p) for i, (_, p) in enumerate(named) if (step + shard, i) not in missing]
            loss = sum((p * gradient(step + shard, i, p.shape)).sum() for i, p in present)
            if present:
                loss.backward()
            reducer.add(torch.tensor([1.0 + shard, 0.1 * shard]))
        extras = reducer.finish()
        found += [p.grad.reshape(-1).clone() for _, p in named] + [extras]
    network.close()
    return torch.cat(found)


def by_hand(num_shards, missing=frozenset(), sizes=SIZES):
    """Fold right to left over a tree written down apart from the code under test."""

    def vector(shard):
        parts = [
            torch.zeros(s).reshape(-1) if (shard, i) in missing else gradient(shard, i, s).reshape(-1)
            for i, s in enumerate(sizes)
        ]
        return torch.cat([*parts, torch.tensor([1.0 + shard, 0.1 * shard])])

    def node(first, size):
        return vector(first) if size == 1 else node(first, size // 2) + node(first + size // 2, size // 2)

    blocks, first = [], 0
    for bit in reversed(range(num_shards.bit_length())):
        if num_shards >> bit & 1:
            blocks.append(node(first, 2**bit))
            first += 2**bit
    total = blocks.pop()
    while blocks:
        total = blocks.pop() + total
    return total / num_shards


@pytest.mark.parametrize("num_shards", range(1, 10))
def test_any_number_of_workers_gives_the_bits_of_the_tree(num_shards):
    expected = by_hand(num_shards)
    for world_size in range(1, num_shards + 1):
        results, _ = on_all(
            world_size, lambda group: reduced(group, num_shards, ReductionConfig(bucket_mb=1e-4))
        )
        for result in results:
            assert torch.equal(result, expected), f"{world_size} workers"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_bucket_size_no_hole_and_no_placement_changes_a_bit(data):
    num_shards = data.draw(st.integers(1, 9))
    world_size = data.draw(st.integers(1, num_shards))
    holes = st.frozensets(st.tuples(st.integers(0, num_shards - 1), st.integers(0, len(SIZES) - 1)))
    missing = data.draw(holes)
    bucket_mb = data.draw(st.sampled_from([4e-6, 2.3e-5, 1e-4, 1.7e-4, 1.0]))
    local = data.draw(st.sampled_from([n for n in range(1, world_size + 1) if world_size % n == 0]))
    nodes = [f"node{rank // local}" for rank in range(world_size)]
    config = ReductionConfig(bucket_mb=bucket_mb)
    results, _ = on_all(world_size, lambda group: reduced(group, num_shards, config, missing, nodes))
    for result in results:
        assert torch.equal(result, by_hand(num_shards, missing))


@pytest.mark.parametrize("mode", ["exact", "flat"])
def test_later_steps_begin_anew(mode):
    """Memory is used again; what was in it must not be seen."""
    config, missing = ReductionConfig(mode=mode, bucket_mb=1e-4), frozenset({(1, 2), (2, 0), (3, 4)})
    alone = on_all(1, lambda group: reduced(group, 6, config, missing, steps=3))[0][0]
    for world_size in (2, 3, 4):
        for result in on_all(world_size, lambda g: reduced(g, 6, config, missing, steps=3))[0]:
            assert torch.equal(result, alone)


def test_flat_and_exact_are_equal():
    results = [
        on_all(3, lambda group, mode=mode: reduced(group, 8, ReductionConfig(mode=mode)))[0][0]
        for mode in ("flat", "exact")
    ]
    assert torch.equal(*results)


def bf16_by_hand(num_shards, levels):
    """For powers of two: the top ``levels`` levels add rounded operands and round."""
    sizes = ((1000,),)

    def node(first, size, depth):
        if size == 1:
            return gradient(first, 0, sizes[0])
        left, right = (node(f, size // 2, depth + 1) for f in (first, first + size // 2))
        if depth < levels:
            return (left.bfloat16().float() + right.bfloat16().float()).bfloat16().float()
        return left + right

    return node(0, num_shards, 0) / num_shards


@pytest.mark.parametrize(("num_shards", "levels"), [(8, 1), (8, 2), (8, 3), (4, 5)])
def test_rounding_belongs_to_levels_of_the_tree_and_not_to_wires(num_shards, levels):
    config = ReductionConfig(mode="exact_bf16", bf16_levels=levels, bucket_mb=1e-3)
    sizes, expected = ((1000,),), bf16_by_hand(num_shards, levels)
    for world_size in range(1, num_shards + 1):
        for result in on_all(world_size, lambda g: reduced(g, num_shards, config, sizes=sizes))[0]:
            assert torch.equal(result[:-2], expected), f"{world_size} workers"


@pytest.mark.parametrize("num_shards", [3, 5, 6, 7, 9])
def test_rounding_does_not_depend_on_workers_for_uneven_trees(num_shards):
    for levels in (1, 2):
        config = ReductionConfig(mode="exact_bf16", bf16_levels=levels, bucket_mb=1e-4)
        alone = on_all(1, lambda g, c=config: reduced(g, num_shards, c))[0][0]
        assert not torch.equal(alone, by_hand(num_shards))
        for world_size in range(2, num_shards + 1):
            for result in on_all(world_size, lambda g, c=config: reduced(g, num_shards, c))[0]:
                assert torch.equal(result, alone)


def test_extras_are_never_rounded():
    config = ReductionConfig(mode="exact_bf16", bf16_levels=9)
    for result in on_all(4, lambda g: reduced(g, 8, config))[0]:
        assert torch.equal(result[-2:], by_hand(8)[-2:])


BIG = ((40_000,), (100, 100), (50_000,))
SIZE_BYTES = 4 * 100_002


@pytest.mark.parametrize(
    ("world_size", "num_shards"), [(2, 2), (4, 4), (4, 16), (8, 8), (3, 3), (6, 12), (5, 5)]
)
def test_aligned_workers_send_what_a_ring_would(world_size, num_shards):
    config = ReductionConfig(bucket_mb=0.05)
    _, board = on_all(world_size, lambda g: reduced(g, num_shards, config, sizes=BIG))
    bound = 2 * (world_size - 1) * SIZE_BYTES
    assert abs(sum(board.sent_bytes.values()) / bound - 1) < 0.01


def test_half_as_much_crosses_between_nodes_as_with_pairs_taken_in_turn():
    """Two nodes of two: each node sends S over the link, and S / 2 of bf16."""

    def crossing(config, nodes):
        _, board = on_all(4, lambda g: reduced(g, 4, config, nodes=nodes, sizes=BIG))
        return sum(n for (a, b), n in board.sent_bytes.items() if nodes[a] != nodes[b]) / 2 / SIZE_BYTES

    together = ["a", "a", "b", "b"]
    assert crossing(ReductionConfig(bucket_mb=0.05), together) == pytest.approx(1, abs=0.01)
    narrow = ReductionConfig(mode="exact_bf16", bucket_mb=0.05)
    assert crossing(narrow, together) == pytest.approx(0.5, abs=0.01)
    with pytest.warns(UserWarning, match="--distribution=block"):
        assert crossing(ReductionConfig(bucket_mb=0.05), ["a", "b", "a", "b"]) > 1.4


def test_a_bucket_leaves_before_backward_is_over():
    launched = []

    def work(group):
        named = parameters(((1000,),) * 4)
        network = network_of(group, ReductionConfig(bucket_mb=0.004))
        reducer = GradientReducer(PhasePlan("p", named), group, 2, network=network)
        network.launch = lambda *a, real=network.launch: (launched.append(group.rank), real(*a))[1]
        x = torch.ones(1000)
        seen = []
        reducer.start()
        for _, p in named:
            x = x * (p + 1)
            x.register_hook(lambda _: seen.append(launched.count(group.rank)))
        x.sum().backward()
        reducer.add()
        reducer.finish()
        return seen

    for seen in on_all(2, work)[0]:
        assert seen == [0, 1, 2, 3]


def test_two_backward_passes_add_up_before_a_bucket_leaves_and_a_third_is_refused():
    def work(group):
        (_, p), (_, q) = named = parameters(((3,), (2,)))
        reducer = GradientReducer(PhasePlan("p", named), group, 2, backwards=2, network=network_of(group))
        reducer.start()
        (p.sum() * (1 + group.rank) + q.sum()).backward()
        (p.sum() * 10).backward()  # q gets nothing here: it leaves when the shard is whole
        reducer.add()
        reducer.finish()
        found = [p.grad.tolist(), q.grad.tolist()]
        reducer.start()
        p.sum().backward()
        p.sum().backward()
        with pytest.raises(RuntimeError, match=r"p0 got gradients from more backward passes .* backwards=2"):
            p.sum().backward()
        return found

    for found in on_all(2, work)[0]:
        assert found == [[11.5] * 3, [1.0] * 2]


def test_shards_are_those_of_the_plan():
    def work(group):
        return list(
            GradientReducer(PhasePlan("p", parameters(((1,),))), group, 8, network=network_of(group)).shards
        )

    assert on_all(3, work)[0] == [list(shards_of(rank, 3, 8)) for rank in range(3)]


def test_what_fails_beside_the_computation_is_raised_in_it():
    def work(group):
        named = parameters(((3,),))
        network = network_of(group, ReductionConfig())
        reducer = GradientReducer(PhasePlan("p", named), group, 2, network=network)

        def broken(*_):
            raise ConnectionError("gone")

        reducer._routes[0].wire.start = broken
        reducer.start()
        named[0][1].sum().backward()
        reducer.add()
        with pytest.raises(ConnectionError, match="gone"):
            reducer.finish()

    on_all(2, work)


def test_half_precision_parameters_get_their_gradients_in_their_own_type():
    def work(group):
        p = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
        reducer = GradientReducer(PhasePlan("p", [("p", p)]), group, 2, network=network_of(group))
        reducer.start()
        (p * (1 + group.rank)).sum().backward()
        reducer.add()
        reducer.finish()
        return p.grad

    for grad in on_all(2, work)[0]:
        assert grad.dtype == torch.bfloat16
        assert grad.tolist() == [1.5] * 3


def hooked_steps(group, zero):
    """Three steps of plain SGD through the public hook; gradients forgotten in one of two ways."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    for index, parameter in enumerate(net.parameters()):
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(index))
    hook = AllReduceHook(
        net.parameters(), group, 4, num_extras=1, network=network_of(group, ReductionConfig(bucket_mb=1e-4))
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for step in range(3):
        optimizer.zero_grad(set_to_none=zero)
        for shard in hook.shards:
            x = torch.randn(5, 3, generator=torch.Generator().manual_seed(10 * step + shard))
            (loss := net(x).square().mean()).backward()
            if shard != hook.shards[-1]:
                hook.add(loss)
        losses.append(hook.finish(loss))
        optimizer.step()
    hook.close()
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()] + losses)


def test_the_public_hook_gives_equal_weights_however_gradients_are_zeroed():
    found = [
        result
        for zero in (True, False)
        for world_size in (1, 2, 3, 4)
        for result in on_all(world_size, lambda g, z=zero: hooked_steps(g, z))[0]
    ]
    assert all(torch.equal(result, found[0]) for result in found)


def test_a_closed_hook_lets_go_of_the_model():
    p = torch.nn.Parameter(torch.zeros(2))
    AllReduceHook([p], SoloGroup()).close()
    p.sum().backward()
    assert p.grad.tolist() == [1, 1]


def test_workers_that_begin_with_other_weights_are_refused_with_rank_and_parameter():
    def work(group):
        frozen = torch.nn.Parameter(torch.ones(3), requires_grad=False)
        p, q = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.ones(2, 2))
        for changed in (None, q, frozen):
            if group.rank == 1 and changed is not None:
                with torch.no_grad():
                    changed.view(-1)[0] += 0.5
            network = network_of(group)
            if changed is None:
                AllReduceHook([p, q, frozen], group, network=network)
                continue
            with pytest.raises(UsageError) as caught:
                AllReduceHook([p, q, frozen], group, network=network)
            yield caught.value.what.partition("first ")[2], caught.value.way_out
            with torch.no_grad():
                changed.fill_(1)

    for found in on_all(3, lambda group: list(work(group)))[0]:
        assert [what for what, _ in found] == ["parameter 1 [2, 2] on rank 1", "parameter 2 [3] on rank 1"]
        assert all("torch.manual_seed" in way_out for _, way_out in found)


def test_a_group_of_torch_is_refused_in_words():
    """The word of its class is in the message, not an AttributeError of ours."""
    group = torch.distributed.ProcessGroup(0, 1)
    with pytest.raises(UsageError, match="ProcessGroup") as caught:
        AllReduceHook([torch.nn.Parameter(torch.zeros(1))], group)
    assert "leave group out" in caught.value.way_out


def test_the_librarys_sum_says_on_the_first_of_several_workers_that_it_gives_up_the_bits():
    def said(group):
        with lock, warnings.catch_warnings(record=True) as found:  # what is recorded belongs to the process
            warnings.simplefilter("always")
            for mode in ("exact", "exact_bf16", "flat", "fast"):
                Network(Unmoved(group), ReductionConfig(mode=mode), opener=lambda _: None)
        return [str(each.message) for each in found]

    class Unmoved:
        def __init__(self, group):
            self.rank, self.world_size = group.rank, group.world_size

        def all_gather(self, tensor):
            return [tensor] * self.world_size

    lock = threading.Lock()
    (first, second), _ = on_all(2, said)
    assert (len(first), second) == (1, [])
    assert "reduction.mode=fast gives up the bits" in first[0]
    assert on_all(1, said)[0] == [[]]


def test_more_workers_than_shards_are_refused():
    with pytest.raises(ValueError, match="3 workers cannot share num_shards=2"):
        on_all(
            3,
            lambda group: AllReduceHook(
                [torch.nn.Parameter(torch.zeros(1))], group, 2, network=network_of(group)
            ),
        )


def test_hooks_over_different_shards_share_a_network():
    """Their stages differ, and are begun at times that differ between workers."""

    def work(group):
        network = network_of(group, ReductionConfig(bucket_mb=1e-4))
        (_, p), (_, q) = named = parameters(((300,), (300,)))
        reducers = [
            GradientReducer(PhasePlan("p", named[:1]), group, 4, network=network),
            GradientReducer(PhasePlan("q", named[1:]), group, 7, network=network),
        ]
        found = []
        for step in range(3):
            for reducer, parameter in zip(reducers, (p, q), strict=True):
                for shard in reducer.start():
                    (parameter * gradient(step + shard, 0, (300,))).sum().backward()
                    reducer.add()
            for reducer in reducers:
                reducer.finish()
            found += [p.grad.clone(), q.grad.clone()]
        return torch.stack(found)

    results = [result for world_size in (1, 2, 4) for result in on_all(world_size, work)[0]]
    assert all(torch.equal(result, results[0]) for result in results)
