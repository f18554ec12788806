"""The same checks for pytest: python -m pytest -m gpu tests/gpu. `make gpu` runs them without pytest, in parts."""

import importlib
from pathlib import Path

import pytest
import torch

from tests.gpu.__main__ import PARTS
from tests.gpu.setting import Check, Setting, Skipped

CHECKS = [check for part in PARTS for check in importlib.import_module(f"tests.gpu.{part}").CHECKS]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device: nothing is checked")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_on_gpu(check: Check, tmp_path: Path) -> None:
    try:
        print(check(Setting(device="cuda:0", folder=tmp_path)))
    except Skipped as reason:
        pytest.skip(str(reason))
