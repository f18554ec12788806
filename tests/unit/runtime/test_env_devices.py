"""On what a worker computes, and the variables that keep its bits."""

import os

import pytest
import torch

from get3d_cluster.errors import UsageError
from get3d_cluster.runtime.env import WorkerEnv, device_of, worker_variables


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    return monkeypatch


def device(local_rank: int, gpus_per_worker: int = 1) -> str:
    return device_of(WorkerEnv(rank=local_rank, local_rank=local_rank, world_size=8), gpus_per_worker)


@pytest.mark.parametrize(
    ("visible", "gpus_per_worker", "expected"),
    [
        (8, 1, ["cuda:0", "cuda:1", "cuda:2"]),  # all GPUs of the node
        (1, 1, ["cuda:0", "cuda:0", "cuda:0"]),  # pinned, or shared
        (8, 2, ["cuda:0", "cuda:2", "cuda:4"]),
        (2, 2, ["cuda:0", "cuda:0", "cuda:0"]),  # pinned to two of its own
    ],
)
def test_a_worker_takes_a_gpu_that_it_sees_and_no_other_worker_of_the_node_needs(
    seen: pytest.MonkeyPatch, visible: int, gpus_per_worker: int, expected: list[str]
) -> None:
    seen.setattr(torch.cuda, "device_count", lambda: visible)
    assert [device(rank, gpus_per_worker) for rank in range(3)] == expected


def test_a_worker_without_gpus_computes_on_the_cpu_and_sets_nothing(seen: pytest.MonkeyPatch) -> None:
    assert device(3, 0) == "cpu"
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_a_worker_that_sees_no_gpu_says_so(seen: pytest.MonkeyPatch) -> None:
    seen.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UsageError, match=r"gpus_per_worker=1.*sees no GPU"):
        device(0)


def test_cublas_is_told_to_repeat_itself_in_workers_started_by_a_scheduler_or_by_hand(
    seen: pytest.MonkeyPatch,
) -> None:
    assert worker_variables(WorkerEnv(), cpus=1)["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    seen.setattr(torch.cuda, "device_count", lambda: 1)
    device(0)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
