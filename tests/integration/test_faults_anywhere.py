"""Kill, tear, cut the power or fail at every call that touches the run folder; what follows ends with the same bits.

Each case is an attempt in a child process that comes back to a run which was killed before, whose newest checkpoint has
a flipped bit, and in whose folder older attempts left their scraps.
"""

import errno
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch  # noqa: F401  loaded here once, not in each child
import torch

from get3d_cluster import attempt as worker
from get3d_cluster.attempt import run_worker
from get3d_cluster.config import find_job
from get3d_cluster.dist.tree import GradientReducer
from get3d_cluster.errors import ExitCode
from get3d_cluster.runtime import progress
from get3d_cluster.runtime.checkpoint import list_checkpoints
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.notices import Notices
from get3d_cluster.runtime.run_folder import RunFolder
from tests.fault_points import CHANGES, KILLED, Call, die, fault_points, in_a_child, lose_power, tear
from tests.workers import PLAIN, final_digest, make_run

NUM_STEPS = 6
Meet = Callable[[Call], Any]


def go_on(call: Call) -> Any:
    return call.go()


def attempt(run: RunFolder, meet: Meet = go_on) -> int:
    """Make one attempt in a child, every call of which passes ``meet``; return its exit code."""

    def act() -> int:
        progress.PROGRESS_S = math.inf  # whatever the speed of this machine, the calls are the same each time
        with fault_points(run.path, meet):
            return run_worker([str(run.path)], Notices())

    return in_a_child(act, run.path.parent / f"{run.name}.log")


def log_of(run: RunFolder) -> str:
    return (run.path.parent / f"{run.name}.log").read_text()


def a_run(path: Path) -> RunFolder:
    run = make_run(path, PLAIN, f"num_steps={NUM_STEPS}", "checkpoint.every_steps=2", "checkpoint.every_s=0")
    worker.read_run_config(find_job(PLAIN).Config, run.config_path)
    return run


@pytest.fixture(scope="module", autouse=True)
def _parse_the_configuration_once() -> Iterator[None]:
    """Keep what a text means for all children: half of the time of such a short attempt."""
    real, known = worker.read_run_config, {}

    def read(kind: Any, path: Path) -> Any:
        text = path.read_text()
        if text not in known:
            known[text] = real(kind, path)
        return known[text]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "read_run_config", read)
        yield


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    torch.optim.Adam([torch.zeros(1)])  # what that imports for a second is imported once, not in each child
    run = a_run(tmp_path_factory.mktemp("straight") / "run")
    assert attempt(run) == 0, log_of(run)
    return final_digest(run)


