"""In which order a run sees its data: a pure function of (seed, dataset size, position).

A position counts samples since the run began, over all epochs; it is the whole state. A batch may cross the end of an
epoch. Each epoch has its own permutation, sorted from raw Philox words: word streams never change between library
versions, shuffling functions may (NumPy's NEP 19).
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from get3d_cluster.core.philox import (
    KEY_STEPS,
    MULTIPLIERS,
    NUM_ROUNDS,
    WORD_MASK,
    Phase,
    split_seed,
)

Indices = npt.NDArray[np.int64]


def epoch_of(position: int, size: int) -> int:
    """Return the number of whole passes over ``size`` samples before ``position``."""
    return position // size


def sample_at(seed: int, size: int, start: int, count: int) -> Indices:
    """Return the dataset indices [count] at the positions ``start .. start + count - 1``.

    Costs the same at any position: one permutation is made when an epoch is entered, then kept.

    Raises: ValueError if the dataset is empty or a number is negative.
    """
    if size < 1 or start < 0 or count < 0:
        raise ValueError(f"size={size} must be at least 1, start={start} and count={count} not negative")
    pieces = []
    while count > 0:
        epoch, offset = divmod(start, size)
        piece = permutation(seed, size, epoch)[offset : offset + count]
        pieces.append(piece)
        start, count = start + len(piece), count - len(piece)
    return np.concatenate(pieces) if pieces else np.empty(0, np.int64)


@lru_cache(maxsize=2)
def permutation(seed: int, size: int, epoch: int) -> Indices:
    """Return the order [size] of one epoch, read-only."""
    halves = _words(seed, epoch, Phase.ORDER, 2 * size).astype(np.uint64)
    order = np.argsort(halves[0::2] << np.uint64(32) | halves[1::2], kind="stable")
    order.flags.writeable = False
    return order


def _words(seed: int, step: int, phase: int, count: int) -> npt.NDArray[np.uint64]:
    """Return what ``philox.words(seed, step, phase, 0, count)`` does, all blocks at once."""
    mask, shift = np.uint64(WORD_MASK), np.uint64(32)
    c0 = np.arange(-(-count // 4), dtype=np.uint64)
    c1, c2, c3 = (np.full_like(c0, value) for value in (0, step, phase))
    k0, k1 = split_seed(seed)
    for _ in range(NUM_ROUNDS):
        left, right = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c1 = (right >> shift) ^ c1 ^ np.uint64(k0), right & mask
        c2, c3 = (left >> shift) ^ c3 ^ np.uint64(k1), left & mask
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD_MASK, (k1 + KEY_STEPS[1]) & WORD_MASK
    return np.stack([c0, c1, c2, c3], axis=-1).reshape(-1)[:count]
