"""Copies behind a URL that is slow, full, torn or gone: the run's own checkpoints never wait, no half one shows."""

import os
import queue
import random
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from get3d_cluster.core.job import CheckpointConfig, JobSpec
from get3d_cluster.dist.group import SoloGroup
from get3d_cluster.errors import FencedError
from get3d_cluster.runtime import checkpoint_copies
from get3d_cluster.runtime.checkpoint import Checkpoints, more_tiers, state_digest
from get3d_cluster.runtime.checkpoint_copies import Copied, Copies, wait_together
from get3d_cluster.runtime.checkpoint_files import names_in, step_of
from get3d_cluster.runtime.checkpoint_link import WriterDiedError
from get3d_cluster.runtime.checkpoint_saver import Saver
from get3d_cluster.runtime.checkpoint_uploader import answered
from get3d_cluster.storage import open_storage
from get3d_cluster.storage import remote as remote_storage
from tests.fault_points import KILLED, in_a_child
from tests.faulty_store import FAULTS, FaultyStore, faulty_store
from tests.workers_in_memory import on_all

SPEC = JobSpec(name="a", job="train", kind="steps", created="2026-01-01T00:00:00")
GO: Mapping[str, Any] = {"go": True}


class UploaderHere:
    """Stands for the process that copies, where the store of a test can be reached: a thread of this one."""

    def __init__(self, _module: str) -> None:
        self._orders: queue.Queue[Any] = queue.Queue()
        self._answers: queue.Queue[Any] = queue.Queue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._obey, daemon=True)
            self._thread.start()

    def send(self, order: Any) -> None:
        self._orders.put(order)

    def receive(self) -> dict[str, Any]:
        answer = self._answers.get()
        if answer is None:
            raise WriterDiedError
        return dict(answer)

    def interrupt(self) -> None:
        self._answers.put(None)

    kill = interrupt

    def _obey(self) -> None:
        while True:
            self._answers.put(answered(self._orders.get(), self._ask))

    def _ask(self) -> Mapping[str, Any]:
        self._answers.put({"ready": True})
        return dict(self._orders.get())


def a_state(step: int) -> dict[str, Any]:
    named = {part: {"w": torch.full((64,), float(step))} for part in ("net", "adam", "average")}
    return {**named, "counters": {"step": step}}


def checkpoints_of(folder: Path, url: str, check_owner: Any = lambda: None) -> Checkpoints:
    config = CheckpointConfig(background_mb=0.0, keep_last=2, url=url)
    return Checkpoints(open_storage(folder / "checkpoints"), config, check_owner, more_tiers(config, SPEC, 1))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """A store of this process at each URL; nothing goes wrong yet."""
    monkeypatch.setattr(checkpoint_copies, "Link", UploaderHere)
    store = FaultyStore(seed=1, slow_s=0.4, chance=1.0)
    with faulty_store(store):
        yield store


class Run:
    """Saves, and has copied what was published, as the loops do."""

    def __init__(self, folder: Path, url: str = "memory://bucket/runs", check_owner: Any = lambda: None):
        self.checkpoints = checkpoints_of(folder, url, check_owner)
        self.copies = Copies(self.checkpoints, SoloGroup())
        self.saver = Saver(self.checkpoints, SoloGroup(), self.copies.held)

    def save(self, step: int) -> None:
        assert self.saver.begin(step, a_state(step), {"attempt": 1})
        verdict = self.saver.finish()
        assert verdict.get("step") == step, verdict
        self.copies.offer(step)

    def copy(self, step: int) -> Copied:
        self.copies.offer(step)
        self.copies.wait(60)
        return self.copies.news()[-1]

    def steps(self, tier: str) -> list[int]:
        return [step_of(name) for name in names_in(self.checkpoints.tiers[tier])]

    def only(self, tier: str) -> Checkpoints:
        return Checkpoints(self.checkpoints.tiers[tier], self.checkpoints.config, lambda: None)

    def close(self) -> None:
        self.saver.close()
        self.copies.close()


