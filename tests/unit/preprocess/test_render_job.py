"""The render job with a worker that is not Blender: retries, quarantine, refusal to mix, what is published."""

import hashlib
import importlib.util
import json
import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from get3d_cluster.core.cameras import views_for
from get3d_cluster.core.job import Resources
from get3d_cluster.errors import UsageError
from get3d_cluster.runtime.env import ProcessId
from jobs import render
from preprocess import blender as blender_module
from preprocess.blender import Blender, missing_package_error
from preprocess.images import ImageConfig, Tree, digest_of, sampling_of, seed_of
from preprocess.pack import planned
from preprocess.quality import Gates
from preprocess.scratch import remove_abandoned
from preprocess.shapenet import ModelFile

TESTS = Path(__file__).parents[2]


def _load(name: str):
    spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


rank = _load("render_one_rank")


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    program = tmp_path / "fake-blender"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{TESTS}/fake_blender_worker.py" "$@"\n')
    program.chmod(0o755)
    return program


def config(tmp_path: Path, fake: Path, models: list[str] = [], **changes) -> render.Config:  # noqa: B006
    for model in models:
        folder = tmp_path / "models" / "02958343" / model
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.obj").write_text("v 0 0 0\nf 1 1 1\n")
    image = changes.pop("image", ImageConfig(resolution=32, num_views=3, samples=1))
    values = {"models": tmp_path / "models", "out": tmp_path / "out", "blender": fake, "view_timeout_s": 20.0}
    return render.Config(**(values | changes), image=image)


def rendered(tmp_path: Path, config: render.Config) -> SimpleNamespace:
    session = rank.session_of(tmp_path / "run")
    work = render.make(config, session)
    rank.run(work, session)
    return SimpleNamespace(work=work, session=session)


def quarantined(out: Path) -> dict[str, str]:
    lines = (out / "quarantine.jsonl").read_text().splitlines() if (out / "quarantine.jsonl").exists() else []
    return {row["model"]: row["reason"] for row in map(json.loads, lines)}


def published(out: Path) -> dict[str, list[str]]:
    return {path.name: sorted(p.name for p in path.iterdir()) for path in sorted((out / "img").glob("*/*"))}


NAMES = ["000.png", "001.png", "002.png"]


def test_a_model_is_published_with_its_cameras_and_nothing_else(tmp_path: Path, fake: Path) -> None:
    job = config(tmp_path, fake, ["a", "b"])
    done = rendered(tmp_path, job)
    assert published(job.out) == {"a": NAMES, "b": NAMES}
    cameras = views_for(0, "02958343", "a", 3)
    folder = job.out / "camera" / "02958343" / "a"
    rotation, elevation = np.load(folder / "rotation.npy"), np.load(folder / "elevation.npy")
    assert rotation.dtype == elevation.dtype == np.float64
    assert rotation.tolist() == [view.rotation_deg for view in cameras]
    assert elevation.tolist() == [view.elevation_deg for view in cameras]
    facts = json.loads((folder / "object.json").read_text())
    assert facts["config"] == digest_of(job.image)
    assert len({view["seed"] for view in facts["views"]}) == 3
    assert facts["bbox"] == [[0, 0, 0], [1, 1, 1]]
    assert done.work.position().step == done.work.position().num_steps == 2
    assert done.work.position().images == 6


def test_hidden_colour_of_the_worker_does_not_reach_the_dataset(tmp_path: Path, fake: Path) -> None:
    job = config(tmp_path, fake, ["a"])
    rendered(tmp_path, job)
    from PIL import Image

    with Image.open(job.out / "img" / "02958343" / "a" / "000.png") as image:
        pixels = np.array(image)
    assert pixels[..., 3].any()
    assert not pixels[pixels[..., 3] == 0].any()


