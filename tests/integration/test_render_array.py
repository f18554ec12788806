"""Many models, several workers, a third of them killed at random: nothing is missing, damaged, or done twice.

The workers, their claims, their publications and the local scheduler are real; what draws the pictures is
tests/fake_blender_worker.py, since thousands of real renders would measure patience.
"""

import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers import local_files
from preprocess.quality import decode, sha256_of_pixels
from tests.launching import launch, status

TESTS = Path(__file__).parents[1]
WORKERS = 4
VIEWS = 2
SYNSET = "02958343"


@dataclass
class Havoc:
    """What was started and what was killed."""

    started: int = 0
    killed: int = 0


def name_of(number: int) -> str:
    """Return the name of a model whose views take long enough to be killed in."""
    return f"slow-{number:05d}"


def submit(folder: Path, num_models: int, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """Start the render job on a local scheduler of its own."""
    monkeypatch.setenv("GET3D_QUEUE", str(folder / "queue"))
    monkeypatch.setenv("GET3D_SLOTS", str(WORKERS))
    program = folder / "fake-blender"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{TESTS}/fake_blender_worker.py" "$@"\n')
    program.chmod(0o755)
    for number in range(num_models):
        model = folder / "models" / SYNSET / name_of(number)
        model.mkdir(parents=True)
        (model / "model.obj").write_text("v 0 0 0\nf 1 1 1\n")
    words = [f"models={folder / 'models'}", f"out={folder / 'out'}", f"blender={program}"]
    words += ["image.resolution=16", f"image.num_views={VIEWS}", f"workers_per_node={WORKERS}"]
    words += ["retry.backoff_s=0.1", "retry.max_crashes=20", "retry.max_without_progress=20"]
    done = launch("submit", "render", "--runs", folder / "runs", "--name", "r", *words)
    assert done.returncode == 0, done.stderr
    return RunFolder(folder / "runs" / "r")


def disturb(run: RunFolder, out: Path, num_models: int, share: float, seed: int) -> Havoc:
    """Kill half of the workers of each attempt at random moments, until the share is reached and the end is near."""
    rng, havoc = random.Random(seed), Havoc()
    attempt = 0
    while not run.is_done():
        attempt = _next_attempt(run, attempt)
        if not attempt:
            return havoc
        workers = _workers(run, attempt)
        havoc.started += len(workers)
        is_enough = havoc.killed >= share * (havoc.started + WORKERS)  # the last attempt is left in peace
        if is_enough and _num_published(out) > 0.8 * num_models:
            continue
        begun = _num_published(out)
        _wait(lambda begun=begun: run.is_done() or _num_published(out) > begun)
        for victim in rng.sample(workers, WORKERS // 2):
            time.sleep(rng.uniform(0, 0.3 + 0.0004 * num_models))
            with contextlib.suppress(ProcessLookupError):
                if victim.process.is_alive():
                    os.kill(victim.process.pid, signal.SIGKILL)
                    havoc.killed += 1
    return havoc


def _next_attempt(run: RunFolder, last: int) -> int:
    """Wait for an attempt after ``last`` and return its number; 0 if the run is done first."""
    _wait(
        lambda: (
            run.is_done() or (max(run.attempts(), default=0) > last and _workers(run, max(run.attempts())))
        )
    )
    newest = max(run.attempts())
    return newest if newest > last else 0


def _workers(run: RunFolder, attempt: int) -> list[local_files.Worker]:
    processes = local_files.read_processes(run, attempt)
    return list(processes.workers) if processes and processes.all_started else []


def _num_published(out: Path) -> int:
    try:
        return sum(1 for _ in (out / "img" / SYNSET).iterdir())
    except FileNotFoundError:
        return 0


def _wait(fact, timeout_s: float = 300.0) -> None:
    end = time.monotonic() + timeout_s
    while not fact():
        assert time.monotonic() < end
        time.sleep(0.05)


def assert_nothing_is_missing_damaged_or_double(folder: Path, run: RunFolder, num_models: int) -> None:
    out = folder / "out"
    names = {name_of(number) for number in range(num_models)}
    assert {path.name for path in (out / "img" / SYNSET).iterdir()} == names
    assert not (out / "quarantine").exists()
    for name in names:
        facts = json.loads((out / "camera" / SYNSET / name / "object.json").read_text())
        assert sorted(path.name for path in (out / "img" / SYNSET / name).iterdir()) == [
            view["file"] for view in facts["views"]
        ]
        for view in facts["views"]:
            data = (out / "img" / SYNSET / name / view["file"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == view["sha256"]
            assert sha256_of_pixels(decode(data)) == view["pixels_sha256"]
    rows = [json.loads(line) for line in (out / "render.jsonl").read_text().splitlines()]
    assert max(Counter(row["model"] for row in rows).values()) == 1
    row = status(run)
    assert (row["state"], row["step"], row["num_steps"]) == ("DONE", num_models, num_models)
    assert json.loads(run.progress_path.read_text())["images"] == num_models * VIEWS


def num_redone(folder: Path) -> int:
    """Count the views that were rendered more than once, as the renderers themselves wrote down."""
    lines = [
        f"{path.parent.name} {line.split()[1]}"
        for path in (folder / "models" / SYNSET).glob("*/rendered")
        for line in path.read_text().splitlines()
    ]
    return len(lines) - len(set(lines))


@pytest.mark.parametrize(
    "num_models", [100, pytest.param(2500, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
)
def test_a_third_of_the_workers_is_killed_and_nothing_is_missing_damaged_or_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_models: int
) -> None:
    run = submit(tmp_path, num_models, monkeypatch)
    havoc = disturb(run, tmp_path / "out", num_models, 0.3, seed=num_models)
    _wait(run.is_done)
    assert_nothing_is_missing_damaged_or_double(tmp_path, run, num_models)
    redone = num_redone(tmp_path)
    print(
        f"{num_models} models: {havoc.killed} of {havoc.started} workers killed, {redone} views rendered again"
    )
    assert havoc.killed >= 0.3 * havoc.started > 0
    assert redone <= havoc.killed
