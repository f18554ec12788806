"""What breaks around ``python -m get3d_cluster.worker RUN``: notices at bad moments, full disks, second copies.

docs/failures.md lists these tests by what breaks.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from get3d_cluster.core.job import Cause
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.run_folder import RunFolder
from tests.launching import ROOT, launch, start_python, status, told, wait_until
from tests.workers import PLAIN, final_digest, logs, make_run, run_to_end, start, stop, wait, wait_for_step

PARTS = "tests.jobs_for_tests.slow_parts"


def by_hand(run: RunFolder | Path) -> subprocess.CompletedProcess[str]:
    """Start one worker as a person does, and wait for it."""
    path = run.path if isinstance(run, RunFolder) else run
    with start_python("-m", "get3d_cluster.worker", path) as process:
        out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess([], process.returncode, out, err)


def test_wrong_config_unknown_job_and_no_run_are_told_in_three_lines(tmp_path):
    run = make_run(tmp_path / "run", PLAIN, "num_steps=3")
    good = run.config_path.read_text()
    run.config_path.write_text(good.replace("num_steps: 3", "num_steps: three"))
    done = by_hand(run)
    assert done.returncode == 2
    told(done, "num_steps", "three")
    assert run.attempts() == []
    run.config_path.write_text(good)
    spec = run.spec_path.read_text()
    run.spec_path.write_text(spec.replace(PLAIN, "no_such_job"))
    done = by_hand(run)
    assert done.returncode == 2
    told(done, "no_such_job")
    run.spec_path.write_text("{}")
    done = by_hand(run)
    assert done.returncode == 2
    told(done, run.spec_path)
    done = by_hand(tmp_path / "nothing")
    assert done.returncode == 2
    told(done, tmp_path / "nothing", "launch.py status")


def test_missing_dataset_is_told_by_the_worker_itself(tmp_path):
    data = tmp_path / "nowhere"
    run = make_run(tmp_path / "run", "train", f"data.path={data}")
    done = by_hand(run)
    assert done.returncode == 2
    told(done, data, "launch.py run pack")
    outcome = run.outcome(1)
    assert outcome is not None
    assert outcome.cause is Cause.REFUSED
    assert str(data) in outcome.message


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Digest of 12 steps of the job, never interrupted."""
    return run_to_end(make_run(tmp_path_factory.mktemp("parts") / "run", PARTS))


def test_notices_while_building_loading_saving_and_in_the_last_step_lose_nothing(tmp_path, uninterrupted):
    run = make_run(
        tmp_path / "run", PARTS, "slow=[make,load,save,last]", "part_s=0.4", "checkpoint.every_steps=5"
    )
    left = []
    for part in ("make", "load", "save"):
        workers = start(run)
        wait_until((run.path / f"in-{part}").exists)
        if (
            part == "save"
        ):  # the first time the state is asked for its sizes, the second for the save of step 5
            (run.path / "in-save").unlink()
            wait_until((run.path / "in-save").exists)
        stop(workers, signal.SIGTERM)
        stop(workers, signal.SIGUSR1)
        stop(workers, signal.SIGTERM)
        assert wait(workers) == [75], logs(run)
        outcome = run.outcome(len(left) + 1)
        assert outcome is not None
        assert outcome.end_step == outcome.saved_step
        left.append(outcome.saved_step)
        for mark in run.path.glob("in-*"):
            mark.unlink()
    assert left[:2] == [0, 0]
    assert 5 <= left[2] < 12
    workers = start(run)
    wait_until((run.path / "in-last").exists)
    stop(workers)
    assert wait(workers) == [0], logs(run)
    assert final_digest(run) == uninterrupted
    assert [row["step"] for row in read_rows(run.metrics_path)] == list(range(1, 13))


def test_worker_started_by_hand_survives_its_terminal_and_is_told_how_to_stop(tmp_path, uninterrupted):
    run = make_run(tmp_path / "run", PARTS, "step_s=0.3")
    process = start_python("-m", "get3d_cluster.worker", run.path, start_new_session=True)
    with process:
        wait_for_step(run, 1)
        os.killpg(process.pid, signal.SIGHUP)
        done = launch("suspend", run.path)
        assert done.returncode == 2
        told(done, f"pid {process.pid}", f"kill -TERM {process.pid}")
        process.kill()
        process.communicate()
    assert status(run)["state"] == "LOST"
    assert "nothing to stop" in launch("suspend", run.path).stdout
    assert run_to_end(run) == uninterrupted


ON_FULL_DISK = """
import os, signal, sys, time
from pathlib import Path
from get3d_cluster.runtime.checkpoint import list_checkpoints
from get3d_cluster.runtime.events import read_rows
from tests.workers import *

disk = Path(sys.argv[1])
job = "tests.jobs_for_tests.slow_parts"
run = make_run(disk / "run", job, "step_s=0.03", "num_steps=40", "checkpoint.every_steps=5")
workers = start(run)
wait_for_step(run, 6)
filler = (disk / "filler").open("wb", buffering=0)
try:
    while True:
        filler.write(bytes(4096))
except OSError:
    pass
time.sleep(0.5)
assert workers[0].poll() is None, "a full disk ended the training"
stop(workers)
assert wait(workers) == [5], logs(run)
assert "Traceback" not in logs(run)
saved = [info for info in list_checkpoints(run, verify=True)]
assert saved and all(info.state == "ok" for info in saved), saved
assert saved[-1].step >= 5
filler.close()
(disk / "filler").unlink()
digest = run_to_end(run)
assert [row["step"] for row in read_rows(run.metrics_path)] == list(range(1, 41))
resumed = [row for row in read_rows(run.events_path) if row["event"] == "resume"][-1]
assert resumed["step"] == saved[-1].step
print(digest)
"""


def _can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    try_it = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(try_it, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _can_mount(), reason="needs a user namespace to mount a small disk")
def test_disk_that_is_full_to_the_last_byte_ends_with_5_and_the_run_goes_on_later(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f'mount -t tmpfs -o size=1m none "{disk}" && exec "{sys.executable}" -c "$0" "{disk}"'
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script, ON_FULL_DISK],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == run_to_end(make_run(tmp_path / "plain", PARTS, "num_steps=40"))


def test_file_that_cannot_be_unpickled_or_would_run_code_is_never_loaded(tmp_path, uninterrupted):
    run = make_run(tmp_path / "run", PARTS, "checkpoint.every_steps=5")
    assert run_to_end(run) == uninterrupted
    run.done_path.unlink()
    newest = sorted(run.checkpoints_dir.iterdir())[-1]
    mark = tmp_path / "executed"
    bomb = f"cposix\nsystem\n(S'touch {mark}'\ntR.".encode()
    (newest / "net.safetensors").write_bytes(bomb)
    (newest / "net.pkl").write_bytes(bomb)
    assert run_to_end(run) == uninterrupted
    assert not mark.exists()
    resumed = next(row for row in read_rows(run.events_path) if row["event"] == "resume")
    assert resumed["step"] == 10
    assert "net.safetensors" in resumed["damaged"][0]
