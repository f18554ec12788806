"""A private SLURM for the tests of this folder; never the SLURM of the person who runs them."""

import os
from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, running, why_not


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Give the tests one SLURM with 4 nodes; it is gone when the session ends, however it ends."""
    if reason := why_not():
        pytest.skip(f"SLURM tests are skipped: {reason}")
    with running() as started:
        yield started


@pytest.fixture(autouse=True)
def _slurm_of_this_test(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Point the commands of SLURM at the private cluster; leave no job and no changed setting behind."""
    for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH"))]:
        monkeypatch.delenv(name)
    if "cluster" not in request.fixturenames:
        yield
        return
    own: Cluster = request.getfixturevalue("cluster")
    monkeypatch.setenv("SLURM_CONF", own.environment["SLURM_CONF"])
    yield
    own.clear()
