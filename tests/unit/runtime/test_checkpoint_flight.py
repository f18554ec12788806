"""A save whose writer dies, cannot be started, or is given up: repeated, told or forgotten, never half published."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from get3d_cluster.dist.group import SoloGroup
from get3d_cluster.runtime.checkpoint import Checkpoints, list_checkpoints, state_digest
from get3d_cluster.runtime.checkpoint_link import Link, WriterDiedError
from get3d_cluster.runtime.checkpoint_memory import SharedMemory
from get3d_cluster.runtime.checkpoint_saver import Saver
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.storage import open_storage
from tests.saved_states import ALWAYS, a_state, names, save


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
            raise WriterDiedError
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
        raise WriterDiedError

    monkeypatch.setattr(Link, "send", die)
    verdict = save(saver, 1, a_state())
    assert verdict["kind"] == "writer"
    assert "3 writers" in verdict["error"]
    assert saver.flight is None


def test_a_writer_that_cannot_be_started_is_told(saver: Saver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Link, "start", lambda _: (_ for _ in ()).throw(OSError(12, "no memory")))
    assert save(saver, 1, a_state())["kind"] == "writer"


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
