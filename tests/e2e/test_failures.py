"""What a user sees when something breaks, through ``launch.py``: three lines, an exit code, and nothing lost.

docs/failures.md lists these tests by what breaks.
"""

import contextlib
import io
import os
import resource
import shutil
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from get3d_cluster.core.job import Cause
from get3d_cluster.runtime.checkpoint import list_checkpoints
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers import local_files
from get3d_cluster.schedulers.local_files import QueueFolder
from tests.conftest import kill_attempt
from tests.launching import launch, start_launch, status, told, wait_until
from tests.train_setup import dataset
from tests.workers import final_digest, logs, make_run, run_to_end, wait_for_step

PLAIN = "tests.plain.job"
PARTS = "tests.jobs_for_tests.slow_parts"
STEPS = "num_steps=60"
SLOW = "step_s=0.1"
QUICK = "retry.backoff_s=0.2"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The plain job of 60 steps, never interrupted."""
    run = make_run(tmp_path_factory.mktemp("plain") / "run", PLAIN, STEPS)
    run_to_end(run)
    return run


@pytest.fixture(scope="module")
def uninterrupted(finished):
    """Digest of that run."""
    return final_digest(finished)


def run_of(tmp_path: Path, name: str = "run") -> RunFolder:
    return RunFolder(tmp_path / "runs" / name)


def words(tmp_path: Path, job: str = PLAIN, name: str = "run") -> list[object]:
    return ["run", job, "--runs", tmp_path / "runs", "--name", name]


def events(run: RunFolder, event: str) -> list[dict]:
    return [row for row in read_rows(run.events_path) if row["event"] == event]


def finish(run: RunFolder) -> None:
    """Resume the run and wait for its end."""
    assert launch("resume", run.path).returncode == 0
    wait_until(run.is_done)


@contextlib.contextmanager
def no_file_longer_than(num_bytes: int, pids: list[int]):
    """Make every longer write of these live processes fail, as on a disk that is full."""
    before = [
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY)) for pid in pids
    ]
    yield
    for pid, limits in zip(pids, before, strict=True):
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


def worker_pids(run: RunFolder, attempt: int) -> list[int]:
    processes = wait_until(
        lambda: (found := local_files.read_processes(run, attempt)) and found.all_started and found
    )
    return [worker.process.pid for worker in processes.workers]


# Configuration and data


@pytest.mark.parametrize(
    ("override", "said"),
    [("num_steps=many", ("num_steps", "many")), ("num_stepz=3", ("num_stepz", "num_steps"))],
)
def test_wrong_config_is_refused_before_anything_is_made(queue, tmp_path, override, said):
    done = launch(*words(tmp_path), override)
    assert done.returncode == 2
    told(done, *said)
    assert not run_of(tmp_path).path.exists()


def test_config_broken_after_submission_fails_the_run_and_says_where(queue, tmp_path):
    run = make_run(tmp_path / "runs" / "run", PLAIN, STEPS)
    text = run.config_path.read_text()
    run.config_path.write_text(text.replace("num_steps: 60", "num_steps: many"))
    assert launch("resume", run.path).returncode == 0
    outcome = wait_until(lambda: run.outcome(1))
    assert (outcome.cause, outcome.exit_code) == (Cause.REFUSED, 2)
    assert "num_steps" in outcome.message
    assert 2 <= len(outcome.message.splitlines()) <= 3
    row = wait_until(lambda: (row := status(run))["state"] == "FAILED" and row)
    assert "num_steps" in row["why"]


def test_missing_dataset_ends_both_workers_with_one_message(queue, tmp_path):
    data = tmp_path / "nowhere"
    done = launch(
        *words(tmp_path, "train"), "--config", "tiny_test", f"data.path={data}", "workers_per_node=2"
    )
    assert done.returncode == 2
    told(done, data, "launch.py run pack")
    run = run_of(tmp_path)
    assert [outcome.cause for outcome in run.outcomes()] == [Cause.REFUSED]
    assert "Traceback" not in logs(run)


def test_damaged_packed_image_names_shard_and_key(queue, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # the first step of a fresh snapshot would compile for long
    data = dataset(tmp_path / "data")
    shard = data / "shard-00000.tar"
    content = bytearray(shard.read_bytes())
    for at in range(0, len(content), 512):
        if content[at : at + 8] == b"\x89PNG\r\n\x1a\n":
            content[at + 40] ^= 1
    shard.write_bytes(content)
    done = launch(
        *words(tmp_path, "train"), "--config", "tiny_test", f"data.path={data}", "workers_per_node=2"
    )
    assert done.returncode == 2, done.stdout
    told(done, shard, "02958343/", "launch.py run pack")
    assert run_of(tmp_path).attempts() == [1]


def test_damaged_png_is_found_when_it_is_packed(queue, tmp_path):
    images = tmp_path / "images"
    rendered = images / "img" / "02958343" / "0001"
    cameras = images / "camera" / "02958343" / "0001"
    rendered.mkdir(parents=True)
    cameras.mkdir(parents=True)
    for name in ("rotation", "elevation"):
        np.save(cameras / f"{name}.npy", np.array([10.0, 20.0]))
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 4), np.uint8)).save(out, format="PNG")
    (rendered / "000.png").write_bytes(out.getvalue())
    (rendered / "001.png").write_bytes(out.getvalue()[:-200])
    done = launch(*words(tmp_path, "pack"), f"images={images}", f"out={tmp_path / 'packed'}")
    assert done.returncode == 2, done.stdout + done.stderr
    told(done, rendered / "001.png")
    assert not (tmp_path / "packed" / "index.json").exists()
    (rendered / "001.png").write_bytes(out.getvalue())
    assert launch(*words(tmp_path, "pack"), f"images={images}", f"out={tmp_path / 'packed'}").returncode == 0
    assert (tmp_path / "packed" / "index.json").exists()


# Storage


def test_full_disk_costs_no_step_while_training_and_no_checkpoint_at_the_end(queue, tmp_path, uninterrupted):
    run = run_of(tmp_path)
    with start_launch(
        *words(tmp_path), STEPS, SLOW, "checkpoint.every_steps=5", "retry.backoff_s=1"
    ) as process:
        wait_for_step(run, 11)
        pids = worker_pids(run, 1)
        with no_file_longer_than(600, pids):
            wait_until(lambda: read_rows(run.metrics_path)[-1]["step"] >= 20 or not _alive(pids[0]))
            time.sleep(0.4)
            assert _alive(pids[0]), logs(run)
            os.kill(pids[0], signal.SIGTERM)
            outcome = wait_until(lambda: run.outcome(1))
        assert (outcome.cause, outcome.exit_code) == (Cause.CRASHED, 5)
        assert str(run.checkpoints_dir) in outcome.message
        assert outcome.saved_step == list_checkpoints(run, verify=True)[-1].step >= 10
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "BACKING-OFF" in out
    assert str(run.checkpoints_dir) in out
    assert "Traceback" not in logs(run)
    assert [row["step"] for row in read_rows(run.metrics_path)] == list(range(1, 61))
    assert final_digest(run) == uninterrupted


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("how", ["not there", "all damaged"])
def test_run_whose_checkpoints_are_gone_never_starts_over(queue, tmp_path, finished, how):
    run = run_of(tmp_path)
    shutil.copytree(finished.path, run.path)
    run.done_path.unlink()
    (run.attempt_dir(1) / "outcome.json").unlink()  # the log of events knows it, too
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(run.checkpoints_dir, elsewhere)
    if how == "all damaged":
        for path in run.checkpoints_dir.glob("*/net.safetensors"):
            path.write_bytes(path.read_bytes()[:-1])
    else:
        shutil.rmtree(run.checkpoints_dir)
    done = launch(*words(tmp_path), STEPS)
    assert done.returncode == 4, done.stdout
    told(done, "checkpoint", "--name")
    assert {outcome.cause for outcome in run.outcomes()} == {Cause.REFUSED}
    if how == "not there":
        elsewhere.rename(run.checkpoints_dir)
        finish(run)
        assert events(run, "resume")[-1]["step"] == 60


# Other processes


def test_port_in_use_is_named_at_once_by_both_workers(queue, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        begun = time.monotonic()
        done = launch(*words(tmp_path), STEPS, "workers_per_node=2", f"port={port}")
    assert time.monotonic() - begun < 60  # waiting for each other would take longer
    assert done.returncode == 2
    told(done, f"resources.port={port}", "port=0")
    assert "Traceback" not in logs(run_of(tmp_path))


def test_second_copy_of_the_command_joins_the_first(queue, tmp_path, uninterrupted):
    run = run_of(tmp_path)
    with start_launch(*words(tmp_path), STEPS, "step_s=0.1") as first:
        wait_for_step(run, 2)
        second = launch(*words(tmp_path), STEPS, "step_s=0.1")
        assert first.wait(60) == second.returncode == 0
    assert "running already" in second.stdout
    assert run.attempts() == [1]
    assert final_digest(run) == uninterrupted


def test_dead_worker_is_named_and_the_run_comes_back_by_itself(queue, tmp_path, uninterrupted):
    run = run_of(tmp_path)
    settings = [STEPS, SLOW, "workers_per_node=2", "checkpoint.every_steps=4", QUICK]
    with start_launch(*words(tmp_path), *settings) as process:
        wait_for_step(run, 9)
        os.kill(worker_pids(run, 1)[1], signal.SIGKILL)
        out, err = process.communicate(timeout=90)
    assert (process.returncode, err) == (0, ""), out
    outcome = run.outcome(1)
    assert outcome is not None
    assert (outcome.cause, outcome.exit_code) == (Cause.CRASHED, 1)
    assert outcome.message.startswith("rank 1 was killed by SIGKILL")
    assert len(outcome.message.splitlines()) <= 3
    assert outcome.saved_step >= 8
    assert final_digest(run) == uninterrupted


def test_bug_in_one_worker_is_told_by_its_own_words_and_holds_the_run(queue, tmp_path):
    run = run_of(tmp_path)
    settings = ["fail=1@3", "workers_per_node=2", "retry.max_crashes=1"]
    done = launch(*words(tmp_path, PARTS), *settings)
    assert done.returncode == 93
    told(done, "rank 1: ValueError: the weather", f"launch.py resume {run.path}")
    assert "was bad" in run.log_path(1, 1).read_text()
    assert "Traceback" in run.log_path(1, 1).read_text()
    row = status(run)
    assert row["state"] == "HELD"
    assert run.hold_path.exists()
    stop = launch("suspend", run.path)
    assert stop.returncode == 0
    assert "HELD" in stop.stdout


# Stopping


def test_ctrl_c_once_saves_and_twice_stops_now(queue, tmp_path):
    run = run_of(tmp_path)
    with start_launch(*words(tmp_path), STEPS, SLOW) as process:
        wait_for_step(run, 5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (75, ""), out
    assert f"python launch.py resume {run.path}" in out
    assert status(run)["state"] == "SUSPENDED"
    first = run.outcome(1)
    assert first is not None
    assert first.saved_step == first.end_step >= 5
    with start_launch(*words(tmp_path), STEPS, SLOW) as process:
        wait_for_step(run, first.saved_step + 5)
        os.kill(worker_pids(run, 2)[0], signal.SIGSTOP)  # it cannot save
        process.send_signal(signal.SIGINT)
        wait_until((run.attempt_dir(2) / "notice.json").exists)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 76, out + err
    second = run.outcome(2)
    assert second is not None
    assert (second.cause, second.saved_step) == (Cause.SUSPENDED, first.saved_step)


def test_closed_terminal_ends_the_watching_not_the_run(queue, tmp_path, uninterrupted):
    run = run_of(tmp_path)
    process = start_launch(*words(tmp_path), STEPS, SLOW, start_new_session=True)
    with process:
        wait_for_step(run, 3)
        os.killpg(process.pid, signal.SIGHUP)
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGHUP
    wait_until(run.is_done)
    assert run.attempts() == [1]
    assert final_digest(run) == uninterrupted


def test_everything_killed_at_once_is_back_with_the_next_command(queue, tmp_path, uninterrupted):
    run = run_of(tmp_path)
    process = start_launch(*words(tmp_path), STEPS, SLOW, "workers_per_node=2", "checkpoint.every_steps=4")
    with process:
        wait_for_step(run, 9)
        process.kill()
        _kill_all(queue, run, 1)
    assert not run.is_done()
    assert status(run)["state"] in ("RUNNING", "PENDING")
    assert launch("resume", run.path).returncode == 0
    wait_until(run.is_done)
    outcome = run.outcome(1)
    assert outcome is not None
    assert (outcome.cause, outcome.exit_code) == (Cause.NODE_FAILURE, 76)
    assert outcome.saved_step >= 8
    assert run.attempts() == [1, 2]
    assert final_digest(run) == uninterrupted


def _kill_all(queue: QueueFolder, run: RunFolder, attempt: int) -> None:
    process = queue.process()
    assert process is not None
    worker_pids(run, attempt)
    os.kill(process.pid, signal.SIGKILL)
    kill_attempt(run, attempt)
    wait_until(lambda: not process.is_alive())


def test_suspend_and_cancel_say_what_they_did_in_each_state(queue, tmp_path):
    run = make_run(tmp_path / "runs" / "run", PARTS, "step_s=0.1", "num_steps=9000")
    blocked = make_run(tmp_path / "runs" / "blocked", PLAIN, "num_steps=2", "resources.workers_per_node=2")

    def say(*verb: str, to: RunFolder = run) -> str:
        done = launch(*verb, to.path)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert "NEW" in say("suspend")
    launch("resume", run.path)
    wait_for_step(run, 1)
    launch("resume", blocked.path)
    assert status(blocked)["state"] == "PENDING"
    assert "out of the queue" in say("cancel", "--now", to=blocked)
    wait_until(lambda: status(blocked)["state"] == "CANCELLED")
    assert "nothing to stop" in say("cancel", "--now", to=blocked)
    launch("resume", blocked.path)
    assert "out of the queue" in say("suspend", to=blocked)
    wait_until(lambda: status(blocked)["state"] == "SUSPENDED")
    assert blocked.attempts() == []
    assert "cancelling run now" in say("cancel", "--now")
    outcome = wait_until(lambda: run.outcome(1))
    assert (outcome.cause, outcome.exit_code) == (Cause.CANCELLED, 78)
    wait_until(lambda: status(run)["state"] == "CANCELLED")
    finish(blocked)
    assert "DONE" in say("cancel", to=blocked)


def test_suspend_while_backing_off_stays_away(queue, tmp_path):
    settings = ["fail=0@3", "retry.backoff_s=60"]
    run = make_run(tmp_path / "runs" / "run", PARTS, *settings)
    launch("resume", run.path)
    wait_until(lambda: run.outcome(1))
    row = wait_until(lambda: (row := status(run))["state"] == "BACKING-OFF" and row)
    assert "ValueError: the weather" in row["why"]
    assert "out of the queue" in launch("suspend", "--now", run.path).stdout
    wait_until(lambda: status(run)["state"] == "SUSPENDED")


def again_and_again(tmp_path: Path, times: int) -> RunFolder:
    run = run_of(tmp_path)
    assert launch("submit", *words(tmp_path)[1:], STEPS, "step_s=0.1").returncode == 0
    for attempt in range(1, times + 1):
        wait_for_step(run, attempt * 30 // times)
        assert launch("suspend", run.path).returncode == 0
        outcome = wait_until(lambda attempt=attempt: run.outcome(attempt))
        assert (outcome.cause, outcome.exit_code) == (Cause.SUSPENDED, 75)
        assert outcome.saved_step == outcome.end_step
        assert launch("resume", run.path).returncode == 0
    wait_until(run.is_done)
    resumed = [row["step"] for row in events(run, "resume")]
    assert resumed == [outcome.saved_step for outcome in run.outcomes()[:times]]
    return run


def test_three_suspensions_change_no_bit(queue, tmp_path, uninterrupted):
    assert final_digest(again_and_again(tmp_path, 3)) == uninterrupted


@pytest.mark.long
def test_ten_suspensions_change_no_bit(queue, tmp_path, uninterrupted):
    assert final_digest(again_and_again(tmp_path, 10)) == uninterrupted
