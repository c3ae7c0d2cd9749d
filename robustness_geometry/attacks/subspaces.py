"""The orthogonal projection that keeps an attack in a subspace of the images (Algorithm 3)."""

from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from robustness_geometry.checks import Described, refuse
from robustness_geometry.randomness import normal
from robustness_geometry.types import Images

__all__ = ["OwnSubspaces", "Projection", "Subspace", "projection_onto"]


@runtime_checkable
class OwnSubspaces(Protocol):
    """A subspace for each of N images, given by its projection and not by a basis.

    An example is :class:`robustness_geometry.geometry.RandomSubspaces`.
    """

    def __len__(self) -> int:
        """N."""

    def project(self, vectors: Tensor, indices: Tensor) -> Tensor:
        """Project vectors (n, K, C, H, W) onto the subspaces of the images ``indices`` (n,)."""


Subspace: TypeAlias = (
    Float[Tensor, "m d"] | Float[Tensor, "batch m d"] | Callable[[Tensor], Tensor] | OwnSubspaces
)
"""A subspace of the images.

Either orthonormal rows (m, d), the same for all images; or (N, m, d), one basis per image; or an
orthogonal projector of (..., C, H, W); or :class:`OwnSubspaces`, which is told which images the
vectors belong to.
"""

Projection: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Projects vectors (n, K, C, H, W) that belong to the images of given indices (n,)."""

ALLOWED = (
    "an orthonormal basis (m, d) or (N, m, d), or a projector (N, K, C, H, W) -> (N, K, C, H, W)"
)


def projection_onto(subspace: Subspace | None, images: Images) -> Projection:
    """The projection P_S of gradients onto ``subspace``; None leaves them as they are.

    P_S w = S S^T w for a basis with orthonormal columns S (d x m), here given as the rows of a
    tensor. This is the projector of Algorithm 3 (Section 3.4.2).

    Args:
        subspace: see :data:`Subspace`; d = C * H * W in the order of ``flatten``.
        images: (N, C, H, W), for their shape and type.

    Raises:
        InputError: a basis of a wrong shape or not orthonormal, or a projector that is not an
            orthogonal projection.
    """
    if subspace is None:
        return lambda vectors, _: vectors
    with _full_precision(images):
        project = _projection(subspace, images)

    def in_full_precision(vectors: Tensor, indices: Tensor) -> Tensor:
        with _full_precision(vectors):
            return project(vectors, indices)

    return in_full_precision


def _full_precision(tensor: Tensor) -> torch.autocast:
    """No mixed precision on the device of ``tensor``: only the network may work in it."""
    return torch.autocast(tensor.device.type, enabled=False)


def _projection(
    subspace: Tensor | Callable[[Tensor], Tensor] | OwnSubspaces, images: Images
) -> Projection:
    if isinstance(subspace, OwnSubspaces) and not isinstance(subspace, Tensor):
        return _own(subspace, images)
    if not isinstance(subspace, Tensor):
        _check_projector(subspace, images)
        return lambda vectors, _: subspace(vectors)
    basis = _checked_basis(subspace, images)

    def project(vectors: Tensor, indices: Tensor) -> Tensor:
        rows = basis[indices] if basis.ndim == 3 else basis
        return (vectors.flatten(2) @ rows.mT @ rows).view_as(vectors)

    return project


def _own(subspaces: OwnSubspaces, images: Images) -> Projection:
    """The projection onto one subspace per image, checked on the first image."""
    if len(subspaces) != len(images):
        refuse(
            "subspace",
            Described(f"subspaces of {len(subspaces)} images"),
            f"one for each of the {len(images)} images",
        )
    if len(images):
        first = torch.zeros(1, dtype=torch.int64, device=images.device)
        _check_projector(partial(subspaces.project, indices=first), images)
    return subspaces.project


def _tolerance(dtype: torch.dtype) -> float:
    """Largest rounding error of an identity: 1e-3 in float32, 5e-8 in float64."""
    return 3 * float(torch.finfo(dtype).eps) ** 0.5


def _checked_basis(basis: Tensor, images: Images) -> Tensor:
    """``basis`` in the type and on the device of ``images``, once checked to be orthonormal."""
    dimension = images.shape[1:].numel()
    fits = (
        basis.ndim in (2, 3) and basis.shape[-1] == dimension and 1 <= basis.shape[-2] <= dimension
    )
    if not fits or (basis.ndim == 3 and len(basis) != len(images)):
        refuse(
            "subspace.shape",
            tuple(basis.shape),
            f"{ALLOWED} with N = {len(images)}, d = {dimension}",
        )
    basis = basis.detach().to(images)
    identity = torch.eye(basis.shape[-2], dtype=basis.dtype, device=basis.device)
    if basis.numel() and not bool(
        ((basis @ basis.mT - identity).abs() <= _tolerance(basis.dtype)).all()
    ):
        refuse(
            "subspace",
            Described("rows that are not orthonormal"),
            "orthonormal rows (see robustness_geometry.geometry.orthonormalise)",
        )
    return basis


def _check_projector(projector: Callable[[Tensor], Tensor], images: Images) -> None:
    """Check on two random vectors u, v that P P v = P v and <P u, v> = <u, P v>."""
    probe = normal(images.new_empty(1, 2, *images.shape[1:]), None)
    once = projector(probe)
    if once.shape != probe.shape:
        refuse("subspace", Described(f"a projector to shape {tuple(once.shape)}"), ALLOWED)
    scale = _tolerance(probe.dtype) * float(probe.flatten(2).square().sum(dim=2).max())
    products = once.flatten(2)[0] @ probe.flatten(2)[0].T
    if (
        float((projector(once) - once).abs().max()) > scale
        or float((products - products.T).abs().max()) > scale
    ):
        refuse("subspace", Described("a function that is not an orthogonal projection"), ALLOWED)