@pytest.fixture(scope="module")
def wounded(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run killed in step 6 whose newest checkpoint, that of step 4, is damaged, among what two kills left behind."""
    run = a_run(tmp_path_factory.mktemp("wounded") / "run")

    def kill_in_step_6(call: Call) -> Any:
        if call.path == run.metrics_path and call.kind == "write" and b'"step": 6' in bytes(call.data or b""):
            tear(call)
        return call.go()

    assert attempt(run, kill_in_step_6) == KILLED, log_of(run)
    assert run.saved_step() == 4
    flip(run.checkpoints_dir / "step-000000004" / "net.safetensors")
    for begin in (".writing-", ".deleting-"):
        scrap = run.checkpoints_dir / f"{begin}step-000000003-0badcafe"
        scrap.mkdir()
        (scrap / "net.safetensors").write_bytes(b"half")
    return run


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def calls_of(wounded: RunFolder, folder: Path) -> list[tuple[int, str, str]]:
    """Return number, kind and first folder of the calls of the attempt that nothing disturbs."""
    run = copy_of(wounded, folder / "undisturbed")
    notes = folder / "calls"

    def note(call: Call) -> Any:
        with notes.open("a") as file:
            file.write(f"{call.number} {call.kind} {(*call.path.relative_to(run.path).parts, '.')[0]}\n")
        return call.go()

    assert attempt(run, note) == 0, log_of(run)
    rows = [line.split() for line in notes.read_text().splitlines()]
    return [(int(number), kind, part) for number, kind, part in rows]


def copy_of(run: RunFolder, path: Path) -> RunFolder:
    shutil.copytree(run.path, path)
    return RunFolder(path)


def check_that_nothing_half_is_published(run: RunFolder, *, is_set_aside: bool) -> None:
    for info in list_checkpoints(run, verify=True):
        assert info.state == "ok" or (info.step == 4 and not is_set_aside), info.problem
    assert run.saved_step() >= 2


def check_the_end(run: RunFolder, uninterrupted: str, *, cleaned: bool = True, rows: bool = True) -> None:
    """Come back; everything is as if nothing had ever happened."""
    assert attempt(run) == 0, log_of(run)
    assert final_digest(run) == uninterrupted
    if rows:
        assert [row["step"] for row in read_rows(run.metrics_path)] == list(range(1, NUM_STEPS + 1))
    if cleaned:
        begins = (".writing-", ".deleting-")
        assert [path.name for path in run.checkpoints_dir.iterdir() if path.name.startswith(begins)] == []
    assert all(info.state == "ok" for info in list_checkpoints(run, verify=True))


def sweep(
    wounded: RunFolder, uninterrupted: str, folder: Path, kinds: frozenset[str], act: Meet, **checks: bool
) -> int:
    """Break an attempt by ``act`` at each of its calls of ``kinds``, then come back; return how many there were."""
    count = 0
    for number, kind, _ in calls_of(wounded, folder):
        if kind not in kinds:
            continue

        def meet(call: Call, number: int = number) -> Any:
            return act(call) if call.number == number else call.go()

        run = copy_of(wounded, folder / f"{number:03d}-{kind}")
        assert attempt(run, meet) == KILLED, log_of(run)
        was_set_aside = any(run.checkpoints_dir.glob(".damaged-*"))
        check_that_nothing_half_is_published(run, is_set_aside=was_set_aside)
        check_the_end(run, uninterrupted, cleaned=not run.is_done(), **checks)
        shutil.rmtree(run.path)
        count += 1
    return count


CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.ESTALE)
CANNOT_READ = (errno.EIO, errno.ESTALE, errno.EACCES)


def failing(at: int, number: int, *, stays: bool = False) -> Meet:
    """Fail the call ``at``, and with ``stays`` every change after it."""

    def meet(call: Call) -> Any:
        if call.number == at or (stays and call.number > at and call.kind in CHANGES):
            raise OSError(number, os.strerror(number), str(call.path))
        return call.go()

    return meet


def errors_of(kind: str) -> tuple[int, ...]:
    return CANNOT_WRITE if kind in CHANGES else CANNOT_READ


def fail_at(
    wounded: RunFolder, uninterrupted: str, path: Path, meet: Meet, codes: frozenset[int] | None
) -> None:
    """Make an attempt with a failing disk: it ends with one of ``codes``; then the next one comes to the same end."""
    run = copy_of(wounded, path)
    code = attempt(run, meet)
    assert code != ExitCode.FENCED, "a disk that fails is no newer attempt"
    if codes is not None:
        assert code in codes, f"{path.name} ended with {code}: {log_of(run)}"
        assert code == ExitCode.BUG or "Traceback" not in log_of(run)
    check_that_nothing_half_is_published(run, is_set_aside=any(run.checkpoints_dir.glob(".damaged-*")))
    if code == 0:
        assert final_digest(run) == uninterrupted
    else:
        check_the_end(run, uninterrupted, cleaned=not run.is_done())
    shutil.rmtree(run.path)


def break_by_kind(call: Call) -> None:
    """Tear what is written, cut the power where names or bytes become durable, kill before anything else."""
    {"write": tear, "fsync": lose_power, "rename": lose_power}.get(call.kind, die)(call)


def test_broken_at_any_call_it_comes_to_the_same_end(
    wounded: RunFolder, uninterrupted: str, tmp_path: Path
) -> None:
    assert sweep(wounded, uninterrupted, tmp_path, CHANGES, break_by_kind, rows=False) > 100


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("act", [die, tear, lose_power])
def test_killed_torn_or_without_power_at_any_call_it_comes_to_the_same_end(
    wounded: RunFolder, uninterrupted: str, tmp_path: Path, act: Meet
) -> None:
    assert sweep(wounded, uninterrupted, tmp_path, CHANGES, act, rows=act is not lose_power) > 100


def test_any_error_of_the_storage_is_told_and_costs_no_bit(
    wounded: RunFolder, uninterrupted: str, tmp_path: Path
) -> None:
    count = 0
    for number, kind, part in calls_of(wounded, tmp_path):
        if part in ("checkpoints", "leases"):
            errors = errors_of(kind)
            codes = {0, ExitCode.STORAGE} | (set() if kind in CHANGES else {ExitCode.NO_CHECKPOINT})
            if kind == "list":  # of the folder of the run, to say how far it is: as any crash, it comes back
                codes.add(ExitCode.BUG)
            meet = failing(number, errors[count % len(errors)])
            fail_at(wounded, uninterrupted, tmp_path / f"{number}-{kind}", meet, frozenset(codes))
            count += 1
    assert count > 80


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stays", [False, True], ids=["once", "from-there-on"])
def test_any_error_of_any_call_costs_no_bit(
    wounded: RunFolder, uninterrupted: str, tmp_path: Path, stays: bool
) -> None:
    for number, kind, _ in calls_of(wounded, tmp_path):
        for error in errors_of(kind):
            meet = failing(number, error, stays=stays)
            fail_at(wounded, uninterrupted, tmp_path / f"{number}-{kind}-{error}", meet, None)


def test_no_file_that_only_shows_where_the_run_is_decides_where_it_goes_on(
    wounded: RunFolder, uninterrupted: str, tmp_path: Path
) -> None:
    hints = ("lease.json", "progress.json", "events.jsonl", "metrics.jsonl")
    for garbage in (b"", b"{", b"step-000000009", bytes(300)):
        run = copy_of(wounded, tmp_path / "run")
        for hint in hints:
            (run.path / hint).write_bytes(garbage)
        check_the_end(run, uninterrupted, rows=False)
        assert [row["step"] for row in read_rows(run.metrics_path)] == [3, 4, 5, 6]
        shutil.rmtree(run.path)
    (run := copy_of(wounded, tmp_path / "run")).progress_path.unlink()
    run.lease_path.unlink()
    check_the_end(run, uninterrupted)


def test_a_run_goes_on_wherever_its_folder_was_moved(
    wounded: RunFolder, uninterrupted: str, tmp_path: Path
) -> None:
    copy_of(wounded, tmp_path / "here").path.rename(tmp_path / "elsewhere")
    check_the_end(RunFolder(tmp_path / "elsewhere"), uninterrupted)


def test_a_notice_between_any_two_micro_shards_is_obeyed_after_the_whole_step(
    uninterrupted: str, tmp_path: Path
) -> None:
    shards = 4
    for at in range(1, 3 * shards, 2):
        run = a_run(tmp_path / f"after-{at}")

        def act(at: int = at, run: RunFolder = run) -> int:
            notices = Notices()
            tell_after(notices, GradientReducer, "add", at)
            notices.install()
            return run_worker([str(run.path)], notices)

        assert in_a_child(act, tmp_path / f"{run.name}.log") == ExitCode.SUSPENDED, log_of(run)
        outcome = run.outcome(1)
        assert outcome is not None
        assert outcome.saved_step == outcome.end_step == (at + shards - 1) // shards
        check_the_end(run, uninterrupted)


def tell_after(notices: Notices, owner: type, name: str, at: int) -> None:
    """Send this process a real signal after its call number ``at`` of a method, and wait until it was noted."""
    real, count = getattr(owner, name), 0

    def told(*args: Any, **options: Any) -> Any:
        nonlocal count
        result = real(*args, **options)
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGTERM)
            while not notices.received:
                time.sleep(0.001)
        return result

    setattr(owner, name, told)
