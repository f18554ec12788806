"""The job that measures checkpoints: what it writes, what it leaves out and why, what it refuses."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from get3d_cluster import config as configuration
from get3d_cluster.errors import CheckpointError, UsageError
from get3d_cluster.evaluation import features
from get3d_cluster.evaluation.moments import gaussian_of
from get3d_cluster.evaluation.progress import frechet_distance
from get3d_cluster.runtime.ending import End
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.items import run_items
from get3d_cluster.runtime.run_folder import RunFolder
from jobs import _evaluation, evaluate
from tests.sessions import session_of
from tests.trained_run import models, trained

SMALL = (
    "num_images=12",
    "num_shapes=6",
    "shape_points=64",
    "kid_subset_size=8",
    "kid_subsets=12",
    "light_field=false",
)


def evaluated(run: RunFolder, folder: Path, *overrides: str) -> list[dict[str, Any]]:
    """Return the results, by step."""
    out = folder / "out"
    config = configuration.load(evaluate.Config, None, [*SMALL, f"run={run.path}", f"out={out}", *overrides])
    session = session_of(folder / "evaluate")
    assert run_items(evaluate.make(config, session), session).end is End.FINISHED
    return [json.loads(path.read_text()) for path in sorted(out.glob("step-*.json"))]


def value_of(result: dict[str, Any], name: str) -> float:
    (found,) = [metric["value"] for metric in result["metrics"] if metric["name"] == name]
    return found


def why(result: dict[str, Any], name: str) -> str:
    (found,) = [each["why"] for each in result["left_out"] if each["name"] == name]
    return found


def inception(folder: Path, width: int = 96) -> Path:
    """Save a network that looks like an Inception from outside: random projections of 8 x 8 pixels."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.randn(192, width, generator=torch.Generator().manual_seed(0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.float().flatten(1) @ self.weight / 255

    path = folder / "inception.pt"
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Net()).save(path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return trained(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="module")
def result(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("result")
    (found,) = evaluated(
        run, folder, f"references={models(folder / 'models')}", "light_field=true", "num_shapes=3"
    )
    assert not list((folder / "out" / "work").glob("step-*")), "what only the checkpoint needed is cleared up"
    return found


def test_the_newest_checkpoint_is_measured_by_images_shapes_and_meshes(result: dict[str, Any]) -> None:
    assert (result["format"], result["run"], result["step"], result["images"]) == (1, "training", 2, 16)
    assert (result["seed"], len(result["checkpoint"])) == (0, 64)
    names = [metric["name"] for metric in result["metrics"]]
    assert names[:4] == [
        "frechet_random_conv",
        "squared_mmd_random_conv",
        "precision_random_conv",
        "recall_random_conv",
    ]
    assert names[4:10] == ["cov_cd", "mmd_cd", "1nna_cd", "cov_lfd", "mmd_lfd", "1nna_lfd"]
    assert value_of(result, "mesh_watertight") == 1
    assert value_of(result, "mesh_num_faces") > 10
    assert 0 < value_of(result, "cov_cd") <= 1
    assert value_of(result, "mmd_lfd") > 0


def test_each_number_says_what_it_was_made_from(result: dict[str, Any]) -> None:
    first, second = result["metrics"][:2]
    assert (first["num_generated"], first["num_reference"]) == (12, 12)
    assert first["features"]["name"] == "random-conv"
    assert len(first["features"]["digest"]) == 64
    assert "singular" in first["note"]
    assert second["error"] > 0
    assert second["note"] == "12 subsets of 8"
    cov = next(metric for metric in result["metrics"] if metric["name"] == "cov_cd")
    assert (cov["num_generated"], cov["num_reference"]) == (3, 2)


def test_offline_features_are_never_called_fid(result: dict[str, Any]) -> None:
    assert not {"fid", "kid", "precision", "recall"} & {metric["name"] for metric in result["metrics"]}
    assert "features.path" in why(result, "fid, kid")


def test_an_inception_gives_fid_and_a_narrower_network_does_not(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "INCEPTION_FEATURES", 96)  # of 2048 the roots alone take ten seconds
    only = ("geometry=false", "num_images=6", f"features.path={inception(tmp_path)}")
    (found,) = evaluated(run, tmp_path / "wide", *only)
    assert {metric["name"] for metric in found["metrics"]} == {"fid", "kid", "precision", "recall"}
    assert found["metrics"][0]["features"]["name"] == "inception"
    inception(tmp_path, width=64)
    (found,) = evaluated(run, tmp_path / "narrow", *only)
    assert found["metrics"][0]["name"] == "frechet_inception"
    assert "64 numbers" in why(found, "fid, kid")


def test_the_distance_is_that_of_the_features_all_at_once(run: RunFolder, tmp_path: Path) -> None:
    from jobs._evaluation_setting import Setting
    from jobs._samples import random_pixels

    (found,) = evaluated(run, tmp_path, "geometry=false", "num_images=70", "features.offline=pooled")
    config = configuration.load(
        evaluate.Config, None, [f"run={run.path}", "features.offline=pooled", "batch=3"]
    )
    setting = Setting(config, run, tmp_path / "other", "cpu")
    from jobs._measured import Measured

    measured = Measured(setting, 2, found["checkpoint"])
    weights = measured.stages()[0][0]
    weights.path.parent.mkdir(parents=True)
    weights.path.write_bytes(weights.make())
    fakes = setting.extractor.features(random_pixels(measured._generator, setting.law, range(70)))
    images, _ = setting.dataset.batch(range(len(setting.dataset)))
    reals = setting.extractor.features((images[:, :3] * 127.5 + 127.5).round().to(torch.uint8))
    expected = frechet_distance(gaussian_of([fakes]), gaussian_of([reals]))
    assert value_of(found, "frechet_pooled") == pytest.approx(expected, rel=1e-4)
    assert found["metrics"][0]["num_reference"] == len(setting.dataset) == 20


def test_too_few_images_leave_numbers_out_and_say_why(run: RunFolder, tmp_path: Path) -> None:
    (found,) = evaluated(run, tmp_path, "geometry=false", "num_images=1")
    assert found["metrics"] == []
    assert "2 images" in why(found, "frechet_random_conv")
    assert "needs 2" in why(found, "squared_mmd_random_conv")
    assert "needs 4" in why(found, "recall_random_conv")


def test_a_single_reference_leaves_out_what_needs_two_and_a_bad_one_is_named(
    run: RunFolder, tmp_path: Path
) -> None:
    folder = models(tmp_path / "models")
    (folder / "b" / "model.obj").write_text("v 0 0 0\n")
    (found,) = evaluated(run, tmp_path, "num_images=0", f"references={folder}")
    assert value_of(found, "cov_cd") == 1
    assert "1 references" in why(found, "1nna_cd")
    assert "no surface" in why(found, "reference b/model.obj") or "cannot be read" in why(
        found, "reference b/model.obj"
    )
    assert why(found, "images") == "num_images=0"


def test_the_same_settings_give_the_same_numbers_and_another_seed_others(
    run: RunFolder, result: dict[str, Any], tmp_path: Path
) -> None:
    folder = models(tmp_path / "models")
    (again,) = evaluated(run, tmp_path / "again", f"references={folder}", "light_field=true", "num_shapes=3")
    assert again == result
    (other,) = evaluated(run, tmp_path / "other", f"references={folder}", "seed=1")
    assert other["settings_key"] != result["settings_key"]
    assert value_of(other, "frechet_random_conv") != value_of(result, "frechet_random_conv")
    assert value_of(other, "mmd_cd") != value_of(result, "mmd_cd")


def test_every_checkpoint_is_measured_and_a_result_is_made_once(run: RunFolder, tmp_path: Path) -> None:
    small = ("geometry=false", "every=true")
    first, second = evaluated(run, tmp_path, *small)
    assert (first["step"], second["step"]) == (1, 2)
    assert value_of(first, "frechet_random_conv") != value_of(second, "frechet_random_conv")
    paths = sorted((tmp_path / "out").glob("step-*.json"))
    kept = [path.stat().st_mtime_ns for path in paths]
    table = paths[0].with_suffix(".txt").read_text()
    assert table.startswith("training, step 1, 8 images, seed 0\nmetric ")
    paths[1].unlink()
    shutil.rmtree(tmp_path / "evaluate")
    assert evaluated(run, tmp_path, *small) == [first, second]
    assert paths[0].stat().st_mtime_ns == kept[0]
    told = [row for row in read_rows(tmp_path / "evaluate" / "events.jsonl") if row["event"] == "evaluated"]
    assert [row["step"] for row in told] == [2]
    assert told[0]["frechet_random_conv"] == value_of(second, "frechet_random_conv")


def test_other_settings_have_a_file_of_their_own(run: RunFolder, tmp_path: Path) -> None:
    evaluated(run, tmp_path, "geometry=false")
    shutil.rmtree(tmp_path / "evaluate")
    assert len(evaluated(run, tmp_path, "geometry=false", "num_images=10")) == 2


def test_a_resumed_run_goes_on_although_the_training_let_the_checkpoint_go(
    run: RunFolder, tmp_path: Path
) -> None:
    copy = RunFolder(tmp_path / "training")
    shutil.copytree(run.path, copy.path)
    overrides = [*SMALL, f"run={copy.path}", f"out={tmp_path / 'out'}", "geometry=false"]
    session = session_of(tmp_path / "evaluate")
    work = evaluate.make(configuration.load(evaluate.Config, None, overrides), session)
    while not list((tmp_path / "out").glob("work/step-*/weights.safetensors")):
        work.step()
    work.close()
    shutil.rmtree(copy.checkpoints_dir)
    (found,) = evaluated(copy, tmp_path, "geometry=false")
    assert found["step"] == 2


def test_a_checkpoint_that_went_away_unread_is_named_or_with_every_passed_over(
    run: RunFolder, tmp_path: Path
) -> None:
    sources = tmp_path / "one" / "evaluate" / "sources"
    sources.mkdir(parents=True)
    gone = {"step": 1, "images": 8, "digest": "0" * 64}
    (sources / "step-000000001.json").write_text(json.dumps(gone))
    with pytest.raises(CheckpointError, match="step=1 is gone"):
        evaluated(run, tmp_path / "one", "geometry=false")
    shutil.copytree(tmp_path / "one" / "evaluate" / "sources", tmp_path / "all" / "evaluate" / "sources")
    found = evaluated(run, tmp_path / "all", "geometry=false", "every=true")
    assert [each["step"] for each in found] == [1, 2]  # looked up anew, with the digest it has
    told = read_rows(tmp_path / "all" / "evaluate" / "events.jsonl")
    assert [row["step"] for row in told if row["event"] == "checkpoint-gone"] == [1]


def test_following_a_training_measures_what_it_publishes_until_it_has_finished(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_evaluation, "LOOK_S", 0.0)
    training = RunFolder(tmp_path / "training")
    shutil.copytree(run.path, training.path)
    second = training.checkpoints_dir / "step-000000002"
    second.rename(tmp_path / "not yet")
    overrides = [*SMALL, f"run={training.path}", "geometry=false", "every=true", "follow=true"]
    work = evaluate.make(configuration.load(evaluate.Config, None, overrides), session_of(tmp_path / "e"))

    def steps_measured() -> list[int]:
        paths = sorted((training.path / "evaluation").glob("step-*.json"))
        return [json.loads(path.read_text())["step"] for path in paths]

    for _ in range(100):
        work.step()
    assert (steps_measured(), work.is_done()) == ([1], False)
    (tmp_path / "not yet").rename(second)
    for _ in range(100):
        work.step()
    assert (steps_measured(), work.is_done()) == ([1, 2], False)
    training.done_path.write_text("{}")
    for _ in range(3):
        work.step()
    assert work.is_done()


def test_a_worker_that_comes_late_makes_nothing_again(run: RunFolder, tmp_path: Path) -> None:
    overrides = [*SMALL, f"run={run.path}", f"out={tmp_path / 'out'}", "num_images=8"]
    config = configuration.load(evaluate.Config, None, overrides)
    fast, late = (evaluate.make(config, session_of(tmp_path / "evaluate")) for _ in range(2))
    for _ in range(4):
        late.step()
    while not fast.is_done():
        fast.step()
    (path,) = (tmp_path / "out").glob("step-*.json")
    before = path.stat().st_mtime_ns, fast.position()
    while not late.is_done():
        late.step()
    assert (path.stat().st_mtime_ns, late.position()) == before
    assert late.position().step == late.position().num_steps > 6
    assert not list((tmp_path / "out" / "work").glob("step-*"))
    again = evaluate.make(config, session_of(tmp_path / "evaluate"))
    while not again.is_done():
        again.step()
    assert again.position() == late.position()


@pytest.mark.parametrize(
    ("overrides", "what", "way_out"),
    [
        (["step=7"], "no checkpoint of step=7", "[1, 2]"),
        (["features.path=nowhere.pt"], "nowhere.pt is not there", "TorchScript"),
        (["references=nowhere"], "is no folder", "rendered from"),
        (["data=nowhere"], "nowhere", ""),
        (["follow=true"], "follow=true", "every=true"),
        (["every=true", "step=1"], "step=1 is one checkpoint", "leave out"),
        (["geometry=false", "num_images=0"], "nothing to measure", "leave out"),
        (["num_images=-1"], "num_images=-1", "leave"),
    ],
)
def test_bad_input_is_refused_with_the_way_out(
    run: RunFolder, tmp_path: Path, overrides: list[str], what: str, way_out: str
) -> None:
    with pytest.raises(UsageError) as caught:
        evaluated(run, tmp_path, *overrides)
    assert what in caught.value.what
    assert way_out in caught.value.way_out


def test_paths_are_taken_from_where_the_command_was_typed_and_no_path_stays_none(tmp_path: Path) -> None:
    given = ["run=runs/a", "references=models", "features.path=inception.pt"]
    config = configuration.anchored(configuration.load(evaluate.Config, None, given), tmp_path)
    assert (config.run, config.references) == (tmp_path / "runs" / "a", tmp_path / "models")
    assert config.features.path == tmp_path / "inception.pt"
    assert (config.data, config.out) == (None, None)
    named = configuration.load(evaluate.Config, None, ["run=a", "data=packed"])
    assert configuration.anchored(named, tmp_path).data == str(tmp_path / "packed")


def test_an_empty_folder_of_references_is_refused(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with pytest.raises(UsageError, match="holds no models"):
        evaluated(run, tmp_path, f"references={tmp_path / 'models'}")


def test_style_mixing_and_truncation_are_those_of_the_samples(run: RunFolder, tmp_path: Path) -> None:
    from jobs._evaluation import published
    from jobs._evaluation_setting import Setting
    from jobs._measured import Measured
    from jobs._samples import mixed_latents

    config = configuration.load(evaluate.Config, None, [f"run={run.path}"])
    setting = Setting(config, run, tmp_path, "cpu")
    digest = published(run)[-1].digest
    measured = Measured(setting, 2, digest)
    weights = measured.stages()[0][0]
    weights.path.parent.mkdir(parents=True)
    weights.path.write_bytes(weights.make())
    generator = measured._generator
    together = mixed_latents(generator, setting.law, torch.arange(20))
    alone = mixed_latents(generator, setting.law, torch.tensor([13]))
    assert torch.allclose(together.geo[13], alone.geo[0], atol=1e-6)
    mixed = (together.tex[:, 0] != together.tex[:, -1]).any(dim=1).float().mean()
    assert mixed > 0.5  # mixing_probability is 0.9
    assert np.isfinite(together.geo.numpy()).all()
