"""What a worker imports is what every preemption pays. Torch's compiler alone is a second; nothing is compiled here."""

from pathlib import Path

import pytest

from get3d_cluster.runtime.run_folder import RunFolder
from tests import workers
from tests.train_setup import CONFIGS, dataset

UNUSED = (
    *("torch._dynamo", "torch._inductor", "sympy"),
    *("submitit", "typer", "rich", "jinja2", "matplotlib", "trimesh", "xatlas", "fsspec"),
)


def imported(run: RunFolder, rank: int) -> set[str]:
    """Return the modules that the last attempt's worker imported, as the interpreter tells them."""
    lines = run.log_path(run.attempts()[-1], rank).read_text().splitlines()
    return {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}


def test_a_training_that_saves_and_resumes_imports_nothing_it_does_not_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    wanted = (f"data.path={dataset(tmp_path / 'data')}", "num_images=1000000", "checkpoint.every_steps=4")
    run = workers.make_run(tmp_path / "run", "train", *wanted, config=CONFIGS / "tiny_test.yaml")
    for step in (5, 15):
        started = workers.start(run, 2)
        try:
            workers.wait_for_step(run, step)
            workers.stop(started)
        finally:
            codes = workers.wait(started)
        assert codes == [75, 75], workers.logs(run)
    for rank in range(2):
        seen = imported(run, rank)
        assert {"torch", "get3d_cluster.train.trainer"} <= seen
        assert not [name for name in UNUSED if name in seen]