def test_bad_models_are_quarantined_with_their_reason_and_the_good_ones_are_finished(
    tmp_path: Path, fake: Path
) -> None:
    names = [
        "edge",
        "blank",
        "magenta",
        "black",
        "truncate",
        "empty",
        "crash",
        "crash-once",
        "garble",
        "good",
    ]
    job = config(tmp_path, fake, names)
    done = rendered(tmp_path, job)
    assert quarantined(job.out) == {
        "edge": "edge",
        "blank": "blank",
        "magenta": "magenta",
        "black": "black",
        "truncate": "damaged",
        "empty": "no-geometry",
        "crash": "crash",
        "garble": "crash",
    }
    assert published(job.out) == {"crash-once": NAMES, "good": NAMES}
    verdict = json.loads((job.out / "quarantine" / "02958343" / "crash.json").read_text())
    assert verdict["attempts"] == 3
    assert "exit code 139" in verdict["message"]
    assert "loading crash" in verdict["log"]
    assert json.loads((job.out / "quarantine" / "02958343" / "edge.json").read_text())["attempts"] == 1
    rows = [json.loads(line) for line in (job.out / "render.jsonl").read_text().splitlines()]
    assert sorted((row["model"], row["ended"]) for row in rows) == sorted(
        (name, "finished" if "once" in name or name == "good" else "quarantined") for name in names
    )
    position = done.work.position()
    assert (position.step, position.given_up, position.images) == (10, 8, 2 * len(NAMES))


def test_a_quarantined_model_is_skipped_until_its_verdict_is_deleted(tmp_path: Path, fake: Path) -> None:
    job = config(tmp_path, fake, ["crash-once"])
    verdict = job.out / "quarantine" / "02958343" / "crash-once.json"
    verdict.parent.mkdir(parents=True)
    verdict.write_text(
        json.dumps({"synset": "02958343", "model": "crash-once", "reason": "x", "message": ""})
    )
    rendered(tmp_path, job)
    assert not (job.out / "img").exists()
    verdict.unlink()
    rendered(tmp_path, job)
    assert published(job.out) == {"crash-once": NAMES}


def test_a_hanging_view_is_killed_and_quarantined(tmp_path: Path, fake: Path) -> None:
    job = config(tmp_path, fake, ["hang"], view_timeout_s=0.3)
    begun = time.monotonic()
    rendered(tmp_path, job)
    assert quarantined(job.out) == {"hang": "timeout"}
    assert time.monotonic() - begun < 100  # the view hangs for 600


def test_a_notice_during_a_long_view_ends_it_and_blames_nobody(
    tmp_path: Path, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blender_module, "POLL_S", 0.05)
    job = config(tmp_path, fake, ["hang"])
    session = rank.session_of(tmp_path / "run", grace_s=0.4)
    work = render.make(job, session)
    session.notices.install()
    threading.Timer(0.8, os.kill, (os.getpid(), signal.SIGTERM)).start()
    begun = time.monotonic()
    try:
        rank.run(work, session)
    finally:
        session.notices.uninstall()
    assert time.monotonic() - begun < 50  # the view hangs for 600, and may for 60
    assert not work.is_done()
    assert quarantined(job.out) == {}
    assert list(work._tree.claims.iterdir()) == []


def test_a_damaged_description_of_the_images_is_named(tmp_path: Path) -> None:
    tree = Tree(tmp_path, ImageConfig())
    tree.open()
    (tmp_path / "render.json").write_bytes(b"\x00\xff")
    with pytest.raises(UsageError, match=r"render\.json, .* cannot be read") as caught:
        tree.open()
    assert "out=" in caught.value.way_out


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_an_output_folder_that_cannot_be_made_is_refused_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be made a folder") as caught:
        Tree(tmp_path / name, ImageConfig()).open()
    assert "out=" in caught.value.way_out


def test_other_settings_are_refused_naming_what_differs(tmp_path: Path, fake: Path) -> None:
    job = config(tmp_path, fake, ["a"])
    rendered(tmp_path, job)
    other = config(tmp_path, fake, image=ImageConfig(resolution=32, num_views=3, samples=2))
    with pytest.raises(UsageError) as caught:
        render.make(other, rank.session_of(tmp_path / "run"))
    assert "settings.samples 1 -> 2" in caught.value.what
    assert digest_of(job.image) in caught.value.what
    assert digest_of(other.image) in caught.value.what


def test_images_of_unknown_origin_are_refused(tmp_path: Path, fake: Path) -> None:
    job = config(tmp_path, fake, ["a"])
    (job.out / "img" / "02958343" / "a").mkdir(parents=True)
    with pytest.raises(UsageError, match="unknown"):
        rendered(tmp_path, job)


def test_another_version_of_the_renderer_is_refused(tmp_path: Path, fake: Path) -> None:
    job = config(tmp_path, fake, ["a"])
    job.out.mkdir()
    (job.out / "renderer.json").write_text(json.dumps({"renderer": "fake", "version": "0", "build": ""}))
    with pytest.raises(UsageError, match="version 0 -> 1"):
        rendered(tmp_path, job)


