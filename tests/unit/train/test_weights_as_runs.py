"""Weights in and out by command: the same bits, the same meshes, and a training that goes on from them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from get3d_cluster import config as configuration
from get3d_cluster.cli import snapshot, submission
from get3d_cluster.cli.entry import run as command
from get3d_cluster.errors import CheckpointError, UsageError
from get3d_cluster.runtime.checkpoint import Checkpoints, state_digest
from get3d_cluster.runtime.checkpoint_foreign import load_foreign
from get3d_cluster.runtime.items import run_items
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.train.first_weights import read_only
from jobs import generate
from tests import train_setup as setup
from tests.generate_setup import trained
from tests.sessions import session_of

NETWORKS = ("generator", "generator_ema", "discriminator")
PLAIN = ("generator.fields.sphere_gain=0", "generator.fields.sdf_gain=1")


@pytest.fixture(autouse=True)
def _small_snapshot(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tmp_path_factory.mktemp("repository")
    (small / "get3d_cluster").mkdir()
    (small / "get3d_cluster" / "__init__.py").write_text("")
    monkeypatch.setattr(
        submission, "write_snapshot", lambda folder, without: snapshot.write_snapshot(folder, small)
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return trained(tmp_path_factory.mktemp("weights"), *PLAIN)


@pytest.fixture(scope="module")
def file(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "mine.pt"
    assert command(["export-weights", str(run.path), str(path)]) == 0
    return path


def imported(run: RunFolder, file: Path, folder: Path, *words: str) -> RunFolder:
    fixed = ["import-weights", str(file), "--config", str(run.config_path), "--runs", str(folder / "runs")]
    assert command([*fixed, *words]) == 0
    return RunFolder.open(folder / "runs" / file.stem)


def state_of(run: RunFolder, step: int) -> dict[str, Any]:
    return read_only(run).read_step(step).state


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert command(list(words)) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_out_and_in_again_is_the_same_bit_for_bit(run: RunFolder, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"other{suffix}"
    assert command(["export-weights", str(run.path), str(file), "--step", "1"]) == 0
    again = imported(run, file, tmp_path)
    before, after = state_of(run, 1), state_of(again, 0)
    assert set(after) == set(NETWORKS)
    assert state_digest(after) == state_digest({part: before[part] for part in NETWORKS})
    twice = tmp_path / f"twice{suffix}"
    assert command(["export-weights", str(again.path), str(twice)]) == 0
    assert twice.read_bytes() == file.read_bytes()


def test_imported_weights_generate_the_meshes_of_the_run_itself(
    run: RunFolder, file: Path, tmp_path: Path
) -> None:
    made = []
    for name, source in (("own", run), ("imported", imported(run, file, tmp_path))):
        small = ["num_shapes=2", "texture_px=32", "view_px=16", "turntable_every=0", "w_avg_samples=0"]
        out = tmp_path / name
        config = configuration.load(generate.Config, None, [*small, f"run={source.path}", f"out={out}"])
        session = session_of(tmp_path / f"generate-{name}")
        run_items(generate.make(config, session), session)
        made.append({path.name: path.read_bytes() for path in out.glob("shape-*") if path.suffix != ".json"})
        assert any(json.loads(path.read_text())["files"] for path in out.glob("shape-*.json"))
    assert made[0] == made[1]
    assert any(name.endswith(".glb") for name in made[0])


def test_an_imported_run_is_done_and_says_what_it_is(
    run: RunFolder, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = imported(run, file, tmp_path)
    shown = capsys.readouterr().out
    assert "CC BY-NC-SA" in shown
    assert f"init_from={again.path}" in shown
    about = json.loads((again.path / "imported.json").read_text())
    assert about["file"] == str(file)
    assert about["digest"] == read_only(again).read_step(0).digest
    for verb in (["status"], ["checkpoints", "mine"], ["checkpoints", "mine", "--verify"]):
        assert command([*verb, "--runs", str(again.path.parent)]) == 0
    assert "done" in capsys.readouterr().out.lower()


def test_a_file_is_listed_without_becoming_a_run(
    run: RunFolder, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["import-weights", str(file), "--config", str(run.config_path), "--runs", str(tmp_path / "runs")]
    assert command([*words, "--list"]) == 0
    shown = capsys.readouterr().out
    assert "mlp_synthesis_tex.layers.1.affine.weight" in shown
    assert "trunk.blocks.1.convs.0.noise" in shown
    assert command([*words, "--json"]) == 0
    kinds = {line["kind"] for line in json.loads(capsys.readouterr().out)}
    assert kinds == {"matched", "unused"}
    assert not (tmp_path / "runs").exists()


def test_what_cannot_be_imported_leaves_no_run(
    run: RunFolder, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = ["import-weights", str(file), "--runs", str(tmp_path / "runs")]
    assert "--config FILE" in refused(capsys, *fixed)
    wrong = (*fixed, "--config", str(run.config_path), "generator.latent_channels=16")
    assert "[16] by this configuration" in refused(capsys, *wrong)
    assert "[16] by this configuration" in refused(capsys, *wrong, "--list")
    assert not (tmp_path / "runs").exists()
    imported(run, file, tmp_path)
    assert "exists already" in refused(capsys, *fixed, "--config", str(run.config_path))
    assert "exists already" in refused(capsys, "export-weights", str(run.path), str(file))
    assert "has no checkpoint of step 7" in refused(
        capsys, "export-weights", str(run.path), str(tmp_path / "b.pt"), "--step", "7"
    )


def test_a_published_file_s_name_tells_its_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"G": {}, "G_ema": {}, "D": {}}, tmp_path / "shapenet_chair.pt")
    words = ["import-weights", str(tmp_path / "shapenet_chair.pt"), "--runs", str(tmp_path / "runs")]
    assert "G w_avg_geo is missing: there is no mapping_geo.w_avg" in refused(capsys, *words)


# A training that goes on from weights


def test_a_training_begins_with_the_weights_of_another_run_and_keeps_their_average(
    run: RunFolder, file: Path, tmp_path: Path
) -> None:
    again = imported(run, file, tmp_path)
    data = configuration.read_run_config(type(setup.tiny_config(Path("x"))), run.config_path).data.path
    config = setup.tiny_config(
        Path(data), "generator.grid.close_boundary=true", *PLAIN, f"init_from={again.path}"
    )
    work = setup.trainer(config, tmp_path / "tuned")
    work._begin()
    began = {part: work.state()[part] for part in NETWORKS}
    assert state_digest(began) == state_digest({part: state_of(run, 2)[part] for part in NETWORKS})
    kept = {name: tensor.clone() for name, tensor in work.average.named_parameters()}
    work.step()
    assert work.counters.images == 8
    raw = dict(work.generator.named_parameters())
    moved = [name for name, old in kept.items() if not torch.equal(old, raw[name])]
    assert moved
    for name in moved:  # without a ramp-up the average stays nearer to where it was than to the new weights
        assert not torch.equal(work.average.get_parameter(name), raw[name])


def test_coming_back_before_the_first_save_takes_the_same_weights(run: RunFolder, tmp_path: Path) -> None:
    data = configuration.read_run_config(type(setup.tiny_config(Path("x"))), run.config_path).data.path
    source = trained(tmp_path / "source", *PLAIN)
    overrides = ("generator.grid.close_boundary=true", *PLAIN, f"init_from={source.path}")
    config = setup.tiny_config(Path(data), *overrides)
    first = setup.trainer(config, tmp_path / "tuned")
    first.step()
    checkpoints = Checkpoints(read_only(source).tiers["run"], read_only(source).config, lambda: None)
    checkpoints.save(9, state_of(source, 1), {"epoch": 0, "images": 72})  # other weights, and newer
    second = setup.trainer(config, tmp_path / "tuned")
    second.step()
    assert state_digest(second.state()) == state_digest(first.state())
    checkpoints.tiers["run"].delete("step-000000002")
    with pytest.raises(CheckpointError, match="init_from="):
        setup.trainer(config, tmp_path / "tuned").step()


def test_a_training_that_goes_back_to_the_beginning_begins_with_those_weights_again(
    run: RunFolder, tmp_path: Path
) -> None:
    data = configuration.read_run_config(type(setup.tiny_config(Path("x"))), run.config_path).data.path
    source = trained(tmp_path / "source", *PLAIN)
    overrides = ("generator.grid.close_boundary=true", *PLAIN, f"init_from={source.path}")
    work = setup.trainer(setup.tiny_config(Path(data), *overrides), tmp_path / "tuned")
    for _ in range(2):
        work.step()
    work.roll_back(None)
    work._begin()
    began = {part: work.state()[part] for part in NETWORKS}
    assert state_digest(began) == state_digest({part: state_of(source, 2)[part] for part in NETWORKS})


def test_weights_of_other_networks_and_no_run_at_all_are_refused(run: RunFolder, tmp_path: Path) -> None:
    data = configuration.read_run_config(type(setup.tiny_config(Path("x"))), run.config_path).data.path
    other = setup.tiny_config(Path(data), "generator.fields.hidden_channels=9", f"init_from={run.path}")
    with pytest.raises(UsageError, match="has other networks than this configuration"):
        setup.trainer(other, tmp_path / "other").step()
    none = setup.tiny_config(Path(data), f"init_from={tmp_path / 'none'}")
    with pytest.raises(UsageError, match="init_from="):
        setup.trainer(none, tmp_path / "none-of-it").step()


def test_weights_alone_are_not_gone_on_with_as_if_they_were_a_training(
    run: RunFolder, file: Path, tmp_path: Path
) -> None:
    again = imported(run, file, tmp_path)
    data = configuration.read_run_config(type(setup.tiny_config(Path("x"))), run.config_path).data.path
    work = setup.trainer(setup.tiny_config(Path(data), *PLAIN), tmp_path / "as-it-is")
    with pytest.raises(UsageError, match="holds weights alone") as raised:
        work.load(state_of(again, 0))
    assert "init_from=" in raised.value.way_out


def test_a_file_holds_plain_tensors(file: Path) -> None:
    held = load_foreign(file)
    assert set(held) == {"G", "G_ema", "D"}
    assert all(isinstance(tensor, torch.Tensor) for tensors in held.values() for tensor in tensors.values())
