"""The trainer is exact: everything that decides later steps is in its state, and nothing else is."""

import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from get3d_cluster import config as configuration
from get3d_cluster.cli.entry import run as command
from get3d_cluster.core.job import JobSpec
from get3d_cluster.errors import Get3dError, HeldError, UsageError
from get3d_cluster.get3d.discriminator import Discriminator
from get3d_cluster.get3d.generator import Generator
from get3d_cluster.runtime.checkpoint import decode, encode, state_digest
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.train.finite import trouble_of
from get3d_cluster.train.phases import DISCRIMINATOR_NUMBERS, GENERATOR_NUMBERS, losses_of
from jobs.train import Config
from tests import train_setup as setup

BEFORE, AFTER = 4, 3
"""Steps before and after the checkpoint: both sides hold an R1 phase (every 3) and a zero step (every 2)."""


def advanced(work: Any, steps: int) -> Any:
    for _ in range(steps):
        work.step()
    return work


def copied(state: Any) -> dict[str, Any]:
    """Return what a checkpoint keeps of a state."""
    return decode({name: memoryview(data) for name, data in encode(state).items()})


def tensors_digest(work: Any) -> str:
    """Return a digest of what is trained; counters do not take part, so that they cannot make the difference."""
    return state_digest(
        {key: value for key, value in work.state().items() if key not in {"counters", "data"}}
    )


