import os
import resource
import signal
from pathlib import Path

import pytest

from get3d_cluster.errors import StorageError
from get3d_cluster.storage import open_storage
from get3d_cluster.storage.local import LocalStorage, clean_folder, create, write_atomic


@pytest.fixture(params=["local", "memory"])
def storage(request, tmp_path):
    return open_storage(tmp_path / "store" if request.param == "local" else f"memory://{tmp_path.name}")


def test_what_was_written_is_read_back_and_listed_in_order(storage):
    storage.write("b", {"x": b"1", "manifest.json": b"{}"})
    storage.write("a", {"x": [b"2", b"3"], "manifest.json": b"{}"})
    assert storage.list() == ["a", "b"]
    assert bytes(storage.read("a", "x")) == b"23"
    with pytest.raises(FileNotFoundError):
        storage.read("a", "y")


def test_a_name_is_written_once(storage):
    storage.write("a", {"x": b"1", "manifest.json": b"{}"})
    with pytest.raises(StorageError):
        storage.write("a", {"x": b"2", "manifest.json": b"{}"})
    assert bytes(storage.read("a", "x")) == b"1"


def test_deleted_and_set_aside_groups_are_no_longer_listed(storage):
    for name in ("a", "b"):
        storage.write(name, {"x": b"1", "manifest.json": b"{}"})
    storage.delete("a")
    storage.delete("never there")
    storage.set_aside("b")
    assert storage.list() == []
    storage.write("b", {"x": b"new", "manifest.json": b"{}"})
    assert bytes(storage.read("b", "x")) == b"new"


def test_what_was_set_aside_stays_and_its_name_says_why(storage):
    storage.write("b", {"x": b"1", "manifest.json": b"{}"})
    where = storage.set_aside("b", "rolled-back")
    storage.clean()
    assert storage.list() == []
    assert "rolled-back" in where
    assert Path(where).exists() or storage._fs.exists(where)


def test_a_full_disk_leaves_nothing_half_and_names_the_path(tmp_path):
    storage = LocalStorage(tmp_path)
    storage.write("old", {"x": b"kept"})
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(StorageError, match="new"):
            storage.write("new", {"y": b"1", "x": bytes(5000)})
        with pytest.raises(StorageError, match=r"file\.json"):
            write_atomic(tmp_path / "file.json", bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert storage.list() == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_what_a_killed_writer_left_is_invisible_and_cleaned(tmp_path):
    (tmp_path / ".writing-step-1-abcd").mkdir()
    storage = LocalStorage(tmp_path)
    assert storage.list() == []
    storage.clean()
    assert list(tmp_path.iterdir()) == []


def test_a_group_whose_deletion_was_killed_is_not_listed_and_its_rest_is_cleaned(tmp_path, monkeypatch):
    storage = LocalStorage(tmp_path)
    storage.write("a", {"x": b"1", "y": b"2"})

    def killed_midway(path, **_):
        (path / "x").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shutil.rmtree", killed_midway)
        storage.delete("a")
    assert storage.list() == []
    storage.clean()
    assert list(tmp_path.iterdir()) == []


def test_one_of_several_creates_a_file(tmp_path):
    path = tmp_path / "new" / "x"
    assert [create(path, data) for data in (b"1", b"2")] == [True, False]
    assert path.read_bytes() == b"1"


def test_what_killed_writers_left_is_removed_but_not_what_is_being_written(tmp_path):
    old, new, other = (tmp_path / name for name in (".writing-a.json-01", ".writing-b.json-02", "c.json"))
    for path in (old, new, other):
        path.write_text("")
    for path in (old, other):
        os.utime(path, (1, 1))
    clean_folder(tmp_path)
    clean_folder(tmp_path / "nowhere")
    assert sorted(tmp_path.iterdir()) == sorted([new, other])


def test_replacing_a_file_keeps_the_old_one_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_atomic(path, b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StorageError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_remains_in_a_folder_of_one_writer_go_at_once_and_elsewhere_when_they_are_old(tmp_path):
    def remains():
        for name in (".writing-000.png-ab", "seed-1/.writing-a.obj-cd"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("half")
        (tmp_path / ".writing-folder").mkdir(exist_ok=True)
        (tmp_path / ".writing-folder" / "x").write_text("half")
        (tmp_path / "seed-1" / "a.obj").write_text("whole")

    def left():
        return sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())

    remains()
    clean_folder(tmp_path, is_deep=True)
    assert len(left()) == 4, "another process may be writing them"
    clean_folder(tmp_path, is_ours=True, is_deep=True)
    assert left() == ["seed-1/a.obj"]
    clean_folder(tmp_path / "nowhere", is_ours=True, is_deep=True)
