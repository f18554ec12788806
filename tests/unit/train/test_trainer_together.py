"""Whole trainings on several workers of one process: what they learn from each other beside gradients."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from get3d_cluster.errors import HeldError, UsageError
from get3d_cluster.runtime.checkpoint import state_digest
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.session import Ballot
from get3d_cluster.train import trainer as module
from tests import train_setup as setup
from tests.generate_setup import trained
from tests.workers_in_memory import network_of, on_all

SAME = ("generator.grid.close_boundary=true",)


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return how to run ``act(trainer, group)`` on some workers."""
    data = setup.dataset(tmp_path / "data")
    make, lock = module.networks, threading.Lock()

    def alone(*given: Any) -> Any:
        with lock:  # threads share torch's generator, processes do not
            return make(*given)

    monkeypatch.setattr(module, "networks", alone)
    monkeypatch.setattr(module, "Network", lambda group, config, _device: network_of(group, config))

    def run(world_size: int, act: Any, *overrides: str) -> list[Any]:
        config = setup.tiny_config(data, *overrides)

        def work(group: Any) -> Any:
            return act(setup.trainer(config, tmp_path / f"run{world_size}-{group.rank}", group), group)

        return on_all(world_size, work)[0]

    return run


def test_a_bit_that_one_worker_raises_is_known_to_all_after_the_step_and_changes_no_other(
    workers: Any, tmp_path: Path
) -> None:
    def act(work: Any, group: Any) -> Any:
        mine = [group.rank == 1, False, False, group.rank == 0, False]
        work._session.ballot.ask(lambda: mine)
        work.step()
        outcome = work._session.ballot.take()
        mine[:] = [False] * Ballot.SIZE
        work.step()
        return outcome, work._session.ballot.take(), state_digest(work.state())

    for world_size in (2, 3):
        found = workers(world_size, act)
        assert found == [found[0]] * world_size
        assert found[0][:2] == ([True, False, False, True, False], [False] * Ballot.SIZE)
    quiet = workers(1, lambda work, _: [work.step(), work.step(), state_digest(work.state())])
    assert quiet[0][2] == found[0][2]
    (row,) = [row for row in read_rows(tmp_path / "run3-0" / "events.jsonl") if row["event"] == "reduction"]
    assert [phase["phase"] for phase in row["phases"]] == ["generator", "discriminator", "r1"]
    assert len({phase["plan"] for phase in row["phases"]}) == 3


@pytest.mark.parametrize(
    ("world_size", "overrides", "begins"),
    [
        (2, (), ["real 0", "generator"]),
        (2, ("batch.judge_together=true",), ["generator"]),
        (1, (), ["generator"]),
    ],
)
def test_real_images_are_judged_while_the_generators_gradients_are_on_their_way(
    workers: Any, world_size: int, overrides: tuple[str, ...], begins: list[str]
) -> None:
    """Of the first shard, before their mean is awaited. R1, which needs the weights after that, comes last."""

    def act(work: Any, _: Any) -> Any:
        order: list[str] = []

        def noted(obj: Any, method: str, name: str) -> None:
            real = getattr(obj, method)

            def call(*given: Any) -> Any:
                order.append(name + "".join(f" {index - first}" for index in given))
                return real(*given)

            setattr(obj, method, call)

        first = work._reduce_d.shards.start
        noted(work, "_judge_reals", "real")
        for name in ("generator", "discriminator", "r1"):
            noted(getattr(work, f"_reduce_{name if name == 'r1' else name[0]}"), "finish", name)
        work.step()
        return order

    for order in workers(world_size, act, *overrides):
        assert order[: len(begins)] == begins
        assert order[-2:] == ["discriminator", "r1"]
        judged = [each for each in order if each.startswith("real")]
        num_shards = 0 if overrides else 4 // world_size
        assert judged == [f"real {index}" for index in range(num_shards)], "each once"


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (lambda work: next(work.discriminator.parameters()), "discriminator."),
        (lambda work: next(work.average.parameters()), "generator_ema."),
        (
            lambda work: work._adam_g.state_dict()["state"][0]["exp_avg_sq"],
            "adam_generator.state.0.exp_avg_sq",
        ),
        (lambda work: work.generator.w_avg_geo, "generator.w_avg_geo"),
    ],
)
def test_one_flipped_bit_anywhere_in_the_state_is_found_before_a_save(
    workers: Any, where: Any, name: str
) -> None:
    def act(work: Any, group: Any) -> str:
        work.step()
        work.compare_replicas()
        if group.rank == 2:
            with torch.no_grad():
                where(work).view(-1)[:1].view(torch.int32).bitwise_xor_(1)
        work.compare_replicas()  # the step was compared already
        work.counters.step += 1
        try:
            work.compare_replicas()
        except HeldError as error:
            return error.what
        return "not noticed"

    for what in workers(3, act):
        assert what.startswith("step 2: rank 2 has other bits than the rest in 1 of "), what
        assert f"first {name}" in what
        assert what.endswith("all were equal at step 1")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda work: setattr(work.counters, "position", work.counters.position + 1), "counters.position"),
        (lambda work: setattr(work._strength, "p", 0.1), "augmentation.p"),
    ],
    ids=["place in the data", "strength of the augmentation"],
)
def test_a_number_that_one_worker_has_otherwise_is_found_before_a_save(
    workers: Any, change: Any, name: str
) -> None:
    def act(work: Any, group: Any) -> str:
        work.compare_replicas()
        if group.rank == 1:
            change(work)
        work.counters.step += 1
        with pytest.raises(HeldError) as caught:
            work.compare_replicas()
        return caught.value.what

    for what in workers(3, act, "augment.target=0.6"):
        assert "rank 1 has other bits than the rest in 1 of " in what
        assert f"first {name}" in what


def test_all_workers_begin_with_the_weights_of_one_checkpoint(workers: Any, tmp_path: Path) -> None:
    source = trained(tmp_path / "source")

    def act(work: Any, _: Any) -> Any:
        work.step()
        return state_digest(work.state())

    init = f"init_from={source.path}"
    alone, together = workers(1, act, *SAME, init), workers(2, act, *SAME, init)
    assert together == alone * 2
    assert together != workers(2, act, *SAME)
    refused = f"init_from={tmp_path / 'nowhere'}"
    for each in workers(2, error_of, *SAME, refused):
        assert "init_from=" in each


def error_of(work: Any, _: Any) -> str:
    """Return what the first step is refused with."""
    with pytest.raises(UsageError) as raised:
        work.step()
    return raised.value.what
