"""How fast the exact sum is: over a slow network beside backward, and on one machine against the library.

    python -m pytest -m bench tests/bench/test_hook.py -s

Prints a table, and writes it to ``results/hook.json``, or to that file in the folder GET3D_BENCH.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import emulated_nodes
from tests.bench.emulated_nodes import LINK, two_nodes
from tests.bench.tables import keep

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
WORKER = (sys.executable, "-m", "tests.bench.hook_worker")
S_MB, MBIT_S, STEPS, ROUNDS = 120.0, 200, 3, 21
LONGEST_S = 300

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1800)]


def finished(commands: list[list[str]], environment: dict[str, str]) -> dict:
    workers = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for command in commands
    ]
    try:
        texts = [worker.communicate(timeout=LONGEST_S)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0] * len(workers)
    return json.loads(texts[0].splitlines()[-1])


def report(name: str, rows: dict[str, dict]) -> None:
    for key, row in rows.items():
        numbers = "  ".join(f"{k} {v:.3f}" for k, v in row.items() if isinstance(v, float))
        print(f"\n{name}  {key:12} {numbers}", end="")
    print()
    keep("hook.json", {name: {"load": os.getloadavg(), "rows": rows}})


def test_over_two_nodes_with_a_slow_link_the_tree_beats_flat_and_ddp() -> None:
    if why := emulated_nodes.why_not():
        pytest.skip(f"NOT MEASURED, no emulated nodes: {why}")
    rows = {}
    with two_nodes(MBIT_S) as nodes:
        for i, variant in enumerate(("flat", "ddp", "exact", "exact_bf16")):
            where = (nodes[0].address, 29400 + i)
            commands = [
                nodes[rank // 2].command(
                    *WORKER, "emulated", rank, 4, *where, variant, nodes[rank // 2].name, STEPS
                )
                for rank in range(4)
            ]
            rows[variant] = finished(commands, ENVIRONMENT | {"GLOO_SOCKET_IFNAME": LINK})
    for row in rows.values():
        row["of_flat"] = row["step_s"] / rows["flat"]["step_s"]
        row["of_ddp"] = row["step_s"] / rows["ddp"]["step_s"]
        row["link_of_S"] = row["link_mb"] / S_MB
    report("two nodes", rows)
    assert rows["exact"]["link_of_S"] == pytest.approx(1, abs=0.01)
    assert rows["exact_bf16"]["link_of_S"] == pytest.approx(0.5, abs=0.005)
    assert rows["exact"]["of_flat"] <= 0.6
    assert rows["exact"]["of_ddp"] <= 0.75
    assert rows["exact_bf16"]["of_flat"] <= 0.45


def test_on_one_machine_the_tree_keeps_up_with_the_library() -> None:
    rows = {}
    for world in (2, 4, 8):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        commands = [
            [*WORKER, "loopback", *map(str, (rank, world, "127.0.0.1", port, ROUNDS))]
            for rank in range(world)
        ]
        rows[f"W={world}"] = finished(commands, ENVIRONMENT)
    report("loopback", rows)
    assert rows["W=2"]["ratio"] <= 1.10
    assert rows["W=4"]["ratio"] <= 1.10
