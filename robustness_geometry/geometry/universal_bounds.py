"""The bounds of Chapter 6 on universal perturbations, and the quadratic model they rest on."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustness_geometry.checks import check_positive, refuse
from robustness_geometry.geometry.bounds import checked_share

__all__ = ["crosses_quadratic", "theorem3_radius", "theorem4_radius"]


def theorem3_radius(m: int, delta: float, xi: float = 0.0) -> float:
    """Theorem 3: rho = sqrt(e m) / (delta (1 - xi)), in units of ||r||.

    Let the boundaries be flat, and let their normals lie in an m-dimensional subspace up to a share
    xi of their length. Then some v with ||v|| <= rho fools all but a share delta of the images,
    each by v or by -v.

    Args:
        m: dimension of the subspace.
        delta: in (0, 1).
        xi: in [0, 1).

    References:
        Thesis, Section 6.3, Theorem 3.
        S.-M. Moosavi-Dezfooli, A. Fawzi, O. Fawzi, P. Frossard and S. Soatto, "Robustness of
        classifiers to universal perturbations: a geometric perspective", ICLR 2018,
        arXiv:1705.09554.

    Example:
        >>> from robustness_geometry.geometry import theorem3_radius
        >>> round(theorem3_radius(m=10, delta=0.5), 2)
        10.43
    """
    if not 0 <= xi < 1:
        refuse("xi", xi, "a number in [0, 1)")
    return math.sqrt(math.e * m) / (checked_share(m, delta) * (1 - xi))


def theorem4_radius(curvature: float, m: int, delta: float) -> float:
    """Theorem 4: rho = sqrt(2 ln(2 / delta) / m) / kappa + kappa^(-1/2), in units of ||r||.

    Let the boundaries have ``curvature`` = kappa along all but a share beta of the directions of an
    m-dimensional subspace. Then some v with ||v|| <= rho fools all but a share delta + beta of the
    images. kappa is that of the quadratic model of :func:`crosses_quadratic`, which lacks the
    factor 1/2: its kappa belongs to a sphere of radius 1 / (2 kappa).

    Args:
        curvature: kappa > 0.
        m: dimension of the subspace.
        delta: in (0, 1).

    References:
        Thesis, Section 6.4, Theorem 4.
        S.-M. Moosavi-Dezfooli, A. Fawzi, O. Fawzi, P. Frossard and S. Soatto, "Robustness of
        classifiers to universal perturbations: a geometric perspective", ICLR 2018,
        arXiv:1705.09554.

    Example:
        >>> from robustness_geometry.geometry import theorem4_radius
        >>> round(theorem4_radius(curvature=1.0, m=100, delta=0.1), 3)
        1.245
    """
    kappa = check_positive("curvature", curvature)
    return math.sqrt(2 * math.log(2 / checked_share(m, delta)) / m) / kappa + kappa**-0.5


def crosses_quadratic(
    noise: Float[Tensor, "*batch d"],
    shortest: Float[Tensor, "*batch d"],
    hessian: Float[Tensor, "*batch d d"],
) -> Bool[Tensor, "*batch"]:
    """Whether v crosses the quadratic boundary model Q of Section 6.4.

    It does if (v - r)' H (v - r) + r' (v - r) >= 0. The thesis' definition of Q prints <= 0; its
    proof uses >= 0, which puts x + v on the far side.

    Args:
        noise: v, (..., d).
        shortest: r, (..., d), the smallest perturbation.
        hessian: (..., d, d) the Hessian of F = f_other - f_own over alpha = ||grad F|| / ||r||.

    Returns:
        (...).

    References:
        Thesis, Section 6.4, and the proof of Theorem 4.
        S.-M. Moosavi-Dezfooli, A. Fawzi, O. Fawzi, P. Frossard and S. Soatto, "Robustness of
        classifiers to universal perturbations: a geometric perspective", ICLR 2018,
        arXiv:1705.09554.

    Example:
        >>> from robustness_geometry.geometry import crosses_quadratic
        >>> import torch
        >>> noise, shortest = torch.tensor([0.9, 0.5]), torch.tensor([1.0, 0.0])
        >>> crosses_quadratic(noise, shortest, torch.eye(2))
        tensor(True)
    """
    offset = noise - shortest
    bent = torch.einsum("...i,...ij,...j->...", offset, hessian, offset)
    return bent + (shortest * offset).sum(dim=-1) >= 0
