"""submit, plan, resume, suspend, cancel: what they write, what they ask of the scheduler, what they refuse."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from get3d_cluster.cli import snapshot, stopping, submission
from get3d_cluster.cli.entry import run as command
from get3d_cluster.config import read_run_config
from get3d_cluster.core.job import Cause, Outcome
from get3d_cluster.runtime.run_folder import RunFolder, write_json
from get3d_cluster.schedulers import SCHEDULERS
from get3d_cluster.schedulers.base import Standing
from tests.jobs_for_tests import tiny
from tests.jobs_for_tests.fake_scheduler import FakeScheduler

JOB = "tests.jobs_for_tests.tiny"


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    FakeScheduler.reset()
    monkeypatch.setitem(SCHEDULERS, "local", "tests.jobs_for_tests.fake_scheduler:FakeScheduler")
    monkeypatch.setitem(SCHEDULERS, "other", "tests.jobs_for_tests.fake_scheduler:FakeScheduler")
    small = tmp_path / "repository"
    (small / "get3d_cluster").mkdir(parents=True)
    (small / "get3d_cluster" / "__init__.py").write_text("")
    monkeypatch.setattr(
        submission, "write_snapshot", lambda folder, without: snapshot.write_snapshot(folder, small)
    )
    return tmp_path / "runs"


def submit(runs: Path, *words: str, verb: str = "submit") -> int:
    return command([verb, JOB, "--runs", str(runs), "--name", "a", *words])


def end(runs: Path, cause: Cause, attempt: int = 1) -> RunFolder:
    """Let the run's attempt end, and nothing of it stay with the scheduler."""
    run = RunFolder(runs / "a")
    run.new_attempt()
    run.write_outcome(Outcome(attempt=attempt, cause=cause, exit_code=1, message="because"))
    FakeScheduler.standings.clear()
    return run


