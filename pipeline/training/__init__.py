"""Training and fine-tuning of classifiers."""

from pipeline.training.adversarial import extra_epochs, fine_tune, perturbed_split
from pipeline.training.loop import Recipe, TrainingDiverged, TrainResult, train

__all__ = [
    "Recipe",
    "TrainResult",
    "TrainingDiverged",
    "extra_epochs",
    "fine_tune",
    "perturbed_split",
    "train",
]
