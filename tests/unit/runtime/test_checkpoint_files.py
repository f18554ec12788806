import json
from collections import Counter

import numpy as np
import pytest
import torch

from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.errors import CheckpointError, FencedError, UsageError
from get3d_cluster.runtime.checkpoint import (
    Checkpoints,
    decode,
    encode,
    flatten,
    list_checkpoints,
    load_optimizer,
    optimizer_state,
    refuse_unsaved,
    state_digest,
)
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.storage import open_storage


def a_state(value: float = 1.0):
    return {
        "net": {
            "w": torch.full((3, 2), value),
            "n": torch.tensor(7),
            "half": torch.ones(4, dtype=torch.bfloat16),
        },
        "adam": {
            "state": {"0": {"step": torch.tensor(3.0)}},
            "param_groups": [{"lr": 1e-3, "betas": [0.0, 0.99]}],
        },
        "counters": {"step": 5, "best": float("inf"), "name": "x"},
        "empty": {},
    }


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(open_storage(tmp_path / "checkpoints"), CheckpointConfig(keep_last=2), lambda: None)


def test_a_state_comes_back_equal_to_the_last_bit():
    state = a_state(0.1)
    back = there_and_back(state)
    assert state_digest(back) == state_digest(state)
    assert {path for path, _ in flatten(back)} == {path for path, _ in flatten(state)}


@pytest.mark.parametrize("path", [path for path, _ in flatten(a_state())], ids="/".join)
def test_the_digest_sees_every_leaf(path):
    state = a_state()
    branch = state
    for key in path[:-1]:
        branch = branch[key]
    leaf = branch[path[-1]]
    branch[path[-1]] = leaf + 1 if isinstance(leaf, torch.Tensor | int) else "changed"
    assert state_digest(state) != state_digest(a_state())
    del branch[path[-1]]
    assert state_digest(state) != state_digest(a_state())


def test_the_digest_sees_types_and_shapes_not_only_bytes():
    flat, wide = {"a": {"x": torch.zeros(4)}}, {"a": {"x": torch.zeros(2, 2)}}
    integer = {"a": {"x": torch.zeros(4, dtype=torch.int32)}}
    assert len({state_digest(state) for state in (flat, wide, integer)}) == 3


def there_and_back(state):
    return decode({name: memoryview(data) for name, data in encode(state).items()})


