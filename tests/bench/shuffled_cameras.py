"""Makes the control of docs/results.md: images of a rendering, each model's cameras in another order.

    python -m tests.bench.shuffled_cameras data/images data/shuffled

What is packed from that has the same images and the same cameras, and tells nothing of which belongs to which.
"""

import shutil
import sys
from pathlib import Path

import numpy as np


def shuffle(images: Path, out: Path) -> int:
    """Copy ``images`` to ``out`` with the rows of each model's camera files permuted; return how many models."""
    shutil.copytree(images, out)
    folders = sorted(path.parent for path in out.glob("camera/*/*/rotation.npy"))
    random = np.random.default_rng(0)
    for folder in folders:
        order = random.permutation(len(np.load(folder / "rotation.npy")))
        for path in sorted(folder.glob("*.npy")):
            np.save(path, np.load(path)[order])
    return len(folders)


if __name__ == "__main__":
    print(f"{shuffle(Path(sys.argv[1]), Path(sys.argv[2]))} models")
