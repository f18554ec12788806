"""Signals that do not reach the workers, on a real SLURM."""

from pathlib import Path

import pytest

from get3d_cluster.core.job import Cause
from tests.slurm.cluster import Cluster
from tests.slurm.training import reference, started

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]


def test_a_signal_to_the_batch_shell_alone_disturbs_nothing(cluster: Cluster, tmp_path: Path) -> None:
    training = started(cluster, tmp_path / "run", "resources.nodes=1", "num_steps=60", "step_s=0.05")
    training.wait_steps(1, 3)
    for name in ("USR1", "USR2", "TERM"):
        cluster.run("scancel", "--batch", f"--signal={name}", training.job(1))
    training.wait_done()
    training.check_end(reference(60))
    assert training.causes() == [Cause.FINISHED]
