"""Training and fine-tuning of classifiers."""

from pipeline.training.adversarial import extra_epochs, fine_tune, perturbed_split
from pipeline.training.cure import Cure, cure_penalty
from pipeline.training.loop import TrainingDiverged, TrainResult, train, warm_up
from pipeline.training.objectives import Adversarial, CrossEntropy
from pipeline.training.recipe import Recipe

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
