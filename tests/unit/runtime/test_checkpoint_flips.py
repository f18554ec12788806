"""One flipped bit anywhere in a checkpoint of any tier is found, and what is whole is taken instead."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from get3d_cluster.core.job import CheckpointConfig, JobSpec
from get3d_cluster.errors import CheckpointError
from get3d_cluster.runtime import checkpoint_files as files
from get3d_cluster.runtime.checkpoint import Checkpoints, more_tiers, state_digest
from get3d_cluster.runtime.checkpoint_copies import Copies
from get3d_cluster.runtime.checkpoint_saver import Saver
from get3d_cluster.storage import open_storage
from get3d_cluster.storage.local import LocalStorage
from get3d_cluster.storage.remote import RemoteStorage
from tests.workers_in_memory import on_all

SPEC = JobSpec(name="a", job="train", kind="steps", created="2026-01-01T00:00:00")
NEWEST = "step-000000002"
TIERS = ("run", "local", "url")
BITS = (0, 5, 7)


def a_state(step: int) -> dict[str, Any]:
    weight = torch.full((300, 7), float(step))
    return {
        "net": {
            "w": weight,
            "tied": weight,
            "half": torch.ones(3, dtype=torch.bfloat16),
            "n": torch.tensor(7),
        },
        "adam": {"state": {0: {"step": torch.tensor(float(step)), "m": torch.ones(500, 4).T}}},
        "average": {f"{index}": torch.full((200,), float(step + index)) for index in range(9)},
        "odd": [torch.zeros(0, 3), torch.tensor([True, False]), (torch.arange(3, dtype=torch.uint8),)],
        "counters": {"step": step, "best": float("inf"), 3: None, "name": "\u00e4"},
    }


class Tier:
    """The files of the newest checkpoint in one tier, to be read and replaced."""

    def __init__(self, storage: Any) -> None:
        self.storage = storage

    def names(self) -> list[str]:
        if isinstance(self.storage, LocalStorage):
            return sorted(path.name for path in (self.storage.root / NEWEST).iterdir())
        found = self.storage._fs.ls(f"{self.storage._root}/{NEWEST}", detail=False)
        return sorted(str(path).rpartition("/")[2] for path in found)

    def read(self, name: str) -> bytes:
        return bytes(self.storage.read(NEWEST, name))

    def replace(self, name: str, data: bytes) -> None:
        if isinstance(self.storage, LocalStorage):
            (self.storage.root / NEWEST / name).write_bytes(data)
        else:
            self.storage._fs.pipe_file(f"{self.storage._root}/{NEWEST}/{name}", data)


@pytest.fixture(scope="module")
def tiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two checkpoints in each tier, written by three workers together."""
    folder = tmp_path_factory.mktemp("flips")
    config = CheckpointConfig(
        background_mb=0.0, local=str(folder / "near"), local_every_steps=1, url=f"file://{folder / 'far'}"
    )
    storages = {"run": open_storage(folder / "checkpoints"), **more_tiers(config, SPEC, 1)}

    def work(group: Any) -> None:
        more = {tier: storage for tier, storage in storages.items() if tier != "run"}
        checkpoints = Checkpoints(storages["run"], config, lambda: None, more)
        saver, copies = Saver(checkpoints, group), Copies(checkpoints, group)
        for step in (1, 2):
            for tier in ("run", "local"):
                assert saver.begin(step, a_state(step), {"attempt": 1, "lr": 1e-7}, tier=tier)
                assert "error" not in saver.finish()
            copies.offer(step)
            copies.wait(60)
        assert [copied.problem for copied in copies.news()] == ([] if group.rank else ["", ""])
        saver.close()
        copies.close()

    on_all(3, work)
    return storages


@pytest.fixture(autouse=True)
def nothing_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (LocalStorage, RemoteStorage):
        monkeypatch.setattr(kind, "set_aside", lambda _, bad: f"aside/{bad}")


