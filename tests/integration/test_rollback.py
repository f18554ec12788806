"""A training that diverges goes back and on with other draws, and comes to the same end wherever it is killed.

The attempts of most tests are run in this process, and killed by an exception at a chosen call.
"""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from get3d_cluster.cli.facts import gather
from get3d_cluster.cli.status import row_of
from get3d_cluster.core.job import Cause
from get3d_cluster.errors import HeldError, StorageError
from get3d_cluster.report.headline import details
from get3d_cluster.report.reading import read_run
from get3d_cluster.runtime.checkpoint import Checkpoints, list_checkpoints
from get3d_cluster.runtime.ending import End, Ended
from get3d_cluster.runtime.events import MetricLog, read_rows
from get3d_cluster.runtime.loop import run_steps
from get3d_cluster.runtime.run_folder import RunFolder, read_json
from get3d_cluster.schedulers.base import StopReason
from get3d_cluster.simulate import new_run
from get3d_cluster.storage import open_storage
from get3d_cluster.storage.local import LocalStorage
from get3d_cluster.train.trainer import Get3dTrainer
from tests import train_setup as setup
from tests.jobs_for_tests import diverging
from tests.sessions import session_of
from tests.workers import logs, run_to_end, start, stop, wait

STEPS, EVERY, SKIPS = 12, 4, 3
"""Diverged after step 7: steps 8 to 10 are skipped, the target is step 4 although there is a checkpoint of step 8."""
BATCH = 4
SETTINGS = (
    "batch.num_shards=2", f"num_images={BATCH * STEPS}",
    f"guard.max_skipped_steps={SKIPS}", f"guard.rollback_every_steps={EVERY}",
    "augment.target=0.3", "augment.interval=2", "augment.p=0.4",
)  # fmt: skip
NO_HURRY = StopReason(cause=Cause.PREEMPTED, grace_s=None)


