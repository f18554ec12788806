"""Write a line for every signal that comes, `WHO SIGNAL TIME`, for some seconds: signal_log.py FILE WHO [SECONDS]."""

import signal
import sys
import time
from pathlib import Path

NAMES = (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


def main(path: str, who: str, seconds: str = "120") -> None:
    """Log signals until the time is over or the kill comes."""
    signal.pthread_sigmask(signal.SIG_BLOCK, NAMES)
    with Path(path).open("a", buffering=1) as file:
        file.write(f"{who} START {time.time():.2f}\n")
        end = time.monotonic() + float(seconds)
        while (left := end - time.monotonic()) > 0:
            came = signal.sigtimedwait(NAMES, left)
            if came:
                file.write(f"{who} {signal.Signals(came.si_signo).name} {time.time():.2f}\n")


main(*sys.argv[1:])
