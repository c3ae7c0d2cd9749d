"""The smallest perturbations inside random subspaces (Section 5.3), and their law at flat pieces.

DeepFool in a subspace stops behind the first boundary that it meets, which need not be the nearest:
other searches stand beside it, and the smallest perturbation of all of them is kept.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluation import judged
from pipeline.studies.attacking import deepfool_of
from robustness_geometry.attacks import alignment, nearest
from robustness_geometry.attacks.boundary_search import BoundarySearch, leaving
from robustness_geometry.attacks.gradients import difference_gradients, linearise
from robustness_geometry.attacks.protocol import labels_at, per_image
from robustness_geometry.geometry import RandomSubspaces
from robustness_geometry.norms import norms
from robustness_geometry.randomness import normal
from robustness_geometry.types import Attack, Classifier, Images, PerImage, Perturbed

__all__ = ["SemiRandom", "flat_ratios", "pooled_std", "search_inside", "std_over_images"]

RADII = 6
"""Radii at which a line is looked at, evenly spaced up to the smallest perturbation so far."""

FAR, SPAN = 60, 1e4
"""The same where no perturbation is known yet: a geometric grid, and its largest over its smallest
radius. The largest is 10 sqrt(d), as for :func:`robustness_geometry.attacks.random_noise`."""

HALVINGS = 8
"""Halvings of the gap between two radii: the crossing is then known to a thousandth."""

BISECTIONS, REFINEMENTS, ANGLE = 8, 10, 0.01
"""Options of the projections inside the subspace, as :func:`nearest` has them."""

PUSHES = (0.0, 1e-5, 1e-4, 1e-3)
"""By what shares a point of the boundary is moved on until its label has changed."""

RIVALS = 9
"""Largest number of linearised boundaries around an image in its flat law."""


@dataclass(frozen=True)
class SemiRandom:
    """What the searches inside one random subspace S of each image found.

    Attributes:
        deepfool: the perturbations of Algorithm 3, with their alignment inside S.
        best: the smallest perturbations of all searches, with their alignment inside S.
        line: the smallest perturbations along one random line of S, in either direction; without
            ``far`` they are looked for up to the norm of those of ``deepfool`` only.
    """

    deepfool: Perturbed
    best: Perturbed
    line: Perturbed


def search_inside(
    attack: Attack,
    m: int,
    lines: int,
    seed: int,
    far: bool,
    model: Classifier,
    images: Images,
    *,
    generator: Sequence[torch.Generator],
) -> SemiRandom:
    """The smallest perturbation of each image inside its own random m-dimensional subspace S.

    Four searches: DeepFool inside S (Algorithm 3); :func:`nearest` inside S; the first change of
    label along the ray of DeepFool's perturbation and along random lines of S; and projections
    inside S that start from DeepFool's perturbation and from the nearest of those changes. A
    minimum over S is at most that along a line of S.

    Args:
        attack: the boundary attack; its options hold inside S if it is a DeepFool.
        m: dimension of the subspaces.
        lines: number of random lines of S per image, at least 1, searched in both directions.
        seed: seed of the frame that all subspaces share.
        far: whether the first line is searched as far as random noise is; otherwise only as far as
            the smallest perturbation so far, beyond which it is of no use.
        model: the classifier.
        images: (N, C, H, W).
        generator: one generator per image.
    """
    subspaces = RandomSubspaces(images.shape[1:], m, generator, seed=seed, like=images[:0])
    inside = deepfool_of(attack, norm=2.0, clip=None, subspace=subspaces)
    start = judged(inside, model, images)
    search = _Search(model, images, subspaces, start, generator)
    line = search.along_line(far)
    search.keep(judged(partial(nearest, start="ddn", subspace=subspaces), model, images))
    search.along_ray(start.perturbations)
    for _ in range(lines - 1):
        search.along_line()
    search.project(start.perturbations)
    search.project(search.outward)
    measure = partial(alignment, model, images, subspace=subspaces)
    return SemiRandom(
        replace(start, alignment=measure(start.perturbations)),
        replace(search.best, alignment=measure(search.best.perturbations)),
        line,
    )


class _Search:
    """The smallest perturbations in S so far; the sizes of images without one are infinite."""

    def __init__(
        self,
        model: Classifier,
        images: Images,
        subspaces: RandomSubspaces,
        start: Perturbed,
        generator: Sequence[torch.Generator],
    ) -> None:
        self.model, self.images, self.subspaces = model, images, subspaces
        self.labels, self.generator = start.labels, generator
        self.rows = torch.arange(len(images), device=images.device)
        # The nearest change on a ray or line, beyond which its other changes are of no use.
        self.outward = torch.zeros_like(images)
        self.changes = images.new_full((len(images),), torch.inf)
        self.best, self.sizes = start, self.changes.clone()
        self.keep(start)

    def keep(self, found: Perturbed) -> None:
        """Take perturbations that succeeded and are smaller than the best so far."""
        sizes = norms(found.perturbations)
        better = found.success & (sizes < self.sizes)
        self.sizes = torch.where(better, sizes, self.sizes)
        self.best = Perturbed(
            torch.where(
                per_image(better, self.images), found.perturbations, self.best.perturbations
            ),
            self.labels,
            torch.where(better, found.adversarial_labels, self.best.adversarial_labels),
            self.sizes.isfinite(),
            self.best.steps,
        )

    def along_line(self, far: bool = False) -> Perturbed:
        """The smallest perturbations along a new random line of S, in either direction."""
        drawn = normal(self.images[:, None], self.generator)
        unit = self.subspaces.project(drawn, self.rows)[:, 0]
        unit = unit / per_image(norms(unit), unit)
        sizes, best = self.changes.new_full((len(unit),), torch.inf), torch.zeros_like(unit)
        for ray in (unit, -unit):
            found = self._first_change(ray, sizes, far)
            nearer = found < sizes
            best = torch.where(per_image(nearer, ray), per_image(found, ray) * ray, best)
            sizes = torch.where(nearer, found, sizes)
        return self._along(best, sizes)

    def along_ray(self, outward: Images) -> None:
        """The first change of label on the way to perturbations that lie in S."""
        usable = torch.isfinite(outward).flatten(1).all(dim=1) & (norms(outward) > 0)
        rows = usable.nonzero()[:, 0]
        unit = torch.zeros_like(outward)
        unit[rows] = outward[rows] / per_image(norms(outward[rows]), outward)
        sizes = self._first_change(unit, self.sizes, far=False)
        self._along(per_image(sizes.nan_to_num(posinf=0.0), unit) * unit, sizes)

    def project(self, outward: Images) -> None:
        """Projections inside S that start on the way to ``outward``, which lies in S."""
        search = BoundarySearch(
            self.model,
            self.images,
            leaving(self.labels),
            BISECTIONS,
            project=self.subspaces.project,
        )
        search.run(outward, REFINEMENTS, ANGLE)
        for share in PUSHES:
            pushed = (1 + share) * search.perturbations
            found, finite = labels_at(self.model, self.images + pushed)
            done = finite & (found != self.labels)
            self.keep(Perturbed(pushed, self.labels, found, done, self.best.steps))

    def _along(self, perturbations: Images, sizes: PerImage) -> Perturbed:
        """Judge changes found along rays, and keep those that are smaller than what is known."""
        found, finite = labels_at(self.model, self.images + perturbations)
        result = Perturbed(
            perturbations,
            self.labels,
            found,
            finite & (found != self.labels) & sizes.isfinite(),
            torch.zeros_like(self.labels),
        )
        nearer = result.success & (sizes < self.changes)
        self.changes = torch.where(nearer, sizes, self.changes)
        self.outward = torch.where(per_image(nearer, perturbations), perturbations, self.outward)
        self.keep(result)
        return result

    def _first_change(self, unit: Images, bounds: PerImage, far: bool) -> PerImage:
        """(N,) the smallest radius below ``bounds`` with another label along ``unit``, or inf.

        Without ``far`` the search ends at the smallest perturbation so far; where there is none,
        or with ``far``, at 10 sqrt(d).
        """
        known = torch.minimum(bounds, self.sizes)
        wide = ~known.isfinite() | far
        sizes = torch.full_like(known, torch.inf)
        largest = 10 * math.sqrt(self.images[0].numel()) if len(self.images) else 1.0
        grids = (
            (~wide, torch.linspace(0, 1, RADII + 1)[1:].tolist(), known),
            (
                wide,
                [SPAN ** (k / (FAR - 1) - 1) for k in range(FAR)],
                torch.full_like(known, largest),
            ),
        )
        for chosen, shares, scale in grids:
            rows = chosen.nonzero()[:, 0]
            sizes[rows] = self._scan(rows, unit, scale[rows], shares)
        return sizes

    def _scan(
        self, rows: Tensor, unit: Images, scale: PerImage, shares: Sequence[float]
    ) -> PerImage:
        """(k,) the smallest ``scale`` times a share at which the label changes, then halved."""
        below, above = torch.zeros_like(scale), torch.full_like(scale, torch.inf)
        waiting = torch.arange(len(rows), device=rows.device)
        for share in shares:
            if not len(waiting):
                break
            radii = share * scale[waiting]
            changed = self._changes(rows[waiting], unit, radii)
            above[waiting[changed]] = radii[changed]
            waiting = waiting[~changed]
            below[waiting] = share * scale[waiting]
        inside = above.isfinite().nonzero()[:, 0]
        for _ in range(HALVINGS if len(inside) else 0):
            middle = (below[inside] + above[inside]) / 2
            changed = self._changes(rows[inside], unit, middle)
            above[inside] = torch.where(changed, middle, above[inside])
            below[inside] = torch.where(changed, below[inside], middle)
        return above

    def _changes(self, rows: Tensor, unit: Images, radii: PerImage) -> Tensor:
        moved = self.images[rows] + per_image(radii, self.images) * unit[rows]
        found, finite = labels_at(self.model, moved)
        return finite & (found != self.labels[rows])


def flat_ratios(
    dimensions: Sequence[int],
    draws: int,
    model: Classifier,
    images: Images,
    *,
    generator: Sequence[torch.Generator],
) -> Tensor:
    """sqrt(m / d) ||r_S|| / ||r*|| of the classes' logits linearised at each image.

    The boundaries between the image's class and the foremost others are hyperplanes there, so that
    both minima are exact. Only the lengths of the projected normals matter. They are drawn without
    subspaces of d dimensions: in coordinates of the normals' span, of K dimensions, the projection
    onto a uniformly random subspace is (A + B)^(-1/2) A (A + B)^(-1/2) with independent Wishart
    matrices A of m and B of d - m degrees of freedom. With two classes this is the law of
    :func:`robustness_geometry.geometry.expected_beta`.

    Args:
        dimensions: the dimensions m, each from 1 to d.
        draws: number of subspaces per image and dimension.
        model: the classifier.
        images: (N, C, H, W).
        generator: one generator per image.

    Returns:
        (N, dimensions, draws) in float64, NaN where no boundary has a gradient.

    References:
        R. J. Muirhead, "Aspects of multivariate statistical theory", Wiley, 1982, Theorem 3.3.1
        (the matrix beta law) and Theorem 3.2.14 (Bartlett's factor of a Wishart matrix).
    """
    logits, pull = linearise(model, images)
    d = images[0].numel() if len(images) else 1
    own = logits.argmax(dim=1, keepdim=True)
    count = min(RIVALS, logits.shape[1] - 1, d)
    others = logits.scatter(1, own, -torch.inf).topk(count, dim=1).indices
    normals = difference_gradients(pull, logits.shape[1], others, own.expand_as(others))
    gaps = (logits.gather(1, own) - logits.gather(1, others)).double().cpu().numpy()
    flat = normals.flatten(2).double()
    values, vectors = np.linalg.eigh((flat @ flat.mT).cpu().numpy())
    # Rows a_k with <a_k, a_l> = <w_k, w_l>: the normals in coordinates of their span.
    coordinates = vectors * np.sqrt(values.clip(min=0))[:, None]
    ratios = np.empty((len(images), len(dimensions), draws))
    for row, numbers in enumerate(generator):
        for place, m in enumerate(dimensions):
            seed = (numbers.initial_seed(), m)
            ratios[row, place] = _drawn(gaps[row], coordinates[row], d, m, draws, seed)
    return torch.from_numpy(ratios)


def _drawn(
    gaps: np.ndarray, normals: np.ndarray, d: int, m: int, draws: int, seed: tuple[int, int]
) -> np.ndarray:
    """(draws,) the ratios of one image with gaps (K,) and normals (K, K) in their span."""
    numbers, size = np.random.default_rng(seed), len(gaps)
    inside = _bartlett(m, size, draws, numbers)
    outside = _bartlett(d - m, size, draws, numbers)
    total = np.linalg.cholesky(inside @ inside.mT + outside @ outside.mT)
    projected = normals @ np.linalg.solve(total, inside)
    with np.errstate(divide="ignore", invalid="ignore"):
        shortest = (gaps / np.linalg.norm(normals, axis=-1)).min()
        in_subspace: np.ndarray = (gaps / np.linalg.norm(projected, axis=-1)).min(axis=-1)
        ratios: np.ndarray = math.sqrt(m / d) * in_subspace / shortest
    return ratios


def _bartlett(freedom: int, size: int, draws: int, numbers: np.random.Generator) -> np.ndarray:
    """Factors T (draws, size, min(freedom, size)) of Wishart matrices T T' of that freedom."""
    columns = min(freedom, size)
    factor = np.tril(numbers.standard_normal((draws, size, columns)))
    for place in range(columns):
        factor[:, place, place] = np.sqrt(numbers.chisquare(freedom - place, draws))
    return factor


def std_over_images(values: Tensor) -> Tensor:
    """The standard deviation of values (..., seeds, n) over the images, in the mean over the seeds.

    NaN leaves an image out.

    Example:
        >>> values = torch.tensor([[1.0, 3.0, math.nan], [0.0, 0.0, 0.0]])
        >>> round(std_over_images(values).item(), 3)
        0.707
    """
    spread = values - values.nanmean(dim=-1, keepdim=True)
    count = (~values.isnan()).sum(dim=-1)
    return (spread.square().nansum(dim=-1) / (count - 1)).sqrt().nanmean(dim=-1)


def pooled_std(means: Tensor, squares: Tensor) -> Tensor:
    """The standard deviation over images and draws, in the mean over the training seeds.

    Args:
        means: (..., seeds, n) the mean over the draws of each image.
        squares: (..., seeds, n) the mean of their squares.
    """
    return (squares.nanmean(dim=-1) - means.nanmean(dim=-1).square()).sqrt().nanmean(dim=-1)
