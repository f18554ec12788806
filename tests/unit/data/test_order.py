import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from get3d_cluster.core.philox import Phase, words
from get3d_cluster.core.shards import shards_of
from get3d_cluster.data.order import _words, epoch_of, permutation, sample_at

FROZEN_SMALL = [4, 6, 5, 7, 3, 6]
FROZEN_LARGE = [39114, 34089, 20689, 11244, 32697]


@given(size=st.integers(1, 40), start=st.integers(0, 200), count=st.integers(0, 90), cut=st.integers(0, 90))
def test_a_run_cut_anywhere_sees_the_same_samples(size: int, start: int, count: int, cut: int) -> None:
    cut = min(cut, count)
    whole = sample_at(3, size, start, count)
    parts = [sample_at(3, size, start, cut), sample_at(3, size, start + cut, count - cut)]
    assert np.concatenate(parts).tolist() == whole.tolist()
    assert len(whole) == count


@given(
    size=st.integers(1, 60),
    num_shards=st.integers(1, 12),
    shard_size=st.integers(1, 5),
    start_step=st.integers(0, 40),
    draw=st.data(),
)
def test_batches_are_the_same_for_any_number_of_workers_and_any_step_to_start_from(
    size: int, num_shards: int, shard_size: int, start_step: int, draw: st.DataObject
) -> None:
    batch = num_shards * shard_size
    straight = sample_at(5, size, 0, (start_step + 2) * batch)
    for step in (start_step, start_step + 1):
        permutation.cache_clear()  # a process that has just begun
        world_size = draw.draw(st.integers(1, num_shards))
        seen = [
            sample_at(5, size, step * batch + shard * shard_size, shard_size)
            for rank in range(world_size)
            for shard in shards_of(rank, world_size, num_shards)
        ]
        assert np.concatenate(seen).tolist() == straight[step * batch : (step + 1) * batch].tolist()


@pytest.mark.parametrize("size", [7_500, 50_000, 1_000_000])
def test_a_step_far_into_the_run_needs_one_permutation_like_the_first(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def counted(seed: int, size: int, epoch: int) -> np.ndarray:
        made.append(epoch)
        return np.arange(size)

    monkeypatch.setattr("get3d_cluster.data.order.permutation", counted)
    for step in (0, 10**6):
        made.clear()
        start = step * 32
        sample_at(0, size, start, 32)
        assert made == sorted({start // size, (start + 31) // size})


def test_the_order_is_frozen() -> None:
    """What runs have been resumed with: another order would change all of them."""
    assert sample_at(0, 10, 7, 6).tolist() == FROZEN_SMALL
    assert sample_at(2**63 + 5, 50_000, 10**6 * 32, 5).tolist() == FROZEN_LARGE


@given(size=st.integers(1, 300), epoch=st.integers(0, 10**6))
def test_every_epoch_shows_each_sample_once(size: int, epoch: int) -> None:
    assert sorted(sample_at(0, size, epoch * size, size)) == list(range(size))


def test_the_order_is_that_of_the_scalar_words() -> None:
    drawn = words(77, 5, Phase.ORDER, 0, 2 * 11)
    keys = [high << 32 | low for high, low in zip(drawn[::2], drawn[1::2], strict=True)]
    assert permutation(77, 11, 5).tolist() == sorted(range(11), key=keys.__getitem__)


def test_the_order_of_a_million_is_by_all_64_bits() -> None:
    halves = _words(5, 0, Phase.ORDER, 2_000_000)
    assert np.array_equal(permutation(5, 1_000_000, 0), np.lexsort((halves[1::2], halves[0::2])))


def test_epochs_and_seeds_have_different_orders() -> None:
    orders = [tuple(permutation(seed, 50, epoch)) for seed in (0, 1, 2**40) for epoch in (0, 1, 2)]
    assert len(set(orders)) == 9


def test_small_permutations_are_uniform() -> None:
    seen: dict[tuple[int, ...], int] = {}
    for epoch in range(6000):
        order = tuple(int(i) for i in permutation(0, 3, epoch))
        seen[order] = seen.get(order, 0) + 1
    chi2 = sum((count - 1000) ** 2 / 1000 for count in seen.values())
    assert len(seen) == 6
    assert chi2 < 20.5  # 99.9 % of a chi-square with 5 degrees of freedom


def test_the_cached_order_cannot_be_damaged_by_a_caller() -> None:
    with pytest.raises(ValueError, match="read-only"):
        permutation(0, 5, 0)[0] = 3


def test_epoch_counts_whole_passes() -> None:
    assert [epoch_of(position, 10) for position in (0, 9, 10, 25)] == [0, 0, 1, 2]


@pytest.mark.parametrize("bad", [(0, 0, 1), (5, -1, 1), (5, 0, -1)])
def test_nonsense_is_refused(bad: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="size="):
        sample_at(0, *bad)
