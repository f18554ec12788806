"""Checkpoints on disks that lie, lists that lag, clocks that jump; leases and claims among the same."""

import errno
import hashlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.errors import CheckpointError, FencedError, StorageError
from get3d_cluster.runtime import lease
from get3d_cluster.runtime.checkpoint import Checkpoints, list_checkpoints, state_digest
from get3d_cluster.runtime.claims import Claims, Owner
from get3d_cluster.runtime.env import ProcessId
from get3d_cluster.runtime.lease import Lease, is_held
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.storage import open_storage
from get3d_cluster.storage.local import LocalStorage
from tests.fault_points import Call, fault_points


def a_state(step: int) -> dict[str, Any]:
    return {"net": {"w": torch.full((64,), float(step))}, "counters": {"step": step}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def checkpoints(folder: Path) -> Checkpoints:
    return Checkpoints(open_storage(folder), CheckpointConfig(keep_last=2), lambda: None)


def name(step: int) -> str:
    return f"step-{step:09d}"


def error(number: int, path: Path | str = "/disk/x") -> OSError:
    return OSError(number, os.strerror(number), str(path))


def test_nothing_is_deleted_before_the_new_one_was_read_back(
    folder: Path, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        checkpoints.save(step, a_state(step), {})
    real = LocalStorage.write

    def lying(self: LocalStorage, target: str, files: Any) -> None:
        real(self, target, files)
        path = folder / target / "net.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"?")

    for step in (3, 4, 5):  # a disk that damages each one
        with monkeypatch.context() as patch:
            patch.setattr(LocalStorage, "write", lying)
            with pytest.raises(StorageError, match=rf"{name(step)}.*set aside"):
                checkpoints.save(step, a_state(step), {})
        assert checkpoints.load().step == 2
        assert sorted(path.name for path in folder.glob("step-*")) == [name(1), name(2)]
    checkpoints.save(6, a_state(6), {})
    assert sorted(path.name for path in folder.glob("step-*")) == [name(2), name(6)]


def test_a_checkpoint_that_cannot_be_read_now_is_not_damaged(
    folder: Path, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        checkpoints.save(step, a_state(step), {})
    real = LocalStorage.read

    def read(self: LocalStorage, target: str, file: str) -> memoryview:
        if (target, file) == (name(2), "net.safetensors"):
            raise error(number, folder / target / file)
        return real(self, target, file)

    monkeypatch.setattr(LocalStorage, "read", read)
    for number in (errno.EACCES, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE):
        with pytest.raises(CheckpointError, match=os.strerror(number)) as caught:
            checkpoints.load()
        assert str(folder / name(2)) in caught.value.what
    assert len(list(folder.iterdir())) == 2
    number = errno.EIO  # of this one file: its sectors are gone
    assert checkpoints.load().step == 1


def test_another_format_is_refused_with_the_version_to_take_and_left_where_it_is(
    folder: Path, checkpoints: Checkpoints
) -> None:
    for step in (1, 2):
        checkpoints.save(step, a_state(step), {})
    path = folder / name(2) / "manifest.json"
    body = json.loads(path.read_text())["body"] | {"format": 99}
    text = json.dumps(body, indent=1, sort_keys=True)
    path.write_text(json.dumps({"body": body, "sha256": hashlib.sha256(text.encode()).hexdigest()}))
    for _ in range(2):
        with pytest.raises(CheckpointError, match=f"{name(2)} has format 99"):
            checkpoints.load()
    assert path.exists()


def test_a_list_that_hides_the_newest_costs_steps_and_no_bit(
    folder: Path, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        checkpoints.save(step, a_state(step), {})
    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "list", lambda _self: [name(1)])
        assert checkpoints.load().step == 1
        saved = checkpoints.save(2, a_state(2), {})  # the same bits again, while the list still hides it
    assert saved.digest == checkpoints.load().digest == state_digest(a_state(2))
    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "list", lambda _self: [name(1)])
        other = checkpoints.save(2, a_state(20), {})  # other bits, as after a change of configuration
    assert checkpoints.load().digest == other.digest
    assert len(list(folder.glob(f".damaged-{name(2)}-*"))) == 1


def test_a_list_that_fails_between_saving_and_deleting_loses_nothing(
    checkpoints: Checkpoints, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        checkpoints.save(step, a_state(step), {})
    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "list", lambda _self: (_ for _ in ()).throw(error(errno.EIO)))
        assert checkpoints.save(3, a_state(3), {}).step == 3
    assert len(list(folder.glob("step-*"))) == 3
    checkpoints.save(4, a_state(4), {})
    assert sorted(path.name for path in folder.glob("step-*")) == [name(3), name(4)]


def test_what_was_saved_is_the_state_of_that_moment_whatever_happens_to_it_next(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    state = a_state(1)
    before = threading.active_count()
    saved = checkpoints.save(1, state, {})
    assert threading.active_count() == before  # nothing is in flight any more
    state["net"]["w"].add_(1)
    loaded = checkpoints.load()
    assert loaded is not None
    assert loaded.digest == saved.digest == state_digest(loaded.state) == state_digest(a_state(1))


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_clock_that_jumps_orders_nothing(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    old, new = Lease(tmp_path / "lease.json", 1), Lease(tmp_path / "lease.json", 2)
    old.acquire()
    checkpoints.save(1, a_state(1), {})
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + jump_s)
    saved = checkpoints.save(2, a_state(2), {})
    assert 0 <= saved.seconds < 60
    assert checkpoints.load().step == 2
    assert [info.step for info in list_checkpoints(RunFolder(tmp_path))] == [1, 2]
    new.acquire()
    new.check()
    with pytest.raises(FencedError, match="attempt 2"):
        old.check()
    assert is_held(tmp_path / "lease.json")["fence"] == 2
    new.release()


def test_a_lease_whose_own_file_cannot_be_read_for_a_moment_is_not_lost(tmp_path: Path) -> None:
    mine = Lease(tmp_path / "lease.json", 3)
    mine.acquire()

    def unreadable(call: Call) -> Any:
        if call.kind == "read":
            raise error(errno.EIO, call.path)
        return call.go()

    with fault_points(tmp_path, unreadable):
        mine.check()
        mine.beat()
    assert not mine.is_lost
    with pytest.raises(FencedError):
        Lease(tmp_path / "lease.json", 3).acquire()
    mine.release()


def test_a_list_of_leases_that_fails_once_ends_neither_the_beats_nor_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.02)
    mine = Lease(tmp_path / "lease.json", 1)
    real, calls = lease._fences, []

    def fences(path: Path) -> list[int]:
        calls.append(path)
        if threading.current_thread().name == "lease" and len(calls) % 2:
            raise StorageError("cannot read leases")
        return real(path)

    mine.acquire()
    monkeypatch.setattr(lease, "_fences", fences)
    end_s = time.monotonic() + 60
    while lease.read_lease(tmp_path / "lease.json")["beat"] < 3 and time.monotonic() < end_s:
        time.sleep(0.01)
    monkeypatch.setattr(lease, "_fences", real)
    assert lease.read_lease(tmp_path / "lease.json")["beat"] >= 3
    mine.release()
    with (
        fault_points(tmp_path, lambda call: call.go() if call.kind != "list" else fail(call)),
        pytest.raises(StorageError, match=str(tmp_path / "leases")),
    ):
        mine.check()


def fail(call: Call) -> None:
    raise error(errno.EIO, call.path)


def test_a_claim_that_a_full_disk_cut_short_is_nobodys(tmp_path: Path) -> None:
    claims = Claims(tmp_path, Owner(process=ProcessId.mine()))

    def short(call: Call) -> Any:
        return call.write(bytes(call.data or b"")[:5]) if call.kind == "write" and call.write else call.go()

    def full(call: Call) -> Any:
        return fail_with_full_disk(call) if call.kind in ("write", "fsync") else call.go()

    for meet in (short, full):
        with fault_points(tmp_path, meet), pytest.raises(OSError, match="No space left"):
            claims.claim("model")
        assert list(tmp_path.iterdir()) == []
    assert claims.claim("model")
    claims.release_all()


def fail_with_full_disk(call: Call) -> None:
    raise error(errno.ENOSPC, call.path)
