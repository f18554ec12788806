"""Large files of a checkpoint behind a URL travel by ranges, several at the same time."""

import threading
from pathlib import Path
from typing import Any

import pytest

from get3d_cluster.storage import open_storage, remote


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(remote, "RANGE_BYTES", 1000)
    return open_storage(f"memory://{tmp_path.name}")


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 5000, 12_345])
def test_every_byte_comes_to_its_place(storage: Any, size: int) -> None:
    data = bytes(index * 7 % 251 for index in range(size))
    storage.write(f"a{size}", {"x": data, "manifest.json": b"{}"})
    assert bytes(storage.read(f"a{size}", "x")) == data


def test_several_ranges_travel_at_the_same_time(storage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write("a", {"x": bytes(8000), "manifest.json": b"{}"})
    together, real = threading.Barrier(4, timeout=10), storage._fs.cat_file

    def fetch(*args: Any, **options: Any) -> bytes:
        together.wait()
        return real(*args, **options)

    monkeypatch.setattr(storage._fs, "cat_file", fetch)
    assert bytes(storage.read("a", "x")) == bytes(8000)


def test_a_range_that_comes_short_is_an_error_and_never_an_answer(
    storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write("a", {"x": bytes(8000), "manifest.json": b"{}"})
    real = storage._fs.cat_file
    monkeypatch.setattr(
        storage._fs,
        "cat_file",
        lambda path, start, end: real(path, start=start, end=end)[: 999 if start else 1000],
    )
    with pytest.raises(OSError, match="999 of 1000 bytes"):
        storage.read("a", "x")


def test_a_file_that_is_not_there_is_missing(storage: Any) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read("a", "x")
