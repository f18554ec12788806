import os
import threading
import time
from collections import Counter

import pytest

from get3d_cluster.data.ahead import Ahead


class Maker:
    """Counts what is made, on how many threads, and waits for leave to go on."""

    def __init__(self) -> None:
        self.made: Counter[int] = Counter()
        self.leave = threading.Event()
        self.leave.set()

    def __call__(self, number: int) -> str:
        self.leave.wait(60)
        self.made[number] += 1
        if number < 0:
            raise ValueError(f"no {number}")
        return f"value {number}"


def settle(maker: Maker, count: int) -> None:
    end_s = time.monotonic() + 60
    while maker.made.total() < count and time.monotonic() < end_s:
        time.sleep(0.002)
    time.sleep(0.02)


def test_what_was_expected_is_made_once_and_before_it_is_asked_for() -> None:
    maker = Maker()
    ahead = Ahead(maker, threads=3, most=10)
    ahead.expect([3, 1, 2, 1])
    settle(maker, 3)
    assert maker.made == {3: 1, 1: 1, 2: 1}
    assert [ahead.take(number) for number in (1, 2, 3)] == ["value 1", "value 2", "value 3"]
    assert maker.made.total() == 3


def test_values_held_are_bounded() -> None:
    maker = Maker()
    ahead = Ahead(maker, threads=2, most=4)
    ahead.expect(range(100))
    ahead.hurry(range(200, 300))
    settle(maker, 4)
    assert sorted(maker.made) == [0, 1, 2, 3]
    assert ahead.take(250) == "value 250"


def test_what_is_no_longer_expected_is_forgotten() -> None:
    maker = Maker()
    ahead = Ahead(maker, threads=2, most=4)
    ahead.expect(range(4))
    settle(maker, 4)
    ahead.expect([3, 10, 11, 12])
    settle(maker, 7)
    assert sorted(ahead._slots) == [3, 10, 11, 12]
    assert maker.made[3] == 1


def test_the_caller_does_itself_what_no_thread_has_begun() -> None:
    maker = Maker()
    maker.leave.clear()
    ahead = Ahead(maker, threads=1, most=10)
    ahead.expect([1, 2])
    threading.Timer(0.05, maker.leave.set).start()
    assert ahead.take(2) == "value 2"
    assert ahead.take(1) == "value 1"
    settle(maker, 2)
    assert maker.made == {1: 1, 2: 1}


def test_an_error_is_raised_where_the_value_is_asked_for_and_not_kept() -> None:
    ahead = Ahead(Maker(), threads=1, most=10)
    ahead.expect([-1, 5])
    for _ in range(2):
        with pytest.raises(ValueError, match="no -1"):
            ahead.take(-1)
    assert ahead.take(5) == "value 5"


def num_threads() -> int:
    return sum(thread.name == "read-ahead" for thread in threading.enumerate())


def test_threads_go_when_nothing_is_left_to_do() -> None:
    maker = Maker()
    ahead = Ahead(maker, threads=4, most=100)
    for start in range(0, 50, 10):
        ahead.expect(range(start, start + 10))
        for number in range(start, start + 10):
            ahead.take(number)
    end_s = time.monotonic() + 60
    while num_threads() and time.monotonic() < end_s:
        time.sleep(0.002)
    assert num_threads() == 0
    assert ahead._slots == {}


def test_a_forked_child_does_not_wait_for_the_threads_of_its_parent() -> None:
    maker = Maker()
    maker.leave.clear()
    ahead = Ahead(maker, threads=1, most=10)
    ahead.expect([1, 2])
    with ahead._changed:  # as if a thread held it at this moment
        child = os.fork()
        if not child:
            maker.leave = threading.Event()
            maker.leave.set()
            os._exit(0 if ahead.take(1) == "value 1" else 1)
    maker.leave.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ahead.take(1) == "value 1"


def test_many_rounds_of_everything_at_once_give_the_right_values() -> None:
    ahead = Ahead(lambda number: number * number, threads=4, most=5)
    for start in range(300):
        ahead.expect(range(start, start + 7))
        ahead.hurry([start, start + 9])
        assert [ahead.take(n) for n in (start, start + 9, start)] == [start**2, (start + 9) ** 2, start**2]
