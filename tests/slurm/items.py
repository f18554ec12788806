"""Runs of items on the private SLURM: submit them, wait for them, and count what came out."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.run_folder import RunFolder
from tests.jobs_for_tests import shared_items
from tests.launching import launch, status
from tests.slurm.cluster import Cluster

JOB = "tests.jobs_for_tests.shared_items"


def submit(cluster: Cluster, runs: Path, name: str, *words: object, job: str = JOB) -> RunFolder:
    """Submit a run with settings for tests, of items below ``runs``, as a person does."""
    out = [f"out={runs / 'out' / name}"] if job == JOB else []
    done = launch(
        "submit", job, "--cluster", "slurm", "--runs", runs, "--name", name, "grace_s=10", *out, *words
    )
    assert done.returncode == 0, done.stderr
    return RunFolder.open(runs / name)


def wait_done(cluster: Cluster, *runs: RunFolder, seconds: float = 90) -> None:
    """Wait until runs are DONE and SLURM has nothing of them left."""
    cluster.wait_until(lambda: all(run.is_done() for run in runs), "all are DONE", seconds)
    cluster.wait_until(lambda: not cluster.squeue("-p", "low"), "the queue is empty", seconds)


def log_of(out: Path) -> list[dict[str, Any]]:
    """Return a line for each ending of an item, oldest first."""
    return read_rows(out / "log.jsonl")


def check_items(run: RunFolder, count: int, *, skipped: tuple[int, ...] = ()) -> None:
    """Assert that every item is there once, whole, and that nothing else is."""
    out = run.path.parent / "out" / run.name
    wanted = sorted(set(range(count)) - set(skipped))
    assert sorted(row["item"] for row in log_of(out)) == wanted  # each once: none missing, none twice
    files = [path for path in out.iterdir() if path.name.isdigit()]
    assert sorted(int(path.name) for path in files) == wanted
    for path in files:
        assert path.read_text() == shared_items.content_of(int(path.name))
    assert list((out / "claims").iterdir()) == []
    assert not list(out.glob(".*"))


def attempts_by_element(run: RunFolder) -> Counter[int | None]:
    """Return how many attempts each element made."""
    return Counter(outcome.element for outcome in run.outcomes())


def causes_by_element(run: RunFolder) -> dict[int | None, list[str]]:
    """Return how the attempts of each element ended, oldest first."""
    found: dict[int | None, list[str]] = {}
    for outcome in run.outcomes():
        found.setdefault(outcome.element, []).append(str(outcome.cause))
    return found


def events(run: RunFolder, name: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(run.events_path) if row["event"] == name]


class Watch:
    """Rows of ``status`` of a run, collected while something else is waited for."""

    def __init__(self, run: RunFolder, every_s: float = 1.0) -> None:
        self.rows: list[dict[str, Any]] = []
        self._run = run
        self._every_s = every_s
        self._next_s = 0.0

    def until(self, fact: Callable[[], object]) -> Callable[[], object]:
        """Return ``fact`` that looks at the status now and then."""

        def both() -> object:
            if time.monotonic() >= self._next_s:
                self.rows.append(status(self._run))
                self._next_s = time.monotonic() + self._every_s
            return fact()

        return both
