"""The private SLURM does what the other tests count on."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import PROGRAM, Cluster, running, wait_until, why_not

pytestmark = pytest.mark.slurm
LOGGER = Path(__file__).with_name("signal_log.py")


def signals(cluster: Cluster, name: str) -> list[str]:
    """Return the names of the signals that a task of signal_log.py has seen, START first."""
    path = cluster.folder / name
    return [line.split()[1] for line in path.read_text().splitlines()] if path.exists() else []


def logging_job(cluster: Cluster, name: str, *words: str) -> str:
    """Submit a job whose task logs its signals, and wait until it does."""
    line = f"srun {sys.executable} {LOGGER} {cluster.folder}/{name} task"
    job = cluster.submit(line, "-N4", "--exclusive", "-n1", *words)
    cluster.wait_until(lambda: signals(cluster, name), "the task has started")
    return job


def test_four_nodes_are_idle(cluster: Cluster) -> None:
    rows = cluster.run("sinfo", "-h", "-o", "%P %D %T").splitlines()
    assert sorted(rows) == ["cancel 4 idle", "high 4 idle", "low* 4 idle"]


def test_a_high_job_preempts_a_low_one_which_comes_back(cluster: Cluster) -> None:
    cluster.set_grace("low", 0)
    low = cluster.submit('echo "start ${SLURM_RESTART_COUNT:-0}"; sleep 100', "-N2", "--exclusive")
    out = cluster.folder / f"{low}.out"
    cluster.wait_until(lambda: out.exists() and "start 0" in out.read_text(), "the low job runs")
    high = cluster.preempt(4, 100)
    cluster.wait_state(high, "RUNNING")
    assert cluster.state(low) == "PENDING"
    cluster.run("scancel", high)
    cluster.wait_until(lambda: "start 1" in out.read_text(), "the low job is back")
    assert cluster.job(low)["Restarts"] == "1"


@pytest.mark.parametrize(("user_signal", "first"), [(False, "SIGTERM"), (True, "SIGUSR2")])
def test_preemption_begins_with_the_signal_asked_for(cluster: Cluster, user_signal: bool, first: str) -> None:
    cluster.set_user_signal(user_signal)
    job = logging_job(cluster, f"{first}.log", "--signal=USR2@60")
    cluster.preempt(4, 1)
    cluster.wait_until(lambda: len(signals(cluster, f"{first}.log")) >= 3, "two signals came")
    assert set(signals(cluster, f"{first}.log")) == {"START", first, "SIGCONT"}
    assert cluster.job(job)["PreemptTime"] != "None"
    assert cluster.state(job) == "RUNNING"


def test_a_dead_slurmd_leaves_its_job_alive_and_comes_back(cluster: Cluster) -> None:
    logging_job(cluster, "dead.log", "-w", "node[1-4]")
    cluster.kill_slurmd("node1")
    with pytest.raises(AssertionError, match="node1"):
        cluster.kill_slurmd("node1")
    cluster.start_slurmd("node1")
    cluster.wait_until(
        lambda: cluster.run("sinfo", "-hN", "-n", "node1", "-p", "low", "-o", "%T") == "allocated", "back"
    )


def test_the_accounts_know_every_incarnation(cluster: Cluster) -> None:
    job = cluster.submit("sleep 30", "-N1")
    cluster.wait_state(job, "RUNNING")
    cluster.scontrol("requeue", job)
    cluster.wait_until(lambda: cluster.job(job)["Restarts"] == "1", "requeued")
    cluster.wait_state(job, "RUNNING")
    cluster.run("scancel", job)
    want = ["REQUEUED", "CANCELLED by 0"]
    cluster.wait_until(lambda: [row[0].split("+")[0] for row in cluster.sacct(job, "State")] == want, "sacct")


def test_a_second_up_says_that_it_is_up(cluster: Cluster) -> None:
    again = subprocess.run(
        [sys.executable, PROGRAM, "up", cluster.folder], capture_output=True, text=True, check=True
    )
    assert again.stdout.splitlines() == [
        f"# already up in {cluster.folder}",
        f"export SLURM_CONF={cluster.folder}/slurm.conf",
    ]


def test_qos_preemption_in_a_second_cluster_beside_the_first(cluster: Cluster) -> None:
    with running(preempt="qos", nodes=1, grace=0, max_array=11) as other:
        assert "MaxArraySize            = 11" in other.scontrol("show", "config")
        low = other.submit("sleep 100", "--exclusive")
        other.wait_state(low, "RUNNING")
        assert cluster.squeue() == ""
        high = other.preempt(1, 1)
        other.wait_state(high, "RUNNING", "COMPLETED")
        assert other.job(low)["Restarts"] == "1"


MAKER = """
import sys, time
from tests.slurm.cluster import running
with running(nodes=1) as cluster:
    cluster.submit(sys.argv[1], "--export=NONE")
    print(cluster.folder, flush=True)
    time.sleep(99)
"""


def test_when_its_maker_is_killed_a_cluster_goes_with_jobs_that_hide(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    pid = tmp_path / "pid"
    hidden = f"trap '' TERM; setsid env -i sh -c 'trap \"\" TERM; echo $$ > {pid}; sleep 300; true' & wait"
    with subprocess.Popen([sys.executable, "-c", MAKER, hidden], stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout is not None
        folder = Path(maker.stdout.readline().strip())
        wait_until(lambda: pid.exists() and pid.read_text(), "the hidden process runs")
        maker.kill()
    wait_until(lambda: not folder.exists(), f"{folder} is gone")
    status = Path(f"/proc/{pid.read_text().strip()}/status")
    assert not status.exists() or "Z (zombie)" in status.read_text()
