"""Proved lower bounds on the distance to the decision boundary."""

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
)
from robustness_geometry.certify.hyperplanes import halfspace_distance, ratio
from robustness_geometry.certify.intermediate import Network, climb
from robustness_geometry.certify.reading import read
from robustness_geometry.certify.relaxation import Slopes, backward, start_slopes
from robustness_geometry.checks import check_count, check_norm
from robustness_geometry.types import Classifier, Images, Labels, PerImage

__all__ = ["LowerBounds", "lower_bounds", "rival_rows"]

TOGETHER = 2**20
"""Values of all nodes, over images and rivals, that one search holds at once."""

GROWTH = 1.2
"""By how much a ball that is cut is larger than the proved one."""

WORTH = 0.2
"""Share of the way to the sphere by which a new cut must move for another one in the same ball."""

FAR = 1e100
"""Distances above this are infinite."""

CLOSE = 0.02
"""Relative width at which the search for the best radius ends."""


@dataclass(frozen=True)
class LowerBounds:
    """What is proved about the distance of each image to the decision boundary.

    Attributes:
        radii: (N,) no point nearer than this has another label; 0 where nothing is proved. float64.
        labels: (N,) the classes of the images.
        rivals: (N,) the class whose own bound is the smallest.
    """

    radii: PerImage
    labels: Labels
    rivals: Labels

    def __len__(self) -> int:
        return len(self.radii)


