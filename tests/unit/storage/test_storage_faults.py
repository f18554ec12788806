"""What storage does when its disk, its network or another machine's clock misbehaves."""

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from get3d_cluster.errors import StorageError
from get3d_cluster.storage import local, open_storage
from get3d_cluster.storage.local import LocalStorage, clean_folder, create, write_atomic
from tests.fault_points import Call, fault_points


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Wait for nothing; tell how long it would have been."""
    told: list[float] = []
    monkeypatch.setattr(local.time, "sleep", told.append)
    return told


def stale(times: int) -> Any:
    """Return a meeting at which the first ``times`` reads and lists find a stale handle."""
    left = [times]

    def meet(call: Call) -> Any:
        if call.kind in ("read", "list") and left[0] > 0:
            left[0] -= 1
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(call.path))
        return call.go()

    return meet


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_stale_handle_is_looked_up_anew_a_few_times(tmp_path: Path, times: int) -> None:
    storage = LocalStorage(tmp_path)
    storage.write("a", {"x": b"1"})
    with fault_points(tmp_path, stale(times)):
        assert bytes(storage.read("a", "x")) == b"1"
    with fault_points(tmp_path, stale(times)):
        assert storage.list() == ["a"]


def test_a_handle_that_stays_stale_is_an_error_and_no_empty_folder(
    tmp_path: Path, waits: list[float]
) -> None:
    storage = LocalStorage(tmp_path)
    storage.write("a", {"x": b"1"})
    for act in (storage.list, lambda: storage.read("a", "x")):
        with fault_points(tmp_path, stale(100)), pytest.raises(OSError, match="Stale") as caught:
            act()
        assert caught.value.errno == errno.ESTALE
    assert 0 < sum(waits) < 10


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.ESTALE]
)
def test_whatever_fails_in_a_write_is_told_with_path_and_reason_and_leaves_nothing(
    tmp_path: Path, number: int
) -> None:
    storage = LocalStorage(tmp_path)
    storage.write("old", {"x": b"kept"})
    acts = {
        "new": lambda: storage.write("new", {"x": b"1", "y": [b"2", b"3"]}),
        "file.json": lambda: write_atomic(tmp_path / "file.json", b"{}"),
        "made": lambda: create(tmp_path / "made", b"{}"),
    }
    for name, act in acts.items():
        with fault_points(tmp_path, lambda call: call.go()) as met:
            act()
        kinds = [(call.number, call.kind) for call in met if call.kind not in ("mkdir", "look")]
        assert {kind for _, kind in kinds} >= {"create", "write", "fsync"}
        for at, _ in kinds:
            clear(tmp_path)
            with (
                fault_points(tmp_path, failing(at, number)),
                pytest.raises(StorageError, match=name) as caught,
            ):
                act()
            assert os.strerror(number) in caught.value.what
            assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
            assert bytes(storage.read("old", "x")) == b"kept"


def failing(at: int, number: int) -> Any:
    def meet(call: Call) -> Any:
        if call.number == at:
            raise OSError(number, os.strerror(number), str(call.path))
        return call.go()

    return meet


def clear(folder: Path) -> None:
    LocalStorage(folder).delete("new")
    for name in ("file.json", "made"):
        (folder / name).unlink(missing_ok=True)


def test_every_rename_stays_in_its_folder_so_that_no_second_file_system_is_crossed(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "store")
    with fault_points(tmp_path, lambda call: call.go()) as met:
        storage.write("a", {"x": b"1"})
        storage.write("b", {"x": b"1"})
        storage.set_aside("a")
        storage.delete("b")
        write_atomic(tmp_path / "file.json", b"{}")
    renames = [call for call in met if call.kind == "rename"]
    assert len(renames) == 5
    assert all(call.target is not None and call.target.parent == call.path.parent for call in renames)


def test_what_twenty_killed_writers_left_is_cleaned(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.write("a", {"x": b"1"})
    for number in range(20):
        scrap = tmp_path / f".{'writing' if number % 2 else 'deleting'}-a-{number:08x}"
        scrap.mkdir()
        (scrap / "x").write_bytes(b"half")
    assert storage.list() == ["a"]
    storage.clean()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("ahead_s", [3600.0, -3600.0])
def test_a_machine_whose_clock_is_wrong_takes_nothing_from_those_who_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    new, old = tmp_path / ".writing-a.json-01", tmp_path / ".writing-b.json-02"
    for path in (new, old):
        path.write_text("")
    there_s = new.stat().st_mtime
    os.utime(old, (there_s - 90, there_s - 90))
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + ahead_s)
    clean_folder(tmp_path)
    assert list(tmp_path.iterdir()) == [new]


def test_an_upload_that_dies_at_any_object_is_no_checkpoint_and_is_cleaned(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    storage: Any = open_storage(f"memory://{tmp_path.name}")
    files = {"manifest.json": b"{}", "x": b"1", "y": b"2"}
    storage.write("old", files)
    real = storage._fs.pipe_file
    for at in (1, 2, 3):
        sent = []

        def dying(path: str, *args: Any, at: int = at, sent: list[str] = sent, **options: Any) -> None:
            sent.append(path)
            if len(sent) == at:
                raise TimeoutError(errno.ETIMEDOUT, "the connection was lost")
            real(path, *args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(storage._fs, "pipe_file", dying)
            with pytest.raises(StorageError, match="the connection was lost"):
                storage.write("new", files)
        assert storage.list() == ["old"]
        assert len(storage._fs.find(f"{storage._root}/new")) == at - 1
        storage.clean()
        assert storage._fs.find(f"{storage._root}/new") == []
        assert bytes(storage.read("old", "x")) == b"1"
    storage.write("new", files)
    assert storage.list() == ["new", "old"]
