"""Checkpoints on a store that is slow, full, torn, out of reach or lags behind, in any order: no wrong bit, ever."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.dist.group import SoloGroup
from get3d_cluster.errors import CheckpointError, StorageError
from get3d_cluster.runtime.checkpoint import Checkpoints, state_digest
from get3d_cluster.runtime.checkpoint_link import Link
from get3d_cluster.runtime.checkpoint_saver import Saver
from get3d_cluster.runtime.checkpoint_writer import Memory, Writer
from get3d_cluster.storage import open_storage
from tests.faulty_store import FAULTS, FaultyStore, faulty_store

CONFIG = CheckpointConfig(background_mb=0.0, keep_last=2)
SAVES = 40


def a_state(step: int) -> dict[str, Any]:
    return {
        "net": {"w": torch.full((64,), float(step))},
        "adam": {"m": torch.ones(8)},
        "counters": {"step": step},
    }


def loaded_step(checkpoints: Checkpoints) -> int:
    """Return the step that a run would come back to; its bits are right, or this fails."""
    loaded = checkpoints.load()
    assert loaded is not None
    assert loaded.digest == state_digest(loaded.state) == state_digest(a_state(loaded.step))
    return loaded.step


class InThisProcess:
    """A writer's end that needs no other process: orders are carried out where the store can be reached."""

    def __init__(self) -> None:
        self._answers: list[dict[str, Any]] = []
        self._writer: Writer | None = None

    def save(self, saver: Saver, step: int) -> dict[str, Any]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Link, "start", lambda _: None)
            patch.setattr(Link, "send", lambda _, order: self._carry_out(saver, order))
            patch.setattr(Link, "receive", lambda _: self._answers.pop(0))
            assert saver.begin(step, a_state(step), {})
            return saver.finish()

    def _carry_out(self, saver: Saver, order: dict[str, Any]) -> None:
        assert saver._memory is not None
        if self._writer is None:
            self._writer = Writer(Memory(saver._memory.handle), self._answers.append, lambda: {"go": True})
        self._writer.obey(order)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("how", ["here", "by a writer"])
def test_whatever_goes_wrong_no_wrong_bit_is_taken_and_what_was_acknowledged_stands(
    tmp_path: Path, fault: str, how: str
) -> None:
    store, chance = FaultyStore(seed=1), random.Random(2)
    with faulty_store(store) as url:
        checkpoints = Checkpoints(open_storage(url), CONFIG, lambda: None)
        saver, writer = Saver(checkpoints, SoloGroup()), InThisProcess()
        acknowledged = 0
        for step in range(1, SAVES + 1):
            store.fault = fault if step > 2 and chance.random() < 0.7 else ""
            if how == "here":
                try:
                    is_saved = checkpoints.save(step, a_state(step), {}).step == step
                except (StorageError, OSError):
                    is_saved = False
            else:
                is_saved = "error" not in writer.save(saver, step)
            is_lying = fault == "torn in silence" and store.fault == fault
            store.fault = ""
            newest = loaded_step(checkpoints)
            if is_saved and not is_lying:
                acknowledged = step
            assert newest >= (acknowledged if fault != "torn in silence" else 1), (step, store.met)
            assert newest <= step
        assert acknowledged > 0
        assert store.met.get(fault, 0) > 5, "it never met the fault"
        if how == "here":
            checkpoints.save(SAVES + 1, a_state(SAVES + 1), {})
        else:
            assert "error" not in writer.save(saver, SAVES + 1)
        assert loaded_step(checkpoints) == SAVES + 1, "once all is well it goes on"
        saver.close()


@pytest.mark.parametrize("fault", ["stale list", "error on read"])
def test_a_start_meets_an_older_list_or_no_answer_and_takes_no_wrong_bit(fault: str) -> None:
    store = FaultyStore(seed=3)
    with faulty_store(store) as url:
        checkpoints = Checkpoints(open_storage(url), CONFIG, lambda: None)
        found, refused = set(), 0
        for step in range(1, 30):
            checkpoints.save(step, a_state(step), {})
            store.fault = fault
            try:
                found.add(step - loaded_step(checkpoints))
            except (CheckpointError, OSError):
                refused += 1
            store.fault = ""
            assert loaded_step(checkpoints) == step
        assert found <= ({0, 1, 2} if fault == "stale list" else {0})
        assert refused or fault == "stale list"
