import io
import shutil
import tarfile
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from get3d_cluster.data.format import INDEX_NAME, PackedImages, read_index
from get3d_cluster.errors import UsageError
from get3d_cluster.storage import local
from jobs import pack as job
from jobs import shapes as shapes_job
from preprocess import pack
from preprocess.lists import read_lists

NUM_VIEWS = 3


def add_model(root: Path, model: str, *, synset: str = "02958343", size: int = 8, seed: int = 0) -> None:
    rng = np.random.Generator(np.random.PCG64(seed))
    images, cameras = root / "img" / synset / model, root / "camera" / synset / model
    images.mkdir(parents=True)
    cameras.mkdir(parents=True)
    for view in range(NUM_VIEWS):
        pixels = rng.integers(0, 256, (size, size, 4), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{view:03d}.png")
    np.save(cameras / "rotation.npy", rng.random(NUM_VIEWS) * 360)
    np.save(cameras / "elevation.npy", rng.random(NUM_VIEWS) * 30)


@pytest.fixture
def rendered(tmp_path: Path) -> Path:
    for seed, model in enumerate(["0a", "0b", "0c", "0d", "0e"]):
        add_model(tmp_path / "rendered", model, seed=seed)
    return tmp_path / "rendered"


@pytest.fixture
def one_model_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = pack._cut
    monkeypatch.setattr(pack, "_cut", lambda models, _limit: cut(models, 1))


def work_of(rendered: Path, out: Path, rank: int = 0, world_size: int = 1, **settings):
    events = SimpleNamespace(write=lambda *_, **__: None)
    session = SimpleNamespace(rank=rank, world_size=world_size, events=events)
    return job.make(job.Config(images=rendered, out=out, **settings), session)


def run(work) -> None:
    while not work.is_done():
        work.step()
    work.close()


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


def test_what_was_rendered_is_read_back_byte_for_byte_with_its_cameras(
    rendered: Path, tmp_path: Path
) -> None:
    run(work_of(rendered, tmp_path / "out"))
    images = PackedImages(tmp_path / "out")
    assert len(images) == 5 * NUM_VIEWS
    for number, sample in enumerate(images.samples):
        synset, model, view = sample.key.split("/")
        assert images.read(number) == (rendered / "img" / synset / model / f"{view}.png").read_bytes()
        for name in ("rotation", "elevation"):
            angle = np.load(rendered / "camera" / synset / model / f"{name}.npy")[int(view)]
            assert getattr(sample, f"{name}_deg") == angle
    with tarfile.open(tmp_path / "out" / "shard-00000.tar") as tar:
        names = tar.getnames()
    assert names == sorted(names)
    assert names[:4] == [f"02958343/0a/{name}" for name in ("000.png", "001.png", "002.png", "camera.json")]


@pytest.mark.usefixtures("one_model_a_shard")
@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_any_number_of_workers_packs_the_same_bytes(rendered: Path, tmp_path: Path, world_size: int) -> None:
    run(work_of(rendered, tmp_path / "alone"))
    workers = [work_of(rendered, tmp_path / "many", rank, world_size) for rank in range(world_size)]
    while not all(worker.is_done() for worker in workers):
        for worker in workers:
            if not worker.is_done():
                worker.step()
    assert content(tmp_path / "many") == content(tmp_path / "alone")
    assert len(PackedImages(tmp_path / "many").index.shards) == 5


@pytest.mark.usefixtures("one_model_a_shard")
def test_one_worker_finishes_what_a_lost_one_left(rendered: Path, tmp_path: Path) -> None:
    lost = work_of(rendered, tmp_path / "out", 1, 2)
    lost.step()
    (tmp_path / "out" / ".writing-shard-00004.tar-aa").write_bytes(b"torn")
    run(work_of(rendered, tmp_path / "out", 0, 2))
    run(work_of(rendered, tmp_path / "alone"))
    assert content(tmp_path / "out") == content(tmp_path / "alone")


@pytest.mark.usefixtures("one_model_a_shard")
def test_a_worker_that_is_overtaken_while_it_writes_a_shard_goes_on(
    rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = work_of(rendered, tmp_path / "out")
    fast, write = work_of(rendered, tmp_path / "out", 1, 2), local.write_durably

    def overtaken(path: Path, parts) -> None:
        write(path, parts)
        monkeypatch.setattr(local, "write_durably", write)
        run(fast)

    monkeypatch.setattr(local, "write_durably", overtaken)
    run(slow)
    assert len(PackedImages(tmp_path / "out")) == 5 * NUM_VIEWS
    assert not list((tmp_path / "out").glob(".writing-*"))


@pytest.mark.usefixtures("one_model_a_shard")
def test_finished_shards_are_kept_and_damaged_ones_packed_again(
    rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(work_of(rendered, out))
    before = content(out)
    shard = out / "shard-00002.tar"
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    packed: list[int] = []
    pack_shard = pack.pack_shard
    monkeypatch.setattr(pack, "pack_shard", lambda *args: (packed.append(args[2]), pack_shard(*args)))
    run(work_of(rendered, out))
    assert packed == [2]
    assert content(out) == before


def test_position_counts_shards_of_all_workers(
    rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = pack._cut
    monkeypatch.setattr(pack, "_cut", lambda models, _limit: cut(models, 1))
    first, second = (work_of(rendered, tmp_path / "out", rank, 2) for rank in (0, 1))
    first.step()
    second.step()
    assert (first.position().step, first.position().num_steps) == (2, 5)
    assert second.position().images == 2 * NUM_VIEWS


def test_a_folder_with_another_dataset_is_refused(rendered: Path, tmp_path: Path) -> None:
    run(work_of(rendered, tmp_path / "out"))
    add_model(rendered, "0f")
    with pytest.raises(UsageError, match="packed from other images"):
        work_of(rendered, tmp_path / "out")


def test_an_unfinished_dataset_may_change_and_leaves_no_old_shards(rendered: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(work_of(rendered, out))
    (out / INDEX_NAME).unlink()
    shutil.copy(out / "shard-00000.tar", out / "shard-00007.tar")
    shutil.rmtree(rendered / "img" / "02958343" / "0c")
    run(work_of(rendered, out))
    assert len(PackedImages(out)) == 4 * NUM_VIEWS
    assert sorted(path.name for path in out.glob("shard-*")) == ["shard-00000.tar"]


def spoil_cut_short(root: Path) -> Path:
    path = root / "img/02958343/0c/001.png"
    path.write_bytes(path.read_bytes()[:-40])
    return path


def spoil_text(root: Path) -> Path:
    path = root / "img/02958343/0c/001.png"
    path.write_text("no image")
    return path


def spoil_size(root: Path) -> Path:
    path = root / "img/02958343/0c/001.png"
    Image.new("RGBA", (9, 8)).save(path)
    return path


def spoil_alpha(root: Path) -> Path:
    path = root / "img/02958343/0c/001.png"
    Image.new("RGB", (8, 8)).save(path)
    return path


def spoil_missing_view(root: Path) -> Path:
    path = root / "img/02958343/0c/001.png"
    path.unlink()
    return path


def spoil_extra_view(root: Path) -> Path:
    path = root / "img/02958343/0c/preview.png"
    path.write_bytes(b"")
    return path


def spoil_no_camera(root: Path) -> Path:
    path = root / "camera/02958343/0c/rotation.npy"
    path.unlink()
    return path


def spoil_camera(root: Path) -> Path:
    path = root / "camera/02958343/0c/rotation.npy"
    path.write_bytes(path.read_bytes()[:20])
    return path


def spoil_archive(root: Path) -> Path:
    path = root / "camera/02958343/0c/rotation.npy"
    with path.open("wb") as file:
        np.savez(file, rotation=np.zeros(NUM_VIEWS))
    return path


def spoil_nan(root: Path) -> Path:
    path = root / "camera/02958343/0c/rotation.npy"
    np.save(path, np.array([1, np.nan, 2]))
    return path


def spoil_count(root: Path) -> Path:
    np.save(root / "camera/02958343/0c/rotation.npy", np.zeros(2))
    return root / "camera/02958343/0c"


SPOILED = [value for name, value in sorted(globals().items()) if name.startswith("spoil_")]


@pytest.mark.parametrize("spoil", SPOILED)
def test_bad_input_stops_packing_and_names_the_path(rendered: Path, tmp_path: Path, spoil) -> None:
    path = spoil(rendered)
    with pytest.raises(UsageError) as caught:
        run(work_of(rendered, tmp_path / "out"))
    assert str(path) in caught.value.what
    assert caught.value.way_out
    assert not (tmp_path / "out" / INDEX_NAME).exists()


@pytest.mark.parametrize("name", ["x" * 147, "caf\udce9"])
def test_a_name_that_no_tar_file_can_hold_is_refused(rendered: Path, tmp_path: Path, name: str) -> None:
    for part in ("img", "camera"):
        (rendered / part / "02958343" / "0c").rename(rendered / part / "02958343" / name)
    with pytest.raises(UsageError, match="too long for a tar file, or not UTF-8"):
        run(work_of(rendered, tmp_path / "out"))


def test_the_longest_name_that_a_tar_file_can_hold_is_packed(rendered: Path, tmp_path: Path) -> None:
    for part in ("img", "camera"):
        (rendered / part / "02958343" / "0c").rename(rendered / part / "02958343" / ("x" * 146))
    run(work_of(rendered, tmp_path / "out"))
    assert {sample.key for sample in read_index(tmp_path / "out").samples} >= {f"02958343/{'x' * 146}/000"}


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no rendered images"):
        work_of(tmp_path, tmp_path / "out")


@given(num_shards=st.integers(0, 30), world_size=st.integers(1, 9))
def test_workers_begin_apart_and_together_look_at_every_shard(num_shards: int, world_size: int) -> None:
    orders = [job.shard_order(num_shards, rank, world_size) for rank in range(world_size)]
    assert all(sorted(order) == list(range(num_shards)) for order in orders)
    own = [
        order[: (r + 1) * num_shards // world_size - r * num_shards // world_size]
        for r, order in enumerate(orders)
    ]
    assert [number for numbers in own for number in numbers] == list(range(num_shards))


def test_the_shapes_job_makes_each_model_once_with_any_workers(tmp_path: Path) -> None:
    config = shapes_job.Config(out=tmp_path, cars=0, chairs=3)
    workers = [shapes_job.make(config, SimpleNamespace(rank=rank, world_size=2)) for rank in (0, 1)]
    workers[1].step()
    assert workers[0].position().step == 1
    while not all(worker.is_done() for worker in workers):
        for worker in workers:
            if not worker.is_done():
                worker.step()
    assert len(list(tmp_path.glob("03001627/*/model.obj"))) == 3
    assert shapes_job.make(config, SimpleNamespace(rank=0, world_size=1)).is_done()


def test_packing_the_same_images_elsewhere_gives_the_same_fingerprint(rendered: Path, tmp_path: Path) -> None:
    shutil.copytree(rendered, tmp_path / "copy")
    run(work_of(rendered, tmp_path / "a"))
    run(work_of(tmp_path / "copy", tmp_path / "b"))
    assert PackedImages(tmp_path / "a").fingerprint == PackedImages(tmp_path / "b").fingerprint
    assert (tmp_path / "a" / "shard-00000.tar").read_bytes() == (
        tmp_path / "b" / "shard-00000.tar"
    ).read_bytes()


def test_tiff_holds_the_same_pixels_in_the_same_bytes_each_time(rendered: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(work_of(rendered, tmp_path / name, store="tiff"))
    assert content(tmp_path / "a") == content(tmp_path / "b")
    images = PackedImages(tmp_path / "a")
    for number, sample in enumerate(images.samples):
        synset, model, view = sample.key.split("/")
        with (
            Image.open(rendered / "img" / synset / model / f"{view}.png") as wanted,
            Image.open(io.BytesIO(images.read(number))) as found,
        ):
            assert found.format == "TIFF"
            assert found.tobytes() == wanted.tobytes()
    with tarfile.open(tmp_path / "a" / "shard-00000.tar") as tar:
        assert tar.getnames()[:2] == ["02958343/0a/000.tif", "02958343/0a/001.tif"]


def test_large_images_are_stored_as_tiff_and_small_ones_as_rendered(tmp_path: Path) -> None:
    for size in (pack.TIFF_FROM_PX, pack.TIFF_FROM_PX - 1):
        add_model(tmp_path / str(size), "0a", size=size)
        run(work_of(tmp_path / str(size), tmp_path / f"out{size}"))
        with Image.open(io.BytesIO(PackedImages(tmp_path / f"out{size}").read(0))) as image:
            assert image.format == ("TIFF" if size == pack.TIFF_FROM_PX else "PNG")


def test_another_way_to_store_never_replaces_a_dataset(rendered: Path, tmp_path: Path) -> None:
    run(work_of(rendered, tmp_path / "out"))
    work_of(rendered, tmp_path / "out", store="png")  # the same, as these are small
    with pytest.raises(UsageError, match="or store"):
        work_of(rendered, tmp_path / "out", store="tiff")


def test_what_the_render_job_says_of_its_images_lies_beside_them(rendered: Path, tmp_path: Path) -> None:
    (rendered / "sheet.png").write_bytes(b"a sheet")
    (rendered / "summary.html").write_bytes(b"a page")
    run(work_of(rendered, tmp_path / "out"))
    found = content(tmp_path / "out")
    assert (found["sheet.png"], found["summary.html"]) == (b"a sheet", b"a page")
    fingerprint = PackedImages(tmp_path / "out").fingerprint
    (rendered / "sheet.png").unlink()
    run(work_of(rendered, tmp_path / "without"))
    assert PackedImages(tmp_path / "without").fingerprint == fingerprint


def test_a_damaged_part_of_the_index_is_made_again(rendered: Path, tmp_path: Path) -> None:
    run(work_of(rendered, tmp_path / "out"))
    wanted = content(tmp_path / "out")
    (tmp_path / "out" / INDEX_NAME).unlink()
    (tmp_path / "out" / "parts" / "shard-00000.json").write_text('{"plan": "to')
    run(work_of(rendered, tmp_path / "out"))
    assert content(tmp_path / "out") == wanted


def test_an_output_that_is_a_file_is_refused(rendered: Path, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(UsageError, match="cannot be made a folder"):
        work_of(rendered, tmp_path / "out")


def test_webdataset_reads_images_and_cameras(rendered: Path, tmp_path: Path) -> None:
    run(work_of(rendered, tmp_path / "out"))
    shard = str(tmp_path / "out" / "shard-00000.tar")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import webdataset

        found = list(webdataset.WebDataset(shard, shardshuffle=False).decode("rgba8"))
    pictures = {row["__key__"]: row["png"] for row in found if "png" in row}
    cameras = [row["json"] for row in found if "json" in row]
    assert sorted(pictures) == [sample.key for sample in PackedImages(tmp_path / "out").samples]
    assert len(cameras) == 5
    assert len(cameras[0]["rotation_deg"]) == NUM_VIEWS
    wanted = np.asarray(Image.open(rendered / "img/02958343/0c/001.png"))
    np.testing.assert_array_equal(pictures["02958343/0c/001"], wanted)


ALL_CSV = """id,synsetId,subSynsetId,modelId,split
1,2958343,,0a,train
2,2958343,,0b,val
3,2958343,,0d,train
4,2958343,,never_rendered,train
5,3001627,,other,train
"""


def models_in(out: Path) -> list[str]:
    return sorted({sample.key.split("/")[1] for sample in read_index(out).samples})


def test_images_rendered_elsewhere_are_split_as_lists_say(rendered: Path, tmp_path: Path) -> None:
    table, few = tmp_path / "all.csv", tmp_path / "few.txt"
    table.write_text(ALL_CSV)
    few.write_text("# mine\n02958343/0c\n0e\n")
    run(work_of(rendered, tmp_path / "train", lists=(table,), splits=("train",)))
    assert models_in(tmp_path / "train") == ["0a", "0d"]
    run(work_of(rendered, tmp_path / "val", lists=(table,), splits=("val",)))
    assert models_in(tmp_path / "val") == ["0b"]
    run(work_of(rendered, tmp_path / "mine", lists=(few,)))
    assert models_in(tmp_path / "mine") == ["0c", "0e"]
    with pytest.raises(UsageError, match="lists"):  # the folder holds another split
        work_of(rendered, tmp_path / "train", lists=(table,), splits=("val",))


def test_what_is_listed_and_was_never_rendered_is_told(rendered: Path, tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text(ALL_CSV)
    wanted = read_lists((tmp_path / "all.csv",), ("train",))
    plan = pack.planned(rendered, 1, ("02958343",), wanted=wanted)
    assert plan.not_there == ("02958343/never_rendered",)
    assert pack.planned(rendered, 1, wanted=wanted).not_there == (
        "02958343/never_rendered",
        "03001627/other",
    )
    assert pack.planned(rendered, 1).not_there == ()
    said: list[dict[str, object]] = []
    work = work_of(rendered, tmp_path / "out", lists=(tmp_path / "all.csv",), splits=("train",))
    work._session.events.write = lambda name, **fields: said.append({"event": name, **fields})
    run(work)
    assert [(row["event"], row["listed_but_not_there"]) for row in said] == [("packed", 2)]


def test_a_model_that_no_list_names_may_be_broken(rendered: Path, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("0a\n")
    shutil.rmtree(rendered / "camera" / "02958343" / "0b")
    run(work_of(rendered, tmp_path / "out", lists=(tmp_path / "few.txt",)))
    assert models_in(tmp_path / "out") == ["0a"]


def test_lists_that_name_nothing_there_are_refused(rendered: Path, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("zz\n")
    with pytest.raises(UsageError, match=r"none of the 5 models .* is named in few.txt") as error:
        work_of(rendered, tmp_path / "out", lists=(tmp_path / "few.txt",))
    assert "02958343/0a" in error.value.way_out
    with pytest.raises(UsageError, match="chooses from no list"):
        work_of(rendered, tmp_path / "out", splits=("train",))
