"""Weights from elsewhere never run code."""

import os
from pathlib import Path

import pytest
import torch

from get3d_cluster.errors import UsageError
from get3d_cluster.runtime.checkpoint_foreign import load_foreign


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_a_table_of_tensors_is_read(tmp_path: Path) -> None:
    net = torch.nn.Linear(2, 3)
    torch.save({"net": net.state_dict(), "step": 7}, tmp_path / "a.pt")
    loaded = load_foreign(tmp_path / "a.pt")
    assert torch.equal(loaded["net"]["weight"], net.weight)
    assert loaded["step"] == 7


def test_code_in_a_file_is_refused_and_never_run(tmp_path: Path) -> None:
    torch.save({"net": Evil(tmp_path / "ran")}, tmp_path / "a.pt")
    with pytest.raises(UsageError, match=r"a\.pt is damaged, or holds more than tensors"):
        load_foreign(tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UsageError, match="more than tensors"):
        torch.save({"net": torch.nn.Linear(1, 1)}, tmp_path / "b.pt")
        load_foreign(tmp_path / "b.pt")


@pytest.mark.parametrize("how", ["missing", "empty", "garbage", "cut", "list"])
def test_whatever_else_is_no_table_is_named(tmp_path: Path, how: str) -> None:
    path = tmp_path / "a.pt"
    torch.save([torch.ones(3)] if how == "list" else {"x": torch.ones(300)}, path)
    if how == "missing":
        path.unlink()
    elif how != "list":
        data = path.read_bytes()
        path.write_bytes({"empty": b"", "garbage": b"garbage" * 9, "cut": data[: len(data) // 2]}[how])
    with pytest.raises(UsageError, match=r"a\.pt"):
        load_foreign(path)