def test_a_lost_image_is_rendered_again_to_the_same_bytes(tmp_path: Path, fake: Path) -> None:
    job = config(tmp_path, fake, ["a"])
    rendered(tmp_path, job)
    lost = job.out / "img" / "02958343" / "a" / "001.png"
    before = lost.read_bytes()
    lost.unlink()
    rendered(tmp_path, job)
    assert lost.read_bytes() == before
    assert published(job.out) == {"a": NAMES}


def test_a_model_whose_folder_was_deleted_is_rendered_again_with_its_cameras(
    tmp_path: Path, fake: Path
) -> None:
    job = config(tmp_path, fake, ["a", "b"])
    rendered(tmp_path, job)
    images, cameras = (job.out / part / "02958343" / "a" for part in ("img", "camera"))
    before = {path: path.read_bytes() for folder in (images, cameras) for path in folder.iterdir()}
    (cameras / "rotation.npy").write_bytes(b"")
    (images / "001.png").write_bytes(b"")
    with pytest.raises(UsageError) as caught:
        planned(job.out, 1)
    assert "delete the model's folder below img/" in caught.value.way_out
    shutil.rmtree(images)
    rendered(tmp_path, job)
    assert {path: path.read_bytes() for folder in (images, cameras) for path in folder.iterdir()} == before


def test_a_damaged_staged_view_is_rendered_again(tmp_path: Path, fake: Path) -> None:
    job = config(tmp_path, fake, ["a"])
    session = rank.session_of(tmp_path / "run")
    work = render.make(job, session)
    while not (staged := work._tree.staging / "02958343" / "a" / "000.png").exists():
        work.step()
    work.close()
    staged.write_bytes(staged.read_bytes()[:50])
    rendered(tmp_path, job)
    facts = json.loads((job.out / "camera" / "02958343" / "a" / "object.json").read_text())
    assert facts["views"][0]["coverage"] > 0.1


def test_closing_ends_the_worker_process(tmp_path: Path, fake: Path) -> None:
    session = rank.session_of(tmp_path / "run")
    work = render.make(config(tmp_path, fake, ["a"]), session)
    work.step()
    work.step()
    pid = work._renderer.blender.pid
    assert Path(f"/proc/{pid}").exists()
    work.close()
    assert not Path(f"/proc/{pid}").exists()


def test_a_worker_that_does_not_start_is_the_installation_s_fault_and_not_the_model_s(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no such display >&2\nexit 3\n")
    broken.chmod(0o755)
    job = config(tmp_path, broken, ["a"])
    with pytest.raises(UsageError, match="no such display"):
        rendered(tmp_path, job)
    assert quarantined(job.out) == {}


def scripted(tmp_path: Path, settings_reply: str) -> Path:
    """Return a Blender that greets and then answers with ``settings_reply``, a line of shell."""
    hello = {"ok": True, "protocol": 2, "renderer": "r", "version": "3.6", "build": "", "cpu": "", "pid": 1}
    program = tmp_path / "scripted"
    lines = ["#!/bin/bash", f"read -r x; echo '{json.dumps(hello)}' >&$4; read -r x", settings_reply]
    program.write_text("\n".join(lines) + "\n")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (
            """echo '{"ok": false, "code": "failed", "message": "no denoising_quality"}' >&$4""",
            "no denoising_q",
        ),
        ("exit 139", "Blender died during configure, exit code 139"),
    ],
)
def test_a_blender_that_cannot_be_set_up_is_no_model_s_fault(tmp_path: Path, reply: str, words: str) -> None:
    job = config(tmp_path, scripted(tmp_path, reply), ["a", "b"])
    with pytest.raises(UsageError, match=words):
        rendered(tmp_path, job)
    assert quarantined(job.out) == {}


@pytest.mark.parametrize("begin", ["exec sleep 60", "hello"])
def test_a_notice_while_blender_starts_ends_the_worker_and_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: str
) -> None:
    monkeypatch.setattr(blender_module, "POLL_S", 0.05)
    program = scripted(tmp_path, "exec sleep 60")
    if begin != "hello":
        program.write_text(f"#!/bin/sh\n{begin}\n")
    job = config(tmp_path, program, ["a"])
    session = rank.session_of(tmp_path / "run", grace_s=0.2)
    work = render.make(job, session)
    session.notices.install()
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    try:
        rank.run(work, session)
    finally:
        session.notices.uninstall()
    assert not work.is_done()
    assert quarantined(job.out) == {}


