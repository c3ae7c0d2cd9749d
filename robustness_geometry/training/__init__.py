"""Training and fine-tuning of classifiers."""

from robustness_geometry.training.adversarial import extra_epochs, fine_tune, perturbed_split
from robustness_geometry.training.cure import Cure, cure_penalty
from robustness_geometry.training.loop import TrainingDiverged, TrainResult, train, warm_up
from robustness_geometry.training.objectives import Adversarial, CrossEntropy
from robustness_geometry.training.recipe import Recipe

__all__ = [
    "Adversarial",
    "CrossEntropy",
    "Cure",
    "Recipe",
    "TrainResult",
    "TrainingDiverged",
    "cure_penalty",
    "extra_epochs",
    "fine_tune",
    "perturbed_split",
    "train",
    "warm_up",
]