def lower_bounds(
    model: Classifier,
    images: Images,
    *,
    norm: Number = 2.0,
    labels: Labels | None = None,
    clip: Bounds | None = None,
    steps: int = 10,
    evaluations: int = 4,
    cuts: int = 16,
) -> LowerBounds:
    """Prove how far each image is at least from any point with another label.

    Around each image, the network is bounded by linear functions (CROWN) whose free slopes are
    improved by gradient steps (alpha-CROWN). In a ball of radius eps, f_label - f_rival lies above
    a linear function of the image, whose zero is at some distance d(eps): the smaller of eps and
    d(eps) is proved. A search finds the eps at which the two are equal; any of its steps would be
    a valid answer.

    In l_2 and l_inf the class with the smallest bound is then looked at again: in a larger ball,
    only the points where the linear bound is negative can have another label. On that part of the
    ball the network is bounded more tightly, which gives a better linear bound, and so on.

    What is proved holds for the network in exact arithmetic with the weights that it has, images
    and labels as given. The bounds are computed in float64 with all rounding errors counted (sums
    may be taken in any order). A forward pass in float32 rounds as well, and may differ from
    the network by its own rounding errors close to the boundary.

    Args:
        model: a classifier in evaluation mode that torch.fx can trace, made of linear, convolution
            (zero padding), batch norm, ReLU, leaky ReLU, max, average and adaptive average pooling,
            dropout and reshaping layers, arithmetic with constants, sums and concatenations.
        images: x, (N, C, H, W).
        norm: exponent p of the distance, 1 <= p <= inf.
        labels: (N,) the classes of the images; None: the predicted ones. Images that are predicted
            otherwise have distance 0.
        clip: lowest and highest pixel value: only points in that box count, so that the bound may
            be larger; None: all points do.
        steps: gradient steps in the slopes of the bounds of f_label - f_rival, per evaluation; 0
            for plain CROWN.
        evaluations: largest number of radii that are tried.
        cuts: number of linear bounds on parts of balls for each image; 0 for balls alone.

    Returns:
        LowerBounds, in float64.

    Raises:
        InputError: an option, a label or an image that cannot be used, or a layer that is not
            known; the text names it.

    References:
        H. Zhang, T.-W. Weng, P.-Y. Chen, C.-J. Hsieh and L. Daniel, "Efficient neural network
        robustness certification with general activation functions", NeurIPS 2018, arXiv:1811.00866.
        K. Xu et al., "Fast and complete: enabling complete neural network verification with rapid
        and massively parallel incomplete verifiers", ICLR 2021, arXiv:2011.13824.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from robustness_geometry.certify import lower_bounds
        >>> layer = nn.Linear(2, 1)  # the line 3 x + 4 y = 5
        >>> layer.weight.data, layer.bias.data = torch.tensor([[3.0, 4.0]]), torch.tensor([-5.0])
        >>> model = nn.Sequential(nn.Flatten(), layer).eval()
        >>> image = torch.zeros(1, 1, 1, 2)
        >>> [round(lower_bounds(model, image, norm=p).radii.item(), 6) for p in (1, 2, "inf")]
        [1.25, 1.0, 0.714286]
    """
    p, box = check_norm("norm", norm), check_clip(clip)
    check_count("steps", steps, minimum=0)
    check_count("evaluations", evaluations)
    check_count("cuts", cuts, minimum=0)
    check_input(model, images, clip=box, labels=labels)
    images = images.detach()
    if not len(images):
        none = torch.zeros(0, dtype=torch.int64, device=images.device)
        return LowerBounds(images.new_zeros(0, dtype=torch.float64), none, none.clone())
    own = clean_labels(model, images, labels)
    network = Network(read(model, tuple(images.shape[1:])))
    wide = sum(node.size for node in network.nodes) * max(1, network.nodes[-1].size)
    parts = []
    with torch.no_grad():
        for rows in torch.arange(len(images)).split(max(1, TOGETHER // wide)):
            search = _Search(network, images[rows].double(), own[rows], p, box, steps)
            search.run(evaluations)
            parts.append(search.cut(cuts if p in (2, math.inf) else 0))
    radii, rivals = (torch.cat(part) for part in zip(*parts, strict=True))
    return LowerBounds(radii, own, rivals)


def rival_rows(labels: Labels, outputs: int) -> tuple[Tensor, Tensor]:
    """f_label - f_rival as functionals of the logits.

    Args:
        labels: (N,).
        outputs: number of logits; 1 for a classifier by the sign.

    Returns:
        The rows (N, R, outputs), and the rivals (N, R) that they are for.
    """
    if outputs == 1:
        rows = (2.0 * labels.double() - 1)[:, None, None]
        return rows, (1 - labels)[:, None]
    classes = torch.arange(outputs, device=labels.device).expand(len(labels), -1)
    rivals = classes[classes != labels[:, None]].view(len(labels), -1)
    eye = torch.eye(outputs, dtype=torch.float64, device=labels.device)
    return eye[labels][:, None] - eye[rivals], rivals


class _Search:
    """The search for the largest proved radius of a few images."""

    def __init__(
        self,
        network: Network,
        images: Tensor,
        labels: Labels,
        norm: float,
        clip: Clip,
        steps: int,
    ) -> None:
        self.network, self.images, self.norm, self.clip = network, images, norm, clip
        self.steps = steps
        self.seeds, self.rivals = rival_rows(labels, network.nodes[-1].size)
        self.proved = torch.zeros(self.seeds.shape[:2], dtype=torch.float64, device=images.device)

    def run(self, evaluations: int) -> None:
        """Prove radii for all rivals at once, in whole balls."""
        zero = self.images.new_zeros(len(self.images))
        # In a ball of radius 0 every unit is linear: this is the distance to the tangent plane.
        inside, above = zero, self._distance(zero, 0).amin(dim=1).clamp_max(1e100)
        outside, below = torch.full_like(zero, torch.inf), zero
        radii = torch.where(above < 1e100, above, 1.0) * 0.25
        for _ in range(evaluations):
            found = self._distance(radii, self.steps)
            self.proved = torch.maximum(self.proved, torch.minimum(found, radii[:, None]))
            gap = found.amin(dim=1).clamp_max(1e100) - radii
            good = gap >= 0
            # The zero of the gap by a secant, from two radii on one side of it or on both.
            rise = (radii - inside) * gap / (above - gap).clamp_min(1e-300)
            farther = radii + rise.clamp(0.2 * radii, 3 * radii)
            inside, above = torch.where(good, radii, inside), torch.where(good, gap, above)
            outside, below = torch.where(good, outside, radii), torch.where(good, below, gap)
            best = torch.maximum(self.proved.amin(dim=1), inside)
            unknown = torch.isinf(outside)
            if bool((~unknown & (outside - best <= CLOSE * outside)).all()):
                break
            share = (above / (above - below).clamp_min(1e-300)).clamp(0.1, 0.9)
            between = torch.where(best > 0, best + (outside - best) * share, 0.3 * outside)
            radii = torch.where(unknown, farther, between)

    def cut(self, count: int) -> tuple[Tensor, Tensor]:
        """Raise the smallest of each image's bounds, on parts of balls.

        Returns:
            The proved radii (N,) and the limiting rivals (N,).
        """
        cuts = [[_Cut(proved) for proved in row] for row in self.proved.tolist()]
        for _ in range(count):
            weakest = enumerate(self.proved.argmin(dim=1).tolist())
            chosen = [(n, k) for n, k in weakest if cuts[n][k].open]
            if not chosen:
                break
            tried = [cuts[n][k] for n, k in chosen]
            found, (normals, constants) = self._behind(chosen, tried)
            for i, ((n, k), cut) in enumerate(zip(chosen, tried, strict=True)):
                cut.note(float(found[i]), (normals[i], constants[i]))
                self.proved[n, k] = cut.proved
        radii, first = self.proved.min(dim=1)
        return radii, self.rivals.gather(1, first[:, None])[:, 0]

    def _behind(
        self,
        chosen: list[tuple[int, int]],
        cuts: "list[_Cut]",
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The distances (P,) of linear bounds for pairs of image and rival, and these bounds."""
        rows = torch.tensor([n for n, _ in chosen], device=self.images.device)
        columns = torch.tensor([k for _, k in chosen], device=self.images.device)
        images, seeds = self.images[rows], self.seeds[rows, columns][:, None]
        # A plane that is nowhere above zero leaves the whole ball.
        none = (torch.zeros_like(images[0]), images.new_tensor(-1.0))
        normals, constants = (
            torch.stack([(cut.plane or none)[part] for cut in cuts]) for part in (0, 1)
        )
        radii = images.new_tensor([cut.radius for cut in cuts])
        return self._bounded(images, seeds, radii, (normals, constants))

    def _bounded(
        self,
        images: Tensor,
        seeds: Tensor,
        radii: Tensor,
        plane: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        nodes = self.network.nodes
        last = len(nodes) - 1
        region = self.network.region(images, radii, self.norm, self.clip, plane=plane)

        def value(slopes: Slopes) -> Tensor:
            found = backward(nodes, last, seeds, region, slopes)
            return ratio(*found, images, self.norm)

        slopes = start_slopes(nodes, last, region, 1)
        best, slopes = climb(value, slopes, self.steps if slopes else 0)
        functional = backward(nodes, last, seeds, region, slopes)
        if self.clip is not None:
            best = halfspace_distance(*functional, images, self.norm, self.clip)
        return best[:, 0], (functional[0][:, 0], functional[1][:, 0])

    def _distance(self, radii: Tensor, steps: int) -> Tensor:
        """The distances (N, R) to the zeros of the linear bounds in balls of ``radii``."""
        nodes = self.network.nodes
        region = self.network.region(self.images, radii, self.norm, self.clip)
        last = len(nodes) - 1

        def value(slopes: Slopes) -> Tensor:
            found = backward(nodes, last, self.seeds, region, slopes)
            return ratio(*found, self.images, self.norm)

        slopes = start_slopes(nodes, last, region, self.seeds.shape[1])
        best, slopes = climb(value, slopes, steps if slopes else 0)
        if self.clip is None:
            return best.clamp_min(0)
        found = backward(nodes, last, self.seeds, region, slopes)
        return halfspace_distance(*found, self.images, self.norm, self.clip)


class _Cut:
    """Which ball is tried next for one image and rival, and the linear bound that cuts it."""

    def __init__(self, proved: float) -> None:
        self.proved, self.radius = proved, GROWTH * proved
        self.reached = 0.0
        self.plane: tuple[Tensor, Tensor] | None = None

    @property
    def open(self) -> bool:
        """Whether a larger radius may still be proved."""
        return 0 < self.proved < FAR and self.radius > (1 + CLOSE) * self.proved

    def note(self, reached: float, plane: tuple[Tensor, Tensor]) -> None:
        """Go on behind the new bound: in the same ball while that helps, else in a smaller one."""
        self.proved = max(self.proved, min(reached, self.radius))
        if reached >= self.radius:
            self.plane, self.radius, self.reached = None, GROWTH * self.radius, 0.0
            return
        gain = reached - self.reached
        if gain > 0:  # a bound in a larger ball holds in a smaller one too
            self.plane, self.reached = plane, reached
        if gain < WORTH * (self.radius - reached):
            self.radius = (self.radius + self.proved) / 2
