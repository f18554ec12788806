"""200 stops of GET3D at toy size: in every phase, on 4, 2, 8 and 3 workers. Takes about half an hour on two cores.

Checkpoints are written beside the training, by a process of each rank; augmentation adapts, images are measured.
"""

from pathlib import Path

import pytest

from get3d_cluster.runtime.events import read_rows
from get3d_cluster.simulate import Plan, simulate
from get3d_cluster.simulate.verdict import PHASES, phase_rows
from tests.simulations import assert_only_unsaved_steps_are_lost
from tests.train_setup import dataset, tiny_config

STOPS = 200
SETTINGS = (
    "num_images=5120",
    "batch.num_shards=8",
    "checkpoint.every_steps=4",
    "watch.preview_every_s=0.5",
    "watch.budget=1e6",
    "watch.preview_shapes=1",
    "watch.measure_every_s=0.5",
    "watch.measure_images=4",
    "checkpoint.background_mb=0",
    "augment.target=0.3",
    "augment.interval=2",
    "augment.adjust_images=20000",
    "augment.p=0.4",
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
    assert seen == set(PHASES)
    stopped = tmp_path / "runs" / "stopped"
    assert_only_unsaved_steps_are_lost(verdict.stops, stopped)
    assert all(stop.steps_lost <= 4 + 1 for stop in verdict.stops)
    strengths = [row["augment_p"] for row in read_rows(stopped / "metrics.jsonl")]
    assert len(set(strengths)) > 20
    assert 0 < min(strengths) < max(strengths) < 1
    assert list((stopped / "checkpoints").glob("step-*/*+0001*"))
