"""Who hangs, told from heartbeats; and what a pulse counts."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from get3d_cluster.core.job import RetryConfig
from get3d_cluster.dist.group import SoloGroup
from get3d_cluster.runtime import watchdog
from get3d_cluster.runtime.run_folder import RunFolder, write_json
from get3d_cluster.runtime.watchdog import (
    CountedGroup,
    Heartbeat,
    Pulse,
    Watchdog,
    process_age_s,
    read_heartbeat,
    read_heartbeats,
    read_verdict,
    verdict,
)

BEAT = Heartbeat(
    rank=0,
    node="n0",
    t=1000.0,
    begun_t=900.0,
    phase="step",
    step=811,
    beats=9000,
    exchanges=5000,
    is_waiting=True,
    is_hung=True,
    step_s=90.0,
    save_s=0.0,
    data_s=0.0,
)


def ranks(*changes: dict) -> list[Heartbeat]:
    return [
        replace(BEAT, **({"rank": rank, "node": f"n{rank}"} | change)) for rank, change in enumerate(changes)
    ]


def judged(beats: list[Heartbeat], num_ranks: int | None = None) -> watchdog.Verdict:
    return verdict(beats, range(num_ranks or len(beats)), 1800)


def test_the_one_that_did_not_come_to_the_exchange_is_named_with_its_node() -> None:
    found = judged(ranks({}, {}, {"exchanges": 4999, "is_waiting": False}, {}))
    assert found.what == "rank 2 on n2 did not come to the exchange of step 812: nothing moved for 1800 s"
    assert (found.ranks, found.hosts) == ((2,), ("n2",))


def test_one_that_waits_in_an_earlier_exchange_is_behind_too() -> None:
    assert judged(ranks({}, {"exchanges": 4998}, {})).ranks == (1,)


def test_rank_0_that_does_not_come_back_from_a_save_is_named_by_what_the_others_wait_for() -> None:
    at_save = {"phase": "saving", "step": 810}
    found = judged(ranks(at_save | {"exchanges": 4999, "is_waiting": False}, at_save))
    assert "rank 0 on n0 did not come to the exchange of the save of step 810" in found.what


def test_nobody_is_blamed_when_all_wait_in_the_same_exchange() -> None:
    found = judged(ranks({}, {}))
    assert found.what.startswith("all 2 ranks wait for each other in the exchange of step 812")
    assert (found.ranks, found.hosts) == ((), ())


def test_of_equal_counts_those_that_do_not_wait_are_named() -> None:
    alone = ranks({"is_waiting": False, "phase": "starting"})
    assert judged(alone).what == "rank 0 on n0 hung during the start: nothing moved for 1800 s"
    assert judged(ranks({}, {"is_waiting": False})).ranks == (1,)


def test_a_worker_that_never_showed_anything_is_the_one() -> None:
    found = judged(ranks({}, {}), 3)
    assert (found.ranks, found.what) == ((2,), "rank 2 never showed a sign of life")


def test_a_worker_of_items_is_judged_alone_under_its_own_number() -> None:
    found = verdict(ranks({}, {"is_waiting": False})[1:], range(1, 2), 60)
    assert found.ranks == (1,)


def test_an_exchange_is_life_when_it_ends_and_waiting_until_then() -> None:
    pulse, seen = Pulse(), []

    class Seeing(SoloGroup):
        def broadcast(self, value: object) -> object:
            seen.append((pulse.exchanges, pulse.is_waiting, pulse.beats))
            return value

    group = CountedGroup(Seeing(), pulse)
    assert group.broadcast("x") == "x"
    assert group.any([True, False]) == [True, False]
    assert seen == [(1, True, 0)]
    assert (pulse.exchanges, pulse.is_waiting, pulse.beats) == (2, False, 2)


def test_a_part_that_fails_is_not_counted_as_done() -> None:
    pulse = Pulse()
    with pytest.raises(ValueError, match="x"), pulse.counting("step"):
        raise ValueError("x")
    assert pulse.seconds["step"] == 0.0


def ended_by(
    monkeypatch: pytest.MonkeyPatch, dog: Watchdog, life: list[int], pulse: Pulse, slept_s: float = 0.01
) -> int:
    """Let the watchdog count through ``life`` (beats in each tick); return the tick in which it ended the process."""
    ticks = 0

    class EndedError(Exception):
        pass

    def sleep(_seconds: float) -> None:
        nonlocal ticks
        if ticks == len(life):
            raise EndedError
        pulse.beats += life[ticks]
        ticks += 1

    def leave(_code: int) -> None:
        raise EndedError

    monkeypatch.setattr(watchdog.time, "sleep", sleep)
    monkeypatch.setattr(watchdog.os, "_exit", leave)
    monkeypatch.setattr(dog, "_tell", lambda: None)
    with pytest.raises(EndedError):
        dog._count()
    watchdog.faulthandler.cancel_dump_traceback_later()
    return ticks


def dog_of(tmp_path: Path, pulse: Pulse, hang_s: float = 10.0) -> Watchdog:
    run = RunFolder(tmp_path)
    run.attempt_dir(1).mkdir(parents=True)
    return Watchdog(pulse, run, 1, 0, 1, hang_s=hang_s, together=True)


def test_only_ticks_without_life_in_a_row_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pulse = Pulse()
    pulse.beat("step", 1)
    dog = dog_of(tmp_path, pulse)
    assert ended_by(monkeypatch, dog, [0] * 9 + [1] + [0] * 20, pulse) == 20
    pulse.beat("step", 2)
    assert ended_by(monkeypatch, dog, [0, 0, 1] * 20, pulse) == 60


def test_a_start_and_a_save_have_ten_minutes_however_short_a_step_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulse = Pulse()
    dog = dog_of(tmp_path, pulse)
    assert ended_by(monkeypatch, dog, [0] * 1000, pulse) == 601
    pulse.beat("saving", 1)
    assert ended_by(monkeypatch, dog, [0] * 1000, pulse) == 601


def test_a_heartbeat_is_shown_at_once_when_the_phase_changes(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.attempt_dir(2).mkdir(parents=True)
    pulse = watchdog.watch(run, 2, 3, 4, hang_s=0.0, together=True)
    with pulse.counting("data"):
        time.sleep(0.01)
    end_s = time.monotonic() + 60
    for phase, step in (("step", 7), ("leaving", 8)):
        pulse.beat(phase, step)
        shown = None
        while (shown is None or shown.phase != phase) and time.monotonic() < end_s:
            shown = read_heartbeat(run.attempt_dir(2), 3)
        assert shown is not None
        assert (shown.rank, shown.phase, shown.step) == (3, phase, step)
    assert shown.data_s >= 0.01
    assert 0.0 < shown.t - shown.begun_t < 86400


def test_what_cannot_be_read_is_no_heartbeat_and_no_node(tmp_path: Path) -> None:
    (tmp_path / "heartbeat.rank0000.json").write_text('{"rank": 0, "node"')
    write_json(tmp_path / "heartbeat.rank0001.json", {"rank": 1, "node": "n1", "later": 1})
    assert [(beat.rank, beat.node, beat.step) for beat in read_heartbeats(tmp_path)] == [(1, "n1", 0)]
    assert read_verdict(tmp_path) is None
    (tmp_path / "hung.json").write_text("{}")
    assert read_verdict(tmp_path) is None


def test_native_stacks_are_asked_of_py_spy_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "py-spy"
    program.write_text('#!/bin/sh\necho "native stacks for $*"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    watchdog._write_stacks(tmp_path / "stacks.txt")
    text = (tmp_path / "stacks.txt").read_text()
    assert "test_native_stacks_are_asked" in text
    assert f"native stacks for dump --native --pid {watchdog.os.getpid()}" in text


def test_the_age_of_this_process_is_known() -> None:
    assert 0.0 < process_age_s() < 86400


def test_no_negative_patience() -> None:
    assert RetryConfig(hang_s=0).hang_s == 0
    with pytest.raises(ValueError, match="hang_s=-1"):
        RetryConfig(hang_s=-1)
