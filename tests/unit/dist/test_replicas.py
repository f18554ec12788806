import pytest
import torch

from get3d_cluster.dist.replicas import bit_sums, check_replicas, unlike
from get3d_cluster.errors import HeldError
from tests.workers_in_memory import on_all


class Said:
    """A worker that hears what the others' bits add up to."""

    rank = 0

    def __init__(self, *others):
        self.others, self.world_size = others, 1 + len(others)

    def all_gather(self, tensor):
        return [tensor, *(bit_sums(other) for other in self.others)]


def tensors(**changed):
    return {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([3], dtype=torch.int64)} | changed


def test_the_sum_does_not_depend_on_order_and_sees_every_bit():
    values = torch.randn(64)
    assert torch.equal(bit_sums({"x": values}), bit_sums({"x": values.flip(0)}))
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.bool):
        tensor = torch.ones(8, dtype=dtype)
        before = bit_sums({"x": tensor}).item()
        raw = tensor.view(torch.uint8)
        for byte in range(raw.numel()):
            for bit in range(8 if dtype is not torch.bool else 1):
                raw[byte] ^= 1 << bit
                assert bit_sums({"x": tensor}).item() != before
                raw[byte] ^= 1 << bit


def test_zero_and_minus_zero_differ_and_nans_agree():
    zero, minus = torch.tensor([0.0]), torch.tensor([-0.0])
    nan = torch.tensor([float("nan")])
    with pytest.raises(HeldError):
        check_replicas(Said({"x": minus}), {"x": zero}, 1)
    check_replicas(Said({"x": nan}), {"x": nan.clone()}, 1)


@pytest.mark.parametrize(
    ("others", "said"),
    [
        (({}, {"a": torch.zeros(2)}), "rank 2 has"),
        (({"a": torch.zeros(2)}, {"a": torch.zeros(2)}), "rank 0 has"),
        (({}, {}, {"a": torch.zeros(2)}, {"b": torch.tensor([4])}), "ranks 3, 4 have"),
        (({"a": torch.zeros(2)},), "no majority"),
    ],
)
def test_the_minority_is_named(others, said):
    with pytest.raises(HeldError, match=said):
        check_replicas(Said(*(tensors(**other) for other in others)), tensors(), 5)


def test_the_tensors_that_differ_are_counted_and_the_first_is_named():
    others = tensors(b=torch.tensor([4])), tensors()
    with pytest.raises(HeldError, match=r"in 1 of 2 tensors, first b; all were equal at step 3$") as caught:
        check_replicas(Said(*others), tensors(), 5, agreed_step=3)
    assert caught.value.what.startswith("step 5: rank 1 has")
    with pytest.raises(HeldError, match=r"in 2 of 2 tensors, first a; all were equal at this attempt began$"):
        check_replicas(Said(tensors(a=torch.zeros(2)), tensors(b=torch.tensor([4]))), tensors(), 5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"b": torch.tensor([4])}, "b on rank 2"),
        ({"a": torch.tensor([1.0, -2.5]), "b": torch.tensor([4])}, "a on rank 2"),
        ({"c": torch.zeros(3, 1)}, "c torch.float32 [3, 1] on rank 2, nothing on rank 0"),
        ({"b": torch.tensor([3.0])}, "b torch.float32 [1] on rank 2, b torch.int64 [1] on rank 0"),
    ],
)
def test_what_a_worker_has_otherwise_is_named_alike_on_all(change, said):
    """The same tensors in other names, types and numbers must not break the exchange itself."""
    found, _ = on_all(3, lambda group: unlike(group, tensors(**(change if group.rank == 2 else {}))))
    assert found == [said] * 3
