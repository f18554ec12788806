import io
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from get3d_cluster.data import check
from get3d_cluster.data.check import Trouble
from get3d_cluster.data.format import INDEX_NAME, PackedImages
from get3d_cluster.errors import DifferenceError, StorageError, UsageError
from jobs import check as job
from preprocess import pack
from preprocess.lists import Wanted, read_lists

NUM_VIEWS = 3
MODELS = ["0a", "0b", "0c", "0d"]


def render(root: Path, models: list[str]) -> Path:
    for seed, model in enumerate(models):
        rng = np.random.Generator(np.random.PCG64(seed))
        images, cameras = root / "img" / "02958343" / model, root / "camera" / "02958343" / model
        images.mkdir(parents=True)
        cameras.mkdir(parents=True)
        for view in range(NUM_VIEWS):
            Image.fromarray(rng.integers(0, 256, (8, 8, 4), dtype=np.uint8)).save(images / f"{view:03d}.png")
        for name in ("rotation", "elevation"):
            np.save(cameras / f"{name}.npy", rng.random(NUM_VIEWS))
    return root


def pack_all(rendered: Path, out: Path, wanted: Wanted | None = None) -> Path:
    plan = pack.planned(rendered, 1, wanted=wanted)
    pack.open_folder(out, plan)
    for number in range(len(plan.shards)):
        pack.pack_shard(out, plan, number)
    pack.write_index(out, plan)
    return out


@pytest.fixture
def rendered(tmp_path: Path) -> Path:
    return render(tmp_path / "rendered", MODELS)


