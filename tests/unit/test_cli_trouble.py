"""What ``run`` says on stderr, and which state ``status`` shows, for each way a run can stand still."""

from dataclasses import replace
from pathlib import Path

import pytest

from get3d_cluster.cli.attached import trouble
from get3d_cluster.cli.facts import Facts, gather
from get3d_cluster.cli.status import row_of
from get3d_cluster.core.job import Cause, JobSpec, Outcome
from get3d_cluster.runtime.run_folder import RunFolder, write_json
from get3d_cluster.schedulers.base import Standing
from get3d_cluster.schedulers.ending import Exit, corrected

CRASH = Outcome(attempt=1, cause=Cause.CRASHED, exit_code=5, message="cannot write /disk/x: full\nfree space")
REFUSED = Outcome(attempt=1, cause=Cause.REFUSED, exit_code=2, message="data.path=/x is missing\npack it")


def facts(*outcomes: Outcome, **more: object) -> Facts:
    spec = JobSpec(name="run", job="train", kind="steps", created="now")
    values = {
        "standing": Standing(state="absent"),
        "attempts": [outcome.attempt for outcome in outcomes],
    } | more
    return Facts(name="run", path="/runs/run", spec=spec, is_done=False, outcomes=outcomes, **values)


@pytest.mark.parametrize(
    ("given", "state", "why"),
    [
        (facts(stopped="cancelled"), "CANCELLED", "cancelled before it started"),
        (facts(stopped="suspended"), "SUSPENDED", "suspended before it started"),
        (facts(CRASH, stopped="suspended"), "SUSPENDED", "cannot write /disk/x: full"),
        (facts(CRASH, held="3 crashes"), "HELD", "3 crashes: cannot write /disk/x: full"),
        (facts(CRASH, held="3 crashes", standing=Standing(state="pending")), "BACKING-OFF", ": cannot write"),
        (facts(stopped="nonsense"), "NEW", "not queued"),
    ],
)
def test_stops_and_holds_show_until_the_run_is_queued_again(given: Facts, state: str, why: str) -> None:
    row = row_of(given)
    assert row.state == state
    assert why in row.why


def test_the_files_of_the_scheduler_are_read(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.write_spec(JobSpec(name="run", job="train", kind="steps", created="now"))
    write_json(run.hold_path, {"why": "too bad", "t": 0})
    assert row_of(gather(run)).state == "HELD"
    run.release()
    write_json(run.stopped_path, {"cause": "cancelled", "t": 0})
    assert row_of(gather(run)).state == "CANCELLED"
    run.release()
    assert row_of(gather(run)).state == "NEW"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (facts(REFUSED), ["data.path=/x is missing", "pack it"]),
        (facts(replace(REFUSED, message="only this")), ["only this", "mend that, then"]),
        (
            facts(CRASH, held="3 crashes"),
            ["run is held: 3 crashes: cannot write", "launch.py resume /runs/run"],
        ),
        (
            facts(replace(CRASH, cause=Cause.DIVERGED, message="not finite\nlower the rates")),
            ["run is held: the training diverged: not finite", "lower the rates"],
        ),
        (facts(CRASH, stopped="suspended"), ["cannot write", "free space", "launch.py resume /runs/run"]),
        (facts(replace(CRASH, cause=Cause.SUSPENDED, exit_code=75)), []),
        (facts(replace(CRASH, cause=Cause.FENCED, exit_code=77)), ["left as fenced", "launch.py resume"]),
    ],
)
def test_trouble_is_told_in_three_lines_with_the_next_command(given: Facts, said: list[str]) -> None:
    lines = trouble(RunFolder(Path("/runs/run")), row_of(given), given.outcomes[-1])
    assert len(lines) == len(said)
    for line, part in zip(lines, said, strict=True):
        assert part in line


def test_a_killed_peer_is_the_reason_that_rank_0_could_not_know() -> None:
    killed, failed = Exit(rank=1, code=-9, at=0.0), Exit(rank=1, code=1, at=0.0)
    written = Outcome(attempt=1, cause=Cause.CRASHED, exit_code=1, message="connection closed by peer")
    assert corrected(written, killed).message.startswith("rank 1 was killed by SIGKILL\n")
    assert corrected(written, failed) == written
    assert corrected(written, replace(killed, rank=0)) == written
    preempted = replace(written, cause=Cause.PREEMPTED, exit_code=75)
    assert corrected(preempted, killed) == preempted
