"""Negative controls: whatever is left out of what a resumed training gets back must show in its bits.

The list of what is left out is made from the keys of the state itself. A key that does not matter has to be named here
with a reason, and a new key that nobody thought about fails.
"""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from get3d_cluster.core.job import Position
from get3d_cluster.runtime.checkpoint import decode, encode, state_digest
from get3d_cluster.train import ema
from tests import train_setup as setup

BEFORE, AFTER = 4, 8
"""Steps before and after the restore. The second part has two R1 phases and moves of the augmentation (every 3 steps),
four zero steps (every 2), and the step at which the running average stops to ramp up."""
SETTINGS = (
    "batch.num_shards=2", "average.half_life_images=20", "average.ramp_up=0.5",
    "augment.target=0.3", "augment.interval=3", "augment.adjust_images=100", "augment.p=0.5",
)  # fmt: skip

PARTS = {
    "generator", "discriminator", "generator_ema", "adam_generator", "adam_discriminator", "counters", "data",
    "augmentation",
}  # fmt: skip
DOES_NOT_MATTER = {
    "counters/skipped_steps": "shown in metrics.jsonl, decides nothing",
    "counters/skipped_in_a_row": "decides when a run goes back, not what a step computes; see test_rollback_rules.py",
    "counters/rollback_step": "decides when a run is held, not what a step computes; see test_rollback_rules.py",
    "counters/rollbacks_there": "the same",
    "data": "identity of the data: another one is refused; see test_trainer.py",
    "data/fingerprint": "refused if it differs",
    "data/size": "refused if it differs",
    "data/order_version": "refused if it differs",
    "data/seed": "refused if it differs",
}
RENEWED = {
    "generator_ema/w_avg_geo": "copied from the generator in every step",
    "generator_ema/w_avg_tex": "copied from the generator in every step",
}
"""Left out, they are right again after a step; whoever reads them from the checkpoint itself needs them, though."""
DECIDES_NEAR_THE_TARGET = "augmentation/sign_sum"
"""Which way p moves is all that follows from it, so leaving it out need not turn that round; other values do."""
FIXED_BY_CONFIG = {
    "adam_generator/param_groups": "rates, betas and the like come from the configuration",
    "adam_discriminator/param_groups": "rates, betas and the like come from the configuration",
}
"""A new run has the same, which is tested; the noise images of the generators, too, which are drawn from the seed."""


class Scene:
    """A state in mid-run, the state of a new run, and the bits that the first comes to."""

    def __init__(self, folder: Path) -> None:
        self.config = setup.tiny_config(setup.dataset(folder / "data"), *SETTINGS)
        self.work = setup.trainer(self.config, folder / "run")
        self.new = copied(self.work.state())
        self.work.counters.rollbacks = (
            1  # so that leaving it out shows: other numbers are drawn after a roll-back
        )
        for _ in range(BEFORE):
            self.work.step()
        self.saved = copied(self.work.state())
        self.strengths = []
        for _ in range(AFTER):
            self.work.step()
            self.strengths.append(self.work.state()["augmentation"]["p"])
        self.whole = bits(self.work.state())

    def bits_after(self, state: Mapping[str, Any], steps: int = AFTER) -> str:
        """Return what a training comes to that got ``state`` back."""
        self.work.load(copied(state))
        for _ in range(steps):
            self.work.step()
        return bits(self.work.state())

    def without(self, path: str) -> dict[str, Any]:
        """Return the saved state with one entry as a new run has it."""
        state, part, *keys = copied(self.saved), *path.split("/", 1)
        if not keys:
            state[part] = copied(self.new)[part]
        elif keys[0] in self.new[part]:
            state[part][keys[0]] = copied(self.new)[part][keys[0]]
        else:
            del state[part][keys[0]]
        return state


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("ablations"))


