"""Random choices as functions of names: the same on every worker, after every resume.

They are words of NumPy's Philox4x64, whose stream NumPy promises to keep (NEP 19); nothing that may change between
its versions, such as `permutation`, is used.
"""

import numpy as np
from numpy.typing import NDArray

from get3d_cluster.core.philox import key_of

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_MANTISSA_BITS = 53


def uniforms(count: int, *name: object) -> Floats:  # [count] in [0, 1)
    """Return ``count`` uniform numbers for a name; a longer draw begins with the shorter one."""
    return np.asarray((_words(count, *name) >> np.uint64(64 - _MANTISSA_BITS)) * 2.0**-_MANTISSA_BITS)


def chosen(
    population: int,
    count: int,  # all if more
    *name: object,
) -> Ints:  # [min(count, population)] ascending
    """Choose ``count`` of ``population`` numbers without replacement; a larger choice contains the smaller one."""
    order = np.argsort(_words(population, *name), kind="stable")
    return np.sort(order[:count]).astype(np.int64)


def _words(count: int, *name: object) -> NDArray[np.uint64]:
    return np.random.Philox(key=key_of(*map(str, name))).random_raw(count)
