"""Which checkpoint all workers of an attempt go on from, and how its work takes it over."""

from get3d_cluster.errors import CheckpointError, Get3dError, UsageError
from get3d_cluster.runtime.checkpoint import Checkpoints, DamagedError, Loaded
from get3d_cluster.runtime.checkpoint_tree import shape_differences
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.runtime.session import Session, Work

MOST_SHOWN = 4
"""Tensors that an error names."""


def load_together(checkpoints: Checkpoints, session: Session, up_to: int | None = None) -> Loaded | None:
    """Return the newest usable checkpoint (of step ``up_to`` at most), which rank 0 chooses and verifies, on all ranks.

    Raises: CheckpointError if there is none although there was one, or if a rank cannot read the one chosen.
    """
    if session.rank == 0:
        loaded = checkpoints.load() if up_to is None else checkpoints.load_up_to(up_to)
        if loaded is None and up_to is None:
            _refuse_to_start_over(session.run)
        session.group.broadcast([loaded.step, loaded.tier] if loaded else None)
        return loaded
    chosen = session.group.broadcast(None)
    try:
        return None if chosen is None else checkpoints.read_step(*chosen)
    except DamagedError as error:
        raise CheckpointError(f"rank {session.rank} reads another checkpoint than rank 0: {error}") from error


def give_back(work: Work, loaded: Loaded) -> None:
    """Let ``work`` take over a saved state. Raises: UsageError naming tensors of other shapes, if it cannot."""
    try:
        work.load(loaded.state)
    except Get3dError:
        raise
    except Exception as error:
        differing = shape_differences(loaded.state, work.state())
        if not differing:
            raise
        shown = "; ".join(differing[:MOST_SHOWN])
        more = f"; {len(differing) - MOST_SHOWN} more" if len(differing) > MOST_SHOWN else ""
        raise UsageError(
            f"the checkpoint of step {loaded.step} does not fit the configuration: {shown}{more}",
            "nothing was lost: give the values of before with --allow-config-change, or train under another --name",
        ) from error


def _refuse_to_start_over(run: RunFolder) -> None:
    """Make sure that no checkpoint was ever published, or that the training went back to its beginning since.

    Raises: CheckpointError if the run's history knows one.
    """
    rows = read_rows(run.events_path)
    starts = [place for place, row in enumerate(rows) if row["event"] == "rollback" and row["to"] == 0]
    since, attempt = (starts[-1], rows[starts[-1]]["attempt"]) if starts else (0, 0)
    saved = [outcome.saved_step for outcome in run.outcomes() if outcome.attempt >= attempt]
    saved += [row["step"] for row in rows[since:] if row["event"] == "save"]
    if run.is_done() or max(saved, default=0) > 0:
        raise CheckpointError(
            f"{run.checkpoints_dir} holds no checkpoint, although this run saved step {max(saved, default=0)}",
            "restore the folder, or mount its disk, then resume; to start over take another --name",
        )
