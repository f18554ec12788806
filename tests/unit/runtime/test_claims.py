"""Claims: one holder at a time, whatever dies; nobody waits for the dead."""

import dataclasses
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from get3d_cluster.runtime import claims as claims_module
from get3d_cluster.runtime.claims import Claims, Owner
from get3d_cluster.runtime.env import ProcessId


def claims(folder: Path, name: str = "a", **changes: object) -> Claims:
    process = dataclasses.replace(ProcessId.mine(), **changes)
    return Claims(folder, Owner(process=process, attempt=1, name=name), stale_s=100.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(claims_module.time, "monotonic", lambda: now[0])
    return now


def test_an_item_has_one_live_holder_until_it_is_released(tmp_path: Path) -> None:
    first, second = claims(tmp_path), claims(tmp_path, "b")
    assert first.claim("car/1")
    assert not second.claim("car/1")
    assert second.claim("car/2")
    first.release("car/1")
    assert second.claim("car/1")
    assert not first.holds("car/1")


def test_of_many_threads_one_gets_each_item(tmp_path: Path) -> None:
    workers = [claims(tmp_path, str(i)) for i in range(8)]
    won: list[str] = []
    threads = [
        threading.Thread(target=lambda w=w: won.extend(k for k in map(str, range(20)) if w.claim(k)))
        for w in workers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == sorted(map(str, range(20)))


def test_a_claim_of_a_killed_process_of_this_machine_is_stolen_at_once(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from get3d_cluster.runtime.claims import *;"
        "c = Claims(Path(sys.argv[1]), Owner(process=ProcessId.mine())); assert c.claim('x'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert claims(tmp_path).claim("x")


def test_a_process_that_got_the_number_of_a_dead_one_does_not_keep_its_claim(tmp_path: Path) -> None:
    assert claims(tmp_path, "old", start="1").claim("x")
    assert claims(tmp_path).claim("x")


def test_a_silent_holder_elsewhere_is_robbed_after_a_while_and_knows_it(
    tmp_path: Path, clock: list[float]
) -> None:
    far, near = claims(tmp_path, host="elsewhere"), claims(tmp_path)
    assert far.claim("x")
    assert not near.claim("x")
    clock[0] += 99
    assert not near.claim("x")
    clock[0] += 2
    assert near.claim("x")
    assert not far.holds("x")
    far.beat()
    far.release("x")  # what it does to its lost claim must not touch the new one
    assert near.holds("x")
    assert not claims(tmp_path, "c").claim("x")


def test_a_beating_holder_elsewhere_keeps_its_claim(tmp_path: Path, clock: list[float]) -> None:
    far, near = claims(tmp_path, host="elsewhere"), claims(tmp_path)
    assert far.claim("x")
    for _ in range(10):
        clock[0] += 60
        far.beat()
        assert not near.claim("x")
    assert far.holds("x")


def test_a_claim_torn_while_written_is_stolen_when_it_is_stale(tmp_path: Path, clock: list[float]) -> None:
    (tmp_path / "x.1").write_bytes(b"0000")
    near = claims(tmp_path)
    assert not near.claim("x")
    clock[0] += 101
    assert near.claim("x")


def test_of_two_thieves_one_gets_it(tmp_path: Path, clock: list[float]) -> None:
    assert claims(tmp_path, host="elsewhere").claim("x")
    thieves = [claims(tmp_path, name) for name in "bc"]
    assert not any(thief.claim("x") for thief in thieves)
    clock[0] += 101
    assert [thief.claim("x") for thief in thieves] == [True, False]


def test_a_slow_thief_whose_victim_was_succeeded_and_released_meanwhile_gives_up(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert claims(tmp_path, host="elsewhere").claim("x")
    slow, fast = claims(tmp_path, "b"), claims(tmp_path, "c")
    assert not slow.claim("x")
    assert not fast.claim("x")
    clock[0] += 101
    take = slow._take

    def late(*args: object) -> bool:
        assert fast.claim("x")
        fast.release("x")
        assert claims(tmp_path, "d").claim("x")
        return take(*args)

    monkeypatch.setattr(slow, "_take", late)
    assert not slow.claim("x")


def test_names_of_items_do_not_mix(tmp_path: Path) -> None:
    one, two = claims(tmp_path), claims(tmp_path, "b")
    assert one.claim("a.1")
    assert two.claim("a")
    assert two.claim("a/1")
    assert not two.claim("a.1")


def test_releasing_all_leaves_no_file(tmp_path: Path) -> None:
    worker = claims(tmp_path)
    assert worker.claim("a")
    assert worker.claim("b/c")
    worker.release_all()
    assert list(tmp_path.iterdir()) == []
