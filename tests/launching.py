"""``python launch.py`` as a user types it, for tests."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from get3d_cluster.runtime.run_folder import RunFolder

ROOT = Path(__file__).parents[1]


def launch(*words: object, timeout_s: float = 90, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    with start_launch(*words, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        finally:
            process.kill()
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def start_launch(*words: object, **options: Any) -> subprocess.Popen[str]:
    """Start one command."""
    return start_python("launch.py", *words, **options)


def start_python(*words: object, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def told(done: subprocess.CompletedProcess[str], *words: object) -> str:
    """Return what was said on stderr: one to three lines with all ``words``, and no traceback."""
    assert 1 <= len(done.stderr.splitlines()) <= 3, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert str(word) in done.stderr
    return done.stderr


def status(run: RunFolder) -> dict[str, Any]:
    """Return the row of a run as ``status --json`` prints it."""
    done = launch("status", run.path, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)[0]


def wait_until(fact: Callable[[], Any], timeout_s: float = 60, what: str = "") -> Any:
    """Return the first true value of ``fact``."""
    end = time.monotonic() + timeout_s
    while not (value := fact()):
        assert time.monotonic() < end, f"waited {timeout_s:g} s in vain: {what or fact}"
        time.sleep(0.02)
    return value
