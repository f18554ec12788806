"""The tensors of a checkpoint in files: shares of the ranks, what other tools read, and what is no such file."""

import json
from pathlib import Path

import pytest
import torch

from get3d_cluster.runtime import checkpoint_files as files
from get3d_cluster.runtime.checkpoint import Checkpoints, state_digest
from get3d_cluster.runtime.checkpoint_saver import Saver
from get3d_cluster.runtime.checkpoint_tensors import lay_out, read_tensors
from tests.saved_states import a_state, save


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
def test_each_rank_gets_about_its_share_and_every_tensor_one_place(world_size: int) -> None:
    tensors = {
        part: {f"{index}": torch.zeros(100 + index) for index in range(40)} for part in ("a", "b", "c")
    }
    layout = lay_out(tensors, world_size)
    assert layout is not None
    found = sorted((file.part, name) for file in layout.files for name, _ in file.tensors)
    assert found == sorted((part, name) for part, named in tensors.items() for name in named)
    shares = [sum(file.num_bytes for file in layout.files if file.rank == rank) for rank in range(world_size)]
    assert max(shares) < 1.25 * sum(shares) / world_size
    assert len({file.name for file in layout.files}) == len(layout.files)


def test_safetensors_reads_what_is_laid_out_here(saver: Saver, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    save(saver, 1, a_state())
    path = tmp_path / "checkpoints" / "step-000000001" / "net.safetensors"
    theirs, ours = load_file(path), read_tensors(memoryview(path.read_bytes()))
    assert set(theirs) == set(ours) == {"w", "tied", "n", "half"}
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


@pytest.mark.parametrize("where", ["length", "table", "offsets", "end"])
def test_a_file_that_contradicts_itself_becomes_no_tensors(saver: Saver, tmp_path: Path, where: str) -> None:
    save(saver, 1, a_state())
    data = bytearray((tmp_path / "checkpoints" / "step-000000001" / "net.safetensors").read_bytes())
    length = int.from_bytes(data[:8], "little")
    if where == "length":
        data[:8] = (1 << 60).to_bytes(8, "little")
    elif where == "table":
        data[8] = ord("x")
    elif where == "end":
        data += b"more"
    else:
        table = json.loads(data[8 : 8 + length])
        table["w"]["data_offsets"][1] += 4
        data[8 : 8 + length] = json.dumps(table).encode().ljust(length)[:length]
    with pytest.raises(ValueError):
        read_tensors(memoryview(data))


def test_a_checkpoint_of_the_format_before_is_read(tmp_path: Path, checkpoints: Checkpoints) -> None:
    checkpoints.save(1, a_state(), {"attempt": 1})
    path = tmp_path / "checkpoints" / "step-000000001" / "manifest.json"
    body = json.loads(path.read_text())["body"]
    for told in body["files"].values():
        told.pop("part", None)
    path.write_bytes(files.signed(body | {"format": 1}))
    loaded = checkpoints.load()
    assert loaded is not None
    assert state_digest(loaded.state) == state_digest(a_state())
