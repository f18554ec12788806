"""Negative controls of the three lines: whatever is left out of what a loop gets back must show in its end.

The list of what is left out is made from the keys of a checkpoint as it is.
"""

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from get3d_cluster import checkpoint
from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.runtime.checkpoint import Checkpoints, state_digest
from get3d_cluster.storage import open_storage

STEPS, CUT, EPOCH = 8, 4, 3
ONLY_TOLD = {
    "more0/_step_count": "torch counts calls there, to warn of a wrong order of them",
    "more0/_last_lr": "what get_last_lr tells; the rate itself is the optimizer's",
}
FIXED = {
    "more0/step_size",
    "more0/gamma",
    "more0/base_lrs",
    "more0/_get_lr_called_within_step",
    "more0/_is_initial",
}
"""A new loop has the same."""
ALL = {"model", "optimizer", "place", "generators", "more0", "more1"}


class Scaler:
    """Grows a factor now and then, as torch.amp's does."""

    def __init__(self) -> None:
        self.scale, self.good = 1.0, 0

    def update(self) -> None:
        self.good += 1
        if self.good == 3:
            self.scale, self.good = self.scale * 2, 0

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.scale, "good": self.good}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scale, self.good = state_dict["scale"], state_dict["good"]


class Loop:
    """A loop whose steps depend on all that there is to be saved."""

    def __init__(self, path: Path) -> None:
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002
        random.seed(1)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5)
        )
        self.adam = torch.optim.Adam(self.model.parameters(), lr=0.1)
        self.rates = torch.optim.lr_scheduler.StepLR(self.adam, 3, 0.5)
        self.scaler = Scaler()
        config = CheckpointConfig(every_s=0, every_steps=CUT)
        epoch, step, self.others = checkpoint.init(
            self.model, self.adam, self.rates, self.scaler, path=path, config=config, others={"decay": 1.0}
        )
        self.start = EPOCH * epoch + step

    def go_to(self, end: int) -> str:
        for step in range(self.start, end):
            x = torch.rand(6, 3) * float(np.random.rand()) * random.random()  # noqa: NPY002
            self.adam.zero_grad()
            loss = (self.model(x) * self.others["decay"]).square().mean() * self.scaler.scale
            loss.backward()
            self.adam.step()
            self.rates.step()
            self.scaler.update()
            self.others["decay"] *= 0.9
            checkpoint.try_save(step // EPOCH, step % EPOCH + 1, self.others)
        checkpoint.finish()
        return state_digest(self.model.state_dict())


@pytest.fixture(autouse=True)
def no_loop_is_left() -> Iterator[None]:
    yield
    checkpoint.finish()


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> str:
    return Loop(tmp_path_factory.mktemp("straight")).go_to(STEPS)


def checkpoints_at(path: Path) -> Checkpoints:
    return Checkpoints(open_storage(path / "checkpoints"), CheckpointConfig(), lambda: None)


def saved_states(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the state at the cut, and that of a new loop."""
    Loop(folder / "cut").go_to(CUT)
    new = Loop(folder / "new")
    checkpoint.try_save(0, 0, new.others)
    checkpoint.finish()
    states = (checkpoints_at(folder / name).load() for name in ("cut", "new"))
    cut, fresh = (loaded.state for loaded in states if loaded)
    return cut, fresh


def end_with(path: Path, state: Mapping[str, Any]) -> str:
    checkpoints_at(path).save(CUT, state, {})
    return Loop(path).go_to(STEPS)


def entries(state: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield where something can be left out: the parts, and what they hold one level down; the generators two."""
    for part, value in state.items():
        yield (part,)
        for key in value:
            yield part, key
            if part == "generators":
                yield from ((part, key, name) for name in value[key])


def without(state: dict[str, Any], new: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """Return ``state`` with one entry as a new loop has it."""
    *head, last = path
    if not head:
        return state | {last: new[last]}
    key, *rest = path
    return state | {key: without(state[key], new[key], tuple(rest))}


def test_what_is_given_back_whole_comes_to_the_same_end(tmp_path: Path, straight: str) -> None:
    cut, _ = saved_states(tmp_path)
    assert set(cut) == ALL
    assert end_with(tmp_path / "again", cut) == straight


def test_each_entry_left_out_shows(tmp_path: Path, straight: str) -> None:
    cut, new = saved_states(tmp_path)
    silent, same = [], []
    for number, path in enumerate(entries(cut)):
        ablated = without(cut, new, path)
        if state_digest(ablated) == state_digest(cut):
            same.append("/".join(map(str, path)))
        elif end_with(tmp_path / str(number), ablated) == straight:
            silent.append("/".join(map(str, path)))
    assert set(silent) <= set(ONLY_TOLD), sorted(set(silent) - set(ONLY_TOLD))
    assert set(same) <= FIXED, sorted(set(same) - FIXED)
