"""What a supervisor concludes from the ends of its workers."""

import pytest

from get3d_cluster.core.job import Cause, Resources
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers.ending import Ending, Exit, first_failure, missing_outcome
from get3d_cluster.schedulers.local_attempt import (
    PEER_KILL_S,
    PEER_TERM_S,
    due_for_peers,
    gpus_of,
    place,
    worker_command,
)
from get3d_cluster.schedulers.local_files import Order
from get3d_cluster.schedulers.notes import Notice


def ends(*codes_and_times: tuple[int, float]) -> tuple[Exit, ...]:
    return tuple(Exit(rank=rank, code=code, at=at) for rank, (code, at) in enumerate(codes_and_times))


def ending(*codes_and_times: tuple[int, float], notice: Notice | None = None, **facts) -> Ending:
    values = {"is_done": False, "last_words": "", "start_step": 10, "saved_step": 20, "end_step": 23} | facts
    return Ending(
        attempt=3,
        exits=ends(*codes_and_times),
        notice=notice,
        seconds=1.0,
        world_size=2,
        hosts=("here",),
        **values,
    )


def test_a_killed_worker_is_the_first_failure_though_its_peers_fail_in_the_same_instant():
    assert first_failure(ends((1, 5.0), (75, 5.0), (-9, 5.0))).rank == 2
    assert first_failure(ends((1, 4.9), (-9, 5.0))).rank == 0
    assert first_failure(ends((0, 1.0), (0, 2.0))) is None


def test_peers_of_a_failed_worker_get_term_then_kill_but_time_to_save_if_it_left_in_order():
    crashed, left, finished = ends((-11, 100.0)), ends((75, 100.0)), ends((0, 100.0))
    assert due_for_peers(crashed, 30, 100.0 + PEER_TERM_S - 0.1, noticed=False) == "wait"
    assert due_for_peers(crashed, 30, 100.0 + PEER_TERM_S, noticed=False) == "term"
    assert due_for_peers(crashed, 30, 100.0 + PEER_TERM_S + PEER_KILL_S, noticed=False) == "kill"
    assert due_for_peers(crashed, 30, 129.0, noticed=True) == "wait"
    assert due_for_peers(left, 30, 129.0, noticed=False) == "wait"
    assert due_for_peers(left, 30, 130.0, noticed=False) == "term"
    assert due_for_peers(finished, 30, 1e9, noticed=False) == "wait"
    assert due_for_peers(ends((75, 100.0), (1, 101.0)), 30, 104.0, noticed=False) == "term"


@pytest.mark.parametrize(
    "code, cause, exit_code",
    [
        (1, Cause.CRASHED, 1),
        (-9, Cause.CRASHED, 1),
        (5, Cause.CRASHED, 5),
        (2, Cause.REFUSED, 2),
        (4, Cause.REFUSED, 4),
        (75, Cause.PREEMPTED, 76),
        (77, Cause.FENCED, 77),
        (78, Cause.CANCELLED, 78),
        (93, Cause.DIVERGED, 93),
        (124, Cause.HUNG, 124),
        (200, Cause.CRASHED, 200),
    ],
)
def test_exit_code_speaks_when_rank_0_left_no_outcome(code, cause, exit_code):
    outcome = missing_outcome(ending((code, 1.0), (1, 2.0)))
    assert (outcome.cause, outcome.exit_code) == (cause, exit_code)


def test_crash_quotes_the_last_words_and_counts_what_was_saved():
    outcome = missing_outcome(ending((0, 3.0), (1, 1.0), last_words="ValueError: boom"))
    assert outcome.message == "rank 1 exited 1: ValueError: boom"
    assert (outcome.start_step, outcome.saved_step, outcome.end_step, outcome.attempt) == (10, 20, 23, 3)
    assert outcome.made_progress


def test_a_notice_outweighs_exit_codes_unless_it_only_told_of_a_failed_peer():
    told = missing_outcome(ending((-9, 1.0), (-9, 1.0), notice=Notice(cause=Cause.TIME_LIMIT, grace_s=3)))
    assert (told.cause, told.exit_code) == (Cause.TIME_LIMIT, 76)
    assert "step 20" in told.message
    peer = missing_outcome(ending((-9, 9.0), (-11, 1.0), notice=Notice(cause=Cause.CRASHED, grace_s=5)))
    assert (peer.cause, peer.message) == (Cause.CRASHED, "rank 1 was killed by SIGSEGV")


def test_silent_success_counts_only_if_the_run_is_done():
    assert missing_outcome(ending((0, 1.0))).cause is Cause.CRASHED
    assert missing_outcome(ending((0, 1.0), is_done=True)).cause is Cause.FINISHED


def test_ranks_fill_nodes_and_gpus_in_order():
    resources = Resources(nodes=2, workers_per_node=2, gpus_per_worker=2)
    order = Order(job="run-1", resources=resources, gpus=tuple("abcdefgh"))
    third = place(order, attempt=7, rank=2)
    assert (third.node, third.local_rank, third.world_size, third.attempt) == (1, 0, 4, 7)
    assert [gpus_of(order, rank) for rank in range(4)] == ["a,b", "c,d", "e,f", "g,h"]
    assert gpus_of(Order(job="x", resources=Resources(), gpus=()), 0) == ""


def test_workers_import_from_the_snapshot_if_there_is_one(tmp_path):
    run = RunFolder(tmp_path)
    assert run.import_root() == run.code_dir, "a plan names the snapshot to come"
    run.spec_path.touch()
    assert (run.import_root() / "get3d_cluster" / "schedulers").is_dir()
    run.code_dir.mkdir()
    assert run.import_root() == run.code_dir
    assert worker_command(run, "/opt/python") == ["/opt/python", "-m", "get3d_cluster.worker", str(tmp_path)]