def copied(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint keeps of a state."""
    return decode({name: memoryview(data) for name, data in encode(state).items()})


def bits(state: Mapping[str, Any]) -> str:
    """Return the digest of all that is trained; counters take no part, so that they cannot make the difference."""
    left_out = ("counters", "data", "augmentation")
    return state_digest({part: value for part, value in state.items() if part not in left_out})


def entries(state: Mapping[str, Any]) -> Iterator[str]:
    """Yield the paths of the first and the second level of a state."""
    for part, value in state.items():
        yield part
        yield from (f"{part}/{key}" for key in value)


def is_as_new(scene: Scene, path: str) -> bool:
    """Say whether a new run has the same bits there."""
    part, *keys = path.split("/", 1)
    saved, new = (({"it": s[part][keys[0]]} if keys else s[part]) for s in (scene.saved, scene.new))
    return state_digest(saved) == state_digest(new)


def is_fixed(path: str) -> bool:
    return path in FIXED_BY_CONFIG or path.endswith(".noise")


def test_the_steps_of_the_controls_reach_over_all_that_happens_now_and_then(scene: Scene) -> None:
    steps, optim = range(BEFORE, BEFORE + AFTER), scene.config.optim
    assert sum(step % scene.config.loss.r1_interval == 0 for step in steps) >= 2
    assert sum(step % optim.generator_interval == 0 for step in steps) >= 2
    inside = set(scene.strengths) - {0.0, scene.config.augment.max_p}
    assert len(inside) >= 3, "p has to move twice or more within its ends"
    size = scene.config.batch.size
    betas = [ema.decay(scene.config.average, step * size, size) for step in steps]
    assert betas[0] < betas[-1] == betas[-2], "the ramp-up has to end among these steps"
    assert len(scene.work._dataset) < AFTER * size, "a new epoch has to begin among them"


def test_what_is_given_back_whole_comes_to_the_same_bits(scene: Scene) -> None:
    assert scene.bits_after(scene.saved) == scene.whole
    assert scene.bits_after(scene.saved) == scene.whole, "the trainer of these tests is used again and again"


def test_every_part_of_the_state_is_known_here(scene: Scene) -> None:
    assert set(scene.saved) == PARTS, "say in this file what leaving out the new part shows"
    named = {path for path in (*DOES_NOT_MATTER, *FIXED_BY_CONFIG, *RENEWED) if "/" in path}
    assert named <= set(entries(scene.saved)), "an exception for what is no longer there"


@pytest.mark.parametrize("part", sorted(PARTS - set(DOES_NOT_MATTER) - {"counters"}))
def test_a_part_left_out_shows(scene: Scene, part: str) -> None:
    assert scene.bits_after(scene.without(part)) != scene.whole


def test_a_counter_left_out_shows_unless_it_is_known_not_to_matter(scene: Scene) -> None:
    silent = [
        path
        for path in (f"{part}/{key}" for part in ("counters", "augmentation") for key in scene.saved[part])
        if path not in (*DOES_NOT_MATTER, DECIDES_NEAR_THE_TARGET)
        and scene.bits_after(scene.without(path)) == scene.whole
    ]
    assert silent == []


def test_the_signs_that_p_is_adapted_by_show(scene: Scene) -> None:
    found = set()
    for value in (-100.0, 100.0):
        state = copied(scene.saved)
        state["augmentation"]["sign_sum"] = value
        found.add(scene.bits_after(state))
    assert len(found) == 2
    assert scene.whole in found


@pytest.mark.parametrize("part", ["adam_generator", "adam_discriminator"])
@pytest.mark.parametrize("value", ["step", "exp_avg_sq", "exp_avg"])
def test_a_moment_of_adam_left_out_shows(scene: Scene, part: str, value: str) -> None:
    state = copied(scene.saved)
    for moments in state[part]["state"].values():
        assert set(moments) == {"step", "exp_avg", "exp_avg_sq"}, "an entry without a control"
        moments[value].zero_()
    beta1 = state[part]["param_groups"][0]["betas"][0]
    is_seen = scene.bits_after(state) != scene.whole
    assert is_seen == (value != "exp_avg" or beta1 > 0), (
        "with beta1 = 0 the first moment is the last gradient"
    )


def test_what_is_said_to_be_fixed_is_the_same_in_a_new_run(scene: Scene) -> None:
    fixed = [path for path in entries(scene.saved) if is_fixed(path)]
    assert len(fixed) > len(FIXED_BY_CONFIG)
    assert [path for path in fixed if not is_as_new(scene, path)] == []


def test_what_is_said_not_to_matter_does_not(scene: Scene) -> None:
    for path in (path for path in DOES_NOT_MATTER if path.startswith("counters/")):
        state = copied(scene.saved)
        state["counters"][path.partition("/")[2]] = 3
        assert scene.bits_after(state, 1) == scene.bits_after(scene.saved, 1)
    for path in RENEWED:
        assert scene.bits_after(scene.without(path), 0) != scene.bits_after(scene.saved, 0)
        assert scene.bits_after(scene.without(path), 1) == scene.bits_after(scene.saved, 1)


def test_everything_else_has_moved_away_from_a_new_run(scene: Scene) -> None:
    """An entry that is as in a new run cannot be seen to be missing: it must be named as fixed, with the reason."""
    rest = [path for path in entries(scene.saved) if path not in DOES_NOT_MATTER and not is_fixed(path)]
    assert len(rest) > 150
    assert [path for path in rest if is_as_new(scene, path)] == []


@pytest.mark.long
def test_every_single_entry_left_out_shows(scene: Scene) -> None:
    silent = [
        path
        for path in entries(scene.saved)
        if path not in DOES_NOT_MATTER
        and not is_fixed(path)
        and path not in RENEWED
        and path not in ("counters", DECIDES_NEAR_THE_TARGET)
        and scene.bits_after(scene.without(path)) == scene.whole
    ]
    assert silent == []


def test_a_new_key_would_be_noticed(scene: Scene) -> None:
    """The control of the controls: a state with one entry more, which no step looks at."""
    bigger = copy.copy(scene)
    bigger.saved = {**copied(scene.saved), "unheard_of": {"p": torch.tensor(0.5)}}
    with pytest.raises(AssertionError, match="new part"):
        test_every_part_of_the_state_is_known_here(bigger)
    bigger.saved = copied(scene.saved)
    bigger.saved["counters"]["seen"] = bigger.new["counters"]["step"]
    with pytest.raises(TypeError, match="seen"):  # nothing takes it over
        test_a_counter_left_out_shows_unless_it_is_known_not_to_matter(bigger)


def test_a_position_is_no_part_of_a_state(scene: Scene) -> None:
    """What people are shown follows from the counters alone."""
    scene.work.load(copied(scene.saved))
    step = scene.saved["counters"]["step"]
    images = step * scene.config.batch.size
    assert scene.work.position() == Position(
        step=step, num_steps=scene.config.num_steps, epoch=images // len(scene.work._dataset), images=images
    )
