"""What every scheduler has to do, as tests. A scheduler joins by a subclass and a fixture ``scheduler``."""

from pathlib import Path

import pytest

from get3d_cluster.core.job import Cause, Resources
from get3d_cluster.errors import UsageError
from get3d_cluster.schedulers.base import Scheduler
from tests.integration.fake_attempts import causes, ended, make_run, release, started, told, wait_for

LONG = {"*": {"seconds": 60}}


class SchedulerContract:
    """Bodies; ``scheduler`` has room for two workers."""

    def test_run_goes_to_its_end_with_all_workers_and_is_absent_after(
        self, scheduler: Scheduler, tmp_path: Path
    ):
        run = make_run(tmp_path / "run")
        job = scheduler.submit(run, Resources(workers_per_node=2))
        assert ended(run, 1).cause is Cause.FINISHED
        assert started(run, 1, rank=1)["env"]["WORLD_SIZE"] == "2"
        wait_for(lambda: scheduler.standing(run).state == "absent")
        assert job
        assert run.attempts() == [1]

    def test_workers_start_from_the_code_snapshot_and_leave_logs(self, scheduler: Scheduler, tmp_path: Path):
        run = make_run(tmp_path / "run")
        scheduler.submit(run, Resources())
        assert started(run, 1)["file"].startswith(str(run.code_dir))
        ended(run, 1)
        assert "worker 0 is up" in run.log_path(1, 0).read_text()

    @pytest.mark.parametrize("cause", [Cause.SUSPENDED, Cause.CANCELLED])
    def test_person_stops_a_running_attempt_and_it_stays_away(
        self, scheduler: Scheduler, tmp_path: Path, cause: Cause
    ):
        run = make_run(tmp_path / "run", LONG)
        scheduler.submit(run, Resources(workers_per_node=2))
        started(run, 1, rank=1)
        scheduler.stop(run, cause)
        assert ended(run, 1).cause is cause
        assert told(run, 1, rank=1)["notice"]["cause"] == cause
        assert scheduler.stop_reason(run, 1).cause is cause
        wait_for(lambda: scheduler.standing(run).state == "absent")
        assert run.attempts() == [1]

    def test_preempted_run_comes_back_by_itself(self, scheduler: Scheduler, tmp_path: Path):
        run = make_run(tmp_path / "run", {"1": {"seconds": 60}})
        scheduler.submit(run, Resources())
        started(run, 1)
        scheduler.stop(run, Cause.PREEMPTED)
        assert ended(run, 2).cause is Cause.FINISHED
        assert causes(run) == [Cause.PREEMPTED, Cause.FINISHED]

    def test_stop_now_grants_no_grace_and_the_outcome_is_still_written(
        self, scheduler: Scheduler, tmp_path: Path
    ):
        run = make_run(tmp_path / "run", {"*": {"seconds": 60, "on_term": "ignore"}})
        scheduler.submit(run, Resources(grace_s=600))
        started(run, 1)
        scheduler.stop(run, Cause.SUSPENDED, now=True)
        outcome = ended(run, 1)
        assert (outcome.cause, outcome.exit_code) == (Cause.SUSPENDED, 76)

    def test_submitting_twice_starts_one_attempt(self, scheduler: Scheduler, tmp_path: Path):
        run = make_run(tmp_path / "run", LONG)
        names = {scheduler.submit(run, Resources()) for _ in range(3)}
        assert len(names) == 1
        started(run, 1)
        assert scheduler.submit(run, Resources()) in names
        release(run)
        wait_for(lambda: scheduler.standing(run).state == "absent")
        assert run.attempts() == [1]

    def test_run_starts_only_once_those_before_it_are_done(self, scheduler: Scheduler, tmp_path: Path):
        first = make_run(tmp_path / "first", {"*": {"seconds": 1.0}})
        second = make_run(tmp_path / "second")
        scheduler.submit(second, Resources(), after=[first])
        wait_for(lambda: "first" in scheduler.standing(second).why)
        scheduler.submit(first, Resources())
        ended(second, 1)
        assert first.is_done()
        first_end = (first.attempt_dir(1) / "outcome.json").stat().st_mtime
        assert (second.attempt_dir(1) / "started.0").stat().st_mtime > first_end

    def test_stopped_pending_run_never_starts(self, scheduler: Scheduler, tmp_path: Path):
        run = make_run(tmp_path / "run")
        scheduler.submit(run, Resources(), delay_s=30)
        assert scheduler.standing(run).state == "pending"
        scheduler.stop(run, Cause.CANCELLED)
        wait_for(lambda: scheduler.standing(run).state == "absent")
        assert run.attempts() == []

    def test_impossible_request_is_refused_with_a_way_out(self, scheduler: Scheduler, tmp_path: Path):
        run = make_run(tmp_path / "run")
        with pytest.raises(UsageError, match="workers_per_node=100000"):
            scheduler.submit(run, Resources(workers_per_node=100_000))
        with pytest.raises(UsageError):
            scheduler.plan(run, Resources(workers_per_node=100_000))
        assert scheduler.standing(run).state == "absent"

    def test_plan_changes_nothing(self, scheduler: Scheduler, tmp_path: Path):
        run = make_run(tmp_path / "run")
        before = sorted(tmp_path.rglob("*"))
        assert scheduler.plan(run, Resources(workers_per_node=2))
        assert sorted(tmp_path.rglob("*")) == before
