"""What a cluster makes different: ends that only the scheduler knows, long waits, logs that stay empty."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from get3d_cluster.cli import logs, stopping, watch
from get3d_cluster.cli.endings import write_post_mortems
from get3d_cluster.cli.entry import run as command
from get3d_cluster.cli.facts import Facts
from get3d_cluster.cli.status import Row, row_of
from get3d_cluster.core.job import Cause, JobSpec, Outcome
from get3d_cluster.runtime.run_folder import RunFolder, write_json
from get3d_cluster.schedulers import SCHEDULERS
from get3d_cluster.schedulers.base import Standing
from tests.jobs_for_tests.fake_scheduler import FakeScheduler

JOB = "tests.jobs_for_tests.tiny"


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeScheduler.reset()
    monkeypatch.setitem(SCHEDULERS, "local", "tests.jobs_for_tests.fake_scheduler:FakeScheduler")


def make_run(runs: Path, name: str = "a") -> RunFolder:
    run = RunFolder(runs / name)
    run.path.mkdir(parents=True)
    run.write_spec(JobSpec(name=name, job=JOB, kind="steps", created="now"))
    run.config_path.write_text("resources: {nodes: 2}\n")
    return run


def ended(attempt: int, cause: Cause, **values: object) -> Outcome:
    return Outcome(attempt=attempt, cause=cause, exit_code=76, message=f"as {cause}", **values)


def left_without_a_word(runs: Path, name: str, cause: Cause | None) -> RunFolder:
    """Make a run whose newest attempt left no outcome; the scheduler knows ``cause``."""
    run = make_run(runs, name)
    number = run.new_attempt()
    if cause:
        FakeScheduler.endings[name, number] = ended(number, cause)
    return run


# --- ends that only the scheduler knows -------------------------------------------------------------------------------


def test_status_shows_what_the_scheduler_knows_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = left_without_a_word(tmp_path, "a", Cause.NODE_FAILURE)
    assert command(["status", "--runs", str(tmp_path), "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert (row["state"], row["last_cause"]) == ("LOST", "node-failure")
    assert row["why"] == "left as node-failure and is not queued: as node-failure"
    assert run.outcome(1) is None


def test_resume_by_cause_finds_attempts_that_left_no_word(tmp_path: Path) -> None:
    causes = {"p": Cause.PREEMPTED, "n": Cause.NODE_FAILURE, "x": None}
    runs = {name: left_without_a_word(tmp_path, name, cause) for name, cause in causes.items()}
    assert command(["resume", "--all", "--cause", "node-failure", "--runs", str(tmp_path)]) == 0
    assert FakeScheduler.calls == [("submit", "n", 2, [])]
    assert command(["resume", "--all", "--runs", str(tmp_path)]) == 0
    assert [call[1] for call in FakeScheduler.calls] == ["n", "p", "x"]
    assert [run.outcome(1) for run in runs.values()] == [
        FakeScheduler.endings["p", 1],
        FakeScheduler.endings["n", 1],
        None,
    ]


@pytest.mark.parametrize("words", [["resume", "a"], ["submit", JOB, "--name", "a", "nodes=2"]])
def test_a_run_that_comes_back_has_written_how_its_attempt_ended(tmp_path: Path, words: list[str]) -> None:
    run = left_without_a_word(tmp_path, "a", Cause.CANCELLED)
    assert command([*words, "--runs", str(tmp_path)]) == 0
    assert run.outcomes() == [FakeScheduler.endings["a", 1]]
    assert FakeScheduler.calls == [("submit", "a", 2, [])]


@pytest.mark.parametrize("state", ["running", "pending", "unknown"])
def test_the_word_of_an_attempt_that_may_live_is_waited_for(tmp_path: Path, state: str) -> None:
    run = left_without_a_word(tmp_path, "a", Cause.PREEMPTED)
    FakeScheduler.standings["a"] = Standing(state=state)
    assert command(["resume", "--all", "--runs", str(tmp_path)]) == 0
    assert run.outcomes() == []
    assert FakeScheduler.calls == []


def test_an_outcome_that_an_attempt_wrote_itself_is_never_replaced(tmp_path: Path) -> None:
    run = left_without_a_word(tmp_path, "a", Cause.CRASHED)
    own = ended(1, Cause.SUSPENDED)
    run.write_outcome(own)
    assert command(["resume", "a", "--runs", str(tmp_path)]) == 0
    assert run.outcomes() == [own]


def test_every_element_of_an_array_is_looked_after_but_only_the_newest_attempt_of_a_job(
    tmp_path: Path,
) -> None:
    for name, element in (("array", 4), ("job", None)):
        run = make_run(tmp_path, name)
        for number in range(1, 5):
            run.new_attempt()
            FakeScheduler.endings[name, number] = ended(number, Cause.PREEMPTED, element=element)
        run.write_outcome(ended(2, Cause.CRASHED, element=element))
        write_post_mortems(run)
    assert [outcome.attempt for outcome in RunFolder(tmp_path / "array").outcomes()] == [1, 2, 3, 4]
    assert [outcome.attempt for outcome in RunFolder(tmp_path / "job").outcomes()] == [2, 4]


def test_an_array_comes_back_for_the_cause_of_any_of_its_elements(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for cause, element in ((Cause.PREEMPTED, 1), (Cause.CRASHED, 2), (Cause.FINISHED, 3)):
        run.write_outcome(ended(run.new_attempt(), cause, element=element))
    for cause, wanted in ((Cause.PREEMPTED, True), (Cause.CRASHED, True), (Cause.HUNG, False)):
        assert bool(stopping.resumable([run], cause)) is wanted


# --- waits ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let waiting take no time; the entries are the pauses."""
    pauses: list[float] = []
    monkeypatch.setattr(stopping.time, "monotonic", lambda: sum(pauses))
    monkeypatch.setattr(stopping.time, "sleep", pauses.append)
    return pauses


