"""The loop of an ``items`` job: workers share out items, and each starts and ends alone."""

import time
from collections.abc import Callable

from get3d_cluster.runtime.ending import End, Ended, Reason, write_notice
from get3d_cluster.runtime.progress import Progress
from get3d_cluster.runtime.session import ItemWork, Session
from get3d_cluster.runtime.watchdog import process_age_s


def run_items(work: ItemWork, session: Session, stop_reason: Callable[[], Reason] | None = None) -> Ended:
    """Run a worker of an ``items`` job until every item has come to its end, or until a notice to this worker.

    ``stop_reason`` is asked after a notice, by each worker that got it.
    """
    pulse = session.pulse
    position = work.position()
    start_step = position.step
    if session.is_lead:
        session.events.write("start", step=start_step, since_s=round(process_age_s(), 3))
    progress = Progress(session, start_step)
    progress.show(position, 0.0)
    begun_s = time.monotonic()
    try:
        while not work.is_done() and not session.notices.requested:
            with pulse.counting("step"):
                work.step()
            position = work.position()
            pulse.beat("step", position.step)
            progress.show(position, time.monotonic() - begun_s)
        done = work.is_done()
        if not done:
            reason = stop_reason() if stop_reason else None
            told, signals = [session.rank], [session.notices.signal_name]
            write_notice(session, reason, work.position(), told, signals)
    finally:
        pulse.beat("leaving", pulse.step)
        work.close()
    position = work.position()
    progress.show(position, time.monotonic() - begun_s, always=True)
    end = End.FINISHED if done else End.SUSPENDED
    return Ended(end=end, start_step=start_step, step=position.step, saved_step=position.step)
