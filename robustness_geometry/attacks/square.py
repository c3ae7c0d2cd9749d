"""Square attack: random search with windows of shrinking size, without gradients."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustness_geometry.attacks.protocol import (
    Bounds,
    Clip,
    Number,
    check_clip,
    check_input,
    clean_labels,
    confine,
    judge,
    nothing,
    per_image,
)
from robustness_geometry.attacks.spsa import margin_loss
from robustness_geometry.checks import GivenLabels, check_count, check_positive, number, refuse
from robustness_geometry.norms import norms
from robustness_geometry.randomness import Generators, stream, uniform
from robustness_geometry.types import Classifier, Images, Labels, Perturbed

__all__ = ["square"]

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After how many of 10,000 queries the area of the window is halved; the paper's schedule."""

GRID = 5
"""Bumps along each side of the first perturbation in l_2."""

BLOCK = 64
"""Queries whose random numbers are drawn at once."""

SMALLEST = 3
"""The smallest window in l_2, whose bumps have two sides and a middle."""


@dataclass(frozen=True)
class Options:
    """The checked options of :func:`square`."""

    eps: float
    norm: float
    queries: int
    area: float
    clip: Clip


def square(
    model: Classifier,
    images: Images,
    *,
    eps: Number,
    norm: Number = math.inf,
    queries: int = 5000,
    area: Number = 0.8,
    clip: Bounds | None = (0.0, 1.0),
    labels: GivenLabels = None,
    targets: GivenLabels = None,
    generator: Generators = None,
) -> Perturbed:
    """Lower the margin f_y - max_{k != y} f_k in the ball of radius ``eps`` by random windows.

    In l_inf, the search starts from vertical stripes of +-eps; each query sets a random square
    window to one sign per channel. In l_2, it starts from a grid of bumps; each query adds a bump
    of random sign in one window and gives it the norm that a second window, set to 0, and the ball
    have left. A query that lowers the margin is kept. The windows shrink along the paper's
    schedule, and an image is done as soon as its goal is reached.

    Args:
        model: a classifier in evaluation mode.
        images: (N, C, H, W).
        eps: radius of the ball, in pixel units.
        norm: 2 or inf.
        queries: largest number of evaluations of each image.
        area: the first window's share of the image, in (0, 1].
        clip: lowest and highest pixel value of the perturbed images; None does not clip.
        labels: (N,) the labels y; None: the classifier's own.
        targets: (N,) labels to reach; the margin is then max_{k != t} f_k - f_t.
        generator: one for the batch or one per image; None starts from seed 0.

    Returns:
        Perturbed; ``steps`` counts the queries.

    Raises:
        InputError: an option, an image or a logit that cannot be used, or a model in training mode.

    References:
        Not in the thesis; it finds what gradients hide (Section 8.5.1 takes SPSA for that).

        M. Andriushchenko, F. Croce, N. Flammarion, M. Hein, "Square Attack: a query-efficient
        black-box adversarial attack via random search", ECCV 2020, arXiv:1912.00049.

    Example:
        >>> import torch
        >>> from robustness_geometry.attacks import square
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
        >>> result = square(model, torch.rand(4, 1, 4, 4), eps=0.5, queries=200)
        >>> result.perturbations.abs().max() <= 0.5
        tensor(True)
    """
    p = number("norm", norm)
    if p not in (2, math.inf):
        refuse("norm", norm, "2 or inf")
    share = check_positive("area", area)
    if share > 1:
        refuse("area", area, "a number in (0, 1]")
    options = Options(
        check_positive("eps", eps), p, check_count("queries", queries), share, check_clip(clip)
    )
    model, images, labels, targets = check_input(
        model, images, clip=options.clip, labels=labels, targets=targets
    )
    if images.ndim != 4:
        refuse("images.shape", tuple(images.shape), "(N, C, H, W), in which there are windows")
    if not len(images):
        return nothing(images)
    labels = clean_labels(model, images, labels, targets)
    search = _Search(model, images, labels, targets, options)
    search.run(generator)
    return judge(model, images, search.best, labels, search.taken, targets)