def leaves_after(monkeypatch: pytest.MonkeyPatch, run: RunFolder, standings: list[str]) -> None:
    script = iter(standings)

    def standing(self: FakeScheduler, asked: RunFolder) -> Standing:
        return Standing(state=next(script, "absent"), why="is leaving")

    def stop(self: FakeScheduler, told: RunFolder, cause: Cause, *, now: bool = False) -> None:
        run.write_outcome(replace(ended(1, cause), message="saved at step 7"))

    monkeypatch.setattr(FakeScheduler, "standing", standing)
    monkeypatch.setattr(FakeScheduler, "stop", stop)


def test_a_stop_that_takes_a_minute_is_watched_with_few_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    run.new_attempt()
    leaves_after(monkeypatch, run, ["running"] * 20 + ["unknown"] * 3 + ["running"] * 10)
    assert command(["suspend", "a", "--runs", str(tmp_path)]) == 0
    assert clock[0] <= 0.1
    assert max(clock) == clock[-1] == stopping.LONGEST_POLL_S
    assert sum(clock) > 45
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("suspending a: it saves first")
    assert 5 <= len([line for line in lines if "leaving for" in line and line.endswith(": is leaving")]) <= 12
    assert lines[-1] == "a: suspended, saved at step 7"


def test_a_wait_without_end_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    run.config_path.write_text("resources: {grace_s: 100}\n")
    run.new_attempt()
    leaves_after(monkeypatch, run, ["running"] * 1000)
    assert command(["cancel", "a", "--runs", str(tmp_path)]) == 0
    assert sum(clock) > stopping.LEAVE_S + 100
    assert f"still leaving after 5 min: is leaving; watch it with: python launch.py status {run.path}" in (
        capsys.readouterr().out
    )


def test_ctrl_c_ends_the_waiting_not_the_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    run.new_attempt()
    leaves_after(monkeypatch, run, ["running"] * 1000)

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stopping.time, "sleep", interrupt)
    assert command(["suspend", "a", "--runs", str(tmp_path)]) == 0
    assert "a is still leaving" in capsys.readouterr().out


# --- watching ---------------------------------------------------------------------------------------------------------


def row(name: str, state: str, attempt: int = 1) -> Row:
    facts = Facts(name=name, path=name, spec=None, is_done=False, standing=Standing(state="absent"))
    return replace(row_of(facts), state=state, attempt=attempt, why="")


def test_a_watched_run_has_a_line_for_each_change_and_now_and_then() -> None:
    lines = watch.Lines()
    states = [(0, "PENDING", 0), (2, "PENDING", 0), (4, "RUNNING", 1), (6, "RUNNING", 1), (8, "RUNNING", 2)]
    said = [lines.of([row("a", state, attempt), row("b", "DONE")], now) for now, state, attempt in states]
    assert [[line.split()[0] for line in each] for each in said] == [["a", "b"], [], ["a"], [], ["a"]]
    assert len(lines.of([row("a", "RUNNING", 2), row("b", "DONE")], 8 + watch.LINE_S)) == 1


def test_watching_ends_when_all_have_ended_but_not_at_a_gap_before_a_requeue() -> None:
    patience = watch.Patience()
    assert not patience.is_over([row("a", "DONE"), row("b", "RUNNING")], 0.0)
    assert not patience.is_over([row("a", "DONE"), row("b", "LOST")], 1.0)
    assert not patience.is_over([row("a", "DONE"), row("b", "RUNNING")], watch.LOST_S)
    assert not patience.is_over([row("a", "DONE"), row("b", "LOST")], watch.LOST_S + 1)
    assert patience.is_over([row("a", "DONE"), row("b", "LOST")], 2 * watch.LOST_S + 1)
    assert patience.is_over([row("a", "DONE"), row("b", "SUSPENDED")], 2 * watch.LOST_S + 1)


