"""Fixtures for tests that run real processes."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from get3d_cluster.runtime.env import ProcessId
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers import local_files
from get3d_cluster.schedulers.local_files import QueueFolder
from get3d_cluster.schedulers.local_machine import session_members

# A shell that starts the tests in the background has them ignore Ctrl-C, and all their children with them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, likewise

# A busy machine is no failure: time is measured by benchmarks.
_SLOW = [hypothesis.HealthCheck.too_slow]
hypothesis.settings.register_profile("any machine", deadline=None, suppress_health_check=_SLOW)
hypothesis.settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def _nobodys_queue(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test off the queue of the person who runs it."""
    monkeypatch.setenv("GET3D_QUEUE", str(tmp_path_factory.getbasetemp() / "queue"))


@pytest.fixture
def queue(_nobodys_queue: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[QueueFolder]:
    """Give this test, and all processes it starts, a queue of its own with two cores; leave no process behind."""
    monkeypatch.setenv("GET3D_QUEUE", str(tmp_path / "queue"))
    monkeypatch.setenv("GET3D_SLOTS", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    folder = QueueFolder(tmp_path / "queue")
    yield folder
    _kill(folder.process())
    for spec in tmp_path.rglob("spec.json"):
        run = RunFolder(spec.parent)
        for attempt in run.attempts():
            kill_attempt(run, attempt)


def kill_attempt(run: RunFolder, attempt: int) -> None:
    """Kill the supervisor of an attempt, its workers, and what they started, all at once."""
    processes = local_files.read_processes(run, attempt)
    if processes is not None:
        members = session_members(processes.supervisor)
        _kill(processes.supervisor)
        for member in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member.pid, signal.SIGKILL)


def _kill(process: ProcessId | None) -> None:
    if process is not None and process.is_alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
