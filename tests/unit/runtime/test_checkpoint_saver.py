"""Saves by another process while training goes on: what they hold, what they wait for, and writers that die."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.dist.group import SoloGroup
from get3d_cluster.errors import FencedError, UsageError
from get3d_cluster.runtime import checkpoint_saver
from get3d_cluster.runtime.checkpoint import Checkpoints, list_checkpoints, state_digest
from get3d_cluster.runtime.checkpoint_link import Link, SharedMemory
from get3d_cluster.runtime.checkpoint_saver import Saver
from get3d_cluster.runtime.checkpoint_tensors import lay_out, read_tensors
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.storage import open_storage

ALWAYS = CheckpointConfig(background_mb=0.0, keep_last=2)


def a_state(value: float = 1.0) -> dict[str, Any]:
    weight = torch.full((300, 7), value)
    return {
        "net": {
            "w": weight,
            "tied": weight,
            "n": torch.tensor(7),
            "half": torch.ones(3, dtype=torch.bfloat16),
        },
        "adam": {
            "state": {0: {"step": torch.tensor(value), "m": torch.ones(5, 2).T}},
            "groups": [{"betas": (0, 1)}],
        },
        "odd": [torch.zeros(0, 3), torch.tensor([True, False, True]), (torch.arange(3, dtype=torch.uint8),)],
        "alone": torch.arange(4.0),
        "counters": {"step": value, "best": float("inf"), 3: None},
    }


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(open_storage(tmp_path / "checkpoints"), ALWAYS, lambda: None)


@pytest.fixture
def saver(checkpoints: Checkpoints) -> Iterator[Saver]:
    saver = Saver(checkpoints, SoloGroup())
    yield saver
    saver.close()


def save(saver: Saver, step: int, state: dict[str, Any]) -> dict[str, Any]:
    assert saver.begin(step, state, {"epoch": step})
    return saver.finish()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_another_process_writes_is_what_this_one_would_have_written(
    saver: Saver, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    state = a_state()
    verdict = save(saver, 3, state)
    loaded = checkpoints.load()
    assert loaded is not None
    assert verdict["digest"] == loaded.digest == state_digest(state) == state_digest(loaded.state)
    assert (loaded.step, loaded.meta["epoch"]) == (3, 3)
    here = Checkpoints(open_storage(tmp_path / "here"), ALWAYS, lambda: None)
    assert here.save(3, state, {}).digest == verdict["digest"]
    assert names(tmp_path / "here" / "step-000000003") == names(tmp_path / "checkpoints" / "step-000000003")
    assert [info.state for info in list_checkpoints(RunFolder(tmp_path), verify=True)] == ["ok"]


def test_the_writer_imports_no_torch(saver: Saver) -> None:
    save(saver, 1, a_state())
    maps = Path(f"/proc/{saver.writer_pid}/maps").read_text()
    assert "torch" not in maps
    assert "numpy" not in maps


def test_what_was_copied_may_change_while_it_is_written(
    saver: Saver, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = a_state()
    digest = state_digest(state)
    held = threading.Event()
    real = Link.send
    monkeypatch.setattr(Link, "send", lambda self, order: (held.wait(), real(self, order))[1])
    assert saver.begin(1, state, {})
    state["net"]["w"].add_(1)
    state["counters"]["step"] = 99
    state["adam"]["groups"][0]["betas"] = (9, 9)
    held.set()
    assert saver.finish()["digest"] == digest
    loaded = checkpoints.load()
    assert loaded is not None
    assert state_digest(loaded.state) == digest


def test_a_part_that_is_announced_is_copied_later_and_waited_for(
    saver: Saver, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = a_state()
    digest = state_digest(state)
    may_copy = threading.Event()
    real = SharedMemory.copy

    def slow(self: SharedMemory, place: int, tensor: torch.Tensor) -> None:
        if tensor.shape == (300, 7):
            may_copy.wait()
        real(self, place, tensor)

    monkeypatch.setattr(SharedMemory, "copy", slow)
    assert saver.begin(1, state, {}, later=["net"])  # returns although net cannot be copied yet
    saver.wait_for(["adam", "alone", "unknown"])
    state["alone"].add_(1)
    begun_s = time.monotonic()
    threading.Timer(0.2, may_copy.set).start()
    saver.wait_for(["net"])
    assert time.monotonic() - begun_s > 0.1
    state["net"]["w"].add_(1)
    assert saver.finish()["digest"] == digest
    saver.wait_for(["net"])  # nothing is in flight


@pytest.mark.parametrize("moment", ["before", "write", "publish", "after"])
def test_a_writer_that_is_killed_is_replaced_and_the_save_is_repeated(
    saver: Saver, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, moment: str, tmp_path: Path
) -> None:
    save(saver, 1, a_state())
    killed = []
    real = Link.send, Link.receive

    def kill(link: Link) -> None:
        if not killed:
            killed.append(link.pid)
            os.kill(link.pid or 0, signal.SIGKILL)

    def send(link: Link, order: dict[str, Any]) -> None:
        if (moment, order.get("do")) in (("before", "write"), ("publish", "publish")):
            kill(link)
        real[0](link, order)
        if (moment, order.get("do")) == ("write", "write"):
            kill(link)

    def receive(link: Link) -> dict[str, Any]:
        answer = real[1](link)
        if moment == "after" and "saved" in answer and not killed:  # published, but nobody was told
            kill(link)
            raise checkpoint_saver.WriterDiedError
        return answer

    monkeypatch.setattr(Link, "send", send)
    monkeypatch.setattr(Link, "receive", receive)
    verdict = save(saver, 2, a_state(2.0))
    assert verdict["digest"] == state_digest(a_state(2.0))
    assert len(killed) == 1
    assert saver.writer_pid not in (None, *killed)
    assert names(tmp_path / "checkpoints") == ["step-000000001", "step-000000002"]
    assert checkpoints.load().step == 2
    assert save(saver, 3, a_state(3.0))["step"] == 3


def test_writers_that_die_again_and_again_are_told_and_block_nobody(
    saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(link: Link, _: object) -> None:
        os.kill(link.pid or 0, signal.SIGKILL)
        raise checkpoint_saver.WriterDiedError

    monkeypatch.setattr(Link, "send", die)
    verdict = save(saver, 1, a_state())
    assert verdict["kind"] == "writer"
    assert "3 writers" in verdict["error"]
    assert saver.flight is None


def test_a_writer_that_cannot_be_started_is_told(saver: Saver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Link, "start", lambda _: (_ for _ in ()).throw(OSError(12, "no memory")))
    assert save(saver, 1, a_state())["kind"] == "writer"


def test_whoever_lost_the_run_while_it_was_written_publishes_nothing(tmp_path: Path) -> None:
    asked = []

    def lost() -> None:
        asked.append(names(tmp_path / "checkpoints"))
        raise FencedError("attempt 4 owns this run", "nothing to do")

    checkpoints = Checkpoints(open_storage(tmp_path / "checkpoints"), ALWAYS, lost)
    saver = Saver(checkpoints, SoloGroup())
    verdict = save(saver, 1, a_state())
    assert (verdict["kind"], verdict["error"]) == ("fenced", "attempt 4 owns this run")
    assert len(asked) == 1
    assert asked[0][0].startswith(".writing-step-000000001-"), "asked when all was written"
    saver.close()
    assert [name for name in names(tmp_path / "checkpoints") if name.startswith("step")] == []


def test_a_worker_that_is_killed_takes_its_writer_along_and_leaves_nothing_published(tmp_path: Path) -> None:
    pids = tmp_path / "writer.pid"
    child = os.fork()
    if child == 0:
        try:
            checkpoints = Checkpoints(open_storage(tmp_path / "checkpoints"), ALWAYS, lambda: time.sleep(60))
            saver = Saver(checkpoints, SoloGroup())
            saver.begin(1, a_state(), {})
            saver.flight.written.wait()
            time.sleep(0.2)
            pids.write_text(str(saver.writer_pid))
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    writer = Path(f"/proc/{pids.read_text()}")
    end_s = time.monotonic() + 10
    while writer.exists() and time.monotonic() < end_s:
        time.sleep(0.01)
    assert not writer.exists()
    assert names(tmp_path / "checkpoints") == []


def test_the_writer_hears_no_signal_that_stops_a_worker(saver: Saver) -> None:
    save(saver, 1, a_state())
    pid = saver.writer_pid
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP):
        os.kill(pid, number)
    assert save(saver, 2, a_state(2.0))["step"] == 2
    assert saver.writer_pid == pid


def test_a_storage_that_refuses_is_told_with_its_path_and_leaves_the_older_ones(
    saver: Saver, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    save(saver, 1, a_state())
    (tmp_path / "checkpoints" / ".writing-step-000000002-aa").write_text("")  # in the way of the folder
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(Saver, "_token", lambda _: "aa")
        verdict = save(saver, 2, a_state(2.0))
    assert verdict["kind"] == "storage"
    assert str(tmp_path / "checkpoints") in verdict["error"]
    assert checkpoints.load().step == 1
    assert save(saver, 3, a_state(3.0))["step"] == 3


def test_one_that_reads_back_damaged_deletes_no_older_one(
    saver: Saver, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    for step in (1, 2):
        save(saver, step, a_state(step))
    real = Link.send
    monkey = pytest.MonkeyPatch()

    def send(link: Link, order: dict[str, Any]) -> None:
        if order.get("do") == "publish":
            for path in (tmp_path / "checkpoints").glob(".writing-*/net.safetensors"):
                path.write_bytes(path.read_bytes()[:-1] + b"!")
        real(link, order)

    with monkey.context() as patch:
        patch.setattr(Link, "send", send)
        verdict = save(saver, 3, a_state(3.0))
    assert verdict["kind"] == "storage"
    assert "just after it was written" in verdict["error"]
    assert checkpoints.load().step == 2
    assert len(list((tmp_path / "checkpoints").glob("step-*"))) == 2


def test_a_dropped_save_leaves_nothing_and_the_next_one_is_whole(
    saver: Saver, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(saver, 1, a_state())
    with monkeypatch.context() as patch:
        patch.setattr(Link, "receive", lambda link: (link._process.stdout.readline(), time.sleep(0.5))[0])
        assert saver.begin(2, a_state(2.0), {})
        begun_s = time.monotonic()
        saver.drop()
        assert time.monotonic() - begun_s < 5
    assert saver.flight is None
    assert save(saver, 3, a_state(3.0))["digest"] == state_digest(a_state(3.0))
    assert [info.step for info in list_checkpoints(RunFolder(checkpoints.tiers["run"].root.parent))] == [1, 3]


def test_a_save_that_is_dropped_while_it_is_copied_is_not_written_first(
    saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(saver, 1, a_state())
    sent: list[Any] = []
    copy, send = SharedMemory.copy, Link.send
    monkeypatch.setattr(SharedMemory, "copy", lambda *args: (time.sleep(0.02), copy(*args))[1])
    monkeypatch.setattr(Link, "send", lambda link, order: (sent.append(order), send(link, order))[1])
    assert saver.begin(2, a_state(2.0), {}, later=("net", "adam", "odd", "alone"))
    saver.drop()
    assert sent == []
    assert save(saver, 3, a_state(3.0))["digest"] == state_digest(a_state(3.0))


def test_a_repeated_save_remembers_where_another_rank_could_not_write() -> None:
    """Else a second writer publishes there what lacks a share."""
    told: list[dict[str, Any]] = []
    answers: list[dict[str, Any] | None] = [
        {"written": {}, "lost": {}}, None, {"written": {}, "lost": {}},
        {"saved": "digest", "num_bytes": 1, "problems": []},
    ]  # fmt: skip

    def receive() -> dict[str, Any]:
        answer = answers.pop(0)
        if answer is None:
            raise checkpoint_saver.WriterDiedError
        return answer

    link: Any = SimpleNamespace(start=lambda: None, kill=lambda: None, send=told.append, receive=receive)
    group: Any = SimpleNamespace(rank=0, world_size=2)
    order = checkpoint_saver._Order(
        step=1, meta={}, tree={}, tensors={"net": {"w": torch.ones(4)}}, why="", tiers=("run", "url"), later=(),
        places=[], token="abcd", agreed_step=None,
    )  # fmt: skip
    memory = SharedMemory()
    flight = checkpoint_saver.Flight(order, group, memory, link, lambda: None)
    flight.start()
    flight.written.wait()
    flight.gather([b"\0" * 64] * 2, {"1": "rank 1 had no space there"}, is_failed=False)
    flight.join()
    memory.close()
    assert [order["lost"] for order in told if order["do"] == "publish"] == [
        {"1": "rank 1 had no space there"}
    ] * 2


def test_a_small_state_is_left_to_the_worker(checkpoints: Checkpoints) -> None:
    small = Checkpoints(checkpoints.tiers["run"], CheckpointConfig(background_mb=1.0), lambda: None)
    saver = Saver(small, SoloGroup())
    assert not saver.begin(1, a_state(), {})
    assert saver.begin(1, {"big": torch.zeros(250_000)}, {})
    assert saver.finish()["step"] == 1
    saver.close()


def test_what_no_checkpoint_holds_is_refused_before_anything_is_copied(saver: Saver) -> None:
    with pytest.raises(UsageError, match="part/x"):
        saver.begin(1, {"part": {"x": {1}}}, {})
    with pytest.raises(UsageError, match="part/x"):
        saver.prepare({"part": {"x": {1}}})
    assert saver.flight is None


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
    from get3d_cluster.runtime import checkpoint_files as files

    checkpoints.save(1, a_state(), {"attempt": 1})
    path = tmp_path / "checkpoints" / "step-000000001" / "manifest.json"
    body = json.loads(path.read_text())["body"]
    for told in body["files"].values():
        told.pop("part", None)
    path.write_bytes(files.signed(body | {"format": 1}))
    loaded = checkpoints.load()
    assert loaded is not None
    assert state_digest(loaded.state) == state_digest(a_state())
