"""An attack that knows the detector: it minimises the score of Algorithm 6 (beyond the thesis)."""

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
"""Length of the first step, in units of the ball's radius; the steps then shrink linearly to 0."""

LOOK = 4
"""Number of steps between two evaluations of the whole score."""


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
    """Lower the curvature score of misclassified images inside a ball, keeping the label wrong.

    The search starts at scale r, where r fools the classifier. Where the label is wrong, a step
    follows the score downwards; where it has become right again, the step follows the logits back
    across the boundary. After each step the perturbation is projected onto the ball of radius
    scale ||r||. The gradient of the score is an estimate: it takes one new random tangent vector
    for each class, and treats the normals and the gradients of the logits as constants. At r itself
    and every few steps the whole score is computed, along random directions that the attack draws
    for itself; the perturbation with the lowest such score and a wrong label is returned.

    Args:
        model: a classifier in evaluation mode.
        images: (N, C, H, W), clean.
        starts: (N, C, H, W) perturbations that fool the classifier; where they are zero, nothing
            happens.
        option: the detector's output, h and normalisation.
        candidates: number of classes that take part in the score; None: all.
        directions: number of random directions of the whole score.
        scale: radius of the ball in units of ||r||, at least 1.
        steps: number of gradient steps.
        generator: one for the batch or one per image.

    Returns:
        Perturbed.
    """
    original = predict(model, images)
    radii, moved, best = scale * norms(starts), scale * starts, starts

    def score(perturbations: Images) -> PerImage:
        """The whole score; infinite where the label is right."""
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
        fooled = seen.labels != original
        return torch.where(fooled, seen.scores.nan_to_num(nan=torch.inf), torch.inf)

    lowest = score(starts)
    for step in range(steps + 1):
        if step % LOOK == 0 or step == steps:
            current = score(moved)
            best = torch.where(per_image(current < lowest, best), moved, best)
            lowest = torch.minimum(lowest, current)
        way = _way(model, images + moved, original, option, candidates, generator)
        lengths = (
            STRIDE
            * (1 - step / (steps + 1))
            * radii
            / norms(way).clamp_min(torch.finfo(way.dtype).tiny)
        )
        moved = project(moved + per_image(lengths, way) * way, radii)
    return judge(model, images, best, original, torch.full_like(original, steps))


def _way(
    model: Classifier,
    points: Images,
    original: Labels,
    option: Option,
    candidates: int | None,
    generator: Generators,
) -> Images:
    """Down the score where the label is wrong, towards another label where it is right.

    Up to a constant factor, the curvature of F_i = f_i - f_0 along its tangent v_i is the second
    difference of F_i over +-h v_i, divided by the norm of its gradient if the detector does so; the
    step's score is the sum over the rivals i.
    """
    chosen, tangents, products = _tangents(model, points, option, candidates, generator)
    with torch.enable_grad(), FastInputGradients():
        leaf = points.detach().requires_grad_()
        # Block 0 is the point itself; blocks 1 + 2i and 2 + 2i are the point +h and -h along v_i.
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
        values = values.gather(2, chosen.expand(len(around), -1, -1))  # (blocks, N, 1 + K)
        margins = values[..., 1:] - values[..., :1]  # F_i in every block, (blocks, N, K)
        rivals = range(margins.shape[2])
        bends = [
            margins[1 + 2 * i, :, i] + margins[2 + 2 * i, :, i] - 2 * margins[0, :, i]
            for i in rivals
        ]
        parts = torch.stack(bends, dim=1)
        score = (parts / _slopes(values[0], products, option) if option.normalise else parts).sum()
        at_points = logits[0]
        # By how much the best other logit leads over that of the original label.
        leads = (
            at_points.scatter(1, original[:, None], -torch.inf).amax(dim=1)
            - at_points.gather(1, original[:, None])[:, 0]
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
    slopes = gradients.flatten(2).double()  # (N, 1 + K, d), of the logits
    values = logits.softmax(dim=1).gather(1, chosen)
    normals = _derivatives(values, option) @ slopes  # the chain rule: of each F_i
    units = torch.nn.functional.normalize(normals, dim=2).to(points)
    drawn = normal(
        points.new_empty(len(points), chosen.shape[1] - 1, *points.shape[1:]), generator
    ).flatten(2)
    tangents = torch.nn.functional.normalize(
        drawn - (drawn * units).sum(dim=2, keepdim=True) * units, dim=2
    )
    return chosen, tangents.view(*drawn.shape[:2], *points.shape[1:]), slopes @ slopes.mT


def _derivatives(values: Tensor, option: Option) -> Tensor:
    """The derivatives (N, K, 1 + K) of each F_i = f_i - f_0 by the logits.

    Args:
        values: (N, 1 + K) the probabilities of the classes.
        option: says whether f are probabilities or logits.
    """
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
