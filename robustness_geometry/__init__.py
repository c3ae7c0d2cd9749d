"""The geometry of adversarial robustness of classifiers, measured on any PyTorch model.

- ``robustness_geometry.attacks``: DeepFool, universal perturbations, and attacks to compare with.
- ``robustness_geometry.geometry``: boundary points, curvature, subspaces, paths and bounds.
- ``robustness_geometry.detection``: detection of perturbed images by curvature.
- ``robustness_geometry.training``: training, fine-tuning, adversarial training and CURE.
- ``robustness_geometry.check_classifier``: whether a network can be measured at all.
- ``robustness_geometry.models`` and ``robustness_geometry.datasets``: networks and images.

Each part is imported on its own, so that importing this package costs nothing.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robustness_geometry.classifiers import check_classifier

__all__ = ["check_classifier"]


def __getattr__(name: str) -> object:
    if name != "check_classifier":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from robustness_geometry.classifiers import check_classifier

    return check_classifier
