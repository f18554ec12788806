"""The layout of a folder of rendered images, by which they are written, packed and looked through. Torch-free.

``img/<synset>/<model>/NNN.png`` beside ``camera/<synset>/<model>/{rotation,elevation}.npy``, one angle for each image.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ANGLES = ("rotation", "elevation")
"""Files of a model's cameras, without .npy."""


def image_name(view: int) -> str:
    """Return the name of the image of a view."""
    return f"{view:03d}.png"


def read_angles(path: Path) -> NDArray[np.float64]:  # [views] degrees
    """Read the angles of a model's cameras.

    Raises: FileNotFoundError; OSError or ValueError saying why a file is of no use.
    """
    with path.open("rb") as file:
        angles = np.lib.format.read_array(file, allow_pickle=False)  # np.load reads zip files, too
    if angles.ndim != 1 or angles.dtype.kind not in "fiu" or not np.isfinite(angles).all():
        raise ValueError(
            f"must hold one finite angle in degrees for each image, not {angles.dtype} of shape {angles.shape}"
        )
    return np.asarray(angles, np.float64)
