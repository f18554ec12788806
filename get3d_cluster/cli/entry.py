"""From argv to an exit code: what a person did wrong is told in at most three lines, a bug keeps its traceback."""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import typer
from typer._click.exceptions import ClickException  # Typer has no public name for its base of usage errors

from get3d_cluster.cli.app import app
from get3d_cluster.cli.output import PipeClosedError
from get3d_cluster.errors import ExitCode, Get3dError

PROGRAM = "launch.py"
INTERRUPTED = 130
"""128 + SIGINT, as shells count."""
PIPE_CLOSED = 141
"""128 + SIGPIPE, as shells count."""


def main() -> NoReturn:
    """Run the command line of this process and leave with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; return its exit code. ``--debug`` anywhere shows the traceback of an error too."""
    wanted = [argument for argument in arguments if argument != "--debug"]
    try:
        return _run(wanted, debug=len(wanted) < len(arguments))
    except (PipeClosedError, BrokenPipeError):
        # What reads us, such as head, has seen enough; the interpreter's last flush must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED


def _run(arguments: Sequence[str], *, debug: bool) -> int:
    try:
        code = app(list(arguments), prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
    except Get3dError as error:
        return _complain(error, debug=debug)
    except ClickException as error:
        verb = next((word for word in arguments if not word.startswith("-")), "")
        place = f"{PROGRAM} {verb}" if verb in typer.main.get_command(app).commands else PROGRAM  # type: ignore[attr-defined]  # a group
        print_error(error.format_message(), f"see: python {place} --help")
        return int(ExitCode.USAGE)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except (PipeClosedError, BrokenPipeError):
        raise
    except Exception:  # noqa: BLE001  a bug: its traceback is the message
        traceback.print_exc()
        return int(ExitCode.BUG)
    return code if isinstance(code, int) else 0


def print_error(what: str, way_out: str) -> None:
    """Write what is wrong and the way out to stderr, on at most three lines."""
    lines = [line for line in what.splitlines() if line.strip()]
    shown = [*lines[:2], *way_out.splitlines()[:1]]
    sys.stderr.write("".join(f"{line}\n" for line in shown))


def _complain(error: Get3dError, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    else:
        print_error(error.what, error.way_out)
    return int(error.exit_code)
