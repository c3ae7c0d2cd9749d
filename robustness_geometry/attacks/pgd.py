"""Projected gradient descent: the strong attack in a ball by which chapter 8 judges defences."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustness_geometry.attacks.fgsm import unit_ascent
from robustness_geometry.attacks.gradients import linearise, loss_weights
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
from robustness_geometry.checks import (
    Described,
    GivenLabels,
    check_count,
    check_positive,
    number,
    refuse,
)
from robustness_geometry.norms import norms, project
from robustness_geometry.randomness import Generators, normal, stream, uniform
from robustness_geometry.types import Classifier, Images, Labels, PerImage, Perturbed

__all__ = ["pgd"]


@dataclass(frozen=True)
class Options:
    """The checked options of :func:`pgd`.

    ``eps`` and ``step_size`` are (N, 1, ...) where each image has its own.
    """

    eps: float | Tensor
    norm: float
    steps: int
    step_size: float | Tensor
    clip: Clip

    def of(self, rows: Tensor) -> "Options":
        """The options of some of the images."""
        eps, size = (v[rows] if isinstance(v, Tensor) else v for v in (self.eps, self.step_size))
        return replace(self, eps=eps, step_size=size)


def pgd(
    model: Classifier,
    images: Images,
    *,
    eps: Number | PerImage,
    norm: Number = math.inf,
    steps: int = 20,
    step_size: Number | None = None,
    restarts: int = 1,
    random_start: bool = True,
    clip: Bounds | None = (0.0, 1.0),
    labels: GivenLabels = None,
    targets: GivenLabels = None,
    generator: Generators = None,
) -> Perturbed:
    """Climb the cross-entropy J inside the ball of radius ``eps``, by steps of fixed length.

    r <- Pi(r + a v) with v = sign(grad J) for norm=inf or grad J / ||grad J||_2 for norm=2, where
    Pi projects onto the ball and then clips the image. The thesis takes 20 steps at eps = 8/255 in
    l_inf (Table 8.2).

    Args:
        model: a classifier in evaluation mode.
        images: (N, C, H, W).
        eps: radius of the ball, in pixel units; (N,) for one radius per image.
        norm: 2 or inf.
        steps: gradient steps of each run; the last iterate of a run counts, not the best one.
        step_size: a, in pixel units; None: 2.5 eps / steps, more than enough to cross the ball.
        restarts: number of runs; only images that are not fooled yet take part in further runs.
        random_start: start at a uniformly random point of the ball instead of its centre.
        clip: lowest and highest pixel value; None does not clip.
        labels: (N,) labels whose J is climbed; None: the classifier's own.
        targets: (N,) labels to reach; their J is descended instead.
        generator: one for the batch or one per image; None starts from seed 0.

    Returns:
        Perturbed, the run that reached the goal or else the last one; ``steps`` counts those of all
        runs.

    Raises:
        InputError: an option, an image or a logit that cannot be used, or a model in training mode.

    References:
        Thesis: Sections 8.2, 8.5 and 8.5.1, Tables 8.1 and 8.2.

        A. Madry, A. Makelov, L. Schmidt, D. Tsipras, A. Vladu, "Towards deep learning models
        resistant to adversarial attacks", ICLR 2018, arXiv:1706.06083.

    Example:
        >>> import torch
        >>> from robustness_geometry.attacks import pgd
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
        >>> images = torch.rand(4, 1, 4, 4)
        >>> result = pgd(model, images, eps=0.1, steps=10)
        >>> bool((result.perturbations.abs() <= 0.1 + 1e-6).all())
        True
    """
    options = _options(eps, norm, steps, step_size, clip, images)
    check_count("restarts", restarts)
    model, images, labels, targets = check_input(
        model, images, clip=options.clip, labels=labels, targets=targets
    )
    if not len(images):
        return nothing(images)
    labels = clean_labels(model, images, labels, targets)
    perturbations = torch.zeros_like(images)
    taken = torch.zeros_like(labels)
    waiting = torch.arange(len(images), device=images.device)
    draws = stream(generator)
    for _ in range(restarts):
        # Drawn for all images, so that an image's start does not depend on which others are done.
        starts = _random_start(images, options, draws) if random_start else torch.zeros_like(images)
        goal = (labels if targets is None else targets)[waiting]
        found = _run(
            model,
            images[waiting],
            starts[waiting],
            goal,
            options.of(waiting),
            targeted=targets is not None,
        )
        perturbations[waiting] = found
        taken[waiting] += steps
        result = judge(model, images, perturbations, labels, taken, targets)
        waiting = (~result.success).nonzero()[:, 0]
        if not len(waiting):
            break
    return result


def _options(
    eps: Number | Tensor,
    norm: Number,
    steps: int,
    step_size: Number | None,
    clip: Bounds | None,
    images: Images,
) -> Options:
    radius, p = _radius(eps, images), number("norm", norm)
    if p not in (2, math.inf):
        refuse("norm", norm, "2 or inf")
    check_count("steps", steps)
    length = 2.5 * radius / steps if step_size is None else check_positive("step_size", step_size)
    return Options(radius, p, steps, length, check_clip(clip))


def _radius(eps: Number | Tensor, images: Images) -> float | Tensor:
    count = len(images)
    if not isinstance(eps, Tensor):
        return check_positive("eps", eps)
    if eps.shape != (count,) or not bool((torch.isfinite(eps) & (eps > 0)).all()):
        refuse(
            "eps",
            Described(f"a tensor {tuple(eps.shape)}"),
            f"{count} finite numbers > 0, one per image",
        )
    return per_image(eps.to(images), images)


def _random_start(images: Images, options: Options, generator: Generators) -> Images:
    """(N, C, H, W) uniformly distributed in the ball."""
    if math.isinf(options.norm):
        return options.eps * uniform(images, generator, -1.0, 1.0)
    directions = normal(images, generator)
    # The radius of a uniform point of a d-dimensional ball is distributed as U^(1/d).
    shares = per_image(uniform(images.flatten(1)[:, 0], generator), images)
    radii = options.eps * shares ** (1 / images[0].numel())
    scaled: Tensor = radii / per_image(norms(directions), images) * directions
    return scaled


def _run(
    model: Classifier,
    images: Images,
    starts: Images,
    goal: Labels,
    options: Options,
    *,
    targeted: bool,
) -> Images:
    """The perturbations after one run of steps from ``starts``."""
    moved = confine(images, starts, options.clip)
    length = -options.step_size if targeted else options.step_size
    radius = options.eps.flatten() if isinstance(options.eps, Tensor) else options.eps
    for _ in range(options.steps):
        # A step of fixed length along the gradient, then back into the ball and the box.
        logits, pull = linearise(model, images + moved)
        ascent = unit_ascent(pull(loss_weights(logits, goal)), options.norm)
        moved = confine(
            images, project(moved + length * ascent, radius, options.norm), options.clip
        )
    return moved
