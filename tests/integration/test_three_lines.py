"""The three lines in real processes: stopped, killed, copied, on two ranks, and always to the same end."""

import contextlib
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from get3d_cluster import checkpoint
from get3d_cluster.errors import UsageError
from get3d_cluster.runtime.notices import STOP_SIGNALS
from tests.programs import ROOT, Program, ends_of, running, running_all

LOOP = ROOT / "docs" / "examples" / "plain_loop.py"
STEPS_PER_EPOCH = 20
PAUSE_S = 0.02
TO_BE_STOPPED_S = 0.06
"""Pause per step of a loop that must not be over before it is told to stop."""
SUSPENDED = 75

UNANSWERING = """
import sys, time, torch
from pathlib import Path
from get3d_cluster import checkpoint
from get3d_cluster.runtime.notices import Notices

def note(notices, number):
    real_note(notices, number)
    print("heard", len(notices.received), flush=True)

real_note, real_time, late = Notices._note, time.monotonic, Path(sys.argv[1], "late")
Notices._note = note
time.monotonic = lambda: real_time() + 2 * checkpoint.PATIENCE_S * late.exists()
checkpoint.PATIENCE_S = 1000.0
model = torch.nn.Linear(1, 1)
checkpoint.init(model, torch.optim.SGD(model.parameters()), path=sys.argv[1])
checkpoint.try_save(0, 1)
print("listens", flush=True)
if sys.argv[2] == "finish":
    checkpoint.finish()
    print("finished", flush=True)
while True:
    time.sleep(0.05)
"""


def plain_loop(
    path: Path, every_s: float = 60, pause_s: float = PAUSE_S
) -> contextlib.AbstractContextManager[Program]:
    return running(LOOP, path, pause_s, every_s)


