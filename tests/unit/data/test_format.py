import io
import json
import tarfile
from pathlib import Path

import pytest

from get3d_cluster.data.format import (
    INDEX_NAME,
    Index,
    Member,
    PackedImages,
    Sample,
    Shard,
    digest_of,
    index_bytes,
    read_index,
    write_shard,
)
from get3d_cluster.errors import UsageError

MEMBERS = [Member(name=f"02958343/m/{n:03d}.png", data=b"x" * n) for n in (0, 1, 511, 512, 513)]
MEMBERS.append(Member(name=f"02958343/{'e' * 130}/000.png", data=b"a name too long for the plain field"))


def packed(folder: Path) -> Path:
    """Write a dataset of two shards with three images."""
    rows = [[Member(name="s/a/000.png", data=b"first"), Member(name="s/a/001.png", data=b"second")]]
    rows.append([Member(name="s/b/000.png", data=b"third")])
    shards, samples = [], []
    for number, members in enumerate(rows):
        data, places = write_shard(members)
        name = f"shard-{number:05d}.tar"
        (folder / name).write_bytes(data)
        shards.append(Shard(name=name, size=len(data), xxh3_64=digest_of(data)))
        samples += [
            Sample(
                key=member.name.removesuffix(".png"),
                shard=number,
                offset=offset,
                size=size,
                xxh3_64=digest_of(member.data),
                rotation_deg=10.5 * number,
                elevation_deg=1 / 3,
            )
            for member, (offset, size) in zip(members, places, strict=True)
        ]
    index = Index(resolution=4, shards=tuple(shards), samples=tuple(samples))
    (folder / INDEX_NAME).write_bytes(index_bytes(index))
    return folder


def test_a_shard_is_a_plain_tar_and_its_offsets_point_at_the_data() -> None:
    data, places = write_shard(MEMBERS)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert [(i.name, i.mtime, i.uid, i.gid, i.uname) for i in tar] == [
            (m.name, 0, 0, 0, "") for m in MEMBERS
        ]
    assert [data[offset : offset + size] for offset, size in places] == [m.data for m in MEMBERS]


def test_packing_again_gives_the_same_bytes() -> None:
    assert write_shard(MEMBERS) == write_shard(list(MEMBERS))


def test_what_was_packed_is_read_back(tmp_path: Path) -> None:
    images = PackedImages(packed(tmp_path))
    assert [images.read(i) for i in range(len(images))] == [b"first", b"second", b"third"]
    assert [s.key for s in images.samples] == ["s/a/000", "s/a/001", "s/b/000"]
    assert images.samples[2].elevation_deg == 1 / 3
    assert images.resolution == 4


def test_the_fingerprint_changes_with_any_image_or_camera(tmp_path: Path) -> None:
    first = read_index(packed(tmp_path)).fingerprint
    assert read_index(packed(tmp_path)).fingerprint == first
    path = tmp_path / INDEX_NAME
    path.write_text(path.read_text().replace("10.5", "10.6"))
    assert read_index(tmp_path).fingerprint != first


def test_a_flipped_bit_is_found_and_named_with_shard_and_key(tmp_path: Path) -> None:
    shard = packed(tmp_path) / "shard-00000.tar"
    data = bytearray(shard.read_bytes())
    data[data.index(b"second")] ^= 1
    shard.write_bytes(data)
    images = PackedImages(tmp_path)
    assert images.read(0) == b"first"
    with pytest.raises(UsageError, match=r"s/a/001 in .*shard-00000.tar is damaged") as caught:
        images.read(1)
    assert "run pack" in caught.value.way_out


def test_a_missing_folder_says_how_to_pack(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no packed dataset") as caught:
        PackedImages(tmp_path / "nothing")
    assert "python launch.py run pack images=" in caught.value.way_out


def test_a_missing_or_short_shard_is_found_before_training(tmp_path: Path) -> None:
    shard = packed(tmp_path) / "shard-00001.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UsageError, match="bytes instead of"):
        PackedImages(tmp_path)
    shard.unlink()
    with pytest.raises(UsageError, match=r"shard-00001.tar is missing"):
        PackedImages(tmp_path)


def test_a_damaged_foreign_or_empty_index_is_refused_with_its_path(tmp_path: Path) -> None:
    path = packed(tmp_path) / INDEX_NAME
    good = json.loads(path.read_text())
    bad = [
        path.read_text()[:-9],
        "[]",
        "{}",
        json.dumps(good | {"format": 99}),
        json.dumps(good | {"samples": []}),
        json.dumps(good | {"shards": good["shards"][:1]}),
        json.dumps(good | {"samples": [[1, 2]]}),
    ]
    for text in bad:
        path.write_text(text)
        with pytest.raises(UsageError, match=INDEX_NAME):
            read_index(tmp_path)
