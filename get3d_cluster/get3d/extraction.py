"""What every way to make a mesh from a signed distance field is given, and gives."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from get3d_cluster.get3d.raster.meshes import Meshes


class Weights(NamedTuple):
    """What a shape says of A cubes of its grid. Source: Shen et al. 2023 (FlexiCubes), section 4.2."""

    corners: Tensor  # [A, 8] alpha, in (0.5, 1.5)
    edges: Tensor  # [A, 12] beta, in (0.5, 1.5)
    splits: Tensor  # [A] gamma, in (0.25, 0.75)
    raw: Tensor  # [A, 21] before they were squashed


Weigh = Callable[[Tensor, Tensor], Weights]
"""From sample [A] and corners [A, 8] of cubes to their weights."""


class Extraction(NamedTuple):
    """Meshes, and how far they are from regular; both numbers are 0 for a way without weights."""

    meshes: Meshes
    deviation: Tensor
    """Mean deviation of the distances from a vertex to the crossings it stands for; world units."""
    weights_square: Tensor
    """Mean square of the raw weights."""