@pytest.fixture
def run(tmp_path: Path, store: FaultyStore) -> Iterator[Run]:
    run = Run(tmp_path)
    yield run
    run.close()


def loaded_step(checkpoints: Checkpoints) -> int:
    """Return the step that is read back; its bits are right, or this fails."""
    loaded = checkpoints.load()
    assert loaded is not None
    assert loaded.digest == state_digest(loaded.state) == state_digest(a_state(loaded.step))
    return loaded.step


def test_a_slow_place_far_away_puts_off_no_checkpoint_of_the_run_and_ends_with_the_newest(
    run: Run, store: FaultyStore
) -> None:
    """Twelve checkpoints while not even two copies could have been made."""
    run.save(1)
    run.copies.wait(60)
    assert run.copies.news()[0].problem == ""
    store.fault = "slow"
    begun_s = time.monotonic()
    for step in range(2, 14):
        run.save(step)
    took_s = time.monotonic() - begun_s
    assert run.steps("run")[-1] == 13
    run.copies.wait(60)
    store.fault = ""
    news = run.copies.news()
    whole = [copied for copied in news if copied.skipped_for is None]
    assert took_s < sum(copied.seconds for copied in whole)
    assert min(copied.seconds for copied in whole) > 0.8, "files, then a manifest: 0.4 s each"
    assert [copied.problem for copied in news] == [""] * 12
    assert sorted(copied.step for copied in news) == list(range(2, 14)), "each one is told of"
    assert len(whole) < 12
    assert all(copied.skipped_for > copied.step for copied in news if copied.skipped_for is not None)
    assert whole[-1].step == run.steps("url")[-1] == loaded_step(run.only("url")) == 13


def test_what_is_being_copied_stays_although_newer_ones_are_published(run: Run, store: FaultyStore) -> None:
    store.fault = "slow"
    for step in range(1, 7):
        run.save(step)
    assert run.steps("run")[0] == 1, "kept are two, and what is being read"
    run.copies.wait(60)
    store.fault = ""
    run.save(7)
    assert run.steps("run") == [6, 7]
    run.copies.wait(60)
    assert [copied.problem for copied in run.copies.news()] == [""] * 7


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_goes_wrong_there_is_told_costs_no_save_and_shows_no_wrong_bit(
    run: Run, store: FaultyStore, fault: str
) -> None:
    chance = random.Random(3)
    store._slow_s, store._chance = 0.002, 0.35
    run.save(1)
    run.copies.wait(60)
    told: dict[int, Copied] = {}
    for step in range(2, 22):
        store.fault = fault if chance.random() < 0.8 else ""
        run.save(step)
        run.copies.wait(60)
        store.fault = ""
        told |= {copied.step: copied for copied in run.copies.news()}
        assert run.steps("run")[-1] == step
        assert loaded_step(run.only("url")) <= step
    assert sorted(told) == list(range(1, 22))
    assert store.met.get(fault, 0) > 3, "it never met the fault"
    failed = {step for step, copied in told.items() if copied.problem}
    assert bool(failed) == (fault not in ("slow", "stale list"))
    run.save(30)
    run.copies.wait(60)
    assert run.copies.news()[0].problem == ""
    assert loaded_step(run.only("url")) == 30, "once all is well it goes on"


