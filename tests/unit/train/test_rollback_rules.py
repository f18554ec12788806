"""When a training that diverged goes back, how far, and how often: functions of its counters."""

from pathlib import Path
from typing import Any

import pytest

from get3d_cluster.core.philox import Phase
from get3d_cluster.errors import UsageError
from tests import train_setup as setup

SETTINGS = ("guard.max_skipped_steps=3", "guard.rollback_every_steps=4", "augment.p=0.4")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return setup.dataset(tmp_path_factory.mktemp("data") / "packed")


def config_of(data: Path, *overrides: str) -> Any:
    return setup.tiny_config(data, *SETTINGS, *overrides)


def test_each_stream_changes(data: Path, tmp_path: Path) -> None:
    work = setup.trainer(config_of(data), tmp_path / "run")
    asked: list[Any] = []
    work._dataset = type("Asked", (), {
        "__len__": lambda _: 20, "batch": lambda _, places: asked.append(list(places)) or (None, None),
    })()  # fmt: skip

    def drawn() -> tuple[Any, ...]:
        work._reals(0)
        return work._shard(0).seed, work._augmented(0, Phase.AUGMENT), asked.pop()

    first = drawn()
    work.counters.rollbacks = 1
    second = drawn()
    work.counters.rollbacks = 2
    assert len({first[0], second[0], drawn()[0]}) == 3
    assert first[2] != second[2]


def test_a_new_checkpoint_to_go_back_to_is_progress(data: Path, tmp_path: Path) -> None:
    """Diverged twice at step 10, and then, with a checkpoint of step 8 behind it, as often again."""
    work = setup.trainer(config_of(data, "guard.max_rollbacks=2"), tmp_path / "run")
    for step, skipped, target, there in ((10, 3, 4, 1), (10, 3, 4, 2), (13, 3, 8, 1), (13, 3, 8, 2)):
        work.counters.step, work.counters.skipped_in_a_row = step, skipped
        assert work.rollback_step() == target
        assert work.why_held() is None
        state = dict(work.state())
        work.roll_back(state | {"counters": state["counters"] | {"step": target, "skipped_in_a_row": 0}})
        assert work.counters.rollbacks_there == there
        assert work.rollback_step() is None
    work.counters.step, work.counters.skipped_in_a_row = 13, 3
    assert work.why_held() is not None
    assert work.counters.rollbacks == 4


def test_targets_further_apart_than_a_divergence_takes(data: Path) -> None:
    with pytest.raises(UsageError, match="rollback_every_steps=4 must be at least max_skipped_steps=5"):
        config_of(data, "guard.max_skipped_steps=5")


@pytest.mark.parametrize(
    ("step", "skipped", "target"),
    [(10, 2, None), (10, 3, 4), (11, 3, 8), (11, 4, 4), (12, 3, 8), (3, 3, 0), (6, 3, 0), (7, 3, 4)],
)
def test_it_goes_back_to_the_last_multiple_before_the_first_skipped_step(
    data: Path, tmp_path: Path, step: int, skipped: int, target: int | None
) -> None:
    """After step 10 with three skipped, 7 was the last good one: the checkpoint of step 8 is of the divergence."""
    work = setup.trainer(config_of(data), tmp_path / "run")
    work.counters.step, work.counters.skipped_in_a_row = step, skipped
    assert work.rollback_step() == target


def test_begun_again_it_has_the_weights_of_a_new_run(data: Path, tmp_path: Path) -> None:
    from get3d_cluster.runtime.checkpoint import state_digest

    config = config_of(data, "augment.target=0.3", "augment.interval=1")
    work = setup.trainer(config, tmp_path / "run")
    new = state_digest(dict(work.state()))
    for _ in range(2):
        work.step()
    work.roll_back(None)
    assert work.counters.rollbacks == 1
    work.counters.rollbacks = work.counters.rollbacks_there = 0
    assert state_digest(dict(work.state())) == new
