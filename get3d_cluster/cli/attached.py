"""Stay with a run until nothing happens any more. Ctrl-C once suspends it, twice gives it no time, thrice lets go.

What went wrong is told on stderr when the run has ended, in at most three lines. A closed terminal ends the watching,
not the run.
"""

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from get3d_cluster.cli.facts import Inquiry, gather
from get3d_cluster.cli.output import say
from get3d_cluster.cli.status import Row, row_of
from get3d_cluster.cli.status_table import one_line
from get3d_cluster.cli.watch import Patience
from get3d_cluster.core.job import Cause, Outcome, RunState
from get3d_cluster.errors import ExitCode
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers.base import Scheduler

POLL_S = 0.5
LINE_S = 10.0
"""Seconds between lines where they cannot be overwritten, unless the state changes."""
MOST_INTERRUPTS = 2
QUIET_CODES = (
    ExitCode.FINISHED,
    ExitCode.SUSPENDED,
    ExitCode.SUSPENDED_PERIODIC,
    ExitCode.CANCELLED,
)


@dataclass
class _Line:
    """One line that is overwritten on a terminal, and repeated now and then elsewhere."""

    is_live: bool = field(default_factory=sys.stdout.isatty)
    state: str = ""
    shown_s: float = float("-inf")

    def show(self, row: Row) -> None:
        if self.is_live:
            sys.stdout.write(f"\r\033[2K{one_line(row)[: _columns()]}")
            sys.stdout.flush()
        elif row.state != self.state or time.monotonic() - self.shown_s > LINE_S:
            say(one_line(row))
            self.shown_s = time.monotonic()
        self.state = row.state

    def end(self, row: Row) -> None:
        """Leave the final state standing, whole."""
        if self.is_live:
            say(f"\r\033[2K{one_line(row)}")


def stay(run: RunFolder, scheduler: Scheduler) -> int:
    """Show the progress of ``run`` until it has ended; return the exit code of its last attempt."""
    line = _Line()
    asked = obeyed = 0
    while True:
        try:
            if obeyed < asked:
                obeyed = asked
                scheduler.stop(run, Cause.SUSPENDED, now=asked > 1)
            row = _until_ended(run, line.show)
        except KeyboardInterrupt:
            asked += 1
            if asked > MOST_INTERRUPTS:
                raise
            say(_answer(run, asked))
        else:
            line.end(row)
            sys.stderr.write("".join(f"{text}\n" for text in trouble(run, row, _last_outcome(run))))
            return _exit_code(row, _last_outcome(run))


def _until_ended(run: RunFolder, show: Callable[[Row], None]) -> Row:
    inquiry, patience = Inquiry(), Patience()
    while True:
        row = row_of(inquiry.look([run])[0])
        show(row)
        if patience.is_over([row], time.monotonic()):
            return row
        time.sleep(POLL_S)


def _answer(run: RunFolder, asked: int) -> str:
    if asked == 1:
        return f"\nsuspending {run.name}; resume it with: python launch.py resume {run.path}\nCtrl-C again: stop it now"
    return "\nstopping now; Ctrl-C again: leave it alone"


def trouble(run: RunFolder, row: Row, last: Outcome | None) -> list[str]:
    """Return what a person has to know about a run that did not end as wished, and the next command."""
    said = last.message.splitlines() if last else []
    back = f"python launch.py resume {run.path}"
    if row.state == RunState.HELD:
        knows_better = last is not None and last.cause is Cause.DIVERGED and len(said) > 1
        mend = (
            f"mend that, then: {back} (a bug mended in the code: with --new-code, for it runs its own copy)"
        )
        return [f"{run.name} is held: {row.why}", said[-1] if knows_better else mend]
    if row.state == RunState.FAILED:
        return said[:3] if len(said) > 1 else [*said[:1], f"mend that, then: {back}"]
    if row.state == RunState.LOST:
        return [f"{run.name} {row.why}", f"bring it back with: {back}"]
    failed = last and last.exit_code not in QUIET_CODES
    return [*said[:2], f"it comes back with: {back}"] if failed and row.state != RunState.DONE else []


def _last_outcome(run: RunFolder) -> Outcome | None:
    outcomes = gather(run).outcomes
    return outcomes[-1] if outcomes else None


def _exit_code(row: Row, last: Outcome | None) -> int:
    fixed = {RunState.DONE: ExitCode.FINISHED, RunState.HELD: ExitCode.HELD}
    if row.state in fixed:
        return int(fixed[RunState(row.state)])
    if last is not None:
        return last.exit_code
    return int(ExitCode.CANCELLED if row.state == RunState.CANCELLED else ExitCode.SUSPENDED)


def _columns() -> int:

    return shutil.get_terminal_size().columns - 1
