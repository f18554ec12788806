"""Numbers that describe a silhouette whatever its place, size, turn and mirror image. Letters: N images, H = W pixels.

They are the two kinds of Chen et al. 2003, section 4: 35 Zernike moments of the region and 10 Fourier coefficients of
its outline. What the paper leaves open is said at each function.
"""

from functools import cache
from math import comb, factorial

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float64]
Masks = NDArray[np.bool_]

ORDER = 10
NUM_ZERNIKE = 35
NUM_FOURIER = 10
OUTLINE_POINTS = 128
"""Places on the outline at which its distance from the centre is taken."""

# Clockwise from the left: row and column of the eight neighbours.
_AROUND = np.array([(0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1)], np.int64)
_LOOK_BACK = np.array([6, 6, 0, 0, 2, 2, 4, 4], np.int64)
"""Having moved in a direction: where the neighbour lies that was looked at before it."""


def descriptors(
    masks: Masks,  # [N, H, W]
) -> NDArray[np.float32]:  # [N, 45]
    """Return the numbers of each silhouette; zeros for an empty one."""
    return np.stack([_descriptor(mask) for mask in masks])


def _descriptor(mask: Masks) -> NDArray[np.float32]:
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return np.zeros(NUM_ZERNIKE + NUM_FOURIER, np.float32)
    centre = np.array([rows.mean(), columns.mean()])
    parts = [zernike_moments(mask, centre), fourier_coefficients(mask, centre)]
    return np.concatenate(parts).astype(np.float32)


def zernike_moments(
    mask: Masks,  # [H, W], not empty
    centre: Floats,  # [2] row, column of the centroid
) -> Floats:  # [35] in [0, 1]
    """Return the absolute means of the Zernike functions of orders 1 to 10 over the region.

    The unit disc is around the centroid and reaches to the farthest corner of a covered pixel. A mean rather than an
    integral: the size drops out, and no order weighs more than another.
    """
    rows, columns = np.nonzero(mask)
    radius = np.hypot(np.abs(rows - centre[0]) + 0.5, np.abs(columns - centre[1]) + 0.5).max()
    y = (np.arange(mask.shape[0]) - centre[0]) / radius
    x = (np.arange(mask.shape[1]) - centre[1]) / radius
    powers_y, powers_x = np.vander(y, ORDER + 1, increasing=True), np.vander(x, ORDER + 1, increasing=True)
    moments = powers_x.T @ mask.T.astype(np.float64) @ powers_y  # [p, q]: sum of x^p y^q
    means = np.tensordot(_zernike_polynomials(), moments / moments[0, 0], axes=2)
    return np.abs(means)


@cache
def _zernike_polynomials() -> NDArray[np.complex128]:  # [35, 11, 11] of x^p y^q
    """Return the conjugate Zernike functions as polynomials: orders 1 to 10, no negative repetitions.

    Source: Teague 1980; Khotanzad and Hong 1990, equations 3 and 4.
    """
    orders = [(n, m) for n in range(1, ORDER + 1) for m in range(n % 2, n + 1, 2)]
    return np.stack([_zernike_polynomial(n, m) for n, m in orders])


def _zernike_polynomial(n: int, m: int) -> NDArray[np.complex128]:
    found = np.zeros((ORDER + 1, ORDER + 1), np.complex128)
    for s in range((n - m) // 2 + 1):
        numerator = (-1) ** s * factorial(n - s)
        weight = numerator // (factorial(s) * factorial((n + m) // 2 - s) * factorial((n - m) // 2 - s))
        pairs = (n - m) // 2 - s  # radius^(n - 2 s) = (x^2 + y^2)^pairs radius^m
        for i in range(pairs + 1):
            for j in range(m + 1):  # (x - i y)^m
                found[2 * i + m - j, 2 * (pairs - i) + j] += weight * comb(pairs, i) * comb(m, j) * (-1j) ** j
    return found


def fourier_coefficients(
    mask: Masks,  # [H, W], not empty
    centre: Floats,  # [2]
) -> Floats:  # [10]
    """Return how the outline's distance from the centre varies around it, in units of its mean.

    Outline: the outer one of the largest part (8 neighbours), at 128 places of equal spacing along it.
    Source: Zhang and Lu 2002, centroid distance signature, as Chen et al. 2003 use it.
    """
    line = outline(_largest_part(mask))
    distances = np.hypot(*(line - centre).T)
    steps = np.hypot(*(np.roll(line, -1, axis=0) - line).T)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    if along[-1] == 0:  # one pixel
        return np.zeros(NUM_FOURIER)
    places = np.arange(OUTLINE_POINTS) * (along[-1] / OUTLINE_POINTS)
    signature = np.interp(places, along, np.append(distances, distances[0]))
    spectrum = np.abs(np.fft.rfft(signature))
    return np.asarray(spectrum[1 : NUM_FOURIER + 1] / max(spectrum[0], 1e-12))


def outline(
    mask: Masks,  # [H, W] of one part, not empty
) -> Floats:  # [L, 2] row, column
    """Follow the outer border of a region clockwise, through the centres of its pixels."""
    padded = np.pad(mask, 1)
    row, column = np.argwhere(padded)[0]
    return np.asarray(_followed(padded, row, column) - 1, np.float64)


def _largest_part(mask: Masks) -> Masks:
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    if count == 1:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


@njit(cache=True, nogil=True)
def _followed(mask: Masks, row: int, column: int) -> NDArray[np.int64]:  # pragma: no cover - compiled
    """Moore's walk from the first pixel of the region; ends where it would repeat its first step."""
    most = 4 * mask.size
    places = np.empty((most, 2), np.int64)
    count, back = 0, 0
    first_row, first_column = row, column
    second = -1
    while count < most:
        places[count] = (row, column)
        count += 1
        direction = -1
        for turn in range(1, 9):
            looked = (back + turn) % 8
            if mask[row + _AROUND[looked, 0], column + _AROUND[looked, 1]]:
                direction = looked
                break
        if direction < 0:
            break
        if row == first_row and column == first_column:
            if direction == second:
                count -= 1
                break
            if second < 0:
                second = direction
        row += _AROUND[direction, 0]
        column += _AROUND[direction, 1]
        back = _LOOK_BACK[direction]
    return places[:count]
