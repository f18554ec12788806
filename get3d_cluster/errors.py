"""Every error a user can act on, and the exit code it ends a process with.

Get3dError                    1  a bug, unless it is one of:
  UsageError                  2  command line, configuration, unusable data
  SchedulerError              3  the scheduler refused or cannot be reached
  CheckpointError             4  no usable checkpoint although there should be one
  StorageError                5  storage full or not writable
  DifferenceError             6  `simulate` or `checkpoints --verify` found a difference
  FencedError                77  another attempt owns the run
  HeldError                  93  held for a person
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """How a process of this project ends; the outcome file of the attempt is authoritative, not the code."""

    FINISHED = 0
    BUG = 1
    USAGE = 2
    SCHEDULER = 3
    NO_CHECKPOINT = 4
    STORAGE = 5
    DIFFERENCE = 6
    SUSPENDED = 75
    SUSPENDED_PERIODIC = 76
    FENCED = 77
    CANCELLED = 78
    HELD = 93
    HUNG = 124


class Get3dError(Exception):
    """Something a person can act on: what is wrong (key or path, and value), and the way out.

    Printed as at most three lines, without a traceback: ``what`` (one or two lines), then ``way_out``.
    """

    exit_code: ExitCode = ExitCode.BUG

    def __init__(self, what: str, way_out: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.way_out = way_out


class UsageError(Get3dError):
    """A wrong command line, configuration or dataset."""

    exit_code = ExitCode.USAGE


class SchedulerError(Get3dError):
    """The scheduler refused or cannot be reached."""

    exit_code = ExitCode.SCHEDULER


class CheckpointError(Get3dError):
    """No usable checkpoint although there should be one."""

    exit_code = ExitCode.NO_CHECKPOINT


class StorageError(Get3dError):
    """The storage is full or cannot be written."""

    exit_code = ExitCode.STORAGE


class DifferenceError(Get3dError):
    """Two things that have to be equal are not."""

    exit_code = ExitCode.DIFFERENCE


class FencedError(Get3dError):
    """Another attempt owns the run; this one must leave without publishing."""

    exit_code = ExitCode.FENCED


class HeldError(Get3dError):
    """The run waits for a person."""

    exit_code = ExitCode.HELD
