"""What doctor says of a SLURM cluster: pure judgements by tables, and programs of SLURM that only pretend."""

import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from get3d_cluster.cli import checks, doctor_slurm
from get3d_cluster.cli.doctor_slurm import Cluster, Node, request_of
from get3d_cluster.core.job import JobSpec
from get3d_cluster.errors import SchedulerError
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers import slurm_query
from get3d_cluster.schedulers.slurm_plan import Promise

LOW = Promise(mode="REQUEUE", grace_s=60, kill_wait_s=30, partition="low")
NODE = Node(host="node1", t=1000.0, seen=1, wrote=True, python="3.11.7", has_torch=True, gpus=0)


@pytest.mark.parametrize(
    ("promise", "save_s", "asked"),
    [
        (LOW, None, []),
        (LOW, 20.0, []),
        (LOW, 45.0, []),
        (LOW, 46.0, ["GraceTime=92 (it is 60 now)", "46 s"]),
        (replace(LOW, grace_s=0), None, ["GraceTime=60 (it is 0 now)", "takes some time"]),
        (replace(LOW, grace_s=0), 1.0, []),
        (replace(LOW, grace_s=0), 40.0, ["GraceTime=80", "40 s"]),
        (replace(LOW, mode="CANCEL"), 1.0, ["PreemptMode=REQUEUE in place of CANCEL"]),
        (replace(LOW, mode="SUSPEND", grace_s=0), 100.0, ["PreemptMode=REQUEUE in place of SUSPEND"]),
        (replace(LOW, requeue=False), 1.0, ["JobRequeue=1"]),
        (replace(LOW, mode="CANCEL", grace_s=0), 50.0, ["REQUEUE", "and GraceTime=100"]),
        (replace(LOW, mode="OFF", grace_s=0), 500.0, []),
    ],
)
def test_what_to_ask_for_is_one_sentence_that_can_be_mailed(
    promise: Promise, save_s: float | None, asked: list[str]
) -> None:
    sentence = request_of("partition low", promise, save_s)
    assert bool(sentence) is bool(asked)
    for part in asked:
        assert part in sentence
    if asked:
        assert sentence.startswith("Could partition low please get ")
        assert sentence.endswith("?")
        assert "\n" not in sentence


def test_a_place_says_what_a_job_gets_and_what_may_be_lost() -> None:
    check = doctor_slurm.place_check("partition low", replace(LOW, max_time_min=1440), 300.0)
    assert (check.state, "lower checkpoint.every_s" in check.what_to_do) == ("warn", True)
    assert check.found == (
        "preempted by REQUEUE; GraceTime 60 s + KillWait 30 s after TERM; requeued by default; time limit 24.0 h"
    )
    fine = doctor_slurm.place_check("partition low", LOW, 2.0)
    assert (fine.state, fine.what_to_do, fine.ask) == ("ok", "", "")
    assert "never preempted" in doctor_slurm.promise_text(Promise())
    assert "after the signal of --signal" in doctor_slurm.promise_text(replace(LOW, user_signal=True))


def test_what_is_lost_without_accounting_is_said() -> None:
    good, _ = (doctor_slurm.cluster_checks(Cluster(accounting=trouble))[1] for trouble in ("", "x"))
    assert good.state == "ok"
    bad = doctor_slurm.cluster_checks(Cluster(accounting="`sacct` ended with 1"))[1]
    assert (bad.state, bad.found) == ("warn", "`sacct` ended with 1")
    assert "failed nodes" in bad.what_to_do
    assert bad.ask


@pytest.mark.parametrize(
    ("nodes", "name", "state", "said"),
    [
        ([NODE, replace(NODE, host="node2")], "runs folder on nodes", "ok", "read across node1, node2"),
        (
            [NODE, replace(NODE, host="node2", seen=0)],
            "runs folder on nodes",
            "fail",
            "not the same on node2",
        ),
        ([replace(NODE, wrote=False, seen=0)], "runs folder on nodes", "fail", "cannot be written on node1"),
        ([NODE, replace(NODE, host="node2", t=1001.2)], "clocks", "ok", "within 2 s"),
        ([NODE, replace(NODE, host="node2", t=1030.0)], "clocks", "warn", "node2 is 30 s ahead of node1"),
        ([NODE, replace(NODE, host="node2", python="")], "Python on nodes", "fail", "is not on node2"),
        ([replace(NODE, has_torch=False)], "Python on nodes", "fail", "no torch on node1"),
        ([NODE, replace(NODE, host="node2", gpus=4)], "GPUs on nodes", "ok", "0 on node1, 4 on node2"),
    ],
)
def test_nodes_are_judged(nodes: list[Node], name: str, state: str, said: str) -> None:
    found = {check.name: check for check in doctor_slurm.node_checks(nodes, Path("/runs"))}
    assert (found[name].state, said in found[name].found) == (state, True), found[name]
    assert found[name].what_to_do or state == "ok"


