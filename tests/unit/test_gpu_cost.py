"""What `make gpu PART=cost` and tests/bench/test_cost.py change of the base, and that they change that alone."""

from dataclasses import replace

import pytest

from tests.bench.test_cost import AXES
from tests.bench.test_step import config_b
from tests.gpu import cost
from tests.gpu.setting import car, tiny_test


def test_the_grids_are_counted_as_the_configuration_counts_them() -> None:
    base = config_b()
    assert cost.value_of(base, "grid") == 64
    cells = {point.value: point.config.generator.grid.num_cells for point in cost.points(base, AXES)}
    assert cells[90] == 36
    assert cells[32] == 12
    by_cells = cost.changed(tiny_test(), "grid", 6).generator.grid
    assert (by_cells.num_cells, by_cells.tet_res) == (6, 0)


@pytest.mark.parametrize("axis", ["batch", "image", "grid"])
def test_the_base_lies_on_every_axis(axis: str) -> None:
    assert cost.value_of(config_b(), axis) in AXES[axis]
    assert cost.value_of(car(), "grid") in cost.AXES["grid"]


def test_another_grid_has_the_same_box() -> None:
    whole = car()
    grid = replace(whole.generator.grid, scale=0.8, kind="flexicubes")
    base = replace(whole, generator=replace(whole.generator, grid=grid))
    assert cost.changed(base, "grid", 64).generator.grid == replace(grid, tet_res=64)
