"""The job that turns a training run into files: what it writes, and that it is a function of checkpoint and seed."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image

from get3d_cluster import config as configuration
from get3d_cluster.core.job import CheckpointConfig, JobSpec
from get3d_cluster.errors import CheckpointError, UsageError
from get3d_cluster.runtime.checkpoint import Checkpoints
from get3d_cluster.runtime.loop import End, run_items
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.storage import open_storage
from jobs import generate
from tests import train_setup as setup

SMALL = (
    "num_shapes=3",
    "texture_px=32",
    "view_px=16",
    "turntable_every=2",
    "turntable_frames=3",
    "w_avg_samples=50",
)


def trained(folder: Path, *overrides: str, synsets: tuple[str, ...] = ("02958343",)) -> RunFolder:
    """Return a training run with the checkpoints of steps 1 and 2."""
    data = setup.dataset(folder / "data", synsets=synsets)
    config = setup.tiny_config(data, "generator.grid.close_boundary=true", *overrides)
    work = setup.trainer(config, folder / "training")
    run = RunFolder(folder / "training")
    run.config_path.write_text(configuration.save_text(config))
    run.write_spec(JobSpec(name="training", job="train", kind="steps", created="2026-01-01T00:00:00"))
    checkpoints = Checkpoints(open_storage(run.checkpoints_dir), CheckpointConfig(), lambda: None)
    for step in (1, 2):
        work.step()
        checkpoints.save(step, work.state(), {"epoch": 0, "images": 8 * step})
    return run


def generated(run: RunFolder, folder: Path, *overrides: str) -> tuple[Path, Any]:
    out = folder / "meshes"
    config = configuration.load(generate.Config, None, [*SMALL, f"run={run.path}", f"out={out}", *overrides])
    session = setup.session(folder / "generate")
    ended = run_items(generate.make(config, session), session)
    assert ended.end is End.FINISHED
    return out, json.loads((out / "index.json").read_text())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return trained(tmp_path_factory.mktemp("generate"))


@pytest.fixture(scope="module")
def made(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    return generated(run, tmp_path_factory.mktemp("made"))


def test_every_shape_is_closed_and_comes_as_all_its_files(made: tuple[Path, Any]) -> None:
    out, index = made
    assert [shape["name"] for shape in index["shapes"]] == [f"shape-{i:05d}" for i in range(3)]
    for shape in index["shapes"]:
        assert shape["closed"]
        assert shape["volume"] > 0
        assert all((out / file).is_file() for file in shape["files"])
    assert [f"shape-{i:05d}.gif" in shape["files"] for i, shape in enumerate(index["shapes"])] == [
        True,
        False,
        True,
    ]
    assert index["made_from"]["step"] == 2
    assert (out / "sheet.png").is_file()


def test_the_meshes_open_elsewhere_with_their_colours(made: tuple[Path, Any]) -> None:
    out, index = made
    shape = index["shapes"][0]
    for end in ("glb", "obj"):
        loaded = trimesh.load(out / f"{shape['name']}.{end}", force="mesh")
        assert len(loaded.faces) == pytest.approx(
            shape["num_faces"], rel=0.2
        )  # faces without an area are left out
        texture = loaded.visual.material.baseColorTexture if end == "glb" else loaded.visual.material.image
        assert np.asarray(texture).std() > 0


def test_the_same_checkpoint_and_seed_give_the_same_bytes(
    run: RunFolder, made: tuple[Path, Any], tmp_path: Path
) -> None:
    again, _ = generated(run, tmp_path)
    assert contents(again) == contents(made[0])


def test_another_seed_gives_other_shapes_and_psi_0_gives_one(
    run: RunFolder, made: tuple[Path, Any], tmp_path: Path
) -> None:
    other, _ = generated(run, tmp_path / "seed", "seed=1")
    assert (other / "shape-00000.glb").read_bytes() != (made[0] / "shape-00000.glb").read_bytes()
    mean, _ = generated(run, tmp_path / "mean", "psi=0", "turntable_every=0")
    assert (mean / "shape-00000.glb").read_bytes() == (mean / "shape-00001.glb").read_bytes()


def test_what_is_made_is_left_alone_and_what_is_not_is_made(
    run: RunFolder, made: tuple[Path, Any], tmp_path: Path
) -> None:
    out = tmp_path / "meshes"
    shutil.copytree(made[0], out)
    (out / "shape-00001.json").unlink()  # killed before its last file
    (out / "shape-00001.glb").write_bytes(b"half")
    left_alone = (out / "shape-00000.glb").stat().st_mtime_ns
    generated(run, tmp_path)
    assert contents(out) == contents(made[0])
    assert (out / "shape-00000.glb").stat().st_mtime_ns == left_alone


def test_shapes_of_another_checkpoint_are_made_anew(
    run: RunFolder, made: tuple[Path, Any], tmp_path: Path
) -> None:
    out = tmp_path / "meshes"
    shutil.copytree(made[0], out)
    _, index = generated(run, tmp_path, "step=1")
    assert index["made_from"]["step"] == 1
    assert (out / "shape-00002.glb").read_bytes() != (made[0] / "shape-00002.glb").read_bytes()


def test_more_cells_give_finer_meshes(run: RunFolder, made: tuple[Path, Any], tmp_path: Path) -> None:
    _, index = generated(run, tmp_path, "cells=8", "num_shapes=1")
    assert index["shapes"][0]["num_faces"] > 2 * made[1]["shapes"][0]["num_faces"]
    assert index["shapes"][0]["closed"]


def test_the_sheet_shows_colours_above_geometry(made: tuple[Path, Any]) -> None:
    with Image.open(made[0] / "shape-00000.views.png") as views:
        assert views.size == (32, 16)
    with Image.open(made[0] / "shape-00000.gif") as turn:
        assert turn.n_frames == 3


def test_a_missing_checkpoint_is_refused_with_what_there_is(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint of step=7") as caught:
        generated(run, tmp_path, "step=7")
    assert "[1, 2]" in caught.value.way_out


def test_a_checkpoint_that_went_away_is_named(run: RunFolder, tmp_path: Path) -> None:
    session = tmp_path / "generate"
    session.mkdir()
    (session / "source.json").write_text(json.dumps({"step": 3, "images": 24, "digest": "x"}))
    with pytest.raises(CheckpointError, match="step=3"):
        generated(run, tmp_path)


def test_a_class_is_generated_on_demand_and_unknown_ones_are_refused(tmp_path: Path, run: RunFolder) -> None:
    synsets = ("02958343", "03001627")
    classes = ("generator.classes=['02958343','03001627']", "discriminator.num_classes=2")
    conditional = trained(tmp_path, *classes, synsets=synsets)
    few = ("num_shapes=2", "turntable_every=0")
    turns, index = generated(conditional, tmp_path / "turns", *few)
    chairs, _ = generated(conditional, tmp_path / "chairs", *few, "category='03001627'")
    cars, _ = generated(conditional, tmp_path / "cars", *few, "category='02958343'")
    first, second = (f"shape-{i:05d}.glb" for i in range(2))
    assert (turns / first).read_bytes() == (cars / first).read_bytes() != (chairs / first).read_bytes()
    assert (turns / second).read_bytes() == (chairs / second).read_bytes() != (cars / second).read_bytes()
    assert index["made_from"]["category"] == ""
    mean, _ = generated(conditional, tmp_path / "mean", *few, "psi=0")
    assert (mean / first).read_bytes() != (mean / second).read_bytes(), "each class has its own mean"
    for training, name in ((conditional, "boat"), (run, synsets[0])):
        with pytest.raises(UsageError, match=f"category={name} is none"):
            generated(training, tmp_path / name, f"category='{name}'")