class Dying:
    """A file system whose process is killed at its n-th change."""

    def __init__(self, fs: Any, last: int) -> None:
        self.fs, self.last, self.count, self.lock = fs, last, 0, threading.Lock()

    def _change(self) -> None:
        with self.lock:
            self.count += 1
            if self.count == self.last:
                os._exit(KILLED)

    def open(self, path: str, mode: str) -> Any:
        self._change()
        file = self.fs.open(path, mode)
        write = file.write

        def torn(data: Any) -> int:
            write(bytes(data)[: len(data) // 2])
            file.flush()
            self._change()
            return int(write(bytes(data)[len(data) // 2 :]))

        file.write = torn
        return file

    def pipe_file(self, path: str, data: bytes, mode: str) -> None:
        self._change()
        self.fs.pipe_file(path, data, mode=mode)
        self._change()

    def rm(self, path: str, recursive: bool = False) -> None:
        self._change()
        self.fs.rm(path, recursive=recursive)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fs, name)


def test_killed_at_any_change_it_leaves_no_half_checkpoint_there_and_the_runs_own_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, f"file://{tmp_path / 'far'}")
    for step in (1, 2, 3):
        run.save(step)
        run.copies.wait(60)
    order = {**run.copies._order(checkpoint_copies._Offer(step=4, agreed_step=None)), "token": "abcd"}
    run.saver.begin(4, a_state(4), {"attempt": 1})
    run.saver.finish()
    run.close()
    far, connect, seen = Path(order["to"].partition("://")[2]), remote_storage.connect, []
    keep = {path: path.read_bytes() for path in far.rglob("*") if path.is_file()}
    for last in range(1, 60):
        for path in far.rglob("*"):
            if path.is_file() and path not in keep:
                path.unlink()
        for path, data in keep.items():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)

        def dying(url: str, last: int = last) -> tuple[Any, str]:
            fs, root = connect(url)
            return Dying(fs, last), root

        def copy(dying: Any = dying) -> int:
            monkeypatch.setattr(remote_storage, "connect", dying)
            return int("copied" not in answered(order, lambda: GO))

        code = in_a_child(copy, tmp_path / "log")
        assert code in (0, KILLED), (tmp_path / "log").read_text()
        newest = loaded_step(run.only("url"))
        seen.append(newest)
        assert loaded_step(run.checkpoints) == 4
        assert run.steps("run") == [3, 4]
        if code == 0:
            break
        assert "copied" in answered(order, lambda: GO), "another process does it over"
        assert loaded_step(run.only("url")) == 4
    assert code == 0
    assert len(seen) > 10
    assert set(seen) == {3, 4}
    assert seen == sorted(seen)


def test_a_worker_killed_before_the_copy_is_whole_takes_its_process_along_and_leaves_the_runs_own(
    tmp_path: Path,
) -> None:
    """All of it is uploaded, and its process asks whether the run is still its own."""
    told = tmp_path / "pid"
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            asked: list[int] = []

            def owner() -> None:
                asked.append(1)
                if len(asked) > 1:  # the first one is the save's
                    told.write_text(str(run.copies._link.pid))
                    time.sleep(60)

            run = Run(tmp_path, f"file://{tmp_path / 'far'}", owner)
            run.save(1)
            run.copies.wait(60)
        finally:
            os._exit(1)
    end_s = time.monotonic() + 30
    while not told.exists() and time.monotonic() < end_s:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(list((tmp_path / "far").glob("*/step-*/*"))) == 4, "all parts"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    there = Path(f"/proc/{told.read_text()}")
    while there.exists() and time.monotonic() < end_s:
        time.sleep(0.02)
    assert not there.exists()
    run = Run(tmp_path, f"file://{tmp_path / 'far'}")
    assert (run.steps("run"), run.steps("url")) == ([1], [])
    assert loaded_step(run.checkpoints) == 1
    assert not list((tmp_path / "far").glob("*/step-*")), "removed by the next start"


def test_a_process_that_is_killed_is_replaced_and_the_copy_arrives(tmp_path: Path) -> None:
    run = Run(tmp_path, f"file://{tmp_path / 'far'}", lambda: None)
    asked: list[int] = []

    def owner() -> None:
        asked.append(run.copies._link.pid or 0)
        if len(asked) == 1:
            os.kill(asked[0], signal.SIGKILL)

    run.checkpoints.save(1, a_state(1), {"attempt": 1})
    run.checkpoints.check_owner = owner
    assert run.copy(1).problem == ""
    assert len(set(asked)) == 2
    assert loaded_step(run.only("url")) == 1
    run.close()


def test_processes_that_die_again_and_again_are_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def send(_: UploaderHere, _order: Any) -> None:
        raise WriterDiedError

    monkeypatch.setattr(UploaderHere, "send", send)
    run.save(1)
    run.copies.wait(60)
    assert "3 processes" in run.copies.news()[0].problem


def test_whoever_lost_the_run_while_it_uploaded_shows_nothing(tmp_path: Path, store: FaultyStore) -> None:
    def lost() -> None:
        raise FencedError("attempt 4 owns this run", "nothing to do")

    run = Run(tmp_path, check_owner=lambda: None)
    run.checkpoints.save(1, a_state(1), {"attempt": 1})
    run.checkpoints.check_owner = lost
    assert run.copy(1).problem == "attempt 4 owns this run"
    assert run.steps("url") == []
    assert store.fs.find("/bucket") == []
    run.close()


def test_parts_that_the_start_of_another_attempt_removed_become_no_checkpoint(
    run: Run, store: FaultyStore
) -> None:
    def cleaned() -> None:
        run.checkpoints.tiers["url"].clean()

    run.checkpoints.save(1, a_state(1), {"attempt": 1})
    run.checkpoints.check_owner = cleaned
    assert "step-000000001" in run.copy(1).problem
    assert run.steps("url") == []


def test_what_is_damaged_in_the_runs_folder_is_not_copied(run: Run, tmp_path: Path) -> None:
    run.checkpoints.save(1, a_state(1), {"attempt": 1})
    path = tmp_path / "checkpoints" / "step-000000001" / "net.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert f"{path} is not what was written" in run.copy(1).problem
    path.unlink()
    assert f"cannot read {path}" in run.copy(1).problem
    assert run.steps("url") == []


def test_a_start_takes_the_newest_that_is_whole_here_or_there(run: Run, tmp_path: Path) -> None:
    run.save(1)
    run.copies.wait(60)
    run.checkpoints.save(2, a_state(2), {"attempt": 1})
    loaded = run.checkpoints.load()
    assert (loaded.step, loaded.tier) == (2, "run")
    assert run.copy(2).problem == ""
    path = tmp_path / "checkpoints" / "step-000000002" / "adam.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    loaded = run.checkpoints.load()
    assert (loaded.step, loaded.tier) == (2, "url")
    assert state_digest(loaded.state) == state_digest(a_state(2))


def test_a_copy_that_is_given_up_and_one_that_waited_are_told(run: Run, store: FaultyStore) -> None:
    store.fault = "slow"
    run.save(1)
    run.save(2)
    begun_s = time.monotonic()
    run.copies.close()
    assert time.monotonic() - begun_s < 5
    told = {copied.step: copied.problem for copied in run.copies.news()}
    assert told == {1: checkpoint_copies._LEFT, 2: checkpoint_copies._LEFT}
    run.copies.offer(3)
    assert not run.copies.is_busy()


class Busy:
    """Copies of rank 0 that take a while; the other ranks have none."""

    def __init__(self, rank: int, seconds: float) -> None:
        self.until_s = time.monotonic() + (seconds if rank == 0 else 0.0)

    def is_busy(self) -> bool:
        return time.monotonic() < self.until_s

    def wait(self, seconds: float) -> None:
        time.sleep(max(0.0, min(seconds, self.until_s - time.monotonic())))


@pytest.mark.parametrize(
    "copy_s, limit_s, called_s, left_s",
    [(0.5, 60.0, 60.0, 0.5), (60.0, 0.5, 60.0, 0.5), (60.0, 60.0, 0.5, 0.5), (0.0, 60.0, 60.0, 0.0)],
)
def test_all_ranks_leave_together_when_it_is_copied_or_late_or_one_is_called_away(
    copy_s: float, limit_s: float, called_s: float, left_s: float
) -> None:
    begun_s = time.monotonic()

    def work(group: Any) -> float:
        copies: Any = Busy(group.rank, copy_s)
        is_called: Any = lambda: group.rank == 2 and time.monotonic() - begun_s > called_s  # noqa: E731
        wait_together(copies, group, begun_s + limit_s, is_called)
        return time.monotonic() - begun_s

    seconds, _ = on_all(3, work)
    assert max(seconds) - min(seconds) < 0.2
    assert left_s <= min(seconds) < left_s + 1.0
