"""Workers that would reduce different things find out before the first step, all of them."""

import pytest

from get3d_cluster.dist.config import ReductionConfig
from get3d_cluster.dist.tree import GradientReducer, PhasePlan
from get3d_cluster.errors import UsageError
from tests.workers_in_memory import network_of, on_all, parameters


def refusals(world_size, make):
    """Return what each worker was told."""

    def work(group):
        plan, config, options = make(group.rank)
        network = network_of(group, config)
        try:
            GradientReducer(plan, group, world_size, network=network, **options)
        except UsageError as error:
            return error.what
        finally:
            network.close()
        return ""

    return on_all(world_size, work)[0]


def same(**changed):
    given = {"name": "generator", "sizes": ((3,), (2, 2)), "extras": 1, "bucket_mb": 8.0, "backwards": 1}
    given |= changed
    plan = PhasePlan(given["name"], parameters(given["sizes"]), given["extras"])
    config = ReductionConfig(bucket_mb=given["bucket_mb"], mode=given.get("mode", "exact"))
    return plan, config, {"backwards": given["backwards"]}


def test_equal_plans_are_accepted_and_their_digest_is_told():
    def work(group):
        plan, config, options = same()
        return GradientReducer(plan, group, 3, network=network_of(group, config), **options).describe()

    found = on_all(3, work)[0]
    assert found == [found[0]] * 3
    assert {key: found[0][key] for key in ("phase", "parameters", "numbers", "extras")} == {
        "phase": "generator",
        "parameters": 2,
        "numbers": 7,
        "extras": 1,
    }
    assert len(found[0]["plan"]) == 16


@pytest.mark.parametrize(
    ("changed", "there", "here"),
    [
        ({"sizes": ((3,), (4,))}, "'p1 (4,) torch.float32'", "'p1 (2, 2) torch.float32'"),
        ({"sizes": ((3,),)}, "'exact 0 of 3", "'p1 (2, 2) torch.float32'"),
        ({"sizes": ((3,), (2, 2), (1,))}, "'p2 (1,) torch.float32'", "'exact 0 of 3"),
        ({"extras": 2}, "'2'", "'1'"),
        ({"bucket_mb": 1e-5}, "'torch.float32 0 2 5 8 extras 7'", "'torch.float32 0 8 extras 7'"),
        ({"mode": "flat"}, "'flat 0 of 3", "'exact 0 of 3"),
        ({"backwards": 2}, "backwards 2'", "backwards 1'"),
        ({"name": "discriminator"}, "'discriminator'", "'generator'"),
    ],
)
@pytest.mark.parametrize("odd", [0, 2])
def test_whatever_differs_is_refused_on_all_workers_by_phase_and_rank(changed, there, here, odd):
    told = refusals(3, lambda rank: same(**(changed if rank == odd else {})))
    who = "rank 2 would" if odd == 2 else "ranks 1, 2 would"
    there, here = (there, here) if odd == 2 else (here, there)
    phases = ("phase generator", "phase discriminator") if "name" in changed else ("phase generator",)
    for what in told:
        assert what.startswith(phases)
        assert who in what
        assert f"{there}" in what.partition(" there")[0]
        assert f"{here}" in what.partition(" there")[2]


def test_a_parameter_that_one_worker_froze_is_named():
    def make(rank):
        named = parameters(((3,), (2,)))
        named[1][1].requires_grad_(rank != 1)
        return PhasePlan("r1", named), ReductionConfig(), {}

    for what in refusals(2, make):
        assert what.startswith("phase r1: rank 1 would reduce other gradients than rank 0")
        assert "'p1 (2,) torch.float32' on rank 0" in what


def test_nothing_hangs_or_differs_when_all_plans_differ():
    told = refusals(4, lambda rank: same(sizes=((3 + rank,),)))
    assert set(told) == {told[0]}
    assert "ranks 1, 2, 3 would" in told[0]
