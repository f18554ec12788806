"""The rehearsal that users are told to trust: it must find what is wrong, and leave nothing behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from get3d_cluster.config import find_job, load
from get3d_cluster.core.job import Resources
from get3d_cluster.errors import Get3dError, UsageError
from get3d_cluster.runtime.env import ProcessId, queue_folder
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.runtime.watchdog import Pulse, Watchdog, read_heartbeat
from get3d_cluster.simulate import Plan, Stop, simulate
from get3d_cluster.simulate.lookout import Lookout
from get3d_cluster.simulate.verdict import PHASES, Verdict, changed_environments, phase_rows, stop_rows
from get3d_cluster.simulate.workers import kill, start_workers
from tests.launching import wait_until
from tests.simulations import assert_only_unsaved_steps_are_lost
from tests.train_setup import CONFIGS, dataset, tiny_config
from tests.workers import make_run

PAUSE = "step_s=0.05"
PLAIN = "tests.plain.job"
SETTINGS = (
    "num_images=192", "checkpoint.every_steps=4",
    "augment.target=0.3", "augment.interval=2", "augment.adjust_images=2000", "augment.p=0.4",
    "watch.measure_every_s=0.5", "watch.measure_images=4", "watch.budget=1e6",
)  # fmt: skip


@pytest.mark.timeout(900)
def test_a_training_stopped_and_killed_on_other_numbers_of_workers_ends_with_the_same_bits(
    tmp_path: Path, queue: Path
) -> None:
    """GET3D itself, through real workers and signals, over several R1 periods; a short form of the long test."""
    config = tiny_config(dataset(tmp_path / "data"), *SETTINGS)
    said: list[str] = []
    plan = Plan(stops=6, worlds=(2, 1, 3), kill_ratio=0.5, seed=4)
    verdict = simulate("train", config, tmp_path / "runs", plan, said.append)
    assert verdict.is_exact, said
    assert verdict.lost_after_notices == 0, said
    assert [stop.world_size for stop in verdict.stops] == [2, 1, 3, 2, 1, 3], said
    assert sum(stop.is_kill and "kill -9" in stop.how for stop in verdict.stops) == 3
    assert_only_unsaved_steps_are_lost(verdict.stops, tmp_path / "runs" / "stopped")
    assert all(stop.steps_lost <= 4 + 1 for stop in verdict.stops)
    assert {stop.phase for stop in verdict.stops} <= set(PHASES)
    assert len({stop.phase for stop in verdict.stops}) > 1
    assert not list(queue_folder().glob("inbox/*"))
    assert verdict.environments == ()
    rows = read_rows(tmp_path / "runs" / "stopped" / "metrics.jsonl")
    assert len({row["augment_p"] for row in rows}) > 2, "the strength of the augmentation moves"
    assert any("silhouette_iou" in row for row in rows)
    events = read_rows(tmp_path / "runs" / "straight" / "events.jsonl")
    assert any(row.get("why") == "periodic" for row in events)
    beat = read_heartbeat(RunFolder(tmp_path / "runs" / "straight").attempt_dir(1), 0)
    assert beat is not None
    assert beat.measurements > 0


@pytest.mark.timeout(300)
def test_checkpoints_that_a_configuration_keeps_elsewhere_stay_in_the_folder_of_the_rehearsal(
    tmp_path: Path,
) -> None:
    places = [f"checkpoint.url={(tmp_path / 'bucket').as_uri()}", f"checkpoint.local={tmp_path / 'disk'}"]
    settings = ["num_steps=6", "checkpoint.every_steps=2", "checkpoint.local_every_steps=1", *places]
    said: list[str] = []
    simulate(
        PLAIN, load(find_job(PLAIN).Config, None, settings), tmp_path / "runs", Plan(stops=0), said.append
    )
    assert not (tmp_path / "bucket").exists()
    assert not (tmp_path / "disk").exists()
    assert list((tmp_path / "runs" / "far").rglob("manifest.json"))
    assert sum(line.startswith("checkpoint.") for line in said) == 2


@pytest.mark.timeout(600)
@pytest.mark.long
def test_what_is_said_of_each_stop_is_what_the_run_logged(tmp_path: Path) -> None:
    config = load(find_job(PLAIN).Config, None, ["num_steps=60", PAUSE, "checkpoint.every_steps=7"])
    said: list[str] = []
    plan = Plan(stops=3, worlds=(1, 2), kill_ratio=0.5, seed=2)
    verdict = simulate(PLAIN, config, tmp_path, plan, said.append)
    assert verdict.is_exact
    events = [json.loads(line) for line in (tmp_path / "stopped" / "events.jsonl").read_text().splitlines()]
    begun = {row["attempt"]: row for row in events if row["event"] in ("start", "resume")}
    for number, stop in enumerate(verdict.stops, 1):
        later = begun.get(number + 1)
        if later is not None:
            assert stop.resumed_step == later["step"]
            assert stop.recovery_s is None or stop.recovery_s > stop.leave_s
        assert 0 < stop.leave_s < 60
    assert len(stop_rows(verdict.stops)) == 3
    assert sum(int(row[1]) for row in phase_rows(verdict.stops)) == 3
    assert sum("stop" in line for line in said) == 3


@pytest.mark.timeout(600)
def test_a_state_with_a_hole_is_found_and_ends_with_6(tmp_path: Path, queue: Path) -> None:
    command = [
        sys.executable,
        "launch.py",
        "simulate",
        "tests.jobs_for_tests.forgetful",
        "num_steps=40",
        PAUSE,
    ]
    # a notice in the middle: at the start there would be nothing to forget
    done = subprocess.run(
        [*command, "--stops", "3", "--kill-ratio", "0", "--seed", "1", "--folder", str(tmp_path), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 6, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    told = json.loads(done.stdout)
    assert told["is_exact"] is False
    assert told["digest"] != told["other_digest"]
    assert len(told["stops"]) == 3


def test_what_cannot_be_simulated_is_refused_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="items"):
        simulate("shapes", None, tmp_path, Plan(), print)
    config = load(find_job("train").Config, CONFIGS / "tiny_test.yaml", ["data.path=x"])
    with pytest.raises(UsageError, match="4 workers at most"):
        simulate("train", config, tmp_path, Plan(worlds=(2, 5)), print)
    with pytest.raises(UsageError, match="4 workers at most"):
        simulate("train", config, tmp_path, Plan(reference=8), print)
    with pytest.raises(UsageError, match="kill_ratio=2"):
        simulate("train", config, tmp_path, Plan(kill_ratio=2), print)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    on_gpu = load(find_job(PLAIN).Config, None, ["resources.gpus_per_worker=1"])
    assert on_gpu.resources == Resources(gpus_per_worker=1)
    with pytest.raises(UsageError, match="shows no GPU"):
        simulate(PLAIN, on_gpu, tmp_path, Plan(), print)
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_that_fails_by_itself_is_told_with_its_own_words(tmp_path: Path) -> None:
    config = load(find_job("train").Config, CONFIGS / "tiny_test.yaml", [f"data.path={tmp_path / 'none'}"])
    with pytest.raises(Get3dError, match="none") as caught:
        simulate("train", config, tmp_path / "runs", Plan(stops=1), lambda _: None)
    assert caught.value.exit_code == 2
    assert "rank0000.log" in caught.value.way_out


def test_a_killed_worker_takes_along_all_that_it_started(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", PLAIN, "num_steps=100000", PAUSE)
    workers = start_workers(run, 1)
    try:
        child = subprocess.Popen(["sleep", "1000"], process_group=workers[0].pid)
        kill(workers)
        assert child.wait(10) == -signal.SIGKILL
    finally:
        kill(workers)
    assert workers[0].returncode == -signal.SIGKILL


def test_no_worker_is_left_when_a_person_interrupts(tmp_path: Path) -> None:
    config = ["num_steps=100000", PAUSE]
    command = [sys.executable, "launch.py", "simulate", PLAIN, *config, "--folder", str(tmp_path)]
    rehearsal = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        beat = tmp_path / PLAIN / "straight" / "attempts" / "0001" / "heartbeat.rank0000.json"
        wait_until((tmp_path / PLAIN / "straight" / "metrics.jsonl").exists)
        events = (tmp_path / PLAIN / "straight" / "events.jsonl").read_text().splitlines()
        worker = ProcessId.of(json.loads(events[0])["pid"])
        assert worker.is_alive()
        os.kill(rehearsal.pid, signal.SIGINT)
        assert rehearsal.wait(60) != 0
        assert not worker.is_alive()
        assert beat.parent.is_dir()
    finally:
        rehearsal.kill()


def test_phases_are_told_apart_by_what_lies_in_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", PLAIN)
    folder = run.attempt_dir(run.new_attempt())
    (run.checkpoints_dir / "step-000000001").mkdir(parents=True)
    run.samples_dir.mkdir()
    (run.samples_dir / ".writing-left-by-a-kill").write_text("")
    lookout = Lookout(run)
    lookout.follow(1)
    assert lookout.phase() == "imports"
    run.events_path.write_text('{"event": "attempt-start"}\n')
    assert lookout.phase() == "loading"
    with run.events_path.open("a") as file:
        file.write('{"event": "resume", "step": 1}\n{"event": "torn')
    assert lookout.phase() == "first step"
    run.metrics_path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert lookout.phase() == "step"
    assert lookout.resumed_step == 1
    pulse = Pulse()
    watchdog = Watchdog(pulse, run, 1, 0, 1, hang_s=0, together=False)
    with pulse.measuring():
        watchdog._show()
        assert (lookout.phase(), lookout.is_measuring()) == ("measuring", True)
    watchdog._show()
    assert lookout.phase() == "step"
    aside = run.checkpoints_dir / ".writing-step-000000002-ab"
    aside.mkdir()
    assert lookout.phase() == "saving"
    (aside / "manifest.json").write_text("{}")
    assert lookout.phase() == "publishing"
    aside.rename(run.checkpoints_dir / "step-000000002")
    (run.samples_dir / ".writing-000.png-ab").write_text("")
    assert lookout.phase() == "preview"
    (folder / "outcome.json").write_text("{}")
    assert lookout.phase() == "leaving"


def test_a_verdict_says_what_was_lost_and_where_the_bits_may_have_changed() -> None:
    def stop(how: str, left: int, *, is_kill: bool) -> Stop:
        return Stop(
            world_size=2,
            how=how,
            phase="step",
            reached_step=left,
            left_step=left,
            resumed_step=6,
            is_kill=is_kill,
            leave_s=1.0,
        )

    stops = (stop("SIGTERM to rank 0", 6, is_kill=False), stop("kill -9", 9, is_kill=True))
    changed = {"event": "environment", "step": 6, "changed": {"threads": [1, 2]}}
    verdict = Verdict(
        digest="a", other_digest="b", stops=stops, seconds=1.0, asked_stops=3, environments=(changed,)
    )
    assert (verdict.lost_after_notices, verdict.lost_after_kills) == (0, 3)
    text = "\n".join(verdict.lines())
    assert "not bitwise from step 6 on" in text
    assert "threads 1 -> 2" in text
    assert "1 stops did not fit" in text
    assert json.loads(json.dumps(verdict.summary()))["kills"] == 1


def test_an_attempt_elsewhere_that_saved_nothing_leaves_the_bits_as_they_were() -> None:
    def event(name: str, attempt: int, step: int) -> dict[str, object]:
        return {"event": name, "attempt": attempt, "step": step}

    first = [event("start", 1, 0), event("save", 1, 5), event("environment", 2, 5), event("resume", 2, 5)]
    assert changed_environments(first) == []
    assert changed_environments([*first, event("save", 2, 5)]) == []
    assert changed_environments([*first, event("save", 3, 9)]) == []
    assert changed_environments([*first, event("save", 2, 8), event("save", 3, 9)]) == [first[2]]
