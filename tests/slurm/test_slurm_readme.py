"""What the README says to type on a cluster is understood: planned, not submitted, at a size that needs no GPUs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from get3d_cluster.cli.snapshot import REPOSITORY
from get3d_cluster.runtime.env import child_environment
from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.slurm
SMALL = {"submit": "plan", "car": "tiny_cpu", "workers_per_node=4": "workers_per_node=1"}


def commands() -> list[list[str]]:
    """Return the commands for a cluster, word by word."""
    blocks = re.findall(r"```sh\n(.*?)```", (REPOSITORY / "README.md").read_text(), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [
        words for line in lines if (words := shlex.split(line, comments=True))[:2] == ["python", "launch.py"]
    ]


def test_each_command_for_a_cluster_is_understood(cluster: Cluster, tmp_path: Path) -> None:
    planned = [words for words in commands() if words[2] in ("plan", "submit")]
    assert len(planned) >= 3
    for words in planned:
        verb, job, *rest = [SMALL.get(word, word) for word in words[2:]]
        done = subprocess.run(
            [sys.executable, "launch.py", verb, job, "--runs", str(tmp_path), *rest],
            cwd=REPOSITORY,
            env=child_environment({}),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "#SBATCH" in done.stdout
