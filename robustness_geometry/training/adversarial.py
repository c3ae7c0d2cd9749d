"""Fine-tuning on adversarial examples (Section 3.3)."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from robustness_geometry.checks import Described, check_count, check_positive, refuse
from robustness_geometry.training.loop import train
from robustness_geometry.training.recipe import Recipe
from robustness_geometry.types import Images, Split

__all__ = ["UNKNOWN_RATE", "extra_epochs", "fine_tune", "perturbed_split"]

UNKNOWN_RATE = 0.01
"""The learning rate that is lowered for a network whose training is not known."""


def perturbed_split(data: Split, perturbations: Images, *, scale: float = 1.0) -> Split:
    """The perturbed training set: images x + scale * r with their true labels.

    The r are computed once, before the training. An image whose perturbation is not finite is
    dropped. A perturbation that does not change the label is kept: the single eps of FGSM leaves a
    tenth of the images unfooled by definition.

    Args:
        data: the clean images (N, C, H, W) and their labels.
        perturbations: r, (N, C, H, W), in pixel units.
        scale: the factor alpha of Figure 3.7, above 0.

    Returns:
        At most N images, unclipped, and their labels.

    Raises:
        InputError: shapes differ, or no perturbation is finite.

    References:
        Thesis: Section 3.3 and Figure 3.7.

    Example:
        >>> import torch
        >>> from robustness_geometry.attacks import deepfool
        >>> from robustness_geometry.training import perturbed_split
        >>> from robustness_geometry.types import Split
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2)).eval()
        >>> images = torch.rand(40, 1, 4, 4)
        >>> data = Split(images, (images.mean(dim=(1, 2, 3)) > 0.5).long())
        >>> perturbed = perturbed_split(data, deepfool(model, images).perturbations, scale=2.0)
        >>> len(perturbed), torch.equal(perturbed.labels, data.labels)
        (40, True)
    """
    check_positive("alpha", scale)
    if perturbations.shape != data.images.shape:
        refuse(
            "perturbations.shape",
            tuple(perturbations.shape),
            f"{tuple(data.images.shape)}, one per image",
        )
    finite = torch.isfinite(perturbations).flatten(1).all(dim=1)
    if not bool(finite.any()):
        refuse(
            "perturbations",
            Described(f"{len(data)} of which none is finite"),
            "perturbations of which at least one is finite",
        )
    return Split((data.images + scale * perturbations)[finite], data.labels[finite])


def extra_epochs(
    training: Mapping[str, object],
    *,
    epochs: int = 5,
    factor: float = 0.5,
    learning_rate: float | None = None,
) -> Recipe:
    """The recipe for a few more epochs of a training at a lowered, constant learning rate.

    The rate that is lowered is that of the training's last epoch.

    Args:
        training: the fields of the original recipe; empty for a network that came with its weights.
        epochs: number of extra epochs, 5 in the thesis.
        factor: factor of the learning rate, 0.5 in Section 3.3 and 0.1 in Figure 3.9.
        learning_rate: the rate to lower instead; None takes the training's, or 0.01 where there was
            none.

    Raises:
        InputError: a value out of range.

    References:
        Thesis: Section 3.3.

    Example:
        >>> from robustness_geometry.training import extra_epochs
        >>> recipe = extra_epochs({"epochs": 15, "learning_rate": 0.05})
        >>> recipe.epochs, recipe.learning_rate
        (5, 0.025)
    """
    check_count("epochs", epochs)
    check_positive("learning_rate_factor", factor)
    original = Recipe(**training)  # type: ignore[arg-type]
    last = original.rate(original.epochs - 1) if training else UNKNOWN_RATE
    before = last if learning_rate is None else learning_rate
    rate = factor * check_positive("learning_rate", before)
    return replace(
        original,
        epochs=epochs,
        learning_rate=rate,
        schedule="constant",
        milestones=(),
        final_rate=0.0,
    )


def fine_tune(
    model: nn.Module, data: Split, recipe: Recipe, *, seed: int = 0
) -> list[dict[str, Tensor]]:
    """Train a copy of ``model`` further on ``data`` alone, the same images in every epoch.

    Args:
        model: the trained classifier, which stays as it is.
        data: the perturbed (or clean) training set.
        recipe: such as ``extra_epochs`` gives.
        seed: seed of the order of the images.

    Returns:
        The weights and buffers after each epoch, on the CPU.

    Raises:
        InputError: no images, or labels that the model has no logit for.
        TrainingDiverged: the loss or a weight became NaN or infinite.

    References:
        Thesis: Section 3.3, Figure 3.6 and Table 3.3.

        S.-M. Moosavi-Dezfooli, A. Fawzi, P. Frossard, "DeepFool: a simple and accurate method to
        fool deep neural networks", CVPR 2016, arXiv:1511.04599.

    Example:
        >>> import torch
        >>> from robustness_geometry.attacks import deepfool
        >>> from robustness_geometry.training import extra_epochs, fine_tune, perturbed_split
        >>> from robustness_geometry.types import Split
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2)).eval()
        >>> images = torch.rand(40, 1, 4, 4)
        >>> data = Split(images, (images.mean(dim=(1, 2, 3)) > 0.5).long())
        >>> perturbed = perturbed_split(data, deepfool(model, images).perturbations)
        >>> states = fine_tune(model, perturbed, extra_epochs({}, epochs=2))
        >>> len(states)
        2
    """
    return list(train(model, data, recipe, seed=seed, keep_states=True).states)