def regions(name: str, data: bytes) -> Iterator[int]:
    """Yield places in each region: of texts every few bytes, of tables too, of tensors each one's ends and middle."""
    if not name.endswith(".safetensors"):
        yield from range(0, len(data), max(1, len(data) // 80))
        yield len(data) - 1
        return
    header_end = 8 + int.from_bytes(data[:8], "little")
    yield from range(8)
    yield from range(8, header_end, 7)
    yield header_end - 1
    for told in json.loads(data[8:header_end]).values():
        begin, end = (header_end + offset for offset in told["data_offsets"])
        if end > begin:
            yield from {begin, (begin + end) // 2, end - 1}


def flipped(data: bytes, position: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1 << bit
    return bytes(changed)


def test_the_newest_is_whole_and_has_files_of_each_kind(tiers: dict[str, Any]) -> None:
    """What the next test flips bits of: shares of each rank, whole parts, the tree and the manifest."""
    for tier, storage in tiers.items():
        loaded = Checkpoints(storage, CheckpointConfig(), lambda: None).load()
        assert loaded is not None
        assert (loaded.step, state_digest(loaded.state)) == (2, state_digest(a_state(2)))
        names = Tier(storage).names()
        told = files.manifest_of(storage, NEWEST)
        assert set(names) == {*told["files"], "manifest.json"}, tier
        assert told["format"] == files.FORMAT == 2
        bare = {
            name.partition("-")[2] if tier == "url" and name != "manifest.json" else name for name in names
        }
        shares = {name.partition(".")[0].partition("+")[2] for name in bare if "+" in name}
        assert len(shares) >= 2, bare
        assert {"manifest.json", "state.json"} < bare
        assert any(name.endswith(".safetensors") and "+" not in name for name in bare)


@pytest.mark.parametrize("tier", TIERS)
def test_one_flipped_bit_in_each_region_of_each_file_is_found_and_the_older_one_is_taken(
    tiers: dict[str, Any], tier: str
) -> None:
    found, storage = Tier(tiers[tier]), tiers[tier]
    checkpoints = Checkpoints(storage, CheckpointConfig(), lambda: None)
    count = 0
    for name in found.names():
        data = found.read(name)
        for position in regions(name, data):
            for bit in BITS if tier == "run" else BITS[count % 3 :][:1]:
                found.replace(name, flipped(data, position, bit))
                loaded = checkpoints.load()
                assert loaded is not None
                assert loaded.step == 1, f"bit {bit} of byte {position} of {name}"
                assert NEWEST in loaded.damaged[0]
                assert f"set aside as aside/{NEWEST}" in loaded.damaged[0]
                count += 1
        found.replace(name, data)
    assert checkpoints.load().step == 2
    assert count > (1000 if tier == "run" else 300)


@pytest.mark.parametrize("tier", TIERS)
def test_a_copy_of_the_same_step_is_taken_before_an_older_one(tiers: dict[str, Any], tier: str) -> None:
    """The nearest whole copy, whichever file of the damaged one it is."""
    found = Tier(tiers[tier])
    more = {name: storage for name, storage in tiers.items() if name != "run"}
    checkpoints = Checkpoints(tiers["run"], CheckpointConfig(), lambda: None, more)
    for name in found.names():
        data = found.read(name)
        found.replace(name, flipped(data, len(data) // 2, 3))
        loaded = checkpoints.load()
        assert loaded is not None
        assert (loaded.step, loaded.digest) == (2, state_digest(a_state(2)))
        assert loaded.tier == ("run" if tier == "local" else "local")
        found.replace(name, data)
    assert checkpoints.load().tier == "local"


class OneFile:
    """A storage whose only file can be anything."""

    data = b""

    def read(self, _name: str, _file: str) -> memoryview:
        return memoryview(self.data)


def test_no_bit_of_a_manifest_can_change_unseen(tmp_path: Path) -> None:
    checkpoints = Checkpoints(open_storage(tmp_path), CheckpointConfig(), lambda: None)
    checkpoints.save(1, {"x": 1}, {"tiny": 1e-7, "name": "\u00e4"})
    data = (tmp_path / "step-000000001" / "manifest.json").read_bytes()
    storage: Any = OneFile()
    storage.data = data
    assert files.manifest_of(storage, "step-000000001")["step"] == 1
    for position in range(len(data)):
        for bit in range(8):
            storage.data = flipped(data, position, bit)
            with pytest.raises((files.DamagedError, CheckpointError)):
                files.manifest_of(storage, "step-000000001")
