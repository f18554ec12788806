"""The command line as a process: fast, without torch, silent when its reader leaves; a real run, interrupted."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from get3d_cluster.cli.facts import MOST_POST_MORTEMS
from get3d_cluster.core.job import JobSpec
from get3d_cluster.runtime.run_folder import RunFolder
from tests.launching import wait_until

ROOT = Path(__file__).parents[2]


def launch(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "launch.py", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )


def make_runs(runs: Path, count: int, scheduler: str = "local") -> None:
    for number in range(count):
        run = RunFolder(runs / f"run{number:04d}")
        run.path.mkdir(parents=True)
        run.write_spec(JobSpec(name=run.name, job="train", kind="steps", created="now", scheduler=scheduler))
        run.config_path.write_text("{}\n")
        (run.new_attempt())
        run.log_path(1, 0).write_text("a line of the log\n" * 20_000)


def status_of(runs: Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``status --json`` in a process that fails if anything heavy was imported."""
    program = (
        "import sys; from get3d_cluster.cli.entry import run\n"
        f"code = run(['status', '--runs', {str(runs)!r}, '--json'])\n"
        "heavy = {'torch', 'numba', 'numpy', 'scipy', 'matplotlib', 'submitit'} & set(sys.modules)\n"
        "sys.exit(code or bool(heavy) and str(heavy))"
    )
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)


def test_status_imports_nothing_heavy(tmp_path: Path) -> None:
    make_runs(tmp_path, 5)
    done = status_of(tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("answers", [True, False])
def test_status_of_fifty_runs_asks_slurm_a_few_times(tmp_path: Path, answers: bool) -> None:
    runs, programs, log = tmp_path / "runs", tmp_path / "bin", tmp_path / "asked"
    make_runs(runs, 50, "slurm")
    programs.mkdir()
    for name in ("squeue", "scontrol", "sacct", "sinfo", "sacctmgr", "sbatch"):
        reply = r"printf 'JOBID\037STATE\n'" if answers and name == "squeue" else "exit 1"
        (programs / name).write_text(f"#!/bin/sh\necho {name} >> {log}\n{reply}\n")
        (programs / name).chmod(0o755)
    done = status_of(runs, {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"})
    assert done.returncode == 0, done.stderr
    states = {(row["state"], row["scheduler_answers"]) for row in json.loads(done.stdout)}
    assert states == ({("LOST", True)} if answers else {("RUNNING", False)})
    asked = log.read_text().split()
    assert 1 <= asked.count("squeue") <= 2  # once, and once more if it fails
    assert len(asked) <= 2 + 4 * MOST_POST_MORTEMS


@pytest.mark.parametrize("verb", ["status", "logs"])
def test_a_reader_that_leaves_is_no_error(tmp_path: Path, verb: str) -> None:
    make_runs(tmp_path, 3)
    words = f"{sys.executable} launch.py {verb} {'run0000' if verb == 'logs' else ''} --runs {tmp_path}"
    done = subprocess.run(
        ["bash", "-c", f"{words} | head -1; echo codes ${{PIPESTATUS[0]}}"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] in (("codes 141",) if verb == "logs" else ("codes 0", "codes 141"))


def test_exit_codes_reach_the_shell() -> None:
    assert launch("--help").returncode == 0
    assert launch("submit", "no_such_job").returncode == 2
    assert launch("no_such_verb").returncode == 2


def test_ctrl_c_suspends_and_resume_goes_on(tmp_path: Path) -> None:
    runs, out = tmp_path / "runs", tmp_path / "out"
    environment = {**os.environ, "GET3D_QUEUE": str(tmp_path / "queue")}
    job = "tests.jobs_for_tests.slow_items"
    words = ["run", job, "--runs", str(runs), f"out={out}", "items=60"]
    with subprocess.Popen(
        [sys.executable, "launch.py", *words], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        wait_until(lambda: len(list(out.glob("*"))) >= 3)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=60)[0]
    assert process.returncode == 75, output
    assert f"python launch.py resume {runs / 'slow_items'}" in output
    run = RunFolder.open(runs / "slow_items")
    done = len(list(out.glob("*")))
    assert 3 <= done < 60
    assert not run.is_done()

    def state() -> str:
        found = launch("status", "slow_items", "--runs", str(runs), "--json", env=environment)
        return str(json.loads(found.stdout)[0]["state"])

    assert state() == "SUSPENDED"
    assert launch("resume", "--all", "--runs", str(runs), env=environment).returncode == 0
    followed = launch("logs", "slow_items", "--runs", str(runs), "-f", env=environment)
    assert state() == "DONE"
    assert len(list(out.glob("*"))) == 60
    lines = followed.stdout.splitlines()
    assert [line for line in lines if line.startswith("item")] == [f"item {number}" for number in range(60)]
    assert "=== attempt 1: suspended" in lines[0]
    again = launch(*words, env=environment)
    assert (again.returncode, "is done already" in again.stdout) == (0, True)


@pytest.mark.long
def test_a_chain_runs_link_after_link_although_the_first_is_suspended_on_its_way(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    environment = {**os.environ, "GET3D_QUEUE": str(tmp_path / "queue"), "GET3D_SLOTS": "2"}
    job, where = "tests.jobs_for_tests.slow_items", ["--runs", str(runs)]
    items = {"a": 80, "b": 4, "c": 4}
    links = [[job, "--name", name, f"out={tmp_path / name}", f"items={items[name]}"] for name in "abc"]
    words = ["submit", *where, *links[0], "--then", *links[1], "--then", *links[2]]
    submitted = launch(*words, env=environment)
    assert submitted.returncode == 0, submitted.stderr
    assert [line.split()[0] for line in submitted.stdout.splitlines()] == ["a", "b", "c", "watch"]
    wait_until(lambda: len(list((tmp_path / "a").glob("*"))) >= 2)
    assert launch("suspend", "a", *where, env=environment).returncode == 0
    rows = json.loads(launch("status", "--json", *where, env=environment).stdout)
    assert [(row["state"], row["attempt"]) for row in rows] == [
        ("SUSPENDED", 1),
        ("PENDING", 0),
        ("PENDING", 0),
    ]
    assert "waits for run a" in rows[1]["why"]
    assert launch("resume", "--all", *where, env=environment).returncode == 0
    watched = launch("status", "--watch", *where, env=environment)
    assert watched.returncode == 0
    last = {line.split()[0]: line.split()[1] for line in watched.stdout.splitlines()}
    assert last == dict.fromkeys("abc", "DONE")
    started = [
        RunFolder(runs / name).attempts_dir.joinpath("0001", "env.json").stat().st_mtime for name in "bc"
    ]
    ended = [(runs / name / "DONE").stat().st_mtime for name in "ab"]
    assert all(end < start for end, start in zip(ended, started, strict=True))