class Scene:
    """A dataset, a state in mid-run, the state of a new run, and what should come of the first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = setup.dataset(folder / "data")
        self.config = setup.tiny_config(self.data)
        work = advanced(self.trainer("uninterrupted"), BEFORE)
        self.saved = copied(work.state())
        self.new = copied(self.trainer("new").state())
        advanced(work, AFTER)
        self.whole, self.tensors = state_digest(work.state()), tensors_digest(work)

    def trainer(self, name: str, *overrides: str) -> Any:
        config = setup.tiny_config(self.data, *overrides) if overrides else self.config
        return setup.trainer(config, self.folder / name)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("trainer"))


def test_a_resumed_run_ends_with_the_bits_of_the_uninterrupted_one(scene: Scene) -> None:
    work = scene.trainer("resumed")
    work.load(copied(scene.saved))
    assert state_digest(work.state()) == state_digest(scene.saved)
    assert state_digest(advanced(work, AFTER).state()) == scene.whole


@pytest.mark.parametrize(
    "left_out",
    [
        "generator",
        "discriminator",
        "generator_ema",
        "adam_generator",
        "adam_discriminator",
        "counters.step",
        "counters.images",
        "counters.position",
    ],
)
def test_leaving_a_part_out_of_the_state_shows(scene: Scene, left_out: str) -> None:
    """The control of the test above: it would notice if this part were forgotten."""
    part, _, key = left_out.partition(".")
    state, new = copied(scene.saved), copied(scene.new)  # loading keeps the tensors it is given
    if key:
        state[part][key] = new[part][key]
    else:
        state[part] = new[part]
    work = scene.trainer("incomplete")
    work.load(state)
    assert tensors_digest(advanced(work, AFTER)) != scene.tensors


def test_every_part_of_the_state_has_its_control(scene: Scene) -> None:
    cases = next(
        mark.args[1]
        for mark in test_leaving_a_part_out_of_the_state_shows.pytestmark
        if mark.args[0] == "left_out"
    )
    decisive = ("step", "images", "position")
    rest = set(scene.saved["counters"]) - set(decisive)
    assert all(name.startswith(("skipped", "rollback")) for name in rest), "see test_ablations.py"
    counters = {f"counters.{name}" for name in decisive}
    assert set(cases) == {*scene.saved, *counters} - {"counters", "data"}


@pytest.mark.parametrize("key", ["fingerprint", "size", "order_version", "seed"])
def test_a_checkpoint_of_other_data_is_refused(scene: Scene, key: str) -> None:
    state = scene.saved | {"data": scene.saved["data"] | {key: "another"}}
    with pytest.raises(UsageError, match=key):
        scene.trainer("refused").load(state)


def test_a_changed_dataset_is_refused(scene: Scene, tmp_path: Path) -> None:
    other = setup.dataset(tmp_path / "data", tint=9)
    work = setup.trainer(setup.tiny_config(other), tmp_path / "run")
    with pytest.raises(UsageError, match="is not what this run was trained on"):
        work.load(copied(scene.saved))


def rates_of(work: Any) -> list[float]:
    return [work.state()[f"adam_{name}"]["param_groups"][0]["lr"] for name in ("generator", "discriminator")]


def test_rates_of_the_configuration_overrule_those_saved(scene: Scene) -> None:
    work = scene.trainer("slower", "optim.lr_generator=1e-4", "optim.lr_discriminator=2e-4")
    work.load(copied(scene.saved))
    lr_g, lr_d = rates_of(advanced(work, 1))
    assert lr_g == pytest.approx(1e-4 * 2 / 3)
    assert lr_d == pytest.approx(2e-4 * 3 / 4)


def test_rates_fall_with_the_images_and_go_on_falling_after_a_resume(scene: Scene) -> None:
    falling = ("optim.decay_images=[8, 24]", "optim.decay_to=0.5")
    whole = advanced(scene.trainer("falling", *falling), 1)
    full = rates_of(whole)
    advanced(whole, 1)
    saved = copied(whole.state())
    factors = [
        [rate / first for rate, first in zip(rates_of(advanced(whole, 1)), full, strict=True)]
        for _ in range(3)
    ]
    assert factors == [pytest.approx([factor] * 2) for factor in (0.75, 0.5, 0.5)]
    resumed = scene.trainer("fell", *falling)
    resumed.load(saved)
    assert state_digest(advanced(resumed, 3).state()) == state_digest(whole.state())


def test_looking_changes_no_bit(scene: Scene) -> None:
    work = scene.trainer(
        "watched",
        "watch.preview_every_s=1e-6",
        "watch.measure_every_s=1e-6",
        "watch.budget=1e6",
        "watch.preview_shapes=2",
        "watch.measure_images=4",
    )
    assert state_digest(advanced(work, BEFORE).state()) == state_digest(scene.saved)
    run = scene.folder / "watched"
    assert sorted(path.name for path in (run / "samples").glob("*.png")) == [
        f"{images:09d}.png" for images in range(0, 8 * BEFORE + 1, 8)
    ]
    row = read_rows(run / "metrics.jsonl")[-1]
    assert min(row["frechet_pooled"], row["frechet_floor"]) >= 0
    assert 0 <= row["silhouette_iou"] <= 1
    assert 0 <= row["silhouette_floor"] <= 1


def test_rows_are_finite_one_a_step_and_time_goes_on_over_attempts(scene: Scene) -> None:
    advanced(scene.trainer("rows"), BEFORE)
    work = scene.trainer("rows")  # the next attempt
    work.load(copied(scene.saved))
    advanced(work, 1)
    rows = read_rows(scene.folder / "rows" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, BEFORE + 2))
    assert all(math.isfinite(value) for row in rows for value in row.values() if not isinstance(value, str))
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)
    assert rows[0].keys() >= {"images", "epoch", "loss_g", "loss_d", "r1", "images_per_s"}


def test_every_part_learns(scene: Scene) -> None:
    for part in ("generator", "discriminator", "generator_ema"):
        same = [
            name
            for name, tensor in scene.new[part].items()
            if tensor.is_floating_point() and torch.equal(tensor, scene.saved[part][name])
        ]
        assert [name for name in same if not name.endswith("noise")] == [], part


class Poisoned:
    """A dataset whose images are not finite, or times ``factor``, while ``is_on``."""

    def __init__(self, dataset: Any, factor: float = math.nan) -> None:
        self._dataset, self._factor, self.is_on = dataset, factor, True

    def __len__(self) -> int:
        return len(self._dataset)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def batch(self, indices: Any) -> tuple[torch.Tensor, torch.Tensor]:
        images, cameras = self._dataset.batch(indices)
        return (images * self._factor if self.is_on else images), cameras


def test_a_phase_that_is_not_finite_is_skipped_and_the_others_go_on(scene: Scene) -> None:
    work = scene.trainer("poisoned")
    work._dataset = Poisoned(work._dataset)
    before = copied(work.state())
    work.step()
    after = copied(work.state())
    for part in ("discriminator", "adam_discriminator"):
        assert state_digest(after[part]) == state_digest(before[part])
    assert state_digest(after["generator"]) != state_digest(before["generator"])
    assert after["counters"] | {"step": 1} == after["counters"]
    assert (after["counters"]["skipped_steps"], after["counters"]["skipped_in_a_row"]) == (1, 1)
    event = read_rows(scene.folder / "poisoned" / "events.jsonl")[-1]
    assert event["event"] == "skipped"
    assert [what.partition(":")[0] for what in event["what"]] == ["discriminator", "r1"]
    work._dataset.is_on = False
    work.step()
    assert (work.counters.skipped_steps, work.counters.skipped_in_a_row) == (1, 0)
    assert all(tensor.isfinite().all() for tensor in work.discriminator.state_dict().values())


def test_a_loss_beyond_the_limit_is_as_good_as_not_finite(scene: Scene) -> None:
    """With and without the limit, on images that make it large and finite; step 1 has no R1 phase."""
    losses, digests = [], []
    for limit in ("0", "40"):
        work = advanced(scene.trainer(f"absurd{limit}", f"guard.max_loss={limit}"), 1)
        assert work.counters.skipped_steps == 0
        before = copied(work.state())
        work._dataset = Poisoned(work._dataset, factor=1e4)
        work.step()
        after = copied(work.state())
        losses.append(read_rows(work._session.run.metrics_path)[-1]["loss_d"])
        digests.append([state_digest(state["adam_discriminator"]) for state in (before, after)])
        assert state_digest(after["generator"]) != state_digest(before["generator"])
    assert 40 < losses[0] == losses[1] < math.inf
    assert digests[0][0] != digests[0][1]
    assert digests[1][0] == digests[1][1]
    assert (after["counters"]["skipped_steps"], after["counters"]["skipped_in_a_row"]) == (1, 1)
    event = read_rows(work._session.run.events_path)[-1]
    assert event["event"] == "skipped"
    (what,) = event["what"]
    assert what.startswith("discriminator: loss_d_")
    assert what.endswith("beyond guard.max_loss=40")


def test_a_generators_loss_below_minus_the_limit_counts_and_logits_do_not() -> None:
    model, numbers = torch.nn.Linear(1, 1), torch.zeros(len(GENERATOR_NUMBERS))
    numbers[GENERATOR_NUMBERS.index("loss_g_mask")] = -50.0
    assert trouble_of(model, numbers, losses_of("generator", numbers), 49.0) == (
        "loss_g_mask=-50.0 beyond guard.max_loss=49"
    )
    assert trouble_of(model, numbers, losses_of("generator", numbers), 50.0) == ""
    numbers = torch.zeros(len(DISCRIMINATOR_NUMBERS))
    numbers[DISCRIMINATOR_NUMBERS.index("logit_real_rgb")] = 1e6
    assert trouble_of(model, numbers, losses_of("discriminator", numbers), 49.0) == ""
    assert losses_of("r1", torch.full((2,), 1e6)) == {}


def test_steps_beyond_the_limit_in_a_row_go_back(scene: Scene) -> None:
    work = advanced(
        scene.trainer(
            "beyond", "guard.max_loss=40", "guard.max_skipped_steps=2", "guard.rollback_every_steps=2"
        ),
        3,
    )
    work._dataset = Poisoned(work._dataset, factor=1e4)
    work.step()
    assert work.rollback_step() is None
    work.step()
    assert work.rollback_step() == 2


def test_a_diverged_run_is_held_with_a_way_out(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    work = scene.trainer("diverged", "guard.max_skipped_steps=3", "guard.max_rollbacks=0")
    work._dataset = Poisoned(work._dataset)
    advanced(work, 2)
    with pytest.raises(HeldError, match=r"step 3: 3 steps in a row .* discriminator") as caught:
        work.step()
    way_out = caught.value.way_out
    assert "optim.lr_generator=0.001" in way_out
    run = work._session.run
    run.write_spec(JobSpec(name=run.name, job="train", kind="steps", created="now"))
    run.config_path.write_text(configuration.save_text(work.config))
    verb, *words = shlex.split(way_out.partition("python launch.py ")[2])
    assert verb == "submit"
    assert command(["plan", *words]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"continue {run.path}")
    changed = [line.split(":")[0].strip() for line in out.splitlines() if " -> " in line]
    assert changed == ["optim.lr_generator", "optim.lr_discriminator"]
    assert command(["plan", *(word for word in words if word != "--allow-config-change")]) == 2


def test_a_full_disk_costs_a_picture_not_the_training(scene: Scene) -> None:
    work = scene.trainer("full", "watch.preview_every_s=10", "watch.preview_shapes=1")
    (scene.folder / "full" / "samples").write_text("a file where the folder should be")
    work.step()
    assert read_rows(scene.folder / "full" / "events.jsonl")[-1]["event"] == "watch-failed"


@pytest.mark.parametrize(
    ("step", "overrides", "decays"),
    [
        (8, (), 1),
        (6, (), 0),
        (7, (), 0),
        (8, ("optim.generator_zero_step=false",), 0),
        (8, ("optim.generator_interval=0",), 0),
    ],
    ids="{}".format,
)
def test_a_zero_step_moves_moments_and_no_weight(
    scene: Scene, step: int, overrides: tuple[str, ...], decays: int
) -> None:
    def moments(work: Any) -> float:
        return sum(float(s["exp_avg_sq"].sum()) for s in work.state()["adam_generator"]["state"].values())

    work = advanced(scene.trainer("zero", "optim.generator_interval=4", *overrides), 1)
    weights, before = copied(work.state())["generator"], moments(work)
    work.counters.step = step
    work._zero_step()
    assert state_digest(copied(work.state())["generator"]) == state_digest(weights)
    decay = work.state()["adam_generator"]["param_groups"][0]["betas"][1]
    assert moments(work) == pytest.approx(before * decay**decays, rel=1e-4)
    assert before > 0


def test_reusing_fakes_draws_no_second_ones(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    from get3d_cluster.train import trainer as module

    def counting(generate: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
        return lambda *given: calls.append(1) or generate(*given)

    calls: list[int] = []
    monkeypatch.setattr(module, "generate", counting(module.generate, calls))
    fresh = advanced(scene.trainer("fresh"), 1)
    assert len(calls) == 2 * scene.config.batch.num_shards
    calls.clear()
    reused = advanced(scene.trainer("reused", "loss.reuse_fakes=true"), 1)
    assert len(calls) == scene.config.batch.num_shards
    for work in (fresh, reused):
        assert work.generator.w_avg_geo.abs().sum() > 0


def test_the_paper_s_sizes_have_the_published_numbers_of_parameters() -> None:
    config = configuration.load(Config, setup.CONFIGS / "car.yaml", [])
    with torch.device("meta"):
        models = Generator(config.generator), Discriminator(config.discriminator)
    generator, discriminator = (sum(p.numel() for p in model.parameters()) for model in models)
    assert generator == 34_314_180
    assert round(discriminator / 1e6, 2) == 60.34
    assert config.batch.size == 32


def test_only_what_changes_no_bit_may_change_between_attempts() -> None:
    changeable = {key.path for key in configuration.keys(Config) if key.changeable}
    sections = ("watch.", "guard.", "resources.", "checkpoint.", "retry.", "data.read.")
    reduction = {f"reduction.{key}" for key in ("bucket_mb", "via", "replica_check_every")}
    free = {
        "num_images",
        "data.path",
        "data.allow_azimuth_gap",
        *reduction,
    }  # another place; other images are refused
    assert {path for path in changeable if not path.startswith(sections)} == free


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("batch.shard_size=3", "batch.shard_size"),
        ("workers_per_node=5", "batch.num_shards"),
        ("loss.r1_interval=0", "r1_interval"),
        ("data.elevation_range_deg=[30, 0]", "elevation_range_deg"),
        ("discriminator.channels=[] discriminator.image_size_px=16", "image_size_px=8 differs"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused_by_name(override: str, key: str) -> None:
    with pytest.raises(UsageError, match=key):
        setup.tiny_config(Path("data"), *override.replace(", ", ",").split())


@pytest.mark.parametrize(
    "override",
    [
        "num_images=0", "seed=-1", "seed=18446744073709551616",
        "retry.max_crashes=0", "retry.max_without_progress=0", "retry.backoff_s=-1",
        "watch.log_every_steps=0", "watch.preview_shapes=0", "watch.measure_images=0", "watch.measure_images=1",
        "watch.preview_every_s=-1", "watch.measure_every_s=-1", "watch.budget=0", "guard.max_skipped_steps=0",
        "optim.lr_generator=0", "optim.lr_discriminator=-1", "optim.lr_generator=.inf", "optim.eps=0",
        "optim.decay_images=[9, 8]", "optim.decay_to=0", "optim.betas=[0, 1]", "optim.betas=[-0.1, 0.9]",
        "optim.generator_interval=-1",
        "average.half_life_images=0", "average.ramp_up=-1",
        "loss.gamma_rgb=-1", "loss.gamma_mask=-1", "loss.sdf_entropy=-1", "loss.empty_shape=-1",
        "loss.mixing_probability=1.1", "data.elevation_range_deg=[0, 91]",
    ],
)  # fmt: skip
def test_a_value_that_cannot_work_is_refused_with_key_value_and_way_out(override: str) -> None:
    with pytest.raises(UsageError) as caught:
        setup.tiny_config(Path("data"), override)
    assert caught.value.what.startswith(f"{override.partition('=')[0]}=")
    assert caught.value.way_out


@pytest.mark.parametrize("name", ["tiny_cpu", "tiny_chair", "car", "tiny_test"])
def test_the_kept_configurations_load_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    config = configuration.load(Config, setup.CONFIGS / f"{name}.yaml", [])
    path = tmp_path / "config.yaml"
    path.write_text(configuration.save_text(config))
    assert configuration.read_run_config(Config, path) == config
    assert json.dumps(configuration.plain(config))


def test_too_little_memory_on_a_gpu_says_what_to_set(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    work = scene.trainer("large")

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nand more")

    monkeypatch.setattr("get3d_cluster.train.trainer.generate", fail)
    with pytest.raises(Get3dError, match=r"shard_size=2 .* 2\.00 GiB") as raised:
        work.step()
    assert "batch.shard_size=1 batch.num_shards=8" in raised.value.way_out
    assert "precision.amp=bf16" in raised.value.way_out
    assert raised.value.exit_code == 1  # it may be another process: it comes back, a few times
    assert len(str(raised.value).splitlines()) == 1
