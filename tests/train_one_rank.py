"""One worker of a tiny training: python -m tests.train_one_rank FOLDER DATA RANK WORLD STEPS [OVERRIDE ...].

Resumes from FOLDER/state if it is there; prints the digest of the state after each step; saves the last one.
"""

import os
import pickle
import sys
from pathlib import Path

from get3d_cluster.dist.group import meet
from get3d_cluster.runtime.checkpoint import decode, encode, state_digest
from tests import train_setup as setup


def main(folder: Path, data: Path, rank: int, world: int, steps: int, *overrides: str) -> None:
    group = meet(folder, rank, world, host="here", timeout_s=60.0)
    work = setup.trainer(setup.tiny_config(data, *overrides), folder / "run", group)
    if (folder / "state").exists():
        files = pickle.loads((folder / "state").read_bytes())
        work.load(decode({name: memoryview(content) for name, content in files.items()}))
    for _ in range(steps):
        work.step()
        print("digest", work.counters.step, state_digest(work.state()), flush=True)
    group.any([False])  # nobody leaves before all are done
    if rank == 0:
        (folder / "state").write_bytes(pickle.dumps(encode(work.state())))
    group.close()


if __name__ == "__main__":
    where, images, *numbers = sys.argv[1:]
    main(Path(where), Path(images), *map(int, numbers[:3]), *numbers[3:])
    sys.stdout.flush()
    os._exit(0)  # as a worker leaves: a thread of gloo may still be about