def test_one_node_alone_is_compared_with_this_machine() -> None:
    found = {check.name: check for check in doctor_slurm.node_checks([NODE], Path("/runs"))}
    assert found["clocks"].state == "warn"
    assert "this machine is" in found["clocks"].found


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder of pretended programs; ``srun`` runs its tasks here, with another clock for the second."""
    slurm_query.forget()
    programs = tmp_path / "bin"
    programs.mkdir()
    config = "ClusterName = toy\nSLURM_VERSION = 23.02.1\nSlurmctldHost[0] = head\nMaxArraySize = 1001\n"
    config += (
        "PreemptType = preempt/partition_prio\nPreemptMode = REQUEUE\nKillWait = 30 sec\nJobRequeue = 1\n"
    )
    partitions = "PartitionName=low Default=YES PreemptMode=REQUEUE GraceTime=0 MaxTime=1-00:00:00 State=UP\n"
    partitions += "PartitionName=high Default=NO PreemptMode=OFF GraceTime=0 MaxTime=UNLIMITED State=UP\n"
    (tmp_path / "config").write_text(config)
    (tmp_path / "partitions").write_text(partitions)
    scripts = {
        "scontrol": f'case "$2" in config) cat {tmp_path}/config;; partition) cat {tmp_path}/partitions;; esac',
        "sacct": "echo JobID",
        "sacctmgr": "exit 1",
        "squeue": "exit 1",
        "sbatch": "exit 1",
        "srun": 'while [ "$1" != sh ]; do shift; done\nSLURMD_NODENAME=n1 SLURM_PROCID=0 "$@" &\n'
        'SLURMD_NODENAME=n2 SLURM_PROCID=1 "$@" & wait',
    }
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return programs


def states(found: list[checks.Check]) -> dict[str, str]:
    return {check.name: check.state for check in found}


def test_a_cluster_is_looked_at_without_touching_its_nodes(slurm: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "a")
    run.path.mkdir(parents=True)
    run.write_spec(JobSpec(name="a", job="train", kind="steps", created="now"))
    run.events_path.write_text('{"event": "save", "seconds": 3.0}\n{"event": "save", "seconds": 44.5}\n')
    (slurm / "srun").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    found = {check.name: check for check in doctor_slurm.checks(tmp_path / "runs")}
    assert found["SLURM"].found == "23.02.1 (toy, controller head)"
    assert found["accounting"].state == "ok"
    assert "44.5 s" in found["time of a save"].found
    assert found["partition high"].state == "ok"
    assert found["partition low"].state == "warn"
    assert "GraceTime=89 (it is 0 now)" in found["partition low"].ask
    assert (found["nodes"].state, "--probe" in found["nodes"].what_to_do) == ("note", True)
    assert not (tmp_path / "started").exists()


def test_the_probe_writes_and_reads_across_nodes_and_leaves_nothing(slurm: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    found = doctor_slurm.checks(runs, is_probed=True)
    assert states(found)["runs folder on nodes"] == "ok"
    assert "n1, n2" in {check.name: check for check in found}["runs folder on nodes"].found
    assert states(found)["clocks"] == "ok"
    assert states(found)["Python on nodes"] == "ok"
    assert list(runs.iterdir()) == []


def test_a_cluster_of_one_node_is_probed_all_the_same(slurm: Path, tmp_path: Path) -> None:
    (slurm / "srun").write_text(
        '#!/bin/sh\nif [ "$1" = -N2 ]; then echo "srun: error: Requested node configuration" >&2; exit 1; fi\n'
        'while [ "$1" != sh ]; do shift; done\nSLURMD_NODENAME=n1 SLURM_PROCID=0 "$@"\n'
    )
    assert [node.host for node in doctor_slurm.probe(tmp_path)] == ["n1"]


def test_a_full_cluster_is_told_with_the_words_of_srun(slurm: Path, tmp_path: Path) -> None:
    (slurm / "srun").write_text("#!/bin/sh\necho 'srun: error: Unable to allocate resources' >&2; exit 1\n")
    with pytest.raises(SchedulerError, match="Unable to allocate resources"):
        doctor_slurm.probe(tmp_path)
    assert states(doctor_slurm.checks(tmp_path, is_probed=True))["nodes"] == "fail"


@pytest.mark.parametrize("missing", ["scontrol", "controller"])
def test_a_machine_without_slurm_is_told_what_to_do(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    if missing == "scontrol":
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        (slurm / "scontrol").write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2; exit 1\n")
    [check] = doctor_slurm.checks(tmp_path)
    assert (check.name, check.state) == ("SLURM", "warn")
    assert check.what_to_do


@pytest.mark.parametrize("width", [80, 160])
def test_all_advice_is_shown_on_a_terminal_of_any_width(width: int) -> None:
    found = [
        checks.Check(name="python", state="ok", found="3.11"),
        doctor_slurm.place_check("partition low", replace(LOW, grace_s=0), 300.0),
    ]
    screen = Console(width=width, file=io.StringIO())
    for part in checks.shown(found):
        screen.print(part)
    text = screen.file.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    words = " ".join(text.split())
    assert "-> a save takes 300 s" in words
    assert "To ask the administrator of the cluster, a sentence each: Could partition low please get" in words
