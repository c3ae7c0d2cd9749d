"""l_p norms of batches, their duals, and the minimal step to a hyperplane (Section 3.4.1)."""

import math
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from robustness_geometry.checks import refuse
from robustness_geometry.types import PerImage

__all__ = ["HALF", "dual", "hyperplane_step", "norms", "project", "relative_norms"]


HALF = (torch.float16, torch.bfloat16)
"""Types in which sums lose too many digits."""

Vectors: TypeAlias = Float[Tensor, "batch ..."]
"""One vector of any shape for each entry of the first dimension."""


def norms(vectors: Vectors, p: int | float = 2.0) -> PerImage:
    """The l_p norm of each vector of a batch.

    Args:
        vectors: (N, ...) any trailing shape.
        p: exponent, 1 <= p <= inf.

    Returns:
        (N,) norms, of the type of ``vectors``; those of half precision are computed in float32.

    Example:
        >>> import torch
        >>> from robustness_geometry.norms import norms
        >>> norms(torch.tensor([[3.0, -4.0], [0.0, 2.0]]), 1).tolist()
        [7.0, 2.0]
    """
    flat = vectors.flatten(1)
    if flat.dtype in HALF:
        return norms(flat.float(), p).to(flat.dtype)
    if p in (1, 2, math.inf):
        return torch.linalg.vector_norm(flat, ord=p, dim=1)
    # Large powers of small numbers would vanish: the largest entry is taken out first.
    largest = flat.abs().amax(dim=1)
    scaled = torch.where(largest[:, None] > 0, flat / largest[:, None], 0.0)
    return largest * torch.linalg.vector_norm(scaled, ord=p, dim=1)


def relative_norms(perturbations: Vectors, images: Vectors, p: int | float = 2.0) -> PerImage:
    """||r||_p / ||x||_p of each image, the summand of Equation 3.10.

    An all-black image gives inf.

    References:
        Thesis: Section 3.2.3, Equation 3.10; their mean is the robustness rho.

    Example:
        >>> import torch
        >>> from robustness_geometry.norms import relative_norms
        >>> relative_norms(torch.full((1, 1, 2, 2), 0.25), torch.ones(1, 1, 2, 2)).tolist()
        [0.25]
    """
    return norms(perturbations, p) / norms(images, p)


def dual(p: int | float) -> float:
    """The dual exponent q with 1/p + 1/q = 1.

    Example:
        >>> from robustness_geometry.norms import dual
        >>> dual(2), dual(1)
        (2.0, inf)
    """
    if p == 1:
        return math.inf
    return 1.0 if math.isinf(p) else p / (p - 1)


def hyperplane_step(gaps: PerImage, normals: Vectors, p: int | float = 2.0) -> Vectors:
    """The l_p-smallest vectors r with <w, r> = gap (Equation 3.12).

    r = gap / ||w||_q^q * |w|^(q-1) * sign(w); for p = inf the sign vector, for p = 1 a single
    largest coordinate.

    Args:
        gaps: (N,) signed offsets.
        normals: (N, ...) the hyperplanes' normals w; a zero normal gives a zero step.
        p: exponent, 1 <= p <= inf.

    Returns:
        (N, ...) steps of the shape of ``normals``.

    References:
        Thesis: Section 3.4.1, Equations 3.12 and 3.14.

    Example:
        >>> import torch
        >>> from robustness_geometry.norms import hyperplane_step
        >>> hyperplane_step(torch.tensor([5.0]), torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000]])
        >>> hyperplane_step(torch.tensor([7.0]), torch.tensor([[3.0, 4.0]]), float("inf")).tolist()
        [[1.0, 1.0]]
    """
    flat = normals.flatten(1)
    size = norms(flat, dual(p))
    distance = torch.where(size > 0, gaps / size, torch.zeros_like(gaps))
    if p == 2:
        direction = flat / size.clamp_min(torch.finfo(flat.dtype).tiny)[:, None]
    elif math.isinf(p):
        direction = flat.sign()
    elif p == 1:
        largest = flat.abs().argmax(dim=1, keepdim=True)
        direction = torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest).sign())
    else:
        scaled = flat / size.clamp_min(torch.finfo(flat.dtype).tiny)[:, None]
        direction = scaled.abs().pow(dual(p) - 1) * scaled.sign()
    return (distance[:, None] * direction).view_as(normals)


def project(vectors: Vectors, radius: int | float | PerImage, p: int | float = 2.0) -> Vectors:
    """The Euclidean projection of each vector onto the l_p ball of ``radius``.

    Args:
        vectors: (N, ...).
        radius: radius of the ball, in the units of ``vectors``; (N,) for one ball per vector.
        p: 1, 2 or inf.

    Raises:
        InputError: another exponent.

    References:
        Thesis: Section 4.2, the operator P of Algorithm 4.

    Example:
        >>> import torch
        >>> from robustness_geometry.norms import project
        >>> project(torch.tensor([[3.0, -4.0]]), 3.0, float("inf")).tolist()
        [[3.0, -3.0]]
    """
    if p not in (1, 2, math.inf):
        refuse("norm", p, "1, 2 or inf for a projection")
    flat = vectors.flatten(1)
    if isinstance(radius, Tensor):
        radius = radius[:, None]
    if math.isinf(p):
        largest = torch.as_tensor(radius, dtype=flat.dtype, device=flat.device)
        return flat.clamp(-largest, largest).view_as(vectors)
    if p == 2:
        size = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
        scale = (radius / size.clamp_min(torch.finfo(flat.dtype).tiny)).clamp(max=1.0)
        return (flat * scale).view_as(vectors)
    return _project_l1(flat, radius).view_as(vectors)


def _project_l1(flat: Tensor, radius: float | Tensor) -> Tensor:
    """Projection onto the l_1 ball by the sorted soft threshold (Duchi et al., 2008)."""
    sizes = flat.abs().sort(dim=1, descending=True).values
    excess = sizes.cumsum(dim=1) - radius
    count = torch.arange(1, flat.shape[1] + 1, device=flat.device)
    support = (sizes * count > excess).sum(dim=1, keepdim=True).clamp_min(1)
    threshold = excess.gather(1, support - 1) / support
    shrunk = flat.sign() * (flat.abs() - threshold.clamp_min(0)).clamp_min(0)
    return torch.where(flat.abs().sum(dim=1, keepdim=True) <= radius, flat, shrunk)
