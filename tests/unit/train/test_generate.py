"""The job that turns a training run into files: what it writes, and that it is a function of checkpoint and seed."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import trimesh
from PIL import Image

from get3d_cluster import config as configuration
from get3d_cluster.errors import CheckpointError, StorageError, UsageError
from get3d_cluster.runtime.run_folder import RunFolder
from jobs import _latents, _shapes, generate
from tests import train_setup as setup
from tests.generate_setup import SMALL, generated, trained
from tests.sessions import session_of


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
        # faces without an area are left out
        assert len(loaded.faces) == pytest.approx(shape["num_faces"], rel=0.2)
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
    assert (mean / "shape-00000.ply").read_bytes() == (mean / "shape-00001.ply").read_bytes()


def test_psi_0_gives_the_mean_of_fresh_styles_or_that_of_the_training(run: RunFolder, tmp_path: Path) -> None:
    def style(folder: Path, *overrides: str) -> np.ndarray:
        out, _ = generated(run, folder, "num_shapes=1", "turntable_every=0", *overrides)
        w: np.ndarray = np.load(out / "shape-00000.latents.npz")["w"][0]
        return w

    kept = style(tmp_path / "kept", "psi=0", "w_avg_samples=0")
    few, many = (style(tmp_path / n, "psi=0", f"w_avg_samples={n}") for n in ("200", "400"))
    assert np.abs(few - kept).max() > 0.1, "after two steps the training's mean is near 0"
    assert np.abs(few - many).max() < 0.5 * np.abs(few - kept).max(), "both are near the mean of all styles"
    first = style(tmp_path / "first", "psi=1", "w_avg_samples=0")
    between = style(tmp_path / "between", "psi=0.5", "w_avg_samples=200")
    np.testing.assert_allclose(between, few + 0.5 * (first - few), atol=1e-5)


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
    (session / "source.json").write_text(
        json.dumps({"source": {"step": 3, "images": 24, "digest": "x"}, "mp4": False})
    )
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
    first, second = (f"shape-{i:05d}.ply" for i in range(2))
    assert (turns / first).read_bytes() == (cars / first).read_bytes() != (chairs / first).read_bytes()
    assert (turns / second).read_bytes() == (chairs / second).read_bytes() != (cars / second).read_bytes()
    assert index["made_from"]["category"] == ""
    mean, _ = generated(conditional, tmp_path / "mean", *few, "psi=0")
    assert (mean / first).read_bytes() != (mean / second).read_bytes(), "each class has its own mean"
    for training, name in ((conditional, "boat"), (run, synsets[0])):
        with pytest.raises(UsageError, match=f"category={name} is none"):
            generated(training, tmp_path / name, f"category='{name}'")


def latents_in(folder: Path, **arrays: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "given.npz", **arrays)
    return folder / "given.npz"


def z_of(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    draws = np.random.default_rng(seed)
    return {name: draws.normal(size=(count, 8)).astype(np.float32) for name in ("z_geo", "z_tex")}


def test_a_shape_made_again_from_the_latents_it_left_is_the_same(
    run: RunFolder, made: tuple[Path, Any], tmp_path: Path
) -> None:
    files = [made[0] / f"shape-{number:05d}.latents.npz" for number in (2, 0)]
    out, index = generated(run, tmp_path, "num_shapes=0", "psi=0.1", f"latents=[{files[0]},{files[1]}]")
    assert [shape["seed"] for shape in index["shapes"]] == [None, None]
    for ours, theirs in ((0, 2), (1, 0)):
        assert (out / f"shape-{ours:05d}.ply").read_bytes() == (
            made[0] / f"shape-{theirs:05d}.ply"
        ).read_bytes()


def test_given_z_are_truncated_as_those_of_a_seed_and_both_kinds_of_file_are_read(
    run: RunFolder, tmp_path: Path
) -> None:
    z = z_of(2)
    npz = latents_in(tmp_path, **z)
    safetensors.numpy.save_file(z, tmp_path / "given.safetensors")
    few = ("num_shapes=0", "turntable_every=0")
    first, index = generated(run, tmp_path / "npz", *few, f"latents=[{npz}]")
    second, _ = generated(run, tmp_path / "st", *few, f"latents=[{tmp_path / 'given.safetensors'}]")
    mean, _ = generated(run, tmp_path / "mean", *few, "psi=0", f"latents=[{npz}]")
    assert index["num_shapes"] == 2
    plies = [(folder / "shape-00000.ply").read_bytes() for folder in (first, second, mean)]
    assert plies[0] == plies[1] != plies[2]
    assert plies[2] == (mean / "shape-00001.ply").read_bytes()


WRONG = {
    "z_geo is [2, 9], not [N, 8]": z_of(2) | {"z_geo": np.zeros((2, 9), np.float32)},
    "z_tex is int64": z_of(2) | {"z_tex": np.zeros((2, 8), np.int64)},
    "z_geo is not finite in 1 of 2 shapes, first in number 1": z_of(2)
    | {"z_geo": np.array([[0.0] * 8, [np.nan] * 8])},
    "z_geo holds 3 shapes, z_tex 2": z_of(2) | {"z_geo": np.zeros((3, 8))},
    "z_geo is [0, 8]": {name: each[:0] for name, each in z_of(1).items()},
    "holds ['z_geo']": {"z_geo": np.zeros((2, 8))},
    "holds ['w', 'z_geo', 'z_tex']": z_of(1) | {"w": np.zeros((1, 2, 8))},
    "w is [1, 3, 8], not [N, ": {"w": np.zeros((1, 3, 8))},
    "cannot be read as .npz": {"w": np.array([{"pickle": 1}], dtype=object)},
}


@pytest.mark.parametrize("what", WRONG)
def test_latents_that_do_not_fit_are_refused_with_what_is_wrong(
    run: RunFolder, tmp_path: Path, what: str
) -> None:
    path = latents_in(tmp_path, **WRONG[what])
    with pytest.raises(UsageError) as caught:
        generated(run, tmp_path, f"latents=[{path}]")
    assert what in caught.value.what
    assert str(path) in caught.value.what
    assert caught.value.way_out


def test_files_of_latents_that_are_none_are_refused(run: RunFolder, tmp_path: Path) -> None:
    for name, data in (
        ("a.npz", b""),
        ("b.npz", b"PK\x03\x04 broken"),
        ("c.safetensors", b"12"),
        ("d.pt", b""),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UsageError, match=name):
            generated(run, tmp_path, f"latents=[{tmp_path / name}]")
    with pytest.raises(UsageError, match="does not exist"):
        generated(run, tmp_path, f"latents=[{tmp_path / 'e.npz'}]")
    given = latents_in(tmp_path, **z_of(2))
    with pytest.raises(UsageError, match="num_shapes=3, but latents= holds 2"):
        generated(run, tmp_path, f"latents=[{given}]")


def test_two_styles_stand_for_all_slots(run: RunFolder, tmp_path: Path) -> None:
    config = setup.tiny_config(tmp_path).generator
    w = np.random.default_rng(0).normal(size=(1, 2, 8)).astype(np.float32)
    few = ("num_shapes=0", "turntable_every=0")
    short, _ = generated(run, tmp_path / "short", *few, f"latents=[{latents_in(tmp_path, w=w)}]")
    slots = np.load(short / "shape-00000.latents.npz")["w"][0]
    assert (slots == w[0][[0] * config.num_ws_geo + [1] * config.num_ws_tex]).all()


def test_mixing_leaves_the_first_layer_and_changes_the_last(run: RunFolder, tmp_path: Path) -> None:
    num_geo = setup.tiny_config(tmp_path).generator.num_ws_geo
    few = ("num_shapes=6", "turntable_every=0", "formats=[ply]", "psi=1")
    folders = [generated(run, tmp_path / share, *few, f"mixing={share}")[0] for share in ("0", "0.5", "1")]
    plain, some, all_mixed = (
        np.stack([np.load(folder / f"shape-{number:05d}.latents.npz")["w"][0] for number in range(6)])
        for folder in folders
    )
    changed, sometimes = ((each != plain).any(axis=2) for each in (all_mixed, some))  # [N, L]
    assert not changed[:, [0, num_geo]].any()
    assert changed[:, [num_geo - 1, -1]].all()
    assert 0 < sometimes[:, [num_geo - 1, -1]].sum() < 12


def test_larger_meshes_are_simplified_and_stay_closed(run: RunFolder, tmp_path: Path) -> None:
    out, index = generated(run, tmp_path, "num_shapes=2", "max_faces=40", "turntable_every=0")
    assert len(index["shapes"]) == 2
    for shape in index["shapes"]:
        assert shape["closed"]
        assert shape["num_faces"] <= 40 < shape["num_faces_before"]
        assert len(trimesh.load(out / f"{shape['name']}.ply").faces) == shape["num_faces"]


def test_only_the_formats_wanted_are_written(run: RunFolder, tmp_path: Path) -> None:
    out, _ = generated(run, tmp_path, "num_shapes=1", "formats=[ply]", "turntable_every=0")
    kept = {"shape-00000.ply", "shape-00000.latents.npz", "shape-00000.views.png", "shape-00000.json"}
    assert {path.name for path in out.iterdir()} == kept | {"index.json", "index.html", "sheet.png"}


def test_odd_texture_sizes_work(run: RunFolder, tmp_path: Path) -> None:
    out, _ = generated(run, tmp_path, "num_shapes=1", "texture_px=37", "turntable_every=0")
    with Image.open(out / "shape-00000.png") as texture:
        assert texture.size == (37, 37)


def test_a_matrix_crosses_geometries_with_textures(
    run: RunFolder, made: tuple[Path, Any], tmp_path: Path
) -> None:
    steps = ("matrix.shapes=[0,2]", "matrix.steps=2", "matrix.view_px=16", "matrix.meshes=true")
    out, index = generated(run, tmp_path, *steps, "turntable_every=0")
    cells = {
        (row, column): out / "matrix" / f"cell-{row:03d}-{column:03d}.ply"
        for row in range(3)
        for column in range(3)
    }
    read = {place: trimesh.load(path, process=False) for place, path in cells.items()}
    for corner, number in (((0, 0), 0), ((2, 2), 2)):
        assert cells[corner].read_bytes() == (made[0] / f"shape-{number:05d}.ply").read_bytes()
    assert np.array_equal(read[0, 0].vertices, read[0, 2].vertices), "a row shares its geometry"
    colours = [read[0, column].visual.vertex_colors for column in range(3)]
    assert not np.array_equal(colours[0], colours[2])
    assert not np.array_equal(colours[0], colours[1]), "half-way is on neither end"
    for name in ("matrix", "matrix_geometry", "matrix_texture", "matrix_both"):
        assert (out / index[name]).is_file()
    with Image.open(out / "matrix-both.gif") as both:
        assert both.n_frames == 4


def test_a_shape_without_a_surface_is_told_of_and_the_others_are_made(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {1})
    out, index = generated(run, tmp_path)
    assert index["num_empty"] == 1
    assert index["shapes"][1]["files"] == []
    assert "empty" in index["shapes"][1]["empty"]
    assert index["shapes"][2]["files"]
    assert "1 of 3 shapes have no surface" in (out / "index.html").read_text()


@pytest.mark.parametrize("kind", ["empty", "not finite"])
def test_if_no_shape_has_a_surface_it_is_said_what_to_do(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    spoil(monkeypatch, {0, 1, 2}, finite=kind == "empty")
    with pytest.raises(UsageError, match=f"none of 3 shapes has a surface.*{kind}") as caught:
        generated(run, tmp_path)
    assert "launch.py checkpoints" in caught.value.way_out
    assert json.loads((tmp_path / "meshes" / "index.json").read_text())["num_empty"] == 3


def spoil(monkeypatch: pytest.MonkeyPatch, numbers: set[int], *, finite: bool = True) -> None:
    """Let some shapes have no faces, or places that are not finite."""
    seen = []
    simplify = _shapes.simplified

    def spoiled(vertices: Any, faces: Any, most: int) -> Any:
        seen.append(len(seen))
        if seen[-1] not in numbers:
            return simplify(vertices, faces, most)
        return (vertices, faces[:0]) if finite else (vertices * np.float32(np.nan), faces)

    monkeypatch.setattr(_shapes, "simplified", spoiled)


def test_a_full_disk_is_named_and_afterwards_the_rest_is_made(
    run: RunFolder, made: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *args: Any) -> None:
        if path.name == "shape-00001.glb":
            raise StorageError(f"cannot write {path}: No space left on device", "free space")
        write(path, *args)

    write = _shapes.write_glb
    with monkeypatch.context() as broken:
        broken.setattr(_shapes, "write_glb", full)
        with pytest.raises(StorageError, match=r"shape-00001\.glb"):
            generated(run, tmp_path)
    assert not (tmp_path / "meshes" / "shape-00001.json").exists()
    again, _ = generated(run, tmp_path)
    assert contents(again) == contents(made[0])


def test_an_output_folder_that_cannot_be_made_is_named_before_the_work(
    run: RunFolder, tmp_path: Path
) -> None:
    (tmp_path / "meshes").write_text("a file")
    with pytest.raises(StorageError, match=r"cannot write .*meshes: File exists"):
        generated(run, tmp_path)


@pytest.mark.parametrize(
    "override",
    [
        "num_shapes=-1", "num_shapes=1000001", "texture_px=3", "texture_px=20000", "view_px=0", "psi=-0.1", "psi=nan",
        "mixing=1.5", "cells=3", "formats=[]", "formats=[glb,glb]", "formats=[usd]", "max_faces=-1", "mp4=maybe",
        "matrix.shapes=[1]", "matrix.shapes=[0,-1]", "matrix.steps=0", "matrix.shapes=[0,1] matrix.steps=100",
    ],
)  # fmt: skip
def test_settings_out_of_bounds_are_refused_by_name(override: str) -> None:
    with pytest.raises(UsageError) as caught:
        configuration.load(generate.Config, None, ["run=runs/x", *override.split()])
    assert override.partition("=")[0].rpartition(".")[2] in caught.value.what


def test_mp4_that_is_asked_for_and_cannot_be_had_is_refused(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_shapes, "find_encoder", lambda: None)
    with pytest.raises(UsageError, match="mp4=on, but no ffmpeg was found") as caught:
        generated(run, tmp_path / "on", "mp4=on")
    assert "imageio-ffmpeg" in caught.value.way_out
    out, index = generated(run, tmp_path / "auto", "mp4=auto")
    assert index["mp4"] is False
    assert "No MP4" in (out / "index.html").read_text()
    events = (tmp_path / "auto" / "generate" / "events.jsonl").read_text()
    assert "no-mp4" in events


def test_facts_that_are_damaged_are_made_anew(run: RunFolder, made: tuple[Path, Any], tmp_path: Path) -> None:
    out = tmp_path / "meshes"
    shutil.copytree(made[0], out)
    (out / "shape-00001.json").write_text("{ half")
    generated(run, tmp_path)
    assert contents(out) == contents(made[0])


def test_a_million_shapes_begin_at_once(run: RunFolder, tmp_path: Path) -> None:
    config = configuration.load(
        generate.Config, None, [*SMALL, f"run={run.path}", f"out={tmp_path / 'meshes'}", "num_shapes=1000000"]
    )
    work = generate.make(config, session_of(tmp_path / "generate"))
    work.step()
    assert work.position().num_steps == 1_000_000
    assert work.position().step == 1
    work.close()


def test_the_latents_of_a_file_survive_a_round_trip(tmp_path: Path, run: RunFolder) -> None:
    config = setup.tiny_config(tmp_path).generator
    w = np.random.default_rng(0).normal(size=(config.num_ws_geo + config.num_ws_tex, 8)).astype(np.float32)
    _latents.write_latents(tmp_path / "own.npz", w)
    (given,), digest = _latents.read_latents([tmp_path / "own.npz"], config)
    assert given.w is not None
    assert (given.w == w).all()
    assert len(digest) == 64