def test_an_installed_blender_is_started_as_such(tmp_path: Path) -> None:
    program = tmp_path / "blender-4.5"
    worker = f'exec "{sys.executable}" "{TESTS}/fake_blender_worker.py" "$@"'
    wanted = '[ "$1 $2 $3 $4 $5" = "--background --factory-startup --python-exit-code 1 --python" ] || exit 3'
    program.write_text(f"#!/bin/sh\n{wanted}\nshift 6\n{worker}\n")
    program.chmod(0o755)
    job = config(tmp_path, program, ["a"])
    rendered(tmp_path, job)
    assert published(job.out) == {"a": NAMES}


def test_missing_things_are_named_with_the_way_out(tmp_path: Path, fake: Path) -> None:
    session = rank.session_of(tmp_path / "run")
    with pytest.raises(UsageError, match="there is no folder") as caught:
        render.make(config(tmp_path, fake), session)
    job = config(tmp_path, fake, ["a"], synsets=("03001627",))
    with pytest.raises(UsageError, match="03001627"):
        render.make(job, session)
    with pytest.raises(UsageError) as caught:
        render.make(config(tmp_path, tmp_path / "nothing"), session)
    assert "make setup" in caught.value.way_out


def test_folders_without_a_model_are_listed_with_the_reason(tmp_path: Path, fake: Path) -> None:
    job = config(tmp_path, fake, ["a", "b"])
    (tmp_path / "models" / "02958343" / "b" / "model.obj").rename(
        tmp_path / "models" / "02958343" / "b" / "x"
    )
    rendered(tmp_path, job)
    row = json.loads((job.out / "left_out.jsonl").read_text())
    assert (row["synset"], row["model"]) == ("02958343", "b")
    assert row["why"].startswith("holds no model: no model.obj")


def test_missing_libraries_are_named_by_their_packages() -> None:
    error = missing_package_error("libSM.so.6: no such file", ["libSM.so.6", "libGL.so.1"])
    assert error.way_out.endswith("apt-get install --no-install-recommends libgl1 libsm6")
    assert "libGL.so.1" in error.what


def test_a_python_without_bpy_is_sent_to_make_setup(tmp_path: Path) -> None:
    blender = Blender(Path(sys.executable), tmp_path / "log")
    blender.start()
    with pytest.raises(UsageError, match="No module named 'bpy'") as caught:
        blender.hello()
    assert "make setup" in caught.value.way_out
    assert not blender.is_running


def test_ranks_begin_at_different_models_and_a_limit_counts_per_category(tmp_path: Path, fake: Path) -> None:
    job = config(tmp_path, fake, [f"m{i}" for i in range(6)], limit=4)
    begun = [
        render.make(job, rank.session_of(tmp_path / "run", index, 2))._left[0].model for index in range(2)
    ]
    assert begun == ["m0", "m2"]


def test_the_seed_of_a_view_depends_on_all_that_names_it() -> None:
    image, item = ImageConfig(), ModelFile(synset="a", model="b", path=Path())
    seeds = {
        seed_of(image, item, 0),
        seed_of(image, item, 1),
        seed_of(ImageConfig(seed=1), item, 0),
        seed_of(image, ModelFile(synset="a", model="c", path=Path()), 0),
        seed_of(image, ModelFile(synset="ab", model="", path=Path()), 0),
    }
    assert len(seeds) == 5
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_models_with_many_triangles_get_fewer_paths_if_asked_for() -> None:
    image = ImageConfig(samples=16, large_tris=1000, large_samples=4)
    assert sampling_of(image, 1000) == {"samples": 16, "min_samples": 8}
    assert sampling_of(image, 1001) == {"samples": 4, "min_samples": 4}
    assert sampling_of(ImageConfig(), 10**9) == sampling_of(ImageConfig(), 1)


