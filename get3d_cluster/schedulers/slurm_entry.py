"""What submitit pickles and starts on each task: one path. By hand: ``python -m get3d_cluster.worker RUN``."""

import runpy
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Start:
    """Become a worker of the run at ``run``; the environment says which one."""

    run: str

    def __call__(self) -> None:
        sys.argv = ["get3d_cluster.worker", self.run]
        runpy.run_module("get3d_cluster.worker", run_name="__main__", alter_sys=True)
