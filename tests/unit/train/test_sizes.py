"""Which size of micro-shards is suggested, from numbers that were measured."""

from typing import Any

import pytest

from get3d_cluster.errors import UsageError
from jobs._sizes import Measured, candidates, suggested, table
from jobs.sizes import Config
from tests import train_setup as setup

GIB = 2**30


def measured(size: int, step_s: float, gib: float = 1.0, **more: Any) -> Measured:
    return Measured(
        shard_size=size, step_s=step_s, r1_s=0.0, memory_bytes=int(gib * GIB), device_bytes=40 * GIB, **more
    )


def best_of(rows: list[Measured], group: int = 4, batch: int = 32) -> int | None:
    return suggested(rows, {row.shard_size: row.images_per_s(batch, 16) for row in rows}, 0.85, group)


def test_sizes_cut_the_batch_leave_a_shard_to_each_worker_and_make_whole_groups() -> None:
    assert candidates(24, 4, 1) == (1, 2, 3, 4, 8, 12, 24)
    assert candidates(24, 4, 3) == (1, 2, 3, 4, 8)
    assert candidates(6, 4, 1) == (1, 2, 3)  # 6 is no multiple of 4


def test_the_fastest_that_fits_is_suggested() -> None:
    assert (
        best_of([measured(4, 4.0), measured(8, 3.0), measured(16, 2.0, gib=35.0)]) == 8
    )  # 34 GiB is the limit
    assert best_of([measured(4, 4.0), measured(8, 3.0), measured(16, 2.0, gib=33.0)]) == 16
    assert best_of([measured(4, 4.0), measured(8, 3.0), Measured(shard_size=16, failed="out of memory")]) == 8


def test_of_sizes_that_are_nearly_as_fast_the_smallest_is_suggested() -> None:
    assert best_of([measured(4, 2.05), measured(8, 2.0)]) == 4
    assert best_of([measured(4, 2.2), measured(8, 2.0)]) == 8


def test_fewer_images_than_a_group_only_if_nothing_else_fits() -> None:
    assert best_of([measured(2, 1.0), measured(4, 4.0)]) == 4
    failed = [Measured(shard_size=size, failed="out of memory") for size in (4, 8)]
    assert best_of([measured(1, 1.0), measured(2, 2.0), *failed]) == 2
    assert best_of(failed) is None


def test_r1_counts_by_its_interval() -> None:
    row = Measured(shard_size=4, step_s=1.0, r1_s=8.0)
    assert row.images_per_s(32, 16) == 32 / 1.5


def test_a_table_says_what_failed_and_what_to_type() -> None:
    rows = [measured(4, 2.0), Measured(shard_size=8, failed="out of memory")]
    text = table(rows, {4: 16.0, 8: 0.0}, 32, 2, 4)
    assert "| 8 | 4 | | | | | out of memory |" in text
    assert "batch.shard_size=4 batch.num_shards=8" in text
    assert "precision.amp=bf16" in table(rows, {4: 0.0, 8: 0.0}, 32, 2, None)


def test_a_size_that_cannot_be_is_refused() -> None:
    from dataclasses import fields, replace

    from jobs.sizes import SizesConfig

    trained = setup.tiny_config("data")  # type: ignore[arg-type]
    config = Config(**{each.name: getattr(trained, each.name) for each in fields(trained)})
    assert config.to_try == (1, 2, 4, 8)
    for size in (3, 16):
        with pytest.raises(UsageError, match=rf"sizes\.shard_sizes has {size}"):
            replace(config, sizes=SizesConfig(shard_sizes=(size,)))
