"""Principal angles between the S_c of networks, beside those of controls (Figure 6.12)."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations, product

import torch
from torch import Tensor

from pipeline.bootstrap import paired_bootstrap
from pipeline.statistics import Estimate, Statistic, mean, of_means
from robustness_geometry.geometry import principal_angles, random_subspace
from robustness_geometry.randomness import seeded

__all__ = ["IMAGES", "angle_numbers", "subspace_angles"]

IMAGES = "[images]"
"""What the names of angles with the images' principal components end in."""


def subspace_angles(
    bases: Mapping[str, Sequence[Tensor]], components: Tensor, m: int
) -> dict[str, Tensor]:
    """Cosines of the principal angles between the S_c of every two networks.

    Args:
        bases: name of a network -> its S_c for each training seed, (m, d).
        components: the principal components of the images.
        m: dimension of the subspaces.

    Returns:
        ``[a][b]`` -> (s, s, m) for each training seed of a (first) and of b (second), the smallest
        angle first; ``[a][a]`` for the training seeds of one network; ``[a][images]`` for the
        principal components; ``[random]``. s is the largest number of training seeds; NaN where
        there are fewer, and for a subspace and itself.
    """
    most, d = max(map(len, bases.values())), next(iter(bases.values()))[0].shape[1]
    # Two sets of random subspaces, which meet as the training seeds of two networks do.
    drawn = [random_subspace(d, m, seeded("random subspaces of S_c", k)) for k in range(2 * most)]
    pairs: dict[str, tuple[Sequence[Tensor], Sequence[Tensor]]] = {
        f"[{a}][{b}]": (bases[a], bases[b]) for a, b in combinations(bases, 2)
    }
    pairs |= {f"[{a}][{a}]": (same, same) for a, same in bases.items() if len(same) > 1}
    pairs |= {f"[{a}]{IMAGES}": (each, [components] * most) for a, each in bases.items()}
    pairs["[random]"] = (drawn[:most], drawn[most:])
    cosines = {}
    for name, (first, second) in pairs.items():
        cosines[name] = torch.full((most, most, m), math.nan, dtype=torch.float64)
        for (i, u), (j, v) in product(enumerate(first), enumerate(second)):
            if u is not v:
                found = principal_angles(u.double(), v.double()).angles.cos()
                cosines[name][i, j, : len(found)] = found
    return cosines


def angle_numbers(angles: Mapping[str, Tensor], resamples: int) -> dict[str, Estimate]:
    """``cos_1[a][b]``, the cosine of the smallest angle, and its excess over that of the controls.

    Its intervals draw the training seeds of both networks.

    Args:
        angles: what :func:`subspace_angles` found.
        resamples: number of resamples of the bootstrap.
    """
    return paired_bootstrap(_firsts(angles), _angle_statistics(angles), resamples=resamples)


def _firsts(angles: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name -> the cosines of the smallest angles, (s, s).

    Rows and columns are the training seeds of two networks: the bootstrap draws those of both.
    """
    return {name: values[..., 0] for name, values in angles.items()}


def _angle_statistics(angles: Mapping[str, Tensor]) -> dict[str, Statistic]:
    controls = [name for name in angles if name.endswith(IMAGES)]
    same = [name for name in angles if len(set(name.strip("[]").split("]["))) == 1]
    between = [name for name in angles if name not in controls and name not in same]
    statistics = {f"cos_1{name}": mean(name, (0.0, 1.0)) for name in angles}
    for name in between:
        both = (name, "[random]")
        statistics[f"cos_1{name} - cos_1[random]"] = of_means(both, _excess, (-1.0, 1.0))
    over = partial(_excess_of_pairs, len(between))
    return statistics | {
        "cos_1 - cos_1[random], mean of pairs": of_means([*between, "[random]"], over, (-1.0, 1.0)),
        "cos_1 - cos_1[images], mean of pairs": of_means([*between, *controls], over, (-1.0, 1.0)),
    }


def _excess(cosines: Tensor, control: Tensor) -> Tensor:
    return cosines - control


def _excess_of_pairs(count: int, *cosines: Tensor) -> Tensor:
    """The mean of the first ``count`` cosines less the mean of the others."""
    return torch.stack(cosines[:count]).mean(dim=0) - torch.stack(cosines[count:]).mean(dim=0)
