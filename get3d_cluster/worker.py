"""One process of one attempt: ``python -m get3d_cluster.worker RUN``.

The handlers stand before anything else is imported; what the worker then does is in ``attempt``.
"""

import contextlib
import os
import sys

from get3d_cluster.runtime.notices import Notices


def main(arguments: list[str]) -> int:
    """Run this worker; return its exit code."""
    notices = Notices()
    notices.install()
    from get3d_cluster.runtime.env import early_notices

    if record := early_notices():
        notices.recall(record)
    from get3d_cluster.attempt import run_worker

    return run_worker(arguments, notices)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    with contextlib.suppress(OSError):  # the log may lie on the disk that is full
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)  # everything is durable; a library's thread must not keep the process
