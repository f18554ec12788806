"""SLURM that answers oddly, late, or not at all: nothing is queued twice, lost, or taken for finished."""

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from get3d_cluster.cli.entry import run as command
from get3d_cluster.cli.facts import gather
from get3d_cluster.cli.status import row_of
from get3d_cluster.core.job import Cause, JobSpec, Outcome, Position, Resources
from get3d_cluster.dist.group import SoloGroup
from get3d_cluster.errors import ExitCode, SchedulerError
from get3d_cluster.runtime.progress import Progress
from get3d_cluster.runtime.run_folder import RunFolder, read_json, write_json
from get3d_cluster.schedulers import notes, slurm, slurm_end, slurm_files, slurm_query, slurm_start
from get3d_cluster.schedulers.slurm import SlurmScheduler
from get3d_cluster.schedulers.slurm_entry import Start
from get3d_cluster.schedulers.slurm_files import Place
from tests.sessions import session_of
from tests.slurm.cluster import Cluster
from tests.slurm.fake_commands import FakeSlurm, shim
from tests.slurm.items import JOB, check_items, events, log_of, submit, wait_done

QUICK_S = 0.4
TIMED_OUT = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"


@pytest.fixture(autouse=True)
def _asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm_query.forget()
    monkeypatch.setattr(slurm, "LOOK_AGAIN_S", 0.0)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm(tmp_path / "bin", monkeypatch)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten every wait for an answer."""
    ask = slurm_query._run
    monkeypatch.setattr(slurm_query, "_run", lambda command, timeout_s: ask(command, QUICK_S))
    monkeypatch.setattr(slurm, "SUBMIT_S", QUICK_S)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "a")


def make_run(path: Path, kind: str = "items", config: str = "") -> RunFolder:
    run = RunFolder(path)
    path.mkdir()
    run.config_path.write_text(config)
    run.write_spec(
        JobSpec(name=path.name, job=JOB, kind=kind, created="2026-01-01T00:00:00", scheduler="slurm")
    )
    return run


def in_job(
    monkeypatch: pytest.MonkeyPatch, attempt: int = 1, element: int | None = None, **more: str
) -> None:
    """Let this process be a job of SLURM, number 100."""
    values = {"SLURM_JOB_ID": "100", "SLURM_JOB_NODELIST": "node1", "GET3D_ATTEMPT": str(attempt)} | more
    if element is not None:
        index = str(element)
        values = {
            "GET3D_ELEMENT": index,
            "SLURM_ARRAY_JOB_ID": "90",
            "SLURM_ARRAY_TASK_ID": index,
        } | values
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def attempt_of(run: RunFolder, *, element: int | None = None, hosts: Sequence[str] = ("node1",)) -> int:
    """Make an attempt that runs in job 100."""
    attempt = run.new_attempt()
    array = {"array": "90", "task": str(element)} if element is not None else {}
    place = Place(job="100", hosts=tuple(hosts), element=element, kill_wait_s=5.0, **array)
    slurm_files.write_place(run, attempt, place)
    return attempt


def flag(script: str, name: str) -> str | None:
    values = [line.partition("=")[2] for line in script.splitlines() if line.startswith(f"#SBATCH --{name}")]
    return values[0] if values else None


# ------------------------------------------------------------ sbatch


@pytest.mark.parametrize("mode", ["times-out", "hangs", "mumbles"])
@pytest.mark.parametrize("array", [0, 3])
def test_a_job_that_slurm_took_although_sbatch_did_not_say_so_is_ours(
    fake: FakeSlurm, run: RunFolder, monkeypatch: pytest.MonkeyPatch, mode: str, array: int
) -> None:
    monkeypatch.setattr(slurm, "SUBMIT_S", QUICK_S)
    fake.mode("sbatch", mode)
    scheduler, resources = SlurmScheduler(), Resources(array=array)
    assert scheduler.submit(run, resources) == "101"
    assert slurm_files.jobs(run) == ["101"]
    fake.mode("sbatch", "")
    assert scheduler.submit(run, resources) == "101"
    assert fake.queued() == ["101"]


def test_a_job_makes_what_submitit_starts_if_its_submitter_could_not(run: RunFolder) -> None:
    from submitit.core.utils import DelayedSubmission

    run.slurm_dir.mkdir()
    for name in ("101", "90_3"):
        slurm.leave_pickle(run, name)
        assert DelayedSubmission.load(run.slurm_dir / f"{name}_submitted.pkl").function == Start(
            str(run.path)
        )
    there = run.slurm_dir / "7_submitted.pkl"
    there.write_text("by the submitter")
    slurm.leave_pickle(run, "7")
    assert there.read_text() == "by the submitter"
    assert len(list(run.slurm_dir.iterdir())) == 3


def test_a_job_that_slurm_did_not_take_is_told_in_one_line_and_may_be_submitted_again(
    fake: FakeSlurm, run: RunFolder
) -> None:
    fake.mode("sbatch", "lost")
    with pytest.raises(SchedulerError) as caught:
        SlurmScheduler().submit(run, Resources())
    assert caught.value.what == f"sbatch did not queue a: {TIMED_OUT}"
    assert "the same command again" in caught.value.way_out
    assert slurm_files.jobs(run) == []
    fake.mode("sbatch", "")
    assert SlurmScheduler().submit(run, Resources()) == "101"


def test_nobody_knows_whether_a_job_was_taken_when_the_queue_is_silent_as_well(
    fake: FakeSlurm, run: RunFolder, quick: None
) -> None:
    fake.mode("sbatch", "then-down")
    with pytest.raises(SchedulerError, match="nobody knows whether SLURM took a") as caught:
        SlurmScheduler().submit(run, Resources())
    assert "python launch.py status a" in caught.value.way_out
    calls = len(fake.calls("sbatch"))
    with pytest.raises(SchedulerError):
        SlurmScheduler().submit(run, Resources())
    assert len(fake.calls("sbatch")) == calls
    fake.mode("squeue", "")
    assert SlurmScheduler().submit(run, Resources()) == "101"
    assert len(fake.calls("sbatch")) == calls


def test_the_job_of_another_element_is_not_taken_for_the_missing_one(
    fake: FakeSlurm, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_job(monkeypatch, element=3)
    fake.mode("sbatch", "lost")
    fake.put("105", slurm_files.comment_of(run), state="PENDING")
    fake.record("105", name=f"{run.key}-7", JobState="PENDING")
    with pytest.raises(SchedulerError, match="did not queue"):
        SlurmScheduler().succeed(run, Resources(array=8))
    fake.record("105", name=f"{run.key}-3", JobState="PENDING")
    assert SlurmScheduler().succeed(run, Resources(array=8)) == "105"


REFUSAL = """\
sbatch: error: lua: accounts of the faculty only

sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified
"""


def test_a_refusal_is_told_in_slurms_words_in_one_line_with_a_way_out(
    fake: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.mode("sbatch", "refuses", REFUSAL)
    words = ["--cluster", "slurm", "--runs", str(tmp_path / "runs"), "--name", "a", f"out={tmp_path}/out"]
    assert command(["submit", JOB, *words]) == ExitCode.SCHEDULER
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "sbatch refused a: sbatch: error: lua: accounts of the faculty only" in lines[0]
    assert "Invalid account" in lines[0]
    assert "launch.py plan" in lines[1]
    assert len(fake.calls("squeue")) == 1  # not looked after: SLURM was clear
    fake.mode("sbatch", "")
    assert command(["submit", JOB, *words]) == 0
    assert fake.queued() == ["101"]


def test_a_refused_second_array_leaves_the_first_at_work_and_says_so(fake: FakeSlurm, run: RunFolder) -> None:
    fake.promises(max_array=4)
    fake.mode(
        "sbatch", "second-refused", "sbatch: error: Batch job submission failed: Job violates a limit\n"
    )
    with pytest.raises(
        SchedulerError, match="elements in 101 are queued and will do all the items"
    ) as caught:
        SlurmScheduler().submit(run, Resources(array=8))
    assert "suspend a, then resume" in caught.value.way_out
    assert fake.queued()[0] == "101"


def test_a_large_array_is_several_with_offsets_in_plan_and_submit(fake: FakeSlurm, run: RunFolder) -> None:
    resources = Resources(array=2500, array_limit=64)
    text = SlurmScheduler().plan(run, resources)
    assert "# 3 arrays of 833, 833, 834 elements: MaxArraySize=1001" in text
    assert "#SBATCH --array=0-832%64" in text
    assert fake.queued() == []
    assert SlurmScheduler().submit(run, resources) == "101,102,103"
    seen: list[int] = []
    for job in fake.queued():
        script = fake.script(job)
        first, _, last = (flag(script, "array") or "").partition("%")[0].partition("-")
        offset = int(script.partition("GET3D_ELEMENT=$((")[2].partition(" ")[0])
        assert "GET3D_ELEMENTS=2500" in script
        assert int(last) < 1001
        seen += range(offset + int(first), offset + int(last) + 1)
    assert seen == list(range(2500))


# ------------------------------------------------------------ SLURM that is silent


@pytest.mark.parametrize("mode", ["down", "empty", "slow"])
def test_a_silent_queue_is_unknown_never_finished_and_nothing_is_queued_twice(
    fake: FakeSlurm, run: RunFolder, quick: None, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    attempt_of(run)
    write_json(run.progress_path, {"attempt": 1, "step": 7, "num_steps": 20, "t": time.time()})
    for name in ("squeue", "scontrol", "sacct"):
        fake.mode(name, mode)
    begun_s = time.monotonic()
    assert SlurmScheduler().standing(run).state == "unknown"
    row = row_of(gather(run))
    assert (row.state, row.step, row.scheduler_answers) == ("RUNNING", 7, False)
    assert row.why.startswith("UNKNOWN: the scheduler does not answer")
    with pytest.raises(SchedulerError):
        SlurmScheduler().submit(run, Resources())
    assert command(["resume", str(run.path)]) != 0
    assert "nothing was submitted" in capsys.readouterr().err
    assert SlurmScheduler().post_mortem(run, 1) is None
    assert time.monotonic() - begun_s < 60  # what is silent sleeps for 120
    assert fake.calls("sbatch") == []
    assert run.outcomes() == []


@pytest.mark.parametrize("mode", ["down", "empty", "slow", "missing"])
def test_a_worker_that_cannot_ask_why_it_has_to_leave_saves_in_time(
    fake: FakeSlurm, run: RunFolder, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    attempt = attempt_of(run)
    if mode == "missing":
        monkeypatch.setenv("PATH", "/nowhere")
    fake.mode("scontrol", mode)
    begun_s = time.monotonic()
    reason = SlurmScheduler().stop_reason(run, attempt)
    assert time.monotonic() - begun_s < 60  # what is silent sleeps for 120
    assert (reason.cause, reason.grace_s) == (Cause.PREEMPTED, None)


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"JobState": "COMPLETING", "Reason": "TimeLimit"}, Cause.TIME_LIMIT),
        ({"JobState": "CANCELLED", "Reason": "None"}, Cause.CANCELLED),
        ({"JobState": "RUNNING", "PreemptTime": "2026-01-01T00:00:00"}, Cause.PREEMPTED),
    ],
)
def test_the_end_of_the_script_mends_what_a_worker_in_a_container_had_to_guess(
    fake: FakeSlurm, run: RunFolder, monkeypatch: pytest.MonkeyPatch, fields: dict[str, str], cause: Cause
) -> None:
    attempt = attempt_of(run)
    guessed = Outcome(attempt=attempt, cause=Cause.PREEMPTED, exit_code=75, saved_step=3, end_step=3)
    run.write_outcome(guessed)
    in_job(monkeypatch, attempt)
    fake.record("100", name=run.key, Restarts="0", Requeue="1", **fields)
    said = slurm_end.end(run.path, 75)
    mended = run.outcome(attempt)
    assert mended is not None
    assert mended.cause is cause
    assert said.startswith(f"attempt {attempt} of a: {cause}")
    came_back = any(call.startswith("requeue") for call in fake.calls("scontrol")) or fake.queued() != []
    assert came_back == (cause is not Cause.CANCELLED)


def test_an_accounting_that_lags_is_not_believed(fake: FakeSlurm, run: RunFolder) -> None:
    attempt = attempt_of(run)
    fake.past("100|RUNNING|0:0|node1|2026-01-01T00:00:00|Unknown||0")
    output = slurm_files.output_of(run, attempt)
    assert output is not None
    output.parent.mkdir(exist_ok=True)
    output.write_text(
        "slurmstepd: error: *** JOB 100 ON node1 CANCELLED AT 2026-01-01T01:00:00 DUE TO TIME LIMIT ***\n"
    )
    outcome = SlurmScheduler().post_mortem(run, attempt)
    assert outcome is not None
    assert outcome.cause is Cause.TIME_LIMIT


def test_an_attempt_whose_job_the_queue_still_has_gets_no_obituary(fake: FakeSlurm, run: RunFolder) -> None:
    attempt = attempt_of(run)
    fake.put("100", slurm_files.comment_of(run), state="COMPLETING", nodes="node1")
    fake.past("100|PREEMPTED|0:0|node1|2026-01-01T00:00:00|2026-01-01T01:00:00||0")
    assert SlurmScheduler().post_mortem(run, attempt) is None


@pytest.mark.parametrize(
    ("state", "reason", "shown", "why"),
    [
        ("PENDING", "JobHeldUser", "PENDING", "held by its owner [JobHeldUser]; scontrol release 100"),
        ("SPECIAL_EXIT", "None", "PENDING", "scontrol release 100"),
        ("REQUEUE_HOLD", "job requeued in held state", "PENDING", "scontrol release 100"),
        ("SUSPENDED", "None", "RUNNING", "frozen by SLURM, its memory kept [SUSPENDED]"),
        ("STOPPED", "None", "RUNNING", "stopped by SLURM, its memory kept [STOPPED]"),
        ("RESIZING", "None", "RUNNING", "on node1"),
        ("COMPLETING", "None", "RUNNING", "is leaving [COMPLETING]"),
    ],
)
def test_odd_states_of_a_job_are_shown_as_what_they_are(
    fake: FakeSlurm, run: RunFolder, state: str, reason: str, shown: str, why: str
) -> None:
    attempt_of(run)
    nodes = "node1" if shown == "RUNNING" else ""
    fake.put("100", slurm_files.comment_of(run), state=state, reason=reason, nodes=nodes)
    row = row_of(gather(run))
    assert row.state == shown
    assert why in row.why
    assert SlurmScheduler().submit(run, Resources()) == "100"
    assert fake.calls("sbatch") == []


# ------------------------------------------------------------ coming back


def refused_by_scontrol(fake: FakeSlurm) -> None:
    fake.record("100", JobState="RUNNING", Restarts="0", Requeue="1")
    fake.mode("scontrol", "refuses")


def not_requeueable(fake: FakeSlurm) -> None:
    fake.record("100", JobState="RUNNING", Restarts="0", Requeue="0")


def cancelled_by_preemption(fake: FakeSlurm) -> None:
    fake.promises(mode="CANCEL")
    fake.record("100", JobState="PREEMPTED", Restarts="0", Requeue="1")


@pytest.mark.parametrize("how", [refused_by_scontrol, not_requeueable, cancelled_by_preemption])
def test_a_job_that_cannot_be_requeued_has_one_successor_that_waits_for_it(
    fake: FakeSlurm, run: RunFolder, monkeypatch: pytest.MonkeyPatch, how: Callable[[FakeSlurm], None]
) -> None:
    slurm_files.note_job(run, "100", slurm_files.SUBMITTED)
    in_job(monkeypatch)
    how(fake)
    for _ in range(2):
        SlurmScheduler().requeue(run, Resources())
    assert fake.queued() == ["101"]
    script = fake.script("101")
    assert flag(script, "dependency") == "singleton"
    assert flag(script, "job-name") == run.key
    assert flag(script, "comment") == slurm_files.comment_of(run)
    assert slurm_files.jobs(run) == ["100", "101"]


def test_a_job_that_slurm_has_put_back_already_is_left_alone(
    fake: FakeSlurm, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_job(monkeypatch)
    for fields in ({"JobState": "PENDING", "Restarts": "0"}, {"JobState": "RUNNING", "Restarts": "1"}):
        fake.record("100", **fields)
        SlurmScheduler().requeue(run, Resources())
    assert fake.queued() == []
    assert not any(call.startswith("requeue") for call in fake.calls("scontrol"))


def test_an_element_is_requeued_by_its_number_in_the_array_never_by_that_of_the_array(
    fake: FakeSlurm, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_job(monkeypatch, element=3, SLURM_ARRAY_JOB_ID="100")
    fake.record("100", JobState="RUNNING", Restarts="0", Requeue="1")
    SlurmScheduler().requeue(run, Resources(array=8))
    assert fake.calls("scontrol")[-1] == "requeue 100_3"


def test_an_element_comes_back_alone_with_its_number_after_its_wait(
    fake: FakeSlurm, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm_files.note_job(run, "90", slurm_files.SUBMITTED)
    in_job(monkeypatch, element=3)
    fake.record("100", JobState="RUNNING", Restarts="0", Requeue="1")
    SlurmScheduler().requeue(run, Resources(array=8), delay_s=20)
    script = fake.script("101")
    assert flag(script, "array") is None
    assert flag(script, "dependency") is None  # its siblings may run for days
    assert flag(script, "begin") == "now+20"
    assert "GET3D_ELEMENT=$((3 + ${SLURM_ARRAY_TASK_ID:-0})) GET3D_ELEMENTS=8" in script


def test_a_run_comes_back_once_a_controller_that_was_down_answers_again(
    fake: FakeSlurm, run: RunFolder, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    in_job(monkeypatch)
    fake.record("100", JobState="RUNNING", Restarts="0", Requeue="1")
    pauses: list[float] = []
    for name in ("scontrol", "squeue"):
        fake.mode(name, "down")

    def sleep(seconds: float) -> None:
        if seconds in slurm.TRY_AGAIN_S:
            pauses.append(seconds)
        for name in ("scontrol", "squeue") if len(pauses) == 2 else ():
            fake.mode(name, "")

    monkeypatch.setattr("get3d_cluster.schedulers.slurm.time.sleep", sleep)
    SlurmScheduler().requeue(run, Resources())
    assert pauses == [5.0, 20.0]
    assert fake.calls("scontrol")[-1] == "requeue 100"
    assert fake.queued() == []


def test_a_second_element_comes_back_although_the_first_one_did(
    fake: FakeSlurm, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm_files.note_job(run, "90", slurm_files.SUBMITTED)
    fake.record("100", JobState="RUNNING", Restarts="0", Requeue="1")
    for element in (3, 5):
        in_job(monkeypatch, element=element)
        for _ in range(2):
            SlurmScheduler().requeue(run, Resources(array=8), delay_s=20)
    assert fake.queued() == ["101", "102"]


# ------------------------------------------------------------ starting, stopping


@pytest.mark.parametrize(
    ("nodes", "hosts"),
    [
        ("node1", "node1"),
        ("node[1-3]", "node1,node2,node3"),
        ("node[01-02,7],gpu-a", "node01,node02,node7,gpu-a"),
        ("rack[1-2]n[1-2]", "rack1n1,rack1n2,rack2n1,rack2n2"),
    ],
)
def test_an_attempt_knows_its_nodes_in_each_way_slurm_writes_them(
    fake: FakeSlurm, run: RunFolder, monkeypatch: pytest.MonkeyPatch, nodes: str, hosts: str
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "100")
    monkeypatch.setenv("SLURM_JOB_NODELIST", nodes)
    lines = slurm_start.start(run.path).splitlines()
    assert f"export GET3D_HOSTS={hosts}" in [line.replace("'", "") for line in lines]
    place = slurm_files.read_place(run, 1)
    assert place is not None
    assert ",".join(place.hosts) == hosts
    assert (run.slurm_dir / "100_submitted.pkl").exists()


def test_an_attempt_starts_although_the_controller_is_silent(
    fake: FakeSlurm, run: RunFolder, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("squeue", "scontrol", "sacct"):
        fake.mode(name, "slow")
    monkeypatch.setenv("SLURM_JOB_ID", "100")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node1")
    begun_s = time.monotonic()
    assert "export GET3D_ATTEMPT=1" in slurm_start.start(run.path)
    assert time.monotonic() - begun_s < 60  # what is silent sleeps for 120


def test_an_element_that_starts_after_done_leaves_at_once_with_0(
    fake: FakeSlurm, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.done_path.write_text("{}")
    in_job(monkeypatch, element=5)
    assert slurm_start.start(run.path).splitlines()[-1] == "exit 0"
    assert run.attempts() == []


def test_stopping_an_array_drops_what_waits_and_signals_what_runs(fake: FakeSlurm, run: RunFolder) -> None:
    comment = slurm_files.comment_of(run)
    fake.put("90", comment, state="PENDING", task="5-39%8")
    fake.put("100", comment, state="RUNNING", task="3", nodes="node1")
    attempt = attempt_of(run, element=3)
    SlurmScheduler().stop(run, Cause.SUSPENDED)
    assert fake.calls("scancel") == ["--state=PENDING 90", "--signal=USR1 100_3"]
    assert read_json(run.notice_path(attempt))["cause"] == "suspended"
    fake.mode("scancel", "down")
    with pytest.raises(SchedulerError, match=r"scancel .*Unable to contact"):
        SlurmScheduler().stop(run, Cause.CANCELLED)


# ------------------------------------------------------------ runs that come after others


@pytest.mark.parametrize(("waited_s", "delay_s"), [(0, 15), (100, 15), (1200, 120), (86_400, 600)])
def test_a_parent_that_has_no_job_is_looked_at_less_and_less_often(
    fake: FakeSlurm, run: RunFolder, tmp_path: Path, waited_s: float, delay_s: float
) -> None:
    assert slurm.gate_of([run], follows=True, waited_s=waited_s) == slurm.Gate(
        dependency="singleton", delay_s=delay_s
    )


def test_a_parent_in_the_queue_is_waited_for_and_one_that_is_done_is_not(
    fake: FakeSlurm, run: RunFolder, tmp_path: Path
) -> None:
    done = make_run(tmp_path / "done")
    done.done_path.write_text("{}")
    fake.put("90", slurm_files.comment_of(run), state="PENDING", task="5-39%8")
    fake.put("95", slurm_files.comment_of(run), state="RUNNING")
    gate = slurm.gate_of([done, run], follows=False)
    assert gate == slurm.Gate(dependency="afterany:90,afterany:95")


def test_a_waiting_run_names_what_a_person_has_to_mend_first(
    fake: FakeSlurm, run: RunFolder, tmp_path: Path
) -> None:
    child = make_run(tmp_path / "b")
    child.write_spec(dataclasses.replace(child.spec(), after=(str(run.path),)))
    fake.put("7", slurm_files.comment_of(child), state="PENDING", reason="BeginTime")
    why = SlurmScheduler().standing(child).why
    assert why == "waits for run a"
    attempt = attempt_of(run)
    refused = Outcome(
        attempt=attempt, cause=Cause.REFUSED, exit_code=2, message="out=x is no folder\nmend it"
    )
    run.write_outcome(refused)
    assert SlurmScheduler().standing(child).why == "waits for run a (failed: out=x is no folder)"
    notes.hold(run, "3 crashes without a new checkpoint")
    assert (
        SlurmScheduler().standing(child).why == "waits for run a (held: 3 crashes without a new checkpoint)"
    )
    fake.put("100", slurm_files.comment_of(run), state="RUNNING", nodes="node1")
    slurm_query.forget()
    assert SlurmScheduler().standing(child).why == "waits for run a"  # it was resumed
    shutil.rmtree(run.path)
    assert SlurmScheduler().standing(child).why == "waits for run a (its folder is gone)"


# ------------------------------------------------------------ arrays without SLURM


def test_an_array_of_a_job_without_items_is_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--cluster", "slurm", "--runs", str(tmp_path / "runs"), "resources.array=4"]
    for verb in ("plan", "submit"):
        assert command([verb, "tests.jobs_for_tests.tiny", *words]) == 2
        assert "resources.array=4: a tests.jobs_for_tests.tiny run has no items" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def progress_of(
    run: RunFolder, element: int | None, rank: int, world_size: int = 40, start_step: int | None = None
) -> Progress:
    session = session_of(run.path, SoloGroup(rank, world_size), rank + 1, element=element)
    return Progress(session, start_step)


def test_any_element_tells_the_progress_but_not_the_second_worker_of_a_job(run: RunFolder) -> None:
    progress_of(run, None, rank=1).show(Position(step=3, num_steps=9), 1.0)
    assert not run.progress_path.exists()
    progress_of(run, 7, rank=7).show(Position(step=3, num_steps=9), 1.0)
    assert run.saved_step() == 3


def test_an_element_that_counted_before_others_ended_their_items_takes_nothing_back(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead, behind = (progress_of(run, element, rank=element) for element in (1, 2))
    ahead.show(Position(step=9, num_steps=9), 1.0)
    behind.show(Position(step=8, num_steps=9), 1.0, always=True)
    assert run.saved_step() == 9
    hour_later = time.time() + 3600
    monkeypatch.setattr("get3d_cluster.runtime.progress.time.time", lambda: hour_later)
    behind.show(Position(step=5, num_steps=9), 1.0, always=True)  # somebody removed files meanwhile
    assert run.saved_step() == 5


def test_the_time_left_is_told_by_what_all_elements_made_since_the_one_that_tells_it_began(
    fake: FakeSlurm, run: RunFolder
) -> None:
    attempt_of(run, element=3)
    fake.put("100", slurm_files.comment_of(run), state="RUNNING", task="3", nodes="node1")
    late = progress_of(run, 3, rank=3, start_step=60)
    late.show(Position(step=80, num_steps=100), 5.0)
    row = row_of(gather(run))
    assert (row.state, row.eta_s) == ("RUNNING", 5.0)


def test_many_elements_together_tell_their_progress_a_few_times_a_second(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]
    monkeypatch.setattr("get3d_cluster.runtime.progress.time.monotonic", lambda: now_s[0])
    written: list[float] = []
    monkeypatch.setattr("get3d_cluster.runtime.progress.write_json", lambda *_: written.append(now_s[0]))
    one = progress_of(run, 3, rank=3, world_size=400)
    for _ in range(1000):
        one.show(Position(step=1, num_steps=9), 1.0)
        now_s[0] += 0.1
    assert written == pytest.approx([0.0, 50.0], abs=0.2)  # of 400 elements: 8 a second


# ------------------------------------------------------------ on the real one


@pytest.mark.slurm
@pytest.mark.timeout(120)
def test_a_real_job_that_sbatch_lost_sight_of_runs_to_its_end(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = f'"$real" "$@" || exit; case $1 in --test-only) exit 0 ;; esac; echo "{TIMED_OUT}" >&2; exit 1'
    shim(tmp_path / "bin", "sbatch", body, monkeypatch)
    run = submit(cluster, tmp_path, "a", "items=4", "array=2")
    wait_done(cluster, run)
    check_items(run, 4)
    assert len(slurm_files.jobs(run)) == 1
    assert shutil.which("sbatch") == str(tmp_path / "bin" / "sbatch")


@pytest.mark.slurm
@pytest.mark.long
def test_a_worker_in_a_container_without_scontrol_leaves_the_cause_to_the_batch_script(
    cluster: Cluster, tmp_path: Path
) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    for name in ("scontrol", "squeue", "sacct"):
        (inside / name).write_text(
            f"#!/bin/sh\necho {name} >>{inside}/calls\necho no such program >&2\nexit 127\n"
        )
        (inside / name).chmod(0o755)
    line = f'srun() {{ PATH={inside}:$PATH command srun "$@"; }}'
    run = submit(cluster, tmp_path, "a", "items=200", "item_s=0.3", f"setup=['{line}']")
    cluster.wait_until(lambda: log_of(tmp_path / "out" / "a"), "it is at work")
    [job] = slurm_files.jobs(run)
    cluster.run("scancel", job)
    cluster.wait_until(lambda: not cluster.squeue("-p", "low"), "the queue is empty")
    assert "scontrol" in (inside / "calls").read_text()
    notice = events(run, "notice")[0]
    assert notice["cause"] == "preempted"  # what the worker had to guess
    outcome = run.outcome(1)
    assert outcome is not None
    assert outcome.cause is Cause.CANCELLED
    assert run.attempts() == [1]
