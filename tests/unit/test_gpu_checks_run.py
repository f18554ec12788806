"""The checks of `make gpu` run on a CPU at toy sizes, so that they do not rot where there is no GPU."""

import importlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from get3d_cluster import config as configuration
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.train.trainer import Get3dTrainer
from jobs.train import Config
from tests import fake_nvdiffrast
from tests.gpu import fullsize, parity, speed
from tests.gpu import setting as shared
from tests.gpu.__main__ import PARTS
from tests.gpu.setting import Check, Setting, Skipped
from tests.pretend_cuda import pretend_cuda

ROOT = Path(__file__).parents[2]
CHECKS = [check for part in PARTS for check in importlib.import_module(f"tests.gpu.{part}").CHECKS]
IN_PROCESSES = (
    "check_resume_in_a_new_process",
    "check_world_sizes",
    "check_sums_through_the_host",
    "check_price_of_sums",
)


@pytest.fixture(autouse=True)
def _switches() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(mode=False)
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "check",
    [pytest.param(c, marks=[pytest.mark.long] * (c.__name__ in IN_PROCESSES), id=c.__name__) for c in CHECKS],
)
def test_a_check_runs_at_toy_size(check: Check, tmp_path: Path) -> None:
    try:
        facts = check(Setting(device="cpu", folder=tmp_path, toy=True))
    except Skipped as reason:
        pytest.skip(str(reason))
    assert facts
    assert "does not work" not in json.dumps(facts)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("check", [*parity.CHECKS[:-1], *fullsize.CHECKS], ids=lambda check: check.__name__)
def test_nothing_mixes_devices_or_uses_what_is_not_deterministic_on_cuda(
    check: Check, tmp_path: Path
) -> None:
    with pretend_cuda() as device:
        assert check(Setting(device=device, folder=tmp_path, toy=True))


@pytest.mark.filterwarnings("default")
def test_the_comparison_with_nvdiffrast_runs_against_a_stand_in(tmp_path: Path) -> None:
    with pretend_cuda() as device, fake_nvdiffrast.installed() as calls:
        facts = parity.check_against_nvdiffrast(Setting(device=device, folder=tmp_path, toy=True))
    assert set(calls) == {"rasterize", "antialias"}
    assert facts["ids differ"] > 0  # its grid is coarser


def test_the_pretended_device_refuses_what_cuda_refuses() -> None:
    with pretend_cuda() as device:
        there, here = torch.ones(2, 3, device=device), torch.ones(2, 3)
        assert (there.is_cuda, here.is_cuda, (there + 1).sum().item()) == (True, False, 12)
        for mixed in (lambda: there + here, lambda: torch.cat([here, there]), lambda: here.add_(there)):
            with pytest.raises(RuntimeError, match="tensors on cuda:0 and cpu"):
                mixed()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert there.cpu().numpy().sum() == 6
        there.cpu().zero_()
        assert there.sum().item() == 6
        torch.use_deterministic_algorithms(mode=True)
        image = torch.ones(1, 1, 4, 4, device=device, requires_grad=True)
        looked_up = torch.nn.functional.grid_sample(
            image, torch.zeros(1, 2, 2, 2, device=device), align_corners=False
        )
        with pytest.raises(RuntimeError, match="deterministic"):
            looked_up.sum().backward()


@pytest.mark.parametrize(("name", "made"), [("tiny_test", shared.tiny_test), ("car", shared.car)])
def test_the_sizes_are_those_of_the_configuration_files(name: str, made) -> None:
    loaded = asdict(configuration.load(Config, ROOT / "jobs" / "configs" / f"{name}.yaml", []))
    ours = asdict(made())
    ours["data"].pop("path")  # counts from where the command was given
    loaded["data"].pop("path")
    assert {key: loaded[key] for key in ours} == ours


def test_a_machine_with_torch_and_numpy_only_is_told_what_is_not_checked(tmp_path: Path) -> None:
    missing = "numba,xxhash,PIL,safetensors,nvdiffrast,omegaconf,yaml,scipy,pytest,hypothesis,xatlas,trimesh"
    command = [sys.executable, "-m", "tests.gpu", "parity", "--device", "cpu", "--toy"]
    command += ["--only", "step", "--without", missing]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"OUT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MISSING PIL" in done.stdout
    told = json.loads((tmp_path / "gpu_results.json").read_text())
    assert [row["result"] for row in told["parts"]["parity"]["checks"]] == ["info", "passed"]


