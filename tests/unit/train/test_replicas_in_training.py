"""When a training compares its replicas, and what of them."""

from pathlib import Path
from typing import Any

import pytest

from get3d_cluster.train import replicas
from tests import train_setup as setup


def test_all_weights_of_both_networks_are_compared_every_so_many_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int | None]] = []
    names: set[str] = set()

    def note(_group: Any, tensors: dict[str, Any], step: int, agreed: int | None) -> None:
        seen.append((step, agreed))
        names.update(tensors)

    monkeypatch.setattr(replicas, "check_replicas", note)
    config = setup.tiny_config(setup.dataset(tmp_path / "data"), "reduction.replica_check_every=2")
    work = setup.trainer(config, tmp_path / "run")
    for _ in range(5):
        work.step()
    assert seen == [(2, None), (4, 2)]
    for prefix, model in (("generator", work.generator), ("discriminator", work.discriminator)):
        assert {f"{prefix}.{key}" for key in model.state_dict()} <= names


def test_a_training_tells_when_its_copies_were_last_known_to_be_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What retention goes by: alone nobody compares; before the first comparison it is where the attempt began."""
    config = setup.tiny_config(setup.dataset(tmp_path / "data"), "reduction.replica_check_every=2")
    work = setup.trainer(config, tmp_path / "run")
    work.step()
    assert work.agreed_step() is None
    saved = work.state()
    monkeypatch.setattr(work._session.group, "world_size", 2)
    monkeypatch.setattr(replicas, "check_replicas", lambda *_: None)
    work.load(saved)
    assert work.agreed_step() == 1
    work.counters.step = 2
    work.compare_replicas()
    assert work.agreed_step() == 2


@pytest.mark.parametrize(
    ("mode", "depends"), [("exact", {}), ("exact_bf16", {}), ("flat", {}), ("fast", {"workers": 1})]
)
def test_only_the_librarys_sum_makes_bits_depend_on_the_number_of_workers(
    tmp_path: Path, mode: str, depends: dict[str, int]
) -> None:
    config = setup.tiny_config(setup.dataset(tmp_path / "data"), f"reduction.mode={mode}")
    assert setup.trainer(config, tmp_path / "run").bits_depend_on() == depends