class _Search:
    """The perturbations of the smallest margins so far."""

    def __init__(
        self,
        model: Classifier,
        images: Images,
        labels: Labels,
        targets: Labels | None,
        options: Options,
    ) -> None:
        self.model, self.images, self.labels, self.targets = model, images, labels, targets
        self.options = options
        self.best = torch.zeros_like(images)
        everything = torch.arange(len(images), device=images.device)
        self.margins = self._margins(everything, self.best)
        self.taken = torch.zeros_like(labels)

    def run(self, generator: Generators) -> None:
        """Query until the goal is reached or the queries are spent."""
        count, channels, _, width = self.images.shape
        flat = self.options.norm == math.inf
        start = (channels, 1, width) if flat else (channels + 1, GRID, GRID)
        generator = stream(generator)
        first = uniform(self.images.new_empty(count, *start), generator)
        rows = (self.margins >= 0).nonzero()[:, 0]
        self._try(rows, (self._stripes if flat else self._bumps)(first[rows]))
        draws = first
        for query in range(self.options.queries - 1):
            # Each image has random numbers of its own for every query, whether it is done or not.
            if query % BLOCK == 0:
                draws = uniform(self.images.new_empty(count, BLOCK, channels + 5), generator)
            rows = (self.margins >= 0).nonzero()[:, 0]
            if not len(rows):
                break
            side = self._side(query)
            drawn = draws[rows, query % BLOCK]
            tried = (self._square if flat else self._exchange)(rows, side, drawn)
            self._try(rows, tried)

    def _margins(self, rows: Tensor, perturbations: Images) -> Tensor:
        return margin_loss(
            self.model,
            self.images[rows] + perturbations,
            self.labels[rows],
            targets=None if self.targets is None else self.targets[rows],
        )

    def _try(self, rows: Tensor, perturbations: Images) -> None:
        """Take the perturbations of ``rows``, brought into the box, that lower the margin."""
        if not len(rows):
            return
        tried = confine(self.images[rows], perturbations, self.options.clip)
        margins = self._margins(rows, tried)
        # The first perturbation is the start of the search even where the margin is higher.
        better = (margins < self.margins[rows]) | (self.taken[rows] == 0)
        self.taken[rows] += 1
        rows, tried, margins = rows[better], tried[better], margins[better]
        self.best[rows], self.margins[rows] = tried, margins

    def _side(self, query: int) -> int:
        """The side of the window at a query, in pixels."""
        height, width = self.images.shape[2:]
        place = query * 10_000 / self.options.queries
        area = self.options.area / 2 ** sum(place > after for after in HALVINGS)
        side = max(round(math.sqrt(area * height * width)), 1)
        if self.options.norm == 2:
            side = max(side, SMALLEST) | 1  # odd
        return min(side, height, width)

    def _stripes(self, drawn: Tensor) -> Images:
        return _signs(drawn).expand(-1, -1, self.images.shape[2], -1) * self.options.eps

    def _square(self, rows: Tensor, side: int, drawn: Tensor) -> Images:
        """The perturbations with one window set to the bound, with one sign per channel."""
        signs = _signs(drawn[:, 5:])[:, :, None].expand(-1, -1, side * side)
        window = self._window(drawn[:, 0], drawn[:, 1], side)
        changed = self.options.eps * signs
        return _written(self.best[rows], window, changed)

    def _bumps(self, drawn: Tensor) -> Images:
        """A grid of bumps with random signs and orientations, of norm ``eps``."""
        count, channels, height, width = len(drawn), *self.images.shape[1:]
        side = max(1, min(height, width) // GRID)
        bumps = self._bump(side, drawn[:, -1].flatten()).view(count, GRID, GRID, side, side)
        signs = _signs(drawn[:, :-1])[..., None, None]
        grid = (signs * bumps[:, None]).permute(0, 1, 2, 4, 3, 5).flatten(4).flatten(2, 3)
        start = self.images.new_zeros(count, channels, height, width)
        tall, wide = min(height, GRID * side), min(width, GRID * side)
        top, left = (height - tall) // 2, (width - wide) // 2
        start[:, :, top : top + tall, left : left + wide] = grid[:, :, :tall, :wide]
        return _scaled(start, self.options.eps)

    def _exchange(self, rows: Tensor, side: int, drawn: Tensor) -> Images:
        """The perturbations with a bump added in one window and the norm taken from another."""
        old, eps = self.best[rows], self.options.eps
        here = self._window(drawn[:, 0], drawn[:, 1], side)
        there = self._window(drawn[:, 2], drawn[:, 3], side)
        without = _written(_written(old, there, 0.0), here, 0.0)
        # What each channel may have in the window: what it had in both, and a share of what the
        # ball has left.
        left = (eps**2 - norms(old).square()).clamp_min(0) / old.shape[1]
        spent = old.square().sum(dim=(2, 3)) - without.square().sum(dim=(2, 3))
        budget = (left[:, None] + spent.clamp_min(0)).sqrt()[:, :, None]
        current = _unit(old.flatten(2).gather(2, here.expand(-1, old.shape[1], -1)))
        bump = self._bump(side, drawn[:, 4]).flatten(1)[:, None]
        new = _unit(current + _signs(drawn[:, 5:])[:, :, None] * bump) * budget
        return _scaled(_written(without, here, new), eps)

    def _window(self, top: Tensor, left: Tensor, side: int) -> Tensor:
        """(k, 1, side^2) the places of the pixels of a window whose corner is at these shares."""
        height, width = self.images.shape[2:]
        offsets = torch.arange(side, device=top.device)
        lines = (top * (height - side + 1)).long().clamp_max(height - side)[:, None] + offsets
        columns = (left * (width - side + 1)).long().clamp_max(width - side)[:, None] + offsets
        return (lines[:, :, None] * width + columns[:, None]).flatten(1)[:, None]

    def _bump(self, side: int, drawn: Tensor) -> Tensor:
        """(k, side, side) two hills of opposite signs, one above the other or side by side."""
        half = side // 2
        upright = torch.zeros(side, side, dtype=self.images.dtype)
        if half:
            upright[:half] = _hill(half, side)
        upright[half:] = -_hill(side - half, side)
        upright = upright.to(self.images) / upright.norm()
        return torch.where(drawn[:, None, None] > 0.5, upright.T, upright)


def _hill(height: int, width: int) -> Tensor:
    """A bump of unit norm whose value at a pixel k rings from its middle is sum_{j > k} 1 / j^2."""
    rings = max(height, width) // 2 + 1
    tails = torch.arange(1, rings + 1).double().pow(-2).flip(0).cumsum(0).flip(0)
    lines = (torch.arange(height) - height // 2).abs()
    columns = (torch.arange(width) - width // 2).abs()
    hill = tails[torch.maximum(lines[:, None], columns[None])]
    return hill / hill.norm()


def _signs(drawn: Tensor) -> Tensor:
    """+-1 from uniform numbers."""
    return torch.where(drawn < 0.5, -1.0, 1.0).to(drawn)


def _unit(vectors: Tensor) -> Tensor:
    """Vectors (..., d) of norm 1; zero vectors stay."""
    sizes = vectors.norm(dim=-1, keepdim=True)
    return torch.where(sizes > 0, vectors / sizes, 0.0)


def _scaled(perturbations: Images, eps: float) -> Images:
    sizes = norms(perturbations)
    return per_image(torch.where(sizes > 0, eps / sizes, 0.0), perturbations) * perturbations


def _written(images: Images, window: Tensor, values: Tensor | float) -> Images:
    """``images`` with ``values`` at the places ``window`` (k, 1, s) of every channel."""
    places = window.expand(-1, images.shape[1], -1)
    values = torch.as_tensor(values, dtype=images.dtype, device=images.device)
    values = values.expand(places.shape)
    return images.flatten(2).scatter(2, places, values).view_as(images)