def test_submit_writes_the_whole_run_and_queues_it(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(runs, "seed=3", "nodes=2") == 0
    run = RunFolder.open(runs / "a")
    assert read_run_config(tiny.Config, run.config_path).seed == 3
    assert (run.spec().job, run.spec().kind, run.spec().scheduler) == (JOB, "steps", "local")
    assert Path(run.spec().python).exists()
    assert (run.code_dir / "get3d_cluster" / "__init__.py").is_file()
    assert FakeScheduler.calls == [("submit", "a", 2, [])]
    out = capsys.readouterr().out
    assert "a is queued as 17" in out
    assert f"python launch.py status a --watch --runs {runs}" in out
    assert [path.name for path in runs.iterdir()] == ["a"]


def test_plan_changes_nothing(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(runs, "nodes=2", "--json", verb="plan") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["does"], shown["resources"]["nodes"], shown["plan"]) == ("create", 2, "2 nodes after []")
    assert not runs.exists()
    assert FakeScheduler.calls == []


def test_the_same_command_again_says_where_the_run_is(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    submit(runs)
    assert submit(runs) == 0
    assert "a is queued already as 17: waits for cores" in capsys.readouterr().out
    FakeScheduler.standings["a"] = Standing(state="running", job="17")
    assert submit(runs) == 0
    assert "a is running already as 17" in capsys.readouterr().out
    assert len(FakeScheduler.calls) == 1


def test_a_finished_run_is_left_alone(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    submit(runs)
    end(runs, Cause.FINISHED).done_path.write_text("{}")
    for words in (["submit", JOB, "--name", "a"], ["resume", "a"]):
        assert command([*words, "--runs", str(runs)]) == 0
        assert "a is done already" in capsys.readouterr().out
    assert len(FakeScheduler.calls) == 1


def test_an_unfinished_run_goes_on_with_what_may_change(runs: Path) -> None:
    submit(runs, "seed=3")
    run = end(runs, Cause.PREEMPTED)
    before = run.spec()
    assert submit(runs, "seed=3", "nodes=4", "num_steps=20") == 0
    config = read_run_config(tiny.Config, run.config_path)
    assert (config.resources.nodes, config.num_steps, config.seed) == (4, 20, 3)
    assert run.spec() == before
    assert FakeScheduler.calls[-1] == ("submit", "a", 4, [])


def test_a_key_that_changes_what_is_computed_is_refused_by_name(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(runs, "seed=3")
    run = end(runs, Cause.PREEMPTED)
    text = run.config_path.read_text()
    assert submit(runs, "seed=4", "synset=02958343", "nodes=2") == 2
    err = capsys.readouterr().err
    assert "seed=4 (was 3), synset=02958343 (was '03001627')" in err
    assert "nodes" not in err
    assert "--allow-config-change" in err
    assert run.config_path.read_text() == text
    assert submit(runs, "seed=4", "--allow-config-change") == 0
    assert read_run_config(tiny.Config, run.config_path).seed == 4


def test_a_run_on_its_way_cannot_change(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    submit(runs)
    assert submit(runs, "nodes=3") == 2
    assert "a is pending; it cannot change resources.nodes=3 (was 1) now" in capsys.readouterr().err
    assert len(FakeScheduler.calls) == 1


def test_nothing_is_queued_twice_when_the_scheduler_does_not_answer(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(runs)
    FakeScheduler.standings["a"] = Standing(state="unknown", why="timeout")
    assert submit(runs) == 3
    assert command(["resume", "a", "--runs", str(runs)]) == 3
    assert "never runs twice" in capsys.readouterr().err
    assert len(FakeScheduler.calls) == 1


def test_a_run_may_come_back_with_another_scheduler(runs: Path) -> None:
    submit(runs)
    assert submit(runs, "--cluster", "other") == 0
    assert len(FakeScheduler.calls) == 1  # it waits with the first one still
    run = end(runs, Cause.PREEMPTED)
    assert submit(runs, "--cluster", "other") == 0
    assert run.spec().scheduler == "other"
    assert submit(runs) == 0
    assert run.spec().scheduler == "other"


def test_another_job_under_the_same_name_is_refused(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    submit(runs)
    path = runs / "a" / "spec.json"
    path.write_text(path.read_text().replace(JOB, "render"))
    assert submit(runs) == 2
    assert "run a is a render run" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_never_taken_over(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "a").mkdir(parents=True)
    (runs / "a" / "thesis.tex").write_text("precious")
    assert submit(runs) == 2
    assert "exists and is no run" in capsys.readouterr().err
    assert [path.name for path in runs.rglob("*")] == ["a", "thesis.tex"]


def test_a_submission_that_dies_leaves_nothing_half(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(submission, "write_snapshot", die)
        assert submit(runs) == 130
    assert list(runs.iterdir()) == []
    old = runs / ".new-a-0000"
    old.mkdir()
    os.utime(old, (time.time() - 7200,) * 2)
    (runs / ".new-b-0000").mkdir()
    assert submit(runs) == 0
    assert sorted(path.name for path in runs.iterdir()) == [".new-b-0000", "a"]


def test_a_request_that_cannot_be_met_leaves_no_folder(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(runs, "nodes=101") == 2
    assert capsys.readouterr().err.splitlines() == [
        "resources.nodes=101 can never be met here",
        "at most 100: nodes=100",
    ]
    assert not runs.exists()


def test_a_disk_that_cannot_be_written_is_told_with_its_code(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.write_text("a file")
    assert submit(runs) == 5
    assert "cannot write" in capsys.readouterr().err


def test_a_scheduler_that_refuses_can_be_asked_again(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["submit", JOB, "--runs", str(runs), "--name", "refused"]) == 3
    assert capsys.readouterr().err.splitlines() == ["the scheduler refused", "ask it why"]
    assert (runs / "refused" / "spec.json").is_file()


def test_runs_wait_for_those_named_after(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    submit(runs)
    words = ["submit", JOB, "--runs", str(runs), "--name", "b"]
    assert command([*words, "--after", "a"]) == 0
    assert FakeScheduler.calls[-1] == ("submit", "b", 1, ["a"])
    assert command([*words, "--after", "aa"]) == 2
    assert "there is no run aa" in capsys.readouterr().err


def test_the_name_is_that_of_the_file_or_the_job(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "chair.yaml").write_text("seed: 5\nnodes: 2\n")
    assert (
        command(["submit", JOB, "--runs", str(runs), "--config", str(tmp_path / "chair.yaml"), "seed=6"]) == 0
    )
    assert command(["submit", JOB, "--runs", str(runs)]) == 0
    assert [path.name for path in sorted(runs.iterdir())] == ["chair", "tiny"]
    config = read_run_config(tiny.Config, runs / "chair" / "config.yaml")
    assert (config.seed, config.resources.nodes) == (6, 2)


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "a b", "-x"])
def test_a_name_that_leaves_the_runs_folder_is_refused(runs: Path, name: str) -> None:
    code = command(["submit", JOB, "--runs", str(runs), f"--name={name}"])
    assert code == (2 if name else 0)
    assert sorted(path.name for path in runs.parent.rglob("spec.json")) == ([] if name else ["spec.json"])


def test_suspend_and_cancel_tell_the_scheduler(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb, cause, now in (("suspend", "suspended", False), ("cancel", "cancelled", True)):
        submit(runs)
        assert command([verb, "a", "--runs", str(runs), *(["--now"] if now else [])]) == 0
        assert FakeScheduler.calls[-1] == ("stop", "a", cause, now)
        assert command([verb, str(runs / "a")]) == 0
        assert "nothing to stop" in capsys.readouterr().out


def test_resume_brings_back_those_with_the_cause(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, cause in [
        ("p", Cause.PREEMPTED),
        ("s", Cause.SUSPENDED),
        ("c", Cause.CANCELLED),
        ("f", Cause.REFUSED),
    ]:
        command(["submit", JOB, "--runs", str(runs), "--name", name])
        run = RunFolder(runs / name)
        run.new_attempt()
        run.write_outcome(Outcome(attempt=1, cause=cause, exit_code=75))
    FakeScheduler.standings.clear()
    FakeScheduler.calls.clear()
    assert command(["resume", "--runs", str(runs), "--cause", "cancelled"]) == 0
    assert command(["resume", "--runs", str(runs), "--all"]) == 0
    assert [call[1] for call in FakeScheduler.calls] == ["c", "p", "s"]
    assert command(["resume", "--runs", str(runs)]) == 2
    assert command(["resume", "p", "--all", "--runs", str(runs)]) == 2
    assert command(["resume", "f", "--runs", str(runs)]) == 0
    assert FakeScheduler.calls[-1][1] == "f"


def test_resume_runs_the_copy_of_the_code_unless_it_is_told_to_take_that_of_here(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(runs)
    run = end(runs, Cause.CRASHED)
    source, copied = (
        folder / "get3d_cluster" / "__init__.py" for folder in (runs.parent / "repository", run.code_dir)
    )
    source.write_text("mended = True")
    before = run.code_digest()
    assert command(["resume", "a", "--runs", str(runs)]) == 0
    out = capsys.readouterr().out
    assert "its own copy" in out
    assert "--new-code" in out
    assert (copied.read_text(), run.code_digest()) == ("", before)
    assert command(["resume", "a", "--new-code", "--runs", str(runs)]) == 2, "it is on its way"
    FakeScheduler.standings.clear()
    assert command(["resume", "a", "--new-code", "--runs", str(runs)]) == 0
    assert "as it is here now" in capsys.readouterr().out
    assert copied.read_text() == "mended = True"
    assert run.code_digest() != before
    (kept,) = (run.path / "old-code").iterdir()
    assert (kept / "code" / "get3d_cluster" / "__init__.py").read_text() == ""
    assert json.loads((kept / "code.json").read_text())["digest"] == before
    assert sorted(run.path.glob(".new-code-*")) == []
    assert command(["resume", "--all", "--new-code", "--runs", str(runs)]) == 2


@pytest.mark.parametrize("cause", ["cancelled", "suspended"])
def test_what_a_person_stopped_later_does_not_come_back_with_the_preempted(
    runs: Path, capsys: pytest.CaptureFixture[str], cause: str
) -> None:
    submit(runs)
    run = end(runs, Cause.PREEMPTED)
    write_json(run.stopped_path, {"cause": cause, "t": 0})
    FakeScheduler.calls.clear()
    for words in (["--cause", "preempted"], ["--all", "--cause", "preempted"]):
        assert command(["resume", *words, "--runs", str(runs)]) == 0
        assert "nothing to resume" in capsys.readouterr().out
    assert command(["resume", "--cause", cause, "--runs", str(runs)]) == 0
    assert [call[1] for call in FakeScheduler.calls] == ["a"]


@pytest.mark.parametrize(
    ("last", "asked", "comes_back"),
    [
        (Cause.PREEMPTED, Cause.PREEMPTED, False),
        (Cause.CRASHED, Cause.CRASHED, True),
        (Cause.CRASHED, None, False),
        (Cause.DIVERGED, Cause.DIVERGED, True),
    ],
)
def test_a_held_run_comes_back_only_for_the_fault_that_held_it(
    runs: Path, last: Cause, asked: Cause | None, comes_back: bool
) -> None:
    submit(runs)
    run = end(runs, last)
    write_json(run.hold_path, {"why": "given up", "t": 0})
    assert bool(stopping.resumable([run], asked)) is comes_back


def test_only_what_changes_is_written_into_the_config_of_a_run(runs: Path) -> None:
    submit(runs, "seed=3")
    run = end(runs, Cause.PREEMPTED)
    old_code_knows = [line for line in run.config_path.read_text().splitlines() if "synset" not in line]
    run.config_path.write_text("\n".join(old_code_knows))
    assert submit(runs, "seed=3", "nodes=4") == 0
    text = run.config_path.read_text()
    assert (
        "synset" not in text
    )  # the workers read this file with the code of the run, which would refuse the key
    assert text.splitlines() == [line.replace("nodes: 1", "nodes: 4") for line in old_code_knows]


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


def test_a_snapshot_has_what_git_tracks_or_does_not_ignore(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "MOST_BYTES", 1000)
    repository = tmp_path / "r"
    for name, text in {
        "get3d_cluster/__init__.py": "", "launch.py": "old", "gone.py": "", ".gitignore": "/data/\n*.pyc\n",
        "data/x.bin": "x", "get3d_cluster/a.pyc": "x",
    }.items():  # fmt: skip
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text(text)
    git(repository, "init", "-q")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "first")
    (repository / "launch.py").write_text("new")
    (repository / "gone.py").unlink()
    (repository / "jobs").mkdir()
    (repository / "jobs" / "näw job.py").write_text("untracked")
    (repository / "big.npy").write_bytes(b"x" * 2000)
    (repository / "runs" / "a").mkdir(parents=True)
    (repository / "runs" / "a" / "weights").write_text("x")
    out = tmp_path / "out"
    out.mkdir()
    snapshot.write_snapshot(out, repository, without=[repository / "runs"])
    found = {str(path.relative_to(out / "code")) for path in (out / "code").rglob("*") if path.is_file()}
    assert found == {"get3d_cluster/__init__.py", "launch.py", ".gitignore", "jobs/näw job.py"}
    assert (out / "code" / "launch.py").read_text() == "new"
    facts = json.loads((out / "code.json").read_text())
    assert (len(facts["commit"]), facts["files"], facts["left_out"]) == (40, 4, ["big.npy"])
    patch = (out / "code.patch").read_text()
    assert "+new" in patch
    assert "-old" in patch


def test_a_snapshot_of_a_snapshot_needs_no_git(tmp_path: Path) -> None:
    repository = tmp_path / "r"
    for name in (
        "get3d_cluster/__init__.py",
        "jobs/train.py",
        "get3d_cluster/__pycache__/a.pyc",
        "notes.txt",
        "launch.py",
    ):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text("")
    out = tmp_path / "out"
    out.mkdir()
    snapshot.write_snapshot(out, repository)
    found = {str(path.relative_to(out / "code")) for path in (out / "code").rglob("*") if path.is_file()}
    assert found == {"get3d_cluster/__init__.py", "jobs/train.py", "launch.py"}
    assert json.loads((out / "code.json").read_text())["commit"] == ""