class KilledError(BaseException):
    """The power goes here."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return setup.dataset(tmp_path_factory.mktemp("data") / "packed")


def config_of(data: Path, *overrides: str) -> diverging.Config:
    from get3d_cluster import config as configuration

    path, all_overrides = setup.CONFIGS / "tiny_test.yaml", [f"data.path={data}", *SETTINGS, *overrides]
    return configuration.load(diverging.Config, path, all_overrides)


def go(folder: Path, config: diverging.Config, prepare: Callable[[Any], None] = lambda _: None) -> Ended:
    """Run one attempt."""
    session = session_of(folder)
    work: Any = diverging.make(config, session)
    prepare(work)
    checkpoints = Checkpoints(open_storage(session.run.checkpoints_dir), config.checkpoint, lambda: None)
    return run_steps(work, session, checkpoints, config.checkpoint, lambda: NO_HURRY)


def rollbacks(folder: Path) -> list[tuple[int, int, int]]:
    rows = [row for row in read_rows(folder / "events.jsonl") if row["event"] == "rollback"]
    return [(row["step"], row["to"], row["number"]) for row in rows]


def steps_of(folder: Path) -> list[int]:
    return [row["step"] for row in read_rows(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the digest of the run that nothing interrupts but its divergence."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    ended = go(folder, config_of(data))
    assert (ended.end, ended.step) == (End.FINISHED, STEPS)
    assert rollbacks(folder) == [(10, 4, 1)]
    return ended.digest


def test_it_goes_back_before_the_first_skipped_step_and_comes_through(data: Path, tmp_path: Path) -> None:
    ended = go(tmp_path / "run", config_of(data, "checkpoint.every_steps=3"))
    run = RunFolder(tmp_path / "run")
    assert (ended.end, ended.not_bitwise_from) == (End.FINISHED, None)
    assert rollbacks(run.path) == [(10, 4, 1)]
    assert steps_of(run.path) == list(range(1, STEPS + 1)), "no gap, no duplicate"
    aside = sorted(path.name.split("-")[-2] for path in run.checkpoints_dir.glob(".rolled-back-*"))
    assert aside == ["000000008"] or aside == ["000000007", "000000008"]
    told = read_json(run.progress_path)
    assert (told["rollbacks"], told["rolled_back_from"], told["rolled_back_to"]) == (1, 10, 4)
    skipped = [row["step"] for row in read_rows(run.events_path) if row["event"] == "skipped"]
    assert skipped == [8, 9, 10]


def test_other_numbers_are_drawn_from_there_on(data: Path, tmp_path: Path, whole: str) -> None:
    """Latents, cameras, augmentation and data order: the steps from 5 on are not those of a run that never diverged."""
    assert go(tmp_path / "never", config_of(data, "bad_draws=0")).digest != whole
    rows = read_rows(tmp_path / "never" / "digests.rank0.jsonl")
    go(tmp_path / "run", config_of(data))
    again = read_rows(tmp_path / "run" / "digests.rank0.jsonl")
    before = {row["step"]: row["digest"] for row in again if not row["rollbacks"]}
    after = {row["step"]: row["digest"] for row in again if row["rollbacks"]}
    assert all(before[row["step"]] == row["digest"] for row in rows if row["step"] <= 7)
    assert min(after) == 5
    assert all(after[row["step"]] != row["digest"] for row in rows if row["step"] > 4)


KILLS = {
    "before the event": (Get3dTrainer, "why_held", 1),
    "before the first is set aside": (LocalStorage, "set_aside", 1),
    "between two that are set aside": (LocalStorage, "set_aside", 2),
    "before the state is loaded": (Get3dTrainer, "roll_back", 1),
    "before the rows are cut": (MetricLog, "rewind", 2),
    "before the first step": (Get3dTrainer, "_expect", 11),
    "in the second step": (Get3dTrainer, "_average", 12),
}


LONG = ("before the event", "before the rows are cut", "in the second step")


@pytest.mark.parametrize(
    ("place", "every"),
    [
        *(
            pytest.param(place, "every_steps=3", marks=[pytest.mark.long] * (place in LONG))
            for place in KILLS
        ),
        ("before the first step", "every_steps=0"),
    ],
)
def test_killed_anywhere_around_it_the_end_is_the_same(
    data: Path, tmp_path: Path, whole: str, monkeypatch: pytest.MonkeyPatch, place: str, every: str
) -> None:
    """Where it goes back does not depend on which other checkpoints are there, of which clocks decide."""
    kind, name, call = KILLS[place]
    real, calls = getattr(kind, name), []

    def dying(*args: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise KilledError
        return real(*args, **named)

    config = config_of(data, f"checkpoint.{every}", "checkpoint.keep_last=5")
    with monkeypatch.context() as patch:
        patch.setattr(kind, name, dying)
        with pytest.raises(KilledError):
            go(tmp_path / "run", config)
    ended = go(tmp_path / "run", config)
    assert ended.digest == whole
    assert set(rollbacks(tmp_path / "run")) == {(10, 4, 1)}
    assert steps_of(tmp_path / "run") == list(range(1, STEPS + 1))


@pytest.mark.parametrize("step", [5, 9, 10, 11])
def test_told_to_stop_around_it_the_end_is_the_same_and_no_step_is_lost(
    data: Path, tmp_path: Path, whole: str, step: int
) -> None:
    """At step 10 it is both told to leave and diverged: it saves, leaves, and goes back when it comes back."""

    def prepare(work: Any) -> None:
        do_step, done = work.step, []

        def told() -> None:
            do_step()
            done.append(1)
            if len(done) == step:
                work._session.notices.received.append((12, 0.0))

        work.step = told

    first = go(tmp_path / "run", config_of(data), prepare)
    reached = step if step <= 10 else 5
    assert (first.end, first.saved_step) == (End.SUSPENDED, reached)
    assert go(tmp_path / "run", config_of(data)).digest == whole
    assert rollbacks(tmp_path / "run") == [(10, 4, 1)]


def test_a_target_that_is_damaged_or_missing_is_computed_again(
    data: Path, tmp_path: Path, whole: str
) -> None:
    config = config_of(data, "checkpoint.every_steps=3", "checkpoint.keep_last=5")

    def prepare(work: Any) -> None:
        why_held = work.rollback_step

        def spoiled() -> int | None:
            target = why_held()
            if target is not None and not (tmp_path / "spoiled").exists():
                (tmp_path / "spoiled").touch()
                file = RunFolder(tmp_path / "run").checkpoints_dir / "step-000000004" / "state.json"
                file.write_bytes(file.read_bytes().replace(b"4", b"5", 1))
            return target

        work.rollback_step = spoiled

    assert go(tmp_path / "run", config, prepare).digest == whole
    assert rollbacks(tmp_path / "run") == [(10, 3, 0), (10, 4, 1)]


def test_a_target_that_cannot_be_written_ends_the_attempt(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = LocalStorage.write

    def full(self: LocalStorage, name: str, files: Any) -> None:
        if name == "step-000000004":
            raise StorageError("no space", "free some")
        write(self, name, files)

    monkeypatch.setattr(LocalStorage, "write", full)
    with pytest.raises(StorageError, match="step 4, to go back to, is missing again"):
        go(tmp_path / "run", config_of(data, "checkpoint.every_steps=3", "checkpoint.keep_last=5"))


def test_without_a_checkpoint_of_before_it_is_held(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoints, "load_up_to", lambda _, _step: None)
    with pytest.raises(HeldError, match="no checkpoint up to step 4 is left"):
        go(tmp_path / "run", config_of(data))


def test_it_goes_back_to_the_beginning_if_there_is_nothing_else(data: Path, tmp_path: Path) -> None:
    config = config_of(data, "guard.rollback_every_steps=100", "checkpoint.every_steps=3")

    def killed(work: Any) -> None:
        roll_back = work.roll_back

        def dying(state: Any) -> None:
            roll_back(state)
            raise KilledError

        work.roll_back = dying

    whole = go(tmp_path / "whole", config)
    assert rollbacks(tmp_path / "whole") == [(10, 0, 1)]
    with pytest.raises(KilledError):
        go(tmp_path / "run", config, killed)
    assert list_checkpoints(RunFolder(tmp_path / "run")) == [], (
        "all were set aside, and the run may begin again"
    )
    assert go(tmp_path / "run", config).digest == whole.digest


def test_one_that_never_recovers_is_held_where_it_was_good(data: Path, tmp_path: Path) -> None:
    config = config_of(data, "bad_draws=9", "checkpoint.every_steps=1")
    with pytest.raises(
        HeldError, match=r"step 10: 3 steps .* after 2 roll-backs to step 4 .* discriminator"
    ) as held:
        go(tmp_path / "run", config)
    assert "optim.lr_generator=0.001" in held.value.way_out
    assert rollbacks(tmp_path / "run") == [(10, 4, 1), (10, 4, 2), (10, 4, 2)]
    newest = list_checkpoints(RunFolder(tmp_path / "run"))[-1]
    assert newest.step == 4, "a person who mends it goes on from there"
    ended = go(tmp_path / "run", config_of(data, "bad_draws=0"))
    assert (ended.end, ended.start_step) == (End.FINISHED, 4)


def test_without_roll_backs_it_is_held_at_once(data: Path, tmp_path: Path) -> None:
    with pytest.raises(HeldError, match="step 10: 3 steps in a row were skipped; not finite or too large"):
        go(tmp_path / "run", config_of(data, "guard.max_rollbacks=0"))
    assert rollbacks(tmp_path / "run") == []
    assert list_checkpoints(RunFolder(tmp_path / "run")) == [], "nor are there checkpoints for that"


def test_the_newest_two_targets_are_kept(data: Path, tmp_path: Path) -> None:
    go(
        tmp_path / "run",
        config_of(data, "bad_draws=0", "checkpoint.every_steps=1", f"num_images={10 * BATCH}"),
    )
    steps = [info.step for info in list_checkpoints(RunFolder(tmp_path / "run"))]
    assert steps == [4, 8, 9, 10]


def test_what_was_shown_of_the_steps_after_it_is_taken_back(data: Path, tmp_path: Path) -> None:
    from tests.unit.report.test_tensorboard import shown

    folder = tmp_path / "run"
    settings = (
        "watch.tensorboard_every_s=0.001",
        "watch.preview_every_s=0.001",
        "watch.preview_shapes=1",
        "watch.budget=1000",
    )
    seen: dict[str, Any] = {}

    def prepare(work: Any) -> None:
        roll_back = work.roll_back

        def noting(state: Any) -> None:
            roll_back(state)
            seen["sheets"] = sorted(path.name for path in (folder / "samples").glob("*.png"))
            seen["curve"] = [step for step, _ in shown(RunFolder(folder))]

        work.roll_back = noting

    go(folder, config_of(data, *settings), prepare)
    assert seen["sheets"][-1] == f"{4 * BATCH:09d}.png"
    assert seen["curve"] == [1, 2, 3, 4]
    assert [step for step, _ in shown(RunFolder(folder))] == list(range(1, STEPS + 1))
    assert len(list((folder / "samples").glob(".rolled-back-*.png"))) == 6


def of_workers(folder: Path, config: diverging.Config) -> RunFolder:
    return new_run(folder, "tests.jobs_for_tests.diverging", config)


@pytest.mark.timeout(600)
def test_on_two_workers_killed_as_it_goes_back_the_end_is_that_of_one(
    data: Path, tmp_path: Path, whole: str
) -> None:
    run = of_workers(tmp_path / "run", config_of(data, "checkpoint.every_steps=3"))
    workers = start(run, 2)
    wait_for_event(run, "rollback")
    stop(workers, signal.SIGKILL)
    wait(workers)
    assert run_to_end(run, 2) == whole
    assert set(rollbacks(run.path)) == {(10, 4, 1)}
    assert steps_of(run.path) == list(range(1, STEPS + 1))
    rows = [read_rows(run.path / f"digests.rank{rank}.jsonl") for rank in (0, 1)]
    found: dict[tuple[int, int], str] = {}
    for row in [*rows[0], *rows[1]]:
        assert found.setdefault((row["step"], row["rollbacks"]), row["digest"]) == row["digest"]


@pytest.mark.timeout(600)
def test_two_workers_that_never_recover_are_held_and_the_run_says_why(data: Path, tmp_path: Path) -> None:
    run = of_workers(tmp_path / "run", config_of(data, "bad_draws=9", "guard.max_rollbacks=1"))
    assert wait(start(run, 2)) == [93, 93], logs(run)
    outcome = run.outcome(1)
    assert outcome is not None
    assert (outcome.cause, outcome.saved_step) == (Cause.DIVERGED, 4)
    assert "after 1 roll-backs to step 4 before" in outcome.message
    row = row_of(gather(run))
    assert (row.state, row.rollbacks) == ("HELD", 1)
    assert "rolled back from step 10 to 4 (1st time)" in row.why
    facts = read_run(run.path)
    assert dict(details(facts))["rolled back"] == "from step 10 to 4"


def wait_for_event(run: RunFolder, event: str, timeout_s: float = 120) -> None:
    end = time.monotonic() + timeout_s
    while not any(row["event"] == event for row in read_rows(run.events_path)):
        assert time.monotonic() < end, logs(run)
        time.sleep(0.005)
