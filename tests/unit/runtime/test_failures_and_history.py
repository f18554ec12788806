import errno
import hashlib
import json
import os

import pytest
import torch
import xxhash

from get3d_cluster.core.job import CheckpointConfig, JobSpec
from get3d_cluster.errors import CheckpointError, StorageError, UsageError
from get3d_cluster.runtime import failures
from get3d_cluster.runtime.checkpoint import Checkpoints
from get3d_cluster.runtime.events import EventLog, MetricLog, read_rows
from get3d_cluster.runtime.failures import Failure, failure_of
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.storage import open_storage


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(open_storage(tmp_path / "checkpoints"), CheckpointConfig(keep_last=2), lambda: None)


STATE = {"net": {"w": torch.ones(3)}, "counters": {"step": 1}}


def test_an_error_is_at_most_three_lines_and_a_bug_names_its_log(tmp_path):
    known = failure_of(UsageError("a\nb\nc\nd", "out\nmore"), 1, tmp_path)
    assert (known.exit_code, known.lines) == (2, ("a", "b", "out"))
    bug = failure_of(ValueError("first\nsecond"), 3, tmp_path)
    assert bug.is_bug
    assert bug.lines[0] == "rank 3: ValueError: first"
    assert f"logs {tmp_path} --rank 3" in bug.lines[1]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_a_full_disk_anywhere_is_a_storage_error_with_its_path(number):
    error = failures.explained(OSError(number, os.strerror(number), "/disk/preview.png"))
    assert isinstance(error, StorageError)
    assert "/disk/preview.png" in error.what
    assert failures.explained(OSError(errno.ENOENT, "no such file", "x")) is None


def test_the_failure_that_was_left_first_is_the_reason(tmp_path):
    for rank, seconds in ((0, 20), (2, 10), (1, 10)):
        code = 1 if rank == 1 else 2
        failures.leave(tmp_path, Failure(rank=rank, exit_code=code, lines=(f"rank {rank}",)))
        os.utime(tmp_path / f"error.rank{rank:04d}.json", (seconds, seconds))
    (tmp_path / "error.rank0007.json").write_text('{"torn')
    found = failures.first(tmp_path)
    assert found == Failure(rank=2, exit_code=2, lines=("rank 2",))


def test_rows_that_a_full_disk_refused_are_written_in_order_once_there_is_space(tmp_path, monkeypatch):
    metrics, events = MetricLog(tmp_path / "metrics.jsonl"), EventLog(tmp_path / "events.jsonl", 1, 0)
    metrics.write(1)
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:5]))  # cut short, as ENOSPC may
    metrics.write(2)
    monkeypatch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    metrics.write(3)
    events.write("save-failed")
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1]
    monkeypatch.setattr(os, "write", real)
    metrics.flush()
    events.write("save")
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert [row["event"] for row in read_rows(tmp_path / "events.jsonl")] == ["save-failed", "save"]


def test_all_damaged_is_refused_each_time_not_only_once(tmp_path, checkpoints):
    checkpoints.save(1, STATE, {})
    (tmp_path / "checkpoints" / "step-000000001" / "net.safetensors").write_bytes(b"")
    for _ in range(3):
        with pytest.raises(CheckpointError, match="step-000000001"):
            checkpoints.load()


def test_a_folder_that_cannot_be_read_is_no_empty_one(checkpoints, monkeypatch):
    def refuse(_self):
        raise PermissionError(errno.EACCES, "Permission denied", "/disk/checkpoints")

    monkeypatch.setattr("get3d_cluster.storage.local.LocalStorage.list", refuse)
    with pytest.raises(CheckpointError, match="/disk/checkpoints: Permission denied"):
        checkpoints.load()


def test_what_else_lies_in_the_folder_is_left_alone(tmp_path, checkpoints):
    for name in ("lost+found", "step-backup", "zzz"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert checkpoints.load() is None
    for step in (1, 2, 3):
        checkpoints.save(step, STATE, {})
    assert checkpoints.load().step == 3
    assert (tmp_path / "checkpoints" / "lost+found").is_dir()


def test_bytes_that_are_no_tensors_are_damage_even_with_right_digests(tmp_path, checkpoints):
    checkpoints.save(1, STATE, {})
    checkpoints.save(2, STATE, {})
    folder = tmp_path / "checkpoints" / "step-000000002"
    pickled = b"cos\nsystem\n(S'true'\ntR."
    (folder / "net.safetensors").write_bytes(pickled)
    body = json.loads((folder / "manifest.json").read_text())["body"]
    entry = {"bytes": len(pickled), "xxh3_128": xxhash.xxh3_128_hexdigest(pickled)}
    body["files"]["net.safetensors"] = entry
    text = json.dumps(body, indent=1, sort_keys=True)
    signed = {"body": body, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(signed))
    loaded = checkpoints.load()
    assert loaded.step == 1
    assert "cannot be decoded" in loaded.damaged[0]


def test_a_spec_that_lacks_a_field_is_named(tmp_path):
    run = RunFolder(tmp_path)
    run.write_spec(JobSpec(name="run", job="train", kind="steps", created="now"))
    data = json.loads(run.spec_path.read_text())
    del data["job"]
    run.spec_path.write_text(json.dumps(data))
    with pytest.raises(UsageError, match=r"spec\.json lacks 'job'"):
        run.spec()
