"""A chain in one command: each link after the one before, nothing queued unless all links can be; --after survives."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from get3d_cluster.cli import chain, snapshot, submission
from get3d_cluster.cli.entry import run as command
from get3d_cluster.core.job import Cause, Outcome
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers import SCHEDULERS
from get3d_cluster.schedulers.base import Standing
from tests.jobs_for_tests.fake_scheduler import FakeScheduler

JOB = "tests.jobs_for_tests.tiny"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    FakeScheduler.reset()
    for name in ("local", "other"):
        monkeypatch.setitem(SCHEDULERS, name, "tests.jobs_for_tests.fake_scheduler:FakeScheduler")
    small = tmp_path / "repository"
    (small / "get3d_cluster").mkdir(parents=True)
    (small / "get3d_cluster" / "__init__.py").write_text("")
    monkeypatch.setattr(
        submission, "write_snapshot", lambda folder, without: snapshot.write_snapshot(folder, small)
    )
    return tmp_path / "runs"


def link(name: str, *words: str) -> list[str]:
    return [JOB, "--name", name, *words]


def chained(runs: Path, *links: list[str], verb: str = "submit") -> int:
    words = [verb, "--runs", str(runs)]
    for number, one in enumerate(links):
        words += [*(["--then"] if number else []), *one]
    return command(words)


def ended(run: RunFolder, cause: Cause, saved_step: int = 0) -> None:
    """Let the newest attempt of a run end, and nothing of it stay with the scheduler."""
    run.write_outcome(Outcome(attempt=run.new_attempt(), cause=cause, exit_code=1, saved_step=saved_step))
    if saved_step:
        (run.checkpoints_dir / f"step-{saved_step:09d}").mkdir(parents=True)
    FakeScheduler.standings.pop(run.name, None)


def test_each_link_waits_for_the_one_before(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert chained(runs, link("r", "nodes=2"), link("p", "seed=3"), link("t")) == 0
    assert FakeScheduler.calls == [
        ("submit", "r", 2, []),
        ("submit", "p", 1, ["r"]),
        ("submit", "t", 1, ["p"]),
    ]
    assert [RunFolder(runs / name).spec().after for name in "rpt"] == [
        (),
        (str(runs / "r"),),
        (str(runs / "p"),),
    ]
    assert "seed: 3" in (runs / "p" / "config.yaml").read_text()
    assert "seed: 0" in (runs / "t" / "config.yaml").read_text()
    assert capsys.readouterr().out.splitlines() == [
        "r is queued as 17",
        "p is queued as 17, after r",
        "t is queued as 17, after p",
        f"  watch   python launch.py status --watch --runs {runs}",
    ]


@pytest.mark.parametrize(
    ("third", "said"),
    [
        (link("t", "sed=3"), "unknown key sed"),
        (link("t", "nodes=101"), "resources.nodes=101 can never be met here"),
        (link("t", "--config", "nothing"), "there is no configuration nothing"),
        (link("p"), "two links of the chain are the run p"),
        (link("t", "--after", "nobody"), "there is no run nobody"),
        (link("taken"), "taken exists and is no run"),
        (["--name", "t"], "Missing argument 'JOB'"),
        (link("t", "--frob"), "No such option: --frob"),
    ],
)
def test_a_bad_third_link_leaves_nothing_behind(
    runs: Path, third: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "taken").mkdir(parents=True)
    assert chained(runs, link("r"), link("p"), third) == 2
    assert said in capsys.readouterr().err
    assert FakeScheduler.calls == []
    assert [path.name for path in runs.iterdir()] == ["taken"]


def test_a_link_whose_standing_is_unknown_stops_the_whole_chain(runs: Path) -> None:
    chained(runs, link("t"))
    FakeScheduler.calls.clear()
    FakeScheduler.standings["t"] = Standing(state="unknown", why="timeout")
    assert chained(runs, link("r"), link("p"), link("t")) == 3
    assert FakeScheduler.calls == []
    assert not (runs / "r").exists()


def test_the_same_chain_again_goes_on_where_it_stands(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    links = [link("r"), link("p"), link("t")]
    chained(runs, *links)
    run = RunFolder(runs / "r")
    ended(run, Cause.FINISHED)
    run.done_path.write_text("{}")
    ended(RunFolder(runs / "p"), Cause.CRASHED)
    capsys.readouterr()
    assert chained(runs, *links) == 0
    out = capsys.readouterr().out
    assert "r is done already" in out
    assert "p continues at step 0, queued as 17\n" in out
    assert "t is queued already as 17, after p" in out


def test_an_option_given_once_holds_for_every_link(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", *link("a"), "--then", *link("b"), "--cluster", "other", "--then", *link("c"), "--json"]
    assert command([*words, "--runs", str(runs)]) == 0
    plans = json.loads(capsys.readouterr().out)
    assert [plan["scheduler"] for plan in plans] == ["other"] * 3
    assert [Path(plan["run"]).parent for plan in plans] == [runs] * 3
    assert [plan["after"] for plan in plans] == [[], [str(runs / "a")], [str(runs / "b")]]
    assert not runs.exists()


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({0: "x"}, ["x", "x", "x"]),
        ({2: "x"}, ["x", "x", "x"]),
        ({0: "x", 1: "y"}, ["x", "y", "y"]),
        ({1: "x", 2: "y"}, ["x", "x", "y"]),
        ({}, ["-", "-", "-"]),
    ],
)
def test_a_value_comes_from_the_nearest_link_before(values: Mapping[int, str], found: list[str]) -> None:
    there = [values.get(number, "-") for number in range(3)]
    assert chain.spread(there, [number in values for number in range(3)]) == found


def test_a_link_can_wait_for_further_runs_and_for_links_by_name(runs: Path) -> None:
    chained(runs, link("old"))
    links = [link("r"), link("p", "--after", "old"), link("t", "--after", "r", "--after", "p")]
    assert chained(runs, *links) == 0
    assert [call[3] for call in FakeScheduler.calls[1:]] == [[], ["old", "r"], ["r", "p"]]


def test_what_a_run_waits_for_survives_resume_and_submit(runs: Path) -> None:
    chained(runs, link("a"))
    assert chained(runs, link("b", "--after", "a")) == 0
    for again in (
        ["resume", "b"],
        ["resume", "--all"],
        ["submit", *link("b")],
        ["submit", *link("b"), "nodes=2"],
    ):
        ended(RunFolder(runs / "b"), Cause.PREEMPTED)
        assert command([*again, "--runs", str(runs)]) == 0
        assert FakeScheduler.calls[-1][1] == "b"
        assert FakeScheduler.calls[-1][3] == ["a"]


def test_what_a_run_waits_for_can_be_changed_while_it_stands_still(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chained(runs, link("a"))
    chained(runs, link("b", "--after", "a"))
    assert chained(runs, link("b", "--after", "a")) == 0
    assert chained(runs, link("b", "--after", "none")) == 2
    assert "b is pending; it cannot change after=none now" in capsys.readouterr().err
    ended(RunFolder(runs / "b"), Cause.PREEMPTED)
    assert chained(runs, link("b", "--after", "none")) == 0
    assert FakeScheduler.calls[-1] == ("submit", "b", 1, [])
    assert RunFolder(runs / "b").spec().after == ()


def test_a_parent_that_is_gone_is_told_before_the_run_has_begun(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chained(runs, link("a"), link("b"))
    ended(RunFolder(runs / "b"), Cause.CANCELLED)
    shutil.rmtree(runs / "a")
    FakeScheduler.calls.clear()
    for words in (["resume", "b"], ["submit", *link("b")]):
        assert command([*words, "--runs", str(runs)]) == 2
        err = capsys.readouterr().err
        assert f"b comes after {runs / 'a'}, which is not there" in err
        assert "--after none" in err
    assert command(["resume", "--cause", "cancelled", "--runs", str(runs)]) == 3
    assert "not resumed: b (b comes after" in capsys.readouterr().err
    assert FakeScheduler.calls == []


def test_a_parent_that_was_tidied_away_keeps_no_run_that_has_begun(runs: Path) -> None:
    chained(runs, link("a"), link("b"))
    run = RunFolder(runs / "b")
    ended(run, Cause.PREEMPTED, saved_step=40)
    shutil.rmtree(runs / "a")
    assert command(["resume", "b", "--runs", str(runs)]) == 0
    assert FakeScheduler.calls[-1] == ("submit", "b", 1, [])
    assert run.spec().after == ()


def test_runs_never_wait_in_a_circle(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chained(runs, link("a"), link("b"), link("c"))
    for name in "ab":
        ended(RunFolder(runs / name), Cause.PREEMPTED)
    assert chained(runs, link("a", "--after", "c")) == 2
    assert "a would wait for itself" in capsys.readouterr().err
    assert chained(runs, link("a", "--after", "a")) == 2