def same(one, other):
    """Compare types, order of keys, and bits."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        keys = [(type(key), key) for key in one]
        return (
            type(one) is type(other)
            and keys == [(type(key), key) for key in other]
            and all(same(one[key], other[key]) for key in one)
        )
    if isinstance(one, list | tuple):
        alike = type(one) is type(other) and len(one) == len(other)
        return alike and all(same(a, b) for a, b in zip(one, other, strict=True))
    return type(one) is type(other) and (one == other or (one != one and other != other))


AWKWARD = [
    {3: 1, "3": 2, -1: {0: None}},
    {"$tensor": "x", "$": 1, "a/b": 2, "": 3, "__metadata__": torch.ones(2)},
    {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}, 0: torch.zeros(2), "0": torch.ones(2)},
    [(1, 2.5), [], (), {}, {7: (torch.arange(3), [torch.tensor(1.0)])}],
    {"z": True, "a": 1, "m": None, "f": [float("nan"), float("inf"), -float("inf"), 0.1, 1.0, -0.0]},
    (torch.tensor(True), torch.zeros(0, 3), torch.ones(2, 3).T, torch.ones(2, dtype=torch.complex64)),
    Counter({3: 1, 10: 2}),
    torch.ones(3),
    5,
]


@pytest.mark.parametrize("value", AWKWARD, ids=range(len(AWKWARD)))
def test_any_nesting_comes_back_as_it_was(value):
    state = {"part": value, "beside": {"x": [value]}}
    back = there_and_back(state)
    assert same(back, state)
    assert state_digest(back) == state_digest(state)


def test_the_digest_sees_what_lies_in_lists_and_the_type_of_keys():
    states = [
        {"a": [torch.zeros(2)]},
        {"a": [torch.ones(2)]},
        {"a": {"[0]": torch.ones(2)}},
        {"a": {"$[0]": torch.ones(2)}},
        {"a": {3: 1}},
        {"a": {"3": 1}},
        {"a": [{3: 1}]},
        {"a": [{"3": 1}]},
    ]
    assert len({state_digest(state) for state in states}) == len(states)


def test_the_digest_does_not_see_the_order_of_keys_nor_a_tuple():
    one = {"a": {3: 1, "x": (0.0, 0.9)}, "b": [{1: 2, 0: 3}]}
    other = {"b": [{0: 3, 1: 2}], "a": {"x": [0.0, 0.9], 3: 1}}
    assert state_digest(one) == state_digest(other)


@pytest.mark.parametrize(
    "value",
    [{1, 2}, b"x", np.float64(1), object(), {True: 1}, {1.5: 1}, {(1,): 1}, torch.ones(2).to_sparse()],
    ids=lambda value: type(value).__name__,
)
def test_what_could_not_come_back_is_refused_with_its_place(value):
    with pytest.raises(UsageError, match=r"part/deep/\$\[1\]"):
        encode({"part": {"deep": [0, value]}})
    with pytest.raises(UsageError):
        refuse_unsaved({"part": {"deep": [0, value]}})


def test_a_top_level_name_that_is_no_file_name_is_refused():
    with pytest.raises(UsageError, match="a/b"):
        encode({"a/b": 1})


def test_tied_weights_and_views_are_stored_each_for_itself():
    both = torch.nn.ModuleList([torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)])
    both[1].weight = both[0].weight
    base = torch.arange(6.0)
    state = {"net": both.state_dict(), "views": [base, base[2:4], base[:3]]}
    back = there_and_back(state)
    assert state_digest(back) == state_digest(state)
    both.load_state_dict(back["net"])
    assert both[1].weight is both[0].weight


def test_tensors_that_no_one_names_are_damage():
    files = encode({"net": {"w": torch.ones(2), "v": torch.ones(2)}})
    files["state.json"] = json.dumps({"net": {"w": {"$tensor": "w"}}}).encode()
    with pytest.raises(ValueError, match="does not name: v"):
        decode({name: memoryview(data) for name, data in files.items()})


def schedules(optimizer):
    rates = torch.optim.lr_scheduler
    yield rates.MultiStepLR(optimizer, [3, 5])
    parts = [rates.MultiStepLR(optimizer, [2, 3]), rates.ExponentialLR(optimizer, 0.9)]
    yield rates.SequentialLR(optimizer, parts, milestones=[4])
    yield rates.OneCycleLR(optimizer, 0.1, total_steps=12)
    yield rates.ReduceLROnPlateau(optimizer, patience=1)


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("is_tensor", [False, True], ids=["number", "tensor"])
def test_a_learning_rate_goes_on_by_its_schedule(which, is_tensor):
    def setting():
        weight = torch.nn.Parameter(torch.ones(2))
        rate = torch.tensor(0.1) if is_tensor else 0.1
        optimizer = torch.optim.AdamW([weight], lr=rate, foreach=False)
        return weight, optimizer, list(schedules(optimizer))[which]

    def go(weight, optimizer, schedule, steps):
        rates = []
        for _ in range(steps):
            optimizer.zero_grad()
            weight.square().sum().backward()
            optimizer.step()
            schedule.step(*([1.0] if which == 3 else []))
            rates.append(float(optimizer.param_groups[0]["lr"]))
        return rates

    def state(weight, optimizer, schedule):
        return {"w": weight, "o": optimizer.state_dict(), "s": schedule.state_dict()}

    straight = setting()
    go(*straight, 2)
    saved = there_and_back(state(*straight))
    expected = go(*straight, 5)
    resumed = setting()
    resumed[0].data.copy_(saved["w"])
    resumed[1].load_state_dict(saved["o"])
    resumed[2].load_state_dict(saved["s"])
    assert go(*resumed, 5) == expected
    assert state_digest(state(*resumed)) == state_digest(state(*straight))


def test_one_flipped_bit_anywhere_is_found_and_the_older_one_is_taken(tmp_path, checkpoints):
    folder = tmp_path / "checkpoints" / "step-000000002"
    checkpoints.save(1, a_state(1), {})
    checkpoints.save(2, a_state(2), {})
    originals = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(originals) == 4
    for name, data in originals.items():
        for position in (0, len(data) // 3, len(data) - 1):
            damaged = bytearray(data)
            damaged[position] ^= 1
            (folder / name).write_bytes(damaged)
            loaded = checkpoints.load()
            assert loaded is not None
            assert loaded.step == 1, f"bit 0 of byte {position} of {name}"
            assert "step-000000002" in loaded.damaged[0]
            folder.mkdir()
            for other, good in originals.items():
                (folder / other).write_bytes(good)
    good = checkpoints.load()
    assert good is not None
    assert good.step == 2


@pytest.mark.parametrize("how", ["truncate", "delete"])
def test_a_short_or_missing_file_is_found(tmp_path, checkpoints, how):
    checkpoints.save(1, a_state(), {})
    checkpoints.save(2, a_state(), {})
    for path in (tmp_path / "checkpoints" / "step-000000002").glob("net*"):
        path.unlink() if how == "delete" else path.write_bytes(path.read_bytes()[:-1])
    assert checkpoints.load().step == 1


def test_when_all_are_damaged_it_refuses_and_says_which(tmp_path, checkpoints):
    checkpoints.save(1, a_state(), {})
    (tmp_path / "checkpoints" / "step-000000001" / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match="step-000000001"):
        checkpoints.load()


def test_none_is_not_an_error(checkpoints):
    assert checkpoints.load() is None


def test_the_last_ones_are_kept(checkpoints, tmp_path):
    for step in (1, 2, 3):
        checkpoints.save(step, a_state(step), {"epoch": step})
    infos = list_checkpoints(RunFolder(tmp_path), verify=True)
    assert [(info.step, info.epoch, info.state) for info in infos] == [(2, 2, "ok"), (3, 3, "ok")]


def test_saving_one_step_twice_is_harmless(checkpoints):
    assert checkpoints.save(1, a_state(), {}).digest == checkpoints.save(1, a_state(), {}).digest


def test_whoever_lost_the_run_publishes_nothing(tmp_path):
    def lost():
        raise FencedError("somebody else")

    checkpoints = Checkpoints(open_storage(tmp_path / "checkpoints"), CheckpointConfig(), lost)
    with pytest.raises(FencedError):
        checkpoints.save(1, a_state(), {})
    assert list_checkpoints(RunFolder(tmp_path)) == []


def test_an_optimizer_continues_as_if_nothing_had_been():
    def model():
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 2)
        return net, torch.optim.Adam(net.parameters(), lr=0.1, betas=(0.0, 0.99))

    def steps(net, adam, n):
        for _ in range(n):
            adam.zero_grad()
            net(torch.ones(4, 3)).square().sum().backward()
            adam.step()

    net, adam = model()
    steps(net, adam, 2)
    saved = decode(
        {k: memoryview(v) for k, v in encode({"n": net.state_dict(), "a": optimizer_state(adam)}).items()}
    )
    steps(net, adam, 3)
    other, its_adam = model()
    other.load_state_dict(saved["n"])
    load_optimizer(its_adam, saved["a"])
    steps(other, its_adam, 3)
    assert state_digest({"n": net.state_dict(), "a": optimizer_state(adam)}) == state_digest(
        {"n": other.state_dict(), "a": optimizer_state(its_adam)}
    )
