"""What `status` says of a run, as a function of its files and of the scheduler; torn files never break it."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from get3d_cluster.cli import facts as facts_module
from get3d_cluster.cli.entry import run as command
from get3d_cluster.cli.facts import Facts, gather
from get3d_cluster.cli.output import duration, size
from get3d_cluster.cli.status import Row, row_of, state_of
from get3d_cluster.cli.status_table import one_line, short_list, status_table
from get3d_cluster.core.job import Cause, JobSpec, Outcome, RetryConfig
from get3d_cluster.runtime.goodput import Goodput
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers import SCHEDULERS
from get3d_cluster.schedulers.base import Standing
from tests.jobs_for_tests.fake_scheduler import FakeScheduler

SPEC = JobSpec(name="a", job="tests.jobs_for_tests.tiny", kind="steps", created="2026-01-01T00:00:00+00:00")


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeScheduler.reset()
    monkeypatch.setitem(SCHEDULERS, "local", "tests.jobs_for_tests.fake_scheduler:FakeScheduler")


def outcome(attempt: int, cause: Cause, **values: Any) -> Outcome:
    return Outcome(attempt=attempt, cause=cause, exit_code=1, **values)


def facts(*causes: Cause, standing: str = "absent", **values: Any) -> Facts:
    outcomes = [outcome(number, cause) for number, cause in enumerate(causes, start=1)]
    given = {
        "attempts": range(1, len(causes) + 1),
        "outcomes": outcomes,
        "spec": SPEC,
        "is_done": False,
    } | values
    return Facts(name="a", path="/runs/a", standing=Standing(state=standing), **given)


def elements(*ends: tuple[int, Cause], **values: Any) -> Facts:
    """Return the facts of a job array whose elements ended so, one attempt each."""
    outcomes = [
        outcome(number, cause, element=element) for number, (element, cause) in enumerate(ends, start=1)
    ]
    return facts(**{"outcomes": outcomes, "attempts": range(1, len(ends) + 1)} | values)


@pytest.mark.parametrize(
    ("given", "state", "why"),
    [
        (facts(is_done=True), "DONE", ""),
        (facts(Cause.CRASHED, is_done=True, standing="running"), "DONE", ""),
        (facts(), "NEW", "submit"),
        (facts(standing="pending"), "PENDING", ""),
        (facts(Cause.PREEMPTED, standing="pending"), "PENDING", ""),
        (facts(Cause.CRASHED, standing="pending"), "BACKING-OFF", ""),
        (facts(Cause.CRASHED, standing="pending", retry=RetryConfig(backoff_s=0)), "PENDING", ""),
        (facts(Cause.SUSPENDED, standing="running"), "RUNNING", ""),
        (facts(Cause.SUSPENDED), "SUSPENDED", "saved at step 0"),
        (facts(Cause.CANCELLED), "CANCELLED", ""),
        (facts(Cause.REFUSED), "FAILED", ""),
        (facts(Cause.DIVERGED), "HELD", "diverged"),
        (facts(*[Cause.CRASHED] * 3), "HELD", "3 crashes"),
        (facts(Cause.PREEMPTED), "LOST", "left as preempted"),
        (facts(Cause.PREEMPTED, attempts=[1, 2]), "LOST", "attempt 2 left no outcome"),
        (facts(attempts=[1], progress_age_s=2.0), "RUNNING", "started by hand"),
        (facts(attempts=[1], progress_age_s=200.0), "LOST", "attempt 1 left no outcome"),
        (facts(attempts=[1], progress_age_s=2.0, standing="unknown"), "RUNNING", ""),
        (facts(spec=None, standing="unknown"), "LOST", ""),
        # The scheduler is silent: what the files tell last, never that nothing of it runs.
        (facts(standing="unknown"), "PENDING", "UNKNOWN: the scheduler does not answer; last known PENDING"),
        (facts(attempts=[1], standing="unknown"), "RUNNING", "UNKNOWN"),
        (facts(attempts=[1], progress_age_s=300.0, standing="unknown"), "RUNNING", "last progress 5 min ago"),
        (facts(Cause.PREEMPTED, standing="unknown"), "PENDING", "UNKNOWN"),
        (facts(Cause.CRASHED, attempts=[1, 2], standing="unknown"), "RUNNING", "UNKNOWN"),
        (facts(Cause.FINISHED, standing="unknown"), "PENDING", "UNKNOWN"),
        (facts(Cause.SUSPENDED, standing="unknown"), "SUSPENDED", "UNKNOWN"),
        (facts(held="3 crashes", standing="unknown"), "HELD", "UNKNOWN"),
        (facts(attempts=[1], standing="unknown", silent_s=200.0), "RUNNING", "has not answered for 3 min"),
        (facts(is_done=True, standing="unknown"), "DONE", ""),
        # What the scheduler knows of an attempt that left no word.
        (facts(attempts=[1], post_mortem=outcome(1, Cause.NODE_FAILURE)), "LOST", "left as node-failure"),
        (facts(attempts=[1], post_mortem=outcome(1, Cause.CANCELLED)), "CANCELLED", ""),
        (
            facts(*[Cause.CRASHED] * 2, attempts=[1, 2, 3], post_mortem=outcome(3, Cause.CRASHED)),
            "HELD",
            "3 crashes",
        ),
        # Elements of a job array come back each alone.
        (elements((1, Cause.FINISHED), (2, Cause.PREEMPTED), standing="running"), "RUNNING", ""),
        (elements((1, Cause.FINISHED), attempts=[1, 2, 3], standing="running"), "RUNNING", ""),
        (elements((1, Cause.PREEMPTED), (1, Cause.FINISHED), (2, Cause.FINISHED)), "LOST", "not DONE"),
        (elements((1, Cause.PREEMPTED), (2, Cause.FINISHED)), "LOST", "element 1"),
        (elements((1, Cause.FINISHED), attempts=[1, 2]), "LOST", "attempt 2 left no outcome"),
        (elements((1, Cause.SUSPENDED), (2, Cause.FINISHED), (3, Cause.SUSPENDED)), "SUSPENDED", "element 1"),
        (elements((1, Cause.SUSPENDED), attempts=[1, 2]), "SUSPENDED", ""),
        (elements((1, Cause.REFUSED), (2, Cause.SUSPENDED)), "FAILED", "element 1"),
        (elements(*[(4, Cause.CRASHED)] * 3, (2, Cause.PREEMPTED)), "HELD", "3 crashes"),
        (elements((1, Cause.CRASHED), (2, Cause.CRASHED), (3, Cause.CRASHED)), "LOST", "left as crashed"),
        (
            elements((1, Cause.CRASHED), (2, Cause.CRASHED), (3, Cause.CRASHED), standing="pending"),
            "BACKING-OFF",
            "",
        ),
    ],
)
def test_the_state_follows_from_the_facts(given: Facts, state: str, why: str) -> None:
    found, reason = state_of(given)
    assert str(found) == state
    assert why in reason


def test_a_row_counts_and_estimates() -> None:
    progress = {"step": 25, "num_steps": 100, "epoch": 3, "images": 800, "active_s": 50.0}
    given = facts(
        Cause.PREEMPTED,
        Cause.CRASHED,
        Cause.PREEMPTED,
        Cause.TIME_LIMIT,
        standing="running",
        progress=progress,
    )
    row = row_of(given)
    assert (row.preempted, row.failed, row.attempt, row.percent, row.eta_s) == (2, 1, 4, 25.0, 150.0)
    assert "RUNNING  3 / 25/100  25.0 %  2 min left  attempt 4" in one_line(row)
    assert row_of(facts(standing="running")).percent is None


def test_items_are_timed_from_where_the_attempt_began() -> None:
    items = replace(SPEC, kind="items")
    progress = {"step": 25, "num_steps": 100, "active_s": 50.0}
    before = [outcome(1, Cause.PREEMPTED, saved_step=20)]
    row = row_of(facts(spec=items, outcomes=before, attempts=[1, 2], standing="running", progress=progress))
    assert row.eta_s == 750.0


def test_items_tell_their_speed_and_how_many_came_to_nothing() -> None:
    items = replace(SPEC, kind="items")
    progress = {"step": 25, "num_steps": 100, "start_step": 5, "active_s": 10.0, "images": 500, "given_up": 3}
    row = row_of(facts(spec=items, attempts=[1], standing="running", progress=progress))
    assert (row.images_per_s, row.given_up, row.why) == (40.0, 3, "40 images/s; 3 given up")
    done = row_of(facts(spec=items, attempts=[1], is_done=True, progress=progress))
    assert (done.images_per_s, done.why) == (None, "3 given up")


def make_run(runs: Path, name: str = "a") -> RunFolder:
    run = RunFolder(runs / name)
    run.path.mkdir(parents=True)
    run.write_spec(SPEC)
    run.config_path.write_text("retry: {max_crashes: 1}\n")
    return run


def test_everything_is_read_from_the_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.write_outcome(
        outcome(run.new_attempt(), Cause.CRASHED, message="rank 1: ValueError: bad\nmore", hosts=("n1",))
    )
    (run.checkpoints_dir / "step-000000040").mkdir(parents=True)
    (run.checkpoints_dir / "step-000000030").mkdir()
    (run.checkpoints_dir / ".writing-step-000000050").mkdir()
    row = row_of(gather(run))
    assert (row.state, row.saved_step, row.step, row.hosts) == ("HELD", 40, 40, ("n1",))
    assert row.why == "1 crashes without a new checkpoint: rank 1: ValueError: bad"
    assert row.saved_age_s is not None
    assert row.saved_age_s < 60


def test_the_measured_step_stands_in_for_missing_progress(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.metrics_path.write_text('{"step": 6}\n{"step": 7, "loss": 1}\n{"step": 8, "lo')
    assert row_of(gather(run)).step == 7
    run.progress_path.write_text('{"step": 9, "num_steps": 10, "unit": "steps", "t": 1}')
    assert row_of(gather(run)).percent == 90.0


@pytest.mark.parametrize("torn", ["", "{", "[]", '{"attempt": 1}', "\0\0\0", '{"cause": "unheard-of"}'])
@pytest.mark.parametrize(
    "name", ["progress.json", "metrics.jsonl", "config.yaml", "spec.json", "attempts/0001/outcome.json"]
)
def test_a_torn_file_never_breaks_the_list(
    tmp_path: Path, name: str, torn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, "b")
    run = make_run(tmp_path)
    run.new_attempt()
    (run.path / name).write_text(torn)
    assert command(["status", "--runs", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["a", "b"]
    assert rows[0]["state"] == "LOST"
    assert command(["status", "--runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[0].split()[:3] == ["NAME", "STATE", "EPOCH/STEP"]


def test_a_row_is_one_line_even_in_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, "a-run-with-a-rather-long-name-as-people-like-them")
    run.write_outcome(outcome(run.new_attempt(), Cause.SUSPENDED, message="[red]saved[/red] at step 12"))
    assert command(["status", "--runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "[red]saved[/red] at step 12" in lines[1]
    assert "\033" not in lines[1]


def test_no_runs_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["status", "--runs", str(tmp_path / "none")]) == 0
    assert "no runs in" in capsys.readouterr().out
    assert command(["status", "--runs", str(tmp_path / "none"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_an_unknown_scheduler_is_told_in_the_row(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.spec_path.write_text(run.spec_path.read_text().replace('"local"', '"pbs"'))
    assert "pbs" in row_of(gather(run)).why


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (-5, "0 s"), (0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2.0 h"), (2e5, "2.3 d")],
)
def test_durations_are_in_the_unit_that_says_enough(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_sizes_are_in_words() -> None:
    assert [size(number) for number in (0, 999, 1000, 2.5e6, 3e13)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "2.5 MB",
        "30.0 TB",
    ]


def test_elements_are_counted_once_each_and_attempts_all() -> None:
    row = row_of(
        elements(
            (1, Cause.PREEMPTED),
            (2, Cause.PREEMPTED),
            (1, Cause.FINISHED),
            (3, Cause.CRASHED),
            attempts=range(1, 8),
        )
    )
    assert (row.attempt, row.num_elements, row.preempted, row.failed) == (7, 3, 2, 1)
    assert row.causes == {"preempted": 2, "finished": 1, "crashed": 1}
    assert row.last_causes == ["crashed", "preempted"]


def test_nodes_that_failed_twice_are_named_until_the_run_is_done() -> None:
    outcomes = [outcome(number, Cause.NODE_FAILURE, failed_hosts=("node3",)) for number in (1, 2)]
    given = facts(outcomes=outcomes, attempts=[1, 2, 3], standing="running")
    row = row_of(given)
    assert (row.without, row.why) == (("node3",), "without node3: failed twice")
    assert row_of(replace(given, is_done=True)).why == ""
    assert row_of(facts(outcomes=outcomes[:1], attempts=[1], standing="pending")).without == ()


def test_steps_beyond_the_checkpoint_are_at_risk() -> None:
    progress = {"step": 130, "num_steps": 200}
    given = facts(standing="running", attempts=[1], progress=progress, saved_step=100, saved_age_s=30.0)
    assert row_of(given).at_risk_steps == 30
    assert row_of(replace(given, spec=replace(SPEC, kind="items"))).at_risk_steps is None
    assert row_of(replace(given, progress={"step": 90})).at_risk_steps == 0


def test_many_runs_ask_the_scheduler_a_bounded_number_of_times(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, f"r{number:02d}") for number in range(50)]
    for run in runs:
        run.new_attempt()
    FakeScheduler.endings = {(run.name, 1): outcome(1, Cause.PREEMPTED, message="by a job") for run in runs}
    inquiry = facts_module.Inquiry()
    states = [state_of(found) for found in inquiry.look(runs)]
    asked = [question for question in FakeScheduler.asked if question[0] == "post_mortem"]
    assert len(asked) == facts_module.MOST_POST_MORTEMS
    assert len(FakeScheduler.asked) == 50 + len(asked)
    assert FakeScheduler.opened == 1
    assert states[0] == ("LOST", "left as preempted and is not queued: by a job")
    assert states[-1] == ("LOST", "attempt 1 left no outcome")
    for _ in range(10):
        found = inquiry.look(runs)
    assert all(facts.post_mortem for facts in found)  # while one watches, each is asked for once
    asked = [question for question in FakeScheduler.asked if question[0] == "post_mortem"]
    assert len(asked) == len(set(asked)) == 50
    assert not any((run.attempt_dir(1) / "outcome.json").exists() for run in runs)


def test_a_run_that_is_done_needs_no_scheduler(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.done_path.write_text("{}")
    FakeScheduler.standings["a"] = Standing(state="unknown", why="down")
    assert row_of(gather(run)).state == "DONE"
    assert FakeScheduler.asked == []


def test_silence_is_timed_while_one_watches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, clock = make_run(tmp_path), iter([10.0, 250.0, 260.0])
    monkeypatch.setattr(facts_module.time, "monotonic", lambda: next(clock))
    inquiry = facts_module.Inquiry()
    FakeScheduler.standings["a"] = Standing(state="unknown", why="timeout")
    assert [inquiry.look([run])[0].silent_s for _ in range(2)] == [0.0, 240.0]
    FakeScheduler.standings["a"] = Standing(state="running")
    assert inquiry.look([run])[0].silent_s is None
    FakeScheduler.standings["a"] = Standing(state="unknown", why="timeout")
    assert inquiry.look([run])[0].silent_s == 0.0


def shown(rows: list[Row], width: int) -> list[str]:
    screen = Console(width=width, file=io.StringIO(), highlight=False)
    screen.print(status_table(rows, width))
    return screen.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 160, 240])
def test_every_fact_is_shown_on_a_terminal_of_any_width(width: int) -> None:
    progress = {"step": 1250, "num_steps": 80_000, "epoch": 3, "active_s": 500.0}
    standing = Standing(state="running", why="attempt 5 is computing", hosts=("node1", "node2", "node4"))
    given = replace(
        facts(
            Cause.PREEMPTED,
            Cause.CRASHED,
            progress=progress,
            saved_step=1200,
            saved_age_s=600.0,
            goodput=Goodput(productive_s=93.1, saving_s=6.9),
        ),
        standing=standing,
    )
    lines = shown([row_of(given)], width)
    assert all(len(line) <= width for line in lines)
    text = " ".join(" ".join(lines).split())
    for part in (
        "RUNNING",
        "3 / 1250/80000",
        "1.6",
        "8.8 h",
        "10 min ago",
        "50",
        "93 %",
        "node[1-2,4]",
        "computing",
    ):
        assert part in text
    assert lines[0].split()[:2] == ["NAME", "STATE"]


@pytest.mark.parametrize(
    ("hosts", "text"),
    [
        ([], ""),
        (["login"], "login"),
        (["node1"], "node1"),
        (["node10", "node9", "node11", "node10"], "node[9-11]"),
        (["n01", "n02", "n1"], "n1,n[01-02]"),
        (["a1", "b2", "x"], "x,a1,b2"),
    ],
)
def test_names_of_nodes_are_shortened_as_slurm_does(hosts: list[str], text: str) -> None:
    assert short_list(hosts) == text