def test_a_watched_pipe_gets_plain_lines_until_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    FakeScheduler.standings["a"] = Standing(state="pending", why="waits for nodes")
    steps = iter([lambda: FakeScheduler.standings.clear() or run.done_path.write_text("{}")])
    monkeypatch.setattr(watch.time, "sleep", lambda _: next(steps)())
    assert command(["status", "--watch", "--runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == ["a  PENDING  0 / 0  waits for nodes", "a  DONE  0 / 0"]


def test_ctrl_c_ends_the_watching(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path)
    FakeScheduler.standings["a"] = Standing(state="running")

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", interrupt)
    assert command(["status", "a", "-w", "--runs", str(tmp_path)]) == 0
    assert "RUNNING" in capsys.readouterr().out


# --- logs -------------------------------------------------------------------------------------------------------------


def slurm_attempt(
    run: RunFolder, texts: list[str], *, job: str, element: int | None = None, output: str = ""
) -> int:
    number = run.new_attempt()
    for rank, text in enumerate(texts):
        run.log_path(number, rank).write_text(text)
    place = {"job": job, "hosts": ["node1"], "element": element, "output": f"slurm/{job}_0_log.out"}
    write_json(run.attempt_dir(number) / "slurm.json", place)
    run.slurm_dir.mkdir(exist_ok=True)
    (run.slurm_dir / f"{job}_0_log.out").write_text(output)
    return number


def said(run: RunFolder, *words: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert command(["logs", str(run.path), *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_what_slurm_wrote_stands_in_for_a_log_that_is_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    slurm_attempt(run, ["fine\n", "fine too\n"], job="5", output="srun: nothing of interest\n")
    slurm_attempt(run, ["half\n", ""], job="6", output="slurmstepd: error: node2 is gone\n")
    slurm_attempt(run, [], job="7", output="module: command not found\n")
    (run.slurm_dir / "6_1_log.out").write_text("slurm_task.sh: no such file\n")  # of srun's second task
    run.write_outcome(ended(2, Cause.NODE_FAILURE))
    assert said(run, capsys=capsys) == [
        "=== attempt 1 ===", "[rank 0] fine", "[rank 1] fine too",
        "=== attempt 2: node-failure after 0 s, saved step 0 ===",
        "[rank 0] half", "[slurm] slurmstepd: error: node2 is gone",
        "[slurm] slurm_task.sh: no such file",
        "=== attempt 3 ===", "[slurm] module: command not found",
    ]  # fmt: skip
    assert said(run, "--attempt", "2", "--rank", "0", capsys=capsys)[1:] == ["half"]
    assert said(run, "--attempt", "2", "--rank", "1", capsys=capsys)[1:] == [
        "[slurm] slurmstepd: error: node2 is gone",
        "[slurm] slurm_task.sh: no such file",
    ]


def test_a_job_that_never_became_an_attempt_is_not_silent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    run.slurm_dir.mkdir()
    (run.slurm_dir / "8_0_log.out").write_text("No module named get3d_cluster\n")
    assert said(run, capsys=capsys) == [
        "=== slurm/8_0_log.out: no attempt began ===",
        "No module named get3d_cluster",
    ]


def test_elements_of_an_array_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    slurm_attempt(run, ["one\n"], job="9", element=3)
    slurm_attempt(run, ["two\n"], job="10", element=4)
    run.write_outcome(ended(1, Cause.PREEMPTED, element=3))
    assert said(run, capsys=capsys) == [
        "=== attempt 1 (element 3): preempted after 0 s, saved step 0 ===", "one",
        "=== attempt 2 (element 4) ===", "two",
    ]  # fmt: skip


def test_a_log_that_is_begun_anew_is_followed_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("first start\nhal")
    reader = logs._Reader(path)
    assert reader.lines(ended=False) == ["first start"]
    path.write_text("second\n")
    assert reader.lines(ended=False) == ["second"]
    with path.open("a") as file:
        file.write("third start\n")
    assert reader.lines(ended=False) == ["third start"]


def test_stacks_of_the_newest_hang_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    for number in range(1, 4):
        slurm_attempt(run, ["x\n"], job=str(number))
    assert command(["logs", str(run.path), "--stacks"]) == 2
    assert "left no stacks: no hang was found" in capsys.readouterr().err
    for number in (1, 2):
        for rank in range(2):
            path = run.attempt_dir(number) / f"stacks.rank{rank:04d}.txt"
            path.write_text(f"attempt {number} rank {rank} in all_reduce\n")
    run.write_outcome(ended(2, Cause.HUNG))
    assert said(run, "--stacks", capsys=capsys) == [
        "=== attempt 2: hung after 0 s, saved step 0 ===",
        "--- stacks.rank0000 ---", "attempt 2 rank 0 in all_reduce",
        "--- stacks.rank0001 ---", "attempt 2 rank 1 in all_reduce",
    ]  # fmt: skip
    assert said(run, "--stacks", "--attempt", "1", "--rank", "1", capsys=capsys)[-1] == (
        "attempt 1 rank 1 in all_reduce"
    )
    assert command(["logs", str(run.path), "--stacks", "--rank", "7"]) == 2
    assert "of rank 7" in capsys.readouterr().err


def test_following_asks_the_scheduler_no_more_often_than_every_two_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)
    FakeScheduler.standings["a"] = Standing(state="running")
    now = [0.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    ending = watch.Ending(run)
    for now[0] in [0.0, 0.3, 0.6, 1.9, 2.1, 2.4]:
        assert not ending()
    assert len(FakeScheduler.asked) == 2
    run.done_path.write_text("{}")
    assert ending()  # seen at once