def steps_at_start(line: str) -> int:
    epoch, step = map(int, re.search(r"epoch (\d+), step (\d+)", line).groups())
    return epoch * STEPS_PER_EPOCH + step


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the last line of a loop that nothing disturbed: its best loss and the digest of its weights."""
    with plain_loop(tmp_path_factory.mktemp("straight")) as loop:
        code, lines, err = loop.end()
    assert code == 0, err
    assert lines[-1].startswith("finished: best loss")
    return lines[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_leaves_with_75_and_the_same_command_comes_to_the_same_end(
    tmp_path: Path, straight: str, number: signal.Signals
) -> None:
    with plain_loop(tmp_path, pause_s=TO_BE_STOPPED_S) as loop:
        loop.line("epoch 1 is done")
        loop.send(number)
        code, lines, err = loop.end()
    assert code == SUSPENDED, err
    step, epoch = map(int, re.search(r"suspended after step (\d+) of epoch (\d+)", lines[-1]).groups())
    with plain_loop(tmp_path) as loop:
        first = loop.line("starts at")
        code, lines, err = loop.end()
    assert steps_at_start(first) == epoch * STEPS_PER_EPOCH + step > 2 * STEPS_PER_EPOCH
    assert code == 0, err
    assert lines[-1] == straight


def test_killed_it_does_a_period_again_at_most_and_comes_to_the_same_end(
    tmp_path: Path, straight: str
) -> None:
    every_s = 0.2
    with plain_loop(tmp_path, every_s) as loop:
        loop.line("epoch 2 is done")
        loop.kill()
    with plain_loop(tmp_path, every_s) as loop:
        first = loop.line("starts at")
        code, lines, err = loop.end()
    steps_in_period = every_s / PAUSE_S + 1  # a step takes its pause at least
    assert 3 * STEPS_PER_EPOCH - steps_in_period <= steps_at_start(first)
    assert code == 0, err
    assert lines[-1] == straight


def test_finished_and_started_again_it_does_nothing_twice(tmp_path: Path, straight: str) -> None:
    for first in (0, 5 * STEPS_PER_EPOCH):
        with plain_loop(tmp_path) as loop:
            assert steps_at_start(loop.line("starts at")) == first
            code, lines, err = loop.end()
        assert code == 0, err
        assert lines[-1] == straight


def test_a_second_copy_is_refused_in_words_that_fit(tmp_path: Path) -> None:
    with plain_loop(tmp_path, pause_s=0.5) as loop:
        loop.line("starts at")
        with plain_loop(tmp_path) as copy:
            code, _, err = copy.end()
        assert code != 0
        told = err[err.rindex("FencedError") :]
        assert f"{tmp_path} is in use by process {loop.pid}" in told
        assert f"kill {loop.pid}" in told
        assert "launch.py" not in told
        assert len(told.splitlines()) <= 3
        loop.send(signal.SIGTERM)
        assert loop.end()[0] == SUSPENDED, "the first goes on untouched"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_program_that_does_not_look(tmp_path: Path, number: signal.Signals) -> None:
    with running("-c", UNANSWERING, tmp_path, "stay") as loop:
        loop.line("listens")
        loop.send(number)
        loop.line("heard 1")
        loop.send(number)  # too soon: a scheduler may say it twice
        loop.line("heard 2")
        (tmp_path / "late").touch()
        loop.send(number)
        code, _, err = loop.end()
    assert code == 128 + number
    assert "a second time" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_after_finish_a_signal_does_what_it_did_before(tmp_path: Path, number: signal.Signals) -> None:
    with running("-c", UNANSWERING, tmp_path, "finish") as loop:
        loop.line("finished")
        loop.send(number)
        code, _, err = loop.end()
    assert code == -number
    assert ("KeyboardInterrupt" in err) == (number == signal.SIGINT)


def ranks(folder: Path, pause_s: float = PAUSE_S) -> contextlib.AbstractContextManager[list[Program]]:
    (folder / "meet").unlink(missing_ok=True)
    command = ("-m", "tests.three_lines_one_rank", folder)
    return running_all(*((*command, rank, 2, pause_s) for rank in range(2)))


@pytest.fixture(scope="module")
def straight_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    with ranks(tmp_path_factory.mktemp("ranks")) as both:
        ends = ends_of(both)
    assert [code for code, _, _ in ends] == [0, 0], ends
    return [lines[-1] for _, lines, _ in ends]


def test_one_rank_is_told_and_all_stop_at_the_same_step(tmp_path: Path, straight_ranks: list[str]) -> None:
    with ranks(tmp_path, TO_BE_STOPPED_S) as both:
        for loop in both:
            loop.line("step 15")
        both[1].send(signal.SIGTERM)
        ends = ends_of(both)
    assert [code for code, _, _ in ends] == [SUSPENDED] * 2, ends
    last = [[line for line in lines if line.startswith("step")][-1] for _, lines, _ in ends]
    assert last[0] == last[1]
    assert last[0] != "step 60"
    with ranks(tmp_path) as both:
        begun = [loop.line("starts") for loop in both]
        ends = ends_of(both)
    assert begun == [f"starts {last[0].split()[1]}"] * 2
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert [lines[-1] for _, lines, _ in ends] == straight_ranks
    assert straight_ranks[0] != straight_ranks[1], "each rank has generators of its own"


def test_a_refusal_reaches_all_ranks(tmp_path: Path) -> None:
    with ranks(tmp_path, pause_s=0.5) as both:
        for loop in both:
            loop.line("starts")
        meet = (tmp_path / "meet").rename(tmp_path / "meet-of-the-first")
        with ranks(tmp_path) as copies:
            ends = ends_of(copies)
        assert meet.exists()
    for code, _, err in ends:
        assert code != 0
        assert f"is in use by process {both[0].pid}" in err


@pytest.fixture
def signals() -> Iterator[list[object]]:
    """Return how signals are handled, and leave no loop behind."""
    handlers = [signal.getsignal(number) for number in STOP_SIGNALS]
    yield handlers
    checkpoint.finish()
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == handlers


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = torch.nn.Embedding(5, 3), torch.nn.Linear(3, 5, bias=False)
        self.out.weight = self.into.weight


def test_tied_weights_schedules_and_any_others_come_back(tmp_path: Path, signals: list[object]) -> None:
    def begin() -> tuple[object, ...]:
        model = Tied()
        adam = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.1), foreach=False)
        rates = torch.optim.lr_scheduler
        parts = [rates.MultiStepLR(adam, [1, 2]), rates.ExponentialLR(adam, 0.5)]
        schedule = rates.SequentialLR(adam, parts, milestones=[3])
        return model, adam, schedule, checkpoint.init(model, adam, schedule, path=tmp_path)

    def step(model: Tied, adam: torch.optim.Adam, schedule: torch.optim.lr_scheduler.SequentialLR) -> None:
        adam.zero_grad()
        model.out(model.into(torch.arange(5))).square().sum().backward()
        adam.step()
        schedule.step()

    model, adam, schedule, (_, start, _) = begin()
    assert start == 0
    others = {"seen": {3: torch.ones(2)}, "crop": (4, 5), "best": float("inf")}
    step(model, adam, schedule)
    checkpoint.try_save(0, 1, others)
    checkpoint.finish()
    step(model, adam, schedule)
    again, its_adam, its_schedule, (_, start, back) = begin()
    assert start == 1
    assert torch.equal(back["seen"].pop(3), torch.ones(2))
    assert back == {"seen": {}, "crop": (4, 5), "best": float("inf")}
    step(again, its_adam, its_schedule)
    assert torch.equal(again.into.weight, model.into.weight)
    assert again.out.weight is again.into.weight
    assert its_schedule.state_dict() == schedule.state_dict()


def test_what_cannot_be_saved_is_refused_at_the_first_step(tmp_path: Path, signals: list[object]) -> None:
    model = torch.nn.Linear(1, 1)
    checkpoint.init(model, torch.optim.SGD(model.parameters()), path=tmp_path)
    with pytest.raises(UsageError, match=r"place/others/best is a builtins\.set"):
        checkpoint.try_save(0, 1, {"best": {1}})
    with pytest.raises(UsageError, match="second time"):
        checkpoint.init(model, torch.optim.SGD(model.parameters()), path=tmp_path / "other")
    checkpoint.try_save(0, 1, {"best": [1]})


def test_an_init_that_fails_takes_nothing(tmp_path: Path, signals: list[object]) -> None:
    def begin(size: int) -> tuple[int, int, dict[str, object]]:
        model = torch.nn.Linear(size, 1)
        return checkpoint.init(model, torch.optim.SGD(model.parameters()), path=tmp_path)

    begin(1)
    checkpoint.try_save(0, 1)
    checkpoint.finish()
    with pytest.raises(RuntimeError, match="size mismatch"):
        begin(2)
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == signals
    assert begin(1)[1] == 1