@pytest.fixture
def data(rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset of one shard for each model."""
    cut = pack._cut
    monkeypatch.setattr(pack, "_cut", lambda models, _limit: cut(models, 1))
    return pack_all(rendered, tmp_path / "data")


def work_of(data: Path | str, run: Path, rank: int = 0, world_size: int = 1, attempt: int = 1, **settings):
    session = SimpleNamespace(
        rank=rank,
        world_size=world_size,
        attempt=attempt,
        is_lead=rank == 0,
        run=SimpleNamespace(path=run),
        events=SimpleNamespace(write=lambda *_, **__: None),
    )
    run.mkdir(exist_ok=True)
    return job.make(job.Config(data=str(data), **settings), session)


def finish(work) -> None:
    while not work.is_done():
        work.step()
    work.close()


def findings(work, run: Path) -> list[dict]:
    with pytest.raises(DifferenceError) as caught:
        finish(work)
    assert str(run / "check.jsonl") in caught.value.way_out
    return [json.loads(line) for line in (run / "check.jsonl").read_text().splitlines()]


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("block_bytes", [700, 2**20])
def test_a_whole_dataset_passes_from_a_folder_and_from_a_url(
    data, rendered, tmp_path, monkeypatch, block_bytes
):
    monkeypatch.setattr(check, "BLOCK_BYTES", block_bytes)
    for number, location in enumerate((data, f"file://{data}")):
        run = tmp_path / f"run{number}"
        finish(work_of(location, run, images=rendered))
        assert (run / "check.jsonl").read_text() == ""


@pytest.mark.parametrize("block_bytes", [700, 2**20])
def test_each_trouble_is_found_with_key_and_shard(data, tmp_path, monkeypatch, block_bytes) -> None:
    monkeypatch.setattr(check, "BLOCK_BYTES", block_bytes)
    samples = PackedImages(data).samples
    flip(data / "shard-00000.tar", samples[1].offset + 9)
    short = data / "shard-00001.tar"
    short.write_bytes(short.read_bytes()[: samples[4].offset + 10])
    (data / "shard-00002.tar").unlink()
    flip(data / "shard-00003.tar", samples[11].offset - 512)  # the first letter of its name in the tar
    found = {
        (row["trouble"], row["key"]): row
        for row in findings(work_of(data, tmp_path / "run"), tmp_path / "run")
    }
    assert set(found) == {
        ("damaged", "02958343/0a/001"),
        ("missing", "02958343/0b/001"),
        ("missing", "02958343/0b/002"),
        *(("missing", f"02958343/0c/00{view}") for view in range(3)),
        ("damaged", "02958343/0d/002"),
    }
    assert "calls it" in found["damaged", "02958343/0d/002"]["why"]
    assert found["missing", "02958343/0b/002"]["shard"] == "shard-00001.tar"


def test_damage_outside_of_the_images_is_found(data, tmp_path) -> None:
    content = (data / "shard-00000.tar").read_bytes()
    flip(data / "shard-00000.tar", content.index(b"rotation_deg"))
    (row,) = findings(work_of(data, tmp_path / "run"), tmp_path / "run")
    assert (row["trouble"], row["key"], row["shard"]) == ("damaged", "", "shard-00000.tar")


def test_every_flipped_byte_of_a_shard_is_found(data, tmp_path) -> None:
    images, good = PackedImages(data), (data / "shard-00000.tar").read_bytes()
    samples = [images.samples[number] for number in check.by_shard(images.index)[0]]
    for offset in range(0, len(good), 97):
        (data / "shard-00000.tar").write_bytes(good)
        flip(data / "shard-00000.tar", offset)
        assert check.check_shard(images._source, images.index.shards[0], samples)


def test_images_with_the_same_bytes_are_duplicates_unless_allowed(rendered, tmp_path) -> None:
    (rendered / "img/02958343/0c/001.png").write_bytes((rendered / "img/02958343/0a/002.png").read_bytes())
    data = pack_all(rendered, tmp_path / "out")
    (row,) = findings(work_of(data, tmp_path / "run"), tmp_path / "run")
    assert (row["trouble"], row["key"]) == ("duplicate", "02958343/0c/001")
    assert "02958343/0a/002" in row["why"]
    finish(work_of(data, tmp_path / "allowed", allow_duplicates=True))


def test_a_key_that_is_listed_twice_is_found(data, tmp_path) -> None:
    index = data / INDEX_NAME
    index.write_text(index.read_text().replace('"02958343/0a/001"', '"02958343/0a/000"'))
    rows = findings(work_of(data, tmp_path / "run"), tmp_path / "run")
    assert {row["trouble"] for row in rows} == {"damaged", "duplicate"}


def test_rendered_views_that_were_never_packed_are_missing(data, rendered, tmp_path) -> None:
    render(tmp_path / "rendered", ["0e"])
    rows = findings(work_of(data, tmp_path / "run", images=rendered), tmp_path / "run")
    assert [row["key"] for row in rows] == [f"02958343/0e/00{view}" for view in range(3)]


def test_workers_share_the_shards_and_come_to_one_verdict(data, tmp_path) -> None:
    flip(data / "shard-00003.tar", PackedImages(data).samples[11].offset)
    workers = [work_of(data, tmp_path / "run", rank, 3) for rank in range(3)]
    for _ in range(2):
        for worker in workers:
            worker.step()
    assert workers[0].position().step == 4
    verdicts = [findings(worker, tmp_path / "run") for worker in workers]
    assert verdicts[0] == verdicts[1] == verdicts[2]
    assert len(verdicts[0]) == 1


def test_a_later_attempt_reads_again_only_what_was_wrong(data, tmp_path, monkeypatch) -> None:
    shard = data / "shard-00001.tar"
    good = shard.read_bytes()
    flip(shard, 5)
    findings(work_of(data, tmp_path / "run"), tmp_path / "run")
    shard.write_bytes(good)
    read, real = [], check.check_shard
    monkeypatch.setattr(check, "check_shard", lambda *args: (read.append(args[1].name), real(*args))[1])
    finish(work_of(data, tmp_path / "run", attempt=2))
    assert read == ["shard-00001.tar"]
    assert (tmp_path / "run/check.jsonl").read_text() == ""


def test_a_store_out_of_reach_is_no_finding(data) -> None:
    images = PackedImages(data)

    class Away:
        def sizes(self, names):
            raise StorageError("out of reach", "check the network")

    with pytest.raises(StorageError):
        check.check_shard(Away(), images.index.shards[0], ())


def test_no_dataset_is_told_as_everywhere(tmp_path) -> None:
    with pytest.raises(UsageError, match="no packed dataset"):
        work_of(tmp_path / "nothing", tmp_path / "run")


def test_the_summary_counts_each_trouble() -> None:
    found = [
        check.Finding(trouble=t, shard="s.tar", key="a/b/000", why="w") for t in (*Trouble, Trouble.MISSING)
    ]
    assert check.summary(found) == "2 missing, 1 damaged, 1 duplicate; first: a/b/000 in s.tar: w"


def test_a_shard_that_another_tar_wrote_is_no_longer_the_dataset(data, tmp_path) -> None:
    members = {}
    with tarfile.open(data / "shard-00000.tar") as tar:
        for info in tar:
            members[info.name] = tar.extractfile(info).read()
    with tarfile.open(data / "shard-00000.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in sorted(members.items(), reverse=True):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert findings(work_of(data, tmp_path / "run"), tmp_path / "run")


def test_views_that_were_never_to_be_packed_are_not_missing(rendered: Path, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("0a\n0c\n")
    lists = (tmp_path / "few.txt",)
    data = pack_all(rendered, tmp_path / "some", read_lists(lists))
    finish(work_of(data, tmp_path / "run", images=rendered, lists=lists))
    with pytest.raises(DifferenceError, match="6 missing"):
        finish(work_of(data, tmp_path / "without", images=rendered))
