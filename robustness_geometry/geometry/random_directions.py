"""Random directions of the image space or of a subspace (Sections 5.3, 6.4.1 and 7.4)."""

from jaxtyping import Float
from torch import Tensor

from robustness_geometry.attacks.protocol import per_image
from robustness_geometry.checks import Described, refuse
from robustness_geometry.norms import norms
from robustness_geometry.randomness import Generators, normal
from robustness_geometry.types import Images

__all__ = ["random_directions"]


def random_directions(
    like: Images,
    generator: Generators = None,
    *,
    basis: Float[Tensor, "m d"] | None = None,
    normals: Images | None = None,
) -> Images:
    """Unit vectors, uniform on the sphere of the image space or of a subspace of it.

    Args:
        like: (N, C, H, W), for shape, type and device.
        generator: one for the batch or one per image; None starts from seed 0.
        basis: (m, d) orthonormal rows of the subspace; None: the whole space.
        normals: (N, C, H, W) of any length but 0: each direction is then uniform in the tangent
            space, orthogonal to its normal.

    Returns:
        (N, C, H, W) of unit l_2 norm.

    Raises:
        InputError: basis and normals together, a basis of another dimension, or a normal of length
            0.

    References:
        Thesis, Section 5.3 (random directions of a subspace), Section 6.4.1 (of S_c), Section 7.5
        (of the sphere).

    Example:
        >>> import torch
        >>> from robustness_geometry.geometry import random_directions
        >>> normals = torch.tensor([2.0, 0.0]).view(1, 1, 1, 2)
        >>> random_directions(torch.empty(1, 1, 1, 2), normals=normals).abs().flatten()
        tensor([0., 1.])
    """
    if basis is not None and normals is not None:
        refuse("normals", Described("given"), "left out beside a basis")
    d = like[0].numel() if len(like) else 0
    if basis is not None and len(like) and basis.shape[1] != d:
        refuse("basis.shape", tuple(basis.shape), f"(m, {d})")
    if basis is not None:
        drawn = normal(like.new_empty(len(like), len(basis)), generator)
        return _unit((drawn @ basis.to(like)).view_as(like))
    drawn = normal(like, generator)
    if normals is None:
        return _unit(drawn)
    sizes = norms(normals)
    if not bool((sizes > 0).all()):
        refuse("normals", Described("a normal of length 0"), "vectors with a direction")
    unit = _unit(normals)
    for _ in range(2):  # once more, against what rounding leaves of the normal
        drawn = drawn - per_image((drawn * unit).flatten(1).sum(dim=1), drawn) * unit
    return _unit(drawn)


def _unit(vectors: Images) -> Images:
    return vectors / per_image(norms(vectors), vectors)