def test_without_cuda_nothing_counts_as_checked(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is CUDA here")
    command = [sys.executable, "-m", "tests.gpu", "parity"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"OUT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "NOTHING CHECKED" in done.stdout


def test_a_check_that_fails_or_takes_too_long_fails_the_part(tmp_path: Path) -> None:
    from tests.gpu import __main__ as runner

    def check_wrong(setting: Setting) -> shared.Facts:
        shared.within(1e-3, {"something": 0.5})
        return {}

    setting = Setting(device="cpu", folder=tmp_path, toy=True)
    row = runner._row(check_wrong, setting)
    assert (row["result"], row["facts"]["why"]) == ("FAILED", "above 0.001: something 0.5")
    options = runner._options_of(["parity", "--device", "cpu", "--toy", "--limit-s", "0.2"])
    told = runner._part("parity", options)
    assert (told["exit_code"], told["checks"], told["toy"]) == (1, [], True)
    nan = torch.tensor([float("nan")])
    with pytest.raises(AssertionError, match="not finite"):
        shared.difference(nan, nan)


@pytest.mark.filterwarnings("default")
def test_rates_are_those_of_the_keys_that_a_user_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[str, bool]] = []

    def step(self: Get3dTrainer) -> None:
        real(self)
        precision, row = self.config.precision, read_rows(self._session.run.metrics_path)[-1]
        assert math.isfinite(row["loss_g"] + row["loss_d"])
        assert (self.generator.dtype == torch.bfloat16) == (precision.amp == "bf16")
        assert torch.backends.cudnn.allow_tf32 == precision.tf32
        assert not torch.is_autocast_enabled("cpu")
        taken.append((precision.amp, precision.tf32))

    real = Get3dTrainer.step
    monkeypatch.setattr(Get3dTrainer, "step", step)
    for name, mode in speed.MODES.items():
        del taken[:]
        facts = speed._check_of(name, mode)(Setting(device="cpu", folder=tmp_path / name, toy=True))
        assert facts["images/s of whole steps"] > 0
        assert taken == [(mode.precision.amp, mode.precision.tf32)] * (2 + 3)  # of which one has an R1 phase


def test_a_rate_of_steps_that_are_not_finite_is_none(tmp_path: Path) -> None:
    setting = Setting(device="cpu", folder=tmp_path, toy=True)
    work = shared.trainer(setting, shared.full_size(setting))
    with torch.no_grad():
        next(work.discriminator.parameters()).fill_(math.nan)
    with pytest.raises(AssertionError, match="not finite"):
        speed._whole_steps(setting, work)


def test_one_backward_pass_through_both_heads_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(device="cpu", folder=tmp_path, toy=True)
    work = shared.trainer(setting, shared.full_size(setting))
    passes: list[int] = []
    real = torch.Tensor.backward
    monkeypatch.setattr(
        torch.Tensor, "backward", lambda self, *a, **k: (passes.append(1), real(self, *a, **k))
    )
    images, cameras, _ = work._reals(0)
    speed._judge(work.discriminator, images, cameras, torch.bfloat16)
    assert passes == [1]


def test_the_gpu_is_asked_while_steps_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: (asked.append(device), 40 * len(asked))[1])
    setting = Setting(device="cuda:1", folder=tmp_path, toy=True)
    with shared.utilisation(setting, every_s=0.001) as facts:
        while len(asked) < 2:
            time.sleep(0.001)
    assert asked[0] == "cuda:1"
    assert facts["utilisation of the GPU, %"] >= 60
    assert facts["utilisation: samples"] == len(asked)


def test_a_missing_package_for_utilisation_is_told_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(device: str) -> int:
        raise ModuleNotFoundError("pynvml does not seem to be installed")

    monkeypatch.setattr(torch.cuda, "utilization", missing)
    setting = Setting(device="cuda:0", folder=tmp_path, toy=True)
    with shared.utilisation(setting, every_s=0.0) as facts:
        time.sleep(0.05)
    assert facts["utilisation of the GPU, %"].startswith("SKIPPED: ModuleNotFoundError: pynvml")
