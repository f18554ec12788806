"""Ranks whose states differ, by a statistic of batch norm or a tensor of one rank alone: no checkpoint mixes them."""

from pathlib import Path

import pytest
import torch

from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.runtime.checkpoint import Checkpoints
from get3d_cluster.runtime.checkpoint_files import name_of
from get3d_cluster.storage import open_storage
from tests.programs import End, ends_of, running_all

LOOP = """
import os, sys, torch
from pathlib import Path
from get3d_cluster import checkpoint
folder, what, rank = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
torch.manual_seed(0)
model = torch.nn.Sequential(*(torch.nn.BatchNorm1d(512) for _ in range(8)))
sgd = torch.optim.SGD(model.parameters(), lr=0.0)
mb = 100.0 if what == "small" else 0.0
config = checkpoint.CheckpointConfig(every_steps=2, every_s=0, background_mb=mb)
others = {"more": torch.ones(3)} if what == "names" and rank == 1 else {}
checkpoint.init(model, sgd, path=folder / "state", config=config)
for step in range(5):
    if what != "alike":
        x = torch.rand(8, 512, generator=torch.Generator().manual_seed(2 * step + rank))
        for layer in model:
            layer(x)
    checkpoint.try_save(0, step + 1, others)
checkpoint.finish()
torch.save(model.state_dict(), folder / f"rank{rank}.pt")
os._exit(0)
"""


def run(folder: Path, what: str) -> list[End]:
    with running_all(*(("-c", LOOP, folder, what, rank) for rank in range(2))) as both:
        ends = ends_of(both)
    assert [end.code for end in ends] == [0, 0], ends
    return ends


def saved(folder: Path) -> tuple[dict[str, torch.Tensor], bool]:
    """Return the model of the newest checkpoint, and whether rank 1 wrote a share of it."""
    place = folder / "state" / "checkpoints"
    loaded = Checkpoints(open_storage(place), CheckpointConfig(), lambda: None).load()
    assert loaded is not None
    assert loaded.step == 5
    return loaded.state["model"], any("+0001" in file.name for file in (place / name_of(5)).iterdir())


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("buffer", "model/0.running_mean on rank 1"),
        ("small", "model/0.running_mean on rank 1"),
        ("names", "place/others/more torch.float32 [3] on rank 1"),
    ],
)
def test_what_differs_is_said_once_and_saved_as_rank_0_has_it(tmp_path: Path, what: str, named: str) -> None:
    first, second = run(tmp_path, what)
    said = [line for line in first.lines if "ranks differ" in line]
    assert len(said) == 1, first
    assert named in said[0]
    assert not [line for line in second.lines if "ranks differ" in line]
    model, is_shared = saved(tmp_path)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    differing = [name for name in model if not torch.equal(ranks[0][name], ranks[1][name])]
    assert len(differing) == 16, "means and variances of eight layers"
    assert all(torch.equal(model[name], ranks[0][name]) for name in model)
    assert not is_shared


def test_ranks_that_agree_share_the_work_and_nothing_is_said(tmp_path: Path) -> None:
    ends = run(tmp_path, "alike")
    assert not [line for end in ends for line in end.lines if "ranks differ" in line]
    assert saved(tmp_path)[1]
