import hashlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from get3d_cluster.runtime.notices import STOP_SIGNALS, Notices


def wait_until(condition, limit_s=60):
    end = time.monotonic() + limit_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_uninstall_gives_back_handlers_wakeup_descriptor_and_thread():
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda number, _frame: heard.append(number))
    handlers = [signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGHUP)]
    descriptors, threads = set(Path("/proc/self/fd").iterdir()), threading.active_count()
    try:
        notices = Notices()
        notices.install()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert wait_until(lambda: notices.requested)
        assert heard == []
        notices.uninstall()
        assert [signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGHUP)] == handlers
        assert signal.set_wakeup_fd(-1) == -1
        assert set(Path("/proc/self/fd").iterdir()) == descriptors
        assert threading.active_count() == threads
        os.kill(os.getpid(), signal.SIGUSR1)
        assert wait_until(lambda: heard)
        assert len(notices.received) == 1
        notices.uninstall()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_without_patience_any_number_of_signals_is_only_noted(monkeypatch):
    notices = Notices()
    notices.install()
    try:
        for count in (1, 2, 3):
            os.kill(os.getpid(), signal.SIGTERM)
            assert wait_until(lambda count=count: len(notices.received) == count)
        monkeypatch.setattr("get3d_cluster.runtime.notices.BURST_S", 100.0)
        assert not notices.is_urgent  # a burst is one notice
        monkeypatch.setattr("get3d_cluster.runtime.notices.BURST_S", 0.0)
        assert notices.is_urgent
    finally:
        notices.uninstall()


def test_signals_from_before_the_handlers_are_recalled_with_their_age(tmp_path):
    record, begun_s = tmp_path / "early.rank0000", time.monotonic()
    record.write_text(f"USR2 {time.time() - 7:.3f}\nNONSENSE 1\ntorn")
    notices = Notices()
    notices.recall(record)
    notices.recall(tmp_path / "none")
    assert notices.signal_name == "SIGUSR2"
    assert abs(begun_s - 7 - notices.first_s) < 0.1 + (time.monotonic() - begun_s)


def test_an_answered_notice_is_not_cut_short_by_the_scheduler(monkeypatch):
    ended = []
    monkeypatch.setattr("get3d_cluster.runtime.notices._end_at_once", ended.append)
    notices = Notices()
    notices.install(patience_s=0.05)
    try:
        for number, is_answered, expected in (
            (signal.SIGTERM, False, []),
            (signal.SIGUSR1, False, []),
            (signal.SIGUSR1, False, []),
            (signal.SIGINT, False, []),  # another signal than the first is not a second one
            (signal.SIGTERM, True, []),
            (signal.SIGINT, True, [signal.SIGINT]),
        ):
            if is_answered:
                notices.answer()
            known = len(notices.received)
            os.kill(os.getpid(), number)
            assert wait_until(lambda known=known: len(notices.received) > known)
            assert ended == expected
            time.sleep(0.1)
    finally:
        notices.uninstall()


def test_a_library_that_puts_a_handler_of_its_own_takes_no_notice_away():
    heard = []
    notices = Notices()
    notices.install()
    try:
        signal.signal(signal.SIGTERM, lambda number, _frame: heard.append(number))
        os.kill(os.getpid(), signal.SIGTERM)
        assert wait_until(lambda: notices.requested and heard)
        assert notices.signal_name == "SIGTERM"
    finally:
        notices.uninstall()


def test_a_notice_is_dated_while_compiled_code_holds_the_main_thread():
    notices = Notices()
    notices.install()
    try:
        told_s = []

        def tell():
            time.sleep(0.1)
            told_s.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGUSR2)

        threading.Thread(target=tell).start()
        while not told_s:
            hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2_500_000)
        over_s = time.monotonic()
        assert wait_until(lambda: notices.requested)
        assert told_s[0] <= notices.first_s < (told_s[0] + over_s) / 2
    finally:
        notices.uninstall()


@pytest.mark.parametrize("taken", [signal.SIG_IGN, signal.SIG_DFL, "descriptor"])
def test_what_a_library_takes_is_taken_back_in_the_next_step(taken, capsys):
    notices = Notices()
    notices.install()
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    try:
        if taken == "descriptor":
            signal.set_wakeup_fd(write_end)
        else:
            signal.signal(signal.SIGTERM, taken)
        assert not notices.requested
        assert "notices are heard again" in capsys.readouterr().err
        os.kill(os.getpid(), signal.SIGTERM)
        assert wait_until(lambda: notices.requested)
        assert capsys.readouterr().err == ""
    finally:
        notices.uninstall()
        os.close(read_end)
        os.close(write_end)
