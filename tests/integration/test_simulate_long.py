"""200 stops of GET3D at toy size: in every phase, on 4, 2, 8 and 3 workers. Takes about half an hour on two cores."""

from pathlib import Path

import pytest

from get3d_cluster.simulate import Plan, simulate
from get3d_cluster.simulate.verdict import phase_rows
from tests.train_setup import dataset, tiny_config

STOPS = 200
SETTINGS = (
    "num_images=5120",
    "batch.num_shards=8",
    "checkpoint.every_steps=4",
    "watch.preview_every_s=0.5",
    "watch.budget=1e6",
    "watch.preview_shapes=1",
)


@pytest.mark.long
@pytest.mark.timeout(3 * 3600)
def test_two_hundred_stops_lose_nothing_and_change_no_bit(tmp_path: Path, queue: Path) -> None:
    config = tiny_config(dataset(tmp_path / "data"), *SETTINGS)
    plan = Plan(stops=STOPS, worlds=(4, 2, 8, 3), kill_ratio=0.5, seed=1)
    verdict = simulate("train", config, tmp_path / "runs", plan, lambda text: print(text, flush=True))
    for row in phase_rows(verdict.stops):
        print(" | ".join(row))
    print(verdict.summary())
    assert verdict.is_exact
    assert verdict.lost_after_notices == 0
    assert len(verdict.stops) == STOPS
    assert {stop.world_size for stop in verdict.stops} == {4, 2, 8, 3}
    seen = {stop.phase for stop in verdict.stops}
    assert seen >= {"imports", "loading", "first step", "step", "preview", "publishing", "leaving"}
    assert all(stop.steps_lost <= 4 + 1 for stop in verdict.stops)
