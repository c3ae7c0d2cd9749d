"""An attacker who knows the detector: Algorithm 6's score in the attack's own loss."""

import torch
from torch import Tensor

from pipeline.studies.detector import Option
from robustness_geometry.attacks.convolutions import FastInputGradients
from robustness_geometry.attacks.gradients import class_gradients
from robustness_geometry.attacks.protocol import judge, per_image
from robustness_geometry.detection import scored
from robustness_geometry.geometry import class_curvatures
from robustness_geometry.norms import norms, project
from robustness_geometry.randomness import Generators, normal
from robustness_geometry.types import (
    Classifier,
    Images,
    Labels,
    PerImage,
    Perturbed,
    class_logits,
    predict,
)

__all__ = ["evade"]

STRIDE = 0.15
"""Length of the first step, in radii; the steps then shrink to nothing."""

LOOK = 4
"""Steps between two looks at the score itself."""


def evade(
    model: Classifier,
    images: Images,
    starts: Images,
    *,
    option: Option,
    candidates: int | None,
    directions: int,
    scale: float,
    steps: int,
    generator: Generators = None,
) -> Perturbed:
    """Lower the curvature score of misclassified images inside a ball, without giving up the wrong label.

    From scale r, where r fools, each step follows the score downwards where the label is wrong, and
    the logits back across the boundary where it is right again, and is projected onto the ball of
    radius scale ||r||. A step's score takes one new random tangent vector for each class and holds
    the normals and the gradients of the logits fixed. Every few steps, and at r itself, the whole
    score is computed, along random directions of the attacker's own; the lowest one with a wrong
    label counts.

    Args:
        model: a classifier in evaluation mode.
        images: (N, C, H, W), clean.
        starts: (N, C, H, W) perturbations that fool the classifier; where they are zero, nothing
            happens.
        option: the detector's output, h and normalisation.
        candidates: how many classes take part in it; None: all.
        directions: its T.
        scale: the radius in units of ||r||, at least 1.
        steps: gradient steps.
        generator: one for the batch or one an image.

    Returns:
        Perturbed.
    """
    own = predict(model, images)
    radii, moved, best = scale * norms(starts), scale * starts, starts

    def score(perturbations: Images) -> PerImage:
        """Infinite where the label is right."""
        (measured,) = class_curvatures(
            model,
            images + perturbations,
            h=(option.h,),
            outputs=(option.output,),
            directions=directions,
            candidates=candidates,
            generator=generator,
        )
        seen = scored(measured, normalise=option.normalise)
        return torch.where(seen.labels != own, seen.scores.nan_to_num(nan=torch.inf), torch.inf)

    lowest = score(starts)
    for step in range(steps + 1):
        if step % LOOK == 0 or step == steps:
            found = score(moved)
            best = torch.where(per_image(found < lowest, best), moved, best)
            lowest = torch.minimum(lowest, found)
        way = _way(model, images + moved, own, option, candidates, generator)
        lengths = (
            STRIDE
            * (1 - step / (steps + 1))
            * radii
            / norms(way).clamp_min(torch.finfo(way.dtype).tiny)
        )
        moved = project(moved + per_image(lengths, way) * way, radii)
    return judge(model, images, best, own, torch.full_like(own, steps))


def _way(
    model: Classifier,
    points: Images,
    own: Labels,
    option: Option,
    candidates: int | None,
    generator: Generators,
) -> Images:
    """Down the score where the label is wrong, towards another label where it is right."""
    chosen, tangents, products = _tangents(model, points, option, candidates, generator)
    with torch.enable_grad(), FastInputGradients():
        leaf = points.detach().requires_grad_()
        around = [
            leaf,
            *(
                leaf + sign * option.h * vector
                for vector in tangents.unbind(dim=1)
                for sign in (1, -1)
            ),
        ]
        logits = class_logits(model(torch.cat(around))).double().view(len(around), len(points), -1)
        values = logits.softmax(dim=2) if option.output == "softmax" else logits
        values = values.gather(2, chosen.expand(len(around), -1, -1))
        margins = values[..., 1:] - values[..., :1]
        rivals = range(margins.shape[2])
        bends = [
            margins[1 + 2 * i, :, i] + margins[2 + 2 * i, :, i] - 2 * margins[0, :, i]
            for i in rivals
        ]
        parts = torch.stack(bends, dim=1)
        score = (parts / _slopes(values[0], products, option) if option.normalise else parts).sum()
        first = logits[0]
        leads = (
            first.scatter(1, own[:, None], -torch.inf).amax(dim=1)
            - first.gather(1, own[:, None])[:, 0]
        )
        (downwards,) = torch.autograd.grad(score, leaf, retain_graph=True)
        (across,) = torch.autograd.grad(leads.sum(), leaf)
    return torch.where(per_image(leads.detach() > 0, across), -downwards, across)


def _tangents(
    model: Classifier, points: Images, option: Option, candidates: int | None, generator: Generators
) -> tuple[Tensor, Tensor, Tensor]:
    """A random tangent vector for each rival.

    Returns:
        The classes (N, 1 + K), the one that leads first; unit vectors (N, K, C, H, W), tangent to
        the boundary of each of the others; and the products (N, 1 + K, 1 + K) of the logits'
        gradients.
    """
    with torch.no_grad():
        logits = class_logits(model(points)).double()
    chosen = logits.topk(min(candidates or logits.shape[1], logits.shape[1])).indices
    _, gradients = class_gradients(model, points, chosen)
    rows = gradients.flatten(2).double()
    values = logits.softmax(dim=1).gather(1, chosen)
    normals = _derivatives(values, option) @ rows
    units = torch.nn.functional.normalize(normals, dim=2).to(points)
    drawn = normal(
        points.new_empty(len(points), chosen.shape[1] - 1, *points.shape[1:]), generator
    ).flatten(2)
    tangents = torch.nn.functional.normalize(
        drawn - (drawn * units).sum(dim=2, keepdim=True) * units, dim=2
    )
    return chosen, tangents.view(*drawn.shape[:2], *points.shape[1:]), rows @ rows.mT


def _derivatives(values: Tensor, option: Option) -> Tensor:
    """The derivatives (N, K, 1 + K) of each F_i = f_i - f_0 with respect to the logits, from the probabilities."""
    count = values.shape[1]
    differences = torch.eye(count, dtype=values.dtype, device=values.device)
    if option.output == "logits":
        return (differences[1:] - differences[0]).expand(len(values), -1, -1)
    jacobian = torch.diag_embed(values) - values[:, :, None] * values[:, None]
    return jacobian[:, 1:] - jacobian[:, :1]


def _slopes(values: Tensor, products: Tensor, option: Option) -> Tensor:
    """||grad F_i|| (N, K) as a function of the probabilities, the logits' gradients held fixed."""
    weights = _derivatives(values, option)
    squares = ((weights @ products) * weights).sum(dim=2)
    return squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()
