"""Run the checks: python -m tests.gpu [PART ...] [--device cuda:0] [--toy] [--without PACKAGE,...] [--limit-s N].

Parts: parity, exact, exchange, fullsize, speed, cost; all of them by default, each in a process and under a limit of
its own. Installs nothing and needs torch and numpy only. Prints a table; writes gpu_results.json to $OUT, or here. The
exit code is 1 if a check failed or a part ran out of time, 2 if there is no such device.
"""

import argparse
import gc
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PARTS = ("parity", "exact", "exchange", "fullsize", "speed", "cost")
LIMIT_S = 530


def main() -> int:
    options = _options_of(sys.argv[1:])
    if options.inside:
        return _inside(options)
    results = Path(os.environ.get("OUT") or Path.cwd()) / "gpu_results.json"
    told = _read(results)
    for part in options.parts or PARTS:
        told["parts"][part] = _part(part, options)
        results.write_text(json.dumps(told, indent=1) + "\n")
    print(f"\n{'=' * 100}\n{_summary(told)}\n\nwritten to {results}")
    return max(
        (part["exit_code"] for name, part in told["parts"].items() if name in (options.parts or PARTS))
    )


def _options_of(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all, one after the other")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--toy", action="store_true", help="tiny sizes: only to try these checks on a CPU")
    parser.add_argument("--without", default="", help="packages to do without, separated by commas")
    parser.add_argument("--only", default="", help="only checks whose name contains this")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="seconds that a part may take")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _read(results: Path) -> dict[str, Any]:
    """Return earlier results, so that parts can be run one by one."""
    if results.exists():
        told: dict[str, Any] = json.loads(results.read_text())
        return told
    return {"parts": {}}


def _part(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one part in a process of its own; what it has told stands even if it is killed."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        lines = Path(scratch) / "lines.jsonl"
        command = [
            sys.executable,
            "-m",
            "tests.gpu",
            part,
            "--inside",
            str(lines),
            "--device",
            options.device,
        ]
        command += ["--without", options.without, "--only", options.only, *["--toy"] * options.toy]
        child = subprocess.Popen(command, cwd=ROOT, env=_environment(), start_new_session=True)
        try:
            code = child.wait(options.limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, 9)  # with the workers that it started
            child.wait()
            print(f"OUT OF TIME  part {part} was stopped after {options.limit_s:g} s", flush=True)
            code = 1
        checks = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    seconds = round(time.monotonic() - begun, 1)
    how = {"device": options.device, "toy": options.toy, "t": time.time()}
    return {**how, "exit_code": min(abs(code), 2), "seconds": seconds, "checks": checks}


def _environment() -> dict[str, str]:
    from get3d_cluster.runtime.env import CUBLAS_VARIABLES, child_environment

    return child_environment({**CUBLAS_VARIABLES, "PYTHONUNBUFFERED": "1"})


def _inside(options: argparse.Namespace) -> int:
    """Run one part here."""
    from tests.gpu import setting as shared

    missing = shared.stand_in([name for name in options.without.split(",") if name])
    import torch

    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print(
            f"NOTHING CHECKED: torch {torch.__version__} sees no CUDA device; {options.device} was asked for"
        )
        return 2
    part = options.parts[0]
    print(f"\n== {part} on {_describe(options.device)}", flush=True)
    failed = False
    with options.inside.open("a") as lines, tempfile.TemporaryDirectory() as scratch:
        _tell(
            {"check": "environment", "result": "info", "facts": _environment_facts(options.device, missing)},
            lines,
        )
        setting = shared.Setting(
            device=options.device, folder=Path(scratch), toy=options.toy, without=tuple(missing)
        )
        for check in importlib.import_module(f"tests.gpu.{part}").CHECKS:
            if options.only in check.__name__:
                row = _row(check, setting)
                _tell(row, lines)
                failed |= row["result"] == "FAILED"
    return int(failed)


def _row(check: Any, setting: Any) -> dict[str, Any]:
    from tests.gpu.setting import Skipped, reset_peak

    gc.collect()  # what the check before held must not count as memory of this one
    reset_peak(setting.device)
    row: dict[str, Any] = {"check": check.__name__, "about": (check.__doc__ or "").strip()}
    begun = time.monotonic()
    try:
        row |= {"result": "passed", "facts": check(setting)}
    except Skipped as reason:
        row |= {"result": "SKIPPED", "facts": {"why": str(reason)}}
    except Exception as error:
        row |= {
            "result": "FAILED",
            "facts": {"why": str(error)[:2000]},
            "traceback": traceback.format_exc()[-4000:],
        }
    return row | {"seconds": round(time.monotonic() - begun, 2)}


def _tell(row: dict[str, Any], lines: Any) -> None:
    lines.write(json.dumps(row, default=str) + "\n")
    lines.flush()
    print(_table(row), flush=True)


def _table(row: dict[str, Any]) -> str:
    about, seconds = row.get("about", "").partition("\n")[0], row.get("seconds", 0)
    head = f"{row['result']:8} {row['check']:34} {seconds:>7} s   {about}"
    return "\n".join([head, *(f"           {_line(name, value)}" for name, value in row["facts"].items())])


def _line(name: str, value: Any) -> str:
    shown = f"{value:.3g}" if isinstance(value, float) and abs(value) < 1e-2 else str(value)
    return f"{name:58} {shown}"


def _describe(device: str) -> str:
    import torch

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else f"cpu {platform.machine()}"
    return f"{name}; torch {torch.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}"


def _environment_facts(device: str, missing: list[str]) -> dict[str, Any]:
    import numpy as np
    import torch

    from tests.gpu.setting import PACKAGES

    facts = {"device": _describe(device), "numpy": np.__version__}
    if device.startswith("cuda"):
        facts["cudnn"] = torch.backends.cudnn.version()
        facts["memory, GiB"] = round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
    return facts | {f"MISSING {name}": PACKAGES.get(name, "") for name in missing}


def _summary(told: dict[str, Any]) -> str:
    lines = []
    for part, result in told["parts"].items():
        kinds = [check["result"] for check in result["checks"]]
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("passed", "SKIPPED", "FAILED"))
        late = "" if result["exit_code"] in (0, 1) else "; NOTHING CHECKED"
        toy = " at toy sizes" if result["toy"] else ""
        lines.append(f"{part:10} {counts}  in {result['seconds']:g} s on {result['device']}{toy}{late}")
        lines += [
            f"    {check['result']} {check['check']}: {check['facts']['why'].splitlines()[0][:150]}"
            for check in result["checks"]
            if check["result"] in ("FAILED", "SKIPPED")
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
