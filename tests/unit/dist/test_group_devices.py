"""Which way workers exchange tensors."""

import threading
from types import SimpleNamespace

import pytest
import torch

from get3d_cluster.dist import group
from get3d_cluster.dist.group import TorchGroup


@pytest.mark.parametrize(("gpus", "expected"), [(["a", "b", "c"], True), (["a", "b", "a"], False)])
def test_workers_agree_whether_each_has_a_gpu_to_itself(
    monkeypatch: pytest.MonkeyPatch, gpus: list[str], expected: bool
) -> None:
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda device: SimpleNamespace(uuid=gpus[int(device.removeprefix("cuda:"))]),
    )
    store, answers = torch.distributed.HashStore(), {}

    def ask(rank: int) -> None:
        answers[rank] = group._has_own_gpu(store, rank, 3, f"cuda:{rank}")

    threads = [threading.Thread(target=ask, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert answers == dict.fromkeys(range(3), expected)


def test_tensors_of_another_device_pass_through_the_groups_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = []
    monkeypatch.setattr(
        torch.distributed,
        "all_gather",
        lambda parts, mine: devices.extend(tensor.device.type for tensor in (mine, *parts)),
    )
    gathered = TorchGroup(0, 2, "meta").all_gather(torch.zeros(3, device="meta"))
    assert (devices, [part.device.type for part in gathered]) == (["meta"] * 3, ["meta"] * 2)
    devices.clear()
    with pytest.raises(NotImplementedError, match="meta"):  # the way back: a meta tensor has no data to give
        TorchGroup(0, 2, "meta").all_gather(torch.zeros(3))
    assert devices == ["meta"] * 3
