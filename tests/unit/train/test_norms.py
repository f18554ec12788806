"""Norms of gradients, weights and updates: right, the same on any number of workers, and without a trace."""

import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from get3d_cluster.runtime.checkpoint import decode, encode, state_digest
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.train import trainer as module
from get3d_cluster.train.norms import gradient_norms, measured
from tests import train_setup as setup
from tests.workers_in_memory import network_of, on_all

EVERY = {"grad_norm", "grad_most", "weight_norm", "update_ratio"}
CLOCKS = {"seconds", "images_per_s"}


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    model(torch.randn(4, 7)).square().sum().backward()
    return model


def norms_in(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if "_".join(key.split("_")[:2]) in EVERY}


def test_norms_are_those_that_torch_finds(model: nn.Module) -> None:
    total = torch.nn.utils.get_total_norm
    before = [p.detach().clone() for p in model.parameters()]
    gradient = total([p.grad for p in model.parameters()]).item()
    step = torch.optim.SGD(model.parameters(), lr=0.01).step
    row = measured(step, {"x": list(model.named_parameters())})
    weight = total([p.detach() for p in model.parameters()]).item()
    change = total([p.detach() - old for p, old in zip(model.parameters(), before, strict=True)]).item()
    assert change > 0
    assert row["grad_norm_x"] == pytest.approx(gradient, rel=1e-6)
    assert row["weight_norm_x"] == pytest.approx(weight, rel=1e-6)
    assert row["update_ratio_x"] == pytest.approx(change / weight, rel=1e-6)


def test_parts_are_measured_apart_and_the_largest_parameter_is_named(model: nn.Module) -> None:
    first, second = (list(model[i].named_parameters()) for i in (0, 1))
    for _, parameter in [*first, *second]:
        parameter.grad = torch.zeros_like(parameter)
    first[1][1].grad = torch.tensor([3.0, 0, 0, 0, 4.0])
    second[0][1].grad = None
    row = gradient_norms({"a": first, "b": second})
    assert (row["grad_norm_a"], row["grad_most_a"], row["grad_norm_b"]) == (5.0, "bias", 0.0)


def test_a_step_that_is_measured_leaves_the_bits_of_one_that_is_not(tmp_path: Path) -> None:
    data = setup.dataset(tmp_path / "data")
    digests = []
    for every in (1, 1000):
        work = setup.trainer(
            setup.tiny_config(data, f"watch.log_every_steps={every}"), tmp_path / f"every{every}"
        )
        for _ in range(4):
            work.step()
        digests.append(state_digest(work.state()))
    assert [len(read_rows(tmp_path / f"every{every}" / "metrics.jsonl")) for every in (1, 1000)] == [4, 0]
    assert digests[0] == digests[1]


def test_rows_hold_the_norms_of_both_networks(tmp_path: Path) -> None:
    config = setup.tiny_config(setup.dataset(tmp_path / "data"), "watch.log_every_steps=2")
    work = setup.trainer(config, tmp_path / "run")
    for _ in range(6):
        work.step()
    rows = [norms_in(row) for row in read_rows(tmp_path / "run" / "metrics.jsonl")]
    parts = {"g", "d_rgb", "d_mask"}
    expected = {f"{what}_{part}" for what in EVERY for part in parts}
    expected |= {f"grad_{what}_r1_{head}" for what in ("norm", "most") for head in ("rgb", "mask")}
    assert len(rows) == 3
    assert all(row.keys() == expected for row in rows)
    numbers = [v for row in rows for k, v in row.items() if not k.startswith("grad_most")]
    assert all(0 < value < math.inf for value in numbers)
    names = dict(work.generator.named_parameters()).keys()
    assert all(row["grad_most_g"] in names for row in rows)
    shown = work.generator.state_dict()
    whole = torch.nn.utils.get_total_norm([shown[name] for name in names]).item()
    assert rows[-1]["weight_norm_g"] == pytest.approx(whole, rel=1e-5)


def test_a_resumed_run_writes_the_rows_of_the_uninterrupted_one(tmp_path: Path) -> None:
    config = setup.tiny_config(setup.dataset(tmp_path / "data"))
    whole = setup.trainer(config, tmp_path / "whole")
    for _ in range(6):
        whole.step()
    first = setup.trainer(config, tmp_path / "stopped")
    for step in range(5):  # the fifth is lost
        if step == 4:
            saved = encode(first.state())
        first.step()
    again = setup.trainer(config, tmp_path / "stopped")
    again.load(decode({name: memoryview(data) for name, data in saved.items()}))
    again._session.metrics.rewind(again.position().step)
    for _ in range(2):
        again.step()
    found, wanted = (read_rows(tmp_path / name / "metrics.jsonl") for name in ("stopped", "whole"))
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
    for row, other in zip(found, wanted, strict=True):
        rare = (
            {key for key in other if "r1" in key} if row["step"] >= 5 else set()
        )  # until R1 is computed again
        assert {k: v for k, v in row.items() if k not in CLOCKS} == {
            k: v for k, v in other.items() if k not in CLOCKS | (rare - row.keys())
        }


def test_any_number_of_workers_finds_the_same_norms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = setup.tiny_config(setup.dataset(tmp_path / "data"))
    make, lock = module.networks, threading.Lock()

    def alone(*given: Any) -> Any:
        with lock:  # threads share torch's generator, processes do not
            return make(*given)

    monkeypatch.setattr(module, "networks", alone)
    monkeypatch.setattr(module, "Network", lambda group, given, _device: network_of(group, given))

    def rows_of(world_size: int) -> list[dict[str, Any]]:
        def act(group: Any) -> None:
            work = setup.trainer(config, tmp_path / f"{world_size}-{group.rank}", group)
            for _ in range(4):
                work.step()

        on_all(world_size, act)
        return [norms_in(row) for row in read_rows(tmp_path / f"{world_size}-0" / "metrics.jsonl")]

    one = rows_of(1)
    assert len(one) == 4
    assert "grad_norm_d_mask" in one[0]
    assert [rows_of(2), rows_of(3)] == [one, one]
