"""SLURM does what every scheduler has to do."""

import pytest

from get3d_cluster.schedulers.slurm import SlurmScheduler
from tests.integration.scheduler_contract import SchedulerContract
from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]


@pytest.fixture
def scheduler(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> SlurmScheduler:
    monkeypatch.setattr("get3d_cluster.schedulers.slurm.GATE_S", 4.0)
    return SlurmScheduler()


class TestSlurmContract(SchedulerContract):
    """The bodies are those of every scheduler."""
