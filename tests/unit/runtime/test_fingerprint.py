"""What decides bits: each item is told, its change is told, and other workers are asked."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from get3d_cluster.dist.group import SoloGroup
from get3d_cluster.runtime import fingerprint
from get3d_cluster.runtime.fingerprint import (
    GPU_VARIABLES,
    UNLIKE,
    VARIABLES,
    changes,
    fingerprint_of_all,
    not_bitwise_rows,
    numeric_fingerprint,
    told,
)
from tests.workers_in_memory import on_all


@pytest.mark.parametrize("name", VARIABLES)
def test_each_variable_that_changes_kernels_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(name, raising=False)
    before = numeric_fingerprint()
    monkeypatch.setenv(name, "one")
    one = numeric_fingerprint()
    monkeypatch.setenv(name, "two")
    assert changes(before, before) == {}
    assert changes(before, one) == {name: [None, "one"]}
    assert changes(one, numeric_fingerprint()) == {name: ["one", "two"]}
    assert changes(one, before) == {name: ["one", None]}


def test_variables_of_gpus_do_not_count_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    before = numeric_fingerprint()
    for name in GPU_VARIABLES:
        monkeypatch.setenv(name, "changed")
    assert numeric_fingerprint() == before


def test_fewer_instructions_are_another_environment_and_other_bits() -> None:
    """Why the variables are there: the same code on the same machine computes other bits under one of them."""
    code = (
        "import torch, json, hashlib\n"
        "from get3d_cluster.runtime.fingerprint import numeric_fingerprint\n"
        "torch.set_num_threads(1)\n"
        "x = torch.linspace(-3, 3, 4099)\n"
        "bits = (x.exp() * x.sin()).sum().item().hex() + torch.nn.functional.softmax(x, 0).sum().item().hex()\n"
        "print(json.dumps([bits, numeric_fingerprint()]))"
    )

    def run(**variables: str) -> Any:
        clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        out = subprocess.run(
            [sys.executable, "-c", code],
            env={**clean, **variables},
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(out.stdout)

    (bits, here), (again, same), (other, elsewhere) = run(), run(), run(ATEN_CPU_CAPABILITY="default")
    assert (bits, here) == (again, same)
    assert changes(here, elsewhere)["ATEN_CPU_CAPABILITY"] == [None, "default"]
    if here["isa"] != elsewhere["isa"]:
        assert bits != other


@pytest.fixture
def switches_of_torch() -> Iterator[None]:
    onednn = torch.backends.mkldnn
    before = onednn.enabled, onednn.matmul.fp32_precision, onednn.conv.fp32_precision
    yield
    onednn.enabled, onednn.matmul.fp32_precision, onednn.conv.fp32_precision = before


@pytest.mark.usefixtures("switches_of_torch")
@pytest.mark.parametrize(
    ("switch", "now"),
    [
        (lambda: torch.set_float32_matmul_precision("medium"), {"matmul": "bf16"}),
        (lambda: torch.set_float32_matmul_precision("high"), {"matmul": "tf32"}),
        (lambda: torch.set_float32_matmul_precision("highest"), {}),
        (lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"), {"matmul": "bf16"}),
        (lambda: setattr(torch.backends.mkldnn.conv, "fp32_precision", "bf16"), {"conv": "bf16"}),
        (lambda: setattr(torch.backends.mkldnn, "enabled", False), {"enabled": False}),
    ],
    ids=["medium", "high", "highest", "matmul", "conv", "without"],
)
def test_a_switch_of_torch_that_changes_bits_on_the_cpu_is_told(switch: Any, now: dict[str, Any]) -> None:
    before = numeric_fingerprint()
    switch()
    found = changes(before, numeric_fingerprint())
    assert found == ({"onednn": [before["onednn"], before["onednn"] | now]} if now else {})


def test_what_an_older_version_did_not_tell_is_no_change() -> None:
    now = numeric_fingerprint()
    old = {key: value for key, value in now.items() if key not in ("variables", "cpu", "libc", "onednn")}
    assert changes(old, now) == {}
    assert changes({**old, "gone": 1}, now) == {}


def test_each_item_that_differs_is_told() -> None:
    now = numeric_fingerprint()
    for key in now:
        if key != "variables":
            assert changes({**now, key: "other"}, now) == {key: ["other", now[key]]}
            assert told({key: ["other", now[key]]}).startswith(f"{key} other -> ")


def test_a_worker_elsewhere_is_told_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    here = numeric_fingerprint()
    is_odd = {0: False, 1: True, 2: False}

    def one(group: Any) -> Any:
        return fingerprint_of_all(group, str(group.rank))

    monkeypatch.setattr(
        fingerprint,
        "numeric_fingerprint",
        lambda device: {**here, **({"isa": "X"} if is_odd[int(device)] else {})},
    )
    found, _ = on_all(3, one)
    assert [each[UNLIKE] for each in found] == [[1], [1], [1]]
    assert {each["isa"] for each in found} == {here["isa"]}
    rows = not_bitwise_rows({}, found[0], 0, 1)
    assert rows == [{"step": 0, "attempt": 1, "changed": {UNLIKE: [[], [1]]}}]
    assert not_bitwise_rows({"on": found[0], "not_bitwise": rows}, found[0], 9, 2) == rows


def test_a_run_that_begins_alone_is_marked_by_nothing() -> None:
    assert not_bitwise_rows({}, fingerprint_of_all(SoloGroup(), "cpu"), 0, 1) == []
