"""The least distance inside one linear region of a ReLU network."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linprog, nnls
from scipy.sparse import csr_array, eye_array, hstack, vstack

from robustness_geometry.certify.hyperplanes import Clip, halfspace_distance

__all__ = ["Dense", "least_distance"]


@dataclass(frozen=True)
class Dense:
    """A ReLU network of dense layers, as a function of the step from an image.

    Attributes:
        layers: (W, b) of each layer, in float64.
        image: (d,) the image, for the pixels' limits; zeros where there are none.
    """

    layers: list[tuple[np.ndarray, np.ndarray]]
    image: np.ndarray

    def pattern(self, step: np.ndarray) -> list[np.ndarray]:
        """Which units are above zero at a step, layer by layer."""
        found, value = [], step
        for weight, bias in self.layers[:-1]:
            value = weight @ value + bias
            found.append(value > 0)
            value = np.maximum(value, 0)
        return found

    def logits(self, step: np.ndarray) -> np.ndarray:
        """The logits at a step."""
        value = step
        for weight, bias in self.layers[:-1]:
            value = np.maximum(weight @ value + bias, 0)
        weight, bias = self.layers[-1]
        return weight @ value + bias

    def region(self, pattern: list[np.ndarray], row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The constraints A step >= b of a pattern, the last one that ``row`` @ logits <= 0."""
        slope, shift = np.eye(self.layers[0][0].shape[1]), np.zeros(self.layers[0][0].shape[1])
        rows, offsets = [], []
        for (weight, bias), on in zip(self.layers[:-1], pattern, strict=True):
            slope, shift = weight @ slope, weight @ shift + bias
            sign = np.where(on, 1.0, -1.0)
            rows.append(sign[:, None] * slope)
            offsets.append(-sign * shift)
            slope, shift = on[:, None] * slope, on * shift
        weight, bias = self.layers[-1]
        rows.append(-(row @ weight @ slope)[None])
        offsets.append(np.array([row @ (weight @ shift + bias)]))
        return np.concatenate(rows), np.concatenate(offsets)


def least_distance(
    network: Dense, pattern: list[np.ndarray], row: np.ndarray, norm: float, clip: Clip
) -> tuple[float, np.ndarray | None]:
    """The least l_2 or l_inf step into a linear region's part on the other side.

    Args:
        network: the network around the image.
        pattern: which units are above zero.
        row: f_label - f_rival as a functional of the logits, at most zero on the other side.
        norm: 2 or inf.
        clip: lowest and highest pixel value, or None.

    Returns:
        A lower bound, proved from the solver's multipliers (inf for an empty region), and the step.
    """
    rows, offsets = network.region(pattern, row)
    size = np.linalg.norm(rows, axis=1)
    if bool((offsets[size == 0] > 1e-12).any()):
        return math.inf, None
    rows, offsets = (v[size > 0] for v in (rows, offsets))
    rows, offsets = rows / size[size > 0][:, None], offsets / size[size > 0]
    solve = _least_cube if math.isinf(norm) else _least_ball
    step, weights = solve(rows, offsets, network.image, clip)
    if not weights.any():
        return (math.inf if step is None else 0.0), step
    coefficients = torch.from_numpy(-(weights @ rows))[None, None]
    constants = torch.tensor([[float(weights @ offsets)]], dtype=torch.float64)
    image = torch.from_numpy(network.image)[None]
    constants = constants - (coefficients[0] * image).sum()
    bound = halfspace_distance(coefficients, constants, image, norm, clip)
    return float(bound), step


def _least_ball(
    rows: np.ndarray, offsets: np.ndarray, image: np.ndarray, clip: Clip
) -> tuple[np.ndarray | None, np.ndarray]:
    """Least distance programming by non-negative least squares (Lawson and Hanson, chapter 23).

    Limits of pixels are added as they are broken.
    """
    count, dimension = rows.shape
    scale = max(float(offsets.max()), 1e-30)
    limits: dict[tuple[int, int], float] = {}
    while True:
        extra = np.zeros((len(limits), dimension))
        for k, (pixel, sign) in enumerate(limits):
            extra[k, pixel] = sign
        bounds = np.array([*offsets, *limits.values()]) / scale
        system = np.vstack([np.vstack([rows, extra]).T, bounds])
        target = np.zeros(dimension + 1)
        target[-1] = 1.0
        weights, _ = nnls(system, target, maxiter=100 * system.shape[1])
        rest = system @ weights - target
        if np.linalg.norm(rest) < 1e-9:
            return None, weights[:count]
        step = -rest[:-1] / rest[-1] * scale
        if clip is None:
            return step, weights[:count]
        low, high = clip[0] - image, clip[1] - image
        broken = {(int(i), 1): low[i] for i in np.flatnonzero(step < low - 1e-12)}
        broken |= {(int(i), -1): -high[i] for i in np.flatnonzero(step > high + 1e-12)}
        if not broken.keys() - limits.keys():
            return np.clip(step, low, high), weights[:count]
        limits |= broken


def _least_cube(
    rows: np.ndarray, offsets: np.ndarray, image: np.ndarray, clip: Clip
) -> tuple[np.ndarray | None, np.ndarray]:
    """The least l_inf step by linear programming."""
    count, dimension = rows.shape
    unit = eye_array(dimension)
    cube = csr_array(np.full((dimension, 1), -1.0))
    system: Any = vstack(
        [
            hstack([csr_array(-rows), csr_array((count, 1))]),
            hstack([unit, cube]),
            hstack([-unit, cube]),
        ],
        format="csr",
    )
    right = np.concatenate([-offsets, np.zeros(2 * dimension)])
    cost = np.zeros(dimension + 1)
    cost[-1] = 1.0
    limits: Any = np.full((dimension + 1, 2), [-math.inf, math.inf])
    limits[-1, 0] = 0.0
    if clip is not None:
        limits[:-1] = np.stack([clip[0] - image, clip[1] - image], axis=1)
    found: Any = linprog(cost, A_ub=system, b_ub=right, bounds=limits, method="highs")
    if found.status != 0:
        return None, np.zeros(count)
    return found.x[:-1], np.maximum(-found.ineqlin.marginals[:count], 0)
