import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from get3d_cluster.data.cache import PieceCache
from get3d_cluster.data.format import digest_of
from get3d_cluster.errors import UsageError

LIMIT = 100_000


def piece(number: int, size: int = 9_000) -> tuple[str, bytes]:
    data = random.Random(number).randbytes(size)
    return f"{digest_of(data)}-{size}", data


def stored(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != "total")


def test_what_was_put_is_there_for_every_process(tmp_path: Path) -> None:
    name, data = piece(0)
    assert PieceCache(tmp_path / "cache", LIMIT).get(name) is None
    PieceCache(tmp_path / "cache", LIMIT).put(name, data)
    assert PieceCache(tmp_path / "cache", LIMIT).get(name) == data
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0


def test_the_folder_stays_below_its_limit_and_what_was_used_last_stays(tmp_path: Path) -> None:
    cache = PieceCache(tmp_path, LIMIT)
    often, data = piece(1000)
    cache.put(often, data)
    for number in range(50):
        time.sleep(0.005)  # the clock of files has ticks
        cache.put(*piece(number))
        assert stored(tmp_path) <= LIMIT
        assert cache.get(often) == data
    assert cache.get(piece(49)[0]) is not None
    assert cache.get(piece(0)[0]) is None
    assert stored(tmp_path) > LIMIT // 2


def test_a_piece_that_cannot_fit_is_not_kept(tmp_path: Path) -> None:
    cache = PieceCache(tmp_path, LIMIT)
    cache.put(*piece(0))
    cache.put(*piece(1, 99_000))
    assert cache.get(piece(0)[0]) is not None
    assert stored(tmp_path) == 9_000


def test_a_piece_that_is_being_read_stays_readable_while_it_is_deleted(tmp_path: Path) -> None:
    cache = PieceCache(tmp_path, LIMIT)
    name, data = piece(0)
    cache.put(name, data)
    with cache._path(name).open("rb") as reader:
        for number in range(1, 30):
            cache.put(*piece(number))
        assert not cache._path(name).exists()
        assert reader.read() == data


def test_a_lost_count_is_counted_anew(tmp_path: Path) -> None:
    for text in ("", "nonsense", "999999999"):
        cache = PieceCache(tmp_path, LIMIT)
        cache.put(*piece(0))
        (tmp_path / "total").write_text(text)
        cache.put(*piece(1))
        assert int((tmp_path / "total").read_text()) == 18_000
        cache.drop(piece(0)[0])
        cache.drop(piece(1)[0])


def test_what_a_killed_writer_left_goes(tmp_path: Path) -> None:
    cache = PieceCache(tmp_path, LIMIT)
    cache.put(*piece(0))
    left = cache._path(piece(0)[0]).with_name(".writing-left")
    left.write_bytes(bytes(10_000))
    for number in range(1, 30):
        cache.put(*piece(number))
    assert not left.exists()
    assert stored(tmp_path) <= LIMIT


def test_a_stopped_worker_that_has_the_lock_does_not_stop_the_others(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("get3d_cluster.data.cache.LOCK_S", 0.05)
    cache = PieceCache(tmp_path, LIMIT)
    with PieceCache(tmp_path, LIMIT)._locked() as count:
        assert count is not None
        cache.put(*piece(0))
        assert cache.get(piece(0)[0]) is None
    cache.put(*piece(0))
    assert cache.get(piece(0)[0]) == piece(0)[1]


def test_a_cache_whose_disk_fails_says_so_once_and_reading_goes_on(tmp_path: Path) -> None:
    cache = PieceCache(tmp_path, LIMIT)
    cache.put(*piece(0))
    (tmp_path / piece(1)[0][:2]).write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match="takes nothing more"):
        cache.put(*piece(1))
    cache.put(*piece(2))
    assert cache.get(piece(1)[0]) is None
    assert cache.get(piece(0)[0]) == piece(0)[1]


def test_a_folder_that_cannot_be_used_is_refused_with_the_setting_to_change(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be used") as caught:
        PieceCache(tmp_path / "file", LIMIT)
    assert "cache" in caught.value.way_out
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="another user"):
        PieceCache(tmp_path / "link", LIMIT)


def hammer(folder: Path, seed: int) -> None:
    """Get and put at random for ever; a wrong byte ends the process."""
    cache, rng = PieceCache(folder, LIMIT), random.Random(seed)
    while True:
        name, data = piece(rng.randrange(40))
        found = cache.get(name)
        if found not in (None, data):
            os._exit(9)
        cache.put(name, data)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.long)])
def test_processes_killed_at_any_moment_leave_no_wrong_piece_and_no_lock(tmp_path: Path, method: str) -> None:
    context = multiprocessing.get_context(method)
    rounds, lives_s = (8, 0.05) if method == "fork" else (1, 1.5)
    rng = random.Random(0)
    for turn in range(rounds):
        workers = [context.Process(target=hammer, args=(tmp_path, 10 * turn + n)) for n in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            time.sleep(lives_s * (0.5 + rng.random()))
            worker.kill()
            worker.join()
            assert worker.exitcode == -signal.SIGKILL
        assert stored(tmp_path) <= LIMIT
    cache = PieceCache(tmp_path, LIMIT)
    cache.put(*piece(1000))
    assert cache.get(piece(1000)[0]) == piece(1000)[1]
    for number in range(40):
        name, data = piece(number)
        assert cache.get(name) in (None, data)
