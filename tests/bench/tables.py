"""Where measurements are kept: a table each in a file of tests/bench/results, or of the folder GET3D_BENCH."""

import json
import os
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def keep(name: str, tables: dict[str, Any]) -> None:
    """Put tables into the file ``name``, beside others that are there."""
    folder = Path(os.environ.get("GET3D_BENCH") or RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | tables, indent=1) + "\n")
