import pickle
import sys
from pathlib import Path

import fsspec
import pytest

from get3d_cluster.errors import Get3dError, StorageError, UsageError
from get3d_cluster.storage import open_storage, remote
from get3d_cluster.storage.remote import WAITS_S, RemoteFolder


class Flaky:
    """A file system that raises, or cuts short, what it is told to before it works."""

    def __init__(self, *troubles: object) -> None:
        self.troubles = list(troubles)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        trouble = self.troubles.pop(0) if self.troubles else None
        if isinstance(trouble, Exception):
            raise trouble
        data = b"0123456789"[start:end]
        return data[:trouble] if isinstance(trouble, int) else data


class NoCredentialsError(Exception):
    """Named as the S3 client names it; no OSError."""


def folder_on(monkeypatch: pytest.MonkeyPatch, fs: Flaky) -> tuple[RemoteFolder, list[float]]:
    waits: list[float] = []
    monkeypatch.setattr(remote, "connect", lambda _url: (fs, "bucket"))
    return RemoteFolder("s3://bucket", sleep=waits.append), waits


def test_ranges_and_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    for url in (f"memory://{tmp_path.name}", f"file://{tmp_path}"):
        fs, root = fsspec.core.url_to_fs(url)
        fs.pipe({f"{root}/a": b"0123456789", f"{root}/b": b""})
        folder = RemoteFolder(f"{url}/")
        assert folder.read("a") == b"0123456789"
        assert folder.read("a", 3, 4) == b"3456"
        assert folder.read("a", 0, 4) == b"0123"
        assert folder.read("a", 10, 0) == b""
        assert folder.sizes(["a", "b"]) == [10, 0]


def test_passing_troubles_are_waited_out_longer_each_time(monkeypatch) -> None:
    fs = Flaky(ConnectionError("reset"), TimeoutError(), 2)
    folder, waits = folder_on(monkeypatch, fs)
    assert folder.read("a", 3, 4) == b"3456"
    assert waits == list(WAITS_S)


def test_a_store_that_stays_away_is_named_with_the_file_and_the_bytes(monkeypatch) -> None:
    folder, waits = folder_on(monkeypatch, Flaky(*[ConnectionError("no route")] * 9))
    with pytest.raises(
        StorageError, match=r"s3://bucket/a \(bytes 3 to 7\) .* 4 times: .*no route"
    ) as caught:
        folder.read("a", 3, 4)
    assert caught.value.way_out
    assert len(waits) == len(WAITS_S)


def test_a_read_that_stays_short_is_an_error_and_never_an_answer(monkeypatch) -> None:
    folder, _ = folder_on(monkeypatch, Flaky(*[2] * 9))
    with pytest.raises(StorageError, match="2 of 4 bytes came"):
        folder.read("a", 3, 4)


@pytest.mark.parametrize(
    "error, says",
    [
        (FileNotFoundError("a"), "s3://bucket/a is missing"),
        (PermissionError("403"), "must not be read with the credentials"),
        (NoCredentialsError("none"), "must not be read with the credentials"),
    ],
)
def test_what_no_waiting_can_mend_is_told_at_once(monkeypatch, error, says) -> None:
    folder, waits = folder_on(monkeypatch, Flaky(error))
    with pytest.raises(UsageError, match=says) as caught:
        folder.read("a")
    assert caught.value.way_out
    assert waits == []


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    for open_it in (RemoteFolder, open_storage):
        with pytest.raises(UsageError, match=r"s3://bucket/data needs a package") as caught:
            open_it("s3://bucket/data")
        assert caught.value.way_out == f"pip install s3fs=={fsspec.__version__}"


def test_an_unknown_protocol_is_named_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="s4://bucket") as caught:
        RemoteFolder("s4://bucket")
    assert "s3" in caught.value.way_out


def test_it_travels_to_a_spawned_process(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123")
    assert pickle.loads(pickle.dumps(RemoteFolder(f"file://{tmp_path}"))).read("a", 1, 2) == b"12"


def test_a_forked_child_makes_a_connection_of_its_own(monkeypatch) -> None:
    folder, _ = folder_on(monkeypatch, Flaky())
    mine = folder._connected()[0]
    monkeypatch.setattr(remote, "connect", lambda _url: (Flaky(), "bucket"))
    assert folder._connected()[0] is mine
    monkeypatch.setattr(remote.os, "getpid", lambda: -1)
    with folder._lock:  # as if another thread of the parent held it
        assert folder._connected()[0] is not mine


def test_errors_of_ours_pass_unchanged(monkeypatch) -> None:
    error = Get3dError("what", "way out")
    folder, _ = folder_on(monkeypatch, Flaky(error))
    with pytest.raises(Get3dError) as caught:
        folder.read("a")
    assert caught.value is error
