"""The geometry of adversarial robustness of classifiers, measured on any PyTorch model.

- ``robustness_geometry.attacks``: DeepFool, universal perturbations, and attacks to compare with.
- ``robustness_geometry.geometry``: boundary points, curvature, subspaces, paths and bounds.
- ``robustness_geometry.detection``: detection of perturbed images by curvature.
- ``robustness_geometry.training``: training, fine-tuning, adversarial training and CURE.
- ``robustness_geometry.models`` and ``robustness_geometry.datasets``: networks and images.

Each part is imported on its own, so that importing this package costs nothing.
"""