@pytest.mark.parametrize(
    "changes", [{"longest_side": 1.5}, {"num_views": 0}, {"elevation_range_deg": (30.0, 0.0)}]
)
def test_settings_out_of_range_are_refused_by_name(changes: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        ImageConfig(**changes)


def test_another_chance_is_given_once_and_redoes_nothing_else(tmp_path: Path, fake: Path) -> None:
    job = config(tmp_path, fake, ["blank", "edge", "good"])
    rendered(tmp_path, job)
    good = job.out / "img" / "02958343" / "good" / "000.png"
    before = good.stat().st_mtime_ns
    assert quarantined(job.out) == {"blank": "blank", "edge": "edge"}
    again = config(tmp_path, fake, gates=Gates(max_edge=1.0, max_coverage=1.0), retry_failed=1)
    session = rank.session_of(tmp_path / "run")
    work = render.make(again, session)
    assert work.position().step == 1  # what is tried again has not ended
    rank.run(work, session)
    assert work.position().step == 3
    assert quarantined(job.out) == {"blank": "blank"}
    assert published(job.out) == {"edge": NAMES, "good": NAMES}
    assert good.stat().st_mtime_ns == before
    verdict = job.out / "quarantine" / "02958343" / "blank.json"
    assert json.loads(verdict.read_text())["given_up"] == 2
    rendered(tmp_path, again)
    assert json.loads(verdict.read_text())["given_up"] == 2
    rendered(tmp_path, config(tmp_path, fake, retry_failed=2))
    assert json.loads(verdict.read_text())["given_up"] == 3


def test_lists_and_splits_of_the_configuration_choose_the_models(tmp_path: Path, fake: Path) -> None:
    (tmp_path / "train.txt").write_text("a\nc\n")
    job = config(tmp_path, fake, ["a", "b", "c"], lists=(tmp_path / "train.txt",))
    rendered(tmp_path, job)
    assert list(published(job.out)) == ["a", "c"]
    assert json.loads((job.out / "left_out.jsonl").read_text())["why"] == "not in train.txt"


def test_a_model_that_vanished_since_the_listing_is_said_to_have(tmp_path: Path, fake: Path) -> None:
    job = config(tmp_path, fake, ["a", "b"])
    session = rank.session_of(tmp_path / "run")
    work = render.make(job, session)
    (tmp_path / "models" / "02958343" / "a" / "model.obj").unlink()
    rank.run(work, session)
    row = json.loads((job.out / "quarantine.jsonl").read_text())
    assert (row["model"], row["reason"]) == ("a", "gone")
    assert row["message"].startswith("it was there when the folder was listed; now it holds no model")


def test_a_file_at_fault_is_told_before_blender_is_asked(tmp_path: Path, fake: Path) -> None:
    job = config(tmp_path, fake, ["a"])
    (tmp_path / "models" / "02958343" / "a" / "model.obj").write_text("mtllib gone.mtl\nv 0 0 0\nf 1 1 1\n")
    rendered(tmp_path, job)
    verdict = json.loads((job.out / "quarantine" / "02958343" / "a.json").read_text())
    assert (verdict["reason"], verdict["attempts"]) == ("missing-material", 1)
    row = json.loads((job.out / "render.jsonl").read_text())
    assert (row["reason"], row["message"]) == (
        "missing-material",
        "gone.mtl, named by model.obj, cannot be read",
    )
    grey = config(
        tmp_path, fake, out=tmp_path / "grey", image=ImageConfig(resolution=32, missing_texture="grey")
    )
    rendered(tmp_path, grey)
    assert json.loads((grey.out / "camera/02958343/a/object.json").read_text())["missing"] == ["gone.mtl"]


def test_a_name_of_any_bytes_in_a_model_s_file_ends_no_job(tmp_path: Path, fake: Path) -> None:
    job = config(tmp_path, fake, ["good"])
    scene = {"meshes": [{}], "buffers": [{"uri": "caf\udce9.bin"}]}
    (tmp_path / "models" / "02958343" / "bad.gltf").write_text(json.dumps(scene))
    folder = tmp_path / "models" / "02958343" / "worse"
    folder.mkdir()
    (folder / "caf\udce9.obj").write_text("no model")
    assert rendered(tmp_path, job).work.is_done()
    assert quarantined(job.out) == {"bad": "truncated", "worse": "not-a-model"}
    page = (job.out / "summary.html").read_text()
    assert "caf\\udce9.bin, which holds the mesh of bad.gltf, is missing" in page
    assert "caf\\udce9.obj has no line with a vertex" in page


def test_the_summary_tells_what_became_of_each_model(tmp_path: Path, fake: Path) -> None:
    job = config(tmp_path, fake, ["a<b>", "blank", "c"])
    done = rendered(tmp_path, job)
    page = (job.out / "summary.html").read_text()
    assert "02958343/a&lt;b&gt;" in page
    assert "nothing is visible" in page
    assert page.count("<rect") == 36 + 18
    from PIL import Image

    with Image.open(job.out / "sheet.png") as sheet:
        assert sheet.size == (6 * 96, 96)
    assert done.work.is_done()
    written = (job.out / "summary.html").stat().st_mtime_ns
    rendered(tmp_path, job)
    assert (job.out / "summary.html").stat().st_mtime_ns == written
    (job.out / "quarantine" / "02958343" / "blank.json").unlink()
    rendered(tmp_path, job)
    assert (job.out / "summary.html").stat().st_mtime_ns > written


def test_no_passing_file_outlives_a_worker(
    tmp_path: Path, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    job = config(tmp_path, fake, ["a", "crash", "litter"])
    session = rank.session_of(tmp_path / "run")
    work = render.make(job, session)
    seen = 0
    while not work.is_done():
        work.step()
        seen = max(seen, len(list(temporary.glob("get3d-render-*/blender/litter-*"))))
    assert seen == 3
    work.close()
    assert list(temporary.iterdir()) == []


def test_what_killed_workers_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    def folder(name: str, owner: str) -> Path:
        path = tmp_path / f"get3d-render-{name}"
        path.mkdir()
        if owner:
            (path / "owner.json").write_text(owner)
        return path

    dead = asdict(ProcessId.mine()) | {"start": "1"}
    kept = [
        folder("mine", json.dumps(asdict(ProcessId.mine()))),
        folder("elsewhere", json.dumps(dead | {"host": "another"})),
        folder("being-made", ""),
    ]
    gone = [folder("dead", json.dumps(dead)), folder("nameless", "")]
    os.utime(gone[1], (0, 0))
    remove_abandoned(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


@pytest.mark.parametrize(
    ("device", "given", "per_worker", "expected"),
    [
        ("auto", "cpu", 0, ("cpu", None)),
        ("auto", "cuda:1", 1, ("gpu", (1,))),
        ("auto", "cuda:2", 2, ("gpu", (2, 3))),
        ("cpu", "cuda:0", 1, ("cpu", None)),
        ("optix", "cpu", 0, ("optix", None)),
        ("cuda", "cuda:0", 1, ("cuda", (0,))),
    ],
)
def test_blender_computes_with_what_the_worker_was_given(
    tmp_path: Path, fake: Path, device: str, given: str, per_worker: int, expected: tuple
) -> None:
    job = config(tmp_path, fake, device=device, resources=Resources(gpus_per_worker=per_worker))
    machine = render.machine_of(job, given)
    assert (machine.device, machine.gpus) == expected


def test_images_of_another_device_are_refused(tmp_path: Path, fake: Path) -> None:
    job = config(tmp_path, fake, ["a", "b"], limit=1)
    rendered(tmp_path, job)
    with pytest.raises(UsageError, match="device CPU -> CUDA"):
        rendered(tmp_path, config(tmp_path, fake, device="cuda"))


def test_no_gpu_is_the_machine_s_fault_and_not_the_model_s(tmp_path: Path, fake: Path) -> None:
    job = config(tmp_path, fake, ["a"], device="optix")
    with pytest.raises(UsageError, match="finds no OPTIX") as caught:
        rendered(tmp_path, job)
    assert "device=cpu" in caught.value.way_out
    assert quarantined(job.out) == {}


def test_depth_and_normals_are_published_with_the_images_and_survive_a_kill_between_them(
    tmp_path: Path, fake: Path
) -> None:
    image = ImageConfig(resolution=32, num_views=3, passes=("depth", "normal"))
    job = config(tmp_path, fake, ["a"], image=image)
    rendered(tmp_path, job)
    folders = {name: job.out / name / "02958343" / "a" for name in ("depth", "normal", "img")}
    before = {name: {p.name: p.read_bytes() for p in folder.iterdir()} for name, folder in folders.items()}
    assert {name: sorted(files) for name, files in before.items()} == dict.fromkeys(folders, NAMES)
    facts = json.loads((job.out / "camera/02958343/a/object.json").read_text())
    digest = hashlib.sha256(before["depth"]["001.png"]).hexdigest()
    assert facts["views"][1]["depth_sha256"] == digest
    staged = Tree(job.out, image).staging / "02958343" / "a"
    staged.parent.mkdir(parents=True, exist_ok=True)
    folders["img"].rename(staged)  # as if it was killed after the passes were published
    work_renders = (job.out.parent / "models/02958343/a/rendered").read_text().count("\n")
    rendered(tmp_path, job)
    assert {
        name: {p.name: p.read_bytes() for p in folder.iterdir()} for name, folder in folders.items()
    } == before
    assert (job.out.parent / "models/02958343/a/rendered").read_text().count("\n") == work_renders
