"""A login node never imports torch; a worker does so only after its handlers stand."""

import subprocess
import sys

import pytest

MODULES = [
    "get3d_cluster.cli",
    "get3d_cluster.attempt",
    "get3d_cluster.simulate",
    "get3d_cluster.demo",
    "get3d_cluster.schedulers.local",
    "get3d_cluster.schedulers.local_queue",
    "get3d_cluster.report.page",
    "get3d_cluster.data.format",
    "get3d_cluster.data.check",
    "jobs.train",
    "jobs.render",
    "jobs.pack",
    "jobs.check",
    "jobs.shapes",
    "jobs.generate",
    "preprocess.pack",
    "preprocess.render",
]


@pytest.mark.parametrize("module", MODULES)
def test_importing_it_does_not_import_torch(module):
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("module", ["checkpoint_writer", "checkpoint_uploader"])
def test_the_processes_of_checkpoints_start_with_little(module):
    """They are started beside workers, at each start."""
    command = [sys.executable, "-X", "importtime", "-m", f"get3d_cluster.runtime.{module}", "0"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "get3d_cluster.core.job" in modules
    assert not modules & {"torch", "numpy", "omegaconf", "yaml", "asyncio", "fsspec"}


def test_nothing_heavy_is_imported_before_a_worker_listens_for_notices():
    code = "import get3d_cluster.worker, sys; print(sorted(m for m in sys.modules if not m.startswith('_')))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("torch", "numpy", "omegaconf", "yaml", "asyncio", "rich", "typer"):
        assert f"'{heavy}'" not in modules
