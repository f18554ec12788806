import pytest
import torch

from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.errors import CheckpointError, FencedError
from get3d_cluster.runtime.checkpoint import (
    Checkpoints,
    decode,
    encode,
    flatten,
    list_checkpoints,
    load_optimizer,
    optimizer_state,
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
    back = decode({name: memoryview(data) for name, data in encode(state).items()})
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


@pytest.mark.parametrize("key", ["a/b", 3])
def test_a_key_that_could_not_come_back_is_refused(key):
    with pytest.raises(TypeError, match="text without a slash"):
        encode({"part": {key: 1}})


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
